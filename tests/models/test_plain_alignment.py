"""The plain alignment: sees no context, learns which clips a sentence is about, and takes labels where there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import with_random_weights, word_vectors

from vpgfast.config import parse_train
from vpgfast.data.batches import make_batch
from vpgfast.data.types import Batch, Paragraph
from vpgfast.errors import ConfigError
from vpgfast.models.alignment import alignment_loss, own_video, similar_spans
from vpgfast.models.configs.plain_alignment import PlainAlignmentConfig
from vpgfast.models.plain_alignment import PlainAlignment
from vpgfast.models.siamgtr_training import guidance_loss

WIDTH, CLIPS = 20, 12
CONFIGS = Path(__file__).parents[2] / "configs"


def make_model(**settings) -> PlainAlignment:
    return PlainAlignment(PlainAlignmentConfig(max_clips=CLIPS, dim=16, **settings), WIDTH, word_vectors(20, 8))


def batch_of(paragraphs: list[Paragraph], features: list[np.ndarray], model: PlainAlignment) -> Batch:
    return make_batch(paragraphs, features, word_vectors(20, 8), model.needs(model.config), training=True)


def videos(count: int, seed: int = 0) -> tuple[list[Paragraph], list[np.ndarray]]:
    """Each shows two things of eight, four clips each, and says so in a sentence of one word each."""
    rng = np.random.default_rng(seed)
    paragraphs, features = [], []
    for number in range(count):
        things, starts = rng.choice(8, 2, replace=False), (rng.integers(0, 3), rng.integers(6, 9))
        clips = 0.3 * rng.standard_normal((CLIPS, WIDTH))
        for thing, start in zip(things, starts, strict=True):
            clips[start : start + 4, thing] += 3
        spans = np.array([[start, start + 4] for start in starts], np.float64)
        paragraphs.append(Paragraph(f"v{number}", float(CLIPS), tuple(f"word{t}." for t in things), spans))
        features.append(clips.astype(np.float32))
    return paragraphs, features


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    shared = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    return shared.clip(0) / (np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0]))


def test_it_learns_when_from_whose_video_alone() -> None:
    torch.manual_seed(0)
    model = make_model()
    paragraphs, features = videos(64)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        batch = batch_of(paragraphs, features, model)
        assert batch.spans is None
        model.loss(batch)["loss"].backward()
        optimizer.step()
    model.eval()
    others, clips = videos(40, seed=1)
    found = model.predict(batch_of(others, clips, model), 3)
    right = iou(found.spans[:, :, 0].numpy(), np.stack([p.spans for p in others if p.spans is not None]))
    assert right.mean() > 0.7
    assert (found.scores[:, :, 0] > 0.3).float().mean() > 0.9
    assert torch.isinf(found.scores[:, :, 1:]).all()


def test_a_sentence_does_not_see_its_paragraph() -> None:
    model = with_random_weights(make_model(), 0.7, torch.float32).eval()
    paragraphs, features = videos(3)
    whole = model.predict(batch_of(paragraphs, features, model), 1)
    for m in range(2):
        alone = model.predict(batch_of([p.select([m]) for p in paragraphs], features, model), 1)
        torch.testing.assert_close(alone.spans[:, 0], whole.spans[:, m])


def test_the_loss_is_that_of_its_parts() -> None:
    model = with_random_weights(make_model(supervision="fully", label_weight=0.5), 0.7, torch.float32)
    batch = batch_of(*videos(4), model)
    assert batch.spans is not None
    similarity = model(batch)
    assert similarity.shape == (8, 4, CLIPS)
    same = torch.eye(4, dtype=torch.bool)
    expected = alignment_loss(similarity, batch.sentence_mask, same)
    label = guidance_loss(own_video(similarity, batch.sentence_mask), batch.spans.flatten(0, 1)).mean()
    losses = model.loss(batch)
    torch.testing.assert_close(losses["label"], label)
    torch.testing.assert_close(losses["loss"], expected + 0.5 * label)


def test_only_labelled_paragraphs_count() -> None:
    """Half of them labelled, at a share of a half: their mean. Spans of the others may be anything."""
    model = with_random_weights(make_model(supervision="semi", labelled_share=0.5), 0.7, torch.float32)
    paragraphs, features = videos(4)
    batch = batch_of(paragraphs, features, model)
    assert batch.spans is not None
    known = torch.tensor([True, False, True, False])
    batch = replace(batch, labelled=known, spans=batch.spans.masked_fill(~known[:, None, None], 0))
    similarity = own_video(model(batch), batch.sentence_mask)
    error = guidance_loss(similarity, batch.spans.flatten(0, 1)).view(4, 2)[known]
    torch.testing.assert_close(model.loss(batch)["label"], error.mean())
    without = replace(batch, spans=None, labelled=None)
    assert model.loss(without)["label"] == 0


def test_of_several_moments_the_nearest_is_learned() -> None:
    model = with_random_weights(make_model(supervision="fully"), 0.7, torch.float32)
    (paragraph,), features = videos(1)
    assert paragraph.spans is not None
    moments = (np.array([[0.0, 3.0], [8.0, 11.0]]), paragraph.spans[1:])
    several = replace(paragraph, all_spans=moments)
    batch = batch_of([several], features, model)
    similarity = own_video(model(batch), batch.sentence_mask)[:1]
    each = [guidance_loss(similarity, torch.from_numpy(span[None] / CLIPS).float()) for span in moments[0]]
    assert batch.all_spans is not None
    second = guidance_loss(
        own_video(model(batch), batch.sentence_mask)[1:], torch.tensor(moments[1] / CLIPS, dtype=torch.float32)
    )
    torch.testing.assert_close(model.loss(batch)["label"], torch.cat([torch.minimum(*each), second]).mean())


def test_spans_are_read_off_the_similarities() -> None:
    model = with_random_weights(make_model(), 0.7, torch.float32).eval()
    batch = batch_of(*videos(3), model)
    similarity = own_video(model(batch), batch.sentence_mask)
    spans = similar_spans(similarity, 0.6).view(3, 2, 2) * batch.durations[:, None, None]
    torch.testing.assert_close(model.predict(batch, 1).spans[:, :, 0], spans)


def test_settings_of_another_methods_file() -> None:
    """What both have is taken over; what only the other has is not in the way; a slip still is."""
    config = parse_train(
        ["--config", str(CONFIGS / "siamgtr" / "moving_shapes.yaml"), "--method", "plain_alignment", "--model.dim=32"]
    )
    assert (config.method, config.model.max_clips, config.model.dim) == ("plain_alignment", 64, 32)
    assert config.optim.lr == 5e-4
    own = parse_train(["--config", str(CONFIGS / "plain_alignment" / "moving_shapes.yaml")])
    assert own == replace(config, model=replace(config.model, dim=128))


def test_a_slip_in_another_methods_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("method: siamgtr\nmodel: {strides: [1, 2], max_clip: 3}\n")
    with pytest.raises(ConfigError, match=r"unknown key 'model.max_clip' \(did you mean 'model.max_clips'\?\)"):
        parse_train(["--config", str(tmp_path / "c.yaml"), "--method=plain_alignment"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dim": 0}, "dim"),
        ({"labelled_share": 0.0}, "labelled_share"),
        ({"pseudo_span_share": 1.5}, "pseudo_span_share"),
    ],
)
def test_impossible_settings_are_named(change, named) -> None:
    with pytest.raises(ConfigError, match=f"plain_alignment: {named} must"):
        PlainAlignmentConfig(**change)
