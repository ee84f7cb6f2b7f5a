"""What every command shares: one-line errors, exit codes, ``--version``, what happens under ``| head``, the log."""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from vpgfast.errors import UserError

FAILED = 2
"""Exit code after an error that the user can mend."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
NOBODY_READS = 141
"""Exit code where the reader of what is printed has gone, as in ``| head``; as shells have it after SIGPIPE."""

log = logging.getLogger("vpgfast")


def command(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """Make ``main(argv)`` a command: ``argv`` defaults to the command line, a :class:`UserError` is a line and code 2.
    ``--version``, where it stands first, is answered here.

    Where nobody reads any more what is printed, the command ends at its next word without one; so it prints results
    after it has written them to files. Other exceptions are bugs and keep their stack trace.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            # Names of files may hold bytes that are no text, and where the locale is C it takes ASCII alone.
            if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
                stream.reconfigure(errors="backslashreplace")
        try:
            # What is left to be printed goes out here: at the end of the program a reader that has gone is an error.
            try:
                code = _code(main, sys.argv[1:] if argv is None else argv)
            except SystemExit as end:  # of argparse, after --help
                sys.stdout.flush()
                if end.code == 0 and _reader_has_gone(sys.stdout):  # argparse passes over a write that fails
                    raise BrokenPipeError from None
                raise
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            gone = [stream for stream in (sys.stdout, sys.stderr) if _reader_has_gone(stream)]
            if not gone:  # a pipe of the command's own is broken
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in gone:  # or Python would complain when it writes out the rest at the end
                os.dup2(nowhere, stream.fileno())
            return NOBODY_READS

    return run


def _code(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """What ``main`` returns, or the code of the error that ended it."""
    try:
        with _interrupts_end_imports():
            if list(argv[:1]) == ["--version"]:
                print(version())
                return 0
            return main(argv)
    except UserError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
    except BrokenPipeError:
        raise  # nobody reads any more
    except OSError as error:
        print(f"error: {_one_line(_system_error(error, argv))}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        close_log()
    return FAILED


def _system_error(error: OSError, argv: Sequence[str]) -> str:
    """What the system refused, for which file, and which option named that."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left to write {error.filename or 'to disk'}"
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | Path)]
    option = next((_option_of(name, argv) for name in names), "")
    where = option + (" and ".join(names) or "a file")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}: too many files are open; allow more (ulimit -n 65536)"
    return f"{where}: {error.strerror}" if names else str(error)


def _option_of(path: str, argv: Sequence[str]) -> str:
    """The option of a command line that names a path or a folder above it, with a blank; nothing if there is none."""
    for name, value in pairwise([*argv, ""]):
        given, _, joined = name.partition("=")
        place = joined or value
        if name.startswith("--") and place and (path == place or path.startswith(f"{place.rstrip('/')}/")):
            return f"{given} "
    return ""


def version() -> str:
    """This package, torch, and which kernels run: one line."""
    import torch

    from vpgfast import __version__
    from vpgfast.ops._registry import CPU_CAPABILITY, LIBRARY, MISSING

    names = {"_C": f"C++ ({CPU_CAPABILITY})", "_C_cuda": "CUDA"}
    kernels = " and ".join(names[library] for library in LIBRARY.values() if library not in MISSING)
    kernels = kernels or "none, plain PyTorch runs in their place (vpgfast doctor says why)"
    return f"vpgfast {__version__}, torch {torch.__version__}, kernels: {kernels}"


@contextmanager
def _interrupts_end_imports() -> Iterator[None]:
    """Ctrl-C while an extension is imported may come out of it as an error of its own: it is Ctrl-C all the same."""
    seen = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # somebody else has plans for it
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    except ImportError:
        if seen:
            raise KeyboardInterrupt from None
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _reader_has_gone(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads."""
    try:
        number = stream.fileno()
    except OSError:  # no file of the system, as in a notebook
        return False
    poll = select.poll()
    poll.register(number, 0)  # errors are always told
    return any(event & select.POLLERR for _, event in poll.poll(0))


def open_log(file: Path | None = None, *, quiet: bool = False) -> None:
    """Send the package's log to stderr, and to ``file`` (appended, with times) if given.

    Args:
        file: the log file; its folder must exist.
        quiet: only warnings, and no file (processes other than the first).
    """
    close_log()
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False
    handlers: list[logging.Handler] = [_Console()]
    if file is not None and not quiet:
        handlers.append(_LogFile(file, encoding="utf-8", errors="backslashreplace"))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in handlers:
        log.addHandler(handler)


def close_log() -> None:
    """Undo :func:`open_log`."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        if isinstance(handler, _LogFile):
            handler.close()


class _Console(logging.Handler):
    """Lines on stderr that don't tear a progress bar; warnings say that they are."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # takes longer than all of --help

        prefix = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)


class _LogFile(logging.FileHandler):
    """A full disk must not bury its own clear error (from the checkpoint) under one for every line of the log."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            log.debug("closing the log failed", exc_info=True)


def _one_line(message: str) -> str:
    """A message without line breaks; of one that crossed from a loader's worker only the error, not its trace."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    if len(lines) > 1 and "in DataLoader worker" in lines[0]:
        return re.sub(r"^(\w+\.)*\w+Error: ", "", lines[-1])
    return " ".join(lines)
