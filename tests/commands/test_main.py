"""``vpgfast COMMAND``, and what all commands share."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

import vpgfast
from vpgfast import __main__ as program
from vpgfast.command import command, open_log
from vpgfast.errors import FeatureError
from vpgfast.ops._registry import MISSING


def test_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in ("train", "evaluate", "ground", "search", "ablate", "doctor"):
        assert f"\n  {name} " in printed
    assert program.main([]) == 2


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'trian' (did you mean 'train'?)\n"


def test_a_command_gets_the_rest(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["evaluate", str(run), "--output", str(tmp_path)]) == 0
    assert "moving_shapes, test split" in capsys.readouterr().out


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main([name, "--help"])
    assert caught.value.code == 0
    assert "usage: " in capsys.readouterr().out


def raising(error: BaseException):
    @command
    def main(argv) -> int:
        raise error

    return main


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(FeatureError("first\n  second"))([]) == 2
    assert capsys.readouterr().err == "error: first second\n"


def test_errors_from_loader_processes_lose_their_trace(capsys: pytest.CaptureFixture[str]) -> None:
    message = (
        "Caught FeatureError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "  File \"x.py\", line 1\nvpgfast.errors.FeatureError: features of 'v' are missing\n"
    )
    assert raising(FeatureError(message))([]) == 2
    assert capsys.readouterr().err == "error: features of 'v' are missing\n"


def test_full_disk_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(OSError(errno.ENOSPC, "No space left on device", "log.txt"))([]) == 2
    assert capsys.readouterr().err == "error: no space left to write log.txt\n"


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt())([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_that_an_extension_makes_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """NumPy's import does, when it is interrupted."""

    @command
    def main(argv) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None
        return 0

    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run behind a shell
    try:
        assert main([]) == 130
        assert capsys.readouterr().err == "interrupted\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, given)
    with pytest.raises(ImportError):  # without Ctrl-C it is a bug
        raising(ImportError("no module"))([])


@pytest.mark.parametrize("name", ["", *program.COMMANDS])
def test_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for all commands, which says what runs."""
    assert program.main([*filter(None, [name]), "--version"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert re.fullmatch(
        rf"vpgfast {vpgfast.__version__}, torch {re.escape(torch.__version__)}, kernels: .+\n", printed.out
    )
    assert ("C++" in printed.out) == ("_C" not in MISSING)


def test_version_without_kernels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("_C", "_C_cuda"):
        monkeypatch.setitem(MISSING, library, "not built")
    assert program.main(["--version"]) == 0
    assert "kernels: none, plain PyTorch runs" in capsys.readouterr().out


def test_bugs_keep_their_trace() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())([])


def test_log_goes_to_stderr_and_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(argv) -> int:
        open_log(tmp_path / "log.txt")
        logging.getLogger("vpgfast.somewhere").info("hello")
        logging.getLogger("vpgfast.somewhere").warning("careful")
        return 0

    assert main([]) == 0
    assert capsys.readouterr().err == "hello\nwarning: careful\n"
    assert "INFO hello" in (tmp_path / "log.txt").read_text()
    assert not logging.getLogger("vpgfast").handlers
