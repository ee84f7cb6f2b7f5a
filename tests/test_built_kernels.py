"""What the compiler made of the kernels for AVX2: registers of 32 bytes, multiply-adds, and nothing put aside in memory
within the inner loops. Nothing is timed."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from functools import cache

import pytest

from vpgfast.ops._registry import PACKAGE

LIBRARY = PACKAGE / "_C_v3.abi3.so"
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86-64 alone")

JUMP = re.compile(r"\bj[a-z]+ +([0-9a-f]+) <")
ADDRESS = re.compile(r"^ +([0-9a-f]+):\t")
SPILL = re.compile(r"\tvmov[a-z]+ +%ymm\d+,(-?(?:0x[0-9a-f]+)?\(%r[sb]p\))")
ARITHMETIC = re.compile(r"\tv(fn?m(add|sub)\d+|add|sub|mul|div|max|min)p[sd] .*%ymm")


@cache
def functions() -> dict[str, list[tuple[int, str]]]:
    """Instructions of every function of the library: address and text."""
    objdump = shutil.which("objdump")
    assert objdump, "objdump is a part of binutils, as the assembler is"
    found: dict[str, list[tuple[int, str]]] = {}
    listing = subprocess.run(
        [objdump, "-dC", "--no-show-raw-insn", LIBRARY], capture_output=True, text=True, check=True
    )
    for line in listing.stdout.splitlines():
        if line.endswith(">:"):
            current = found.setdefault(line.partition("<")[2][:-2], [])
        elif address := ADDRESS.match(line):
            current.append((int(address[1], 16), line))
    return found


def inner_loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """What lies between the target of a jump backward and the jump, where no other jump between stays inside."""
    loops = []
    for end, line in code:
        if (jump := JUMP.search(line)) and code[0][0] <= (start := int(jump[1], 16)) < end:
            loop = [text for at, text in code if start <= at <= end]
            others = [int(other[1], 16) for text in loop[:-1] if (other := JUMP.search(text))]
            if not any(start <= target <= end for target in others):
                loops.append(loop)
    return loops


# The inner loops of each kernel, by the names of its functions, and the instruction that does their work.
HOT = {
    "small_gemm<float>": "vfmadd",
    "panel_gemm<float>": "vfmadd",
    "gather_tile<float, ": "vfmadd",
    "scatter_tile<float, ": "vfmadd",
    "relevance_block<float>": "vfmadd",
    "masked_sums<float>": "vaddps",
    "max_pool_columns<float, false>": "vpmaxsd",
    "cells_loss<float, float>": "vfmadd",
    "cells_gradient<float, float>": "vfmadd",
    "ordered_suppression_scan(": "vdivps",
    "ordered_suppression_scan_backward(": "vfmadd",
    "anchor_cross_attention(": "vfmadd",
    "anchor_cross_attention_backward(": "vfmadd",
    "temporal_iou_map(": "vdivps",
    "temporal_iou(": "vdivps",
    "rows_backward<false, float, float>": "vdivps",
}


@pytest.mark.parametrize(("name", "instruction"), HOT.items(), ids=HOT)
def test_inner_loops_fill_registers_and_spill_none(name: str, instruction: str) -> None:
    of_float32 = [code for f, code in functions().items() if name in f and not re.search("<(double|c10::)", f)]
    loops = [loop for code in of_float32 if code for loop in inner_loops(code)]
    work = [loop for loop in loops if any(instruction in line and "%ymm" in line for line in loop)]
    assert work, f"{name} has {len(loops)} inner loops, and none with {instruction} of 32 bytes"
    for loop in work:
        put_aside = [found[1] for line in loop if (found := SPILL.search(line))]
        fetched = [slot for slot in put_aside if any(f"{slot}," in line for line in loop)]
        assert not fetched, "\n".join(loop)


def test_no_kernel_has_registers_that_avx2_lacks() -> None:
    listing = [line for code in functions().values() for _, line in code]
    assert sum("%ymm" in line for line in listing) > 1000
    assert not [line for line in listing if re.search(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b", line)]
