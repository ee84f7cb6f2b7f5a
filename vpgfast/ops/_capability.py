"""The instruction sets that the C++ kernels are compiled for, and which of them this processor has.

Each set is a library of its own, so that every kernel of it uses registers as wide, and as many, as the set has. One of
them is loaded: the best that was built and that the processor has, or the one that ``VPGFAST_CPU_CAPABILITY`` names.
"""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT = "default"
"""What every processor of an architecture has: x86-64-v2, or NEON on aarch64."""
NEEDS = {
    "sve": {"sve"},
    "v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
    "v4": {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"},
}
"""The further sets, better ones last, and what ``/proc/cpuinfo`` calls their parts."""


def library_of(capability: str) -> str:
    """Name of the extension module that holds the kernels for an instruction set."""
    return "_C" if capability == DEFAULT else f"_C_{capability}"


def supported() -> list[str]:
    """The instruction sets that this processor has, better ones last."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    found = [DEFAULT]
    for capability, needs in NEEDS.items():
        base = NEEDS["v3"] if capability == "v4" else set()
        if needs | base <= set(flags):
            found.append(capability)
    return found


def available(package: Path) -> list[str]:
    """Those of :func:`supported` that were built into the package's folder."""
    return [name for name in supported() if any(package.glob(f"{library_of(name)}.*so"))]


def chosen(package: Path) -> str:
    """The instruction set whose kernels are to be loaded.

    Raises:
        ValueError: ``VPGFAST_CPU_CAPABILITY`` names one that was not built, or that this processor does not have.
    """
    found = available(package)
    asked = os.environ.get("VPGFAST_CPU_CAPABILITY")
    if asked is None:
        return found[-1] if found else DEFAULT
    if asked not in found:
        built = ", ".join(found) or "nothing"
        raise ValueError(f"VPGFAST_CPU_CAPABILITY is {asked!r}; of what this processor has, {built} was built")
    return asked
