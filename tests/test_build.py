"""The build: modes, what a wheel holds, and that a failing CUDA build costs nothing but the CUDA kernels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "_build", "csrc", "triton_kernels", "vpgfast")


def test_every_package_is_in_the_metadata() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "vpgfast").rglob("__init__.py")}
    assert listed == there | {"vpgfast.triton_kernels"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources without anything built."""
    skip = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        shutil.copytree(source, copy / name, ignore=skip) if source.is_dir() else shutil.copy(source, copy / name)
    return copy


def wheel(checkout: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], set[str], dict]:
    """Build a wheel; returns the process, the wheel's files and its build info."""
    folder = checkout.parent / "wheels"
    environment = {"VPGFAST_CPU_CAPABILITIES": "default", **environment}  # one of the libraries is enough
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(folder), "."]
    result = subprocess.run(
        command, cwd=checkout, env=os.environ | environment, capture_output=True, text=True, timeout=280
    )
    built = sorted(folder.glob("*.whl"))
    if not built:
        return result, set(), {}
    with zipfile.ZipFile(built[0]) as archive:
        files = set(archive.namelist())
        info = json.loads(archive.read("vpgfast/_build_info.json")) if "vpgfast/_build_info.json" in files else {}
    return result, files | {built[0].name}, info


@pytest.mark.slow
def test_none_needs_no_compiler_and_gives_a_pure_wheel(checkout: Path) -> None:
    result, files, _ = wheel(
        checkout, VPGFAST_BUILD="none", CXX="no-such-compiler", PATH=str(Path(sys.executable).parent)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "vpgfast-0.1.0-py3-none-any.whl" in files
    assert {"vpgfast/ops/temporal_iou.py", "vpgfast/triton_kernels/temporal_map_conv2d.py"} <= files
    assert not [name for name in files if name.endswith(".so")]
    assert not [name for name in files if name.startswith("triton_kernels")]


@pytest.mark.slow
def test_failing_cuda_build_leaves_the_cpu_kernels_and_the_reason(checkout: Path, tmp_path: Path) -> None:
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'nvcc fatal error: unsupported GNU version' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    home = str(tmp_path / "cuda")
    for source in (checkout / "csrc" / "cpu").glob("*.cpp"):
        if source.stem != "temporal_nms":  # one kernel is enough
            source.unlink()
    result, files, info = wheel(checkout, VPGFAST_BUILD="auto", CUDA_HOME=home, VPGFAST_CXXFLAGS="-O0")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "vpgfast/_C.abi3.so" in files
    assert "vpgfast/_C_cuda.abi3.so" not in files
    assert info["built"] == ["_C"]
    assert info["not_built"] == {"_C_cuda": "nvcc fatal error: unsupported GNU version"}


@pytest.mark.slow
def test_missing_compiler_is_one_readable_message(checkout: Path) -> None:
    result, files, _ = wheel(checkout, VPGFAST_BUILD="cpu", CXX="no-such-compiler")
    assert result.returncode != 0
    assert not files
    message = result.stdout + result.stderr
    assert "the C++ kernels could not be compiled" in message
    assert "no-such-compiler" in message
    assert "VPGFAST_BUILD=none" in message


def test_unknown_mode_is_named() -> None:
    code = "import sys; sys.path.insert(0, '_build'); import extensions; extensions.build_mode()"
    environment = os.environ | {"VPGFAST_BUILD": "gpu"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "VPGFAST_BUILD is 'gpu'; it must be one of auto, cpu, cuda, none" in result.stderr


def test_unknown_instruction_sets_are_named() -> None:
    code = "import sys; sys.path.insert(0, '_build'); import extensions; extensions.cpu_capabilities()"
    environment = os.environ | {"VPGFAST_CPU_CAPABILITIES": "v9"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "VPGFAST_CPU_CAPABILITIES is 'v9'; it must be some of default" in result.stderr


def test_installed_libraries_use_the_limited_api() -> None:
    """The names that one build for every CPython carries."""
    assert (ROOT / "vpgfast" / "_C.abi3.so").exists()
    assert not list((ROOT / "vpgfast").glob("_C*.cpython-*"))
