"""What FFmpeg does not do for images: animated WebP, and mirrored photographs. Pillow does, where it is installed."""

from __future__ import annotations

import io
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vpgfast.video.picture import Turn

_ORIENTATION = 0x0112  # Exif tag
_TURNS = {  # Exif orientation: transposed, then flipped up-down, left-right
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}
_MILLISECOND = Fraction(1, 1000)


def exif_turn(path: Path) -> Turn | None:
    """How a photograph is to be turned; ``None`` if Pillow is not there or can't read it."""
    try:
        from PIL import Image

        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # about other tags than this one
            return _TURNS.get(image.getexif().get(_ORIENTATION, 1), Turn())
    except Exception:  # an extra source of something minor: nothing in it may stop the reader
        return None


def is_animated_webp(file: Any) -> bool:
    """Whether a file's first bytes say so; it stays at its start."""
    head = file.read(21)
    file.seek(0)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def webp_as_film(file: Any) -> io.BytesIO:
    """An animated WebP as a film that FFmpeg can read, without loss.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: it is damaged.
    """
    from PIL import Image

    try:
        return _as_film(Image.open(file))
    except Exception as error:  # Pillow's readers raise what they come across
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _as_film(opened: Any) -> io.BytesIO:
    film, time = io.BytesIO(), 0
    with opened as image, av.open(film, "w", format="mov") as container:
        stream: Any = container.add_stream("png", rate=1000, options={"compression_level": "1"})
        stream.width, stream.height = image.size
        stream.pix_fmt = "rgb24"
        stream.codec_context.time_base = _MILLISECOND
        for index in range(image.n_frames):
            image.seek(index)
            frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
            frame.pts, frame.time_base = time, _MILLISECOND
            shown = max(1, round(image.info.get("duration") or 100))
            for packet in stream.encode(frame):
                packet.duration = shown  # else the last one's is not known
                container.mux(packet)
            time += shown
    film.seek(0)
    return film
