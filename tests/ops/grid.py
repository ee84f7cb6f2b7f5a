"""The grid that every op is tested on: implementation x dtype x memory layout x shape, against the op's reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from vpgfast import ops


def implementations(triton: bool = False, interpreted: bool = True) -> pytest.MarkDecorator:
    """(device, backend) of what can run here: the C++ kernels, and the kernels for CUDA where there is a GPU.

    Those are compiled from CUDA C++ or, for some ops, from ``triton``. Without a GPU Triton kernels run in Triton's
    interpreter, unless a test is too long for it (``interpreted``).
    """
    listed = [pytest.param("cpu", "cpp", id="cpp")]
    if torch.cuda.is_available():
        backend = "triton" if triton else "cuda"
        listed.append(pytest.param("cuda", backend, id=backend, marks=pytest.mark.gpu))
    elif triton and interpreted:
        listed.append(pytest.param("cpu", "triton", id="triton-interpreted"))
    return pytest.mark.parametrize(("device", "backend"), listed)


dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=lambda d: str(d).removeprefix("torch.")
)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda t: t[:1].expand_as(t) if t.shape[0] else t,
    "strided": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
}
layouts = pytest.mark.parametrize("layout", list(LAYOUTS))

# Sums are formed in float32 in another order; 16-bit results may then round to the neighbour.
TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.float64: {"rtol": 1e-11, "atol": 1e-12},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-3},
    torch.float16: {"rtol": 2e-3, "atol": 1e-4},
}


def random_spans(*lead: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Float64 intervals [..., 2] between ``low`` and ``high``."""
    return (torch.rand(*lead, 2, generator=generator, dtype=torch.float64).sort(-1).values) * (high - low) + low


def _run(function: Callable[..., Tensor], leaves: list[Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Result and gradients for a random incoming gradient, the same at every call."""
    out = function(*leaves)
    if not out.requires_grad:
        return out, ()
    # Few significant bits, so that every dtype holds the same incoming gradient.
    incoming = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)) / 8
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return out.detach(), torch.autograd.grad(out, wanted, incoming.to(out), allow_unused=True)


def compare(
    function: Callable[..., Tensor],
    inputs: Iterable[Tensor],
    backend: str,
    *,
    exact: bool = False,
    of_scale: float = 0.0,
) -> None:
    """Result and gradients of ``function(*inputs)`` under ``backend`` equal the reference's, computed in float64.

    ``exact`` asks the result for equality to the bit; ``of_scale`` allows every value, float64 apart, an error of this
    share of the largest one (of sums whose terms cancel).
    """
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    with ops.backend(backend), torch.backends.cudnn.flags(allow_tf32=False):  # type: ignore[arg-type]
        out, grads = _run(function, leaves)
    wide = [leaf.detach().double().requires_grad_() if leaf.requires_grad else leaf for leaf in leaves]
    with ops.backend("reference"):
        expected, expected_grads = _run(function, wide)
    if out.is_floating_point():
        expected = expected.to(out.dtype)
    tolerance = TOLERANCE.get(out.dtype, {"rtol": 0.0, "atol": 0.0})
    exactly = {"rtol": 0.0, "atol": 0.0}

    def allowed(tolerance: dict[str, float], values: Tensor) -> dict[str, float]:
        finite = values.detach()[values.isfinite()].abs()
        if of_scale == 0 or finite.numel() == 0 or out.dtype == torch.float64:
            return tolerance
        return tolerance | {"atol": max(tolerance["atol"], of_scale * float(finite.max()))}

    tolerated = exactly if exact else allowed(tolerance, expected)
    torch.testing.assert_close(out, expected, equal_nan=True, **tolerated)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            loose = {"rtol": tolerance["rtol"] * 4, "atol": tolerance["atol"] * 10}  # sums of many terms
            torch.testing.assert_close(ours, theirs.to(ours.dtype), equal_nan=True, **allowed(loose, theirs))


def check_registration(op: str, samples: Iterable[tuple[Any, ...]]) -> None:
    """``torch.library.opcheck``: schema, fake implementation, autograd registration and AOT dispatch agree."""
    overload = getattr(torch.ops.vpgfast, op).default
    for args in samples:
        torch.library.opcheck(overload, args)


def check_compiles(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """``torch.compile(fullgraph=True)``: no graph break, same result and gradients."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    eager = function(*leaves)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(compiled, eager)
    if eager.requires_grad:
        incoming = torch.ones_like(eager)
        ours = torch.autograd.grad(compiled, wanted, incoming, allow_unused=True)
        theirs = torch.autograd.grad(eager, wanted, incoming, allow_unused=True)
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)


def check_deterministic(function: Callable[..., Tensor], *inputs: Tensor, by_blas: bool = False) -> None:
    """Two runs, and runs on one and two threads, agree to the bit; no output keeps the poison that fills memory.

    Where torch's matrix products are part of it (``by_blas``), other numbers of threads may round differently.
    Deterministic mode fills every uninitialised allocation with NaN (or the largest integer), which is checked first.
    """
    threads = torch.get_num_threads()
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all(), "deterministic mode no longer poisons uninitialised memory"
        for count in (threads, threads) if by_blas else (threads, threads, 1, 2):
            torch.set_num_threads(count)
            leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
            out = function(*leaves)
            grads: tuple[Tensor | None, ...] = ()
            if out.requires_grad:
                wanted = [leaf for leaf in leaves if leaf.requires_grad]
                grads = torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)
            results.append([out.detach(), *(g for g in grads if g is not None)])
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    for tensor in results[0]:
        if tensor.is_floating_point():
            assert not tensor.isnan().any(), "an output was not fully written"
        else:
            assert (tensor != torch.iinfo(tensor.dtype).max).all(), "an output was not fully written"
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
