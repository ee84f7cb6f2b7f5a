"""What the ops' own tests do not ask of the emulated kernels.

``scripts/emulate_cuda.sh`` runs this; pytest alone does not collect it, for it needs the emulated library.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable, Iterator

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


MANY = 2**32 + 1024  # kernels take indices of 32 bits where 31 suffice; what is wrong then shows from 32 on
END = slice(-256, None)
NORESERVE = 0x4000  # Linux's; mmap has a name for it from Python 3.13 on


def sparse(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Zeros that take no memory until they are written."""
    count = math.prod(shape)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def random_at_the_end(*shape: int) -> torch.Tensor:
    """Numbers of which the last 1024 are not 0."""
    tensor = sparse(*shape)
    end = tensor.view(-1)[-1024:]
    end.copy_(torch.rand(1024, generator=torch.Generator().manual_seed(0)))
    return tensor


def spans_at_the_end(*shape: int) -> torch.Tensor:
    spans = random_at_the_end(*shape, 2)
    spans.view(-1, 2)[-512:] = spans.view(-1, 2)[-512:].sort(-1).values
    return spans


def check_end(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.count_nonzero() > 64
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


@pytest.fixture
def only_ends() -> Iterator[None]:
    """Of every launch a few blocks: what they compute lies at the beginning and at the end of a tensor."""
    emulator_set("ends", 4)
    yield
    emulator_set("ends", 0)


def test_temporal_iou_of_more_than_2_32_pairs(only_ends: None) -> None:
    a, b = spans_at_the_end(1, MANY // 16), torch.rand(1, 16, 2).sort(-1).values.half()
    few = a[:, END].float()
    found = torch.ops.vpgfast.temporal_iou(a, b, False)
    check_end(found[0, END], ops.temporal_iou(few[0], b[0].float()).half())

    grad = random_at_the_end(1, MANY // 16, 16)
    few.requires_grad_()
    ops.temporal_iou(few[0], b[0].float()).backward(grad[0, END].float())
    by_a, _ = torch.ops.vpgfast.temporal_iou_backward(grad, a, b, False)
    check_end(by_a[0, END], few.grad[0].half())


@pytest.mark.parametrize("M", [3, 32])
def test_temporal_iou_of_more_lists_than_blocks(only_ends: None, M: int) -> None:
    """The first blocks come to a second list."""
    L = 2**20 + 4
    a, b, grad = spans_at_the_end(L, 1), spans_at_the_end(L, M), random_at_the_end(L, 1, M)
    few = [t[-4:].float().requires_grad_() for t in (a, b)]
    ops.temporal_iou(*few).backward(grad[-4:].float())
    by_a, by_b = torch.ops.vpgfast.temporal_iou_backward(grad, a, b, False)
    for found, leaf in ((by_a, few[0]), (by_b, few[1])):
        torch.testing.assert_close(found[-4:], leaf.grad.half(), rtol=2e-3, atol=1e-4)


def agrees(call: Callable[[], tuple[torch.Tensor, ...]]) -> None:
    """The kernel's results are the reference's."""
    found = call()
    with ops.backend("reference"):
        expected = call()
    torch.testing.assert_close(found, expected)


def with_gradient(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    return out.detach(), *torch.autograd.grad(out.sum(), leaf)


@pytest.mark.parametrize("dropped", [None, 0.1], ids=["all", "some"])
def test_ordered_candidates_of_more_paragraphs_than_blocks(dropped: float | None) -> None:
    """The first blocks come to a second paragraph."""
    generator = torch.Generator().manual_seed(0)
    spans = torch.rand(2060, 2, 3, 2, generator=generator).sort(-1).values.double()
    scores = torch.rand(2060, 2, 3, generator=generator)
    agrees(lambda: ops.ordered_candidates(spans, scores, skip_penalty=dropped))


def test_ordered_spans_of_more_paragraphs_than_blocks() -> None:
    gains = torch.randn(530, 2, 5, generator=torch.Generator().manual_seed(0))
    agrees(lambda: ops.ordered_spans(gains))


def test_temporal_nms_of_more_long_lists_than_blocks() -> None:
    """The first blocks come to a second list; others hold nothing, for the sake of time."""
    generator = torch.Generator().manual_seed(0)
    spans = torch.rand(514, 1100, 2, generator=generator).sort(-1).values
    scores = torch.full((514, 1100), -torch.inf)
    scores[:2] = torch.rand(2, 1100, generator=generator)
    scores[-2:] = torch.rand(2, 1100, generator=generator)
    agrees(lambda: (ops.temporal_nms(spans, scores, 0.9, 1100),))


def test_temporal_map_max_pool_of_spans_of_more_rows_than_blocks(only_ends: None) -> None:
    """The first blocks come to a second table, and to further tiles of sums."""
    rows, spans = 8 * (2**20 + 4), torch.tensor([[0, 5], [1, 2], [4, 4], [2, 5]])
    again = slice(8 * 2**20, 8 * 2**20 + 4)  # of the first blocks of both kernels
    x, grad = random_at_the_end(1, rows, 6), random_at_the_end(1, rows, len(spans))
    few = x[:, again].double().requires_grad_()
    expected = ops.temporal_map_max_pool(few, spans)
    expected.backward(grad[:, again].double())
    found = torch.ops.vpgfast.temporal_map_max_pool_spans(x, spans)
    torch.testing.assert_close(found[:, again], expected.detach().half())
    by_x = torch.ops.vpgfast.temporal_map_max_pool_spans_backward(grad, x, spans, False)
    torch.testing.assert_close(by_x[:, again], few.grad.half())


def test_temporal_map_max_pool_of_spans_by_chunks_of_clips() -> None:
    """A video so long that a table of all its clips is too large beside them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 9000, generator=generator)
    spans = torch.randint(0, 9000, (20, 2), generator=generator).sort(-1).values
    agrees(lambda: with_gradient(lambda leaf: ops.temporal_map_max_pool(leaf, spans), x))


def test_temporal_contrast_spans_of_more_curves_than_blocks() -> None:
    curves = torch.randn(1030, 1, 6, generator=torch.Generator().manual_seed(0)).double()
    agrees(lambda: ops.temporal_contrast_spans(curves))


def test_sample_proposals_where_the_first_thousands_are_elsewhere() -> None:
    """Blocks that have the video's end pass over the first chunks of proposals, more than they look at at once."""
    generator = torch.Generator().manual_seed(0)
    spans = torch.rand(4300, 2, generator=generator).sort(-1).values * 10
    spans[-100:] += 450
    x = torch.randn(1, 3, 512, generator=generator).double()
    agrees(lambda: with_gradient(lambda leaf: ops.sample_proposals(leaf, spans, 8, 1), x))


def test_ordered_suppression_scan_of_more_than_2_32_cells(only_ends: None) -> None:
    z, bias = random_at_the_end(MANY // 1024, 1, 1024), torch.tensor(0.5, dtype=torch.float16)
    counts = sparse(len(z), 1, dtype=torch.bool)  # of no video but the last
    counts[-1] = True
    few = z[-1:].float().requires_grad_()
    found = torch.ops.vpgfast.ordered_suppression_scan(z, bias, counts, False)
    expected = ops.ordered_suppression_scan(few, bias.float())
    check_end(found[-1, 0, END], expected[-1, 0, END].detach().half())

    grad = random_at_the_end(*z.shape)
    expected.backward(grad[-1:].float())
    by_z, _ = torch.ops.vpgfast.ordered_suppression_scan_backward(grad, z, bias, found, counts, False)
    check_end(by_z[-1, 0, END], few.grad[-1, 0, END].half())


def test_temporal_map_bce_of_more_than_2_32_maps(only_ends: None) -> None:
    """Of one cell each. 65,535 blocks of 256 maps go over them 257 times; the first is left with the last of them."""
    M = 256
    videos = 257 * 65535 + 1
    assert videos * M > 2**32
    logits, spans = random_at_the_end(videos, M, 1, 1), spans_at_the_end(videos, M)
    mask = sparse(videos, 1, 1, 1, dtype=torch.bool)  # of no video but the last
    mask[-1] = True
    by_loss, count = torch.ones((), dtype=torch.float16), torch.tensor(1)
    found = torch.ops.vpgfast.temporal_map_bce_backward(by_loss, logits, spans, mask, None, 0.3, 0.7, count)
    few = logits[-1:].double().requires_grad_()
    ops.temporal_map_bce(few, spans[-1:].double(), mask[-1:], min_iou=0.3, max_iou=0.7).backward()
    check_end(found[-1].view(-1), few.grad.view(-1).half() * M)


WRONG = {
    "an interval": lambda: ops.temporal_iou(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0], [3.0, 2.0]])),
    "a span": lambda: ops.temporal_map_max_pool(torch.zeros(1, 1, 4), torch.tensor([[2, 4]])),
    "a proposal": lambda: ops.sample_proposals(torch.zeros(1, 1, 4), torch.tensor([[0.0, float("nan")]]), 2, 1),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_values_are_device_side_assertions(what: str) -> None:
    with pytest.raises(RuntimeError, match=f"assertion failed: .*vpgfast: {what}"):
        WRONG[what]()
