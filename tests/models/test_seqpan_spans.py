"""SeqPAN's targets and its choice of a span: seconds to clips and back, labels, losses, inference."""

import math

import numpy as np
import pytest
import torch
from plain_seqpan import PlainSeqPAN, all_pairs, iou, make_batch, make_model, small_config
from small import mask_of

from vpgfast.models.layers import masked_log_softmax
from vpgfast.models.seqpan_clips import (
    BEGIN,
    END,
    INSIDE,
    OUTSIDE,
    best_clips,
    boundary_targets,
    clips_to_spans,
    region_labels,
    released_region_labels,
    spans_to_clips,
)

# targets: seconds to clips and back, boundary targets, regions


def test_points_by_hand():
    # Five clips at 0, 1/4, 1/2, 3/4 and 1 of the duration; then a video of three, a video of one.
    spans = torch.tensor([[0.0, 1.0], [0.3, 0.6], [0.125, 0.37], [0.49, 0.51], [0.9, 1.0], [0.2, 0.3]])
    start, end = spans_to_clips(spans, mask_of(5, 5, 5, 5, 3, 1), "points")
    assert start.tolist() == [0, 1, 1, 2, 2, 0]
    assert end.tolist() == [4, 2, 1, 2, 2, 0]


def test_points_back_to_seconds_by_hand():
    start, end = torch.tensor([[0, 1, 2, 0, 4]]), torch.tensor([[4, 3, 2, 0, 4]])
    spans = clips_to_spans(start, end, mask_of(5), "points")
    # start = end is an instant; it alone is widened by half of the distance 1/4 of two clips.
    expected = [[0, 1], [0.25, 0.75], [0.375, 0.625], [0, 0.125], [0.875, 1]]
    assert spans[0].tolist() == expected
    one = torch.zeros(1, 1, dtype=torch.long)
    assert clips_to_spans(one, one, mask_of(1), "points").tolist() == [[[0, 1]]]


def test_extents_by_hand():
    start, end = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[3, 1, 3, 3]])
    assert clips_to_spans(start, end, mask_of(4), "extents")[0].tolist() == [[0, 1], [0.25, 0.5], [0.5, 1], [0.75, 1]]
    one = torch.zeros(1, 1, dtype=torch.long)
    assert clips_to_spans(one, one, mask_of(1), "extents").tolist() == [[[0, 1]]]


@pytest.mark.parametrize("clips", [1, 2, 3, 7, 64])
def test_extents_choose_the_best_of_all_pairs(clips):
    rng = np.random.default_rng(clips)
    spans = np.sort(rng.random((200, 2)), 1)
    spans[::5, 1] = np.minimum(1, spans[::5, 0] + 0.2 / clips)  # short ones, far below a clip
    spans[1::5] = np.sort(np.round(spans[1::5] * clips), 1) / clips  # whole clips
    spans = spans[spans[:, 0] < spans[:, 1]]
    start, end = spans_to_clips(torch.tensor(spans), mask_of(*[clips] * len(spans)), "extents")
    for span, i, j in zip(spans, start.tolist(), end.tolist(), strict=True):
        assert 0 <= i <= j < clips
        best = max(iou(span, (a / clips, (b + 1) / clips)) for a, b in all_pairs(clips))
        assert iou(span, (i / clips, (j + 1) / clips)) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("clip_times", ["points", "extents"])
@pytest.mark.parametrize("clips", [1, 2, 5])
def test_every_pair_is_a_span_that_maps_back_to_it(clip_times, clips):
    pairs = torch.tensor(all_pairs(clips)).t()
    mask = mask_of(clips)
    spans = clips_to_spans(pairs[:1], pairs[1:], mask, clip_times)[0]
    assert (spans[:, 1] > spans[:, 0]).all()
    assert spans.min() >= 0
    assert spans.max() <= 1
    whole = (pairs[0] != pairs[1]) | (clip_times == "extents")  # a widened instant ends where rounding turns, see below
    start, end = spans_to_clips(spans, mask.expand(len(spans), -1), clip_times)
    assert torch.equal(torch.stack([start, end])[:, whole], pairs[:, whole])
    shrunk = spans + torch.tensor([1e-6, -1e-6])
    start, end = spans_to_clips(shrunk, mask.expand(len(spans), -1), "points")
    if clip_times == "points":
        assert torch.equal(torch.stack([start, end]), pairs)


def test_a_short_moment_keeps_its_overlap():
    """However short the moment and wherever it is, the clips it is mapped to overlap it."""
    starts = torch.linspace(0, 0.999, 200)
    spans = torch.stack([starts, starts + 0.001], 1)
    mask = mask_of(*[9] * 200)
    for clip_times in ("points", "extents"):
        start, end = spans_to_clips(spans, mask, clip_times)
        found = clips_to_spans(start.unsqueeze(1), end.unsqueeze(1), mask, clip_times)[:, 0]
        assert all(iou(a, b) > 0 for a, b in zip(spans.tolist(), found.tolist(), strict=True))


def test_boundary_targets():
    index, mask = torch.tensor([0, 2, 3, 0]), mask_of(4, 5, 4, 1)
    assert torch.equal(boundary_targets(index, mask), torch.eye(5)[index])
    expected = [
        [0.75, 0.25, 0, 0, 0],
        [0, 0.25, 0.5, 0.25, 0],
        [0, 0, 0.25, 0.75, 0],  # the neighbour behind is padding
        [1, 0, 0, 0, 0],
    ]
    torch.testing.assert_close(boundary_targets(index, mask, 0.25), torch.tensor(expected))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (3, 8, "..BBBIIEEE"),
        (2, 7, ".BBBIIEEE."),
        (2, 5, ".BBBEEE..."),
        (2, 4, ".BBIEE...."),  # clip 3 is claimed by both and is the middle
        (2, 3, ".BBEE....."),
        (2, 2, ".BIE......"),  # a moment of one clip is its own middle
        (0, 0, "IE........"),
        (9, 9, "........BI"),
        (0, 1, "BE E......".replace(" ", "")),
        (0, 9, "BBIIIIIIEE"),
        (8, 9, ".......BBE"),
    ],
)
def test_regions_by_hand(start, end, expected):
    letters = {OUTSIDE: ".", BEGIN: "B", INSIDE: "I", END: "E"}
    expected = expected.ljust(10, ".")
    mask = mask_of(10, 12)[:1]  # two clips of padding behind
    labels = region_labels(torch.tensor([start]), torch.tensor([end]), mask)[0].tolist()
    assert "".join(letters[label] for label in labels) == expected + ".."
    foreground = region_labels(torch.tensor([start]), torch.tensor([end]), mask, "fb")[0].tolist()
    assert foreground == [int(start <= t <= end) for t in range(12)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (3, 8, "..BBBIIEEE"),
        (2, 5, ".BBBEEE..."),
        (2, 4, ".BBEEE...."),  # both regions claim clip 3: the end has it
        (2, 3, ".BEEE....."),
        (2, 2, ".EEE......"),
        (0, 0, "EE........"),
        (9, 9, "........EE"),
        (0, 9, "BBIIIIIIEE"),
    ],
)
def test_released_regions_are_those_of_its_loader(start, end, expected):
    letters = {OUTSIDE: ".", BEGIN: "B", INSIDE: "I", END: "E"}
    count = 10
    # utils/data_loader.py
    labels = [OUTSIDE] * count
    st_l, st_r = max(0, start - 1), min(start + 1, count - 1)
    et_l, et_r = max(0, end - 1), min(end + 1, count - 1)
    if st_r >= et_l:
        st_r = max(start, et_l - 1)
    labels[st_l : st_r + 1] = [BEGIN] * (st_r + 1 - st_l)
    labels[st_r + 1 : et_l] = [INSIDE] * max(0, et_l - st_r - 1)
    labels[et_l : et_r + 1] = [END] * (et_r + 1 - et_l)
    mask = mask_of(10, 12)[:1]
    found = released_region_labels(torch.tensor([start]), torch.tensor([end]), mask)[0].tolist()
    assert found == labels[:count] + [OUTSIDE] * 2
    assert "".join(letters[label] for label in found[:count]) == expected


# losses


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("matching", ["sq", "fb", "none"])
@pytest.mark.parametrize("clip_times", ["points", "extents"])
def test_losses(as_released, matching, clip_times):
    spans = [[0.1, 0.6], [0.0, 1.0], [0.3, 0.4], [0.9, 0.95]]
    config = small_config(matching=matching, clip_times=clip_times, as_released=as_released, gumbel=not as_released)
    model, batch = make_model(config).eval(), make_batch(spans=spans)
    losses, plain = model.loss(batch), PlainSeqPAN(model)
    boundary, label_nll, count = [], 0.0, 0
    for b, clips in enumerate(batch.video_mask.sum(1).tolist()):
        p_start, p_end, labels = plain(batch, b)
        mask = torch.ones(1, clips, dtype=torch.bool)
        start, end = spans_to_clips(torch.tensor([spans[b]]), mask, clip_times)
        spread = 0.25 if as_released else 0.0
        y_start = boundary_targets(start, mask, spread)[0].numpy()
        y_end = boundary_targets(end, mask, spread)[0].numpy()
        entropies = -(y_start * np.log(p_start)).sum(), -(y_end * np.log(p_end)).sum()
        boundary.append(sum(entropies) if as_released else sum(entropies) / 2)  # Eq. 13
        if labels is not None:
            released = as_released and matching == "sq"
            regions = (
                released_region_labels(start, end, mask) if released else region_labels(start, end, mask, matching)
            )
            for t, label in enumerate(regions[0].tolist()):
                label_nll -= math.log(labels[t, label])
                count += 1
    parts = {"localization": np.mean(boundary)}
    if matching != "none":
        parts["matching"] = label_nll / count
    if matching == "sq":
        e = model.matching.embeddings.detach().numpy()
        squared = sum((e[i] @ e[j]) ** 2 for i in range(4) for j in range(4) if i != j)
        parts["orthogonality"] = math.sqrt(squared) if as_released else squared
    assert set(losses) == {"loss", *parts}
    for name, value in parts.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-6)
    assert losses["loss"].item() == pytest.approx(sum(parts.values()), rel=1e-6)


def test_no_orthogonality_without_label_embeddings():
    losses = make_model(small_config(label_embeddings=False)).loss(make_batch())
    assert set(losses) == {"loss", "localization", "matching"}


# inference


def brute_force(p_start, p_end, top_n):
    pairs = [(-p_start[i] * p_end[j], i, j) for i, j in all_pairs(len(p_start))]
    return [(i, j) for _, i, j in sorted(pairs)][:top_n]


@pytest.mark.parametrize("ties", [False, True])
def test_best_clips_by_brute_force(ties):
    """Eq. 14. Ties: powers of two, so that equal products are equal to the last bit."""
    rng = np.random.default_rng(0)
    counts = [1, 2, 5, 12, 12]
    mask = mask_of(*counts)
    shape = (2, *mask.shape)
    logits = torch.tensor(-rng.integers(0, 3, shape) if ties else rng.normal(size=shape), dtype=torch.float32)
    if not ties:
        logits = masked_log_softmax(logits, mask)
    start, end, best = best_clips(logits[0], logits[1], mask, 7)
    for b, clips in enumerate(counts):
        exponents = (
            2.0 ** logits[:, b, :clips].double().numpy() if ties else np.exp(logits[:, b, :clips].double().numpy())
        )
        expected = brute_force(*exponents, 7)
        found = list(zip(start[b].tolist(), end[b].tolist(), strict=True))[: len(expected)]
        assert found == expected
        assert torch.isfinite(best[b, : len(expected)]).all()
        assert (best[b, len(expected) :] == -torch.inf).all()
        assert (best[b, 1:] <= best[b, :-1]).all()


def test_the_start_is_never_behind_the_end():
    start, end = torch.tensor([[-9.0, -9.0, 0.0]]), torch.tensor([[0.0, -9.0, -8.0]])
    i, j, best = best_clips(start, end, mask_of(3), 2)
    assert (i[0, 0].item(), j[0, 0].item(), best[0, 0].item()) == (2, 2, -8.0)
    assert (i[0, 1].item(), j[0, 1].item()) == (0, 0)


@pytest.mark.parametrize("clip_times", ["points", "extents"])
def test_predict(clip_times):
    model, batch = make_model(small_config(clip_times=clip_times)).eval(), make_batch()
    prediction, plain = model.predict(batch, top_n=4), PlainSeqPAN(model)
    assert prediction.spans.shape == (4, 1, 4, 2)
    assert prediction.scores.shape == (4, 1, 4)
    for b, clips in enumerate(batch.video_mask.sum(1).tolist()):
        p_start, p_end, _ = plain(batch, b)
        pairs = brute_force(p_start, p_end, 4)
        for k, (i, j) in enumerate(pairs):
            if clip_times == "extents":
                span = [i / clips, (j + 1) / clips]
            elif i < j:
                span = [i / (clips - 1), j / (clips - 1)]
            else:
                span = [max(0.0, i - 0.5) / max(clips - 1, 1), min(clips - 1.0, i + 0.5) / max(clips - 1, 1)]
                span = [0.0, 1.0] if clips == 1 else span
            expected = [edge * float(batch.durations[b]) for edge in span]
            np.testing.assert_allclose(prediction.spans[b, 0, k], expected, atol=1e-9)
            assert prediction.scores[b, 0, k].item() == pytest.approx(p_start[i] * p_end[j], rel=1e-5)
        missing = slice(len(pairs), None)
        assert (prediction.scores[b, 0, missing] == -torch.inf).all()
        assert not prediction.spans[b, 0, missing].any()
    assert not prediction.spans.requires_grad
