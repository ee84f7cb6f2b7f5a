"""Cross-attention of queries with anchors over a video's clips, with the two statistics that losses are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from ._checks import accumulate_dtype, check_floating, check_same_device, check_same_dtype, check_shape
from ._registry import autocast_like_conv, define, differentiable, no_second_derivative
from .temporal_iou import check_intervals


@dataclass(frozen=True)
class AttentionStats:
    """What losses need to know of an attention over clips, averaged over the heads. All are differentiable.

    Attributes:
        centroid: [B, Q], the attended clip position ``sum_t t * alpha(t)``, t = 0 .. T - 1 (SiamGTR, Eq. 9).
        mass: [B, Q], the attention inside each query's interval (SiamGTR, s_att of Eq. 8 and Eq. A.3); None where no
            intervals were given.
        weights: [B, H, Q, T], the attention itself, of every head; None unless asked for.

    The first two are float32 (float64 for float64 inputs), the weights have the inputs' dtype.
    """

    centroid: Tensor
    mass: Tensor | None = None
    weights: Tensor | None = None


register_dataclass(AttentionStats)  # so that torch.export and vmap know what it holds


def anchor_cross_attention(
    q_content: Tensor,
    q_pos: Tensor,
    k_content: Tensor,
    k_pos: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    intervals: Tensor | None = None,
    need_weights: bool = False,
) -> tuple[Tensor, AttentionStats]:
    """Attention whose logits are ``(q_content . k_content + q_pos . k_pos) / sqrt(d + e)``, over T clips.

    That is attention over the per-head concatenation of content and position, without building it. The statistics are
    summed up on the way, so that losses on the attention need no attention matrix; backward recomputes it in blocks.

    Source: SiamGTR, Eq. 7; Conditional DETR (Meng et al., ICCV 2021), section 3.3; DAB-DETR (Liu et al., ICLR 2022).

    Args:
        q_content, q_pos: floating [B, H, Q, d] and [B, H, Q, e], queries of H heads.
        k_content: [B, H, T, d].
        k_pos: [B, H, T, e], or [1, H, T, e] for the whole batch.
        v: [B, H, T, f].
        key_mask: bool [B, T], true on clips that take part; all do if None. A query none of whose clips take part
            gets zeros.
        intervals: [B, Q, 2], first and last clip position of each query's interval, start <= end; clip t is inside if
            start <= t <= end. Any real dtype. Constants: they get no gradient.
        need_weights: also return the attention.

    Returns:
        [B, H, Q, f] in the inputs' dtype, and :class:`AttentionStats`. Under autocast the inputs are cast to its dtype.

    Raises:
        ValueError: wrong shape, dtype or device.
        RuntimeError: an interval whose end lies before its start (on CUDA: a device-side assertion).
    """
    tensors = {"q_content": q_content, "q_pos": q_pos, "k_content": k_content, "k_pos": k_pos, "v": v}
    check_floating("q_content", q_content)
    check_shape("q_content", q_content, ("B", "H", "Q", "d"))
    check_shape("k_content", k_content, ("B", "H", "T", "d"))
    check_shape("q_pos", q_pos, ("B", "H", "Q", "e"))
    B, H, Q, d = q_content.shape
    T, e = k_content.shape[2], q_pos.shape[3]
    check_shape("q_pos", q_pos, (B, H, Q, "e"))
    check_shape("k_content", k_content, (B, H, "T", d))
    if k_pos.shape not in ((B, H, T, e), (1, H, T, e)):
        raise ValueError(
            f"k_pos has shape {list(k_pos.shape)}; it must be [B, H, T, e] = {[B, H, T, e]} or {[1, H, T, e]}"
        )
    check_shape("v", v, (B, H, T, "f"))
    for name, tensor in tensors.items():
        check_same_device(name, tensor, "q_content", q_content)
        check_same_dtype(name, tensor, "q_content", q_content)
    if d + e == 0:
        raise ValueError("q_content and q_pos have no channels; d + e must be 1 or more")
    if key_mask is not None:
        check_shape("key_mask", key_mask, (B, T))
        check_same_device("key_mask", key_mask, "q_content", q_content)
        if key_mask.dtype != torch.bool:
            raise ValueError(f"key_mask has dtype {key_mask.dtype}; it must be bool, true on clips that take part")
    if intervals is not None:
        check_shape("intervals", intervals, (B, Q, 2))
        check_same_device("intervals", intervals, "q_content", q_content)
        if intervals.is_complex():
            raise ValueError(f"intervals has dtype {intervals.dtype}; it must be real, clip positions")
        if intervals.requires_grad:
            raise ValueError("intervals requires a gradient, which it does not get; pass intervals.detach()")
        intervals = intervals.to(torch.float64)  # exact positions; autocast leaves float64 alone
    out, centroid, mass, weights = torch.ops.vpgfast.anchor_cross_attention(
        q_content, q_pos, k_content, k_pos, v, key_mask, intervals, need_weights
    )
    return out, AttentionStats(centroid, mass if intervals is not None else None, weights if need_weights else None)


def _attention(
    q_content: Tensor, q_pos: Tensor, k_content: Tensor, k_pos: Tensor, key_mask: Tensor | None
) -> tuple[Tensor, float]:
    """Attention [B, H, Q, T] and the logits' scale."""
    scale = 1 / math.sqrt(q_content.shape[3] + q_pos.shape[3])
    logits = (q_content @ k_content.mT + q_pos @ k_pos.mT) * scale
    if key_mask is None:
        return logits.softmax(-1) if logits.shape[-1] else logits, scale
    keep = key_mask[:, None, None]
    weights = logits.masked_fill(~keep, -torch.inf).softmax(-1)
    return torch.where(keep.any(-1, keepdim=True), weights, 0), scale


def _inside(intervals: Tensor, T: int) -> Tensor:
    """Whether clip t lies in a query's interval, [B, Q, T]."""
    check_intervals("anchor_cross_attention", "intervals", intervals)
    t = torch.arange(T, device=intervals.device)
    return (intervals[..., :1] <= t) & (t <= intervals[..., 1:])


def _reference(
    q_content: Tensor,
    q_pos: Tensor,
    k_content: Tensor,
    k_pos: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    intervals: Tensor | None,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = accumulate_dtype(v.dtype)
    q_c, q_p, k_c, k_p = (t.to(compute) for t in (q_content, q_pos, k_content, k_pos))
    weights, _ = _attention(q_c, q_p, k_c, k_p, key_mask)
    T = v.shape[2]
    centroid = (weights * torch.arange(T, device=v.device, dtype=compute)).sum(-1).mean(1)
    mass = centroid.new_empty(0)
    if intervals is not None:
        mass = (weights * _inside(intervals, T)[:, None]).sum(-1).mean(1)
    out = empty_out(q_content, v).copy_(weights @ v.to(compute))
    return out, centroid, mass, weights.to(v.dtype) if need_weights else v.new_empty(0)


def _reference_backward(
    grad_out: Tensor,
    grad_centroid: Tensor,
    grad_mass: Tensor,
    grad_weights: Tensor,
    q_content: Tensor,
    q_pos: Tensor,
    k_content: Tensor,
    k_pos: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    intervals: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    compute = accumulate_dtype(v.dtype)
    inputs = (q_content, q_pos, k_content, k_pos, v)
    q_c, q_p, k_c, k_p, wide_v = (t.to(compute) for t in inputs)
    weights, scale = _attention(q_c, q_p, k_c, k_p, key_mask)
    H, T = v.shape[1:3]
    grad_out = grad_out.to(compute)
    by_weight = grad_out @ wide_v.mT
    by_weight += grad_centroid[:, None, :, None] / H * torch.arange(T, device=v.device, dtype=compute)
    if intervals is not None:
        by_weight += grad_mass[:, None, :, None] / H * _inside(intervals, T)[:, None]
    if grad_weights.numel():
        by_weight += grad_weights
    by_logit = weights * (by_weight - (weights * by_weight).sum(-1, keepdim=True)) * scale
    by_k_pos = by_logit.mT @ q_p
    if k_pos.shape[0] != v.shape[0]:
        by_k_pos = by_k_pos.sum(0, keepdim=True)
    grads = (by_logit @ k_c, by_logit @ k_p, by_logit.mT @ q_c, by_k_pos, weights.mT @ grad_out)
    return tuple(empty_grad(t).copy_(g) for t, g in zip(inputs, grads, strict=True))  # type: ignore[return-value]


def empty_out(q: Tensor, v: Tensor) -> Tensor:
    """[B, H, Q, f] that lies in memory as [B, Q, H, f]: joining the heads again then costs nothing."""
    B, H, Q, _ = q.shape
    return q.new_empty(B, Q, H, v.shape[3]).transpose(1, 2)


def empty_grad(tensor: Tensor) -> Tensor:
    """Laid out as ``tensor`` where its channels lie side by side; else contiguous."""
    grad = torch.empty_like(tensor)
    return grad if grad.stride(3) == 1 else torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _fake(
    q_content: Tensor,
    q_pos: Tensor,
    k_content: Tensor,
    k_pos: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    intervals: Tensor | None,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, H, Q, _ = q_content.shape
    stats = q_content.new_empty(B, Q, dtype=accumulate_dtype(v.dtype))
    mass = torch.empty_like(stats) if intervals is not None else stats.new_empty(0)
    weights = v.new_empty(B, H, Q, v.shape[2]) if need_weights else v.new_empty(0)
    return empty_out(q_content, v), stats, mass, weights


def _fake_backward(
    grad_out: Tensor, grad_centroid: Tensor, grad_mass: Tensor, grad_weights: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    return tuple(empty_grad(tensor) for tensor in inputs[:5])


define(
    "anchor_cross_attention(Tensor q_content, Tensor q_pos, Tensor k_content, Tensor k_pos, Tensor v, "
    "Tensor? key_mask, Tensor? intervals, bool need_weights) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    triton="anchor_cross_attention:forward",
)
define(
    "anchor_cross_attention_backward(Tensor grad_out, Tensor grad_centroid, Tensor grad_mass, Tensor grad_weights, "
    "Tensor q_content, Tensor q_pos, Tensor k_content, Tensor k_pos, Tensor v, Tensor? key_mask, Tensor? intervals) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=_reference_backward,
    fake=_fake_backward,
    triton="anchor_cross_attention:backward",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    by_input = torch.ops.vpgfast.anchor_cross_attention_backward(*grads, *ctx.saved_tensors)
    return *by_input, None, None, None


differentiable("anchor_cross_attention", _backward, _save)
autocast_like_conv("anchor_cross_attention")
no_second_derivative("anchor_cross_attention_backward")
