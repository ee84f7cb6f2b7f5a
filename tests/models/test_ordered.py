"""``decode: ordered``: order settles what a sentence alone leaves open, and changes nothing that it need not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small import with_random_weights, word_vectors
from torch import Tensor

from vpgfast.data.batches import make_batch, prepare
from vpgfast.data.types import Batch, Paragraph, Prediction
from vpgfast.models.candidates import Candidates
from vpgfast.models.dmr_jrg import Moments
from vpgfast.models.layers import to_paragraphs
from vpgfast.models.marn import Attended
from vpgfast.models.method import Method
from vpgfast.models.ordered import put_in_order, single_sentences
from vpgfast.models.registry import get_config, get_method
from vpgfast.models.seqpan import Scores
from vpgfast.models.siamgtr import moved_spans

WIDTH, CLIPS = 6, 12
SHOWN = ("curves", "attention", "maps", "labels")
SMALL: dict[str, dict[str, Any]] = {
    "seqpan": {"dim": 8, "heads": 2, "conv_layers": 1, "conv_kernel": 3, "max_clips": CLIPS, "char_dim": 4},
    "marn": {"max_clips": CLIPS, "scales": [3, 4], "reduction": 1, "dim": 8},
    "wsra": {"hidden": 8, "windows": [0.25, 0.5], "max_clips": CLIPS},
    "dmr_jrg": {
        **{"max_clips": CLIPS, "segments": 6, "dim": 8, "heads": 2, "layers": 1, "feed_forward": 8, "tan_layers": 1},
        **{"tan_kernel": 3, "reconstructor_heads": 2, "reconstructor_layers": 1},
    },
    "siamgtr": {"max_clips": CLIPS, "dim": 8, "heads": 2, "layers": 1, "feed_forward": 8, "concepts": 0},
    "plain_alignment": {"max_clips": CLIPS, "dim": 8},
}
PARAGRAPHS = [
    Paragraph("a", 24.0, ("word0 word1.", "word2.", "word0 word3 word4."), np.array([[0, 4.0], [5, 9], [12, 20]])),
    Paragraph("b", 10.0, ("word5.",), np.array([[1.0, 4.0]])),
    Paragraph("c", 30.0, ("word6 word1.", "word7 word8."), np.array([[3.0, 9.0], [1.0, 4.0]])),
]


def make_model(name: str, decode: str) -> Method:
    config = get_config(name)(**SMALL[name], decode=decode)
    return with_random_weights(get_method(name)(config, WIDTH, word_vectors()), 0.7, torch.float32).eval()


def batch_for(model: Method, paragraphs: list[Paragraph]) -> Batch:
    needs = model.needs(model.config)
    items = prepare(paragraphs, needs, training=False)
    rng = np.random.default_rng(0)
    videos = {p.video_id: rng.standard_normal((CLIPS, WIDTH)).astype(np.float32) for p in paragraphs}
    return make_batch(items, [videos[item.video_id] for item in items], word_vectors(), needs, training=False)


@pytest.mark.parametrize("name", SMALL)
def test_starts_rise_and_other_ranks_stay(name: str) -> None:
    """The same weights, asked both ways: starts in order, and behind the first place what the method ranks anyway."""
    alone, together = make_model(name, "independent"), make_model(name, "ordered")
    apart, batch = batch_for(alone, PARAGRAPHS), batch_for(together, PARAGRAPHS)
    assert [len(p.sentences) for p in batch.paragraphs] == [3, 1, 2]
    assert batch.paragraphs[2].sentences[0] == "word7 word8."  # in the order of the annotation
    own, found = alone.predict(apart, 4), together.predict(batch, 4)
    there = batch.sentence_mask
    if own.spans.shape[1] == 1:  # single sentences, paragraph by paragraph: c's are in the order of the file
        rows = torch.tensor([0, 1, 2, 3, 5, 4])
        shown = {name: getattr(own, name) for name in SHOWN if getattr(own, name) is not None}
        own = Prediction(
            to_paragraphs(own.spans[rows, 0], there),
            to_paragraphs(own.scores[rows, 0], there, -torch.inf),
            **{name: to_paragraphs(values[rows, 0], there) for name, values in shown.items()},
        )
    for what in SHOWN:
        one, other = getattr(found, what), getattr(own, what)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one[there], other[there], equal_nan=True)
    assert (found.scores[there][:, 0] > -torch.inf).all()
    assert (found.scores[there].diff(dim=1).nan_to_num() <= 0).all()
    for b, paragraph in enumerate(batch.paragraphs):
        count = len(paragraph.sentences)
        assert (found.spans[b, :count, 0, 0].diff() >= -1e-6).all()
        for m in range(count):
            mine = own.spans[b, m][own.scores[b, m].isfinite()].tolist()
            first, *others = found.spans[b, m][found.scores[b, m].isfinite()].tolist()
            if name in ("siamgtr", "plain_alignment"):
                assert not others
                continue
            kept = [span for span in mine if span in others]
            torch.testing.assert_close(torch.tensor(others), torch.tensor(kept).view(-1, 2))
            assert others == kept or first not in others
    if (own.spans[there][:, 0, 0].diff() >= 0).all():
        torch.testing.assert_close(found.spans[there][:, 0], own.spans[there][:, 0])


@pytest.mark.parametrize("name", SMALL)
def test_a_single_sentence_keeps_its_own_span(name: str) -> None:
    alone, together = make_model(name, "independent"), make_model(name, "ordered")
    own = alone.predict(batch_for(alone, PARAGRAPHS[1:2]), 4)
    found = together.predict(batch_for(together, PARAGRAPHS[1:2]), 4)
    torch.testing.assert_close(found.spans[:, :, 0], own.spans[:, :, 0])
    torch.testing.assert_close(found.scores[:, :, 0], own.scores[:, :, 0])


def test_put_in_order_by_hand() -> None:
    spans = torch.tensor([[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]]).expand(1, 3, 3, 2)
    # Sentence 0 happens at 8 or, nearly as likely, at 0; sentence 1 surely at 4; there is no sentence 2.
    likely = torch.tensor([[[0.4, 0.1, 0.5], [0.1, 0.8, 0.1], [1.0, 1.0, 1.0]]])
    ranks = likely.sort(dim=2, descending=True)
    ranked = Prediction(spans.gather(2, ranks.indices.unsqueeze(-1).expand(-1, -1, -1, 2)), ranks.values)
    there = torch.tensor([[True, True, False]])
    found = put_in_order(ranked, Candidates(spans, likely.log()), there)
    assert found.spans[0, 0].tolist() == [[0, 2], [8, 10], [4, 6]]
    assert found.spans[0, 1].tolist() == ranked.spans[0, 1].tolist()
    torch.testing.assert_close(found.scores[0, 0], torch.tensor([0.5, 0.5, 0.1]))
    assert torch.equal(found.scores[0, 1:], ranked.scores[0, 1:])
    nothing = put_in_order(ranked, Candidates(spans, torch.full_like(likely, -torch.inf)), there)
    assert torch.equal(nothing.spans, ranked.spans)
    assert torch.equal(nothing.scores, ranked.scores)


def test_put_in_order_suppresses_as_the_method_does() -> None:
    spans = torch.tensor([[0.0, 4.0], [1.0, 4.0], [6.0, 8.0]]).expand(1, 2, 3, 2)
    likely = torch.tensor([[[0.35, 0.05, 0.6], [0.3, 0.6, 0.1]]])
    ranks = likely.sort(dim=2, descending=True)
    ranked = Prediction(spans.gather(2, ranks.indices.unsqueeze(-1).expand(-1, -1, -1, 2)), ranks.values)
    found = put_in_order(ranked, Candidates(spans, likely.log()), torch.ones(1, 2, dtype=torch.bool), nms=0.5)
    assert found.spans[0, 0, :2].tolist() == [[0, 4], [6, 8]]  # (1, 4) is too much like (0, 4)
    assert found.scores[0, 0, 2] == -torch.inf
    assert found.spans[0, 1, 0].tolist() == [1, 4]


def planted(where: list[list[float]]) -> Tensor:
    """[N, CLIPS] probabilities, nearly all on some clips of each of N sentences."""
    likely = torch.full((len(where), CLIPS), 1e-4)
    for row, peaks in zip(likely, where, strict=True):
        for clip, share in enumerate(peaks):
            row[clip] += share
    return likely / likely.sum(1, keepdim=True)


def test_seqpan_with_an_ambiguous_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sentence begins at clip 7 or 1; the second at 4: only one of the first's two moments is before it."""
    model = make_model("seqpan", "ordered")
    starts = planted([[0, 0.45, 0, 0, 0, 0, 0, 0.55], [0, 0, 0, 0, 1.0]])
    ends = planted([[0, 0, 0.45, 0, 0, 0, 0, 0, 0, 0.55], [0, 0, 0, 0, 0, 1.0]])
    monkeypatch.setattr(model, "forward", lambda batch: Scores(starts.log(), ends.log(), None, torch.zeros(2)))
    batch = batch_for(model, [replace(PARAGRAPHS[0], sentences=("word0.", "word1."), spans=None)])
    clip = 24.0 / (CLIPS - 1)
    found = model.predict(batch, 3).spans[0, :, 0] / clip
    torch.testing.assert_close(found, torch.tensor([[1.0, 9.0], [4.0, 5.0]], dtype=found.dtype))
    model.config.decode = "independent"
    single = [model.predict(part, 3).spans[0, 0, 0, 0] / clip for part in single_sentences(batch)]
    assert float(single[0]) == pytest.approx(7)


def test_marn_with_an_ambiguous_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("marn", "ordered")
    spans = model.spans * CLIPS
    early, middle, late = (spans.tolist().index(span) for span in ([0, 3], [4, 7], [8, 11]))
    weights = torch.full((2, len(spans)), 1e-3)
    weights[0, early], weights[0, late], weights[1, middle] = 0.4, 0.5, 0.9
    monkeypatch.setattr(model, "forward", lambda batch: (Attended(weights, weights), None))
    batch = batch_for(model, [replace(PARAGRAPHS[0], sentences=("word0.", "word1."), spans=None)])
    found = (model.predict(batch, 3).spans[0] / 2).round(decimals=5)
    assert found[:, 0].tolist() == [[0, 3], [4, 7]]
    assert found[0, 1].tolist() == [8, 11]


def test_wsra_with_an_ambiguous_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("wsra", "ordered")
    spans = torch.tensor([[0.0, 6.0], [8.0, 14.0], [16.0, 22.0]]).expand(2, 3, 2)
    scores = torch.tensor([[0.5, 0.1, 0.6], [0.2, 0.9, 0.2]])
    monkeypatch.setattr(model, "score_moments", lambda batch: (spans, scores))
    batch = batch_for(model, [replace(PARAGRAPHS[0], sentences=("word0.", "word1."), spans=None)])
    found = model.predict(batch, 3).spans[0]
    assert found[:, 0].tolist() == [[0, 6], [8, 14]]
    assert found[0, 1:].tolist() == [[16, 22], [8, 14]]


def test_dmr_jrg_with_an_ambiguous_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("dmr_jrg", "ordered")
    cells = model.cells.T.tolist()
    logits = torch.full((2, len(cells)), -5.0)
    logits[0, cells.index([0, 0])], logits[0, cells.index([5, 5])], logits[1, cells.index([2, 3])] = 1.0, 1.5, 2.0
    monkeypatch.setattr(model, "forward", lambda *_: Moments(logits, logits, []))
    batch = batch_for(model, [replace(PARAGRAPHS[0], sentences=("word0.", "word1."), spans=None)])
    found = (model.predict(batch, 3).spans[0] / 4).round(decimals=5)
    assert found[:, 0].tolist() == [[0, 1], [2, 4]]
    assert found[0, 1].tolist() == [5, 6]


def test_moved_spans_by_hand() -> None:
    weights = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    spans, masses = moved_spans(torch.tensor([[[0.125, 0.625]]]), weights)
    expected = [[0.125, 0.625], [0, 0.5], [0.25, 0.75], [0.5, 1], [0.5, 1]]
    torch.testing.assert_close(spans[0, 0], torch.tensor(expected))
    torch.testing.assert_close(masses[0, 0].exp(), torch.tensor([0.7, 0.3, 0.5, 0.7, 0.7]).double(), rtol=1e-5, atol=0)
    assert masses[0, 0, 0] > masses[0, 0, 1:].max()


def test_training_still_sees_single_sentences() -> None:
    model = make_model("seqpan", "ordered")
    items = prepare(PARAGRAPHS, model.needs(model.config), training=True)
    assert [len(item.sentences) for item in items] == [1] * 6


def test_single_sentences_of_a_batch() -> None:
    model = make_model("seqpan", "ordered")
    batch = batch_for(model, PARAGRAPHS)
    parts = list(single_sentences(batch))
    assert [p.sentences for part in parts for p in part.paragraphs] == [
        ("word0 word1.",), ("word2.",), ("word0 word3 word4.",), ("word5.",), ("word7 word8.",), ("word6 word1.",)
    ]  # fmt: skip
    (part,) = parts
    assert torch.equal(part.video[2], batch.video[0])
    assert torch.equal(part.words[4, 0], batch.words[2, 0])
    assert part.chars is not None
    assert batch.chars is not None
    assert torch.equal(part.chars[1, 0], batch.chars[0, 1])
    assert part.durations.tolist() == [24, 24, 24, 10, 30, 30]
    many = replace(PARAGRAPHS[0], sentences=("word1.",) * 40, spans=None)
    assert [len(part) for part in single_sentences(batch_for(model, [many]))] == [16, 16, 8]
