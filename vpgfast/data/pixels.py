"""Clip features straight from pixels: what the blob of each colour looks like and how it moves. Nothing is trained.

They are made for the ``moving_shapes`` corpus, whose shapes differ in colour, and run on any video that PyAV decodes
(on natural video they say little more than where which colours move).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpgfast.video import Picture, Video

HUES = ("red", "yellow", "green", "cyan", "blue", "purple")
"""Six colours, 60 degrees of hue apart from red on; the seventh blob holds bright grey pixels (``"white"``)."""
NUM_BLOBS = len(HUES) + 1

_BLOB_STATISTICS = 16
_MEASURED = 8  # numbers about a blob in one frame, see _measure
_GRID = 4
_MOVEMENT = (4, 5, 6, 7, 8, 10, 11)  # of a blob's statistics: speeds, growth, fading, coming and going
_CHUNK = 64  # frames measured at a time
_MIN_CHROMA, _MIN_WHITE = 70, 140  # of 255
_MIN_PIXELS = 0.002  # of the frame; smaller blobs are compression noise


@dataclass(frozen=True)
class PixelFeatures:
    """Extractor of clip features from a video file.

    A video is sampled at ``fps`` frames a second (the frame on show at that instant, so that variable frame rates keep
    their timing) and divided into ``T = round(duration * clips_per_second)``, at least one, clips of equal length.

    Attributes:
        size: frames are scaled to ``size`` x ``size`` pixels.
        fps: frames looked at a second.
        clips_per_second: clips a second.
        motion: keep only what movement and change alone show, as optical flow does: not where a blob is, how large, of
            what form.
    """

    size: int = 64
    fps: float = 8.0
    clips_per_second: float = 2.0
    motion: bool = False

    @property
    def dim(self) -> int:
        """Width of a clip feature: 16 numbers a colour (7 of motion), and brightness and motion on a 4 x 4 grid."""
        return len(motion_columns()) if self.motion else NUM_BLOBS * _BLOB_STATISTICS + 2 * _GRID * _GRID

    def extract(self, video: str | Path) -> tuple[np.ndarray, float]:
        """Features of a video file: float32 [T, dim], and the video's duration in seconds.

        Raises:
            VideoError: the file is missing, is no video, or holds no frame; names the file.
        """
        file = Video(video)
        rows = [self.measure(frames.pixels) for frames in file.frames(self.fps, self.picture, chunk=_CHUNK)]
        return self.clips(np.concatenate(rows), file.duration), file.duration

    @property
    def picture(self) -> Picture:
        """What becomes of a frame."""
        return Picture(size=(self.size, self.size), interpolation="area")

    def measure(self, frames: np.ndarray) -> np.ndarray:
        """What is seen in each of uint8 [F, S, S, 3] frames: float64 [F, blobs * 8 + 16]."""
        blobs, grids = _measure(frames)
        return np.concatenate((blobs.reshape(len(frames), -1), grids.reshape(len(frames), -1)), axis=1)

    def clips(self, rows: np.ndarray, duration: float) -> np.ndarray:
        """Features float32 [T, dim] from what :meth:`measure` gave for all frames of a video [F, ...]."""
        blobs, grids = np.split(rows, [NUM_BLOBS * _MEASURED], axis=1)
        count = max(1, round(duration * self.clips_per_second))
        features = _clip_features(
            blobs.reshape(len(rows), NUM_BLOBS, _MEASURED),
            grids.reshape(len(rows), _GRID, _GRID).astype(np.float32),
            count,
            self.fps,
        )
        return features[:, motion_columns()] if self.motion else features


def even_times(count: int, duration: float) -> np.ndarray:
    """Where each of ``count`` clips of equal length begins and ends: float64 [count, 2], seconds."""
    edges = np.arange(count + 1) * duration / count
    return np.stack((edges[:-1], edges[1:]), axis=1)


def motion_columns() -> np.ndarray:
    """Which elements of a whole clip feature those with ``motion`` are."""
    blobs = np.add.outer(_BLOB_STATISTICS * np.arange(NUM_BLOBS), _MOVEMENT).ravel()
    grid = NUM_BLOBS * _BLOB_STATISTICS + _GRID * _GRID + np.arange(_GRID * _GRID)
    return np.concatenate((blobs, grid))


def _measure(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Statistics of uint8 [F, S, S, 3] frames: float64 [F, blobs, 8], and brightness float32 [F, 4, 4]."""
    count, size = frames.shape[:2]
    grey = frames[..., 1].astype(np.float32) / 255  # green carries most of the brightness
    cell = size // _GRID
    grids = grey[:, : cell * _GRID, : cell * _GRID].reshape(count, _GRID, cell, _GRID, cell).mean(axis=(2, 4))

    red, green, blue = frames[..., 0], frames[..., 1], frames[..., 2]
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    chosen = np.flatnonzero((high - low >= _MIN_CHROMA) | (low >= _MIN_WHITE))
    r, g, b = (channel.reshape(-1)[chosen].astype(np.int32) for channel in (red, green, blue))
    value, chroma = high.reshape(-1)[chosen], (high - low).reshape(-1)[chosen]
    # Hue in sixths of the circle (the usual hexagon formula), rounded to the nearest of six colours.
    safe = np.maximum(chroma, 1)
    hue = np.where(value == r, (g - b) / safe, np.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    colour = np.where(chroma >= _MIN_CHROMA, np.rint(hue).astype(np.int64) % len(HUES), len(HUES))

    blob = chosen // (size * size) * NUM_BLOBS + colour
    x = (chosen % size + 0.5) / size * 2 - 1
    y = (chosen // size % size + 0.5) / size * 2 - 1

    def total(weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(blob, weights, minlength=count * NUM_BLOBS)

    pixels = total()
    inverse = 1.0 / np.maximum(pixels, 1)
    centre_x, centre_y = total(x) * inverse, total(y) * inverse
    dx, dy = x - centre_x[blob], y - centre_y[blob]
    square = dx * dx + dy * dy
    spread = total(square) * inverse
    # Moments about the centroid that no rotation changes: |E z^3| sees triangles, |E z^4| squares and crosses, E r^4
    # rings.
    cube_re, cube_im = dx * (dx * dx - 3 * dy * dy), dy * (3 * dx * dx - dy * dy)
    fourth_re, fourth_im = (dx * dx - dy * dy) ** 2 - 4 * (dx * dy) ** 2, 4 * dx * dy * (dx * dx - dy * dy)
    scale = np.sqrt(np.maximum(spread, 1e-6))
    threefold = np.hypot(total(cube_re), total(cube_im)) * inverse / scale**3
    fourfold = np.hypot(total(fourth_re), total(fourth_im)) * inverse / scale**4
    tails = total(square * square) * inverse / scale**4
    area = pixels * (4.0 / size**2)  # in the coordinates of x and y, where the frame has area 4
    hollow = spread / np.maximum(area, 1e-6)
    brightness = total(value / 255.0) * inverse
    statistics = np.stack((area, centre_x, centre_y, brightness, hollow, tails, threefold, fourfold), axis=-1)
    return statistics.reshape(count, NUM_BLOBS, _MEASURED), grids


def _clip_features(blobs: np.ndarray, grids: np.ndarray, clips: int, fps: float) -> np.ndarray:
    """float32 [clips, dim] from per-frame statistics [F, blobs, 8] and grids [F, 4, 4] (scaled to about unit
    spread)."""
    frames = len(blobs)
    area = blobs[..., 0]
    seen = area > 4 * _MIN_PIXELS
    both = seen.copy()
    both[:-1] &= seen[1:]
    both[-1] = False

    # A frame stands for the time until the next one, and so does what changes between the two.
    def change(values: np.ndarray) -> np.ndarray:
        return np.where(both, np.diff(values, axis=0, append=values[-1:]), 0.0) * fps

    side = np.sqrt(area)
    vx, vy, growth, fading = (change(v) for v in (blobs[..., 1], blobs[..., 2], side, blobs[..., 3]))
    flips = np.diff(seen.astype(np.float64), axis=0, append=seen[-1:])
    per_frame = np.stack(
        (
            seen,
            2 * side * seen,
            *(2 * blobs[..., i] * seen for i in (1, 2)),
            4 * vx,
            4 * vy,
            4 * np.hypot(vx, vy),
            10 * growth,
            10 * np.abs(growth),
            blobs[..., 3] * seen,
            6 * fading,
            4 * np.abs(flips),
            *(
                gain * np.clip(blobs[..., i] - usual, -1, 1) * seen
                for i, usual, gain in ((4, 0.18, 10.0), (5, 1.4, 3.0), (6, 0.1, 4.0), (7, 0.15, 4.0))
            ),
        ),
        axis=-1,
    ).reshape(frames, -1)
    motion = np.abs(np.diff(grids, axis=0, append=grids[-1:])).reshape(frames, -1)
    per_frame = np.concatenate((per_frame, 2 * grids.reshape(frames, -1), 20 * motion), axis=1)

    # Clip i is the mean of frames i F / T up to (i + 1) F / T, at least one.
    edges = np.minimum(np.arange(clips) * frames // clips, frames - 1)
    ends = np.maximum(np.append(edges[1:], frames), edges + 1)
    sums = np.concatenate((np.zeros((1, per_frame.shape[1])), np.cumsum(per_frame, axis=0)))
    return ((sums[ends] - sums[edges]) / (ends - edges)[:, None]).astype(np.float32)
