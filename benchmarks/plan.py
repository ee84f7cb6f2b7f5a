"""Which cases a run of the benchmarks measures, in which order, how long is left, and where a killed run goes on.

A case is one test with its parameters, named as pytest names it. Estimates come from the seconds that ``--full`` saw.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SMOOTHING = 60.0  # seconds that count as expected, so that the first cases alone do not say how fast the machine is


@dataclass(frozen=True)
class Seen:
    """What is known of a case since it was last measured by ``--full``."""

    op: str
    shape: str
    seconds: float


def device_of(case: str) -> str:
    return "cuda" if case.partition("[")[2].startswith("cuda") else "cpu"


def op_of(case: str, ops: Collection[str]) -> str:
    """The op that a case measures: its function is named after it or, where that is no op, its file."""
    file, _, function = case.partition("[")[0].partition("::")
    named = function.removeprefix("test_")
    return named if named in ops else Path(file).stem.removeprefix("test_")


def first_of_each(cases: Sequence[str], ops: Collection[str]) -> list[str]:
    """Of every op and device the first case in its file, which is the first of its papers' shapes."""
    first: dict[tuple[str, str], str] = {}
    for case in cases:
        first.setdefault((op_of(case, ops), device_of(case)), case)
    return list(first.values())


def expected(cases: Sequence[str], seen: Mapping[str, Seen]) -> dict[str, float]:
    """Seconds by case; of one that was never seen the mean of the others, and nothing where none was seen."""
    known = [seen[case].seconds for case in cases if case in seen]
    if not known:
        return {}
    return {case: seen[case].seconds if case in seen else sum(known) / len(known) for case in cases}


def by_cost(cases: Sequence[str], seen: Mapping[str, Seen]) -> list[str]:
    """Cheap ones first: what is known soon is known soon, and what a kill loses is little."""
    seconds = expected(cases, seen)
    return sorted(cases, key=lambda case: seconds.get(case, 0.0))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class Clock:
    """Says what is being measured and how long is left.

    A machine that is slower than the one of the seconds seen shows it in the cases that are through: what is left is
    stretched by as much. Several processes at once show in the same way.
    """

    def __init__(
        self, cases: Sequence[str], seen: Mapping[str, Seen], now: Callable[[], float] = time.monotonic
    ) -> None:
        self.cases, self.seen, self.now = list(cases), dict(seen), now
        self.left, self.started, self.began = set(cases), 0, now()

    def seconds_left(self) -> float | None:
        """None where no case was ever timed."""
        seconds = expected(self.cases, self.seen)
        if not seconds:
            return None
        left = sum(seconds[case] for case in self.left)
        done = sum(seconds.values()) - left
        elapsed = self.now() - self.began if done else 0.0
        return left * (elapsed + SMOOTHING) / (done + SMOOTHING)

    def start(self, case: str) -> str:
        self.started += 1
        known, left = self.seen.get(case), self.seconds_left()
        name = f"{known.op} {known.shape}" if known else case
        name += " on the GPU" if device_of(case) == "cuda" else ""
        takes = duration(known.seconds) if known else "not timed yet"
        rest = f", about {duration(left)} left" if left is not None else ""
        number = len(self.cases)
        return f"[{self.started:{len(str(number))}}/{number}] {name}: {takes}{rest}"

    def finish(self, case: str, took: Seen | None = None) -> None:
        """``took`` says what was not known of it, for the sake of others that are not."""
        self.left.discard(case)
        if took:
            self.seen.setdefault(case, took)


def read_seen(*files: Path) -> dict[str, Seen]:
    """Later files count more; those that are not there are left out."""
    return {
        case: Seen(**known) for path in files if path.exists() for case, known in json.loads(path.read_text()).items()
    }


def add_seen(path: Path, case: str, known: Seen) -> None:
    with locked(path):
        kept = read_seen(path) | {case: known}
        lines = [f"{json.dumps(name)}: {json.dumps(asdict(one))}" for name, one in sorted(kept.items())]
        write(path, "{\n" + ",\n".join(lines) + "\n}\n")


class Unfinished:
    """The cases that calls of ``--full`` have measured, so that the same call goes on after a kill.

    They count for the same commit and the same versions only, as ``about`` says, and until the call is through. Of code
    that is in no commit nothing can be said, and nothing is kept.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], call: str) -> None:
        self.path, self.about, self.call = path, dict(about), call
        self.keeps = about["commit"] != "unknown" and not about["commit"].endswith("-dirty")

    def _calls(self) -> dict[str, list[str]]:
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        calls = stored.pop("measured", {})
        return calls if self.keeps and stored == self.about else {}

    def measured(self) -> list[str]:
        return self._calls().get(self.call, [])

    def add(self, case: str) -> None:
        self._store({**self._calls(), self.call: [*self.measured(), case]})

    def forget(self) -> None:
        self._store({call: cases for call, cases in self._calls().items() if call != self.call})

    def _store(self, calls: Mapping[str, list[str]]) -> None:
        if not self.keeps:
            return
        if calls:
            write(self.path, json.dumps({**self.about, "measured": calls}, indent=1) + "\n")
        else:
            self.path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Several processes may measure for one file."""
    with open(Path(tempfile.gettempdir()) / f"vpgfast-{path.stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
