"""Pictures of how methods found their answers, and what goes into them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vpgfast import plots_inside, train
from vpgfast.data.types import Paragraph
from vpgfast.evaluate.inside import Inside
from vpgfast.metrics.spans import best_ious
from vpgfast.models.method import Method
from vpgfast.models.registry import get_method

PNG = b"\x89PNG"


def test_counts_by_hand() -> None:
    ious = np.array([0.0, 0.05, 0.1, 0.55, 0.999, 1.0])
    assert plots_inside.iou_counts(ious) == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert sum(plots_inside.iou_counts(np.random.default_rng(0).random(100))) == 100


def test_best_ious_are_those_of_the_first_spans() -> None:
    """Of several moments the one that it overlaps most; nothing predicted is 0."""
    several = (np.array([[0.0, 2.0], [6.0, 10.0]]), np.array([[0.0, 5.0]]))
    paragraph = Paragraph("v", 10.0, ("a", "b"), np.array([[6.0, 10.0], [0.0, 5.0]]), all_spans=several)
    ranked = np.array([[[5.0, 10.0], [6.0, 10.0]], [[np.nan, np.nan], [np.nan, np.nan]]])
    assert best_ious([ranked], [paragraph]).tolist() == pytest.approx([0.8, 0.0])


def test_block_means_by_hand() -> None:
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan], [5.0, 7.0, 9.0]])
    np.testing.assert_allclose(plots_inside.block_means(values, 2), [[2.0, np.nan], [6.0, 9.0]])
    np.testing.assert_allclose(plots_inside.block_means(values, 1), values)


@pytest.mark.parametrize("sentences", [1, 5])
@pytest.mark.parametrize("lengths", [[2, 5], list(range(2, 66, 2))], ids=len)
def test_pictures(tmp_path: Path, sentences: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    spans = np.array([[1.0, 4.0]] * sentences)
    paragraph = Paragraph("a$b", 9.0, ("costs $1 and $2 _ a ^ b",) * sentences, spans)
    attention = rng.random((sentences, len(lengths), 9))
    attention[:, -1] = np.nan
    labels = rng.integers(0, 4, (sentences, 9))
    insides = [Inside(paragraph, spans + 0.5, labels, labels, attention, lengths)] * 3
    plots_inside.draw_labels(insides, tmp_path / "l.png", "title $")
    plots_inside.draw_labels([Inside(paragraph, spans * np.nan, labels)], tmp_path / "p.png", "title")
    plots_inside.draw_attention(insides, tmp_path / "a.png", "title")
    plots_inside.draw_ious({"one": rng.random(50), "two": rng.random(50)}, tmp_path / "i.png", "title")
    for name in "lpai":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


def test_maps_of_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells of the true moment and of the best-ranked one are outlined: right of its end, below its start."""
    figures = []
    honest = plots_inside.save_figure
    monkeypatch.setattr(
        plots_inside, "save_figure", lambda figure, path: (figures.append(figure), honest(figure, path))
    )
    spans = np.array([[0.0, 2.0], [4.0, 10.0], [6.0, 8.0]])
    item = Paragraph("a$", 10.0, ("one", "two", "three"), spans)
    scores = np.where(np.triu(np.ones((5, 5), bool)), np.linspace(0, 1, 25).reshape(5, 5), np.nan)
    inside = Inside(item, spans[::-1], maps=np.stack([scores] * 3))
    plots_inside.draw_moments([inside], tmp_path / "m.png", "$title")
    cells = [[patch.get_xy() for patch in axis.patches] for axis in figures[0].axes]
    assert cells == [[(0, 0), (6, 6)], [(8, 4), (8, 4)], [(6, 6), (0, 0)]]
    assert (tmp_path / "m.png").read_bytes().startswith(PNG)


SHOWS = {"marn": "attention.png", "seqpan": "labels.png", "dmr_jrg": "moments.png", "wsra": "ious.png"}


@pytest.mark.parametrize("method", SHOWS)
def test_of_paragraphs_in_order(method: str, data_args: list[str], tmp_path: Path) -> None:
    """Paragraphs as a whole, in 16-bit arithmetic: the run ends, with the picture and the rows beside the method."""
    config = str(Path(__file__).parents[2] / "configs" / method / "moving_shapes.yaml")
    args = ["--config", config, "--epochs=1", "--accelerator=cpu", "--precision=bf16-mixed", "--model.decode=ordered"]
    assert train.main([*args, *data_args, f"--output={tmp_path / 'r'}"]) == 0
    assert (tmp_path / "r" / SHOWS[method]).read_bytes().startswith(PNG)
    has_a_list = get_method(method).at_random is not Method.at_random
    assert ("random candidates" in json.loads((tmp_path / "r" / "metrics.json").read_text())["baselines"]) == has_a_list
