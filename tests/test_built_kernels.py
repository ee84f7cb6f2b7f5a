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
SPILL = re.compile(r"vmov[a-z]+ .*%ymm\d+,-?(0x[0-9a-f]+)?\(%r[sb]p\)")
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
    """What lies between the target of a jump backward and the jump, where no other such loop lies within."""
    loops = []
    for address, line in code:
        if (jump := JUMP.search(line)) and code[0][0] <= int(jump[1], 16) < address:
            loops.append((int(jump[1], 16), address))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[line for address, line in code if start <= address <= end] for start, end in inner]
