from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vpgfast.data import moving_shapes
from vpgfast.data.corpus import load_corpus, read_moving_shapes
from vpgfast.data.features import HDF5Features
from vpgfast.data.moving_shapes import (
    make_moving_shapes,
    pixel_features,
    render_frames,
    render_video,
    script_video,
)
from vpgfast.data.options import DataConfig, MovingShapesOptions
from vpgfast.data.pixels import HUES, NUM_BLOBS
from vpgfast.data.shape_scripts import ACTION_PHRASES, ACTIONS
from vpgfast.data.text import tokenize
from vpgfast.errors import ConfigError

SMALL = MovingShapesOptions(train_videos=9, val_videos=1, test_videos=2)


def folder_of(config: DataConfig):
    return make_moving_shapes(config.moving_shapes, config.seed, config.cache)


def test_scripts_keep_their_promises():
    """Events in order, inside the video, with pauses; no event of a video said twice; as many sentences as asked
    for."""
    options = MovingShapesOptions()
    seen: Counter[str] = Counter()
    for number in range(300):
        video = script_video(options, 0, "train", number)
        spans = np.array(video.spans)
        assert options.min_events <= len(video.sentences) == len(spans) <= options.max_events
        assert (spans[:, 0] >= options.min_pause - 0.01).all()
        assert (spans[1:, 0] - spans[:-1, 1] >= options.min_pause - 0.01).all()
        assert spans[-1, 1] <= video.duration
        lengths = spans[:, 1] - spans[:, 0]
        assert options.min_duration - 0.1 <= video.duration <= options.max_duration + 0.1
        assert (lengths > options.min_event - 0.02).all()
        assert (lengths < options.max_event + 0.02).all()
        described = video.shapes[: options.shapes]
        events = [(s.colour, e.action) for s in described for e in s.events]
        assert len(set(events)) == len(events) == len(spans)
        assert len({s.colour for s in video.shapes}) == options.shapes + options.distractors
        seen.update(action for _, action in events)
    assert set(seen) == set(ACTIONS)
    assert min(seen.values()) > 0.3 * max(seen.values())


def test_sentences_name_the_shape_and_the_action():
    options = MovingShapesOptions(synonyms=False)
    for number in range(30):
        video = script_video(options, 0, "val", number)
        events = sorted((e.start, s, e) for s in video.shapes[: options.shapes] for e in s.events)
        for sentence, (_, shape, event) in zip(video.sentences, events, strict=True):
            phrase = ACTION_PHRASES[event.action][0]
            assert re.fullmatch(f"(A|The) {shape.colour} {shape.kind} {phrase}\\.", sentence)


def test_synonyms_vary_the_words():
    def words(options: MovingShapesOptions) -> set[str]:
        return {w for n in range(60) for s in script_video(options, 0, "train", n).sentences for w in tokenize(s)}

    assert len(words(MovingShapesOptions())) > 1.5 * len(words(MovingShapesOptions(synonyms=False)))


def test_times_say_little_by_themselves():
    """The prior - the training set's median span of sentence m of M, in fractions - finds few of the moments."""
    videos = [script_video(MovingShapesOptions(), 0, "train", n) for n in range(300)]
    by_place: dict[tuple[int, int], list[np.ndarray]] = {}
    for video in videos:
        for m, span in enumerate(video.spans):
            by_place.setdefault((m, len(video.spans)), []).append(np.array(span) / video.duration)
    ious = []
    for spans in map(np.array, by_place.values()):
        start, end = np.median(spans, axis=0)
        overlap = np.minimum(spans[:, 1], end) - np.maximum(spans[:, 0], start)
        union = np.maximum(spans[:, 1], end) - np.minimum(spans[:, 0], start)
        ious += (np.maximum(overlap, 0) / union).tolist()
    assert np.mean(np.array(ious) >= 0.5) < 0.25


def test_corpus_on_disk(small_config, small_corpus):
    folder = folder_of(small_config)
    assert sorted(p.name for p in (folder / "videos").iterdir()) == [f"test_{i:05d}.mp4" for i in range(4)]
    assert {name: len(split) for name, split in small_corpus.splits.items()} == {"train": 20, "val": 4, "test": 4}
    for split, paragraphs in small_corpus.splits.items():
        for number, p in enumerate(paragraphs):
            script = script_video(small_config.moving_shapes, 0, split, number)
            assert (p.video_id, p.sentences, p.duration) == (script.video_id, script.sentences, script.duration)
            np.testing.assert_array_equal(p.spans, script.spans)
            clips = small_corpus.features[p.video_id]
            assert clips.shape == (round(2 * p.duration), small_corpus.features.dim)
            assert np.abs(clips).max() < 20


def test_features_are_those_of_the_video_file(small_config, small_corpus):
    """From the file alone, bit for bit: no span can have slipped in on another way."""
    for path in sorted((folder_of(small_config) / "videos").iterdir()):
        features, duration = pixel_features(small_config.moving_shapes).extract(path)
        np.testing.assert_array_equal(features, small_corpus.features[path.stem])
        script = script_video(small_config.moving_shapes, 0, "test", int(path.stem[-5:]))
        assert duration == pytest.approx(script.duration, abs=1e-3)


def test_motion_alone_is_a_part_of_the_same_features(small_config, small_corpus):
    moving = load_corpus(replace(small_config, features="motion"))
    assert moving.features.source.endswith("motion alone")
    path = min((folder_of(small_config) / "videos").iterdir())
    features, _ = pixel_features(small_config.moving_shapes, motion=True).extract(path)
    np.testing.assert_array_equal(moving.features[path.stem], features)
    assert moving.features.dim == features.shape[1] < small_corpus.features.dim
    assert set(moving.features.video_ids()) == set(small_corpus.features.video_ids())


def test_same_options_same_bits(tmp_path):
    """Made twice, in one process and in two, everything is the same; another seed changes all of it."""
    first = make_moving_shapes(SMALL, seed=3, cache=tmp_path / "a", workers=1)
    second = make_moving_shapes(SMALL, seed=3, cache=tmp_path / "b", workers=2)
    assert (first / "annotations.json").read_bytes() == (second / "annotations.json").read_bytes()
    a, b = HDF5Features(first / "features.h5"), HDF5Features(second / "features.h5")
    assert len(a.video_ids()) == 12
    for name in a.video_ids():
        np.testing.assert_array_equal(a[name], b[name])
    for name in ("test_00000.mp4", "test_00001.mp4"):
        assert (first / "videos" / name).read_bytes() == (second / "videos" / name).read_bytes()
    other = make_moving_shapes(SMALL, seed=4, cache=tmp_path / "a", workers=1)
    assert other != first
    assert read_moving_shapes(other)["train"][0].sentences != read_moving_shapes(first)["train"][0].sentences


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VPGFAST_CACHE", str(tmp_path / "from_environment"))
    options = replace(SMALL, train_videos=1, test_videos=1)
    folder = make_moving_shapes(options)
    assert folder.is_relative_to(tmp_path / "from_environment")

    def fail(*_args, **_kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(moving_shapes, "_make_one", fail)
    assert make_moving_shapes(options) == folder
    with pytest.raises(AssertionError, match="made again"):  # any other option is another corpus
        make_moving_shapes(replace(options, noise=5.0))
    # The one that failed left nothing behind.
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setattr(moving_shapes, "VERSION", moving_shapes.VERSION + 1)
    with pytest.raises(AssertionError, match="made again"):
        make_moving_shapes(options)


def test_cache_of_a_corpus_made_meanwhile_is_used(tmp_path, monkeypatch):
    options = replace(SMALL, train_videos=1, test_videos=1)
    folder = make_moving_shapes(options, cache=tmp_path / "a")
    make_one = moving_shapes._make_one

    def another_is_faster(job, **kwargs):
        target = tmp_path / "b" / "moving_shapes" / folder.name
        if not target.exists():
            folder.rename(target)
        return make_one(job, **kwargs)

    monkeypatch.setattr(moving_shapes, "_make_one", another_is_faster)
    made = make_moving_shapes(options, cache=tmp_path / "b", workers=1)
    assert json.loads((made / "annotations.json").read_text())
    assert [p.name for p in made.parent.iterdir()] == [folder.name]


def test_cache_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cache folder .*file/moving_shapes: Not a directory; name another"):
        make_moving_shapes(SMALL, cache=tmp_path / "file")


def blob(features: np.ndarray, colour: str) -> np.ndarray:
    """The 16 statistics of one colour, [T, 16]."""
    place = HUES.index(colour) if colour in HUES else NUM_BLOBS - 1
    return features[:, 16 * place : 16 * place + 16]


@pytest.mark.parametrize("action", ACTIONS)
def test_what_happens_shows_in_the_features(tmp_path, action):
    """Each action changes the statistics that stand for it in the clips of its span, and nowhere else."""
    options = MovingShapesOptions(distractors=0, shapes=1, min_events=1, max_events=1, min_duration=5, max_duration=8)
    statistic, sign = {
        "appear": (10, 1), "vanish": (10, -1), "left": (4, -1), "right": (4, 1), "up": (5, -1), "down": (5, 1),
        "grow": (7, 1), "shrink": (7, -1), "blink": (11, 1), "shake": (6, 1),
    }[action]  # fmt: skip
    found = 0
    for number in range(200):
        video = script_video(options, 5, "test", number)
        (shape,) = video.shapes
        if shape.events[0].action != action:
            continue
        render_video(options, 5, "test", number, tmp_path / "v.mp4")
        features, duration = pixel_features(options).extract(tmp_path / "v.mp4")
        values = sign * blob(features, shape.colour)[:, statistic]
        centres = (np.arange(len(features)) + 0.5) * duration / len(features)
        (start, end), margin = video.spans[0], 0.5
        inside = values[(centres > start) & (centres < end)]
        outside = values[(centres < start - margin) | (centres > end + margin)]
        assert inside.max() > 0.1
        assert np.abs(outside).max(initial=0) < 0.6 * inside.max()
        blobs = features[:, : 16 * NUM_BLOBS].reshape(-1, NUM_BLOBS, 16)
        seen = np.flatnonzero(blobs[..., 0].any(axis=0))
        assert seen.tolist() == [(*HUES, "white").index(shape.colour)]  # and no other colour
        found += 1
        if found == 3:
            break
    assert found == 3


def test_options_change_the_picture():
    plain = MovingShapesOptions(noise=0.0)
    script = script_video(plain, 0, "train", 0)
    frames = render_frames(script, plain)
    assert frames.shape == (round(script.duration * 8), 64, 64, 3)
    assert frames.dtype == np.uint8
    background = frames[:, :3, :3].astype(float)
    assert background.std(axis=0).max() == 0
    noisy = render_frames(script, replace(plain, noise=8.0))[:, :3, :3].astype(float)
    assert noisy.std(axis=0).mean() == pytest.approx(8, rel=0.2)
    assert not np.array_equal(render_frames(script, replace(plain, jitter=2.0)), frames)
    assert render_frames(script, replace(plain, size=96)).shape[1:3] == (96, 96)


def test_distractors_are_not_described():
    options = MovingShapesOptions(distractors=3)
    video = script_video(options, 0, "train", 1)
    others = video.shapes[options.shapes :]
    assert len(others) == 3
    assert any(s.events for s in others)
    for shape in others:
        assert not any(shape.colour in s for s in video.sentences)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shapes": 0}, "shapes"),
        ({"distractors": 4}, "distractors"),
        ({"colours": 8}, "colours"),
        ({"max_events": 1}, "max_events"),
        ({"max_events": 5}, "max_events"),
        ({"min_pause": -1.0}, "min_pause"),
        ({"size": 63}, "size"),
        ({"quality": 60}, "quality"),
        ({"val_videos": 0}, "train_videos"),
    ],
)
def test_impossible_options_are_named(change, named):
    with pytest.raises(ConfigError, match=f"moving_shapes option {named} is"):
        MovingShapesOptions(**change)


def test_as_many_events_as_the_options_allow():
    options = MovingShapesOptions(min_events=4, max_events=4)
    assert all(len(script_video(options, 1, "train", n).sentences) == 4 for n in range(300))


def test_default_corpus_loads_with_its_name(small_corpus):
    assert small_corpus.name == "moving_shapes"
    assert "moving_shapes" in small_corpus.features.source
    assert load_corpus.__doc__


def test_what_a_killed_process_was_making_is_deleted(tmp_path, monkeypatch):
    """Not what one that lives is making, here or on another machine."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    root = tmp_path / "moving_shapes"
    for name in (
        f"{moving_shapes._MAKING}{killed.pid}-x",
        f"{moving_shapes._MAKING}{os.getpid()}-x",
        ".making-far-7-x",
    ):
        (root / name / "videos").mkdir(parents=True)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(moving_shapes, "_make_one", stop)
    with pytest.raises(KeyboardInterrupt):
        make_moving_shapes(MovingShapesOptions(1, 1, 1), 0, tmp_path)
    left = {path.name for path in root.iterdir()}
    assert left == {f"{moving_shapes._MAKING}{os.getpid()}-x", ".making-far-7-x"}


def test_a_kill_leaves_no_process(tmp_path):
    """Those that make the videos end with the one that waits for them."""
    code = "import sys; from vpgfast.data.moving_shapes import *; make_moving_shapes(cache=sys.argv[1])"
    maker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{maker.pid}/task/{maker.pid}/children")

    def await_(holds):
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.02)

    await_(lambda: len(children.read_text().split()) == 2 and any(tmp_path.rglob("*.mp4")))
    workers = [Path(f"/proc/{number}/stat") for number in children.read_text().split()]
    maker.kill()
    maker.wait()
    await_(lambda: not any(path.exists() and path.read_text().split()[2] != "Z" for path in workers))
