"""What machines do to commands: outputs that can't be written, locales, users without a name, used-up descriptors."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import video_files

from vpgfast import ablate, evaluate, find, ground, train
from vpgfast.annotations.command import main as annotations
from vpgfast.cache import cache_folder, home_folder
from vpgfast.command import command
from vpgfast.errors import CheckpointError, UserError
from vpgfast.extract import main as extract
from vpgfast.files import hold, output_file, output_folder, readable

TINY = str(Path(__file__).with_name("tiny.py"))
QUESTION = ["--sentence", "the red circle moves"]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def no_work(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would cost time is a failure, once the run is there."""
    assert run.is_dir()

    def started(*_: object, **__: object) -> None:
        raise AssertionError("work began before the outputs were tried")

    for place in (
        "vpgfast.evaluate.run.load_corpus",
        "vpgfast.train.run.load_corpus",
        "vpgfast.ablate.run.make_corpora",
        "vpgfast.evaluate.submission.read",
        "vpgfast.data.annotations.own.read",
        "vpgfast.api.grounder.encoded",  # where it is used: a module that is imported later would keep the patch
        "vpgfast.find.run.encoded",
        "vpgfast.find.run.load_encoder",
        "vpgfast.ground.run.read_features",
        "vpgfast.extract.run.encode_videos",
    ):
        monkeypatch.setattr(place, started)


def below_a_file(folder: Path) -> str:
    (folder / "file").write_text("")
    return str(folder / "file" / "out")


PLACES: dict[str, Callable[[Path], str]] = {
    "a file": lambda folder: below_a_file(folder).removesuffix("/out"),
    "below a file": below_a_file,
    "a long name": lambda folder: str(folder / ("x" * 300)),
    "where nothing can be written": lambda _: "/proc",
}


OUTPUTS: dict[str, tuple[Callable[[list[str]], int], list[str], str]] = {
    "train": (train.main, ["--method", "tiny"], "--output"),
    "ablate": (ablate.main, ["--method", "tiny", "--seeds=2"], "--output"),
    "evaluate": (evaluate.main, ["RUN"], "--output"),
    "submission": (evaluate.main, ["--submission", "none.jsonl", "--truth", "none.jsonl"], "--output"),
    "ground": (ground.main, ["RUN", "--features", "none.npy", "--duration=1", *QUESTION], "--output"),
    "find": (find.main, ["VIDEO", "It runs."], "--clips"),
    "extract": (extract, ["VIDEO", "--encoder", "pixels"], "--output"),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("name", "place"),
    # A file is what extract writes.
    [(name, place) for name in OUTPUTS for place in PLACES if (name, place) != ("extract", "a file")],
)
def test_outputs_are_tried_before_the_work(
    name: str, place: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, arguments, option = OUTPUTS[name]
    video = video_files.write(tmp_path / "v.mp4", [video_files.numbered(n) for n in range(20)])
    bad = PLACES[place](tmp_path)
    given = [{"RUN": str(run), "VIDEO": str(video)}.get(argument, argument) for argument in arguments]
    assert main([*given, option, bad]) == 2
    assert f"{option} {bad}" in error_line(capsys)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("place", [place for place in PLACES if place != "a file"])
@pytest.mark.parametrize(
    ("main", "arguments", "name"),
    [
        (ground.main, ["RUN", "--features", "none.npy", "--duration=1", *QUESTION, "--page"], "p.html"),
        (evaluate.main, ["RUN", "--page"], "p.html"),
        (find.main, ["VIDEO", "It runs.", "--page"], "p.html"),
        (annotations, ["check", "none.csv", "--picture"], "p.png"),
    ],
    ids=["ground", "evaluate", "find", "annotations"],
)
def test_files_are_tried_before_the_work(
    main: Callable[[list[str]], int],
    arguments: list[str],
    name: str,
    place: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = video_files.write(tmp_path / "v.mp4", [video_files.numbered(n) for n in range(20)])
    bad = f"{PLACES[place](tmp_path)}/{name}"
    given = [{"RUN": str(run), "VIDEO": str(video)}.get(argument, argument) for argument in arguments]
    assert main([*given, bad]) == 2
    assert f"{arguments[-1]} {bad}" in error_line(capsys)


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("mine")
    output_folder(tmp_path / "a" / "b", keep=False)
    output_file(tmp_path / "there.txt", "--page")
    assert [path.name for path in tmp_path.iterdir()] == ["there.txt"]
    assert (tmp_path / "there.txt").read_text() == "mine"
    with pytest.raises(UserError, match=r"--page .*: is a folder"):
        output_file(tmp_path, "--page")


@pytest.mark.parametrize("place", ["vpgfast.evaluate.report.write_file", "vpgfast.ground.grounding.write_file"])
def test_results_are_printed_where_they_can_not_be_kept(
    place: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the way there the disk is full."""

    def full(path: Path, _: bytes) -> None:
        raise CheckpointError(f"can't write {path}: No space left on device")

    monkeypatch.setattr(place, full)
    np.save(tmp_path / "clips.npy", np.ones((8, 144), np.float32))
    asked = ["--features", str(tmp_path / "clips.npy"), "--duration=10", *QUESTION]
    main, arguments = (evaluate.main, []) if "evaluate" in place else (ground.main, asked)
    assert main([str(run), *arguments, "--output", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "mIoU" in told.out or "the red circle moves" in told.out
    assert "No space left on device" in told.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b.h5"), "a/b.h5: Permission denied"),
        (OSError(errno.EIO, "Input/output error", b"a", None, "c"), "a and c: Input/output error"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "a: too many files are open; allow more (ulimit"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), "no space left to write a"),
        (OSError(errno.EIO, "Input/output error", "there/a.h5"), "error: --data.features there/a.h5: Input/output"),
        (OSError(errno.EIO, "Input/output error", "thereafter"), "error: thereafter: Input/output"),
        (OSError("the library has no number"), "the library has no number"),
    ],
)
def test_any_error_of_the_system_is_one_line(error: OSError, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    @command
    def main(_: object) -> int:
        raise error

    assert main(["x", "--output", "elsewhere", "--data.features=there"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line.encode("utf-8", "backslashreplace").decode()


def test_used_up_descriptors_are_named(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "clips.npy", np.ones((8, 144), np.float32))
    program = f"""
import os, resource, sys
sys.path.insert(0, {str(Path(TINY).parent)!r})
import tiny
import vpgfast.ground.run  # and all that it needs: a failing import would be another error
from vpgfast import ground
tiny.register()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.dup(0)
except OSError:
    pass
sys.exit(ground.main([{str(run)!r}, "--features", "clips.npy", "--duration=1", "--sentence", "It runs."]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "too many" in line.lower()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        assert hold(one)
        assert not hold(other)
        monkeypatch.setattr("vpgfast.files.fcntl.flock", refuse)
        assert hold(other)
    assert f"lock: can't be locked ({os.strerror(code)})" in caplog.text


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_that_knows_ascii_alone(run: Path, tmp_path: Path) -> None:
    """The words arrive as bytes; they are read, kept as they were, and printed with escapes."""
    np.save(tmp_path / "clips.npy", np.ones((8, 144), np.float32))
    asked = ["--features", "clips.npy", "--duration=10", "--sentence", "Die Tür — ✓ geht auf.", "--output", "out"]
    done = subprocess.run(
        [sys.executable, TINY, "ground", str(run), *asked],
        cwd=tmp_path, env=os.environ | ASCII, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"Die T\\xfcr \\u2014 \\u2713 geht auf.")
    kept = json.loads((tmp_path / "out" / "grounding.json").read_text("utf-8"))
    assert kept["sentences"][0]["sentence"] == "Die Tür — ✓ geht auf."
    assert "Die Tür — ✓ geht auf." in (tmp_path / "out" / "grounding.txt").read_text("utf-8")


def test_text_that_is_none() -> None:
    assert readable(os.fsdecode("Tür ✓".encode())) == "Tür ✓"
    assert readable("".join(chr(0xDC00 + byte) for byte in "Tür".encode() if byte > 127)) == "ü"
    assert readable("a\udcff") == "a\ufffd"
    assert readable("half \ud83d of a smile") == "half \ufffd of a smile"
    assert readable("😀") == "😀"


def test_a_user_without_name_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("VPGFAST_CACHE", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    place = tmp_path / f"vpgfast-{os.getuid()}"
    assert cache_folder() == place / ".cache" / "vpgfast"
    assert place.stat().st_mode & 0o077 == 0, "nobody else may put anything there"
    monkeypatch.setattr("os.getuid", lambda: 12345)
    shutil.copytree(place, tmp_path / "vpgfast-12345")
    with pytest.raises(UserError, match="is another user's; set HOME"):
        home_folder()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to be somebody else")
def test_a_command_of_a_user_without_name_and_home(run: Path, tmp_path: Path) -> None:
    """As containers run them: reading everything, owning nothing, unknown to the system."""
    somebody = (
        "setpriv --reuid 54321 --regid 54321 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search"
    )
    place = Path("/tmp") / f"vpgfast-test-{os.getpid()}"
    place.mkdir()
    place.chmod(0o777)
    try:
        np.save(place / "clips.npy", np.ones((8, 144), np.float32))
        asked = ["--features", "clips.npy", "--duration=10", "--sentence", "It runs.", "--output", "out"]
        environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        done = subprocess.run(
            [*somebody.split(), sys.executable, TINY, "ground", str(run), *asked],
            cwd=place, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "setpriv:" in done.stderr:
            pytest.skip(f"this machine gives no other user: {done.stderr}")
        assert done.returncode == 0, done.stderr
        assert (place / "out" / "grounding.json").stat().st_uid == 54321
    finally:
        shutil.rmtree(place)
