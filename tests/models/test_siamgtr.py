"""SiamGTR, equation by equation: against plain re-statements that know no batches, and hand-worked values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_siamgtr import CONFIGS, D, T, make_model, random_batch, small, with_settings
from torch import Tensor

from benchmarks.field_siamgtr import FieldSiamGTR, plain
from vpgfast.config import parse_train
from vpgfast.data.types import Batch
from vpgfast.errors import ConfigError
from vpgfast.models.alignment import own_video, similar_spans
from vpgfast.models.siamgtr import SiamGTR, SiamGTRConfig
from vpgfast.models.siamgtr_training import (
    Insertions,
    boundary_error,
    draw_insertions,
    guidance_loss,
)

# --- the whole


@pytest.mark.parametrize(
    "changes", [{}, {"dim": 12, "heads": 3, "layers": 3}, {"self_consistent": False, "beta": 0.0}], ids=str
)
def test_the_fields_form_gives_the_same(changes: dict) -> None:
    """Loss and all gradients of one paragraph after another, concatenated heads and the attention matrix."""
    model, batch = make_model(0.3, **{"beta": 0.2, "strides": [0.75, 6.0], **changes}), random_batch()
    batch.video.requires_grad_()
    inputs = [batch.video, *model.parameters()]
    torch.manual_seed(3)
    ours = model.loss(batch)["loss"]
    torch.manual_seed(3)
    fields = FieldSiamGTR(model).loss(batch)
    torch.testing.assert_close(ours, fields, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(fields, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    "changes",
    [
        {"supervision": "semi"},
        {"sentence_pseudo_attention": True},
        {"dynamic_anchors": False},
        {"predict_from": "features and attention"},
    ],
    ids=str,
)
def test_the_losses_of_the_statistics_are_those_of_the_attention_matrix(changes: dict) -> None:
    """And keys and values that are never built are those that are; loss by loss, and the gradients."""
    model, batch = make_model(0.3, **changes), random_batch(labelled=[True, False, True])
    results = []
    for way in (model, plain(model)):
        torch.manual_seed(3)
        losses = way.loss(batch)
        results.append((losses, torch.autograd.grad(losses["loss"], list(way.parameters()))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


# --- labels


@pytest.mark.parametrize("changes", [{}, {"alignment_weight": 1.0, "pseudo_span_weight": 1.0}], ids=str)
def test_weakly_supervised_training_never_reads_a_span(changes: dict) -> None:
    model, batch = make_model(**changes), random_batch()
    torch.manual_seed(0)
    expected = model.loss(batch)
    batch.spans = torch.full((3, 4, 2), float("nan"), dtype=torch.float64)
    batch.labelled = torch.ones(3, dtype=torch.bool)
    torch.manual_seed(0)
    torch.testing.assert_close(model.loss(batch), expected)
    assert SiamGTR.needs(model.config).labelled_share == 0


def test_semi_supervised_training_reads_the_labelled_part() -> None:
    model = make_model(supervision="semi", labelled_share=0.3, alignment_weight=1.0, pseudo_span_weight=1.0)
    assert SiamGTR.needs(model.config).labelled_share == 0.3
    batch = random_batch(labelled=[True, False, True])

    def losses(batch: Batch) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return model.loss(batch)

    before = losses(batch)
    assert before["label"] > 0
    batch.spans[1] = torch.tensor([0.2, 0.9])
    torch.testing.assert_close(losses(batch), before)
    batch.spans[2, 3] = torch.tensor([0.2, 0.9])
    after = losses(batch)
    assert after["label"] != before["label"]
    assert all(after[name] == before[name] for name in before if name not in ("label", "loss"))
    batch.spans = batch.labelled = None  # a batch that happens to hold no labelled paragraph
    assert losses(batch)["label"] == 0
    assert losses(batch)["regression"] == before["regression"]


@pytest.mark.parametrize("aligned", [False, True])
def test_label_loss_by_loops(aligned: bool) -> None:
    """L1 and GIoU of every labelled sentence's span, and its attention inside it in every layer (section 3.5).

    Where there is an alignment, also the cross-entropy of its softmax against one that is even over the span's clips.
    """
    model = make_model(0.3, supervision="semi", labelled_share=0.5, alignment_weight=float(aligned))
    batch = random_batch(labelled=[True, False, True])
    clips, queries = model.project(batch), model.text(batch)
    found, spans = model(clips, queries, F.pad(batch.spans, (0, 0, 1, 0)))
    total = 0.0
    for b, count in ((0, 3), (2, 4)):
        for m in range(count):
            logs = [found.mass[k, b, 1 + m].log() for k in range(2)]
            total = total + boundary_error(spans[b, 1 + m], batch.spans[b, m]) - sum(logs) / 2
            if aligned:
                similar = model.alignment.similarity(queries.sentences[b, m : m + 1], clips[b : b + 1])[0, 0]
                start, end = (batch.spans[b, m] * T).tolist()
                inside = [t for t in range(T) if start <= t + 0.5 <= end] or [min(int((start + end) / 2), T - 1)]
                total = total - similar.log_softmax(0)[inside].mean()
    torch.testing.assert_close(model.loss(batch)["label"], total / (0.5 * 8))  # half of eight sentences are expected


def test_full_supervision_has_no_augmentation_branch() -> None:
    model, batch = make_model(supervision="fully"), random_batch(labelled=[True, True, True])
    state = torch.random.get_rng_state()
    losses = model.loss(batch)
    assert set(losses) == {"loss", "order", "anchor_ranking", "concept", "label"}
    assert torch.random.get_rng_state().equal(state)  # nothing was drawn


def test_guidance_loss_by_hand() -> None:
    """Even over the span and nothing outside costs the entropy of the span's clips; an even attention that of all."""
    similarity = torch.tensor([[-50.0, 3.0, 3.0, -50.0], [1.0, 1.0, 1.0, 1.0]])
    spans = torch.tensor([[0.25, 0.75], [0.6, 0.61]])  # clips 1 and 2; clip 2, whose middle is the nearest
    torch.testing.assert_close(guidance_loss(similarity, spans), torch.tensor([math.log(2), math.log(4)]))


def test_pseudo_spans_teach_as_labels_do() -> None:
    """With the spans that the alignment finds given as labels, the two losses are the same, but for the guidance."""
    settings = {"supervision": "semi", "labelled_share": 1.0, "alignment_weight": 1.0, "pseudo_span_weight": 1.0}
    model, batch = make_model(0.3, **settings), random_batch()
    torch.manual_seed(0)
    taught = model.loss(batch)
    similarity = model.alignment.similarity(model.text(batch).sentences[batch.sentence_mask], model.project(batch))
    spans = similar_spans(own_video(similarity, batch.sentence_mask), model.config.pseudo_span_share)
    batch.spans = torch.zeros(3, 4, 2, dtype=torch.float64).masked_scatter(batch.sentence_mask.unsqueeze(2), spans)
    batch.labelled = torch.ones(3, dtype=torch.bool)
    torch.manual_seed(0)
    labelled = model.loss(batch)
    guidance = guidance_loss(own_video(similarity, batch.sentence_mask), spans).mean()
    torch.testing.assert_close(labelled["label"], taught["pseudo_span"] + guidance)
    assert labelled["pseudo_span"] == taught["label"] == 0
    torch.testing.assert_close(labelled["loss"], taught["loss"] + guidance)


# --- predictions and switches


def test_predictions() -> None:
    """One span a sentence inside the video, in seconds, with the share of the attention inside; nothing else."""
    model, batch = make_model(0.3).eval(), random_batch()
    prediction = model.predict(batch, top_n=3)
    assert prediction.spans.shape == (3, 4, 3, 2)
    found, spans = model(model.project(batch), model.text(batch), need_weights=True)
    for b, count in enumerate((3, 1, 4)):
        for m in range(4):
            scores = prediction.scores[b, m].tolist()
            if m >= count:
                assert scores == [-math.inf] * 3
                continue
            start, end = spans[b, 1 + m].clamp(0, 1).tolist()
            assert prediction.spans[b, m, 0].tolist() == pytest.approx([start * 10 * (b + 1), end * 10 * (b + 1)])
            inside = 0.0
            for t in range(T):
                shared = max(0.0, min(end, (t + 1) / T) - max(start, t / T)) * T
                inside += shared * found.weights[b, 1 + m, t].item()
            assert scores == pytest.approx([inside, -math.inf, -math.inf])


@pytest.mark.parametrize("paragraph", ["learned", "mean", "max", "words"])
def test_a_paragraph_does_not_depend_on_what_else_is_in_the_batch(paragraph: str) -> None:
    """Padding of sentences and of words never reaches a real one."""
    model = make_model(0.3, paragraph=paragraph, alignment_weight=1.0).eval()
    batch = random_batch((3, 1, 4))
    together = model.predict(batch)
    for b, count in enumerate((3, 1, 4)):
        words = int(batch.word_mask[b].sum(-1).max())
        alone = replace(
            batch,
            paragraphs=[batch.paragraphs[b]],
            video=batch.video[b : b + 1],
            words=batch.words[b : b + 1, :count, :words],
            word_mask=batch.word_mask[b : b + 1, :count, :words],
            sentence_mask=batch.sentence_mask[b : b + 1, :count],
            durations=batch.durations[b : b + 1],
        )
        found = model.predict(alone)
        torch.testing.assert_close(found.spans[0], together.spans[b, :count])
        torch.testing.assert_close(found.scores[0], together.scores[b, :count])


def test_paragraph_representations_by_loops() -> None:
    """What the paragraph's query starts from (Table 7)."""
    batch = random_batch()
    for kind in ("learned", "mean", "max", "words"):
        text = make_model(paragraph=kind).text
        sentences = torch.zeros(3, 4, D, dtype=torch.float64)
        there = batch.sentence_mask
        sentences[there] = text.read(batch.words[there], batch.word_mask[there])
        found = text.whole(batch, sentences)
        for b, count in enumerate((3, 1, 4)):
            if kind == "words":
                words = torch.cat([batch.words[b, m][batch.word_mask[b, m]] for m in range(count)])
                states, _ = text.gru(text.words(words)[None])
                width = states.shape[2] // 2
                expected = text.sentence(torch.cat([states[0, -1, :width], states[0, 0, width:]]))
            else:
                rows = sentences[b, :count]
                expected = {"learned": getattr(text, "token", None), "mean": rows.mean(0), "max": rows.amax(0)}[kind]
            torch.testing.assert_close(found[b], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"modulated_positions": False},
        {"dynamic_anchors": False},
        {"concepts": 0},
        {"paragraph": "mean"},
        {"paragraph": "words"},
        {"self_consistent": False},
        {"sentence_pseudo_attention": True},
        {"alignment_weight": 0.5},
        {"alignment_weight": 0.5, "pseudo_span_weight": 2.0},
        {"predict_from": "features and attention"},
        {"supervision": "fully"},
    ],
    ids=str,
)
def test_every_switch_trains_all_that_is_there(changes: dict) -> None:
    """Each changes the loss, and leaves no parameter without a gradient."""
    batch = random_batch(labelled=[True, True, True])
    plain, changed = make_model(), make_model(**changes)
    torch.manual_seed(0)
    losses = changed.loss(batch)
    torch.manual_seed(0)
    assert losses["loss"] != plain.loss(batch)["loss"]
    changed.zero_grad()
    losses["loss"].backward()
    assert not [name for name, p in changed.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    "name", ["regression", "order", "concept", "cross_branch", "anchor_ranking", "pseudo_attention", "alignment"]
)
def test_weights(name: str) -> None:
    model, batch = make_model(alignment_weight=1.0), random_batch()
    torch.manual_seed(0)
    losses = model.loss(batch)
    torch.manual_seed(0)
    heavier = with_settings(model, **{f"{name}_weight": getattr(model.config, f"{name}_weight") + 1.5}).loss(batch)
    torch.testing.assert_close(heavier["loss"] - losses["loss"], 1.5 * losses[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 10, "heads": 2}, "dim must be a multiple of 4 and of heads"),
        ({"dim": 12, "heads": 5}, "dim must be a multiple of 4 and of heads"),
        ({"strides": [3.0, 1.0]}, "strides must be two rising numbers"),
        ({"strides": [0.0, 1.0]}, "strides must be two rising numbers"),
        ({"labelled_share": 1.5}, "labelled_share must lie in"),
        ({"labelled_share": 0.0}, "labelled_share must lie in"),
        ({"boundary_shift": 0.5}, "boundary_shift must lie in"),
        ({"order_weight": -1.0}, "order_weight must be 0 or more"),
        ({"concepts": -1}, "concepts must be 0 or more"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"max_sentences": 0}, "max_sentences must be at least 1"),
        ({"pseudo_span_weight": 1.0}, "pseudo_span_weight needs alignment_weight"),
    ],
    ids=str,
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_a_batch_of_another_length_is_refused() -> None:
    batch = random_batch()
    with pytest.raises(ValueError, match="takes 12 clips a video, this batch has 11"):
        make_model(max_clips=12).predict(batch)


def test_shipped_configs_hold_the_papers_settings() -> None:
    for name, clips, size, strides, shift in (
        ("activitynet", 256, 32, [0.75, 3.0], 0.1),
        ("charades_cd", 128, 32, [1.0, 3.0], 0.175),
        ("tacos", 512, 16, [1.0, 15.0], 0.1),
    ):
        config = parse_train(["--config", str(CONFIGS / f"{name}.yaml")])
        model = config.model
        assert (model.max_clips, config.batch_size, model.strides, model.boundary_shift) == (
            clips,
            size,
            strides,
            shift,
        )
        assert (model.dim, model.layers, model.heads, model.concepts, model.beta) == (256, 3, 8, 100, 0.5)
        assert (model.regression_weight, model.order_weight, model.concept_weight) == (2, 1, 10)
        assert (model.order_in, model.predict_from) == ("clips", "features and attention")
        assert (model.cross_branch_weight, model.anchor_ranking_weight, model.pseudo_attention_weight) == (1, 1, 1)
        assert (config.optim.name, config.optim.lr, config.optim.schedule) == ("adam", 1e-4, "constant")
        assert model.insert_at_ends == model.alignment_weight == model.pseudo_span_weight == 0
        assert model.supervision == "weakly"


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """The same losses and predictions as on the CPU, with the same draws."""
    settings = {"alignment_weight": 1.0, "pseudo_span_weight": 1.0, "supervision": "semi"}
    model, batch = make_model(0.3, **settings), random_batch(labelled=[True, False, True])
    drawn = draw_insertions(batch, model.config)
    with pytest.MonkeyPatch.context() as patch:

        def same(batch: Batch, config: SiamGTRConfig) -> Insertions:
            return Insertions(*(x.to(batch.video.device) for x in drawn))

        patch.setattr("vpgfast.models.siamgtr.draw_insertions", same)
        cpu = model.loss(batch), model.predict(batch)
        model, batch = model.cuda(), batch.to("cuda")
        gpu = model.loss(batch), model.predict(batch)
    for name, value in cpu[0].items():
        torch.testing.assert_close(gpu[0][name].cpu(), value)
    torch.testing.assert_close(gpu[1].spans.cpu(), cpu[1].spans)
    model.loss(batch)["loss"].backward()  # with draws of its own
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
