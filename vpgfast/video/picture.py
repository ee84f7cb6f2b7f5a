"""How a decoded frame becomes RGB pixels: turned, scaled and cut as it is meant to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter

_FFMPEG_NAMES = {"nearest": "POINT"}
# Several threads for one small picture wait for each other: 6 times as long for 64 x 64. PyAV before 17 has one.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
_MOST_PIXELS = 2**28  # of a scaled frame, 800 MB
_SANE_ASPECT = 10  # pixels ten times as wide as high are a damaged header, not a picture


@dataclass(frozen=True)
class Picture:
    """How a frame becomes uint8 RGB pixels of one size for the whole video.

    A frame is turned and stretched as the file says that it is to be shown, scaled by FFmpeg, then cropped around the
    centre. Without ``short_side`` and ``size`` it keeps its displayed size.

    Attributes:
        short_side: the shorter side is scaled to this many pixels; the longer one keeps the displayed aspect ratio,
            rounded down (``longer * short_side // shorter``, as torchvision and transformers have it).
        size: or: scaled to exactly (height, width).
        crop: (height, width) cut out around the centre: from row ``(H - height) // 2`` and column
            ``(W - width) // 2`` on.
        enlarge_only: ``short_side`` only where the frame is smaller.
        interpolation: of the scaling. A frame that already has its size is converted only.

    Raises:
        ValueError: a number is below 1, ``short_side`` and ``size`` are both given, or the crop can't fit.
    """

    short_side: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    enlarge_only: bool = False
    interpolation: Literal["bilinear", "bicubic", "area", "lanczos", "nearest"] = "bilinear"

    def __post_init__(self) -> None:
        if self.short_side is not None and self.size is not None:
            raise ValueError("Picture: give short_side or size, not both")
        if self.enlarge_only and self.short_side is None:
            raise ValueError("Picture: enlarge_only goes with short_side")
        for name, numbers in (("short_side", (self.short_side,)), ("size", self.size), ("crop", self.crop)):
            if numbers and any(number is not None and number < 1 for number in numbers):
                raise ValueError(f"Picture: {name} must be at least 1 pixel, got {getattr(self, name)}")
        if self.interpolation not in ("bilinear", "bicubic", "area", "lanczos", "nearest"):
            raise ValueError(f"Picture: unknown interpolation {self.interpolation!r}")
        if self.crop is None:
            return
        fits = self.size is None or (self.crop[0] <= self.size[0] and self.crop[1] <= self.size[1])
        if self.short_side is not None and not self.enlarge_only:
            fits = min(self.crop) <= self.short_side
        if not fits:
            scaled = self.size if self.size is not None else f"a shorter side of {self.short_side}"
            raise ValueError(f"Picture: a crop of {self.crop} does not fit into {scaled}")

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which a frame of this displayed size is scaled, before the crop."""
        if self.size is not None:
            return self.size
        if self.short_side is None or (self.enlarge_only and min(height, width) >= self.short_side):
            return height, width
        if height <= width:
            return self.short_side, width * self.short_side // height
        return height * self.short_side // width, self.short_side

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the pixels made from a frame of this displayed size.

        Raises:
            ValueError: the crop does not fit.
        """
        scaled = self.scaled(height, width)
        if self.crop is None:
            return scaled
        if self.crop[0] > scaled[0] or self.crop[1] > scaled[1]:
            raise ValueError(
                f"a crop of {self.crop[0]} x {self.crop[1]} (height x width) does not fit into a picture of "
                f"{scaled[0]} x {scaled[1]}"
            )
        return self.crop


@dataclass(frozen=True)
class Turn:
    """A display matrix as operations on an array [height, width]: transposed first, then flipped."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Turn:
        """How the frame is to be turned, by its display matrix; to the nearest right angle.

        Raises:
            ValueError: PyAV can't show what the frame has.
        """
        side_data: Any = frame.side_data
        try:
            matrix = np.frombuffer(side_data["DISPLAYMATRIX"], np.int32)
        except KeyError:
            return cls()
        a, b, _, c, d, *_ = matrix.astype(np.int64).tolist()  # x' = a x + c y, y' = b x + d y
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, flip_rows=d < 0, flip_columns=a < 0)
        return cls(True, flip_rows=b < 0, flip_columns=c < 0)

    @classmethod
    def by(cls, degrees: float) -> Turn:
        """Counterclockwise, to the nearest right angle."""
        return (cls(), cls(True, True, False), cls(False, True, True), cls(True, False, True))[round(degrees / 90) % 4]

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """A view of [height, width, ...]."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def is_sane(aspect: Fraction | None) -> bool:
    """Whether pixels may be that many times as wide as high; ``None`` (not known) is."""
    return aspect is None or 1 / _SANE_ASPECT <= aspect <= _SANE_ASPECT


def displayed_size(width: int, height: int, aspect: Fraction | None, turn: Turn) -> tuple[int, int]:
    """(height, width) at which a frame of this stored size is shown.

    Args:
        width, height: in stored pixels.
        aspect: width of a pixel over its height; ``None``: unknown, taken as 1.
        turn: applied after the pixels are stretched.
    """
    if aspect is not None and is_sane(aspect):
        width = max(1, round(width * aspect))
    return (width, height) if turn.transpose else (height, width)


class Converter:
    """Makes pixels of one shape from the frames of a video, whatever shape these have.

    Args:
        picture: what to make.
        height, width: displayed size of the video's first frame, which decides the shape of all.

    Attributes:
        shape: (height, width) of what is made.
        displayed: (height, width) at which frames so far were to be shown, in the order of their coming.

    Raises:
        ValueError: the crop does not fit, or the picture would be very large.
    """

    def __init__(self, picture: Picture, height: int, width: int) -> None:
        self.picture = picture
        self.displayed: dict[tuple[int, int], None] = {(height, width): None}
        self.whole = picture.scaled(height, width)
        self.shape = picture.shape(height, width)
        if self.whole[0] * self.whole[1] > _MOST_PIXELS:
            raise ValueError(f"scaled to {self.whole[0]} x {self.whole[1]} (height x width) it would be too large")
        self._scaler = VideoReformatter()  # one for all frames: setting it up costs more than using it

    def convert(self, frame: av.VideoFrame, aspect: Fraction | None, turn: Turn, out: np.ndarray) -> None:
        """Write the frame's pixels into ``out``, uint8 [height, width, 3] of ``shape``.

        Args:
            frame: as decoded.
            aspect, turn: how it is to be shown, as for :func:`displayed_size`.
        """
        displayed = displayed_size(frame.width, frame.height, aspect, turn)
        self.displayed.setdefault(displayed)
        height, width = self._scaled(*displayed)
        stored = (width, height) if turn.transpose else (height, width)
        changes = stored != (frame.height, frame.width)
        name = self.picture.interpolation
        how = _FFMPEG_NAMES.get(name, name.upper()) if changes else None
        scaled = self._scaler.reformat(frame, stored[1], stored[0], "rgb24", interpolation=how, **_ONE_THREAD)
        pixels = turn.apply(scaled.to_ndarray())
        top, left = (height - self.shape[0]) // 2, (width - self.shape[1]) // 2
        out[:] = pixels[top : top + self.shape[0], left : left + self.shape[1]]

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """What a frame of this displayed size is scaled to: by the picture's own rule if that gives the video's shape,
        else to what the first frame was scaled to."""
        scaled = self.picture.scaled(height, width)
        if self.picture.crop is None:
            return self.whole
        return scaled if scaled[0] >= self.shape[0] and scaled[1] >= self.shape[1] else self.whole
