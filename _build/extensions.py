"""Compiles ``vpgfast._C`` (C++, CPU) and ``vpgfast._C_cuda`` (CUDA) against torch's stable ABI.

The C++ kernels are compiled once for each instruction set: ``_C`` is for every processor of the architecture,
``_C_v3``, ``_C_v4`` and so on for those that have more (``vpgfast/ops/_capability.py`` chooses among them).
``VPGFAST_CPU_CAPABILITIES="default v3"`` builds these alone.

``VPGFAST_BUILD`` chooses what is built:

- ``auto`` (default): ``_C``, and ``_C_cuda`` where nvcc is found; a CUDA build that fails leaves the CPU
  build standing.
- ``cpu``: ``_C`` alone.
- ``cuda``: both; any failure is an error.
- ``none``: nothing; every op then runs on its plain-PyTorch reference.

What was built, against what, and why something was not, is written beside the libraries as ``_build_info.json``
for ``python -m vpgfast.doctor``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent
MODES = ("auto", "cpu", "cuda", "none")
MINIMUM_TORCH = (2, 11)
# The oldest torch and CPython whose stable interfaces the libraries may use, hence the oldest that can load them.
TORCH_TARGET = f"0x{MINIMUM_TORCH[0]:02x}{MINIMUM_TORCH[1]:02x}000000000000"
PYTHON_TARGET = "0x030b0000"
INFO_FILE = "_build_info.json"

# Instruction sets by architecture: the compiler's flags. Another set is another entry, and what it needs in
# vpgfast/ops/_capability.py.
CPU_CAPABILITIES = {
    "x86_64": {"default": ["-march=x86-64-v2"], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4"]},
    "aarch64": {"default": [], "sve": ["-march=armv8.2-a+sve"]},
}
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",  # or loops with a division in a branch are not vectorised without masked instructions
    "-fopenmp-simd",
    "-Wall",
    "-Wextra",
]
# -O1 is for what launches the kernels; these themselves nvcc optimises as far as it can whatever is asked for here.
NVCC_FLAGS = ["-std=c++20", "-O1", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr", "-lineinfo"]


class BuildError(SystemExit):
    """Ends the build with a message that pip shows as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\nvpgfast: {message}\n")


def build_mode() -> str:
    mode = os.environ.get("VPGFAST_BUILD", "auto")
    if mode not in MODES:
        raise BuildError(f"VPGFAST_BUILD is {mode!r}; it must be one of {', '.join(MODES)}.")
    return mode


def find_torch() -> Path | None:
    """Folder of the torch to build against: importable here, or installed in the environment pip installs into."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    for key in ("purelib", "platlib"):
        torch = Path(sysconfig.get_paths()[key]) / "torch"
        if (torch / "version.py").exists():
            return torch
    return None


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else []
    return next(filter(None, map(shutil.which, [*candidates, "nvcc", "/usr/local/cuda/bin/nvcc"])), None)


def torch_version(torch: Path) -> str:
    found = re.search(r"__version__ = ['\"]([^'\"]+)", (torch / "version.py").read_text())
    return found.group(1) if found else "unknown"


def cuda_architectures() -> list[str]:
    """``TORCH_CUDA_ARCH_LIST``, else this machine's GPUs, else Ampere and PTX that newer ones compile at load."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not listed and (smi := shutil.which("nvidia-smi")):
        query = subprocess.run(
            [smi, "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True
        )
        listed = sorted({line.strip() for line in query.stdout.splitlines() if re.fullmatch(r"\d+\.\d", line.strip())})
    flags = []
    for entry in listed or ["8.0+PTX"]:
        arch = entry.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return flags


def cpu_capabilities() -> dict[str, list[str]]:
    """Extension modules of C++ kernels, and the compiler's flags for the instruction set of each."""
    known = CPU_CAPABILITIES.get(platform.machine(), {"default": []})
    asked = os.environ.get("VPGFAST_CPU_CAPABILITIES", " ".join(known)).split()
    if not set(asked) <= set(known) or "default" not in asked:
        raise BuildError(
            f"VPGFAST_CPU_CAPABILITIES is {' '.join(asked)!r}; it must be some of {', '.join(known)}, and hold default."
        )
    return {"_C" if name == "default" else f"_C_{name}": known[name] for name in known if name in asked}


def extension_modules() -> list[Extension]:
    """The extension modules that ``VPGFAST_BUILD`` and this machine ask for."""
    mode = build_mode()
    names = [] if mode == "none" else list(cpu_capabilities())
    if mode == "cuda" or (mode == "auto" and find_nvcc()):
        names.append("_C_cuda")
    for stale in (ROOT / "vpgfast").glob("_C*.so"):  # an earlier build's library must not be picked up
        if stale.name.partition(".")[0] not in names:
            stale.unlink()
    (ROOT / "vpgfast" / INFO_FILE).unlink(missing_ok=True)

    def sources(*patterns: str) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))

    cpu, cuda = sources("common/*.cpp", "cpu/*.cpp"), sources("common/*.cpp", "cuda/*.cu")
    return [Extension(f"vpgfast.{name}", cuda if name == "_C_cuda" else cpu, py_limited_api=True) for name in names]


class BuildExtensions(build_ext):
    """Compiles with g++ and nvcc directly: neither needs torch to be imported, nor a CUDA build of it."""

    def build_extensions(self) -> None:
        torch = find_torch()
        if torch is None:
            raise BuildError(
                "no torch found to build against. Install it first (pip install torch), or build none of the kernels: "
                "VPGFAST_BUILD=none pip install ."
            )
        version = torch_version(torch)
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < MINIMUM_TORCH:
            minimum = ".".join(map(str, MINIMUM_TORCH))
            raise BuildError(
                f"torch {version} in {torch} is too old: the kernels need torch {minimum} or newer. "
                "Upgrade it, or set VPGFAST_BUILD=none."
            )
        self.torch = torch
        built: list[str] = []
        not_built: dict[str, str] = {}
        # All files of all extensions together, what takes longest first: no core waits for the last file of each.
        jobs = int(os.environ.get("MAX_JOBS", 0)) or os.cpu_count() or 1
        for extension in filter(_is_cuda, self.extensions):
            extension.sources = self._gather(extension, max(jobs, 4))
        files = [(extension, source) for extension in self.extensions for source in extension.sources]
        files.sort(key=lambda file: (file[1].endswith(".cu"), _size(file[1])), reverse=True)
        with ThreadPoolExecutor(jobs) as pool:
            headers = {
                ext.name: pool.submit(self._compile_headers, ext) for ext in self.extensions if not _is_cuda(ext)
            }
            objects = {(ext.name, source): pool.submit(self._compile, ext, source, headers) for ext, source in files}
            for extension in list(self.extensions):
                name = extension.name.rpartition(".")[2]
                try:
                    self._link(extension, [objects[extension.name, source].result() for source in extension.sources])
                    built.append(name)
                except (subprocess.CalledProcessError, OSError) as error:
                    reason = _first_error(error)
                    if name != "_C_cuda" or build_mode() == "cuda":
                        pool.shutdown(cancel_futures=True)
                    if name != "_C_cuda":
                        raise BuildError(
                            f"the C++ kernels could not be compiled.\n{reason}\nInstall a C++20 compiler (g++ 11 or "
                            "newer; CXX names another), or do without: VPGFAST_BUILD=none pip install ."
                        ) from None
                    if build_mode() == "cuda":
                        raise BuildError(f"the CUDA kernels could not be compiled.\n{reason}") from None
                    print(f"vpgfast: CUDA kernels not built, the CPU kernels are. Reason: {reason}")
                    not_built[name] = reason
                    self.extensions.remove(extension)
        if build_mode() == "auto" and "_C_cuda" not in {*built, *not_built}:
            not_built["_C_cuda"] = "nvcc was not found when the package was built"
        self.info = {"torch": version, "mode": build_mode(), "built": built, "not_built": not_built}
        self._write_info(Path(self.get_ext_fullpath("vpgfast._C")).parent)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        self._write_info(ROOT / "vpgfast")

    def _write_info(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INFO_FILE).write_text(json.dumps(self.info, indent=1))

    def _command(self, extension: Extension, cuda: bool) -> list[str]:
        """The compiler's call for a source file, without the file."""
        name = extension.name.rpartition(".")[2]
        cxx = os.environ.get("CXX", "g++")
        short_paths = f"-ffile-prefix-map={ROOT}/="  # in error messages
        if cuda:
            command = [_nvcc(), *NVCC_FLAGS, *cuda_architectures(), "-ccbin", cxx, f"-Xcompiler={short_paths}"]
        else:
            command = [cxx, *CXX_FLAGS, *cpu_capabilities().get(name, []), short_paths, *_extra_flags()]
        command += [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-DPy_LIMITED_API={PYTHON_TARGET}"]
        include = [ROOT / "csrc", self.torch / "include", sysconfig.get_paths()["include"]]
        return [*command, f"-DVPGFAST_MODULE={name}", *(f"-I{path}" for path in include)]

    def _gather(self, extension: Extension, count: int) -> list[str]:
        """Its sources, with ``count`` files that include the .cu files in place of these: for each file that it is
        given nvcc reads torch's headers four times, which takes longer than most kernels do."""
        kernels = sorted((source for source in extension.sources if source.endswith(".cu")), key=_size, reverse=True)
        units: list[list[str]] = [[] for _ in range(min(count, len(kernels)))]
        for source in kernels:
            min(units, key=lambda unit: sum(map(_size, unit))).append(source)
        folder = Path(self.build_temp, extension.name)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"kernels_{number}.cu" for number in range(len(units))]
        for path, unit in zip(written, units, strict=True):
            path.write_text("".join(f'#include "{ROOT / source}"\n' for source in sorted(unit)))
        return [
            *(source for source in extension.sources if source not in kernels),
            *map(str, map(Path.resolve, written)),
        ]

    def _compile_headers(self, extension: Extension) -> str:
        """A header that stands for torch's, which is compiled ahead: reading them is a third of the C++ build."""
        header = Path(self.build_temp, extension.name, "headers.h")
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text('#include "common/tensor.h"\n')
        _run([*self._command(extension, cuda=False), "-x", "c++-header", str(header), "-o", f"{header}.gch"])
        return str(header)

    def _compile(self, extension: Extension, source: str, headers: Mapping[str, Future[str]]) -> str:
        """Path of one source file's object."""
        command = self._command(extension, cuda=source.endswith(".cu"))
        if extension.name in headers:
            command += ["-include", headers[extension.name].result()]
        target = Path(self.build_temp, extension.name, source).with_suffix(".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        _run([*command, "-c", str(ROOT / source), "-o", str(target)])
        return str(target)

    def _link(self, extension: Extension, objects: list[str]) -> None:
        cxx = os.environ.get("CXX", "g++")
        # A static CUDA runtime: nothing to find at load time, and it shares torch's context.
        linker = [_nvcc(), "-cudart", "static", "-ccbin", cxx] if _is_cuda(extension) else [cxx, *_extra_flags()]
        library = Path(self.get_ext_fullpath(extension.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        _run([*linker, "-shared", *objects, f"-L{self.torch / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(library)])


def _size(source: str) -> int:
    return (ROOT / source).stat().st_size


def _is_cuda(extension: Extension) -> bool:
    return str(extension.name).endswith("_C_cuda")


def _extra_flags() -> list[str]:
    return os.environ.get("VPGFAST_CXXFLAGS", "").split()  # e.g. -fsanitize=address


def _nvcc() -> str:
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("nvcc was not found (looked at CUDA_HOME, PATH and /usr/local/cuda)")
    return nvcc


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)


def _first_error(error: subprocess.CalledProcessError | OSError) -> str:
    """The first line of a compiler's output that says what is wrong."""
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return next((line.strip() for line in lines if "error" in line.lower()), lines[-1].strip() if lines else str(error))
