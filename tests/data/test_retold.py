"""Real paragraphs, retold so that only the paragraph tells which moment is meant."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vpgfast.config import parse_train
from vpgfast.data.corpus import load_corpus, read_splits
from vpgfast.data.discourse import resolve, shares_in_order, true_alone, true_together
from vpgfast.data.options import DataConfig, MovingShapesOptions, SimulatedOptions
from vpgfast.data.retold import retell, retell_splits, shown
from vpgfast.data.simulated import SimulatedFeatures
from vpgfast.data.text import load_word_vectors, tokenize
from vpgfast.data.types import Paragraph
from vpgfast.errors import ConfigError

ROOT = Path(__file__).parents[2]
VERBS = ("opens", "closes", "paints", "carries", "drops")
THINGS = ("a door", "a box", "the window", "the lamp", "a bag")
SENTENCES = [f"A person {verb} {thing}." for verb in VERBS for thing in THINGS]


def paragraphs(count: int, seed: int = 0) -> list[Paragraph]:
    """Of 2 to 5 sentences in no order, whose moments may overlap."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        sentences = rng.permutation(SENTENCES)[: rng.integers(2, 6)].tolist()
        duration = float(rng.uniform(20, 60))
        starts = rng.uniform(0, 0.8 * duration, len(sentences)).round(1)
        spans = np.stack([starts, np.minimum(starts + rng.uniform(2, 12, len(sentences)), duration)], axis=1)
        made.append(Paragraph(f"v{number}", duration, tuple(sentences), spans))
    return made


def test_retellings_keep_their_promises() -> None:
    """The paragraph is true of the moments that are meant alone, each sentence of several."""
    again = 0
    made = paragraphs(80)
    for paragraph in made:
        told = retell(paragraph, SENTENCES, 1)
        assert told is not None
        sentences, spans, events = told.paragraph.sentences, told.paragraph.spans, told.events
        assert spans is not None
        meant = [next(i for i, e in enumerate(events) if [e.start, e.end] == span) for span in spans.tolist()]
        assert [events[i].colour for i in meant] == [what for what, _ in resolve(told.statements)]
        assert [np.flatnonzero(row).tolist() for row in shares_in_order(true_together(told.statements, events))] == [
            [i] for i in meant
        ]
        for m, (statement, i) in enumerate(zip(told.statements, meant, strict=True)):
            true = true_alone(statement, events)
            assert true[i]
            assert true.sum() > 1
            if statement.again:
                again += 1
                assert m > 0
                assert sentences[m].endswith((" again.", " once more."))
            else:
                assert sentences[m] == statement.colour == paragraph.by_time().sentences[m]
        for a, b in itertools.combinations(events, 2):
            assert a.colour != b.colour or b.start - a.end >= 1
        assert all(0 <= e.start < e.end <= told.paragraph.duration for e in events)
        untold = {e.colour for e in events} - set(paragraph.sentences)
        assert len(untold) <= 1  # the one thing of which nobody tells
    assert 30 < again < 90


def test_time_is_put_in_where_nothing_is_under_way() -> None:
    """Moments keep their lengths, and those that overlap keep their distance."""
    for paragraph in paragraphs(40, seed=1):
        told = retell(paragraph, SENTENCES, 0)
        assert told is not None
        before, after = paragraph.by_time().spans, told.paragraph.spans
        assert before is not None
        assert after is not None
        np.testing.assert_allclose(after[:, 1] - after[:, 0], before[:, 1] - before[:, 0])
        for i, j in itertools.combinations(range(len(before)), 2):
            moved = (after[j, 0] - after[i, 0]) - (before[j, 0] - before[i, 0])
            assert moved >= -1e-9
            if before[j, 0] < before[i, 1]:
                assert moved == pytest.approx(0, abs=1e-9)
        assert 2 <= told.paragraph.duration / paragraph.duration <= 3


def test_a_retelling_depends_on_its_arguments_alone() -> None:
    made = paragraphs(6, seed=2)
    alone = [retell(paragraph, SENTENCES, 3) for paragraph in made]
    told = retell_splits({"train": made[:4], "test": made[4:]}, 3)
    every = [sentence for paragraph in made for sentence in paragraph.sentences]
    assert [t.paragraph.sentences for t in told["train"] + told["test"]] == [
        t.paragraph.sentences for t in (retell(p, every, 3) for p in made) if t is not None
    ]
    assert [t and t.events for t in alone] == [t and t.events for t in (retell(p, SENTENCES, 3) for p in made)]
    assert [t and t.events for t in alone] != [t and t.events for t in (retell(p, SENTENCES, 4) for p in made)]


def test_what_cannot_be_retold() -> None:
    one = Paragraph("one", 10.0, ("A person sits.",), np.array([[1.0, 2.0]]))
    assert retell(one, SENTENCES, 0) is None
    assert retell(paragraphs(1)[0].without_spans(), SENTENCES, 0) is None
    same = Paragraph("same", 10.0, ("A person sits.",) * 2, np.array([[1.0, 2.0], [1.0, 2.0]]))
    assert retell(same, SENTENCES, 0) is None, "which of the two is which nobody can tell"
    with pytest.raises(ConfigError, match=r"one paragraph a video; video 'v0' has 2.*held_out"):
        retell_splits({"train": paragraphs(2), "val": paragraphs(1)}, 0)
    with pytest.raises(ConfigError, match="none of the 1 paragraphs of the val split can be retold"):
        retell_splits({"train": paragraphs(2), "val": [one]}, 0)


def test_a_video_shows_what_nobody_tells() -> None:
    """What happens again looks as it did where it was told, whatever the sentence says."""
    told = [t for t in (retell(p, SENTENCES, 5) for p in paragraphs(30, seed=3)) if t is not None]
    words = load_word_vectors(None, {word for s in SENTENCES for word in tokenize(s)}, 32)
    options = SimulatedOptions(dim=64, clips_per_second=4, background=0, video_offset=0, clip_noise=0)
    features = SimulatedFeatures([shown(t) for t in told], words, options)
    compared = 0
    for t in told:
        clips = features[t.paragraph.video_id]
        centres = (np.arange(len(clips)) + 0.5) * t.paragraph.duration / len(clips)
        inside = np.array([(e.start <= centres) & (centres < e.end) for e in t.events])
        alone = inside & (inside.sum(axis=0) == 1)
        for a, b in itertools.combinations(range(len(t.events)), 2):
            if alone[a].any() and alone[b].any():
                same = np.allclose(clips[alone[a]].mean(0), clips[alone[b]].mean(0), atol=1e-4)
                assert same == (t.events[a].colour == t.events[b].colour)
                compared += same
    assert compared > 30


def test_moving_shapes_with_simulated_features(tmp_path: Path) -> None:
    shapes = MovingShapesOptions(train_videos=3, val_videos=2, test_videos=2)
    data = DataConfig(cache=tmp_path, moving_shapes=shapes, features="simulated")
    corpus = load_corpus(replace(data, simulated=SimulatedOptions(discourse=True)))
    assert corpus.name == "moving_shapes (discourse) (simulated features)"
    plain = load_corpus(data).splits["test"]
    assert [p.duration > q.duration for p, q in zip(corpus.splits["test"], plain, strict=True)] == [True, True]


def test_of_simulated_features_alone(shared: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "AAAAA.npy", np.zeros((4, 8), np.float32))
    data = DataConfig(corpus="charades_cd", root=shared, simulated=SimulatedOptions(discourse=True))
    with pytest.raises(ConfigError, match=r"discourse is of simulated features; set data.features to 'simulated'"):
        load_corpus(replace(data, features=str(tmp_path)))


def test_only_the_whole_paragraph_is_enough(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The stored table is what the code gives, and says what the corpus is for; the corpus is the one that it is of."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from discourse_oracles import SIMULATED, measure
    finally:
        sys.path.pop(0)
    data = parse_train(["--config", str(SIMULATED)]).data
    vectors = shared / "samples" / "word_vectors" / "charades_sta_glove_6B_300d.npz"
    data = replace(data, root=shared / "charades_cd", word_vectors=vectors)
    stored = json.loads((ROOT / "docs" / "results" / "tables" / "discourse_simulated_oracles.json").read_text())
    found = measure(data)
    assert stored["rows"] == [[name, pytest.approx(list(row.values()))] for name, row in found.items()]
    miou = {name: row["mIoU"] for name, row in found.items()}
    assert miou.pop("the whole paragraph") > 0.999
    assert max(value for name, value in miou.items() if name.startswith("each") and "order" not in name) < 0.5
    assert miou["each sentence alone, true moments in order"] < 0.97
    assert max(miou[name] for name in ("uniform", "prior", "whole video", "best single span", "random")) < 0.22

    corpus = load_corpus(data)
    assert corpus.name == "charades_cd (discourse) (simulated features)"
    splits = read_splits(data)
    for name, told in corpus.splits.items():
        left_out = len(splits[name]) - len(told)
        assert f"{name}: {left_out} of {len(splits[name])} paragraphs are left out" in caplog.text
        assert all(p.video_id in corpus.features for p in told)
    assert len(corpus.splits["test"]) > 800
