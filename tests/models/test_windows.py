"""Long videos: windows cover them, what is found in one is where it is in the video, and memory does not grow."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import with_random_weights, word_vectors
from torch import Tensor, nn

from vpgfast.config import from_dict
from vpgfast.data.batches import make_batch
from vpgfast.data.features import ArrayFeatures, usual_clips
from vpgfast.data.types import Batch, BatchNeeds, Paragraph, Prediction
from vpgfast.evaluate.split import Answers, LongVideos
from vpgfast.ground.grounding import ground
from vpgfast.models.candidates import Candidates
from vpgfast.models.method import Method
from vpgfast.models.registry import get_config, get_method
from vpgfast.models.windows import is_long, predict_long, window_starts

SIZE, WIDTH = 8, 6


class Marks(Method):
    """Finds the clips that have a 1 in the column that a sentence names: one span, of as many clips, a window."""

    name = "marks"

    @staticmethod
    def needs(config: Any) -> BatchNeeds:
        return BatchNeeds(max_clips=SIZE, whole_paragraphs=config.decode == "ordered")

    def __init__(self, decode: str = "independent") -> None:
        nn.Module.__init__(self)
        self.config = get_config("seqpan")(max_clips=SIZE, decode=decode)  # type: ignore[call-arg]
        self.place = nn.Parameter(torch.zeros(1))
        self.shapes: list[tuple[int, ...]] = []

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        raise NotImplementedError

    def candidates(self, batch: Batch, count: int) -> Candidates:
        self.shapes.append(tuple(batch.video.shape))
        spans, scores = [], []
        for video, paragraph, seconds in zip(batch.video, batch.paragraphs, batch.durations, strict=True):
            column = video[:, int(paragraph.sentences[0])]
            on = column.nonzero()[:, 0]
            first, end = (int(on[0]), int(on[-1]) + 1) if len(on) else (0, 1)
            spans.append(torch.tensor([[first, end]], dtype=torch.float64) * seconds / SIZE)
            scores.append(column.sum().view(1))
        return Candidates(torch.stack(spans), torch.stack(scores))


def video(clips: int, events: dict[int, list[tuple[int, int, float]]]) -> np.ndarray:
    features = np.zeros((clips, WIDTH), np.float32)
    for column, places in events.items():
        for start, end, strength in places:
            features[start:end, column] = strength
    return features


@pytest.mark.parametrize("clips", [9, 12, 16, 17, 100, 101])
def test_windows_cover_the_video_and_overlap_by_half(clips: int) -> None:
    starts = window_starts(clips, SIZE)
    assert starts[0] == 0
    assert starts[-1] == clips - SIZE
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= SIZE // 2).all()
    assert (steps[:-1] == SIZE // 2).all()


def test_what_is_long() -> None:
    def long(windowed: Any, clips: int, usual: int = 0) -> bool:
        model = Marks()
        model.config.windowed, model.usual_clips = windowed, usual
        return is_long(model, model.needs(model.config), clips)

    assert [long("auto", clips) for clips in (8, 9, 16, 17)] == [False, False, False, True]
    assert [long(True, clips) for clips in (8, 9)] == [False, True]
    assert not long(False, 10_000)
    # Training videos have 20 clips, which the method sees as 8: so does it see a window of 20.
    assert [long("auto", clips, 20) for clips in (17, 40, 41)] == [False, False, True]
    config = get_config("similarity")()
    untrained = get_method("similarity")(config, WIDTH, word_vectors())
    assert not is_long(untrained, untrained.needs(config), 50_000)


def test_moments_are_found_where_they_are() -> None:
    """A clip lasts half a second; an event shorter than half a window is whole in one of them."""
    model = Marks()
    features = video(1000, {0: [(501, 505, 1)], 1: [(0, 2, 1)], 2: [(997, 1000, 1)], 3: [(3, 6, 1), (700, 703, 2)]})
    paragraph = Paragraph("v", 500.0, ("0", "1", "2", "3"))
    found = predict_long(model, paragraph, features, word_vectors(), model.needs(model.config), 3)
    assert found.spans[0, :, 0].tolist() == [[250.5, 252.5], [0, 1], [498.5, 500], [350, 351.5]]
    assert found.spans[0, 3, 1].tolist() == [1.5, 3]  # the weaker of two
    assert (found.scores.diff(dim=-1).nan_to_num() <= 0).all()
    assert max(shape[0] for shape in model.shapes) == 64
    assert {shape[1:] for shape in model.shapes} == {(SIZE, WIDTH)}  # however long the video is


def test_windows_are_as_long_as_training_videos() -> None:
    """Training videos have 16 clips, brought down to 8: a clip of the method is two of the features."""
    model = Marks()
    model.usual_clips = 16
    features = video(1000, {0: [(504, 508, 1)]})
    paragraph = Paragraph("v", 500.0, ("0",))
    found = predict_long(model, paragraph, features, word_vectors(), model.needs(model.config), 1)
    assert found.spans[0, 0].tolist() == [[252, 254]]
    assert {shape[1:] for shape in model.shapes} == {(SIZE, WIDTH)}


def test_usual_clips_are_the_median_of_some() -> None:
    reader = ArrayFeatures({f"v{i}": np.zeros((1 + i, 2), np.float32) for i in range(5)})
    assert usual_clips(reader, ["v0", "v1", "v2", "v3", "v4", "v4"]) == 3
    assert usual_clips(reader, [f"v{i}" for i in range(5)], most=2) == 2  # v0 and v3


def test_order_over_all_windows() -> None:
    """Event 0 happens early and, more clearly, late; the sentence after it says which is meant."""
    features = video(400, {0: [(41, 44, 1), (300, 303, 1.2)], 1: [(200, 203, 1)]})
    paragraph = Paragraph("v", 400.0, ("0", "1"))
    for decode, expected in (("independent", [[300, 303], [200, 203]]), ("ordered", [[41, 44], [200, 203]])):
        model = Marks(decode)
        found = predict_long(model, paragraph, features, word_vectors(), model.needs(model.config), 3)
        assert found.spans[0, :, 0].tolist() == expected


def test_evaluate_sees_long_videos_through_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two videos is long: its ranked spans are replaced, the first one's stay."""
    model, features = Marks(), {"a": video(8, {0: [(2, 4, 1)]}), "b": video(200, {0: [(101, 104, 1)]})}
    monkeypatch.setattr("vpgfast.evaluate.split.get_method", lambda name: Marks)
    long = LongVideos(
        fabric=SimpleNamespace(autocast=nullcontext),  # type: ignore[arg-type]
        model=SimpleNamespace(module=model),
        config=SimpleNamespace(method="marks", model=model.config),  # type: ignore[arg-type]
        corpus=SimpleNamespace(features=features),  # type: ignore[arg-type]
        vectors=word_vectors(),
    )
    items = [Paragraph("a", 8.0, ("0",)), Paragraph("b", 200.0, ("0",))]
    batch = make_batch(items, list(features.values()), word_vectors(), model.needs(model.config), training=False)
    assert batch.clips is not None
    assert batch.clips.tolist() == [8, 200]
    zeros = np.zeros((1, 2, 2))
    answers = Answers(
        items, [zeros.copy(), zeros.copy()], [zeros[..., 0].copy(), zeros[..., 0].copy()], [None, zeros[0]]
    )
    long.put_into(answers, batch, 2)
    assert answers.ranked[0].tolist() == zeros.tolist()
    assert answers.ranked[1][0, 0].tolist() == [101, 104]
    assert answers.scores[0].tolist() == zeros[..., 0].tolist()
    assert answers.scores[1][0, 0] != 0
    assert answers.curves[1] is None, "a curve of the whole video says nothing of its windows"


@pytest.mark.parametrize("name", ["seqpan", "marn", "wsra", "dmr_jrg", "siamgtr", "plain_alignment"])
@pytest.mark.parametrize("decode", ["independent", "ordered"])
def test_every_method_answers_about_a_long_video(name: str, decode: str) -> None:
    settings: dict[str, Any] = {
        "seqpan": {"dim": 8, "heads": 2, "conv_layers": 1, "conv_kernel": 3, "char_dim": 4},
        "marn": {"scales": [2, 3], "reduction": 1, "dim": 8},
        "wsra": {"hidden": 8, "windows": [0.25, 0.5]},
        "dmr_jrg": {
            **{"segments": 4, "dim": 8, "heads": 2, "layers": 1, "feed_forward": 8, "tan_layers": 1, "tan_kernel": 3},
            **{"reconstructor_heads": 2, "reconstructor_layers": 1},
        },
        "siamgtr": {"dim": 8, "heads": 2, "layers": 1, "feed_forward": 8, "concepts": 0, "alignment_weight": 1.0},
        "plain_alignment": {"dim": 8},
    }[name]
    config = from_dict({"method": name, "model": {**settings, "max_clips": SIZE, "decode": decode}}, "test")
    model = with_random_weights(get_method(name)(config.model, WIDTH, word_vectors()), 0.7, torch.float32).eval()
    features = np.random.default_rng(0).standard_normal((90, WIDTH)).astype(np.float32)
    found = ground(model, config, word_vectors(), features, 45.0, ["word1 word2.", "word3.", "word1."], 4)
    assert found.spans.shape == (3, 4, 2)
    assert np.isfinite(found.spans[:, 0]).all()
    best = found.spans[:, 0]
    assert (best[:, 0] < best[:, 1]).all()
    assert (best[:, 1] <= 45 + 1e-6).all()
    assert (best[:, 1] - best[:, 0] <= SIZE * 0.5 + 1e-6).all()  # no longer than a window
    if decode == "ordered":
        assert (np.diff(best[:, 0]) >= 0).all()


def test_seqpan_compares_windows_before_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows with scores of one shape, one of them 3 higher at both ends: as likely within, not between."""
    config = get_config("seqpan")(dim=8, heads=2, conv_layers=0, char_cnn=False, max_clips=4)  # type: ignore[call-arg]
    model = with_random_weights(get_method("seqpan")(config, WIDTH, word_vectors()), 0.5, torch.float32).eval()
    raw = torch.tensor([[0.0, 2.0, 1.0, 0.0], [3.0, 5.0, 4.0, 3.0]])
    monkeypatch.setattr(model.localizer, "forward", lambda x, mask: (raw, raw))
    features = [np.zeros((4, WIDTH), np.float32)] * 2
    items = [Paragraph(name, 3.0, ("word1.",)) for name in "ab"]
    batch = make_batch(items, features, word_vectors(), model.needs(config), training=False)
    inside, between = model.predict(batch, 2), model.candidates(batch, 2)
    assert between is not None
    torch.testing.assert_close(inside.scores[0], inside.scores[1])
    torch.testing.assert_close(between.scores, torch.tensor([[4.0, 3.0], [10.0, 9.0]]))
    assert torch.equal(between.spans, inside.spans[:, 0])


def test_seqpan_learns_presence_from_other_videos() -> None:
    """Two videos: each is the other's other one. The loss is the logistic one, with the level as its logit."""
    settings: dict[str, Any] = {"dim": 8, "heads": 2, "conv_layers": 1, "char_cnn": False, "max_clips": 4}
    model = get_method("seqpan")(get_config("seqpan")(**settings, presence_weight=0.5), WIDTH, word_vectors())
    model = with_random_weights(model, 0.5, torch.float32).eval()
    rng = np.random.default_rng(3)
    features = {name: rng.standard_normal((4, WIDTH)).astype(np.float32) for name in "ab"}
    span = np.array([[0.0, 2.0]])
    items = [Paragraph("a", 3.0, ("word1.",), span), Paragraph("b", 3.0, ("word2 word3.",), span)]

    def batch(names: str) -> Batch:
        needs = model.needs(model.config)
        return make_batch(items, [features[name] for name in names], word_vectors(), needs, training=True)

    own, other = model(batch("ab")).level, model(batch("ba")).level
    losses = model.loss(batch("ab"))
    expected = -torch.sigmoid(own).log().mean() - torch.sigmoid(-other).log().mean()
    torch.testing.assert_close(losses["presence"], expected)
    model.config.presence_weight = 0.0
    without = model.loss(batch("ab"))
    assert "presence" not in without
    torch.testing.assert_close(losses["loss"], without["loss"] + 0.5 * expected)
    items[1] = Paragraph("a", 3.0, ("word2 word3.",), span)  # no other video is left
    torch.testing.assert_close(model.presence_loss(batch("ab"), own), -torch.sigmoid(own).log().mean())
