"""What every command shares: one-line errors, exit codes, and the log."""

from __future__ import annotations

import errno
import functools
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from vpgfast.errors import UserError

FAILED = 2
"""Exit code after an error that the user can mend."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

log = logging.getLogger("vpgfast")


def command(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """Make ``main(argv)`` a command: ``argv`` defaults to the command line, a :class:`UserError` is a line and code 2.

    Other exceptions are bugs and keep their stack trace.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(sys.argv[1:] if argv is None else argv)
        except UserError as error:
            print(f"error: {_one_line(str(error))}", file=sys.stderr)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(f"error: no space left to write {error.filename or 'to disk'}", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        finally:
            close_log()
        return FAILED

    return run


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
        handlers.append(_LogFile(file, encoding="utf-8"))
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
