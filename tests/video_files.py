"""Small video files made on the spot, as odd as people's files are. Every frame shows its number."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

_BITS = 8
TICK = Fraction(1, 1000)


def numbered(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """uint8 [height, width, 3]: the number's eight bits as upright bars, black or white, the lowest one first."""
    bars = np.array([255 * (number >> bit & 1) for bit in range(_BITS)], np.uint8)
    row = bars[np.arange(width) * _BITS // width]
    return np.repeat(np.broadcast_to(row, (height, width))[..., None], 3, axis=2).copy()


def number(pixels: np.ndarray) -> int:
    """The number that a frame shows."""
    height, width = pixels.shape[:2]
    middles = (np.arange(_BITS) * width + width // 2) // _BITS
    grey = pixels[height // 4 : height // 2 + 1].mean(axis=(0, 2))
    return sum(1 << bit for bit, middle in enumerate(middles) if grey[middle] > 127)


def numbers(chunks: Iterable[Any]) -> list[int]:
    """Of all frames of :meth:`vpgfast.video.Video.frames`."""
    return [number(pixels) for chunk in chunks for pixels in chunk.pixels]


def quarters(width: int = 64, height: int = 48) -> np.ndarray:
    """A picture that shows how it is turned: red, green above blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = slice(0, height // 2), slice(0, width // 2)
    bottom, right = slice(height // 2, None), slice(width // 2, None)
    picture[top, left], picture[top, right] = (230, 0, 0), (0, 230, 0)
    picture[bottom, left], picture[bottom, right] = (0, 0, 230), (230, 230, 230)
    return picture


def write(
    path: Path,
    frames: Sequence[np.ndarray],
    times: Sequence[float] | None = None,
    *,
    rate: int = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    aspect: Fraction | None = None,
    sound: tuple[float, float] | None = None,
    container: dict[str, str] | None = None,
    shift: Callable[[float], float] | None = None,
    damage: Callable[[int, bytes], bytes] | None = None,
    format: str | None = None,
    **options: str,
) -> Path:
    """Write a video file.

    Args:
        path: its suffix names the format, unless ``format`` does.
        frames: uint8 [H, W, 3], or ``VideoFrame`` that are of ``pix_fmt``.
        times: seconds; default: at ``rate``.
        rate: frames a second, as the file is to say.
        aspect: width of a pixel over its height.
        sound: (start, end) of a tone; seconds.
        container: options of the muxer.
        shift: makes the packets' stamps from what they are; seconds.
        damage: makes the i-th video packet's bytes from what they are.
        options: of the encoder.
    """
    if codec == "libx264":
        options = {"crf": "12", "preset": "ultrafast"} | options
    with av.open(str(path), "w", format=format, options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        first = frames[0]
        stream.height, stream.width = first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.time_base = TICK if times is not None else Fraction(1, rate)
        packets: list[Any] = []
        if sound is not None:
            sounding = file.add_stream("mp2" if path.suffix in (".ts", ".mpg") else "aac", rate=32000, layout="mono")
            packets += tone(sounding, *sound)
        for index, picture in enumerate(frames):
            frame = picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.time_base = TICK if times is not None else Fraction(1, rate)
            frame.pts = round(times[index] / TICK) if times is not None else index
            packets += stream.encode(frame)
        packets += stream.encode()
        seen = 0
        for packet in sorted(packets, key=lambda one: (one.dts if one.dts is not None else one.pts) * one.time_base):
            if packet.stream is stream and damage is not None:
                packet = _copy(packet, damage(seen, bytes(packet)))
            if packet.stream is stream:
                seen += 1
            if shift is not None:
                for name in ("pts", "dts"):
                    stamp = getattr(packet, name)
                    if stamp is not None:
                        setattr(packet, name, round(shift(float(stamp * packet.time_base)) / packet.time_base))
            file.mux(packet)
    return path


def tone(stream: Any, start: float, end: float) -> list[Any]:
    """Packets of a tone between two seconds."""
    packets, size = [], 1152
    for index in range(int((end - start) * 32000 / size)):
        wave = (np.sin(np.arange(size) / 10) * 3000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate, frame.time_base = 32000, Fraction(1, 32000)
        frame.pts = round(start * 32000) + index * size
        packets += stream.encode(frame)
    return packets + stream.encode()


def _copy(packet: Any, data: bytes) -> Any:
    copy = av.Packet(data)
    copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, packet.stream
    copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
    return copy


def clip(path: Path, count: int = 20, **settings: Any) -> Path:
    """A plain video of ``count`` numbered frames."""
    return write(path, [numbered(index) for index in range(count)], **settings)


def turn(path: Path, matrix: Sequence[int]) -> Path:
    """Give an mp4's picture a display matrix (a, b, c, d)."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (number * 0x10000 for number in matrix)
    tkhd = data.index(b"tkhd")
    data[tkhd + 44 : tkhd + 80] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path
