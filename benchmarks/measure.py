"""Times several ways to compute the same thing side by side, and holds them against what the machine can do.

A number is only kept if the result behind it is right: every provider's outputs and gradients are compared with the
first one's before anything is timed. Providers take turns, so that a machine that slows down slows all of them.

On a GPU everybody is timed twice: as it is called, by the host's clock, and as a replayed CUDA graph, which leaves the
launches out. Processes of one pytest-xdist run compile side by side and are stopped while one of them measures.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import platform
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpgfast.ops import _registry


def _blocks_from_the_system(least: int) -> None:
    """Blocks of this many bytes and more are taken from the system one by one and go back to it when they are freed."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(-3, least)  # M_MMAP_THRESHOLD


# Large blocks would otherwise be given back to the system and faulted in again at every call, which costs ten times the
# writing of them and falls on whichever provider comes next. All run on memory that the process holds, as in a training
# loop that has warmed up.
if platform.libc_ver()[0] == "glibc":
    ctypes.CDLL(None).mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
_blocks_from_the_system(2**30)

ROOT = Path(__file__).resolve().parent.parent
SECONDS_PER_CASE = {"cpu": 1.0, "cuda": 0.1}  # for each provider and mode; a run without --full has half of it
ROUNDS = (5, 200)  # fewest and most; three have to do where they take minutes
SECONDS_OF_MANY_ROUNDS = 120.0


@dataclass
class Row:
    """One measured number. Times in milliseconds; ``ratio`` is the best peer's median over this one's (1: no peer)."""

    op: str
    provider: str
    role: str  # field (what published code does) | plain (PyTorch as well as we can write it) | ours
    mode: str  # forward | forward+backward
    shape: str
    dtype: str
    device: str
    on: str  # cpu | cuda
    threads: int
    torch: str
    commit: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    ratio: float
    floor_ms: float
    share_of_floor: float
    peak_mib: float | None  # most memory in use at once during one call, beyond its inputs
    graph_ms: float | None = None  # median of a replayed CUDA graph; None on a CPU, or where it can't be captured

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass
class Provider:
    """One way to compute: ``function(*inputs)`` gives a tensor, or several where nothing is differentiated. Peers are
    what vpgfast is compared with."""

    name: str
    function: Callable[..., Any]
    is_ours: bool = False
    is_fields: bool = False  # what published code of the field does, as opposed to the best plain PyTorch

    @property
    def role(self) -> str:
        return "ours" if self.is_ours else "field" if self.is_fields else "plain"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@functools.cache
def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return f"{models[0] if models else platform.processor()} x{torch.get_num_threads()}, {instruction_set()}"


def instruction_set() -> str:
    """That of our kernels, which must be torch's too.

    Raises:
        AssertionError: ``VPGFAST_CPU_CAPABILITY`` chose less for ours alone.
    """
    torch_has = {"AVX2": "v3", "AVX512": "v4", "DEFAULT": "default"}.get(torch.backends.cpu.get_cpu_capability())
    ours = _registry.CPU_CAPABILITY
    assert torch_has in (ours, None), (
        f"our kernels are compiled for {ours}, torch's for {torch_has}; "
        "VPGFAST_CPU_CAPABILITY=v3 measures both without AVX-512"
    )
    return str(ours)


@functools.cache
def commit() -> str:
    """The commit measured; ``-dirty`` if files other than results differ from it.

    ``VPGFAST_COMMIT`` says it where there is no repository.
    """
    if named := os.environ.get("VPGFAST_COMMIT"):
        return named

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def _best_seconds(device: torch.device, work: Callable[[], object], repeats: int = 7) -> float:
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


@functools.cache
def bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy moves, read and written counted."""
    source = torch.ones(2**26, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _best_seconds(device, lambda: target.copy_(source))


@functools.cache
def flop_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions per second in a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _best_seconds(device, lambda: a @ a)


def _half_of_the_memory_is_held() -> bool:
    """Whether this process holds half of the machine's memory, used or freed (not known: no)."""
    if not Path("/proc/self/status").exists():
        return False
    return 2 * 2**10 * _status_kib("VmRSS") > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_mib(device: torch.device, work: Callable[[], object]) -> float | None:
    """Most MiB in use at once while ``work`` runs, beyond what was in use before it.

    On the CPU the kernel counts the process's pages, whoever asked for them: torch, NumPy or C++. None where the
    system has no such counter (other systems than Linux).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # give back what earlier calls have freed, so that it counts again
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    before = _status_kib("VmRSS")
    work()
    return (_status_kib("VmHWM") - before) / 2**10


def _step(provider: Provider, inputs: list[Tensor], grad: Tensor | None) -> tuple[Any, tuple[Tensor, ...]]:
    out = provider.function(*inputs)
    if grad is None:
        return out, ()
    wanted = [t for t in inputs if t.requires_grad]
    return out, torch.autograd.grad(out, wanted, grad)


def _check(
    case: str, providers: list[Provider], leaves: list[Tensor], tolerance: float, packed: Callable[..., Tensor]
) -> Tensor | None:
    """Compares everybody's results with the first one's; returns the gradient to go backward from, if any leaf asks."""
    expected, expected_grads, grad = None, (), None
    for provider in providers:
        if grad is None and any(t.requires_grad for t in leaves):
            out = provider.function(*leaves)
            grad = torch.ones_like(out, memory_format=torch.contiguous_format)  # not one provider's layout
            del out  # and the graph behind it
        result, grads = _step(provider, leaves, grad)
        out = packed(*result) if isinstance(result, tuple) else packed(result)
        if expected is None:
            expected, expected_grads = out.detach(), grads
        names = ["result", *("gradient" for _ in grads)]
        # What is left of a gradient that is tiny beside the largest one has mostly cancelled: rounding shows in it.
        least = 1e-4 * max((float(b.abs().max()) for b in expected_grads), default=0.0)
        for name, a, b in zip(names, [out.detach(), *grads], [expected, *expected_grads], strict=True):
            scale, difference = max(float(b.abs().max()), least), float((a - b).abs().max())
            assert difference <= tolerance * max(scale, 1e-30), (
                f"{case}: {name} of {provider.name} is off by {difference} (largest value {scale})"
            )
    return grad


@contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """Stops the other processes of a pytest-xdist run meanwhile: they compile on a CPU, but would share the GPU."""
    if device.type != "cuda" or "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    parent = os.getppid()
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    siblings = [int(child) for child in children if int(child) != os.getpid()]
    with open(Path(tempfile.gettempdir()) / f"vpgfast-benchmark-{parent}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            for sibling in siblings:
                os.kill(sibling, signal.SIGSTOP)
            time.sleep(0.05)  # what they have launched runs out
            yield
        finally:
            for sibling in siblings:
                os.kill(sibling, signal.SIGCONT)


def _graph_ms(step: Callable[[], object], device: torch.device, replays: int = 20) -> float | None:
    """Median time of a step as a replayed CUDA graph, its data not in the cache; None where it can't be captured."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # backward runs in a thread of its own
            step()
    except RuntimeError as error:
        warnings.warn(f"no CUDA graph: {error}", stacklevel=2)
        torch.cuda.synchronize(device)
        return None
    overwritten = torch.empty(2**28, dtype=torch.int8, device=device)  # five times the cache of an H100
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)]
    for before, after in marks:
        overwritten.zero_()
        before.record()
        graph.replay()
        after.record()
    torch.cuda.synchronize(device)
    return sorted(before.elapsed_time(after) for before, after in marks)[replays // 2]


def _peaks(providers: list[Provider], leaves: list[Tensor], grad: Tensor | None) -> dict[str, float | None]:
    device = leaves[0].device
    _blocks_from_the_system(2**16)  # holes that others leave in the heap are no peak
    peaks = {}
    for provider in providers:
        peaks[provider.name] = peak_mib(device, functools.partial(_step, provider, leaves, grad))
    _blocks_from_the_system(2**30)
    return peaks


def _times(providers: list[Provider], leaves: list[Tensor], grad: Tensor | None) -> dict[str, list[float]]:
    """Milliseconds by the host's clock, providers in turn."""
    device = leaves[0].device
    times: dict[str, list[float]] = {provider.name: [] for provider in providers}
    deadline = time.perf_counter() + SECONDS_PER_CASE[device.type] * len(providers)
    for round_number in range(ROUNDS[1]):
        over = time.perf_counter() - deadline
        if over > 0 and round_number >= (ROUNDS[0] if over < SECONDS_OF_MANY_ROUNDS else 3):
            break
        for provider in providers:
            if device.type == "cpu" and _half_of_the_memory_is_held():
                # What the others have freed lies in pieces: it goes back before there is none left, and a run
                # that is not timed faults in what this one needs.
                ctypes.CDLL(None).malloc_trim(0)
                _step(provider, leaves, grad)
            synchronize(device)
            start = time.perf_counter()
            _step(provider, leaves, grad)
            synchronize(device)
            times[provider.name].append((time.perf_counter() - start) * 1e3)
    return times


def _graphs(providers: list[Provider], leaves: list[Tensor], grad: Tensor | None) -> dict[str, float | None]:
    graphs: dict[str, float | None] = {}
    for provider in providers:
        step = functools.partial(_step, provider, leaves, grad)
        graphs[provider.name] = _graph_ms(step, leaves[0].device) if leaves[0].device.type == "cuda" else None
    return graphs


def measure(
    op: str,
    shape: str,
    providers: list[Provider],
    inputs: list[Tensor],
    *,
    floor_bytes: dict[str, float],
    floor_flops: dict[str, float] | None = None,
    tolerance: float = 1e-4,
    packed: Callable[..., Tensor] = lambda result: result,
    whole_step: bool = False,
) -> list[Row]:
    """Rows for every provider, in each mode that ``floor_bytes`` names (``forward``, ``forward+backward``).

    Args:
        providers: the first is what the others' results are checked against; peers are those that are not ours.
        inputs: floating ones get gradients in the mode ``forward+backward``.
        floor_bytes: by mode, the bytes that any implementation must move.
        floor_flops: by mode, the multiplications and additions that any implementation must do; the floor is the
            longer of the two times.
        packed: what of the results is compared, given all of them; it is not timed.
        tolerance: largest difference from the first provider's results, relative to their largest value.
        whole_step: of a model, whose many layers add up what TF32 rounds: results are compared with it switched off.

    Raises:
        AssertionError: a provider's result is wrong; nothing is timed then.
    """
    device, dtype = inputs[0].device, inputs[0].dtype
    tf32 = torch.backends.cudnn.allow_tf32 and not whole_step
    if device.type == "cuda" and dtype == torch.float32 and tf32:
        tolerance = max(tolerance, 5e-3)  # torch's default: convolutions round to 10 bits
    leaves_of = {
        mode: [t.detach().requires_grad_(mode == "forward+backward" and t.is_floating_point()) for t in inputs]
        for mode in floor_bytes
    }
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=tf32):
        grads = {
            mode: _check(f"{op} {shape} {mode}", providers, leaves, tolerance, packed)
            for mode, leaves in leaves_of.items()
        }
    rows = []
    with alone(device):
        for mode, moved in floor_bytes.items():
            flops = floor_flops[mode] if floor_flops is not None else 0.0
            case = providers, leaves_of[mode], grads[mode]
            peaks, times, graphs = _peaks(*case), _times(*case), _graphs(*case)
            floor = 1e3 * max(moved / bandwidth(device), flops / flop_rate(device, dtype) if flops else 0.0)
            percentiles = {
                name: torch.tensor(t).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist() for name, t in times.items()
            }
            peers = [percentiles[provider.name][1] for provider in providers if not provider.is_ours]
            best_peer = min(peers or [percentiles[providers[0].name][1]])
            for provider in providers:
                p20, p50, p80 = percentiles[provider.name]
                rows.append(
                    Row(
                        op, provider.name, provider.role, mode, shape, str(dtype).removeprefix("torch."),
                        device_name(device), device.type, torch.get_num_threads(), torch.__version__, commit(),
                        p20, p50, p80, best_peer / p50, floor, floor / p50, peaks[provider.name], graphs[provider.name],
                    )
                )  # fmt: skip
    return rows
