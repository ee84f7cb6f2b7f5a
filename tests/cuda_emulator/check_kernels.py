"""What the ops' own tests do not ask of the emulated kernels.

``scripts/emulate_cuda.sh`` runs this; pytest alone does not collect it, for it needs the emulated library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
import vpgfast._C
from ops.fuzz import CASES, Draw
from ops.test_fuzz import outputs
from torch.utils._python_dispatch import TorchDispatchMode

from vpgfast import ops

library = ctypes.CDLL(vpgfast._C.__file__)
# Of some ops the kernels for CUDA are Triton's, which its own interpreter runs.
each_op = pytest.mark.parametrize("op", [op for op in CASES if op not in ops.OPS or ops.OPS[op].triton is None])
SEEDS = range(8)


def emulator_set(what: str, value: int) -> None:
    assert library.cuda_emulator_set(what.encode(), value) == 0


def emulator_get(what: str) -> int:
    return library.cuda_emulator_get(what.encode())


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """As they were before, after the test."""
    before = {what: emulator_get(what) for what in ("seed", "poison")}
    yield
    for what, value in before.items():
        emulator_set(what, value)
    emulator_set("capture", 0)


@each_op
def test_neither_the_order_nor_what_memory_held_is_seen(op: str) -> None:
    """The same bits for two orders of blocks and threads, and for two bytes that uninitialised memory holds."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        for seed in SEEDS:
            results = []
            for order, poison in ((1, 0xFF), (2, 0x3C)):
                emulator_set("seed", order)
                emulator_set("poison", poison)
                results.append(outputs(CASES[op](Draw(seed))))
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=f"VPGFAST_FUZZ_SEED={seed}")
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.use_deterministic_algorithms(False)


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._opname not in self.WAITING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@each_op
def test_a_cuda_graph_can_capture(op: str) -> None:
    """Forward and backward, without a copy to the host or anything else that waits for the device."""
    for seed in SEEDS:
        case = CASES[op](Draw(seed))
        emulator_set("capture", 1)
        with NoWaiting():
            outputs(case)
        emulator_set("capture", 0)


@each_op
def test_kernels_run_and_not_the_reference(op: str) -> None:
    before = emulator_get("launches")
    for seed in SEEDS:
        outputs(CASES[op](Draw(seed)))
    assert emulator_get("launches") > before


WRONG = {
    "an interval": lambda: ops.temporal_iou(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0], [3.0, 2.0]])),
    "a span": lambda: ops.temporal_map_max_pool(torch.zeros(1, 1, 4), torch.tensor([[2, 4]])),
    "a proposal": lambda: ops.sample_proposals(torch.zeros(1, 1, 4), torch.tensor([[0.0, float("nan")]]), 2, 1),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_values_are_device_side_assertions(what: str) -> None:
    with pytest.raises(RuntimeError, match=f"assertion failed: .*vpgfast: {what}"):
        WRONG[what]()
