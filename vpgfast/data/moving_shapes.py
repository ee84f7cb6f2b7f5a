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
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import av
import h5py
import numpy as np
from tqdm import tqdm

from vpgfast.cache import cache_folder
from vpgfast.data.discourse import script_discourse
from vpgfast.data.feature_files import text_attribute
from vpgfast.data.options import COLOURS, MovingShapesOptions
from vpgfast.data.pixels import PixelFeatures
from vpgfast.data.shape_scripts import GROWTH, Shape, ShapesVideo, script_distinct
from vpgfast.errors import ConfigError

log = logging.getLogger(__name__)

VERSION = 2
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
_NOISE_PICTURES = 16
_MAKING = f".making-{platform.node()}-"


def script_video(options: MovingShapesOptions, seed: int, split: str, number: int) -> ShapesVideo:
    """Write the script of video ``number`` of a split; it depends on nothing but the arguments."""
    key = (seed, SPLITS.index(split), number)
    script = script_discourse if options.discourse else script_distinct
    return script(options, f"{split}_{number:05d}", key)


def render_frames(video: ShapesVideo, options: MovingShapesOptions) -> np.ndarray:
    """uint8 [F, size, size, 3] frames of a video, F = duration * fps."""
    rng = np.random.default_rng((*video.seed, 1))
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
    for shape in video.shapes:
        x, y, radius, alpha = _motion(shape, times)
        _draw(frames, shape, x + shake[0], y + shake[1], radius, alpha, axis, noise[order])
    return frames


def _to_bytes(grey: np.ndarray) -> np.ndarray:
    return np.clip(grey + 0.5, 0, 255).astype(np.uint8)


def _motion(shape: Shape, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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
            radius = radius * (GROWTH if event.action == "grow" else 1 / GROWTH) ** ramp
        elif event.action == "blink":
            alpha = np.where(inside & (((times - event.start) * 4).astype(int) % 2 == 0), 0, alpha)
        elif event.action == "shake":
            x += np.where(inside, 0.12 * np.sign(np.sin(2 * np.pi * 2 * (times - event.start))), 0)
    return x, y, radius, alpha


def _draw(
    frames: np.ndarray,
    shape: Shape,
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
