"""Whether browsers play a video file, and what to do where they don't."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from vpgfast.errors import VideoError
from vpgfast.video.source import Source, printable

_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".mkv": "video/x-matroska",
    ".ogv": "video/ogg", ".3gp": "video/3gpp",
}  # fmt: skip
_PLAYED = {  # by all of Chromium, Firefox and Safari; in which containers, as FFmpeg calls them
    "h264": ("mov",),
    "av1": ("mov", "matroska"),
    "vp9": ("mov", "matroska"),
    "vp8": ("matroska",),
}
_PIXELS = ("yuv420p", "yuvj420p")


@dataclass(frozen=True)
class Media:
    """What a page has to know of a video file.

    Attributes:
        rate: frames a second; ``None`` if unknown.
        begins: seconds on the file's clock at which the container starts; browsers' players count from before that.
        type: for browsers, such as ``video/mp4``.
        problem: why many browsers don't play it and what to do, in words; empty if they do.
    """

    rate: float | None
    type: str
    begins: float = 0.0
    problem: str = ""


def media_of(path: Path) -> Media:
    """What is known of a video file. A file that can't be read has a problem, and raises nothing."""
    kind = _TYPES.get(path.suffix.lower(), "application/octet-stream")
    try:
        with Source(path) as source:
            context = source.stream.codec_context
            containers = source.container.format.name.split(",")
            begins = max(0.0, source.start or 0.0)
            rate, codec, pixels = source.rate, context.codec.canonical_name, context.pix_fmt
            name = context.codec.long_name or codec
    except VideoError as error:
        return Media(None, kind, problem=f"{error}.")
    fits = any(container in containers for container in _PLAYED.get(codec, ()))
    if "matroska" in containers and path.suffix.lower() != ".webm":
        fits = False
    if codec == "h264" and pixels not in _PIXELS:
        fits, name = False, f"{name} with {pixels} pixels"
    return Media(rate, kind, begins, "" if fits else _advice(path, name))


def _advice(path: Path, codec: str) -> str:
    plain = f"{path.stem}.mp4" if path.suffix.lower() != ".mp4" else f"{path.stem}-h264.mp4"
    names = (printable(Path(name)) for name in (path.name, plain))
    original, copy = (shlex.quote(f"./{name}" if name.startswith("-") else name) for name in names)
    kind = f"{path.suffix.lower()} file" if path.suffix else "file without a suffix"
    return (
        f"Many browsers don't play {printable(Path(path.name))} ({codec} in a {kind}). "
        f"Make a copy that all play, and ask again with that: "
        f"ffmpeg -i {original} -c:v libx264 -pix_fmt yuv420p -c:a aac -movflags +faststart {copy}"
    )
