"""``moving_shapes``: a small corpus of real video files made here, so that everything runs without a download.

Each video shows a few coloured shapes on a dim background. They appear, vanish, move, grow, shrink, blink and shake,
one event after another with pauses of random length, while other shapes of other colours do things that nobody
describes. A paragraph describes the events in order, a sentence each; no two events of a video fit the same sentence.
Videos are rendered, encoded to mp4, decoded again, and their features come from the decoded pixels alone
(:mod:`vpgfast.data.pixels`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import av
import h5py
import numpy as np
from tqdm import tqdm

from vpgfast.cache import cache_folder
from vpgfast.data.feature_files import text_attribute
from vpgfast.data.options import COLOURS, MovingShapesOptions
from vpgfast.data.pixels import PixelFeatures
from vpgfast.errors import ConfigError

log = logging.getLogger(__name__)

VERSION = 1
"""Part of the cache's key: raise it whenever the same options would give other videos, sentences or features."""

SPLITS = ("train", "val", "test")

_RGB = (
    (225, 40, 40),
    (40, 205, 50),
    (50, 60, 235),
    (220, 215, 40),
    (215, 50, 215),
    (40, 205, 210),
    (225, 225, 225),
)
_COLOURS = dict(zip(COLOURS, _RGB, strict=True))
_SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
}
_ACTION_PHRASES = {
    "appear": ("appears", "fades in", "comes into view"),
    "vanish": ("disappears", "fades away", "vanishes"),
    "left": ("moves left", "slides to the left", "drifts towards the left side"),
    "right": ("moves right", "slides to the right", "drifts towards the right side"),
    "up": ("moves up", "rises", "climbs higher"),
    "down": ("moves down", "sinks", "falls lower"),
    "grow": ("grows", "gets bigger", "expands"),
    "shrink": ("shrinks", "gets smaller", "contracts"),
    "blink": ("blinks", "flashes", "flickers"),
    "shake": ("shakes", "trembles", "wobbles"),
}
ACTIONS = tuple(_ACTION_PHRASES)
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_GROWTH = 1.7
_NOISE_PICTURES = 16
_MAKING = f".making-{platform.node()}-"


@dataclass
class _Event:
    action: str
    start: float
    end: float
    amount: tuple[float, float] = (0.0, 0.0)  # how far a move goes


@dataclass
class _Shape:
    colour: str
    kind: str
    x: float
    y: float
    radius: float
    visible: bool  # at the start
    events: list[_Event] = field(default_factory=list)


@dataclass(frozen=True)
class ShapesVideo:
    """The script of one video: what is drawn, and what is said about it.

    Attributes:
        video_id: e.g. ``"test_00007"``.
        duration: seconds.
        sentences: one an event, in the order of the events.
        spans: start and end of each event in seconds.
    """

    video_id: str
    duration: float
    sentences: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]
    _shapes: tuple[_Shape, ...]
    _seed: tuple[int, int, int]


def script_video(options: MovingShapesOptions, seed: int, split: str, number: int) -> ShapesVideo:
    """Write the script of video ``number`` of a split; it depends on nothing but the arguments."""
    key = (seed, SPLITS.index(split), number)
    rng = np.random.default_rng(key)
    colours = rng.permutation(list(_COLOURS)[: options.colours])[: options.shapes + options.distractors]
    cast = [_new_shape(rng, str(colour)) for colour in colours]
    described, others = cast[: options.shapes], cast[options.shapes :]

    sentences: list[str] = []
    spans: list[tuple[float, float]] = []
    mentioned: set[str] = set()
    told: set[tuple[str, str]] = set()
    lengths = rng.uniform(
        options.min_event, options.max_event, rng.integers(options.min_events, options.max_events + 1)
    )
    busy = lengths.sum() + options.min_pause * (len(lengths) + 1)
    idle = max(rng.uniform(options.min_duration, options.max_duration) - busy, 0)
    pauses = options.min_pause + idle * rng.dirichlet(np.full(len(lengths) + 1, options.even_pauses))
    time = 0.0
    for pause, length in zip(pauses[:-1], lengths, strict=True):
        time += pause
        choices = [(s, a) for s in described for a in _possible(s) if (s.colour, a) not in told]
        # An action first, then a shape, so that no action is rare only because few shapes are fit for it.
        actions = sorted({action for _, action in choices})
        action = actions[rng.integers(len(actions))]
        fit = [shape for shape, a in choices if a == action]
        shape = fit[rng.integers(len(fit))]
        start, time = round(time, 2), round(time + length, 2)
        _act(rng, shape, action, start, time)
        told.add((shape.colour, action))
        spans.append((start, time))
        sentences.append(_sentence(rng, options, shape, action, described, mentioned))
    duration = max(round((time + pauses[-1]) * options.fps), 1) / options.fps

    for shape in others:
        when = rng.uniform(0, 2 * options.max_event)
        while when + options.min_event < duration:
            end = min(when + rng.uniform(options.min_event, options.max_event), duration)
            possible = _possible(shape)
            _act(rng, shape, possible[rng.integers(len(possible))], when, end)
            when = end + options.min_pause + rng.uniform(0, options.max_event)
    # The last event may end with the rounded duration, never after it.
    spans = [(start, min(end, duration)) for start, end in spans]
    return ShapesVideo(f"{split}_{number:05d}", duration, tuple(sentences), tuple(spans), tuple(cast), key)


def _new_shape(rng: np.random.Generator, colour: str) -> _Shape:
    kinds = list(_SHAPE_WORDS)
    x, y = rng.uniform(-0.7, 0.7, size=2)
    return _Shape(colour, kinds[rng.integers(len(kinds))], x, y, rng.uniform(0.16, 0.34), bool(rng.random() < 0.6))


def _state(shape: _Shape) -> tuple[float, float, float, bool]:
    """Where and how large a shape is after its events so far, and whether it is visible."""
    x, y, radius, visible = shape.x, shape.y, shape.radius, shape.visible
    for event in shape.events:
        x, y = x + event.amount[0], y + event.amount[1]
        radius *= {"grow": _GROWTH, "shrink": 1 / _GROWTH}.get(event.action, 1.0)
        visible = {"appear": True, "vanish": False}.get(event.action, visible)
    return x, y, radius, visible


def _possible(shape: _Shape) -> list[str]:
    x, y, radius, visible = _state(shape)
    if not visible:
        return ["appear"]
    room = [name for name, (dx, dy) in _DIRECTIONS.items() if 0.8 - (x * dx + y * dy) >= 0.5]
    resize = ["grow"] if radius < 0.28 else ["shrink"]
    return ["vanish", "blink", "shake", *room, *resize]


def _act(rng: np.random.Generator, shape: _Shape, action: str, start: float, end: float) -> None:
    amount = (0.0, 0.0)
    if action in _DIRECTIONS:
        x, y, _, _ = _state(shape)
        dx, dy = _DIRECTIONS[action]
        far = rng.uniform(0.5, min(1.2, 0.8 - (x * dx + y * dy)) + 1e-9)
        amount = (dx * far, dy * far)
    shape.events.append(_Event(action, start, end, amount))


def _sentence(
    rng: np.random.Generator,
    options: MovingShapesOptions,
    shape: _Shape,
    action: str,
    described: list[_Shape],
    mentioned: set[str],
) -> str:
    def word(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))] if options.synonyms else words[0]

    article = "the" if shape.colour in mentioned else "a"
    mentioned.add(shape.colour)
    colour, kind = shape.colour, word(_SHAPE_WORDS[shape.kind])
    names = [f"{article} {colour} {kind}"]
    if options.synonyms:
        names.append(f"{article} {kind} that is {colour}")
        if article == "the":
            names.append(f"the {colour} one")
    phrase = word(_ACTION_PHRASES[action])
    sentence = f"{names[rng.integers(len(names))]} {phrase}."
    return sentence[0].upper() + sentence[1:]


def render_frames(video: ShapesVideo, options: MovingShapesOptions) -> np.ndarray:
    """uint8 [F, size, size, 3] frames of a video, F = duration * fps."""
    rng = np.random.default_rng((*video._seed, 1))
    count, size = round(video.duration * options.fps), options.size
    times = (np.arange(count, dtype=np.float32) + 0.5) / options.fps
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    slope = rng.uniform(-10, 10, size=2)
    background = rng.uniform(25, 60) + slope[0] * axis[:, None] + slope[1] * axis + rng.normal(0, 4, size=(size, size))
    # A few noise pictures in random order: drawing noise for every frame would cost more than all the rest.
    noise = options.noise * rng.standard_normal((_NOISE_PICTURES, size, size)).astype(np.float32)
    order = rng.integers(_NOISE_PICTURES, size=count)
    frames = np.repeat(_to_bytes(background + noise)[order][..., None], 3, axis=-1)
    shake = rng.normal(0, options.jitter, size=(2, count)).astype(np.float32) * (2 / size)
    for shape in video._shapes:
        x, y, radius, alpha = _motion(shape, times)
        _draw(frames, shape, x + shake[0], y + shake[1], radius, alpha, axis, noise[order])
    return frames


def _to_bytes(grey: np.ndarray) -> np.ndarray:
    return np.clip(grey + 0.5, 0, 255).astype(np.uint8)


def _motion(shape: _Shape, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, radius and opacity of a shape at each time."""
    x, y = np.full_like(times, shape.x), np.full_like(times, shape.y)
    radius, alpha = np.full_like(times, shape.radius), np.full_like(times, float(shape.visible))
    for event in shape.events:
        ramp = np.clip((times - event.start) / (event.end - event.start), 0, 1)
        inside = (times >= event.start) & (times < event.end)
        x += event.amount[0] * ramp
        y += event.amount[1] * ramp
        if event.action == "appear":
            alpha = np.maximum(alpha, ramp)
        elif event.action == "vanish":
            alpha = np.minimum(alpha, 1 - ramp)
        elif event.action in ("grow", "shrink"):
            radius = radius * (_GROWTH if event.action == "grow" else 1 / _GROWTH) ** ramp
        elif event.action == "blink":
            alpha = np.where(inside & (((times - event.start) * 4).astype(int) % 2 == 0), 0, alpha)
        elif event.action == "shake":
            x += np.where(inside, 0.12 * np.sign(np.sin(2 * np.pi * 2 * (times - event.start))), 0)
    return x, y, radius, alpha


def _draw(
    frames: np.ndarray,
    shape: _Shape,
    x: np.ndarray,
    y: np.ndarray,
    radius: np.ndarray,
    alpha: np.ndarray,
    axis: np.ndarray,
    noise: np.ndarray,
) -> None:
    """Blend a shape into every frame, looking only at the square around it."""
    size = len(axis)
    colour = np.array(_COLOURS[shape.colour], np.float32)
    for t in np.flatnonzero(alpha > 0):
        reach = 1.05 * radius[t]
        left, right = np.searchsorted(axis, (x[t] - reach, x[t] + reach))
        top, bottom = np.searchsorted(axis, (y[t] - reach, y[t] + reach))
        u, v = (axis[left:right] - x[t]) / radius[t], ((axis[top:bottom] - y[t]) / radius[t])[:, None]
        # How deep inside the outline a pixel is, in pixels: its edge is soft over one pixel.
        cover = np.clip(_inside(shape.kind, u, v) * (radius[t] * size / 2) + 0.5, 0, 1) * alpha[t]
        patch = frames[t, top:bottom, left:right]
        ink = colour + noise[t, top:bottom, left:right, None]
        patch[...] = _to_bytes(patch + cover[..., None] * (ink - patch))


def _inside(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the outline of a shape of radius 1 (inside positive): u along, v down."""
    if kind == "circle":
        return 0.9 - np.hypot(u, v)
    if kind == "ring":
        return 0.22 - np.abs(np.hypot(u, v) - 0.78)
    if kind == "square":
        return 0.8 - np.maximum(np.abs(u), np.abs(v))
    if kind == "triangle":
        return np.minimum(0.75 - v, (v + 0.95) * 0.46 - np.abs(u) * 0.89)
    across, along = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(0.3 - across, 0.95 - along), np.minimum(0.95 - across, 0.3 - along))


def encode_video(frames: np.ndarray, path: Path, fps: int, quality: int) -> None:
    """Write uint8 [F, H, W, 3] frames to an mp4: H.264 where PyAV has x264, else MPEG-4. Moved into place when
    complete."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}.", suffix=".mp4", delete=False) as file:
        temporary = Path(file.name)
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            if "libx264" in av.codecs_available:
                settings = {"preset": "ultrafast", "crf": str(quality), "threads": "1"}
                stream = container.add_stream("libx264", rate=fps, options=settings)
            else:
                stream = container.add_stream("mpeg4", rate=fps, options={"qscale": str(1 + quality // 2)})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, fps)
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def render_video(options: MovingShapesOptions, seed: int, split: str, number: int, path: str | Path) -> ShapesVideo:
    """Render video ``number`` of a split to an mp4 file; returns its script (with the sentences)."""
    video = script_video(options, seed, split, number)
    encode_video(render_frames(video, options), Path(path), options.fps, options.quality)
    return video


def pixel_features(options: MovingShapesOptions, motion: bool = False) -> PixelFeatures:
    """The extractor that made this corpus's features (or those of motion alone), to run on other videos."""
    return PixelFeatures(size=64, fps=options.fps, clips_per_second=options.clips_per_second, motion=motion)


def _make_one(
    job: tuple[str, int], options: MovingShapesOptions, seed: int, folder: Path
) -> tuple[str, ShapesVideo, np.ndarray, float]:
    split, number = job
    path = folder / f"{split}_{number:05d}.mp4"
    video = render_video(options, seed, split, number, path)
    features, duration = pixel_features(options).extract(path)
    if split != "test":
        path.unlink()
    return split, video, features, duration


def make_moving_shapes(
    options: MovingShapesOptions | None = None, seed: int = 0, cache: str | Path | None = None, workers: int = 2
) -> Path:
    """Make the corpus, unless the cache has it, and return its folder.

    The folder holds ``annotations.json`` (``{split: {video_id: {duration, timestamps, sentences}}}``, seconds),
    ``features.h5`` (``f[video_id]``: float32 [T, dim]) and ``videos/test_*.mp4`` (those of the test split). It appears
    only when complete.

    Args:
        options: what the corpus looks like.
        seed: every video depends on nothing but this, the options, its split and its number.
        cache: where corpora are kept; ``None``: see :func:`cache_folder`.
        workers: processes that render.

    Raises:
        ConfigError: the cache folder can't be written.
    """
    options = options or MovingShapesOptions()
    description = json.dumps({"version": VERSION, "seed": seed, **asdict(options)}, sort_keys=True)
    root = cache_folder(cache) / "moving_shapes"
    folder = root / hashlib.sha256(description.encode()).hexdigest()[:16]
    if (folder / "annotations.json").is_file():
        log.info("moving_shapes: using %s", folder)
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        partial_folder = Path(tempfile.mkdtemp(dir=root, prefix=f"{_MAKING}{os.getpid()}-"))
    except OSError as error:
        raise ConfigError(
            f"cache folder {root}: {error.strerror}; name another by data.cache or VPGFAST_CACHE"
        ) from None
    try:
        videos = partial_folder / "videos"
        videos.mkdir()
        counts = (options.train_videos, options.val_videos, options.test_videos)
        jobs = [(split, n) for split, count in zip(SPLITS, counts, strict=True) for n in range(count)]
        annotations: dict[str, dict[str, dict]] = {split: {} for split in SPLITS}
        with h5py.File(partial_folder / "features.h5", "w") as file:
            file.attrs["source"] = text_attribute(f"pixel statistics of moving_shapes (seed {seed})")
            made = _in_parallel(partial(_make_one, options=options, seed=seed, folder=videos), jobs, workers)
            for split, video, features, duration in tqdm(
                made, total=len(jobs), desc="making moving_shapes", unit="video", disable=None
            ):
                file[video.video_id] = features
                annotations[split][video.video_id] = {
                    "duration": duration,
                    "timestamps": [[start, min(end, duration)] for start, end in video.spans],
                    "sentences": list(video.sentences),
                }
        (partial_folder / "options.json").write_text(description + "\n")
        (partial_folder / "annotations.json").write_text(json.dumps(annotations))
        try:
            os.rename(partial_folder, folder)
        except OSError:
            if not (folder / "annotations.json").is_file():  # otherwise another process was faster with the same corpus
                raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return folder


def _sweep(root: Path) -> None:
    """Delete what processes of this machine were making when they were killed."""
    for left in root.glob(f"{_MAKING}*"):
        process = left.name.removeprefix(_MAKING).split("-")[0]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def _in_parallel(function: partial, jobs: list[tuple[str, int]], workers: int) -> Iterator:
    if workers <= 1 or len(jobs) <= 8:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
        yield from pool.map(function, jobs, chunksize=4)


def _end_with_parent() -> None:
    """Where the process that waits for the videos is killed, nothing else ends those that make them."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
