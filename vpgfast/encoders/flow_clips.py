"""Optical flow that was computed beforehand, as a stream of windows: a folder of images, or an array."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vpgfast.encoders.sampling import clips
from vpgfast.encoders.video_clips import VideoClips
from vpgfast.errors import VideoError
from vpgfast.files import reading

BOUND = 20
"""Pixels a frame that become 255 (and -20 becomes 0, 0 becomes 128) in an image of flow."""

_NAMES = (
    re.compile(r"(?:flow_)?(?P<axis>[xy])_(?P<number>\d+)\.(?:jpe?g|png)", re.IGNORECASE),  # TSN, denseflow
    re.compile(r".*-(?P<number>\d+)(?P<axis>[xy])\.(?:jpe?g|png)", re.IGNORECASE),  # Charades_v1_flow
)
_CHUNK = 32


@dataclass
class FlowClips(VideoClips):
    """The windows over the flow of one video; ``sampling.fps`` is the clock of the images, all of which are taken.

    ``path`` is one of these:

    - a folder of pairs of grey images, horizontal and vertical flow from a frame to the next, one pair a frame:
      ``flow_x_00001.jpg`` and ``flow_y_00001.jpg``, ``x_0001.jpg`` and ``y_0001.jpg``, or ``NAME-000001x.jpg`` and
      ``NAME-000001y.jpg``; 128 is no motion, 0 and 255 are 20 pixels;
    - an ``.npy`` [F, H, W, 2] of such flow in pixels.
    """

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 [B, F, H, W, 2]. Raises :class:`VideoError` for what is neither; names the file."""
        assert self.sampling.fps is not None
        scaler = Scaler(self)
        count = 0

        def pixels() -> Iterator[np.ndarray]:
            nonlocal count
            chunk: list[np.ndarray] = []
            for flow in read_flow(self.path):
                count += 1
                chunk.append(scaler.scale(flow))
                if len(chunk) == _CHUNK:
                    yield np.stack(chunk)
                    chunk = []
            if chunk:
                yield np.stack(chunk)

        yield from clips(pixels(), self.sampling, self.batch)
        self.duration = count / self.sampling.fps
        self.times = self.sampling.times(np.arange(count) / self.sampling.fps, self.duration)


class Scaler:
    """Scales and cuts flow as the picture says; the numbers, which are pixels a frame, stay what they are."""

    def __init__(self, video: FlowClips) -> None:
        self.path, self.picture, self.reformatter = video.path, video.picture, VideoReformatter()
        self.first: tuple[int, ...] | None = None

    def scale(self, flow: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 2] -> uint8 [h, w, 2]. Raises :class:`VideoError` for another size than the first one's."""
        self.first = self.first or flow.shape
        if flow.shape != self.first:
            raise VideoError(f"flow {self.path}: one image is {flow.shape[:2]}, the first was {self.first[:2]}")
        try:
            height, width = self.picture.scaled(*flow.shape[:2])
            rows, columns = self.picture.shape(*flow.shape[:2])
        except ValueError as error:
            raise VideoError(f"flow {self.path}: {error}") from None
        top, left = (height - rows) // 2, (width - columns) // 2
        if (height, width) != flow.shape[:2]:
            flow = np.stack([self._scaled(flow[..., axis], height, width) for axis in range(2)], axis=-1)
        return flow[top : top + rows, left : left + columns]

    def _scaled(self, plane: np.ndarray, height: int, width: int) -> np.ndarray:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(plane), format="gray")
        return self.reformatter.reformat(frame, width, height, "gray", interpolation="BILINEAR").to_ndarray()


def read_flow(path: Path) -> Iterator[np.ndarray]:
    """Flow from each frame to the next, uint8 [H, W, 2], see :class:`FlowClips`.

    Raises:
        VideoError: ``path`` holds none, or an image is missing or can't be read.
    """
    if path.is_dir():
        for pair in find_pairs(path):
            planes = [read_grey(file) for file in pair]
            if planes[0].shape != planes[1].shape:
                raise VideoError(f"flow {pair[0]}: is {planes[0].shape}, {pair[1].name} is {planes[1].shape}")
            yield np.stack(planes, axis=-1)
        return
    if path.suffix != ".npy" or not path.is_file():
        raise VideoError(
            f"flow {path}: weights of flow want a folder with flow_x_00001.jpg, flow_y_00001.jpg, ..., or an .npy "
            f"[F, H, W, 2] in pixels"
        )
    with reading(lambda error: VideoError(f"flow {path}: no array in NumPy's format ({' '.join(str(error).split())})")):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):  # a zip archive, whatever it is called
        raise VideoError(f"flow {path}: is an archive; an .npy [F, H, W, 2] in pixels is needed")
    if array.ndim != 4 or array.shape[-1] != 2 or array.dtype.kind not in "fiu" or not array.size:
        raise VideoError(f"flow {path}: is {array.dtype} {list(array.shape)}, [F, H, W, 2] in pixels is needed")
    for number, flow in enumerate(array):
        if not np.isfinite(flow).all():
            raise VideoError(f"flow {path}: frame {number} holds what is no number")
        yield as_image(flow)


def as_image(flow: np.ndarray) -> np.ndarray:
    """Pixels a frame -> uint8, as images of flow have it."""
    bounded = np.clip(flow.astype(np.float32), -BOUND, BOUND)
    return np.clip(np.rint(128 + 255 / (2 * BOUND) * bounded), 0, 255).astype(np.uint8)


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Horizontal and vertical flow of each frame, in order.

    Raises:
        VideoError: there is none, or one of the numbers between the first and the last lacks an image.
    """
    found: dict[int, dict[str, Path]] = {}
    for file in folder.iterdir():
        for names in _NAMES:
            if match := names.fullmatch(file.name):
                found.setdefault(int(match["number"]), {})[match["axis"].lower()] = file
                break
    if not found:
        raise VideoError(f"flow {folder}: holds no flow_x_00001.jpg, flow_y_00001.jpg, ... (nor x_..., y_...)")
    for number in range(min(found), max(found) + 1):
        for axis in "xy":
            if axis not in found.get(number, {}):
                raise VideoError(f"flow {folder}: the image of {axis} with number {number} is missing")
    return [(found[number]["x"], found[number]["y"]) for number in sorted(found)]


def read_grey(file: Path) -> np.ndarray:
    """uint8 [H, W] of an image; of one in colours, its brightness.

    Raises:
        VideoError: it can't be decoded; names it.
    """
    try:
        with av.open(str(file)) as container:
            frame = next(container.decode(video=0))
    except (av.FFmpegError, OSError, StopIteration, IndexError) as error:
        raise VideoError(f"flow {file}: no image that can be decoded ({type(error).__name__})") from None
    if frame.format.name == "gray" or frame.format.name.startswith("yuvj"):
        # JPEG's brightness as it is: converted, it might be stretched from another range.
        plane = frame.planes[0]
        return (
            np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].copy()
        )
    return frame.to_ndarray(format="gray")
