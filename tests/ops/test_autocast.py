"""Under autocast, the ops that are matrix products stay within the error of their plain formulation in that dtype.

The truth is float64 on the same inputs. The ops that form ratios run in float32; each has a test of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import anchor_cross_attention, proposal_conv, sample_proposals, temporal_map_conv2d

PROPOSALS = torch.tensor([[0.0, 5.0], [1.5, 11.25], [3.0, 3.0], [-1.0, 14.0]]).repeat(4, 1)


def plain_proposal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with ops.backend("reference"):
        samples = sample_proposals(x, PROPOSALS, weight.shape[2])
    out = torch.nn.functional.conv3d(samples[..., None], weight[..., None, None], bias)
    return out[:, :, 0, :, 0]


def plain_attention(q_c: Tensor, q_p: Tensor, k_c: Tensor, k_p: Tensor, v: Tensor) -> Tensor:
    q, k = torch.cat([q_c, q_p], -1), torch.cat([k_c, k_p], -1)
    return (q / math.sqrt(q.shape[-1]) @ k.mT).softmax(-1).to(v.dtype) @ v


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "proposal_conv": (
        lambda x, w, b: proposal_conv(x, PROPOSALS, w, b),
        plain_proposal_conv,
        [(2, 32, 12), (16, 32, 4), (16,)],
    ),
    "temporal_map_conv2d": (
        lambda x, w, b: temporal_map_conv2d(x, w, b, padding=2),
        lambda x, w, b: torch.nn.functional.conv2d(x, w, b, padding=2),
        [(2, 32, 9, 9), (16, 32, 5, 5), (16,)],
    ),
    "anchor_cross_attention": (
        lambda *tensors: anchor_cross_attention(*tensors)[0],
        plain_attention,
        [(2, 4, 6, 16), (2, 4, 6, 16), (2, 4, 40, 16), (2, 4, 40, 16), (2, 4, 40, 16)],
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", list(CASES))
def test_error_is_that_of_the_plain_formulation(op: str, dtype: torch.dtype) -> None:
    ours, plain, sizes = CASES[op]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
    incoming = torch.randn(ours(*inputs).shape, generator=generator)

    def results(function: Callable[..., Tensor], leaves: list[Tensor], autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", dtype, enabled=autocast):
            out = function(*leaves)
        if autocast:
            assert out.dtype == dtype
        return [out, *torch.autograd.grad(out, leaves, incoming.to(out.dtype))]

    truth = results(plain, [t.detach().double().requires_grad_() for t in inputs], autocast=False)
    for name, a, b, exact in zip(
        ["output", *(f"gradient {i}" for i in range(len(inputs)))],
        results(ours, inputs, autocast=True),
        results(plain, inputs, autocast=True),
        truth,
        strict=True,
    ):
        error, allowed = ((t.double() - exact).abs().mean() for t in (a, b))
        # Rounding the inputs and the result alone may err by a quarter of the dtype's step each.
        step = torch.finfo(dtype).eps * exact.abs().mean()
        assert error <= 1.2 * allowed + 0.25 * step, f"{name}: {float(error):.2e}, plain {float(allowed):.2e}"
