"""The emulator itself, on small kernels: what is right runs, what is wrong is told of (snippets.cu)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from cuda_emulator.build import ROOT, Build
from cuda_emulator.translate import TranslationError, translate

HERE = Path(__file__).resolve().parent
RUN = "import ctypes, sys; sys.exit(getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])())"


@cache
def library(mode: str, *extra: str) -> tuple[Path, dict[str, str]]:
    """The snippets' library, and what the environment must have for it."""
    build = Build(ROOT, mode)
    objects = [*build.emulator(*extra), build.kernel(HERE / "snippets.cu")]
    made = build.cache / f"snippets-{build.mode}-{build.key(objects)}.so"
    if not made.exists():
        build.link(objects, made)
    environment = {"LD_LIBRARY_PATH": str(build.torch / "lib"), "VPGFAST_EMULATED": mode}
    if mode == "asan":
        found = [
            subprocess.check_output([build.cxx, f"-print-file-name=lib{name}.so"], text=True).strip()
            for name in ("asan", "ubsan", "stdc++")
        ]
        environment |= {"LD_PRELOAD": ":".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    return made, environment


def run(mode: str, snippet: str, *extra: str, **settings: str) -> tuple[int, str]:
    """Its exit status and what it said."""
    made, environment = library(mode, *extra)
    settings = {
        f"VPGFAST_EMULATOR_{name}": value for name, value in ({"SEED": "1", "POISON": "0xff"} | settings).items()
    }
    command = [sys.executable, "-c", RUN, str(made), snippet]
    done = subprocess.run(command, env=os.environ | environment | settings, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


RIGHT = (
    "shared_with_barrier", "shared_with_syncwarp", "shared_read_then_written", "blocks_add_atomically",
    "last_block_adds_up", "unwritten_is_poison", "copy_waited_for", "vector_load_aligned", "failed_assertion",
    "shared_memory_limits", "within_bounds", "matrix_products", "functions_of_a_warp", "numbers_beside_nan",
)  # fmt: skip


@pytest.mark.parametrize("mode", ["plain", "races"])
@pytest.mark.parametrize("snippet", RIGHT)
def test_right(mode: str, snippet: str) -> None:
    assert run(mode, snippet) == (0, "")


WRONG = {
    "barrier_without_one": "thread 5 has left and does not come|threads 5 to 5 have left",
    "barriers_in_two_places": "threads of one block wait at two barriers",
    "lanes_missing": "no thread can go on:\n.* meet at",
    "lanes_not_named": "leaves the thread itself out",
    "lanes_in_two_places": "lanes of one warp meet at .* and ",
    "copy_not_waited_for": "leaves without having waited for its asynchronous copies",
    "fixed_and_asked_for": r"\d+ bytes of shared memory, .* are more than allowed",
    "vector_load_misaligned": "'float4' at an address that is a multiple of (4|8), not of 16|float4",
}


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize("snippet", list(WRONG))
def test_wrong(snippet: str, seed: str) -> None:
    status, said = run("plain", snippet, SEED=seed)
    assert status < 0
    assert re.search(WRONG[snippet], said), said
    assert f"VPGFAST_EMULATOR_SEED={seed}" in said


RACES = {
    "shared_with_nothing": "race in shared memory: .*snippets.cu:\\d+; .* of thread \\d+ at snippets.cu:\\d+",
    "shared_with_shuffle": "race in shared memory: ",
    "blocks_write_one_place": "race in global memory: .* of another block",
    "last_block_without_fences": "race in global memory: .* of another block",
    "blocks_read_and_write": "race in global memory: .* of another block",
}


@pytest.mark.parametrize("seed", ["1", "2", "3"])
@pytest.mark.parametrize("snippet", list(RACES))
def test_races(snippet: str, seed: str) -> None:
    status, said = run("races", snippet, SEED=seed)
    assert status < 0
    assert re.search(RACES[snippet], said), said


def test_what_a_copy_brings_is_not_there_before_it_has_been_waited_for() -> None:
    assert run("plain", "copy_read_too_early") == (0, "")


def test_poison_is_the_byte_that_was_asked_for() -> None:
    assert run("plain", "unwritten_is_poison", POISON="0x3c")[0] == 1


@pytest.mark.nightly  # as the mode that it is about
@pytest.mark.parametrize("snippet", ["beyond_dynamic", "beyond_static", "beyond_global"])
def test_out_of_bounds(snippet: str) -> None:
    assert run("asan", "within_bounds") == (0, "")
    status, said = run("asan", snippet)
    assert status != 0
    assert "AddressSanitizer" in said or "runtime error: index 8 out of bounds" in said


def test_the_host_may_not_wait_in_a_capture() -> None:
    assert run("plain", "copies_in_a_capture", CAPTURE="1") == (0, "")


@pytest.mark.parametrize("snippet", ["shared_with_barrier", "failed_assertion", "functions_of_a_warp"])
def test_fibers_of_other_processors(snippet: str) -> None:
    assert run("plain", snippet, "-DCUDA_EMULATOR_UCONTEXT") == (0, "")


def test_traffic(tmp_path: Path) -> None:
    """Two warps that write shared memory, read it crosswise and write what they have read."""
    assert run("plain", "shared_with_barrier", TRAFFIC=str(tmp_path / "lines"))[0] == 0
    (launch,) = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    assert launch["kernel"] == "pass_on<kFence>"
    assert (launch["grid"], launch["block"]) == ([1, 1, 1], 64)
    assert launch["shared"] == {"requests": 4, "passes": 4, "least_passes": 4}
    assert launch["loads"]["requests"] == 0
    assert (launch["stores"]["requests"], launch["stores"]["bytes"]) == (2, 256)
    assert launch["stores"]["sectors"] in (8, 10)  # the array may begin in the middle of one
    assert launch["bytes_written_once"] in (256, 288)


def test_translation() -> None:
    """Lines keep their numbers; what comments and strings say is not code."""
    text = """// f<<<1, 2>>>(x); __shared__ int z;
__shared__ float a[2][3],
    b;
extern __shared__ __align__(16) unsigned char bytes[];
space::f<T, Pack<float, 4>>
    <<<grid(1, 2), 3, 0, stream>>>(x,
                                   y);
g<<<1, 2>>>();
STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) { say("g<<<1>>>()"); }
"""
    lines = translate(text).split("\n")
    assert len(lines) == len(text.split("\n"))
    assert lines[0] == text.split("\n")[0]
    assert lines[1].startswith("static float a[2][3],")
    assert lines[3] == "auto* bytes = static_cast<unsigned char*>(cuda_emulator::dynamic_shared(16));"
    assert 'Launch("space::f<T, Pack<float, 4>>", ' in lines[4]
    assert "{ space::f<T, Pack<float, 4>>(a...); }," in lines[4]
    assert lines[6].strip() == "y);"
    assert lines[7].endswith("{ g(a...); });")
    assert lines[8] == text.split("\n")[8].replace("CUDA", "CPU")


UNKNOWN = ["__shared__ struct { int a; } b;", "extern __shared__ int a;", "(*f)<<<1, 2>>>();", 'asm volatile("x" : );']


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_is_not_known_is_not_translated(text: str) -> None:
    with pytest.raises(TranslationError):
        translate(text)
