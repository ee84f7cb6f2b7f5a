"""``vpgfast ... | head``: where nobody reads what is printed, a command ends without a word; its files are written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_search
import video_files

from vpgfast import search
from vpgfast.__main__ import COMMANDS
from vpgfast.command import NOBODY_READS
from vpgfast.models.registry import METHODS
from vpgfast.search.actions import ACTIONS

TINY = str(Path(__file__).with_name("tiny.py"))


def without_reader(*arguments: str, both: bool = False) -> tuple[int, str]:
    """Exit code and stderr of ``python ARGUMENTS``, whose output (``both``: also its stderr) goes nowhere."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    stderr = writer if both else subprocess.PIPE
    try:
        done = subprocess.run([sys.executable, *arguments], stdout=writer, stderr=stderr, env=environment, check=False)
    finally:
        os.close(writer)
    return done.returncode, "" if both else done.stderr.decode()


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    assert without_reader("-m", f"vpgfast.{command}", "--help") == (NOBODY_READS, "")
    assert without_reader("-u", "-m", f"vpgfast.{command}", "--help") == (NOBODY_READS, "")
    assert without_reader("-m", "vpgfast", command, "--help") == (NOBODY_READS, "")


@pytest.mark.parametrize("action", ACTIONS)
def test_help_of_search(action: str) -> None:
    assert without_reader("-m", "vpgfast.search", action, "--help") == (NOBODY_READS, "")


def test_version() -> None:
    assert without_reader("-m", "vpgfast", "--version") == (NOBODY_READS, "")


def test_list_of_commands() -> None:
    assert without_reader("-m", "vpgfast", "--help") == (NOBODY_READS, "")
    assert without_reader("-m", "vpgfast") == (NOBODY_READS, "")


def test_head_gets_its_line() -> None:
    """The pipe of a shell, which head closes after it has read."""
    line = f"{sys.executable} -m vpgfast train --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m vpgfast.train")
    assert done.stdout.split()[-1] in ("0", "141")  # 0 if all had been written before head was done
    assert done.stderr == ""


@pytest.mark.parametrize(
    "unbuffered",
    [pytest.param((), id="in one piece"), pytest.param(("-u",), id="line by line", marks=pytest.mark.nightly)],
)
def test_results_are_in_the_files(run: Path, tmp_path: Path, unbuffered: tuple[str, ...]) -> None:
    features, out = tmp_path / "clips.npy", tmp_path / "out"
    np.save(features, np.ones((8, 144), np.float32))
    asked = ["--sentence", "the red circle moves", "--features", str(features), "--duration=10"]
    code, told = without_reader(*unbuffered, TINY, "ground", str(run), *asked, "--output", str(out))
    assert (code, told) == (NOBODY_READS, "")
    assert {file.name for file in out.iterdir()} == {"grounding.txt", "grounding.json", "grounding.png"}
    code, told = without_reader(*unbuffered, TINY, "evaluate", str(run), "--output", str(out))
    assert code == NOBODY_READS
    assert "Error" not in told
    assert {"metrics.json", "spans.png"} <= {file.name for file in out.iterdir()}


def test_every_other_command(search_run: Path, tmp_path: Path) -> None:
    """Each prints something here, and says nothing of its reader's end."""
    random = np.random.default_rng(0)
    (tmp_path / "features").mkdir()
    for name in "abc":
        np.save(tmp_path / "features" / f"{name}.npy", random.standard_normal((6, 144)).astype(np.float32))
    table = tmp_path / "a.csv"
    table.write_text("video,start,end,sentence\na,0,2,A dog runs.\n")
    video = str(video_files.write(tmp_path / "v.mp4", [video_files.numbered(n) for n in range(20)]))
    index, made = str(tmp_path / "index"), [str(tmp_path / "features"), "--clip-seconds=1"]
    METHODS[tiny_search.NAME] = tiny_search.PLACE
    assert search.main(["index", str(search_run), *made, "-o", index]) == 0
    del METHODS[tiny_search.NAME]
    for line in (
        [str(Path(__file__).with_name("tiny_search_main.py")), "search", "query", index, "A dog runs."],
        ["-m", "vpgfast.search", "remove", index, "a"],
        ["-m", "vpgfast.annotations", "check", str(table), "--no-picture"],
        ["-m", "vpgfast.extract", video, "--encoder", "pixels", "-o", str(tmp_path / "f.h5")],
        ["-m", "vpgfast.doctor"],
    ):
        code, told = without_reader(*line)
        assert code == NOBODY_READS, f"{line}: {code}\n{told}"
        assert "Traceback" not in told
        assert "Broken" not in told
    assert (tmp_path / "f.h5").is_file()


def test_a_log_that_nobody_reads(run: Path, tmp_path: Path) -> None:
    """``vpgfast evaluate ... 2>&1 | head``, where the log comes before any result."""
    assert without_reader(TINY, "evaluate", str(run), "--output", str(tmp_path), both=True) == (NOBODY_READS, "")


def test_an_error_is_told(tmp_path: Path) -> None:
    code, told = without_reader("-m", "vpgfast.ground", str(tmp_path / "none"), "--video=v.mp4", "--sentence=a")
    assert code == 2
    assert told == f"error: checkpoint {tmp_path / 'none'}: no such file; give a .safetensors file or a run's folder\n"


def test_another_broken_pipe_is_a_bug() -> None:
    program = (
        "from vpgfast.command import command\n"
        "@command\n"
        "def main(argv):\n"
        "    raise BrokenPipeError(32, 'to a process of ours')\n"
        "main([])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BrokenPipeError: [Errno 32] to a process of ours" in done.stderr
