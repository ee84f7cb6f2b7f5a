"""Cutting moments out of video files, without encoding anything again."""

from __future__ import annotations

from pathlib import Path

import av

from vpgfast.errors import VideoError
from vpgfast.video.source import ANY_TAG

_EXACT = 0.1
"""Seconds by which a cut may begin early without a word about it."""


def cut(video: Path, start: float, end: float, target: Path) -> float:
    """Copy what happens from ``start`` to ``end`` (seconds on the container's clock) into a file of the same kind.

    Packets are copied as they are, so the picture begins at a key frame: at ``start`` or before.

    Returns:
        How many seconds the cut begins early.

    Raises:
        VideoError: the file can't be read or written; names it.
    """
    temporary = target.with_name(f".{target.name}.tmp{target.suffix}")
    try:
        with av.open(str(video.absolute()), **ANY_TAG) as source, av.open(str(temporary.absolute()), "w") as output:
            origin = (source.start_time or 0) / av.time_base
            picture = source.streams.best("video") or source.streams.video[0]
            copied = [s for s in source.streams if s is picture or s.type == "audio"]
            streams = {stream.index: output.add_stream_from_template(stream) for stream in copied}
            source.seek(round((start + origin) * av.time_base), backward=True)
            first: float | None = None
            for packet in source.demux(copied):
                if packet.dts is None or packet.pts is None or not packet.time_base:
                    continue
                time = float(packet.pts * packet.time_base) - origin
                if packet.stream is picture and first is None:
                    first = time
                if first is None or time < first:
                    continue  # sound before the first picture
                if time >= end:
                    if packet.stream is picture and packet.is_keyframe:
                        break
                    continue
                shift = round((first + origin) / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
        temporary.replace(target)
    except (av.FFmpegError, OSError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"clip {target}: can't be cut out of {video} ({reason})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return max(0.0, start - (first if first is not None else start))


def is_exact(early: float) -> bool:
    """Whether a cut begins where it was asked to, as far as one sees."""
    return early <= _EXACT
