"""Every op refuses a wrong tensor by naming it, what it was and what it must be. What else each op refuses is tested
beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vpgfast import ops

SPANS = torch.tensor([[[0.0, 0.5], [0.2, 0.9], [0.1, 0.3]]]).repeat(2, 1, 1)
SQUARE = torch.ones(4, 4, dtype=torch.bool)
CALLS: dict[str, dict[str, Any]] = {
    "temporal_iou": {"a": SPANS, "b": SPANS},
    "temporal_giou": {"a": SPANS, "b": SPANS},
    "temporal_iou_map": {"spans": SPANS, "T": 4},
    "temporal_nms": {"spans": SPANS, "scores": torch.zeros(2, 3), "threshold": 0.5},
    "temporal_map_bce": {
        "logits": torch.zeros(2, 3, 4, 4),
        "spans": SPANS,
        "mask": SQUARE,
        "sentence_mask": torch.ones(2, 3, dtype=torch.bool),
    },
    "temporal_map_max_pool": {"x": torch.zeros(2, 3, 4), "spans": torch.tensor([[0, 1], [2, 3]])},
    "temporal_map_conv2d": {
        "x": torch.zeros(2, 3, 4, 4),
        "weight": torch.zeros(5, 3, 3, 3),
        "bias": torch.zeros(5),
        "in_mask": SQUARE,
        "out_mask": SQUARE,
        "padding": 1,
    },
    "temporal_map_conv2d_cells": {
        "x": torch.zeros(2, 6, 3),
        "weight": torch.zeros(5, 3, 3, 3),
        "bias": torch.zeros(5),
        "in_cells": torch.arange(6),
        "out_cells": torch.arange(4),
        "T": 4,
        "padding": 1,
    },
    "sample_proposals": {"x": torch.zeros(2, 3, 4), "proposals": SPANS[0], "num_samples": 2},
    "proposal_conv": {
        "x": torch.zeros(2, 3, 4),
        "proposals": SPANS[0],
        "weight": torch.zeros(5, 3, 2),
        "bias": torch.zeros(5),
    },
    "anchor_cross_attention": {
        "q_content": torch.zeros(2, 2, 3, 4),
        "q_pos": torch.zeros(2, 2, 3, 5),
        "k_content": torch.zeros(2, 2, 6, 4),
        "k_pos": torch.zeros(2, 2, 6, 5),
        "v": torch.zeros(2, 2, 6, 3),
        "key_mask": torch.ones(2, 6, dtype=torch.bool),
        "intervals": SPANS,
    },
    "anchor_embedding": {"anchors": torch.zeros(3, 2), "D": 8},
    "ordered_suppression_scan": {
        "z": torch.zeros(2, 3, 4, 4),
        "bias": torch.zeros(()),
        "sentence_mask": torch.ones(2, 3, dtype=torch.bool),
    },
    "temporal_contrast_spans": {
        "curves": torch.zeros(2, 3, 4),
        "mask": torch.ones(2, 4, dtype=torch.bool),
        "weights": torch.ones(2, 4),
    },
    "ordered_spans": {
        "gains": torch.zeros(2, 3, 4),
        "sentence_mask": torch.ones(2, 3, dtype=torch.bool),
        "mask": torch.ones(2, 4, dtype=torch.bool),
    },
    "ordered_candidates": {
        "spans": SPANS[:, :, None],
        "scores": torch.zeros(2, 3, 1),
        "sentence_mask": torch.ones(2, 3, dtype=torch.bool),
    },
    "pairwise_relevance": {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(4, 5),
        "w": torch.zeros(5),
        "bias": torch.zeros(()),
    },
}
each_tensor = pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op, arguments in CALLS.items() for name, value in arguments.items() if isinstance(value, Tensor)],
)


def refusal(op: str, name: str, change: Callable[[Tensor], Tensor], match: str) -> None:
    arguments = CALLS[op]
    getattr(ops, op)(**arguments)
    with pytest.raises(ValueError, match=match):
        getattr(ops, op)(**arguments | {name: change(arguments[name])})


def test_every_public_op_is_here() -> None:
    helpers = {"backend", "set_backend", "get_backend", "boundary_matching_grid", "multi_scale_grid", "sliding_windows"}
    helpers |= {"marn_stride", "dense_anchor_mask", "sparse_anchor_mask", "temporal_map_masks"}
    assert {name for name in ops.__all__ if name.islower()} - helpers == set(CALLS)


@each_tensor
def test_shape(op: str, name: str) -> None:
    wrong = [7, 1] if CALLS[op][name].dim() == 1 else [7]  # a list may have any length
    refusal(op, name, lambda t: t.new_zeros(wrong), f"^{name} has shape {re.escape(str(wrong))}; it must be ")


@each_tensor
def test_dtype(op: str, name: str) -> None:
    refusal(op, name, lambda t: t.to(torch.complex64), f"^{name} has dtype torch.complex64; it must be ")


@each_tensor
def test_device(op: str, name: str) -> None:
    if sum(isinstance(value, Tensor) for value in CALLS[op].values()) > 1:
        refusal(op, name, lambda t: t.to("meta"), r"^\w+ is on (meta|cpu); it must be on (meta|cpu), where \w+ is$")


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("proposal_conv", "weight"),
        ("temporal_map_conv2d", "weight"),
        ("temporal_map_conv2d_cells", "weight"),
        ("anchor_cross_attention", "v"),
        ("pairwise_relevance", "w"),
        ("ordered_suppression_scan", "bias"),
    ],
)
def test_dtypes_that_autocast_does_not_bring_together(op: str, name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        refusal(op, name, torch.Tensor.double, f"^{name} has dtype torch.float64; it must be torch.float32, that of ")
        refusal(op, name, torch.Tensor.long, f"^{name} has dtype torch.int64; it must be ")
