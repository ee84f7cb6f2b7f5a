"""What train and evaluate say about a method that finds videos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_search
import torch

from vpgfast import evaluate, train
from vpgfast import fabric as fabric_module
from vpgfast.checkpoint import build_model, load_checkpoint
from vpgfast.config import from_dict
from vpgfast.data.corpus import load_corpus
from vpgfast.errors import EmbeddingError
from vpgfast.evaluate.report import table_from
from vpgfast.evaluate.split import evaluate_split
from vpgfast.models.embed import embed_clips, embed_texts
from vpgfast.models.registry import METHODS


@pytest.fixture(autouse=True)
def _tiny_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, tiny_search.NAME, tiny_search.PLACE)


def test_table_and_json(
    search_run: Path, tmp_path: Path, train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(search_run), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "moving_shapes, test split, in %: the video of a paragraph among 7, 7 paragraphs" in printed
    for row in (
        "tiny_search, first window only",
        "bag of words",
        "chance",
        "chance, first window only",
        "videos found, uniform split",
    ):
        assert f"\n{row} " in printed
    first, again = (json.loads((folder / "metrics.json").read_text()) for folder in (search_run, tmp_path))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    found = first["retrieval"]
    assert (found["videos"], found["paragraphs"]) == (7, 7)
    assert list(found["metrics"])[:6] == ["R@1", "R@5", "R@10", "R@100", "median rank", "R@10 IoU=0.3"]
    assert found["metrics"]["R@10"] == 1
    assert found["baselines"]["chance"]["median rank"] == 4
    assert list(found["baselines"]["bag of words"]) == ["R@1", "R@5", "R@10", "R@100", "median rank"]

    # A finished run is shown again from its file, whether or not an older version wrote it.
    shown = [*train_args, "--method=tiny_search", "--output", str(search_run)]
    assert train.main(shown) == 0
    assert printed.split("\ntrue and predicted")[0] in capsys.readouterr().out
    older = {key: value for key, value in first.items() if key != "retrieval"}
    text = table_from(older, from_dict(load_checkpoint(search_run).settings, "test"))
    assert "tiny_search, sentences swapped" in text
    assert "chance" not in text
    del found["baselines"]["bag of words"]
    text = table_from(first, from_dict(load_checkpoint(search_run).settings, "test"))
    assert "\nchance " in text
    assert "bag of words" not in text


def test_ranks_are_the_models_own(search_run: Path) -> None:
    """The metrics of the training split, recomputed one video and one paragraph at a time."""
    checkpoint = load_checkpoint(search_run)
    config = from_dict(checkpoint.settings, "test", ["--model.dropout=0", "--batch_size=7"])
    corpus, fabric = load_corpus(config.data), fabric_module.make_fabric(config)
    model = build_model(checkpoint, config.model, search_run)
    needs, cpu = model.needs(config.model), torch.device("cpu")
    evaluation = evaluate_split(fabric, model, config, corpus, checkpoint.word_vectors, "train")
    assert evaluation.retrieval is not None
    paragraphs = corpus.splits["train"]
    videos = [embed_clips(model, [corpus.features[p.video_id]], needs, cpu)[0] for p in paragraphs]
    ranks = []
    for own, paragraph in enumerate(paragraphs):
        # A sentence-level method: the paragraph's vector is the mean of its sentences' vectors.
        rows = [
            embed_texts(model, [paragraph.select([m])], checkpoint.word_vectors, needs, corpus.features.dim, cpu)[0]
            for m in range(len(paragraph.sentences))
        ]
        products = np.array(videos) @ np.mean(rows, axis=0)
        ranks.append(1 + (products > products[own]).sum())
    assert evaluation.retrieval.metrics["R@5"] == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert evaluation.retrieval.metrics["median rank"] == np.median(ranks)


@pytest.mark.parametrize("value", [np.nan, 1e38, 1e33])
def test_vectors_without_a_direction(search_run: Path, value: float) -> None:
    """Infinite ones, and those whose length is."""
    checkpoint = load_checkpoint(search_run)
    config = from_dict(checkpoint.settings, "test")
    model = build_model(checkpoint, config.model, search_run)
    with pytest.raises(EmbeddingError, match="vectors of videos are not finite"):
        embed_clips(
            model,
            [np.full((3, checkpoint.feature_dim), value, np.float32)],
            model.needs(config.model),
            torch.device("cpu"),
        )


@pytest.mark.parametrize("share", [1, 2, 3])
def test_processes_share_the_work(share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process gets all results in order, and calls the model as often as the others."""

    class Process:
        def __init__(self, rank: int) -> None:
            self.global_rank, self.world_size = rank, share

    batches = [[0, 1], [2, 3], [4, 5], [6]]
    shares: dict[int, list[np.ndarray]] = {}

    def run(rank: int) -> list[np.ndarray]:
        return fabric_module.in_shares(Process(rank), batches, lambda rows: np.array(rows) + 10, "")  # type: ignore[arg-type]

    class Meeting(Exception):
        """Where every process waits for the others."""

    def meet(process: Process, mine: list[np.ndarray]) -> list[list[np.ndarray]]:
        shares[process.global_rank] = mine
        if len(shares) < share:
            raise Meeting
        return [shares[rank] for rank in range(share)]

    monkeypatch.setattr(fabric_module, "gather", meet)
    for rank in range(share - 1):
        with pytest.raises(Meeting):
            run(rank)
    for rank in reversed(range(share)):
        assert [rows.tolist() for rows in run(rank)] == [[10, 11], [12, 13], [14, 15], [16]]
    assert len({len(mine) for mine in shares.values()}) == 1
