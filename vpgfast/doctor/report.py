"""What the doctor finds."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path

import av
import torch

from vpgfast import __version__, ops
from vpgfast.ops import _registry
from vpgfast.ops._capability import DEFAULT, NEEDS, available, library_of, supported
from vpgfast.ops._registry import DEVICES, LIBRARY, MISSING, OPS, PACKAGE, Op, build_info, implementation
from vpgfast.video import torchcodec_backend

PACKAGES = ("torch", "numpy", "h5py", "av", "lightning-fabric", "jsonargparse", "safetensors", "matplotlib")
EXTRAS = {"tensorboard": "tensorboard", "triton": "triton"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed (pip install {package})"


def _versions() -> list[str]:
    lines = [f"vpgfast {__version__} in {PACKAGE}", f"Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines.append(f"CPU threads: {torch.get_num_threads()}, instruction set {torch.backends.cpu.get_cpu_capability()}")
    if torch.version.cuda is None:
        lines.append("CUDA: this torch is a CPU build")
    elif not torch.cuda.is_available():
        lines.append(f"CUDA {torch.version.cuda} in torch, but no usable GPU or driver on this machine")
    else:
        lines += [
            f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name(index)}, compute capability "
            + ".".join(map(str, torch.cuda.get_device_capability(index)))
            for index in range(torch.cuda.device_count())
        ]
    return lines


def _libraries() -> list[str]:
    info, lines = build_info(), [_instruction_sets()]
    for library, what in (("_C", "C++ kernels for the CPU"), ("_C_cuda", "CUDA kernels")):
        name = library_of(_registry.CPU_CAPABILITY or DEFAULT) if library == "_C" else library
        found = sorted(Path(PACKAGE).glob(f"{name}.*so"))
        built = f"{found[0].name}, built against torch {info.get('torch', 'unknown')}" if found else "not built"
        state = "loaded" if library not in MISSING else f"not in use: {MISSING[library]}"
        lines.append(f"{library} ({what}): {built}; {state}")
    return lines


def _instruction_sets() -> str:
    """For which ones C++ kernels were built, and which of them this processor runs."""
    found = available(PACKAGE)
    better = [name for name in supported() if name not in found and name in NEEDS]
    text = f"C++ kernels for {', '.join(found) or 'no instruction set'} (VPGFAST_CPU_CAPABILITY chooses)"
    text += f"; {_registry.CPU_CAPABILITY} in use" if _registry.CPU_CAPABILITY else ""
    return text + (f"; this processor has {better[-1]}, which was not built" if better else "")


def _video() -> list[str]:
    """What decodes videos, and why."""
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    ffmpeg = getattr(av, "ffmpeg_version_info", None) or f"libavcodec {libavcodec}"
    missing = torchcodec_backend.why_not()
    found = missing or f'{_version("torchcodec")} loads, and backend="torchcodec" uses it'
    return [
        f"decoder: PyAV {_version('av')} with FFmpeg {ffmpeg}, because it reads every file and is as fast on a CPU",
        f"torchcodec (not needed): {found}",
    ]


def _better(op: Op, device: str, chosen: str) -> str:
    """What would be better than the implementation chosen, and the command that gives it; empty if nothing would."""
    best = "cpp" if device == "cpu" else "triton" if op.triton is not None else "cuda"
    if chosen == best:
        return ""
    if ops.get_backend() == chosen:
        return f"VPGFAST_BACKEND={chosen} chose it; cure: unset VPGFAST_BACKEND"
    if best == "triton":
        return "triton is not installed; cure: pip install triton"
    return f"{LIBRARY[device]} is {MISSING[LIBRARY[device]]}"


def _measured() -> tuple[str, dict[str, str]]:
    """How many times faster than plain PyTorch the C++ kernels in use were found: where, and from to, by op."""
    found = json.loads((Path(__file__).parent / "measured.json").read_text()).get(_registry.CPU_CAPABILITY)
    if found is None:
        return "", {}
    return found["machine"], {op: f"{least:.1f}x to {most:.1f}x" for op, (least, most) in found["ops"].items()}


def _table() -> tuple[list[str], bool]:
    """A row an op: its implementation on each device. Also whether all of them run on a kernel."""
    width = max(map(len, OPS))
    machine, speed = _measured()
    lines = [f"{'op':{width}}  " + "  ".join(f"{device:9}" for device in DEVICES)]
    if machine:
        lines[0] += f"  over plain PyTorch, by shape ({machine}, {_registry.CPU_CAPABILITY}; docs/benchmarks.md)"
    notes: dict[str, None] = {}
    for name, op in sorted(OPS.items()):
        row = []
        for device in DEVICES:
            chosen = implementation(op, device, ops.get_backend())
            row.append(f"{chosen:9}")
            if note := _better(op, device, chosen):
                notes[f"{device}: {note}"] = None
        lines.append(f"{name:{width}}  {'  '.join(row)}  {speed.get(name, '')}".rstrip())
    return lines + [f"! {note}" for note in notes], not notes


def report() -> bool:
    """Print it all. Whether every op runs on a kernel on every device that torch can use."""
    table, healthy = _table()
    sections = {
        "Versions": _versions(),
        "Kernel libraries": _libraries(),
        f"Ops (backend choice: {ops.get_backend()})": table,
        "Video": _video(),
        "Extras": [f"{extra}: {_version(package)}" for extra, package in EXTRAS.items()],
    }
    for title, lines in sections.items():
        print(f"\n{title}")
        for line in lines:
            print(f"  {line}")
    print("\nAll ops run on kernels." if healthy else "\nSome ops could run faster; see the lines with !")
    return healthy
