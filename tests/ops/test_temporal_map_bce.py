from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import dense_anchor_mask, sparse_anchor_mask, temporal_iou_map, temporal_map_bce

from .grid import (
    LAYOUTS,
    check_compiles,
    check_deterministic,
    check_registration,
    compare,
    dtypes,
    implementations,
    layouts,
    random_spans,
)

shapes = pytest.mark.parametrize(
    ("B", "M", "T"), [(2, 3, 8), (1, 1, 1), (2, 2, 33), (0, 2, 4), (2, 0, 4), (2, 3, 0), (3, 1, 5)]
)


def random_case(B: int, M: int, T: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, M, T, T, generator=generator, dtype=torch.float64) * 4
    spans = random_spans(B, M, generator=generator)
    mask = torch.rand(T, T, generator=generator) < 0.6  # below the diagonal too, where it must not matter
    return logits.to(dtype), spans.to(dtype), mask, torch.rand(B, M, generator=generator) < 0.7


def two_d_tan(logits: Tensor, spans: Tensor, mask: Tensor, min_iou: float, max_iou: float) -> Tensor:
    """The loss as 2D-TAN defines it: a target map, probabilities, binary cross-entropy, a masked mean."""
    target = ((temporal_iou_map(spans, logits.shape[-1]) - min_iou) / (max_iou - min_iou)).clamp(0, 1)
    probability = torch.sigmoid(logits)
    each = -(target * probability.log() + (1 - target) * (1 - probability).log())
    return (each * mask).sum() / mask.expand_as(each).sum()


def test_by_hand() -> None:
    # T = 1: one cell, the whole video; IoU 0.6 with the span, scaled between 0.5 and 1 to 0.2.
    logits, spans = torch.tensor([[[[2.0]]]]), torch.tensor([[[0.0, 0.6]]])
    p = 1 / (1 + math.exp(-2))
    loss = temporal_map_bce(logits, spans, torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(-0.2 * math.log(p) - 0.8 * math.log(1 - p), rel=1e-5)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("bounds", [(0.5, 1.0), (0.3, 0.7), (0.0, 1.0)])
def test_equals_2d_tan(backend: str, bounds: tuple[float, float]) -> None:
    logits, spans, _, _ = random_case(2, 3, 16, torch.float64)
    logits.requires_grad_()
    mask = sparse_anchor_mask(16, (4, 2))
    expected = two_d_tan(logits, spans, mask, *bounds)
    with ops.backend(backend):
        ours = temporal_map_bce(logits, spans, mask, *bounds)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(expected, logits))


def test_sentences_that_are_padding_count_for_nothing() -> None:
    logits, spans, _, _ = random_case(2, 3, 6, torch.float64)
    mask, keep = dense_anchor_mask(6), torch.tensor([[True, True, False], [True, False, False]])
    expected = two_d_tan(logits[keep][None], spans[keep][None], mask, 0.5, 1.0)
    logits[~keep] = math.nan
    torch.testing.assert_close(temporal_map_bce(logits, spans, mask, sentence_mask=keep), expected)


@implementations()
@dtypes
@layouts
@shapes
@pytest.mark.parametrize("with_sentence_mask", [False, True])
def test_grid(
    device: str, backend: str, dtype: torch.dtype, layout: str, B: int, M: int, T: int, with_sentence_mask: bool
) -> None:
    logits, spans, mask, sentences = (t.to(device) for t in random_case(B, M, T, dtype))
    logits, spans = LAYOUTS[layout](logits), LAYOUTS[layout](spans)
    chosen = sentences if with_sentence_mask else None
    compare(lambda z: temporal_map_bce(z, spans, mask, sentence_mask=chosen), [logits], backend)


@implementations()
@pytest.mark.parametrize("shape", ["[T, T]", "[B, 1, T, T]", "[B, M, T, T]", "expanded"])
def test_masks(device: str, backend: str, shape: str) -> None:
    logits, spans, mask, _ = (t.to(device) for t in random_case(2, 3, 9, torch.float32))
    full = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)).to(device) < 0.5
    mask = {"[T, T]": mask, "[B, 1, T, T]": full[:, :1], "[B, M, T, T]": full, "expanded": mask.expand(2, 3, 9, 9)}[
        shape
    ]
    compare(lambda z: temporal_map_bce(z, spans, mask), [logits], backend)


@implementations()
@dtypes
@pytest.mark.parametrize(("B", "M", "T"), [(5, 3, 16), (1, 2, 24), (2, 2, 130), (1, 3, 264), (300, 2, 2), (7, 1, 17)])
@pytest.mark.parametrize("each", ["one", "video", "sentence", "all"])
def test_blocks_of_every_shape(
    device: str, backend: str, dtype: torch.dtype, B: int, M: int, T: int, each: str
) -> None:
    """Maps that share a block, maps that several blocks share, packs that cross the diagonal or a row's end."""
    logits, spans, _, sentences = random_case(B, M, T, dtype)
    lead = {"one": (1, 1), "video": (B, 1), "sentence": (1, M), "all": (B, M)}[each]
    mask = torch.rand(*lead, T, T, generator=torch.Generator().manual_seed(2)) < 0.4
    below = torch.ones(T, T, dtype=torch.bool).tril(-1)
    logits[..., below] = math.nan  # must not be looked at
    args = [t.to(device) for t in (spans, mask, sentences)]
    compare(
        lambda z: temporal_map_bce(z, args[0], args[1], 0.3, 0.9, sentence_mask=args[2]), [logits.to(device)], backend
    )


@implementations()
def test_views_that_start_anywhere(device: str, backend: str) -> None:
    """A contiguous view need not start where 16-byte loads may."""
    logits, spans, mask, _ = random_case(2, 3, 8, torch.float32)
    shifted = torch.zeros(logits.numel() + 1).to(device)[1:].view_as(logits).copy_(logits)
    shifted_mask = torch.zeros(65, dtype=torch.bool).to(device)[1:].view(8, 8).copy_(mask)
    losses = []
    for z, m in ((logits, mask), (shifted, mask), (logits, shifted_mask)):
        leaf = z.to(device).detach().requires_grad_()
        with ops.backend(backend):
            loss = temporal_map_bce(leaf, spans.to(device), m.to(device))
            losses.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    for loss, grad in losses[1:]:
        torch.testing.assert_close(loss, losses[0][0])
        torch.testing.assert_close(grad, losses[0][1])


@implementations()
def test_no_valid_cell(device: str, backend: str) -> None:
    logits, spans, mask, _ = (t.to(device) for t in random_case(2, 3, 5, torch.float32))
    logits.requires_grad_()
    with ops.backend(backend):
        loss = temporal_map_bce(logits, spans, torch.zeros_like(mask))
        assert loss.item() == 0
        assert torch.autograd.grad(loss, logits)[0].eq(0).all()


@implementations()
def test_extreme_logits(device: str, backend: str) -> None:
    """Large logits neither overflow nor lose their gradient; what the mask leaves out may be anything."""
    logits = torch.tensor([[[[-200.0, 90.0], [math.nan, 300.0]]]], device=device)
    spans, mask = torch.tensor([[[0.0, 0.5]]], device=device), dense_anchor_mask(2).to(device)
    compare(lambda z: temporal_map_bce(z, spans, mask), [logits], backend)
    logits[0, 0, 0, 1] = -math.inf
    mask[0, 1] = False
    with ops.backend(backend):
        assert temporal_map_bce(logits, spans, mask).isfinite()


@implementations()
def test_gradcheck(device: str, backend: str) -> None:
    logits, spans, mask, sentences = (t.to(device) for t in random_case(2, 2, 4, torch.float64))
    with ops.backend(backend):
        assert torch.autograd.gradcheck(
            lambda z: temporal_map_bce(z, spans, mask, sentence_mask=sentences), (logits.requires_grad_(),)
        )


@implementations()
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    logits, spans, mask, sentences = (t.to(device) for t in random_case(16, 5, 40, torch.float32))
    with ops.backend(backend):
        check_deterministic(lambda z: temporal_map_bce(z, spans, mask, sentence_mask=sentences), logits)


def test_registration() -> None:
    logits, spans, mask, sentences = random_case(2, 3, 5, torch.float32)
    mask = mask[None, None]
    for chosen in (None, sentences):
        leaf = logits.clone().requires_grad_()
        check_registration(
            "temporal_map_bce", [(logits, spans, mask, chosen, 0.5, 1.0), (leaf, spans, mask, chosen, 0.5, 1.0)]
        )
        args = (torch.tensor(2.0), logits, spans, mask, chosen, 0.5, 1.0, torch.tensor(7))
        check_registration("temporal_map_bce_backward", [args])


def test_compiles_without_graph_break() -> None:
    logits, spans, mask, sentences = random_case(2, 3, 5, torch.float32)
    check_compiles(lambda z: temporal_map_bce(z, spans, mask, sentence_mask=sentences), logits)


def test_autocast_computes_in_float32() -> None:
    logits, spans, mask, _ = random_case(2, 3, 5, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert temporal_map_bce(logits, spans, mask).dtype == torch.float32


def test_spans_get_no_gradient() -> None:
    logits, spans, mask, _ = random_case(2, 3, 5, torch.float32)
    assert not temporal_map_bce(logits, spans.requires_grad_(), mask).requires_grad


def test_second_derivative_is_refused() -> None:
    logits, spans, mask, _ = random_case(1, 1, 4, torch.float32)
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(temporal_map_bce(logits, spans, mask), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="temporal_map_bce has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 4)}, r"logits has shape \[2, 3, 4\]"),
        ({"logits": torch.zeros(2, 3, 4, 5)}, r"it must be \[2, 3, 4, 4\]"),
        ({"spans": torch.zeros(2, 2, 2)}, r"spans has shape \[2, 2, 2\]; it must be \[2, 3, 2\]"),
        ({"mask": torch.zeros(5, 5, dtype=torch.bool)}, r"mask has shape \[5, 5\]"),
        ({"mask": torch.zeros(4, 4)}, "mask has dtype torch.float32; it must be bool"),
        ({"sentence_mask": torch.zeros(2, 2, dtype=torch.bool)}, r"sentence_mask has shape \[2, 2\]"),
        ({"min_iou": 0.5, "max_iou": 0.5}, "0 <= min_iou < max_iou <= 1"),
    ],
)
def test_wrong_arguments(change: dict, message: str) -> None:
    args = {"logits": torch.zeros(2, 3, 4, 4), "spans": torch.zeros(2, 3, 2), "mask": dense_anchor_mask(4)}
    with pytest.raises(ValueError, match=message):
        temporal_map_bce(**(args | change))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_inverted_span_is_named(backend: str) -> None:
    with ops.backend(backend), pytest.raises(RuntimeError, match="interval 0 of spans"):
        temporal_map_bce(torch.zeros(1, 1, 2, 2), torch.tensor([[[1.0, 0.5]]]), dense_anchor_mask(2))
