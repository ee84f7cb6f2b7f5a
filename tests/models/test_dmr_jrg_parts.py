"""DMR-JRG's retrieval branch and its local dimension, against loops and torch's own layers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import with_random_weights
from small_dmr_jrg import (
    SENTENCES,
    D,
    K,
    T,
    as_maps,
    copy_attention,
    copy_feed_forward,
    fixed_draws,
    losses_of,
    make_model,
    random_batch,
    torchs_encoder,
)
from torch import Tensor

from benchmarks.field_dmr_jrg import FieldDMRJRG
from vpgfast.models.dmr_jrg import DMRJRG
from vpgfast.models.dmr_jrg_parts import (
    ClassEncoder,
    mean_of_paragraphs,
    nce_loss,
    rank_loss,
    rewards_of,
    triplet_loss,
)
from vpgfast.models.layers import sinusoid, to_paragraphs
from vpgfast.models.method import RetrievalMethod
from vpgfast.models.moment_map import MomentMap, Pointwise, fuse
from vpgfast.models.reconstructor import word_nll

# --- the retrieval branch


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
