"""Where the time of a training step goes on a GPU, by method: ``python -m benchmarks.step_profile [METHOD ...]``.

For our step and for plain PyTorch without compiling (of MARN: the field's form): the step by the clock, for how long
the GPU has work, how many kernels are launched, the ten longest, and the lines of ours that make the host wait. A GPU
that has little to do waits for the host, and faster kernels do not help.
"""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from . import test_dmr_jrg, test_marn, test_seqpan, test_siamgtr, test_wsra
from .measure import commit

STEPS = 10
LONGEST = 10
# The batch of each paper, or what of it fits; the names of our step and of the plain one in the method's benchmark.
METHODS: dict[str, tuple[Callable[[torch.device], tuple[Any, Any]], tuple[str, ...]]] = {
    "seqpan": (lambda device: test_seqpan.make_step(16, device), ("vpgfast",)),
    "marn": (lambda device: test_marn.make_step("Charades-STA", 16, device), ("ours", "field")),
    "wsra": (lambda device: test_wsra.make_step(42, device), ("vpgfast", "broadcast")),
    "dmr_jrg": (lambda device: test_dmr_jrg.make_step(4, 8, device, segments=32), ("vpgfast", "plain")),
    "siamgtr": (lambda device: test_siamgtr.make_step(32, device), ("vpgfast", "batched")),
}


def milliseconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        work()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / STEPS


def waits(work: Callable[[], object]) -> Counter[str]:
    """The lines at which the host waits for the GPU in a call, innermost first."""
    found: Counter[str] = Counter()

    def note(*_: object, **__: object) -> None:
        lines = [f"{f.filename.rpartition('vpgfast/')[2]}:{f.lineno}" for f in traceback.extract_stack()]
        ours = [line for line in lines if line.startswith(("models/", "nn/", "ops/", "data/"))]
        found[" < ".join(ours[:-3:-1]) or "backward"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def describe(method: str, way: str, step: Any, batch: Any) -> None:
    def train() -> None:
        step.zero_grad(set_to_none=True)
        loss: Tensor = step(way, batch)
        loss.backward()

    for _ in range(5):
        train()
    forward, whole = milliseconds(lambda: step(way, batch)), milliseconds(train)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        train()
        torch.cuda.synchronize()
    kernels = [event for event in profiled.key_averages() if event.device_type == DeviceType.CUDA]
    busy, launches = sum(k.self_device_time_total for k in kernels) / 1e3, sum(k.count for k in kernels)
    print(f"\n{method}, {way}: forward {forward:.2f} ms, step {whole:.2f} ms")
    print(f"  the GPU is busy for {busy:.2f} ms, with {launches} kernels; the longest:")
    for kernel in sorted(kernels, key=lambda k: -k.self_device_time_total)[:LONGEST]:
        print(f"  {kernel.self_device_time_total / 1e3:8.3f} ms  {kernel.count:4} x {kernel.key[:100]}")
    for line, times in waits(train).most_common():
        print(f"  the host waits {times} x at {line}")


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.step_profile", description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    methods = parser.parse_args().methods
    if unknown := set(methods) - set(METHODS):
        parser.error(f"{', '.join(sorted(unknown))}: no such method; there are {', '.join(METHODS)}")
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {commit()}")
    for method in methods:
        make, ways = METHODS[method]
        step, batch = make(device)
        for way in ways:
            describe(method, way, step, batch)
        del step, batch
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
