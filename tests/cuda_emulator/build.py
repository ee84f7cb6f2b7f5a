"""Builds a library of emulated kernels: ``python build.py TREE MODE LIBRARY``, for every kernel of ``TREE/csrc/cuda``.

Modes: ``plain`` and ``races``, which are one library (``VPGFAST_EMULATED=races`` makes it look at accesses to memory);
``asan``, with AddressSanitizer and UndefinedBehaviorSanitizer. Objects are kept in ``VPGFAST_EMULATOR_CACHE`` (default:
``TREE/build/cuda_emulator``), by what they were made from.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from _build.extensions import PYTHON_TARGET, TORCH_TARGET, find_torch
from cuda_emulator.translate import translate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Misaligned accesses are told of in every mode: a vector load that is not aligned is an error on a GPU alone.
ALIGNMENT = "-fsanitize=alignment -fno-sanitize-recover=alignment"
KERNELS = {
    "plain": f"-O1 -g1 -fsanitize=thread {ALIGNMENT}",
    "asan": "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow "
    "-fno-sanitize=vptr,pointer-overflow -fno-sanitize-recover=all",
}
EMULATOR = {"plain": "-O2", "asan": "-O1 -g1 -fsanitize=address"}
# As a GPU multiplies and adds.
SHARED = (
    "-std=c++20 -fPIC -fvisibility=hidden -fno-math-errno -march=native -ffp-contract=fast -Wall -Wno-unknown-pragmas"
)


class Build:
    """Of the kernels of one tree in one mode."""

    def __init__(self, tree: Path, mode: str) -> None:
        torch = find_torch()
        assert torch is not None
        self.tree, self.mode, self.torch = tree, "plain" if mode == "races" else mode, torch
        self.cxx = os.environ.get("CXX", "g++")
        self.cache = Path(os.environ.get("VPGFAST_EMULATOR_CACHE", tree / "build" / "cuda_emulator"))
        self.cache.mkdir(parents=True, exist_ok=True)
        self.flags = [*SHARED.split(), f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
        self.flags += [f"-DPy_LIMITED_API={PYTHON_TARGET}", "-DVPGFAST_MODULE=_C"]
        # Where things lie is no part of what an object is made from: a copy of the tree finds the original's objects.
        places = [HERE / "include", HERE, tree / "csrc", torch / "include", sysconfig.get_paths()["include"]]
        self.places = [f"-I{place}" for place in places]
        self.new_objects = self.cache

    @cached_property
    def translated(self) -> Path:
        """Folder of the headers of ``csrc``, those for kernels translated."""
        headers = sorted(self.tree.glob("csrc/cuda/*.h"))
        texts = {file.name: f'#line 1 "{file.name}"\n{translate(file.read_text())}' for file in headers}
        folder = self.cache / f"headers-{self.key(*texts.items())}" / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _write(folder / name, text)
        return folder.parent

    def key(self, *parts: object) -> str:
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]

    @cached_property
    def state(self) -> str:
        """Of all that every object depends on."""
        files = [*HERE.glob("include/*"), *HERE.glob("*.h"), *self.tree.glob("csrc/common/*.h")]
        return self.key([(file.name, file.read_text()) for file in sorted(files)], self.flags, self.torch, self.cxx)

    @cached_property
    def prefix(self) -> Path:
        """A header, compiled ahead, that stands in for CUDA's and torch's."""
        flags = [*self.flags, *self.places, *KERNELS[self.mode].split()]
        name = self.key(self.state, KERNELS[self.mode])
        prefix = self.cache / f"prefix-{name}" / "prefix.h"
        prefix.parent.mkdir(exist_ok=True)
        compiled = prefix.with_suffix(".h.gch")
        if not compiled.exists():
            _write(prefix, "#include <cuda_runtime.h>\n")
            self.run(*flags, "-x", "c++-header", str(prefix), "-o", f"{compiled}.{os.getpid()}")
            os.replace(f"{compiled}.{os.getpid()}", compiled)
        return prefix

    def run(self, *arguments: str) -> None:
        done = subprocess.run([self.cxx, *arguments], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{done.stderr[-6000:]}\nbuild.py: {self.cxx} failed")

    def compile(self, name: str, text: str, flags: list[str]) -> Path:
        """The object of a source, made if it is not in the cache."""
        file = f"{name}-{self.key(self.state, text, flags)}"
        made = self.cache / f"{file}.o"
        if not made.exists():
            made = self.new_objects / f"{file}.o"
            source, target = (made.with_name(f"{file}.{os.getpid()}.{ending}") for ending in ("cpp", "o"))
            source.write_text(text)
            self.run(*self.flags, *flags, *self.places, "-c", str(source), "-o", str(target))
            target.rename(made)
            source.unlink()
        return made

    def kernel(self, source: Path) -> Path:
        """The object of a ``.cu`` file."""
        text = f'#line 1 "{source.name}"\n{translate(source.read_text())}'
        flags = ["-include", str(self.prefix), *KERNELS[self.mode].split(), f"-I{self.translated}"]
        return self.compile(source.stem, text, flags)

    def emulator(self, *extra: str) -> list[Path]:
        def one(source: Path) -> Path:
            flags = [*EMULATOR[self.mode].split(), *extra]
            text = f'#line 1 "{source.name}"\n{source.read_text()}'
            return self.compile(f"emulator-{source.stem}", text, flags)

        with self.pool() as pool:
            return list(pool.map(one, sorted(HERE.glob("*.cpp"))))

    def kernels(self) -> dict[str, Path]:
        """The object of every ``.cu`` file, by the file's name without its ending."""
        sources = sorted(self.tree.glob("csrc/cuda/*.cu"))
        assert self.prefix
        assert self.translated
        with self.pool() as pool:
            objects = pool.map(self.kernel, sources)
            return {source.stem: made for source, made in zip(sources, objects, strict=True)}

    def module(self) -> Path:
        """The object that makes the library one that Python can import."""
        return self.compile("module", (self.tree / "csrc/common/module.cpp").read_text(), [])

    def link(self, objects: list[Path], library: Path) -> None:
        sanitizers = KERNELS[self.mode].split() if self.mode == "asan" else []
        libraries = [f"-L{self.torch / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]
        self.run(*sanitizers, "-shared", *map(str, objects), *libraries, "-o", str(library))

    def pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", 0)) or os.cpu_count())


def _write(path: Path, text: str) -> None:
    """Only if it is another text: what a compiled header was made from must stay as old as it is."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    tree, mode, library = sys.argv[1:]
    build = Build(Path(tree).resolve(), mode)
    build.link([*build.emulator(), build.module(), *build.kernels().values()], Path(library))
