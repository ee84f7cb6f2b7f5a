"""A few kills of every command at random moments; ``python tests/commands/crash.py`` makes two hundred of each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ["index", "index-videos", "add", "remove", "compact", "build-faiss", "query", "train", "overwrite", "corpus"]
COMMANDS += ["extract", "extract-files"]


def crash(*arguments: str) -> str:
    program = Path(__file__).with_name("crash.py")
    done = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_a_few_kills() -> None:
    pytest.importorskip("faiss", reason="needs the extra `faiss` (the extra `test` brings it)")
    told = crash("--kills=2", "--only", *COMMANDS)
    assert [line.split(",")[0] for line in told.splitlines() if line] == [f"{name}: 2 kills" for name in COMMANDS]


@pytest.mark.nightly
def test_a_kill_of_ablate() -> None:
    assert "ablate: 2 kills, 0 faults" in crash("--kills=2", "--only", "ablate")
