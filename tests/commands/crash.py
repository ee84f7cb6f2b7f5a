"""Kills commands at random moments and looks at what is left: ``python crash.py --kills 200 [--only NAME]``.

Two of three kills come just before a random change of a file (an opening for writing, a rename, a removal, a new
folder), as counted in a run that nobody killed, or while a file is written to the disk, of which half is there then;
one of three comes after a random time. Some take only the process that is at it, and what it has started goes on. A
command is killed up to three times in a row. After each kill, what was there before must still be whole, and the same
command again must end where an uninterrupted one does, with the same files and no others.

A process that has imported everything forks one child a run, so a run takes no start-up.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tiny
import tiny_search
import torch
from safetensors.torch import load_file

sys.path += [str(Path(__file__).parents[1])]
import video_files

from vpgfast import ablate, extract, plots, search, train
from vpgfast.ablate import runs
from vpgfast.checkpoint import load_state
from vpgfast.data.features import open_features
from vpgfast.data.moving_shapes import SPLITS
from vpgfast.errors import UserError
from vpgfast.files import METRICS_FILE, MODEL_FILE, STATE_FILE
from vpgfast.models.registry import METHODS
from vpgfast.search import indexing
from vpgfast.search.about import INDEX_FILE
from vpgfast.search.index import VideoIndex
from vpgfast.search.shards import VideoEntry

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What commands import when they need it: children would do so one by one.
LATER = ["attrs", "docstring_parser", "lightning_fabric", "matplotlib.pyplot", "torch._dynamo"]
LATER += ["torch.utils.tensorboard"] if find_spec("tensorboard") else []
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


@dataclass
class Scenario:
    """A command and what is expected around it.

    Attributes:
        prepare: puts what the command starts from into a folder.
        run: the command, in that folder.
        whole: raises where what must outlive a kill is damaged or lost.
        state: all that counts of a folder where the command is through.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], int]
    whole: Callable[[Path], None]
    state: Callable[[Path], Any]


# --- searching


def make_features(folder: Path, names: range) -> None:
    random_numbers = np.random.default_rng(0)
    (folder / "features").mkdir(exist_ok=True)
    for number in names:
        np.save(folder / "features" / f"v{number}.npy", random_numbers.standard_normal((6, 144)).astype(np.float32))


def make_index(folder: Path) -> int:
    made = ["index", str(RUN), str(folder / "features"), "-o", str(folder / "index")]
    return search.main([*made, "--clip-seconds=1", "--batch_size=2"])


def make_videos(folder: Path) -> None:
    (folder / "videos").mkdir()
    for number in range(3):
        frames = [video_files.numbered(8 * number + n) for n in range(20)]
        video_files.write(folder / "videos" / f"v{number}.mp4", frames)


def index_videos(folder: Path) -> int:
    made = ["index", str(RUN), str(folder / "videos"), "-o", str(folder / "index")]
    return search.main([*made, "--batch_size=2", f"--data.cache={folder / 'cache'}"])


def with_index(folder: Path) -> None:
    make_features(folder, range(8))
    assert make_index(folder) == 0
    assert search.main(["remove", str(folder / "index"), "v1"]) == 0
    make_features(folder, range(12))


def with_vectors(folder: Path) -> None:
    (folder / "model").write_bytes(b"model")
    index = VideoIndex.create(folder / "index", 8, folder / "model", "m", {"source": "s", "width": 1})
    vectors = np.random.default_rng(0).standard_normal((1200, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    source = {"kind": "folder", "path": "/f", "key": None}
    with index.changing():
        for part in range(3):
            rows = range(400 * part, 400 * part + 400)
            index.add(vectors[rows], [VideoEntry(f"v{row}", 1.0, source) for row in rows])
    assert build(folder) == 0


def build(folder: Path) -> int:
    return search.main(["build-faiss", str(folder / "index")])


def vectors_of(folder: Path) -> dict[str, bytes]:
    index = VideoIndex.open(folder / "index")
    return {entry.video_id: index.vectors(shard)[row].tobytes() for shard, row, entry in index.living()}


def index_is_whole(folder: Path) -> None:
    if not (folder / "index" / INDEX_FILE).is_file():  # not made yet
        return
    index = VideoIndex.open(folder / "index")
    found = vectors_of(folder)
    if found:
        queries = np.frombuffer(next(iter(found.values())), np.float32)[None]
        assert len(index.search(queries, 3)[0]) == min(3, len(found))


def index_had(kept: set[str]) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        assert (folder / "index" / INDEX_FILE).is_file()
        index_is_whole(folder)
        assert kept <= vectors_of(folder).keys()

    return check


def index_state(folder: Path) -> Any:
    index = VideoIndex.open(folder / "index")
    named = {f"vectors-{shard.name}.npy" for shard in index.shards} | {f"videos-{s.name}.json" for s in index.shards}
    named |= {index.faiss["file"]} if index.faiss else set()
    there = {path.name for path in (folder / "index").iterdir()} - {INDEX_FILE, "model.safetensors", ".lock", "queries"}
    assert there == named, there ^ named
    return vectors_of(folder), index.faiss is None


def ask(folder: Path) -> int:
    asked = ["query", str(folder / "index"), "The red circle moves.", "--output", str(folder / "out"), "--top=2"]
    return search.main(asked)


def answer_state(folder: Path) -> Any:
    return {path.name: digest(path) for path in (folder / "out").iterdir() if path.suffix != ".png"}


# --- training, extracting, ablating


def training(folder: Path) -> int:
    return train.main([*TRAINING, "--output", str(folder / "run")])


def run_is_whole(folder: Path) -> None:
    place = folder / "run"
    if (place / STATE_FILE).is_file():
        load_state(place / STATE_FILE)
    if (place / MODEL_FILE).is_file():
        load_file(place / MODEL_FILE)
    if (place / METRICS_FILE).is_file():
        json.loads((place / METRICS_FILE).read_text())


def over_another(folder: Path) -> None:
    assert train.main([*TRAINING, "--output", str(folder / "run"), "--seed=7"]) == 0


def training_anew(folder: Path) -> int:
    return train.main([*TRAINING, "--output", str(folder / "run"), "--overwrite"])


def training_on_new_corpus(folder: Path) -> int:
    return train.main([*TRAINING, "--output", str(folder / "run"), "--data.cache", str(folder / "cache")])


def run_state(folder: Path) -> Any:
    return run_of(folder / "run")


def run_of(place: Path) -> Any:
    metrics = json.loads((place / METRICS_FILE).read_text())
    metrics.pop("seconds")
    weights = {name: value.tolist() for name, value in load_file(place / MODEL_FILE).items()}
    names = {path.name for path in place.iterdir() if path.name not in ("log.txt", "tensorboard", "output.txt")}
    return metrics, weights, names


def with_videos(folder: Path) -> None:
    make_videos(folder)
    assert extracting(folder) == 0
    video_files.write(folder / "videos" / "new.mp4", [video_files.numbered(n) for n in range(30)])
    shutil.copy(folder / "videos" / "new.mp4", folder / "videos" / "v0.mp4")


def extracting(folder: Path) -> int:
    return extract.main([str(folder / "videos"), "--encoder", "pixels", "-o", str(folder / "features.h5")])


def with_some(folder: Path) -> None:
    with_videos(folder)
    (folder / "features.h5").unlink()
    for name in ("v1.mp4", "v2.mp4"):
        assert extract.main([str(folder / "videos" / name), "--encoder", "pixels", "-o", str(folder / "out")]) == 0


def extracting_files(folder: Path) -> int:
    return extract.main([str(folder / "videos"), "--encoder", "pixels", "-o", str(folder / "out")])


def files_are_whole(folder: Path) -> None:
    reader = open_features(folder / "out")
    for name in ("v1", "v2"):
        assert len(reader[name])


def files_state(folder: Path) -> Any:
    reader = open_features(folder / "out")
    return {name: reader[name].tolist() for name in reader.video_ids()}


def features_are_whole(folder: Path) -> None:
    with h5py.File(folder / "features.h5") as file:
        for name in ("v0", "v1", "v2"):
            assert np.isfinite(file[name]["features"][()]).all()


def features_state(folder: Path) -> Any:
    with h5py.File(folder / "features.h5") as file:
        rows = {name: file[name]["features"][()].tolist() for name in file if not name.startswith(".")}
    return rows, {path.name for path in folder.iterdir()}


def ablating(folder: Path) -> int:
    return ablate.main([*TRAINING, "--epochs=1", "--seeds=2", "--workers=1", "--output", str(folder / "ablation")])


def runs_are_whole(folder: Path) -> None:
    for place in (folder / "ablation").glob("*/"):
        if (place / METRICS_FILE).is_file():
            run_of(place)


def ablation_state(folder: Path) -> Any:
    content = json.loads((folder / "ablation" / "ablation.json").read_text())
    runs = sorted(path.parent.name for path in (folder / "ablation").rglob(METRICS_FILE))
    return content["seeds"], runs, {path.name for path in (folder / "ablation").iterdir()}


SCENARIOS = {
    "index": Scenario(lambda folder: make_features(folder, range(8)), make_index, index_is_whole, index_state),
    "index-videos": Scenario(make_videos, index_videos, index_is_whole, index_state),
    "add": Scenario(
        with_index,
        lambda folder: search.main(
            ["add", str(folder / "index"), str(folder / "features"), "--clip-seconds=1", "--batch_size=2"]
        ),
        index_had({f"v{number}" for number in (0, *range(2, 8))}),
        index_state,
    ),
    "remove": Scenario(
        with_index,
        # What is gone is an error; a second try after the kill says so and changes nothing.
        lambda folder: 0 * search.main(["remove", str(folder / "index"), "v2", "v5"]),
        index_had({"v0", "v3", "v4", "v6", "v7"}),
        index_state,
    ),
    "compact": Scenario(
        with_index,
        lambda folder: search.main(["compact", str(folder / "index")]),
        index_had({f"v{number}" for number in (0, *range(2, 8))}),
        index_state,
    ),
    "build-faiss": Scenario(with_vectors, build, index_had({f"v{row}" for row in range(1200)}), index_state),
    "query": Scenario(with_index, ask, index_had({"v0", "v7"}), answer_state),
    "train": Scenario(lambda _: None, training, run_is_whole, run_state),
    "overwrite": Scenario(over_another, training_anew, run_is_whole, run_state),
    "corpus": Scenario(lambda _: None, training_on_new_corpus, run_is_whole, run_state),
    "extract": Scenario(with_videos, extracting, features_are_whole, features_state),
    "extract-files": Scenario(with_some, extracting_files, files_are_whole, files_state),
    "ablate": Scenario(lambda _: None, ablating, runs_are_whole, ablation_state),
}


# --- the runs


@dataclass(frozen=True)
class Kill:
    """When a command is killed.

    Attributes:
        event: before this change of a file, or in the middle of it.
        seconds: or after this time.
        alone: the processes that it has started go on.
    """

    event: int | None = None
    seconds: float | None = None
    alone: bool = False

    def __str__(self) -> str:
        when = f"at change {self.event}" if self.event else f"after {self.seconds:.3f} s"
        return when + (", one process alone" if self.alone else "")


def child(work: Callable[[], int], folder: Path, kill: Kill = Kill()) -> tuple[int, int]:
    """Do ``work`` in a process of its own, which is killed; its exit code (negative: the signal) and how many changes
    it made."""
    reader, writer = os.pipe()
    number = os.fork()
    if number == 0:
        os.close(reader)
        os.setsid()
        count, flush = 0, os.fsync

        def step(last: Callable[[], None] = lambda: None) -> None:
            nonlocal count
            count += 1
            if count == kill.event:
                last()
                os.kill(os.getpid(), signal.SIGKILL) if kill.alone else os.killpg(0, signal.SIGKILL)

        def fsync(file: int) -> None:
            path = f"/proc/self/fd/{file}"
            step(lambda: os.truncate(path, os.stat(path).st_size // 2))
            flush(file)

        os.fsync = fsync

        def note(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "open":
                path, _, flags = arguments
                if not flags & WRITING:
                    return
            elif name in CHANGES:
                path = arguments[0]
            else:
                return
            if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(str(folder)):
                return
            step()

        sys.addaudithook(note)
        try:
            log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = work()
            os.write(writer, str(count).encode())
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)
    os.close(writer)
    if kill.seconds is not None:
        time.sleep(kill.seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL) if kill.alone else os.killpg(number, signal.SIGKILL)
    _, status = os.waitpid(number, 0)
    if kill.alone:
        wait_for_others(folder)
    with contextlib.suppress(ProcessLookupError):  # what it has started itself
        os.killpg(number, signal.SIGKILL)
    with os.fdopen(reader, "rb") as file:
        counted = int(file.read() or 0)
    return os.waitstatus_to_exitcode(status), counted


def wait_for_others(folder: Path) -> None:
    """Until the processes that a killed one has left are through: they hold its lock."""
    for path in folder.rglob(".lock"):
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


def names_in(folder: Path) -> set[str]:
    """Of all files, as far as they are the same in every run: a change that is repeated takes the next number."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {re.sub(r"-\d{5}\.|tfevents.*", "-N.", name) for name in found}


def crash(name: str, kills: int, seed: int, workspace: Path) -> list[str]:
    """Kill a command so many times; what went wrong, a line each."""
    scenario, faults, chance = SCENARIOS[name], [], random.Random(seed)
    start = workspace / f"{name}-start"
    start.mkdir()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code, _ = child(lambda: scenario.prepare(start) or 0, start)
    assert code == 0, f"{name}: preparing ended with {code}: {LOG.read_text()}"
    folder = workspace / name
    shutil.copytree(start, folder)
    begin = time.monotonic()
    code, changes = child(lambda: scenario.run(folder), folder)
    duration = time.monotonic() - begin
    assert code == 0, f"{name}: the uninterrupted run ended with {code}: {LOG.read_text()}"
    expected, expected_names = scenario.state(folder), names_in(folder)
    done = 0
    while done < kills:
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        planned = []
        for _ in range(min(chance.choice((1, 1, 2, 3)), kills - done)):
            alone = chance.random() < 0.3
            if chance.random() < 1 / 3:
                planned.append(Kill(seconds=chance.random() * duration, alone=alone))
            else:
                planned.append(Kill(chance.randint(1, changes), alone=alone))
        try:
            for kill in planned:
                child(lambda: scenario.run(folder), folder, kill)
                scenario.whole(folder)
            code, _ = child(lambda: scenario.run(folder), folder)
            assert code == 0, f"the command again ended with {code}: {LOG.read_text()[-300:]}"
            assert scenario.state(folder) == expected, "the result is another than without a kill"
            difference = names_in(folder) ^ expected_names
            assert not difference, f"left behind, or missing: {difference}"
        except (AssertionError, UserError, OSError, ValueError, KeyError) as error:
            how = "; ".join(map(str, planned))
            faults.append(f"{name}, killed {how} (seed {seed}, kill {done}): {type(error).__name__}: {error}")
            shutil.copytree(folder, workspace / f"{name}-fault-{done}", dirs_exist_ok=True)
        done += len(planned)
    return faults


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of each command (default 200)")
    parser.add_argument("--only", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the folders, those of faults as they were left")
    arguments = parser.parse_args()
    faults: list[str] = []
    for name in arguments.only:
        begin = time.monotonic()
        found = crash(name, arguments.kills, arguments.seed, WORK)
        print(f"{name}: {arguments.kills} kills, {len(found)} faults, {time.monotonic() - begin:.0f} s", flush=True)
        faults += found
    print("\n".join(faults))
    if arguments.keep:
        print(f"kept: {WORK}")
    else:
        shutil.rmtree(WORK)
    return 1 if faults else 0


if __name__ == "__main__":
    for module in LATER:
        import_module(module)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    tiny.register()
    METHODS[tiny_search.NAME] = tiny_search.PLACE
    WORK = Path(tempfile.mkdtemp(prefix="vpgfast-crash-"))
    LOG = WORK / "log.txt"
    indexing.SHARD = 2
    plots.draw_found = lambda *arguments: None  # pictures are no news here, and slow
    runs.TRAIN = (sys.executable, tiny.__file__, "train")
    TRAINING = ["--method", "tiny", "--epochs=2", "--batch_size=8", "--accelerator=cpu", "--pictures=1"]
    TRAINING += [f"--data.moving_shapes.{split}_videos={count}" for split, count in zip(SPLITS, (6, 2, 2), strict=True)]
    TRAINING += ["--data.word_dim=8", "--data.cache", str(WORK / "cache")]
    RUN = WORK / "search-run"
    if child(lambda: train.main([*TRAINING, "--method", tiny_search.NAME, "--output", str(RUN)]), RUN)[0]:
        sys.exit("the model to search with could not be trained")
    sys.exit(main())
