"""Every public op on random arguments, against its reference.

``VPGFAST_FUZZ_CASES=1000 pytest tests/ops/test_fuzz.py`` runs more cases of each op, ``VPGFAST_FUZZ_SEED=123`` that
case alone.
"""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vpgfast import ops

from .fuzz import CASES, Case, Draw
from .grid import check_deterministic, compare, implementations

SEED = os.environ.get("VPGFAST_FUZZ_SEED")
SEEDS = [int(SEED)] if SEED else range(int(os.environ.get("VPGFAST_FUZZ_CASES", "40")))
each_op = pytest.mark.parametrize("op", list(CASES))


def on(device: str, case: Case) -> list[Tensor]:
    return [t.to(device) for t in case.inputs]


@implementations()
@each_op
def test_fuzz(device: str, backend: str, op: str) -> None:
    for seed in SEEDS:
        case = CASES[op](Draw(seed))
        try:
            compare(case.function, on(device, case), backend, **case.tolerance)
        except Exception as error:
            raise AssertionError(f"{op}, VPGFAST_FUZZ_SEED={seed}: {case}\n{error}") from error


@implementations()
@each_op
def test_deterministic(device: str, backend: str, op: str) -> None:
    """Of every op and its backward: the same bits again, and on one and two threads, and every output written."""
    for seed in SEEDS[:10]:
        case = CASES[op](Draw(seed, finite=True, factor=3))
        try:
            with ops.backend(backend):  # type: ignore[arg-type]
                check_deterministic(case.function, *on(device, case), by_blas=op == "proposal_conv")
        except AssertionError as error:
            raise AssertionError(f"{op}, VPGFAST_FUZZ_SEED={seed}: {case}\n{error}") from error


def outputs(case: Case) -> list[Tensor]:
    """The result and its gradients."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in case.inputs]
    out = case.function(*leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = torch.autograd.grad(out.sum(), wanted, allow_unused=True) if out.requires_grad else ()
    return [out.detach(), *(grad for grad in grads if grad is not None)]


def test_from_four_threads_at_once() -> None:
    """Every op and its backward, on different inputs at the same time: the bits of running one after the other."""
    cases = [draw(Draw(seed, finite=True, factor=2)) for draw in CASES.values() for seed in range(6)]
    expected = [outputs(case) for case in cases]
    failures: list[str] = []

    def work(number: int) -> None:
        order = torch.randperm(4 * len(cases), generator=torch.Generator().manual_seed(number)) % len(cases)
        for index in order.tolist():
            try:
                if not all(map(torch.equal, outputs(cases[index]), expected[index])):
                    failures.append(f"differs: {cases[index]}")
            except Exception as error:
                failures.append(f"{error!r}: {cases[index]}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class Record(TorchDispatchMode):
    """Notes which of our ops are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "vpgfast":
            self.called.add(func._opname)
        return func(*args, **(kwargs or {}))


def test_every_registered_op_is_fuzzed() -> None:
    with Record() as record:
        for draw in CASES.values():
            for seed in range(10):
                outputs(draw(Draw(seed)))
    assert record.called == set(ops.OPS)


def test_a_case_is_its_seed() -> None:
    for draw in CASES.values():
        first, again = draw(Draw(7)), draw(Draw(7))
        assert str(first) == str(again)
        for a, b in zip(first.inputs, again.inputs, strict=True):
            assert a.stride() == b.stride()
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
