"""temporal_iou_map in Triton. See ``vpgfast/ops/temporal_iou_map.py`` for what it computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._intervals import cell_iou
from ._launch import compute_dtype, on_device

BLOCK = 1024


@triton.jit(do_not_specialize=["T"])  # a T of 1 would become a constant without methods
def _forward(spans, out, T, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    parts = tl.cdiv(T.to(tl.int64) * T, BLOCK)  # one axis for all blocks: the others end at 65,535
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    cell = part * BLOCK + tl.arange(0, BLOCK)
    i, j = cell // T, cell % T
    iou = cell_iou(spans, row, i, j, T, COMPUTE)
    value = tl.where(j >= i, iou, 0.0).to(out.dtype.element_ty)
    tl.store(out + row * T * T + cell, value, mask=cell < T.to(tl.int64) * T)


def forward(spans: Tensor, T: int) -> Tensor:
    B, M, _ = spans.shape
    spans = spans.contiguous()
    out = torch.empty(B, M, T, T, dtype=spans.dtype, device=spans.device)
    if out.numel():
        with on_device(spans):
            _forward[(B * M * triton.cdiv(T * T, BLOCK),)](spans, out, T, COMPUTE=compute_dtype(spans), BLOCK=BLOCK)
    return out
