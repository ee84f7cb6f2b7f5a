"""Decoding by torchcodec, for files in which it has nothing to interpret.

Which frame is on show when is worked out here, from the packets' stamps; torchcodec decodes frames by their number. It
does not do what the rest of the reader does about turned pictures, pixels that are not square, edit lists, clocks that
jump and damage, so files with any of these are left to PyAV.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np

from vpgfast.video.clock import Clock, Heard
from vpgfast.video.plan import Instants
from vpgfast.video.source import Source, reason

_BATCH = 2**26  # bytes of decoded frames at a time
_SAME = 1e-4  # seconds


class NotForTorchcodec(Exception):
    """torchcodec would not give the same frames at the same times; says why."""


@functools.cache
def why_not() -> str | None:
    """Why torchcodec can't be used here; ``None`` if it can."""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except ModuleNotFoundError as error:
        return (
            "is not installed (pip install torchcodec)"
            if str(error.name).startswith("torchcodec")
            else f"does not load: {error}"
        )
    except Exception as error:  # it loads FFmpeg's libraries, which can fail in its own ways
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"does not load: {lines[0] if lines else type(error).__name__}"
    return None


class Scan:
    """Times of all frames of a file, from its packets alone.

    Args:
        source: just opened; it is read to its end.

    Attributes:
        stamps, times: int64 [N] and float64 [N], in the order in which frames are shown; seconds since the container's
            start.
        end, clock, heard, count, packets, damaged, without_picture: as of
            :class:`vpgfast.video.decode.Decoder`.

    Raises:
        NotForTorchcodec: the stamps need interpretation.
    """

    damaged = without_picture = 0

    def __init__(self, source: Source) -> None:
        base = source.stream.time_base
        if source.guessed_rate or not base or source.start is None or source.container.format.name == "avi":
            raise NotForTorchcodec("the format has no presentation stamps")
        if source.broadcast:
            raise NotForTorchcodec("clocks and picture sizes may change in its format")
        if source.aspect not in (None, 1):
            raise NotForTorchcodec("its pixels are not square")
        self.heard = Heard()
        self.clock = Clock(source.start, 1 / source.rate, source.broadcast, self.heard)
        stamps, durations = self._read(source)
        order = np.argsort(stamps, kind="stable")
        self.stamps = stamps[order]
        if len(stamps) == 0 or (np.diff(self.stamps) == 0).any():
            raise NotForTorchcodec("two frames have the same stamp" if len(stamps) else "it holds no frame")
        self.times = np.array([self.clock.tick(source.seconds(stamp)) for stamp in self.stamps.tolist()])
        if self.clock.jumps or self.clock.start != source.start:
            raise NotForTorchcodec("its clock jumps")
        last = source.seconds(int(durations[order[-1]]))
        self.end = self.times[-1] + (last if 0 < last <= self.clock.longest_still else self.clock.usual_gap)
        self.packets, self.count = len(stamps), 0

    def _read(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        stamps, durations, last_dts = [], [], None
        try:
            for packet in source.container.demux([source.stream, *source.container.streams.audio]):
                if not packet.size:
                    continue
                if packet.stream is not source.stream:
                    if packet.dts is not None and packet.time_base:
                        self.heard.add(float(packet.dts * packet.time_base), float(
                            (packet.dts + (packet.duration or 0)) * packet.time_base))  # fmt: skip
                    continue
                without_stamp = packet.pts is None or (packet.dts is None and last_dts is not None)
                if without_stamp or packet.is_discard or packet.is_corrupt:
                    raise NotForTorchcodec("some of its packets are cut off, damaged or without stamps")
                if last_dts is not None:
                    if packet.dts < last_dts:
                        raise NotForTorchcodec("its stamps go back")
                    self.clock.note_gap(source.seconds(packet.dts - last_dts))
                last_dts = packet.dts  # Matroska knows none for the first few
                stamps.append(packet.pts)
                durations.append(packet.duration or 0)
        except av.FFmpegError as error:
            raise NotForTorchcodec(f"it is damaged ({reason(error)})") from None
        return np.array(stamps, np.int64), np.array(durations, np.int64)

    def on_show(self, instants: Instants | None, first: int) -> Iterator[tuple[int, float]]:
        """(number of the frame, time) of all instants from k = ``first`` on; ``None``: of all frames from there on."""
        if instants is None:
            yield from enumerate(self.times[first:].tolist(), start=first)
            return
        frame, k = 0, first
        while k == 0 or instants.before(self.end, k):
            while frame + 1 < len(self.times) and not instants.before(self.times[frame + 1], k):
                frame += 1
            yield frame, instants[k]
            k += 1


class Frames:
    """Frames of a scanned file by their number.

    Args:
        source: of the file, opened anew; torchcodec reads it by itself.
        scan: of the file.
        threads: for decoding.

    Attributes:
        batch: how many to ask for at a time, so that they take little memory.

    Raises:
        NotForTorchcodec: it sees another file than the scan.
    """

    def __init__(self, source: Source, scan: Scan, threads: int) -> None:
        from torchcodec.decoders import VideoDecoder

        self.scan, self.base = scan, source.stream.time_base
        self.file = open(source.path, "rb", buffering=0)  # noqa: SIM115 - closed by close
        try:
            self.decoder: Any = VideoDecoder(
                self.file, stream_index=source.stream.index, dimension_order="NHWC", num_ffmpeg_threads=threads
            )
        except Exception as error:
            self.close()
            raise NotForTorchcodec(f"torchcodec can't open it ({reason(error)})") from None
        if self.decoder.metadata.num_frames != len(scan.stamps):
            self.close()
            raise NotForTorchcodec(
                f"torchcodec counts {self.decoder.metadata.num_frames} frames, its packets {len(scan.stamps)}"
            )
        size = self.decoder.metadata.height * self.decoder.metadata.width * 3
        self.batch = max(1, _BATCH // max(1, size))

    def close(self) -> None:
        self.file.close()

    def get(self, numbers: Sequence[int]) -> list[av.VideoFrame]:
        """Frames of rising numbers, in RGB; as many at a time as :attr:`batch` says.

        Raises:
            NotForTorchcodec: it can't decode one, or gives another.
        """
        try:
            found = self.decoder.get_frames_at(list(numbers))
        except Exception as error:
            raise NotForTorchcodec(f"torchcodec can't decode it ({reason(error)})") from None
        if np.abs(found.pts_seconds.numpy() - self.scan.stamps[list(numbers)] * float(self.base)).max() > _SAME:
            raise NotForTorchcodec("torchcodec gives a frame of another time")
        self.scan.count += len(numbers)
        return [av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24") for one in found.data.numpy()]
