"""DMR-JRG, equation by equation: against plain re-statements that know no batches, and hand-worked values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from language_models import make_bert
from small import counted
from small_dmr_jrg import (
    CONFIGS,
    FEATURE_DIM,
    SENTENCES,
    K,
    as_maps,
    fixed_draws,
    losses_of,
    make_model,
    random_batch,
    small,
)

from benchmarks.field_dmr_jrg import FieldDMRJRG
from vpgfast.ablate.tables import read_tables
from vpgfast.checkpoint import load_weights
from vpgfast.config import parse_train
from vpgfast.errors import CheckpointError, ConfigError
from vpgfast.models.dmr_jrg import DMRJRG, DMRJRGConfig, Draws
from vpgfast.models.registry import get_method

# --- the whole


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_sync_heads": False},
        {"reduction": "mean", "scale": 5.0, "hardest": 1},
        {"candidates": 5, "candidate_weights": None, "margin": 1.0},
        {"candidates": 1, "candidate_weights": [1.0], "tan_layers": 1, "tan_kernel": 5},
        {"tan_normalize": True},
    ],
    ids=str,
)
def test_the_fields_form_gives_the_same(changes: dict) -> None:
    """Loss and all gradients of padded sentences, stacked pooling, whole convolutions, and scans on the features."""
    model, batch = make_model(**changes), random_batch()
    batch.video.requires_grad_()
    inputs = [batch.video, *(p for p in model.parameters() if p.requires_grad)]
    ours = losses_of(model, batch)["loss"]
    torch.manual_seed(3)
    fields = FieldDMRJRG(model).loss(batch)
    torch.testing.assert_close(ours, fields, rtol=1e-10, atol=1e-12)
    mine, theirs = (torch.autograd.grad(x, inputs) for x in (ours, fields))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_tokens": False, "global_weight": 0.0, "grrm_weight": 0.0},
        {"start_from_means": True},
        {"moment_map": "boundary_matching"},
        {"normalize_fusion": True},
        {"context": "pointwise"},
        {"context": "none"},
        {"tan_kernel": 5},
        {"tan_normalize": True},
        {"retrieval_weight": 0.0},
        {"local_weight": 0.0, "train_sync_heads": False},
        {"global_weight": 0.0, "grrm_weight": 0.0},
        {"grrm_weight": 0.0},
        {"time_weight": 0.0},
        {"forward_sync": False},
        {"reverse_sync": False},
        {"train_sync_heads": False},
        {"retrieval_nce": 0.0, "global_nce": 0.0},
        {"scale": 3.0},
        {"margin": 0.9},
        {"candidates": 2, "candidate_weights": [0.6, 0.4]},
        {"candidate_weights": None},
        {"candidate_weights": [0.5, 0.3, 0.2]},
        {"reduction": "mean"},
        {"masked_share": 0.6},
        {"content_weight": 1.0},
        {"content_weight": 50.0},
        {"told": "masked"},
        {"min_iou": 0.3, "max_iou": 0.9},
        {"alignment_weight": 0.5},
        {"alignment_weight": 0.5, "pseudo_span_weight": 2.0},
        {"alignment_weight": 0.5, "pseudo_span_weight": 2.0, "local_weight": 0.0},
        {"alignment_weight": 0.5, "pseudo_span_weight": 2.0, "train_sync_heads": False},
    ],
    ids=str,
)
def test_every_switch_trains_all_that_is_there(changes: dict) -> None:
    """Each changes the loss, and leaves no parameter that is trained without a gradient."""
    batch, changed = random_batch(), make_model(**changes)
    losses = losses_of(changed, batch)
    assert losses["loss"] != losses_of(make_model(), batch)["loss"]
    losses["loss"].backward()
    trained = {name: p.grad for name, p in changed.named_parameters() if p.requires_grad}
    assert not [name for name, grad in trained.items() if grad is None or not grad.any()]
    frozen = {name.split(".")[0] for name, p in changed.named_parameters() if not p.requires_grad}
    assert frozen == ({"forward_score", "reverse_score"} if changes.get("train_sync_heads") is False else set())


@pytest.mark.parametrize(
    ("weight", "names"),
    [
        ("retrieval", ["retrieval"]),
        ("local", ["reconstruction", "rank", "sync_rank"]),
        ("global", ["global"]),
        ("time", ["time"]),
        ("grrm", ["grrm"]),
        ("alignment", ["alignment"]),
        ("pseudo_span", ["pseudo_span"]),
    ],
)
def test_weights(weight: str, names: list[str]) -> None:
    model, batch = make_model(alignment_weight=1.0, pseudo_span_weight=1.0), random_batch()
    losses = losses_of(model, batch)
    model.config = small(**{"alignment_weight": 1.0, "pseudo_span_weight": 1.0, f"{weight}_weight": 2.5})
    heavier = losses_of(model, batch)
    torch.testing.assert_close(heavier["loss"] - losses["loss"], 1.5 * sum(losses[name] for name in names))


def test_a_new_model_tells_moments_apart() -> None:
    """TAN keeps the size of its features; 2D-TAN's division leaves a score that is the same for all moments."""
    spread = {}
    for normalize in (False, True):
        torch.manual_seed(0)
        config = small(dim=32, tan_layers=4, tan_kernel=5, tan_normalize=normalize)
        model, batch = DMRJRG(config, FEATURE_DIM, counted()).double(), random_batch()
        moments = model(model.project(batch.video), model.text(batch).sentences, batch.sentence_mask)
        spread[normalize] = moments.logits.std(1).mean().item()
    assert spread[False] > 1e-3
    assert spread[True] < 1e-5


def test_retrieval_learns() -> None:
    """Among the videos that it was trained on, every paragraph soon finds its own: with all of the losses."""
    torch.manual_seed(0)
    config = small(dim=32, feed_forward=32, reconstructor_layers=1, tan_layers=1, reduction="mean")
    model, batch = DMRJRG(config, FEATURE_DIM, counted()), random_batch((2,) * 12)
    batch = replace(batch, video=batch.video.float())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(50):
        optimizer.zero_grad()
        model.loss(batch)["loss"].backward()
        optimizer.step()
    similarity = model.embed_paragraphs(batch) @ model.embed_videos(batch.video, batch.video_mask).t()
    assert (similarity.argmax(1) == torch.arange(12)).sum() >= 11


# --- predictions


@pytest.mark.parametrize("changes", [{}, {"alignment_weight": 1.0, "pseudo_span_weight": 1.0}], ids=str)
def test_weakly_supervised_training_never_reads_a_span(changes: dict) -> None:
    model, batch = make_model(**changes), random_batch()
    expected = losses_of(model, batch)
    batch.spans = torch.full((3, 4, 2), math.nan, dtype=torch.float64)
    batch.labelled = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(losses_of(model, batch), expected)
    assert DMRJRG.needs(model.config).labelled_share == 0


@pytest.mark.parametrize("nms", [0.5, None])
def test_predictions(nms: float | None) -> None:
    """The best moments by P in seconds, without those that overlap a better one too much."""
    model, batch = make_model(nms=nms).eval(), random_batch()
    prediction = model.predict(batch, top_n=4)
    assert prediction.spans.shape == (3, 4, 4, 2)
    moments = model(model.project(batch.video), model.text(batch).sentences, batch.sentence_mask)
    logits, n = as_maps(moments.logits), 0
    for b, count in enumerate(SENTENCES):
        assert prediction.scores[b, count:].eq(-torch.inf).all()
        for m in range(count):
            P = logits[n].sigmoid()
            assert prediction.maps is not None
            torch.testing.assert_close(prediction.maps[b, m].triu(), P.triu())
            assert prediction.maps[b, m].isnan().equal(torch.ones(K, K, dtype=torch.bool).tril(-1))
            ranked = sorted(((P[i, j].item(), i, j + 1) for i in range(K) for j in range(i, K)), reverse=True)
            kept: list[tuple[float, int, int]] = []
            for score, i, j in ranked:
                shared = [max(0, min(j, y) - max(i, x)) / (max(j, y) - min(i, x)) for _, x, y in kept]
                if nms is None or all(iou <= nms for iou in shared):
                    kept.append((score, i, j))
            for place, (score, i, j) in enumerate(kept[:4]):
                assert prediction.scores[b, m, place].item() == pytest.approx(score)
                seconds = [i / K * 10 * (b + 1), j / K * 10 * (b + 1)]
                assert prediction.spans[b, m, place].tolist() == pytest.approx(seconds)
            assert prediction.scores[b, m, len(kept) :].eq(-torch.inf).all()
            n += 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"context": "pointwise", "moment_map": "boundary_matching", "alignment_weight": 1.0},
        {"alignment_weight": 1.0},
        {"start_from_means": True},
        {"class_tokens": False, "global_weight": 0.0, "grrm_weight": 0.0},
    ],
    ids=str,
)
def test_a_paragraph_does_not_depend_on_what_else_is_in_the_batch(changes: dict) -> None:
    """Padding of sentences and of words never reaches a real one."""
    model, batch = make_model(**changes).eval(), random_batch()
    together, embedded = model.predict(batch), model.embed_paragraphs(batch)
    videos = model.embed_videos(batch.video, batch.video_mask)
    for b, count in enumerate(SENTENCES):
        words = int(batch.word_mask[b].sum(-1).max())
        alone = replace(
            batch,
            paragraphs=[batch.paragraphs[b]],
            video=batch.video[b : b + 1],
            video_mask=batch.video_mask[b : b + 1],
            words=batch.words[b : b + 1, :count, :words],
            word_mask=batch.word_mask[b : b + 1, :count, :words],
            sentence_mask=batch.sentence_mask[b : b + 1, :count],
            durations=batch.durations[b : b + 1],
        )
        found = model.predict(alone)
        torch.testing.assert_close(found.spans[0], together.spans[b, :count])
        torch.testing.assert_close(found.scores[0], together.scores[b, :count])
        torch.testing.assert_close(model.embed_paragraphs(alone)[0], embedded[b])
        torch.testing.assert_close(model.embed_videos(alone.video, alone.video_mask)[0], videos[b])


def test_under_autocast() -> None:
    """Everything in bfloat16 that may be; embeddings and losses stay in float32."""
    model, batch = make_model().float(), random_batch()
    batch = replace(batch, video=batch.video.float())
    exact = losses_of(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, batch)
        assert model.embed_paragraphs(batch).dtype == model.embed_videos(batch.video, batch.video_mask).dtype
        assert model.embed_paragraphs(batch).dtype == torch.float32
        model.predict(batch)
    for name in ("retrieval", "reconstruction", "time"):
        torch.testing.assert_close(losses[name], exact[name], rtol=0.1, atol=0.1)
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- a language model in the place of the Bi-LSTM


def test_sentences_from_a_language_model(tmp_path: Path) -> None:
    """Table 6: frozen, read as written; the Bi-LSTM is left to the masked words."""
    bert, other = make_bert(tmp_path / "bert"), make_bert(tmp_path / "other", seed=1)
    batch = random_batch()
    texts = ["a person opens", "the door", "red ball grows", "it vanishes", "a ball", "the red door .", "it", "grows"]
    start, items = 0, []
    for paragraph, count in zip(batch.paragraphs, SENTENCES, strict=True):
        items.append(replace(paragraph, sentences=tuple(texts[start : start + count])))
        start += count
    batch = replace(batch, paragraphs=items, video=batch.video.float())
    model = make_model(language_model=bert).float()
    expected = model.text.project(model.text.language(texts))
    torch.testing.assert_close(model.text(batch).sentences, expected)
    losses = losses_of(model, batch)
    losses["loss"].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert not [name for name, _ in model.named_parameters() if "language" in name]
    model.check_weights(model.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="another language model"):
        make_model(language_model=other).check_weights(model.state_dict(), tmp_path)
    alone = {"local_weight": 0.0, "global_weight": 0.0, "grrm_weight": 0.0}
    assert not hasattr(make_model(language_model=bert, **alone).text, "lstm")


# --- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": 5}, "max_clips must be a multiple of segments"),
        ({"dim": 12, "heads": 2}, "dim must be a multiple of 8"),
        ({"dim": 16, "heads": 3}, "dim must be a multiple of 8, of heads"),
        ({"dim": 16, "reconstructor_heads": 5}, "and of reconstructor_heads"),
        ({"tan_kernel": 4}, "tan_kernel must be odd"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"candidates": 0, "candidate_weights": []}, "candidates must be at least 1"),
        ({"candidates": 22, "candidate_weights": None}, "at most the 21 moments"),
        ({"candidates": 2}, "candidate_weights must be one a candidate"),
        ({"time_weight": -1.0}, "time_weight must be 0 or more"),
        ({"retrieval_weight": 0.0, "global_weight": 0.0}, "retrieval_weight or global_weight"),
        ({"local_weight": 0.0, "time_weight": 0.0}, "local_weight, time_weight or pseudo_span_weight"),
        ({"pseudo_span_weight": 1.0}, "pseudo_span_weight needs alignment_weight"),
        ({"pseudo_span_share": 1.5}, "pseudo_span_share must lie in"),
        ({"class_tokens": False}, "global_weight needs class_tokens"),
        ({"global_weight": 0.0}, "grrm_weight needs global_weight"),
        ({"forward_sync": False, "reverse_sync": False}, "time_weight needs forward_sync or reverse_sync"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"margin": -0.1}, "margin must be 0 or more"),
        ({"masked_share": 0.0}, "masked_share must lie in"),
        ({"content_weight": 0.0}, "content_weight must be above 0"),
        ({"min_iou": 0.5, "max_iou": 0.5}, "0 <= min_iou < max_iou <= 1"),
        ({"nms": 1.5}, "nms must be from 0 to 1"),
        ({"max_sentences": 0}, "max_sentences must be at least 1"),
    ],
    ids=str,
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_a_batch_of_another_length_is_refused() -> None:
    model = make_model(max_clips=18)
    with pytest.raises(ValueError, match="takes 18 clips a video, this batch has 12"):
        model.predict(random_batch())


def test_it_is_registered() -> None:
    assert get_method("dmr_jrg") is DMRJRG


def test_shipped_configs_hold_the_papers_settings() -> None:
    for name, segments, size in (("activitynet", 32, 16), ("charades_sta", 16, 16), ("tacos", 16, 6)):
        config = parse_train(["--config", str(CONFIGS / f"{name}.yaml")])
        model, optim = config.model, config.optim
        assert (config.data.corpus, config.batch_size, config.epochs, config.patience) == (name, size, 100, None)
        assert (model.max_clips, model.segments, model.dim, model.tan_layers) == (256, segments, 512, 4)
        assert (model.margin, model.retrieval_nce, model.global_nce, model.scale) == (0.2, 0.04, 0.04, None)
        assert (model.candidates, model.candidate_weights, model.masked_share) == (3, [0.4, 0.3, 0.3], 1 / 3)
        assert (model.reduction, model.told, model.moment_map, model.context) == (
            "sum",
            "all",
            "max_pool",
            "convolutions",
        )
        assert {getattr(model, f"{name}_weight") for name in ("retrieval", "local", "global", "time", "grrm")} == {1.0}
        assert (optim.name, optim.lr, optim.schedule, optim.clip) == ("adam", 1e-4, "step", None)
        assert (optim.step_epochs, optim.step_factor) == (20, 0.8)
        assert model.alignment_weight == model.pseudo_span_weight == 0
        # The defaults are those of the paper, which has no windows for long videos.
        assert replace(model, segments=32, windowed="auto") == DMRJRGConfig()


def test_our_configs_ground() -> None:
    """What the paper lacks is on, beside all that it has; nothing else that it has not."""
    weights = ("retrieval", "local", "global", "time", "grrm", "alignment")
    for name in ("moving_shapes", "activitynet_simulated", "charades_sta_simulated"):
        model = parse_train(["--config", str(CONFIGS / f"{name}.yaml")]).model
        assert {getattr(model, f"{weight}_weight") for weight in weights} == {1.0}
        assert model.pseudo_span_weight > 0
        assert (model.moment_map, model.context, model.normalize_fusion) == ("max_pool", "convolutions", False)


def test_ablation_tables() -> None:
    """What the paper claims is true of its own figures, where they are known."""
    tables = [*read_tables(CONFIGS / "ablations.yaml"), *read_tables(CONFIGS / "additions.yaml")]
    figures = {row.name: row.paper for row in tables[0].rows if row.paper}
    assert all(len(row) == 6 for row in figures.values())
    for claim in tables[0].claims:
        better, worse = figures[claim.better], figures[claim.worse]
        assert sum(better[name] > worse[name] for name in better) >= 5, claim
    full, base = figures["VTFA w/ GRRM"], figures["VPCMR"]
    # "improvements of 3.03%, 12.27%, 5.09%, 12.17%, 4.93%, 9.39% across all evaluation metrics"
    gains = [100 * (full[name] - base[name]) for name in full]
    assert gains == pytest.approx([3.03, 12.27, 5.09, 12.17, 4.93, 9.39])


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """The same losses, embeddings and predictions as on the CPU, with the same draws."""
    model, batch = make_model(0.3), random_batch()
    drawn = fixed_draws(model, batch)
    cpu = model.loss(batch), model.predict(batch), model.embed_paragraphs(batch)
    model, batch = model.cuda(), batch.to("cuda")
    model.draw = lambda batch: Draws(*(x.cuda() for x in drawn))
    gpu = model.loss(batch), model.predict(batch), model.embed_paragraphs(batch)
    for name, value in cpu[0].items():
        torch.testing.assert_close(gpu[0][name].cpu(), value)
    torch.testing.assert_close(gpu[1].spans.cpu(), cpu[1].spans)
    torch.testing.assert_close(gpu[2].cpu(), cpu[2])
    del model.draw  # with draws of its own
    model.loss(batch)["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_scale_saved_as_a_scalar_loads() -> None:
    """Older checkpoints have it so."""
    model = make_model()
    load_weights(model, {**model.state_dict(), "log_scale": torch.tensor(1.5)}, Path("old.safetensors"))
    assert model.log_scale.tolist() == [1.5]
