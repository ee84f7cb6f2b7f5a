"""Which instruction set's kernels are loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vpgfast.ops import _capability
from vpgfast.ops._registry import PACKAGE

V3 = "abm avx avx2 bmi1 bmi2 f16c fma movbe"
V4 = f"{V3} avx512bw avx512cd avx512dq avx512f avx512vl"


def processor(monkeypatch: pytest.MonkeyPatch, line: str | None) -> None:
    """As if ``/proc/cpuinfo`` held this line, or were not there."""
    monkeypatch.setattr(Path, "exists", lambda self: line is not None)
    monkeypatch.setattr(Path, "read_text", lambda self: f"processor : 0\n{line}\nprocessor : 1\n{line}\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (None, ["default"]),
        ("flags : fpu sse2 sse4_2", ["default"]),
        (f"flags : fpu {V3}", ["default", "v3"]),
        (f"flags : {V3.replace('fma', '')}", ["default"]),
        (f"flags : {V4}", ["default", "v3", "v4"]),
        (f"flags : {V4.replace('avx512vl', '')}", ["default", "v3"]),
        (f"flags : {V4.replace(' bmi2', '')}", ["default"]),
        ("Features : fp asimd evtstrm", ["default"]),
        ("Features : fp asimd sve", ["default", "sve"]),
    ],
)
def test_what_a_processor_has(monkeypatch: pytest.MonkeyPatch, line: str | None, expected: list[str]) -> None:
    processor(monkeypatch, line)
    assert _capability.supported() == expected


def test_the_best_that_was_built_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VPGFAST_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(_capability, "supported", lambda: ["default", "v3", "v4"])
    assert _capability.chosen(tmp_path) == "default"  # nothing was built: its absence is told elsewhere
    for name, best in (("_C.abi3.so", "default"), ("_C_v3.abi3.so", "v3"), ("_C_sve.abi3.so", "v3")):
        (tmp_path / name).touch()
        assert _capability.chosen(tmp_path) == best
    monkeypatch.setenv("VPGFAST_CPU_CAPABILITY", "default")
    assert _capability.chosen(tmp_path) == "default"
    monkeypatch.setenv("VPGFAST_CPU_CAPABILITY", "v4")
    with pytest.raises(ValueError, match="VPGFAST_CPU_CAPABILITY is 'v4'; of what this processor has, default, v3 was"):
        _capability.chosen(tmp_path)


@pytest.mark.parametrize("capability", _capability.available(PACKAGE))
def test_every_set_loads_and_computes(capability: str) -> None:
    code = (
        "import torch, vpgfast.ops as ops; from vpgfast.ops import _registry; x = torch.randn(2, 3, 21)\n"
        "with ops.backend('cpp'): ours = ops.temporal_map_max_pool(x)\n"
        "with ops.backend('reference'): assert torch.equal(ours, ops.temporal_map_max_pool(x))\n"
        "print(_registry.CPU_CAPABILITY)"
    )
    environment = os.environ | {"VPGFAST_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{capability}\n", "")
