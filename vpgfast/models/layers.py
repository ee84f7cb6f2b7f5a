"""Layers that several methods share. Sequences are [B, T, d] with a bool mask [B, T], true on real elements.

Padding never reaches a real element, and a sequence without any real element gives zeros, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vpgfast.data.text import UNKNOWN
from vpgfast.data.types import Batch


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def masked_softmax(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Softmax over the elements that ``mask`` (bool, broadcastable to ``scores``) keeps; the others get exactly 0.

    Where nothing is kept the result is all zeros, and gradients stay finite.
    """
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(dim) * mask


def masked_log_softmax(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Log-softmax over the elements that ``mask`` keeps; the others get a very low, finite number."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).log_softmax(dim).masked_fill(~mask, lowest)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the rows of [B, L, D] that bool [B, L] ``mask`` says there are, [B, D]; 0 where there is none."""
    return x.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def same_videos(batch: Batch) -> Tensor:
    """bool [B, B]: which items of a batch are sentences of one video."""
    numbers = {paragraph.video_id: i for i, paragraph in enumerate(batch.paragraphs)}
    video = torch.tensor([numbers[p.video_id] for p in batch.paragraphs], device=batch.video.device)
    return video.unsqueeze(0) == video.unsqueeze(1)


def sinusoid(length: int, dim: int, like: Tensor) -> Tensor:
    """Sinusoidal positions [length, dim] of the transformer (Vaswani et al., 2017), sine and cosine side by side."""
    rate = 10000.0 ** (-torch.arange(0, dim, 2, device=like.device, dtype=torch.float64) / dim)
    angle = torch.arange(length, device=like.device).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).to(like.dtype)


class Dropout(nn.Dropout):
    """``nn.Dropout`` whose random bits cost a quarter of the time on CPU (there they are a tenth of a training step).

    The probability is rounded to a multiple of 2^-16. The mask follows torch's generator, as always.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training or self.p == 0:
            return super().forward(x)
        draws = torch.randint(-(2**63), 2**63 - 1, ((x.numel() + 3) // 4,)).view(torch.int16)
        kept = draws[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * (kept * (1 / (1 - self.p))).to(x.dtype)


class _ManyRows(torch.autograd.Function):
    """x w^T + b of many rows on CPU, as oneDNN's convolution with a kernel of 1 computes it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _ManyRows.product(x, weight, bias).detach()  # no view: a ReLU may write over it

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            _ManyRows.product(grad.contiguous(), weight.t().contiguous()) if for_x else None,
            grad.t() @ x if for_weight else None,
            grad.sum(0) if for_bias else None,
        )

    @staticmethod
    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # [1, in, rows, 1]: rows of x are pixels in channels_last order, nothing is copied.
        image = x[None, :, None].permute(0, 3, 1, 2)
        return F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1).view(len(x), -1)


class Linear(nn.Linear):
    """``nn.Linear`` that keeps several CPU cores busy on many rows.

    There PyTorch's product (MKL's) gains too little from a second core; oneDNN's convolution, whose pixels are the
    rows, does not (on 16,000 rows and two cores of an AMD EPYC 1.2 to 1.5 times as fast; on one core the same).
    """

    LEAST_ROWS = 4096  # with fewer the two are equal, or the convolution's preparations weigh more

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if not self.has_many_rows(x):
            return super().forward(x)
        rows = _ManyRows.apply(x.reshape(-1, self.in_features), self.weight, self.bias)
        return rows if x.dim() == 2 else rows.view(*x.shape[:-1], self.out_features)

    def has_many_rows(self, x: Tensor) -> bool:
        """Whether ``x`` is a case for the convolution."""
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.numel() >= self.LEAST_ROWS * self.in_features
            and torch.get_num_threads() > 1
            and torch.backends.mkldnn.is_available()
            and not torch.is_autocast_enabled("cpu")
        )


class WordEmbedding(nn.Module):
    """Given word vectors, kept as they are, but for one trained vector that all unknown words share; padding is zero.

    Args:
        vectors: float32 [V, d_w]; row 0 is padding, row 1 the value from which the unknown word starts.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__()
        table = torch.as_tensor(vectors, dtype=torch.float32).clone()
        self.unknown = nn.Parameter(table[UNKNOWN].clone())
        table[:2] = 0
        self.register_buffer("vectors", table)
        self.vectors: Tensor

    def forward(self, words: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., d_w]."""
        return torch.where((words == UNKNOWN).unsqueeze(-1), self.unknown, F.embedding(words, self.vectors))


class CharCNN(nn.Module):
    """A word from its characters: embeddings, convolutions of several widths, ReLU, maximum over the word.

    A word shorter than a kernel is followed by zeros; padding characters start no window, so the length to which words
    are padded does not matter.

    Args:
        num_chars: size of the character table; 0 is padding (always zero).
        dim: width of a character embedding.
        kernels, filters: width of each convolution and the number of its filters.
    """

    def __init__(
        self,
        num_chars: int,
        dim: int = 50,
        kernels: Sequence[int] = (1, 2, 3, 4),
        filters: Sequence[int] = (10, 20, 30, 40),
    ) -> None:
        super().__init__()
        self.out_dim = sum(filters)
        self.embedding = nn.Embedding(num_chars - 1, dim)  # no row for padding
        self.weights = nn.ParameterList(torch.empty(f, dim, k) for k, f in zip(kernels, filters, strict=True))
        self.bias = nn.Parameter(torch.zeros(self.out_dim))
        for weight in self.weights:
            nn.init.kaiming_uniform_(weight, nonlinearity="relu")

    def forward(self, chars: Tensor) -> Tensor:
        """int64 [..., K] -> [..., sum(filters)]; zeros for a word of no characters."""
        words = chars.shape[:-1]
        length = max(chars.shape[-1], 1)
        chars = F.pad(chars, (0, length - chars.shape[-1])).reshape(-1, length)
        # A convolution of looked-up embeddings is a sum of looked-up products: the multiplication is done once for each
        # character of the alphabet and each place in a kernel, instead of once for each character of the text.
        places = [place for weight in self.weights for place in weight.unbind(2)]
        products = F.pad(self.embedding.weight @ torch.cat(places).t(), (0, 0, 1, 0))
        looked_up = iter(F.embedding(chars, products).split([len(place) for place in places], dim=-1))
        outputs = []
        for weight in self.weights:
            windows = next(looked_up)
            for j in range(1, weight.shape[2]):  # the j-th character of each window; zeros stand behind the last
                windows = windows + F.pad(next(looked_up)[:, j:], (0, 0, 0, min(j, length)))
            outputs.append(windows)
        starts = (chars > 0).unsqueeze(-1)
        best = torch.cat(outputs, -1).masked_fill(~starts, -torch.inf).amax(1)
        return (best + self.bias).relu().view(*words, self.out_dim)


class AttentionPooling(nn.Module):
    """A sequence as one vector: the mean of its elements weighted by softmax(w . x_i) (SeqPAN Eq. 19)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, d] and [B, T] -> [B, d]; zeros for an empty sequence."""
        weights = masked_softmax(self.score(x).squeeze(-1), mask)
        return (weights.unsqueeze(1).to(x.dtype) @ x).squeeze(1)


class SeparableConvLayer(nn.Module):
    """Pre-norm residual layer: x + dropout(ReLU(pointwise(depthwise(LayerNorm(x))))), of the same length."""

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"the kernel of a same-length convolution must be odd, got {kernel}")
        self.norm = nn.LayerNorm(dim)
        self.depthwise = nn.Conv2d(dim, dim, (1, kernel), padding=(0, kernel // 2), groups=dim, bias=False)
        self.pointwise = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, d] and [B, T] -> [B, T, d]."""
        if x.shape[1] == 0:
            return x
        y = self.norm(x).masked_fill(~mask.unsqueeze(-1), 0)
        # [B, T, d] is [B, d, 1, T] in channels_last order: as a 2D convolution it runs without a copy, on CPU in half
        # the time of Conv1d.
        y = self.depthwise(y.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        return x + self.dropout(self.pointwise(y).relu())


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, key_mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention of several heads: softmax(q.k / sqrt(d / heads)) v over the keys that are real.

    Args:
        query: [B, Q, d]; key, value: [B, K, d].
        heads: number of equal pieces that d is cut into.
        key_mask: bool [B, K], None if all keys are real. Where a row holds no key at all the result is zero.
        dropout: probability of dropping an attention weight.

    Returns:
        [B, Q, d].
    """
    if key_mask is None:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
    any_key = key_mask.any(1)
    # Attention kernels work on 16 keys at a time; with 15, or 17, some are several times slower than with 16 or 32.
    missing = -key.shape[1] % 16
    if missing:
        key, value = F.pad(key, (0, 0, 0, missing)), F.pad(value, (0, 0, 0, missing))
        key_mask = F.pad(key_mask, (0, missing))
    allowed = key_mask | ~any_key.unsqueeze(1)  # no row without a key: its softmax would be 0 / 0
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, allowed[:, None, None, :], dropout)
    return out.transpose(1, 2).flatten(2).masked_fill(~any_key[:, None, None], 0)


class MultiHeadAttention(nn.Module):
    """Multi-head attention of one sequence to another, or to itself, with its four projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"a width of {dim} cannot be split into {heads} heads")
        self.heads = heads
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.out = Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """x [B, Q, d], context [B, K, d], context_mask [B, K] -> [B, Q, d]."""
        key, value = self.key_value(context).chunk(2, -1)
        return self.out(attend(self.query(x), key, value, self.heads, context_mask))


class _ReluInPlace(torch.autograd.Function):
    """ReLU written over its argument, and its gradient over the one that it is given: nobody else may need these."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.relu_())
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU and dropout between them, as in Vaswani et al. (2017)."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = Linear(dim, hidden)
        self.dropout = Dropout(dropout)
        self.out = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        # What is hidden is the widest thing there is: nothing is kept of it twice. As rows, which are no view.
        hidden = self.dropout(_ReluInPlace.apply(self.hidden(x.reshape(-1, x.shape[-1]))))
        return self.out(hidden).view(x.shape)


class Residual(nn.Module):
    """LayerNorm(x + dropout(what a layer makes of x)), the post-norm of Vaswani et al. (2017)."""

    def __init__(self, layer: nn.Module, dim: int, dropout: float) -> None:
        super().__init__()
        self.layer = layer
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        """x [..., D], and what else the layer takes."""
        return self.norm(x + self.dropout(self.layer(x, *rest)))


def feed_forward(dim: int, hidden: int, dropout: float) -> Residual:
    """A post-norm layer of two linear ones with a ReLU between them: [..., D] -> [..., D]."""
    return Residual(FeedForward(dim, hidden, dropout), dim, dropout)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer: attention, then feed-forward, each with dropout and a residual.

    Args:
        dim, heads, dropout: as everywhere.
        hidden: width of the feed-forward layer's hidden ReLU layer; ``None`` makes it a single linear layer.
    """

    def __init__(self, dim: int, heads: int, dropout: float, hidden: int | None = None) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, heads)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.feed_forward = nn.Linear(dim, dim) if hidden is None else FeedForward(dim, hidden, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B, Q, d] attends to itself, or to ``context`` [B, K, d]; ``mask`` is that of what is attended to."""
        normed = self.norm_attention(x)
        attended = normed if context is None else self.norm_attention(context)
        x = x + self.dropout(self.attention(normed, attended, mask))
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def init_linear(module: nn.Module) -> None:
    """For ``Module.apply``: Xavier-uniform weights and zero biases in every linear layer."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def weight_decay_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups for AdamW: every trained parameter decays but biases and those of normalisation layers.

    Returns:
        One or two dicts with ``params`` and ``weight_decay``; each parameter is in exactly one, in the order of
        ``module.parameters()``.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    exempt = {
        id(parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(owner, norms) or "bias" in name
    }
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def in_one_go(words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The words of paragraphs without the padding between their sentences: [B, M, W] and mask -> [B, W'], mask."""
    words, mask = words.flatten(1), mask.flatten(1)
    order = mask.long().argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]
    return words.gather(1, order), mask.gather(1, order)


def to_paragraphs(x: Tensor, there: Tensor, fill: float = 0.0) -> Tensor:
    """Sentences [N, ...] to their places in paragraphs [B, M, ...], by bool [B, M]; ``fill`` where there is none."""
    return x.new_full((*there.shape, *x.shape[1:]), fill).index_put(there.nonzero().unbind(1), x)


class AnotherVideo(NamedTuple):
    """Another item of the batch for each item.

    Attributes:
        shift: by how much to roll the batch so that each item meets the other one.
        different: bool [B], whether that is of another video.
    """

    shift: int
    different: Tensor


def another_video(batch: Batch) -> AnotherVideo:
    """Drawn at random, the same shift for all."""
    names = [paragraph.video_id for paragraph in batch.paragraphs]
    shift = int(torch.randint(1, max(2, len(names)), ()))
    different = [name != names[i - shift] for i, name in enumerate(names)]
    return AnotherVideo(shift, torch.tensor(different, device=batch.video.device))
