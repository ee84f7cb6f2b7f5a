"""Each shared layer against a plain re-computation, value by value."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from vpgfast.models.layers import (
    AttentionPooling,
    CharCNN,
    Dropout,
    FeedForward,
    Linear,
    MultiHeadAttention,
    SeparableConvLayer,
    TransformerLayer,
    WordEmbedding,
    attend,
    init_linear,
    masked_log_softmax,
    masked_softmax,
    weight_decay_groups,
)


def lengths_to_mask(lengths, longest=None):
    return torch.arange(longest or max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def linear(x, layer):
    """x W' + b, by numpy."""
    y = x @ layer.weight.detach().numpy().T
    return y if layer.bias is None else y + layer.bias.detach().numpy()


def layer_norm(x, layer):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def plain_attention(q, k, v, heads):
    """[Q, d], [K, d], [K, d] -> [Q, d], head by head."""
    size = q.shape[1] // heads
    pieces = [slice(h * size, (h + 1) * size) for h in range(heads)]
    return np.concatenate([softmax(q[:, p] @ k[:, p].T / math.sqrt(size)) @ v[:, p] for p in pieces], 1)


def randomised(module, seed=0):
    """The module in float64 and evaluation mode, every parameter random (so that no bias is zero and no scale one)."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


# masked functions


def test_masked_softmax_by_hand():
    scores = torch.tensor([[0.0, math.log(2), 9.0]])
    result = masked_softmax(scores, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(result, torch.tensor([[1 / 3, 2 / 3, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nothing_kept_gives_zeros_and_finite_gradients(dtype):
    scores = torch.randn(2, 3, dtype=dtype, requires_grad=True)
    mask = torch.tensor([[False] * 3, [True, False, True]])
    soft, log_soft = masked_softmax(scores, mask), masked_log_softmax(scores, mask)
    assert (soft[0] == 0).all()
    assert soft[1, 1] == 0
    assert torch.isfinite(log_soft).all()
    (soft.sum() + torch.where(mask, log_soft, 0).sum()).backward()
    assert torch.isfinite(scores.grad).all()


def test_masked_log_softmax_is_the_log_of_masked_softmax():
    scores, mask = torch.randn(3, 4, 5, dtype=torch.float64), torch.rand(3, 4, 5) < 0.7
    mask[..., 0] = True
    for dim in (1, 2):
        soft, log_soft = masked_softmax(scores, mask, dim), masked_log_softmax(scores, mask, dim)
        torch.testing.assert_close(soft[mask].log(), log_soft[mask])
        assert (log_soft[~mask] < -1e300).all()


def test_masked_softmax_gradient():
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    scores = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: masked_softmax(s, mask), scores)


# dropout


def test_dropout_keeps_the_right_share_and_scales_it():
    torch.manual_seed(0)
    x = torch.ones(1000, 401, requires_grad=True)
    y = Dropout(0.2)(x)
    kept = y != 0
    assert torch.allclose(y[kept], torch.tensor(1.25))
    # Each place of the four drawn at a time by itself; 0.008 is six standard deviations of 0.4 / sqrt(100_250).
    for place in range(4):
        assert kept.flatten()[place::4].float().mean().item() == pytest.approx(0.8, abs=0.008)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_off_and_repeatable():
    x = torch.randn(7, 5)
    assert Dropout(0.0)(x) is x or torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(0.9).eval()(x), x)
    layer = Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dropout_keeps_shape_and_dtype(dtype):
    for x in (torch.randn(3, 5).to(dtype).t(), torch.empty(0, 4, dtype=dtype), torch.ones((), dtype=dtype)):
        y = Dropout(0.3)(x)
        assert y.shape == x.shape
        assert y.dtype == dtype


# words and characters


def test_word_embedding_trains_the_unknown_word_alone():
    vectors = np.array([[0, 0], [5, 6], [1, 2], [3, 4]], np.float32)
    layer = WordEmbedding(vectors)
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    words = torch.tensor([[2, 1, 3, 0]])
    torch.testing.assert_close(layer(words), torch.tensor([[[1.0, 2.0], [5.0, 6.0], [3.0, 4.0], [0.0, 0.0]]]))
    layer(words).sum().backward()
    optimiser.step()
    torch.testing.assert_close(layer(words), torch.tensor([[[1.0, 2.0], [4.0, 5.0], [3.0, 4.0], [0.0, 0.0]]]))
    assert vectors.tolist() == [[0, 0], [5, 6], [1, 2], [3, 4]]  # the caller's array is not ours to change


def plain_char_cnn(layer, word):
    """One word, character by character; every window starts at a character, zeros stand behind the last."""
    table = np.concatenate([np.zeros((1, layer.embedding.embedding_dim)), layer.embedding.weight.detach().numpy()])
    outputs = []
    for weight in layer.weights:
        filters, _, kernel = weight.shape
        padded = np.concatenate([table[word], np.zeros((kernel, table.shape[1]))])
        windows = [
            [float((padded[p : p + kernel].T * weight[f].detach().numpy()).sum()) for p in range(len(word))]
            for f in range(filters)
        ]
        outputs += [max(w) for w in windows]
    return np.maximum(np.array(outputs) + layer.bias.detach().numpy(), 0)


def test_char_cnn():
    layer = randomised(CharCNN(12, dim=3, kernels=(1, 2, 4), filters=(2, 3, 4)))
    words = [[1, 5, 7, 2, 2, 11], [3], [4, 4], [9, 8, 7, 6]]
    padded = torch.tensor([[w + [0] * (9 - len(w)) for w in words]])
    result = layer(padded)
    assert result.shape == (1, 4, 9)
    expected = np.stack([plain_char_cnn(layer, w) for w in words])
    assert (expected > 0).any()
    assert (expected == 0).any()
    np.testing.assert_allclose(result[0].detach().numpy(), expected, atol=1e-12)


def test_char_cnn_does_not_see_padding():
    layer = randomised(CharCNN(12, dim=3))
    short = torch.tensor([[[1, 5, 7], [2, 0, 0]]])
    torch.testing.assert_close(layer(torch.nn.functional.pad(short, (0, 6))), layer(short))
    for empty in (torch.zeros(1, 2, 5, dtype=torch.long), torch.zeros(1, 2, 0, dtype=torch.long)):
        assert torch.equal(layer(empty), torch.zeros(1, 2, 100, dtype=torch.float64))
    assert layer(torch.zeros(2, 0, 4, dtype=torch.long)).shape == (2, 0, 100)


def test_char_cnn_gradients_are_finite_with_an_empty_word():
    layer = CharCNN(12)
    layer(torch.tensor([[0, 0, 0], [3, 4, 0]])).sum().backward()
    for parameter in layer.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any()


# pooling, convolution, attention


def test_attention_pooling_by_hand():
    layer = AttentionPooling(2).double()
    with torch.no_grad():
        layer.score.weight.copy_(torch.tensor([[math.log(3), 0.0]]))
    # Weights 3^0 : 3^1 = 1/4 : 3/4; the third element is padding.
    x = torch.tensor([[[0.0, 8.0], [1.0, 4.0], [9.0, 9.0]]], dtype=torch.float64)
    torch.testing.assert_close(
        layer(x, torch.tensor([[True, True, False]])), torch.tensor([[0.75, 5.0]], dtype=torch.float64)
    )
    assert torch.equal(layer(x, torch.zeros(1, 3, dtype=torch.bool)), torch.zeros(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("length", [1, 2, 9])
def test_separable_conv_layer(length):
    dim, kernel = 4, 5
    layer = randomised(SeparableConvLayer(dim, kernel, dropout=0.5))
    x = torch.randn(1, length + 3, dim, dtype=torch.float64)
    result = layer(x, lengths_to_mask([length], length + 3))[0, :length].detach().numpy()

    real = x[0, :length].numpy()
    normed = np.pad(layer_norm(real, layer.norm), ((2, 2), (0, 0)))
    weight = layer.depthwise.weight.detach().numpy()[:, 0, 0]  # [d, kernel]
    convolved = np.array(
        [[sum(weight[c, j] * normed[t + j, c] for j in range(kernel)) for c in range(dim)] for t in range(length)]
    )
    np.testing.assert_allclose(result, real + np.maximum(linear(convolved, layer.pointwise), 0), atol=1e-12)


def test_separable_conv_layer_rejects_an_even_kernel():
    with pytest.raises(ValueError, match="odd, got 4"):
        SeparableConvLayer(8, 4, 0.1)


@pytest.mark.parametrize("keys", [1, 15, 16, 17])
def test_attend(keys):
    q, k, v = (torch.randn(2, n, 6, dtype=torch.float64) for n in (5, keys, keys))
    real = [keys, max(1, keys // 2)]
    result = attend(q, k, v, 3, lengths_to_mask(real, keys)).numpy()
    for b, n in enumerate(real):
        expected = plain_attention(q[b].numpy(), k[b, :n].numpy(), v[b, :n].numpy(), 3)
        np.testing.assert_allclose(result[b], expected, atol=1e-12)


@pytest.mark.parametrize("keys", [0, 3])
def test_attend_to_nothing_gives_zeros(keys):
    q = torch.randn(2, 4, 6, requires_grad=True)
    k, v = torch.randn(2, keys, 6, requires_grad=True), torch.randn(2, keys, 6, requires_grad=True)
    result = attend(q, k, v, 2, torch.zeros(2, keys, dtype=torch.bool))
    assert torch.equal(result, torch.zeros(2, 4, 6))
    result.sum().backward()
    for x in (q, k, v):
        assert torch.isfinite(x.grad).all()


def test_attend_gradient():
    q, k, v = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (2, 3, 3))
    mask = lengths_to_mask([3, 2])
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, 2, mask), (q, k, v))


def test_multi_head_attention_needs_fitting_heads():
    with pytest.raises(ValueError, match="width of 10 cannot be split into 4 heads"):
        MultiHeadAttention(10, 4)


def plain_multi_head(layer, x, context):
    key, value = np.split(linear(context, layer.key_value), 2, axis=1)
    return linear(plain_attention(linear(x, layer.query), key, value, layer.heads), layer.out)


@pytest.mark.parametrize("hidden", [None, 10])
@pytest.mark.parametrize("cross", [False, True])
def test_transformer_layer(hidden, cross):
    layer = randomised(TransformerLayer(6, 2, dropout=0.5, hidden=hidden))
    x, context = torch.randn(1, 5, 6, dtype=torch.float64), torch.randn(1, 4, 6, dtype=torch.float64)
    real = 3
    mask = lengths_to_mask([real], 4 if cross else 5)
    result = layer(x, mask, context if cross else None)[0].detach().numpy()

    x = x[0].numpy()
    other = context[0, :real].numpy() if cross else x[:real]
    normed = layer_norm(other, layer.norm_attention)
    x = x + plain_multi_head(layer.attention, layer_norm(x, layer.norm_attention), normed)
    y = layer_norm(x, layer.norm_feed_forward)
    if hidden is None:
        y = linear(y, layer.feed_forward)
    else:
        y = linear(np.maximum(linear(y, layer.feed_forward.hidden), 0), layer.feed_forward.out)
    np.testing.assert_allclose(result, x + y, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (3, 2, 5, 6)])
def test_linear(shape, bias, monkeypatch):
    """By oneDNN's convolution and by the product: the same result, its layout and gradients."""
    monkeypatch.setattr(Linear, "LEAST_ROWS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer = Linear(6, 10, bias=bias)
    x = torch.randn(2, *shape).transpose(0, -1)[..., 0].movedim(0, -1).requires_grad_()  # not contiguous
    assert x.shape == shape
    assert layer.has_many_rows(x)
    ours, theirs = layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert ours.is_contiguous()
    assert "ManyRows" in repr(ours.grad_fn) + repr(ours.grad_fn.next_functions)
    torch.testing.assert_close(ours, theirs)
    for grad in (torch.randn(*shape[:-1], 10), torch.ones(1).expand(*shape[:-1], 10)):
        wanted = [x, *layer.parameters()]
        torch.testing.assert_close(torch.autograd.grad(ours, wanted, grad, retain_graph=True),
                                   torch.autograd.grad(theirs, wanted, grad, retain_graph=True))  # fmt: skip
    once = [torch.autograd.grad(y.square().sum(), x, create_graph=True)[0] for y in (ours, theirs)]
    twice = [torch.autograd.grad(g.square().sum(), layer.weight)[0] for g in once]
    torch.testing.assert_close(*twice, rtol=1e-4, atol=1e-4)
    # The first layer of a network: features need no gradient.
    (ours,) = torch.autograd.grad(layer(x.detach()).sum(), layer.weight)
    torch.testing.assert_close(ours, x.detach().reshape(-1, 6).sum(0).expand(10, 6))


def test_linear_takes_the_convolution_for_many_rows_of_float32_on_several_cores_alone(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer = Linear(1, 2)
    many = torch.ones(Linear.LEAST_ROWS, 1)
    assert layer.has_many_rows(many)
    assert not layer.has_many_rows(many[1:])
    assert not layer.has_many_rows(many.double())
    assert not layer.has_many_rows(many.to("meta"))
    with torch.autocast("cpu"):
        assert not layer.has_many_rows(many)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not layer.has_many_rows(many)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (0, 6)])
def test_feed_forward(shape):
    """Its ReLU works in place, forward and backward: result and gradients are those of a plain one, twice over."""
    layer = randomised(FeedForward(6, 10, dropout=0.0)).train()
    plain = nn.Sequential(layer.hidden, nn.ReLU(), layer.out)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    for _ in range(2):
        ours, theirs = layer(x), plain(x)
        torch.testing.assert_close(ours, theirs)
        grad = torch.randn(shape, dtype=torch.float64)
        kept = grad.clone()
        torch.testing.assert_close(
            torch.autograd.grad(ours, wanted, grad), torch.autograd.grad(theirs, wanted, grad), atol=1e-12, rtol=1e-9
        )
        assert grad.equal(kept)
    assert torch.autograd.gradcheck(layer, x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x))


# parameters


def test_init_linear():
    layer = nn.Sequential(nn.Linear(30, 50), nn.Linear(4, 4, bias=False)).apply(init_linear)
    assert not layer[0].bias.any()
    bound = math.sqrt(6 / 80)  # Xavier: uniform within sqrt(6 / (in + out))
    assert bound * 0.95 < layer[0].weight.abs().max() <= bound


def test_weight_decay_groups():
    shared = nn.Linear(2, 2)
    module = nn.ModuleDict(
        {
            "linear": shared,
            "again": nn.Sequential(shared),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
            "norm": nn.LayerNorm(2),
            "batch_norm": nn.BatchNorm1d(2),
            "gru": nn.GRU(2, 2),
            "words": WordEmbedding(np.zeros((3, 2), np.float32)),
        }
    )
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, exempt = weight_decay_groups(module, 0.01)
    assert decayed["weight_decay"] == 0.01
    assert exempt["weight_decay"] == 0
    assert [names[id(p)] for p in decayed["params"]] == [
        "linear.weight",
        "gru.weight_ih_l0",
        "gru.weight_hh_l0",
        "words.unknown",
    ]
    assert [names[id(p)] for p in exempt["params"]] == [
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "batch_norm.weight",
        "batch_norm.bias",
        "gru.bias_ih_l0",
        "gru.bias_hh_l0",
    ]


def test_weight_decay_groups_leaves_out_an_empty_group():
    assert [g["weight_decay"] for g in weight_decay_groups(nn.LayerNorm(3), 0.1)] == [0.0]
