"""``extract``: what it writes, that it goes on after anything, and that several processes write the same bits."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from video_files import numbered, write

from vpgfast.data.feature_files import parts_folder, read_stored
from vpgfast.data.features import open_features
from vpgfast.encoders.base import load_encoder
from vpgfast.encoders.reading import read_all
from vpgfast.encoders.video_clips import VideoClips
from vpgfast.errors import UserError
from vpgfast.extract import command as extract_command
from vpgfast.extract import main, run

LENGTHS = {"a": 12, "b": 25, "below/c": 7, "below/d.e": 18}
"""Frames of each video, ten a second."""


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    for number, (name, length) in enumerate(LENGTHS.items()):
        write(folder / f"{name}.mp4", [numbered(7 * number + i) for i in range(length)], rate=10)
    (folder / "notes.txt").write_text("no video")
    (folder / ".hidden.mp4").write_text("no video")
    return folder


def extract(*arguments: object) -> int:
    return main([*map(str, arguments), "--encoder", "pixels"])


def test_what_is_written(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "f.h5"
    assert extract(videos, "-o", output) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{output}: 4 videos, 4 of them new, width 144\n"
    assert "1 files that are not named like videos are left out (.txt 1)" in printed.err
    assert "1 hidden files are left out, such as" in printed.err
    assert not parts_folder(output).exists()
    reader, encoder = open_features(output), load_encoder("pixels")
    assert sorted(reader.video_ids()) == sorted(LENGTHS)
    assert reader.encoder == encoder.identity()
    assert (reader.dim, reader.source) == (144, "pixels")
    for name, length in LENGTHS.items():
        expected = encoder.encode(videos / f"{name}.mp4")
        np.testing.assert_array_equal(reader[name], expected.features)
        assert name in reader
        assert reader.duration(name) == expected.duration == pytest.approx(length / 10)
        with h5py.File(output) as file:
            np.testing.assert_array_equal(file[name]["times"][()], expected.times)
    with h5py.File(output) as file:
        about = json.loads(file[".vpgfast"].attrs["about"])
    assert about["versions"]["vpgfast"]
    assert {"torch", "av", "numpy"} <= about["versions"].keys()
    assert "missing" not in reader
    assert reader.duration("missing") is None


def test_a_folder_holds_the_same(videos: Path, tmp_path: Path) -> None:
    assert extract(videos, "-o", tmp_path / "f.h5") == extract(videos, "-o", tmp_path / "f") == 0
    file, folder = open_features(tmp_path / "f.h5"), open_features(tmp_path / "f")
    assert list(file.video_ids()) == list(folder.video_ids())
    assert file.encoder == folder.encoder
    assert file.source == folder.source
    for name in LENGTHS:
        np.testing.assert_array_equal(file[name], folder[name])
        assert file.duration(name) == folder.duration(name)


def test_half_precision(videos: Path, tmp_path: Path) -> None:
    assert extract(videos, "-o", tmp_path / "f.h5", "--dtype", "float16") == 0
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["a"]["features"].dtype == np.float16
    assert open_features(tmp_path / "f.h5")["a"].dtype == np.float32


@pytest.mark.parametrize("output", ["f.h5", "f"])
def test_only_what_is_new_or_changed_is_read(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    output_path = tmp_path / output
    assert extract(videos, "-o", output_path) == 0
    before = open_features(output_path)["b"]
    for path in videos.rglob("*.mp4"):  # whoever reads them again fails
        stat = path.stat()
        path.write_bytes(b"\0" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    capsys.readouterr()
    assert extract(videos, "-o", output_path) == 0
    assert capsys.readouterr().out == f"{output_path}: 4 videos, nothing new among 4\n"
    write(videos / "new.mkv", [numbered(i) for i in range(5)])
    write(videos / "a.mp4", [numbered(i) for i in range(30)])
    (videos / "below" / "c.mp4").unlink()
    assert extract(videos, "-o", output_path) == 0
    assert (
        capsys.readouterr().out
        == f"{output_path}: 5 videos, 2 of them new, width 144; 1 are no longer among those named, and stay\n"
    )
    reader = open_features(output_path)
    assert sorted(reader.video_ids()) == sorted([*LENGTHS, "new"])
    assert len(reader["a"]) == 6
    np.testing.assert_array_equal(reader["b"], before)


def test_a_second_run_looks_at_every_file_that_the_spec_names(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the weights alone: a table of principal components decides as much."""
    output, table = tmp_path / "f.h5", tmp_path / "pca.h5"
    asked: list[str] = []

    def nothing_to_do(state: object, found: str, *more: object) -> bool:
        asked.append(found)
        return True

    monkeypatch.setattr(extract_command, "_nothing_to_do", nothing_to_do)
    for content in (b"one", b"another", b"another"):
        if not table.exists() or table.read_bytes() != content:
            table.write_bytes(content)
        assert main([str(videos), "-o", str(output), "--encoder", f"c3d:w.pickle,pca={table}"]) == 0
    assert asked[0] != asked[1] == asked[2]


def test_a_second_run_loads_no_torch(videos: Path, tmp_path: Path) -> None:
    assert extract(videos, "-o", tmp_path / "f.h5") == 0
    code = (
        "import sys; from vpgfast.extract import main; assert main(sys.argv[1:]) == 0; "
        "print(sorted({'torch', 'av', 'transformers'} & set(sys.modules)))"
    )
    arguments = [str(videos), "--encoder", "pixels", "-o", str(tmp_path / "f.h5")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_bad_videos_are_listed_and_the_rest_goes_on(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, listed = tmp_path / "f.h5", tmp_path / "f.h5.failed.txt"
    (videos / "bad.mp4").write_bytes(b"not a video")
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert extract(videos, "-o", output) == 1
    printed = capsys.readouterr()
    assert f"3 of 7 videos failed, listed in {listed}" in printed.out
    assert "left out: video" in printed.err
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    assert [Path(path).name for path, _ in lines] == ["bad.mp4", "empty.mp4", "gone.mp4"]
    assert all(path in why for path, why in lines)
    assert sorted(open_features(output).video_ids()) == sorted(LENGTHS)
    for name in ("bad", "empty", "gone"):
        (videos / f"{name}.mp4").unlink()
    assert extract(videos, "-o", output) == 0
    assert not listed.exists()


@pytest.mark.parametrize("output", ["f.h5", "f"])
def test_names_under_which_nothing_can_be_stored_cost_their_videos_alone(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    whole, other = (videos / "a.mp4").read_bytes(), tmp_path / "other"
    (videos / "a").mkdir()
    other.mkdir()
    latin = os.fsdecode(b"caf\xe9.mp4")
    bad = {latin, "a/features.mp4", "a/times.mp4", "l" * 252 + ".ts"}
    for name in bad | {"a/c.mp4"}:
        (videos / name).write_bytes(whole)
    dotted = [other / name for name in ("..mp4", ".vpgfast.mp4", ".x.mp4")]
    for path in dotted:
        path.write_bytes(whole)
    good = {*LENGTHS, "a/c", "m" * 251}
    (videos / ("m" * 251 + ".mp4")).write_bytes(whole)
    assert extract(videos, *dotted, "-o", tmp_path / output) == 1
    assert set(open_features(tmp_path / output).video_ids()) == good
    printed = capsys.readouterr()
    assert "7 of 13 videos failed" in printed.out
    assert "a/times.mp4: features can't be stored as 'a/times' beside those of the video 'a'; rename it" in printed.err
    listed = (tmp_path / f"{output}.failed.txt").read_bytes().splitlines()
    failed = {os.fsdecode(line.split(b"\t")[0]) for line in listed}
    assert failed == {*(str(videos / name) for name in bad), *map(str, dotted)}
    assert extract(videos, "-o", tmp_path / output, "--on-bad", "stop") == 2
    assert "rename it. Without --on-bad stop such videos are listed and left out" in capsys.readouterr().err


def test_a_name_that_is_taken_inside_a_stored_video(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "a").mkdir(parents=True)
    shutil.copy(videos / "a.mp4", tmp_path / "more" / "a" / "times.mp4")
    assert extract(tmp_path / "more", "-o", tmp_path / "f.h5") == 0
    assert extract(videos, "-o", tmp_path / "f.h5") == 1
    assert set(open_features(tmp_path / "f.h5").video_ids()) == {*LENGTHS, "a/times"} - {"a"}


def test_progress_without_a_terminal(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LINE_EVERY", 0.0)
    assert extract(videos, "-o", tmp_path / "f.h5") == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r"0 of 4 videos, 0\.0 x real time, a: batch 1", line) for line in lines)
    assert any(re.fullmatch(r"1 of 4 videos, [\d.]+ x real time, about 00:\d\d left", line) for line in lines)


def test_a_bar_moves_within_a_video(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a single long film it would else show nothing before the end."""
    for name in ("BAR_AFTER", "BAR_EVERY"):
        monkeypatch.setattr(run, name, 0.0)
    monkeypatch.setattr(run, "tqdm", partial(run.tqdm, file=(screen := io.StringIO())))
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    assert extract(videos / "b.mp4", "-o", tmp_path / "f.h5") == 0
    shown = screen.getvalue().split("\r")
    assert any("0 of 1 videos, 0.0 x real time, b: batch 1" in line for line in shown)


def test_on_bad_stop(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "b.mp4").write_bytes(b"not a video")
    assert extract(videos, "-o", tmp_path / "f.h5", "--on-bad", "stop") == 2
    assert "b.mp4" in capsys.readouterr().err
    assert not (tmp_path / "f.h5").exists()
    assert set(read_stored(tmp_path / "f.h5").done) == {"a"}, "what was made before is lost"
    write(videos / "b.mp4", [numbered(i) for i in range(9)])
    assert extract(videos, "-o", tmp_path / "f.h5", "--on-bad", "stop") == 0
    assert "3 of them new" in capsys.readouterr().out


def test_a_video_cut_short(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write(tmp_path / "long.mkv", [numbered(i) for i in range(200)], rate=10)
    (videos / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 5])
    assert extract(videos, "-o", tmp_path / "f.h5") == 0
    with h5py.File(tmp_path / "f.h5") as file:
        (problem,) = json.loads(file["cut"].attrs["problems"])
    assert "was it fetched whole?" in problem
    assert extract(videos, "-o", tmp_path / "g.h5", "--strict") == 1
    assert "cut" not in open_features(tmp_path / "g.h5")
    assert "was it fetched whole?" in (tmp_path / "g.h5.failed.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{videos}", "-o", "{made}", "--encoder", "pixels,fps=4"], "another encoder, pixels (options.fps 4.0 and 8.0"),
        (["{videos}", "-o", "{made}", "--dtype", "float16"], "another encoder, pixels (dtype float16 and float32)"),
        (["{videos}", "-o", "{other}"], "an HDF5 file that was not made here"),
        (["{videos}", "-o", "{text}"], "no HDF5 file of features, or cut short"),
        (["{videos}", "-o", "{tmp}/foreign"], "holds v.npy, which was not made here"),
        (["{videos}", "-o", "{tmp}/note.txt"], "is a file; name an HDF5 file .h5 or .hdf5"),
        (["{videos}", "-o", "{tmp}/folder.h5"], "is a folder; give a file"),
        (["{videos}", "-o", "{tmp}/note.txt/f.h5"], "can't be written (Not a directory)"),
        (["{tmp}/none", "-o", "{tmp}/x.h5"], "none: no such file or folder"),
        (["{tmp}/foreign", "-o", "{tmp}/x.h5"], "holds no video"),
        (["{videos}", "{tmp}/twice", "-o", "{tmp}/x.h5"], "two videos of one name, 'a'; rename one"),
        (["{videos}", "-o", "{tmp}/x.h5", "--readers=-1"], "--readers must be 0 or more, got -1"),
        (["{videos}", "-o", "{tmp}/x.h5", "--device", "tpu9"], "--device tpu9: is not one"),
        (["{videos}", "-o", "{tmp}/x.h5", "--device", "meta"], "--device meta: encoders run on cpu, cuda or cuda:N"),
        (["{videos}", "-o", "{tmp}/x.h5", "--encoder", "c3d:/dev/null"], "encoder c3d: no file /dev/null; give it as"),
        (["{videos}", "-o", "{tmp}/x.h5", "--device", "cuda:99"], "--device cuda:99: torch sees no such GPU here"),
        (["{videos}", "-o", "{tmp}/x.h5", "--encoder", "pixles"], "no family 'pixles' (did you mean 'pixels'?)"),
        (["{videos}", "-o", "{tmp}/x.h5", "--preset", "marn"], "--preset marn: is of encoder c3d, not of pixels"),
        (["{videos}", "-o", "{tmp}/x.h5", "--preset", "mran"], "--preset mran: is not known (did you mean 'marn'?)"),
    ],
)  # fmt: skip
def test_errors(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    made, other, text = (tmp_path / name for name in ("made.h5", "other.h5", "text.h5"))
    assert extract(videos, "-o", made) == 0
    with h5py.File(other, "w") as file:
        file["v"] = np.zeros((3, 4))
    text.write_text("hello")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "foreign").mkdir()
    np.save(tmp_path / "foreign" / "v.npy", np.zeros((3, 4)))
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "twice").mkdir()
    shutil.copy(videos / "a.mp4", tmp_path / "twice" / "a.mp4")
    contents = {path: path.read_bytes() for path in (made, other, text)}
    capsys.readouterr()
    places = {"videos": videos, "tmp": tmp_path, "made": made, "other": other, "text": text}
    filled = [argument.format(**places) for argument in arguments]
    assert main(filled if "--encoder" in filled else [*filled, "--encoder", "pixels"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert expected in error
    assert all(path.read_bytes() == content for path, content in contents.items()), "something was lost"


def test_two_runs_at_once(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    assert extract(videos, "-o", tmp_path / "f", "--on-bad", "stop") == 0
    write(videos / "new.mp4", [numbered(1)])
    with (tmp_path / "f" / ".vpgfast-lock.0").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert extract(videos, "-o", tmp_path / "f") == 2
    assert "another extract is writing to it" in capsys.readouterr().err


@pytest.mark.parametrize("readers", [1, 3])
def test_processes_that_read_change_nothing(videos: Path, tmp_path: Path, readers: int) -> None:
    (videos / "bad.mp4").write_bytes(b"not a video")
    assert extract(videos, "-o", tmp_path / "one.h5") == 1
    assert extract(videos, "-o", tmp_path / "several.h5", "--readers", readers) == 1
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "several.h5").read_bytes()
    names = [(tmp_path / f"{name}.h5.failed.txt").read_text() for name in ("one", "several")]
    assert names[0] == names[1]


class Crashes(VideoClips):
    """A file on which the decoder crashes."""

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, batch in enumerate(super().__iter__()):
            if number == 1:
                os._exit(139)
            yield batch


def test_a_process_that_dies_costs_its_video_alone(videos: Path) -> None:
    encoder = load_encoder("pixels,fps=10")
    encoder.batch = 4
    sources = [encoder.clips(path) for path in sorted(videos.rglob("*.mp4")) if not path.name.startswith(".")]
    sources[1] = Crashes(sources[1].path, sources[1].sampling, sources[1].picture, 4)
    ended = {number: event for number, event in read_all(sources, 2) if not isinstance(event, np.ndarray)}
    assert set(ended) == {0, 1, 2, 3}
    assert isinstance(ended[1], UserError)
    assert f"video {sources[1].path}: the process that read it died (exit code 139)" in str(ended[1])
    assert all(isinstance(ended[number], VideoClips) for number in (0, 2, 3))


def command(videos: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "vpgfast.extract", str(videos), "--encoder", "pixels", "-o", str(output), *more]


@pytest.mark.nightly  # tests/commands/test_crash.py has a few of these
def test_killed_at_any_moment_it_goes_on(videos: Path, tmp_path: Path) -> None:
    """The same command, killed again and again, ends with the bits of a run that nobody killed."""
    for number in range(30):
        write(videos / f"more{number:02d}.mp4", [numbered(number + i) for i in range(60)], rate=10)
    subprocess.run(command(videos, tmp_path / "whole.h5"), check=True, capture_output=True)
    output, rng = tmp_path / "killed.h5", random.Random(0)
    made: set[str] = set()
    for attempt in range(12):
        process = subprocess.Popen(command(videos, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Half of the kills come once it has made something more, however busy the machine is; half at any moment.
        while attempt % 2 and process.poll() is None and set(read_stored(output).done) <= made:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.2 if attempt % 2 else 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = set(read_stored(output).done)
        assert made <= done, "features that were there are lost"
        made = done
    assert made, "it was always killed too early to say anything"
    subprocess.run(command(videos, output), check=True, capture_output=True)
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.h5", "videos", "whole.h5"]


def test_killed_while_the_parts_are_taken_away(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After each of the removals that end a run, its features are all there, and the same command ends it."""
    assert extract(videos, "-o", tmp_path / "whole.h5") == 0
    unlink, left = Path.unlink, 0

    def until_killed(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if path.parent.name.endswith(".parts") and path.exists():
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", until_killed)
    for number in range(8):
        output, left = tmp_path / f"{number}.h5", number
        with suppress(KeyboardInterrupt):
            extract(videos, "-o", output)
        assert len(read_stored(output).done) == len(LENGTHS)
        left = 1000
        assert extract(videos, "-o", output) == 0
        assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_damaged_journal_costs_the_videos_of_its_lines(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(videos, "-o", tmp_path / "f") == 0
    journal = tmp_path / "f" / ".vpgfast-journal.0.jsonl"
    lines = journal.read_bytes().splitlines()
    bad = [
        b"\xff\xfe\0",
        b"5",
        b"null",
        b"[1]",
        b'{"a": 1, "d": 2, "c": 3}',
        b"[1, 2, 3]",
        b'["b", 1',
        b'["a", "b", null]',
    ]
    journal.write_bytes(b"\n".join([lines[0], *bad, *lines[2:], b""]))
    capsys.readouterr()
    assert extract(videos, "-o", tmp_path / "f") == 0
    assert "4 videos, 1 of them new" in capsys.readouterr().out


def test_a_damaged_part_is_made_anew(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "z.mp4").write_bytes(b"not a video")
    assert extract(videos, "-o", tmp_path / "f.h5", "--on-bad", "stop") == 2
    part = tmp_path / "f.h5.parts" / "b.npz"
    part.write_bytes(part.read_bytes()[:300])
    capsys.readouterr()
    assert extract(videos, "-o", tmp_path / "f.h5") == 2
    assert "b.npz was damaged (File is not a zip file), and is deleted; the same command" in capsys.readouterr().err
    assert extract(videos, "-o", tmp_path / "f.h5") == 1
    assert sorted(open_features(tmp_path / "f.h5").video_ids()) == sorted(LENGTHS)


@pytest.mark.parametrize("about", ["[]", "null", "5", '"text"'])
def test_a_damaged_description(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], about: str) -> None:
    assert extract(videos, "-o", tmp_path / "f") == extract(videos, "-o", tmp_path / "f.h5") == 0
    (tmp_path / "f" / ".vpgfast-about.json").write_text(about)
    with h5py.File(tmp_path / "f.h5", "a") as file:
        file[".vpgfast"].attrs["about"] = about
    for output, expected in [("f", "damaged (found "), ("f.h5", "no HDF5 file of features, or cut short (found ")]:
        assert extract(videos, "-o", tmp_path / output) == 2
        assert expected in capsys.readouterr().err


def test_a_damaged_file_is_an_error_of_one_line(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "f.h5"
    assert extract(videos, "-o", output) == 0
    whole = bytearray(output.read_bytes())
    chance = random.Random(3)
    write(videos / "new.mp4", [numbered(i) for i in range(5)])
    for _ in range(10):
        damaged = bytearray(whole)
        for _ in range(len(whole) // 500):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        output.write_bytes(damaged)
        if extract(videos, "-o", output) != 0:  # else the numbers alone were hit, of which nothing is known
            assert f"error: --output {output}: " in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end(videos: Path, tmp_path: Path) -> None:
    """The parts fit, the file does not: a limit on the size of files stands for the disk."""
    for number in range(12):
        shutil.copy(videos / "b.mp4", videos / f"b{number}.mp4")
    limit = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000)); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    output = tmp_path / "f.h5"
    done = subprocess.run(
        [sys.executable, "-c", limit, *command(videos, output)[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: --output {output}: can't be written (")
    assert "Traceback" not in done.stderr
    assert len(read_stored(output).done) == 16
    assert extract(videos, "-o", output) == 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_nothing_new_where_nothing_can_be_written(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extract(videos, "-o", tmp_path / "f.h5") == 0

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    assert extract(videos, "-o", tmp_path / "f.h5") == 0
    assert "nothing new among 4" in capsys.readouterr().out


def test_into_the_folder_that_one_is_in(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").mkdir()
    monkeypatch.chdir(tmp_path / "f")
    (videos / "bad.mp4").write_text("no video")
    assert extract(videos, "-o", ".") == 1
    assert sorted(open_features(tmp_path / "f").video_ids()) == sorted(LENGTHS)
    assert (tmp_path / "f.failed.txt").exists()


def test_an_output_that_another_program_writes(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "f.h5"
    assert extract(videos, "-o", output) == 0
    code = f"import h5py; file = h5py.File({str(output)!r}, 'r+'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert extract(videos, "-o", output) == 2
        other.communicate(b"\n")
    assert f"{output}: is open for writing in another program; wait for it" in capsys.readouterr().err
    assert extract(videos, "-o", output) == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"RANK": "one"}, "RANK is 'one', not a number"), ({"WORLD_SIZE": "2"}, "start extract by torchrun, or unset it")],
)
def test_an_environment_that_is_not_torchruns(
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    expected: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert extract(videos, "-o", tmp_path / "f.h5") == 2
    assert expected in capsys.readouterr().err


def test_what_a_kill_leaves_half_written_is_deleted(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / ".vpgfast-0.12345.tmp").write_bytes(b"half a video")
    assert extract(videos, "-o", tmp_path / "f") == 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_torchrun_writes_the_same_bits(videos: Path, tmp_path: Path) -> None:
    (videos / "bad.mp4").write_bytes(b"not a video")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=3",
        "--standalone",
        "-m",
        "vpgfast.extract",
    ]
    for output, start in {"one.h5": [sys.executable, "-m", "vpgfast.extract"], "three.h5": torchrun}.items():
        arguments = [*start, str(videos), "--encoder", "pixels", "-o", str(tmp_path / output)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
        assert "4 videos, 4 of them new" in done.stdout, done.stderr
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "three.h5").read_bytes()
    assert (tmp_path / "one.h5.failed.txt").read_text() == (tmp_path / "three.h5.failed.txt").read_text()
