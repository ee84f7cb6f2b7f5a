"""Specs, options, identities, and the ``pixels`` encoder, the smallest that has everything but weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from video_files import numbered, write

from vpgfast.cache import encoded
from vpgfast.data.pixels import PixelFeatures
from vpgfast.encoders.base import load_encoder
from vpgfast.encoders.identity import Identity
from vpgfast.encoders.specs import ENCODERS, format_spec, parse_spec
from vpgfast.encoders.weights import read_arrays, read_tensors
from vpgfast.errors import ConfigError, VideoError
from vpgfast.files import temporary_name


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write(tmp_path / "video.mp4", [numbered(i) for i in range(33)], rate=10)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("objects", ("objects", None, {})),
        ("clip:a/b", ("clip", "a/b", {})),
        (" clip:a/b,fps=2 ", ("clip", "a/b", {"fps": "2"})),
        (
            "c3d:C:/my, files/a=b.pickle,layer=fc7,stride=4",
            ("c3d", "C:/my, files/a=b.pickle", {"layer": "fc7", "stride": "4"}),
        ),
        ("pixels,motion=true", ("pixels", None, {"motion": "true"})),
        ("pixels:,motion=", ("pixels", None, {"motion": ""})),
    ],
)
def test_parse(spec: str, parts: tuple[str, str | None, dict[str, str]]) -> None:
    assert parse_spec(spec) == parts
    assert parse_spec(format_spec(*parts)) == parts  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", "no family ''"),
        ("cliip:x", "no family 'cliip' (did you mean 'clip'?)"),
        ("nothing", "there are clip, video_text"),
        ("pixels,fps=1,fps=2", "option fps is given twice"),
        ("pixels,colour=red", "no option 'colour' (there are size, fps, clips_per_second, motion)"),
        ("pixels,motion=perhaps", "option motion must be true or false, got 'perhaps'"),
        ("pixels,size=1.5", "option size must be a whole number, got '1.5'"),
        ("pixels,fps=0", "fps must be above 0, got 0"),
        ("pixels,fps=nan", "fps must be above 0, got nan"),
        ("pixels:weights.pt", "takes no weights"),
    ],
)
def test_wrong_specs(spec: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_encoder(spec)
    assert expected in str(caught.value)


def test_every_family_says_what_is_missing() -> None:
    """Without weights each family with weights is one line that shows the option."""
    for family in set(ENCODERS) - {"objects", "pixels", "torchvision"}:
        with pytest.raises(ConfigError, match=f"--encoder {family}:") as caught:
            load_encoder(family)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("motion", [False, True])
def test_pixels_are_the_features_of_moving_shapes(video: Path, motion: bool) -> None:
    expected, duration = PixelFeatures(motion=motion).extract(video)
    found = load_encoder(f"pixels,motion={str(motion).lower()}").encode(video)
    np.testing.assert_array_equal(found.features, expected)
    assert found.duration == duration == pytest.approx(3.3)
    assert found.times.shape == (7, 2)
    assert found.times[0, 0] == 0
    assert found.times[-1, 1] == duration


def test_identity() -> None:
    plain, fast = (load_encoder(spec).identity() for spec in ("pixels", "pixels,fps=4"))
    assert fast.spec == "pixels,fps=4.0"
    assert load_encoder(fast.spec).identity() == fast
    assert plain.key != fast.key
    assert plain.differences(fast) == ["options.fps 8.0 and 4.0", "sampling.fps 8.0 and 4.0"]
    assert Identity.from_json(fast.to_json()).key == fast.key
    for text in ("{}", "[]", "", json.dumps({"spec": "pixels"})):
        with pytest.raises(ValueError, match=r"not the description|Expecting"):
            Identity.from_json(text)


def test_cache_goes_by_content(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder("pixels")
    cache = tmp_path / "cache"
    first = encoded(encoder, video, cache=cache)
    moved = video.rename(tmp_path / "moved.mp4")
    monkeypatch.setattr(encoder, "encode", lambda clips: pytest.fail("encoded again"))
    again = encoded(encoder, moved, cache=cache)
    np.testing.assert_array_equal(first.features, again.features)
    np.testing.assert_array_equal(first.times, again.times)
    assert (first.duration, first.problems) == (again.duration, again.problems)
    other = load_encoder("pixels,fps=4")
    assert not np.array_equal(encoded(other, moved, cache=cache).features, first.features)
    assert len(list(cache.rglob("*.npz"))) == 2
    write(moved, [numbered(i) for i in range(9)])
    assert encoded(load_encoder("pixels"), moved, cache=cache).duration == pytest.approx(0.9)
    with pytest.raises(VideoError, match=r"none\.mp4: no such file"):
        encoded(other, tmp_path / "none.mp4", cache=cache)


def test_what_a_kill_left_in_the_cache_is_overwritten(video: Path, tmp_path: Path) -> None:
    encoder = load_encoder("pixels")
    encoded(encoder, video, cache=tmp_path)
    (kept,) = tmp_path.rglob("*.npz")
    temporary_name(kept).write_bytes(b"half")
    kept.unlink()
    encoded(encoder, video, cache=tmp_path)
    assert list(kept.parent.iterdir()) == [kept]


def test_unwritable_cache_costs_nothing_but_time(video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    found = encoded(load_encoder("pixels"), video, cache=tmp_path / "file")
    assert len(found.features) == 7
    assert "can't be written" in caplog.text


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps({"blobs": Trap(sprung)}))
    assert sprung.exists(), "the trap does not work"
    sprung.unlink()
    for name, content in {"a.pkl": Trap(sprung), "b.pkl": {"blobs": {"w": np.zeros(2), "t": Trap(sprung)}}}.items():
        (tmp_path / name).write_bytes(pickle.dumps(content))
        with pytest.raises(ConfigError, match="not executed"):
            read_arrays(tmp_path / name)
        with pytest.raises(ConfigError, match=r"no file of torch\.save|would have to execute"):
            read_tensors(tmp_path / name)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "trap": Trap(sprung)}, tmp_path / "c.pth")
    with pytest.raises(ConfigError, match="would have to execute"):
        read_tensors(tmp_path / "c.pth")
    assert not sprung.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04K\x01.", b"PK\x03\x04cut", b"\x80\x04\x95 cut", b"root:x:0", b"\x80\x04]."]
)
def test_damaged_weights(tmp_path: Path, content: bytes) -> None:
    for name in ("w.pkl", "w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name) as caught:
            (read_arrays if name == "w.pkl" else read_tensors)(tmp_path / name)
        assert "\n" not in str(caught.value)
