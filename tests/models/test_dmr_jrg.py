"""DMR-JRG, equation by equation: against plain re-statements that know no batches, and hand-worked values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from language_models import make_bert
from small import with_random_weights, word_vectors
from torch import Tensor

from benchmarks.field_dmr_jrg import FieldDMRJRG
from vpgfast.ablate.tables import read_tables
from vpgfast.checkpoint import load_weights
from vpgfast.config import parse_train
from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, Paragraph
from vpgfast.errors import CheckpointError, ConfigError
from vpgfast.models.alignment import own_video, similar_spans
from vpgfast.models.dmr_jrg import DMRJRG, DMRJRGConfig, Draws
from vpgfast.models.dmr_jrg_parts import (
    ClassEncoder,
    draw_words,
    mean_of_paragraphs,
    nce_loss,
    rank_loss,
    rewards_of,
    triplet_loss,
    unit,
)
from vpgfast.models.layers import sinusoid, to_paragraphs
from vpgfast.models.method import RetrievalMethod
from vpgfast.models.moment_map import MomentMap, Pointwise, SimilarityMap, fuse
from vpgfast.models.reconstructor import word_nll
from vpgfast.models.registry import get_method
from vpgfast.ops import temporal_iou_map

CONFIGS = Path(__file__).parents[2] / "configs" / "dmr_jrg"
T, K, D, FEATURE_DIM, VOCABULARY = 12, 6, 8, 6, 20
SENTENCES = (3, 1, 4)


def small(**changes) -> DMRJRGConfig:
    settings = {
        "max_clips": T,
        "segments": K,
        "dim": D,
        "heads": 2,
        "layers": 2,
        "feed_forward": 12,
        "dropout": 0.0,
        "tan_layers": 2,
        "tan_kernel": 3,
        "reconstructor_heads": 2,
        "reconstructor_layers": 2,
        "reconstructor_clips": 5,
        "moment_samples": 3,
    }
    return DMRJRGConfig(**{**settings, **changes})


def counted() -> WordVectors:
    counts = np.zeros(VOCABULARY, np.int64)
    counts[[3, 7, 4, 12]] = [5, 9, 2, 2]
    return replace(word_vectors(VOCABULARY), content_counts=counts)


def make_model(spread: float = 0.4, **changes) -> DMRJRG:
    return with_random_weights(DMRJRG(small(**changes), FEATURE_DIM, counted()), spread)


def random_batch(sentences=SENTENCES, seed: int = 0, videos=None) -> Batch:
    """Paragraphs of that many sentences of 1 to 5 words."""
    generator = torch.Generator().manual_seed(seed)
    B, M = len(sentences), max(sentences)
    there = torch.arange(M) < torch.tensor(sentences).unsqueeze(1)
    lengths = torch.randint(1, 6, (B, M, 1), generator=generator) * there.unsqueeze(2)
    lengths[0, 0] = 5
    word_mask = torch.arange(5) < lengths
    names = videos or [f"v{b}" for b in range(B)]
    items = zip(names, sentences, range(1, B + 1), strict=True)
    return Batch(
        paragraphs=[Paragraph(name, 10.0 * place, ("a",) * count) for name, count, place in items],
        video=torch.randn(B, T, FEATURE_DIM, generator=generator, dtype=torch.float64),
        video_mask=torch.ones(B, T, dtype=torch.bool),
        words=torch.randint(1, VOCABULARY, word_mask.shape, generator=generator) * word_mask,
        word_mask=word_mask,
        sentence_mask=there,
        durations=10.0 * torch.arange(1, B + 1, dtype=torch.float64),
    )


def losses_of(model: DMRJRG, batch: Batch, seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return model.loss(batch)


def as_maps(x: torch.Tensor) -> torch.Tensor:
    """What is listed by moment, [N, P] or [N, P, D], as maps [N, K, K] or [N, D, K, K]."""
    side = int((2 * x.shape[1]) ** 0.5)
    maps = torch.zeros(len(x), side, side, *x.shape[2:], dtype=x.dtype)
    maps[:, *torch.triu_indices(side, side)] = x.detach()
    return maps.movedim(3, 1) if x.dim() == 3 else maps


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


# --- the retrieval branch


def torchs_encoder(layers: torch.nn.ModuleList, hidden: int) -> torch.nn.TransformerEncoder:
    """torch's own post-norm encoder with the same weights."""
    layer = torch.nn.TransformerEncoderLayer(D, 2, hidden, 0.0, batch_first=True, dtype=torch.float64)
    theirs = torch.nn.TransformerEncoder(layer, len(layers), enable_nested_tensor=False)
    for ours, other in zip(layers, theirs.layers, strict=True):
        copy_attention(ours.itself, other.self_attn, other.norm1)
        copy_feed_forward(ours.feed_forward, other, other.norm2)
    return theirs


def copy_attention(ours, theirs, norm) -> None:
    inner = ours.layer
    theirs.in_proj_weight.data = torch.cat([inner.query.weight, inner.key_value.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([inner.query.bias, inner.key_value.bias]).detach()
    theirs.out_proj.load_state_dict(inner.out.state_dict())
    norm.load_state_dict(ours.norm.state_dict())


def copy_feed_forward(ours, theirs, norm) -> None:
    theirs.linear1.load_state_dict(ours.layer.hidden.state_dict())
    theirs.linear2.load_state_dict(ours.layer.out.state_dict())
    norm.load_state_dict(ours.norm.state_dict())


@pytest.mark.parametrize("means", [False, True])
def test_class_tokens_by_torchs_encoder(means: bool) -> None:
    """Eq. 1, one paragraph after another: [token, h_1 ... h_M] without padding, and [token, f_1 ... f_K]."""
    model, batch = make_model(start_from_means=means), random_batch()

    def with_token(encoder: ClassEncoder, x: Tensor) -> Tensor:
        x = encoder.norm(x)
        return torch.stack([torch.cat([encoder.token[None] + means * one.mean(0), one]) for one in x])

    h = model.text(batch).sentences
    of_texts = model.text_class(h, batch.sentence_mask)
    encoder = torchs_encoder(model.text_encoder.layers, 12)
    start = 0
    for b, count in enumerate(SENTENCES):
        x = with_token(model.text_encoder, h[None, start : start + count])
        torch.testing.assert_close(encoder(x + sinusoid(count + 1, D, x))[0, 0], of_texts[b])
        start += count
    segments = model.segments(model.project(batch.video))
    x = with_token(model.video_encoder, segments)
    expected = torchs_encoder(model.video_encoder.layers, 12)(x + sinusoid(K + 1, D, x))[:, 0]
    torch.testing.assert_close(model.video_class(segments), expected)


@pytest.mark.parametrize("counts", [[2, 1, 3], [3, 0, 1], [0, 0, 0], []])
def test_fuse_is_a_product_with_the_moments_of_the_own_video(counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    sentences = torch.randn(sum(counts), 4, generator=generator, dtype=torch.float64, requires_grad=True)
    moments = torch.randn(len(counts), 6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
    torch.testing.assert_close(fuse(sentences, moments, counts), sentences.unsqueeze(1) * moments[owner])
    assert torch.autograd.gradcheck(lambda s, m: fuse(s, m, counts), (sentences, moments))


def test_segments_by_loops() -> None:
    model, batch = make_model(), random_batch()
    found = model.segments(model.project(batch.video))
    for b in range(3):
        for k in range(K):
            clips = [F.relu(model.clips(batch.video[b, t])) for t in range(T * k // K, T * (k + 1) // K)]
            torch.testing.assert_close(found[b, k], torch.stack(clips).mean(0))


@pytest.mark.parametrize("means", [False, True])
def test_sentences_by_loops(means: bool) -> None:
    """The last state of either way, or the mean, each sentence by itself; words are masked before the Bi-LSTM."""
    model, batch = make_model(start_from_means=means), random_batch()
    masked = model.draw(batch).masked
    text, n = model.text(batch, masked), 0
    half = D // 2
    for b, count in enumerate(SENTENCES):
        for m in range(count):
            ids = batch.words[b, m][batch.word_mask[b, m]]
            vectors = model.text.words(ids)
            states, _ = model.text.lstm(vectors[None])
            expected = states[0].mean(0) if means else torch.cat([states[0, -1, :half], states[0, 0, half:]])
            torch.testing.assert_close(text.sentences[n], expected)
            vectors = torch.stack(
                [model.text.mask if hide else v for v, hide in zip(vectors, masked[n, : len(ids)], strict=True)]
            )
            torch.testing.assert_close(text.masked[n, : len(ids)], model.text.lstm(vectors[None])[0][0])
            n += 1
    assert n == len(text.sentences)


def test_embeddings_are_what_training_compares() -> None:
    """Unit vectors in float32, whose products are S^r of Eq. 3 and 17; the video of a batch of texts is not read."""
    model, batch = make_model().eval(), random_batch()
    assert isinstance(model, RetrievalMethod)
    videos = model.embed_videos(batch.video, batch.video_mask)
    paragraphs = model.embed_paragraphs(replace(batch, video=torch.full_like(batch.video, math.nan)))
    for x in (videos, paragraphs):
        assert x.shape == (3, D)
        torch.testing.assert_close(x.norm(dim=1), torch.ones(3, dtype=torch.float64))
    drawn = fixed_draws(model, batch)
    losses = model.loss(batch)
    expected = model.contrast(paragraphs @ videos.t(), torch.eye(3) > 0, drawn.negatives[0], 0.04)
    torch.testing.assert_close(losses["retrieval"], expected)
    half = model.float()
    assert half.embed_videos(batch.video.float(), batch.video_mask).dtype == torch.float32


def fixed_draws(model: DMRJRG, batch: Batch) -> Draws:
    """Makes a model draw the same every time."""
    drawn = model.draw(batch)
    model.draw = lambda batch: drawn
    return drawn


def test_nce_loss_by_loops() -> None:
    """Eq. 2-4; other items of the same video are no negatives."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    names = ["a", "b", "a", "c"]
    for videos in (list("abcd"), names):
        same = torch.tensor([[one == other for other in videos] for one in videos])
        of_texts, of_videos = [], []
        for b in range(4):
            others = [z for z in range(4) if z == b or videos[z] != videos[b]]
            exps = logits.exp().numpy()
            of_texts.append(-math.log(exps[b, b] / sum(exps[b, z] for z in others)))
            of_videos.append(-math.log(exps[b, b] / sum(exps[z, b] for z in others)))
        assert nce_loss(logits, same).item() == pytest.approx(np.mean(of_texts) + np.mean(of_videos))


def test_triplet_loss_by_hand() -> None:
    similarity = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.3, 0.6], [-0.2, 0.1, 0.9]])
    same = torch.eye(3) > 0
    # Paragraphs: 0.2 + 0.4 - 0.5; 0.2 + 0.6 - 0.3; 0. Videos: 0; 0.2 + 0.4 - 0.3; 0.
    hardest = triplet_loss(similarity, same, torch.zeros(2, 3), 0.2, 20)
    assert hardest.item() == pytest.approx((0.1 + 0.5 + 0 + 0 + 0.3 + 0) / 3)
    # The second hardest: 0; 0.2 + 0.2 - 0.3; 0, and 0; 0.2 + 0.1 - 0.3 = 0; 0.
    second = triplet_loss(similarity, same, torch.full((2, 3), 0.99), 0.2, 20)
    assert second.item() == pytest.approx(0.1 / 3, abs=1e-7)
    torch.testing.assert_close(triplet_loss(similarity, same, torch.full((2, 3), 0.99), 0.2, 1), hardest)
    # Items 0 and 1 are of one video: each has item 2 alone. 0; 0.2 + 0.6 - 0.3; 0, and 0; 0; 0.
    same[0, 1] = same[1, 0] = True
    assert triplet_loss(similarity, same, torch.full((2, 3), 0.5), 0.2, 20).item() == pytest.approx(0.5 / 3)


def test_negatives_are_drawn_evenly_from_the_hardest() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(8, 8, generator=generator, dtype=torch.float64)
    negatives = torch.rand(1500, 2, 8, generator=generator, dtype=torch.float64)
    ours = torch.stack([triplet_loss(similarity, torch.eye(8) > 0, draws, 2.0, 3) for draws in negatives]).mean()
    off = similarity.masked_fill(torch.eye(8) > 0, -1)
    expected = 4 + off.topk(3, 1).values.mean() + off.topk(3, 0).values.mean() - 2 * similarity.diagonal().mean()
    torch.testing.assert_close(ours, expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize("sentences", [(2,), (2, 3)])
def test_a_batch_of_one_video_has_no_negatives(sentences: tuple[int, ...]) -> None:
    model, batch = make_model(), random_batch(sentences, videos=["v"] * len(sentences))
    losses = losses_of(model, batch)
    assert losses["retrieval"] == losses["global"] == 0
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- the local dimension


def test_moment_map_by_loops() -> None:
    """Max-pooling over f_i ... f_j."""
    x = torch.randn(2, D, K, dtype=torch.float64)
    found = as_maps(MomentMap("max_pool", D, K, 3)(x))
    for i in range(K):
        for j in range(i, K):
            torch.testing.assert_close(found[:, :, i, j], x[:, :, i : j + 1].amax(2))


def test_boundary_matching_map_by_loops() -> None:
    """BMN's layer: samples from half a moment before it to half a moment behind it, nothing outside of the video."""
    layer = with_random_weights(MomentMap("boundary_matching", D, K, 4), 0.4)
    x = torch.randn(1, D, K, dtype=torch.float64)
    found, clips = as_maps(layer(x)), layer.before(x)[0]
    for i in range(K):
        for j in range(i, K):
            size = j - i + 1
            samples = []
            for n in range(4):
                t = i - size / 2 + (2 * size - 1) * n / 3
                low = math.trunc(t)
                part = torch.zeros(D // 2, dtype=torch.float64)
                for clip, share in ((low, 1 - (t - low)), (math.ceil(t), t - low)):
                    if 0 <= clip < K:
                        part = part + share * clips[:, clip]
                samples.append(part)
            expected = torch.einsum("dcn,nc->d", layer.layer.weight, torch.stack(samples)) + layer.layer.bias
            torch.testing.assert_close(found[0, :, i, j], expected.relu())


def test_pointwise_context_is_a_convolution_of_the_concatenation() -> None:
    """The released code concatenates codes of sentence, start and end, counted from 1, to every moment."""
    layer = with_random_weights(Pointwise(D, K), 0.5)
    moments, number = torch.randn(3, K * (K + 1) // 2, D, dtype=torch.float64), torch.tensor([0, 1, K + 2])
    x = as_maps(moments)
    code = sinusoid(K + 5, D // 4, x)
    weight = torch.cat([layer.features.weight, *(codes.weight for codes in layer.codes)], 1)
    found = as_maps(layer(moments, number))
    for n in range(3):
        for i in range(K):
            for j in range(i, K):
                both = torch.cat([x[n, :, i, j], code[number[n] + 1], code[i + 1], code[j + 1]])
                expected = (weight @ both + layer.features.bias).relu()
                torch.testing.assert_close(found[n, :, i, j], expected)


@pytest.mark.parametrize(
    "changes", [{}, {"tan_normalize": True}, {"normalize_fusion": True}, {"context": "none"}], ids=str
)
def test_scores_and_synchronisation_by_the_papers_form(changes: dict) -> None:
    """Eq. 8, 18 and 19: prediction layers on the features times 1 minus the maps before, sentence by sentence."""
    model, batch = make_model(**changes), random_batch()
    h, clips = model.text(batch).sentences, model.project(batch.video)
    segments = model.segments(clips)
    found = model(clips, h, batch.sentence_mask, sync=True)
    found_features, found_logits, *found_synced = map(as_maps, (found.features, found.logits, *found.synced))
    maps = [segments[b].t().unsqueeze(0) for b in range(3)]
    n = 0
    for b, count in enumerate(SENTENCES):
        features = []
        for m in range(count):
            fused = torch.zeros(D, K, K, dtype=torch.float64)
            for i in range(K):
                for j in range(i, K):
                    moment = maps[b][0, :, i : j + 1].amax(1)
                    cell = (model.fuse_sentence.weight @ h[n + m]) * (model.fuse_moment.weight @ moment)
                    fused[:, i, j] = cell / cell.norm() if "normalize_fusion" in changes else cell
            upper = torch.ones(K, K, dtype=torch.float64).triu()
            features.append(fused if model.context is None else FieldDMRJRG(model).tan(fused[None], upper)[0])
            triangle = upper > 0
            torch.testing.assert_close(found_features[n + m][:, triangle], features[m][:, triangle])
            logits = torch.einsum("d,dij->ij", model.score.weight[0], features[m]) + model.score.bias
            torch.testing.assert_close(found_logits[n + m][triangle], logits[triangle])
        for head, synced, order in (
            (model.forward_score, found_synced[0], range(count)),
            (model.reverse_score, found_synced[1], reversed(range(count))),
        ):
            before = torch.zeros(K, K, dtype=torch.float64)
            for m in order:
                suppressed = features[m] * (1 - before).expand(D, K, K)
                P = (torch.einsum("d,dij->ij", head.weight[0], suppressed) + head.bias).sigmoid()
                torch.testing.assert_close(synced[n + m][triangle], P[triangle])
                before = before + P
        n += count


def test_reconstructor_by_torchs_decoder() -> None:
    """Eq. 9-11, one candidate after another: which clips are read, and -log p of every word that is told."""
    model, batch = make_model(), random_batch()
    reconstructor = model.reconstructor
    text, there = model.text(batch, model.draw(batch).masked), batch.sentence_mask
    owner = there.nonzero()[:, 0]
    N = len(owner)
    cells = torch.randint(0, K * (K + 1) // 2, (N, 3))
    mask, words = batch.word_mask[there], batch.words[there]
    told = mask & (torch.rand(mask.shape) < 0.7)
    found = reconstructor(batch.video, owner, model.clips_of(cells), text.masked, mask, words, told)

    layer = torch.nn.TransformerDecoderLayer(D, 2, 12, 0.0, batch_first=True, dtype=torch.float64)
    decoder = torch.nn.TransformerDecoder(layer, 2)
    for ours, other in zip(reconstructor.decoder, decoder.layers, strict=True):
        copy_attention(ours.itself, other.self_attn, other.norm1)
        copy_attention(ours.clips, other.multihead_attn, other.norm2)
        copy_feed_forward(ours.feed_forward, other, other.norm3)
    encoder = torchs_encoder(reconstructor.encoder, 12)
    for n in range(N):
        length = int(mask[n].sum())
        for q in range(3):
            i, j = model.cells[:, cells[n, q]].tolist()
            first, last = i * T // K, (j + 1) * T // K
            index = [first + math.floor((last - first) * s / 5) for s in range(5)]
            clips = reconstructor.clips(batch.video[owner[n], index])[None]
            memory = encoder(clips + sinusoid(5, D, clips))
            x = reconstructor.words(text.masked[n : n + 1, :length])
            out = decoder(x + sinusoid(length, D, x), memory)[0]
            logs = reconstructor.out(out).log_softmax(1)
            expected = -sum(logs[w, words[n, w]] for w in range(length) if told[n, w])
            torch.testing.assert_close(found[n, q], torch.as_tensor(expected, dtype=torch.float64))


def test_word_nll_is_torchs_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    logits[2, 3] = -torch.inf
    logits.requires_grad_()
    words, incoming = torch.tensor([0, 6, 2, 2, 1]), torch.randn(5, generator=generator, dtype=torch.float64)
    expected = F.cross_entropy(logits, words, reduction="none")
    torch.testing.assert_close(word_nll(logits, words), expected)
    pairs = [torch.autograd.grad(x, logits, incoming) for x in (word_nll(logits, words), expected)]
    torch.testing.assert_close(*pairs)
    finite = logits[[0, 1, 3]].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: word_nll(x, words[:3]), finite)


def test_reconstruction_loss_adds_up_words() -> None:
    """Eq. 11: the sum over a sentence's words, the mean over candidates, sentences and paragraphs."""
    batch = random_batch()
    for changes in ({}, {"told": "masked"}, {"reduction": "mean"}):
        model = make_model(**changes)
        drawn, seen = fixed_draws(model, batch), {}
        reconstructor = model.reconstructor

        def spy(*arguments, seen=seen, reconstructor=reconstructor):
            seen["nll"], seen["told"] = type(reconstructor).forward(reconstructor, *arguments), arguments[-1]
            return seen["nll"]

        reconstructor.forward = spy
        loss = model.loss(batch)["reconstruction"]
        words = drawn.masked if "told" in changes else batch.word_mask[batch.sentence_mask]
        assert seen["told"].equal(words)
        paragraphs, n = [], 0
        for count in SENTENCES:
            rows = seen["nll"][n : n + count]
            if "reduction" in changes:
                rows = rows / words[n : n + count].sum(1, keepdim=True)
            paragraphs.append(rows.mean())
            n += count
        torch.testing.assert_close(loss, torch.stack(paragraphs).mean())


def test_rewards_and_rank_loss_by_hand() -> None:
    """The best told candidate gets 1, the next 1 - 1 / (Q - 1) ...: Eq. 12 of one sentence."""
    nll = torch.tensor([[3.0, 1.0, 2.0], [0.5, 0.7, 0.6]])
    rewards = rewards_of(nll)
    assert rewards.tolist() == [[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]]
    assert rewards_of(torch.rand(2, 1)).tolist() == [[1.0], [1.0]]
    scores = torch.tensor([[0.9, 0.8, 0.5]])
    total = sum(math.exp(x) for x in (0.9, 0.8, 0.5))
    expected = -(1.0 * math.log(math.exp(0.8) / total) + 0.5 * math.log(math.exp(0.5) / total)) / 3
    assert rank_loss(scores, rewards[:1]).item() == pytest.approx(expected)


def test_candidates_are_the_best_moments_in_order() -> None:
    model, batch = make_model(), random_batch()
    seen = {}

    def spy(batch, moments, candidates, *others):
        seen["P"], seen["candidates"] = as_maps(moments.logits), candidates
        return DMRJRG.local_losses(model, batch, moments, candidates, *others)

    model.local_losses = spy
    losses = model.loss(batch)
    P, cells = seen["P"], seen["candidates"]
    for n in range(sum(SENTENCES)):
        ranked = sorted(((P[n, i, j].item(), i, j) for i in range(K) for j in range(i, K)), reverse=True)[:3]
        assert [tuple(model.cells[:, c].tolist()) for c in cells[n]] == [(i, j) for _, i, j in ranked]
    assert losses["rank"] > 0


def test_mean_of_paragraphs_by_loops() -> None:
    there = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.tensor([1.0, 4.0, 10.0])
    assert mean_of_paragraphs(x, there).item() == (2.5 + 10) / 2
    assert to_paragraphs(x, there, -1.0).tolist() == [[1, 4, -1], [10, -1, -1]]


# --- masking


def test_masked_words() -> None:
    """A third of the words rounded down, one at least; never padding; nouns and verbs twice as often."""
    torch.manual_seed(0)
    lengths = torch.arange(1, 13)
    mask = torch.arange(12) < lengths.unsqueeze(1)
    weights = torch.ones(mask.shape)
    weights[:, 0] = 2
    drawn = torch.stack([draw_words(mask, weights, 1 / 3) for _ in range(3000)])
    assert drawn.sum(2).eq(torch.tensor([1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4])).all()
    assert not (drawn & ~mask).any()
    shares = drawn.double().mean(0)
    # One word is drawn: the first with 2 / (l + 1), every other with 1 / (l + 1).
    for row in range(5):
        expected = torch.tensor([2.0] + [1.0] * row, dtype=torch.float64) / (row + 2)
        torch.testing.assert_close(shares[row, : row + 1], expected, rtol=0, atol=0.03)
    # Two of six without putting back: 1 - P(neither is the first), 5/7 then 4/6 left.
    assert shares[5, 0].item() == pytest.approx(1 - 5 / 7 * 4 / 6, abs=0.03)
    assert draw_words(mask, weights, 1.0).equal(mask)


def test_content_words_come_from_the_training_text() -> None:
    model, batch = make_model(), random_batch()
    assert model.text.content.nonzero().flatten().tolist() == [3, 4, 7, 12]
    weights = model.text.weights(torch.tensor([[3, 5, 12, 0]]))
    assert weights.tolist() == [[2.0, 1.0, 2.0, 1.0]]
    uncounted = DMRJRG(small(), FEATURE_DIM, word_vectors(VOCABULARY)).double()
    with pytest.raises(ValueError, match="content_counts"):
        uncounted.loss(batch)
    uncounted.load_state_dict(model.state_dict())  # the content words come with the weights
    assert uncounted.text.content.equal(model.text.content)
    assert DMRJRG.needs(small()).content_words
    assert not DMRJRG.needs(small(content_weight=1.0)).content_words
    DMRJRG(small(content_weight=1.0), FEATURE_DIM, word_vectors(VOCABULARY)).double().loss(batch)


# --- the global and the temporal dimension


@pytest.mark.parametrize("changes", [{}, {"candidate_weights": None}], ids=str)
def test_global_loss_by_loops(changes: dict) -> None:
    """Eq. 14-17, one paragraph after another; what GRRM teaches is the retrieval branch alone."""
    model, batch = make_model(**changes), random_batch()
    drawn = fixed_draws(model, batch)
    h, clips = model.text(batch).sentences, model.project(batch.video)
    segments = model.segments(clips)
    moments = model(clips, h, batch.sentence_mask)
    features, logits = as_maps(moments.features), as_maps(moments.logits)
    video, paragraph = model.video_class(segments), model.text_class(h, batch.sentence_mask)
    encoder = torchs_encoder(model.video_encoder.layers, 12)  # E_3 is E_1
    weights = [0.4, 0.3, 0.3] if not changes else model.candidate_weights.tolist()
    fused, n = [], 0
    for b, count in enumerate(SENTENCES):
        rows = [model.moment_token]
        for m in range(count):
            P = logits[n + m]
            ranked = sorted(((P[i, j].item(), i, j) for i in range(K) for j in range(i, K)), reverse=True)
            cells = [features[n + m, :, i, j] for _, i, j in ranked[:3]]
            rows.append(sum(w * cell for w, cell in zip(weights, cells, strict=True)))
        x = torch.stack([rows[0], *map(model.video_encoder.norm, rows[1:])])[None]
        found = encoder(x + sinusoid(count + 1, D, x))[0, 0]
        fused.append(model.fuse_tokens(torch.cat([video[b], found])))
        n += count
    fine, coarse = unit(paragraph) @ unit(torch.stack(fused)).t(), unit(paragraph) @ unit(video).t()
    losses = model.loss(batch)
    same = torch.eye(3) > 0
    expected = triplet_loss(fine, same, drawn.negatives[1], 0.2, 20)
    expected = expected + 0.04 * nce_loss(fine * model.log_scale.exp(), same)
    torch.testing.assert_close(losses["global"], expected)
    pairs = [(coarse[i, j] - fine[i, j]).item() ** 2 for i in range(3) for j in range(3)]
    assert losses["grrm"].item() == pytest.approx(np.mean(pairs))
    model.zero_grad()
    losses["grrm"].backward()
    assert model.fuse_tokens.weight.grad is None
    assert model.text_encoder.token.grad.any()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_time_loss_by_loops(reduction: str) -> None:
    """Eq. 20-22: the best moment of P^f and of P^r is a pseudo-label, its scaled IoU the soft label of every moment."""
    model, batch = make_model(reduction=reduction), random_batch()
    h, clips = model.text(batch).sentences, model.project(batch.video)
    moments = model(clips, h, batch.sentence_mask, sync=True)
    logits, terms = as_maps(moments.logits), []
    for synced in map(as_maps, moments.synced):
        for n in range(sum(SENTENCES)):
            cells = [(i, j) for i in range(K) for j in range(i, K)]
            a, b = max(cells, key=lambda cell: synced[n, cell[0], cell[1]].item())
            overlaps = temporal_iou_map(torch.tensor([[[a / K, (b + 1) / K]]], dtype=torch.float64), K)[0, 0]
            for i, j in cells:
                target = min(max((overlaps[i, j].item() - 0.5) / 0.5, 0), 1)
                p = logits[n, i, j].sigmoid().item()
                terms.append(-target * math.log(p) - (1 - target) * math.log(1 - p))
    count = 3 if reduction == "sum" else sum(SENTENCES) * K * (K + 1) / 2
    losses = losses_of(model, batch)
    assert losses["time"].item() == pytest.approx(sum(terms) / count)
    model.zero_grad()
    losses["time"].backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.forward_score.parameters())


def test_time_loss_by_hand() -> None:
    """Two segments: IoU of the first with itself 1, with the whole 1/2, with the second 0."""
    model = make_model(segments=2, reduction="sum")
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    synced = torch.tensor([[0.9, 0.8, 0.1]])
    softplus = lambda x: math.log(1 + math.exp(x))  # noqa: E731
    expected = softplus(-2.0) + softplus(-1.0) + softplus(0.5)
    assert model.time_loss(logits, synced, 1).item() == pytest.approx(expected)
    assert model.time_loss(logits, synced, 4).item() == pytest.approx(expected / 4)


# --- what is not in the paper


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "b", "a"]], ids=str)
def test_alignment_loss_by_loops(names: list[str]) -> None:
    """Every sentence with the clips of every video, as they are before any context; a video by log-sum-exp."""
    model, batch = make_model(alignment_weight=1.0), random_batch(videos=names)
    h, alignment = model.text(batch).sentences, model.alignment
    owner = [b for b, count in enumerate(SENTENCES) for _ in range(count)]
    of_video = np.zeros((len(owner), len(names)))
    for n in range(len(owner)):
        for b in range(len(names)):
            clips = [alignment.clips(F.relu(model.clips(batch.video[b, t]))) for t in range(T)]
            cosines = torch.stack([F.cosine_similarity(h[n], clip, dim=0) for clip in clips])
            of_video[n, b] = (cosines * alignment.scale.exp()).exp().sum().item()
    losses = []
    for n, own in enumerate(owner):
        videos = [b for b in range(len(names)) if b == own or names[b] != names[own]]
        sentences = [k for k, c in enumerate(owner) if k == n or names[c] != names[own]]
        losses.append(-math.log(of_video[n, own] / of_video[n, videos].sum()))
        losses.append(-math.log(of_video[n, own] / of_video[sentences, own].sum()))
    assert losses_of(model, batch)["alignment"].item() == pytest.approx(2 * np.mean(losses))


@pytest.mark.parametrize("changes", [{}, {"train_sync_heads": False}, {"reduction": "mean"}], ids=str)
def test_pseudo_span_loss_by_loops(changes: dict) -> None:
    """Soft labels around the spans read off, for P and, where their layers are trained, for P^f and P^r."""
    model, batch = make_model(0.2, alignment_weight=1.0, pseudo_span_weight=1.0, **changes), random_batch()
    there, h, clips = batch.sentence_mask, model.text(batch).sentences, model.project(batch.video)
    aligned = model.align(h, clips, batch)
    spans = similar_spans(own_video(aligned, there), model.config.pseudo_span_share)
    moments = model(clips, h, there, aligned, sync=True)
    trained = moments.synced if changes.get("train_sync_heads", True) else []
    expected = []
    for n, (start, end) in enumerate(spans.tolist()):
        for P in map(as_maps, [moments.logits.sigmoid(), *trained]):
            for i in range(K):
                for j in range(i, K):
                    shared = max(0, min(end, (j + 1) / K) - max(start, i / K))
                    overlap = shared / (max(end, (j + 1) / K) - min(start, i / K))
                    label = min(max((overlap - 0.5) / 0.5, 0), 1)
                    p = P[n, i, j].item()
                    expected.append(-label * math.log(p) - (1 - label) * math.log(1 - p))
    total = sum(expected) / (len(spans) * K * (K + 1) / 2 if changes.get("reduction") == "mean" else len(batch))
    assert losses_of(model, batch)["pseudo_span"].item() == pytest.approx(total)


def test_similarity_map_by_loops() -> None:
    """The sum of a moment's similarities less the video's mean, and its length, through one layer."""
    layer = with_random_weights(SimilarityMap(D), 0.4)
    similarity = torch.randn(3, K, dtype=torch.float64, requires_grad=True)
    listed = layer(similarity)
    found = as_maps(listed)
    less = similarity.detach() - similarity.detach().mean(1, keepdim=True)
    for i in range(K):
        for j in range(i, K):
            both = torch.stack([less[:, i : j + 1].sum(1), torch.full((3,), j - i + 1.0, dtype=torch.float64)], 1) / K
            torch.testing.assert_close(found[:, :, i, j], layer.project(both))
    listed.sum().backward()
    assert similarity.grad is None


def test_moments_are_told_how_similar_their_clips_are() -> None:
    """The map is added to the fused features, each sentence's with its own video, before the context."""
    model, batch = make_model(alignment_weight=1.0, context="none"), random_batch()
    h, clips, there = model.text(batch).sentences, model.project(batch.video), batch.sentence_mask
    aligned = model.align(h, clips, batch)
    with_map, without = model(clips, h, there, aligned), model(clips, h, there)
    owner = [b for b, count in enumerate(SENTENCES) for _ in range(count)]
    own = torch.stack([aligned[n, b] for n, b in enumerate(owner)]).view(-1, K, T // K).mean(2)
    torch.testing.assert_close(with_map.features - without.features, model.similarity(own))


def test_the_longest_moment_above_a_level_can_win() -> None:
    """By hand: the layer asks for similarities of 0.3 above the mean; a short and a very similar moment do not win."""
    layer = SimilarityMap(8).double()
    layer.project.weight.data[:] = torch.tensor([1.0, -0.3])
    similarity = torch.tensor([[0.0, 1.4, 1.0, 1.2, 0.0, 0.0]], dtype=torch.float64) + 3
    best = layer(similarity)[0, :, 0].argmax()
    assert torch.triu_indices(6, 6)[:, best].tolist() == [1, 3]


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
