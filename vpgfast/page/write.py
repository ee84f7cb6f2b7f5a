"""Writing a page."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Sequence
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vpgfast import __version__
from vpgfast.errors import UserError
from vpgfast.files import readable, write_file
from vpgfast.page.content import Shown

MOST_EMBEDDED = 200 * 2**20
"""Bytes of videos that fit into a page; browsers are slow to open more."""
_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".ogv": "video/ogg",
    ".mkv": "video/x-matroska",
}  # fmt: skip
_CODECS = {"h264", "vp8", "vp9", "av1", "theora"}
_SECURITY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "media-src * data: blob: file:"
)
"""Nothing is fetched but the videos."""


def write_page(path: Path, videos: Sequence[Shown], title: str, embed: bool = False) -> None:
    """Write one HTML file that shows answers.

    Args:
        path: of the file.
        videos: the first is open when the page is.
        title: above all.
        embed: put the videos into the file; else it refers to them by relative paths, and has to stay where it is.

    Raises:
        UserError: it can't be written, or the videos are too large to be embedded.
    """
    if embed:
        size = sum(video.path.stat().st_size for video in videos if video.path is not None)
        if size > MOST_EMBEDDED:
            raise UserError(
                f"--page {path}: the videos have {size / 2**20:.0f} MiB, of which {MOST_EMBEDDED >> 20} fit into a "
                "page; leave out --page-embed, and the page refers to them"
            )
    content = [_described(video, path, embed) for video in videos]
    text = render({"title": readable(title), "videos": content, "serve": False}, _SECURITY)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--page {path}: its folder can't be made ({error.strerror})") from None
    write_file(path, text.encode())


def render(data: dict[str, Any], security: str) -> str:
    """The page's text: template, style, script and data in one.

    Args:
        data: what the script shows.
        security: content security policy.
    """
    here = files("vpgfast.page")
    # Within a script element only these could end it or begin a comment.
    safe = json.dumps({**data, "version": __version__}, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        safe = safe.replace(character, f"\\u{ord(character):04x}")
    parts = {
        "TITLE": html.escape(str(data["title"])),
        "SECURITY": html.escape(security),
        "STYLE": (here / "page.css").read_text(encoding="utf-8"),
        "DATA": safe,
        "SCRIPT": (here / "page.js").read_text(encoding="utf-8"),
    }
    text = (here / "template.html").read_text(encoding="utf-8")
    # Data last: what it holds may look like a name.
    for name in ("TITLE", "SECURITY", "STYLE", "SCRIPT", "DATA"):
        text = text.replace(f"{{{{{name}}}}}", parts[name])
    return text


def _described(video: Shown, page: Path, embed: bool) -> dict[str, Any]:
    found = describe(video)
    if video.path is not None and not found["problem"]:
        found["src"] = _embedded(video.path) if embed else relative_address(video.path, page.parent)
    return found


def describe(video: Shown) -> dict[str, Any]:
    """A video as the page's script reads it, without the address of its file."""
    problem, fps = ("There is no video here, only its time line.", 25.0)
    if video.path is not None:
        problem, fps = look_at(video.path)
    return {
        "name": readable(video.name),
        "file": "" if video.path is None else readable(video.path.name),
        "duration": round(video.duration, 3),
        "src": None,
        "problem": problem,
        "fps": fps,
        "lanes": [lane.to_dict() for lane in video.lanes],
    }


def look_at(path: Path) -> tuple[str, float]:
    """Why a browser can't play a file ("" if it can), and its frames a second."""
    import av

    try:
        with av.open(os.fspath(path.absolute())) as container:
            stream = container.streams.best("video")
            if stream is None:
                return "The file has no picture.", 25.0
            codec, rate = stream.codec_context.name, stream.average_rate or Fraction(25)
            depth = str(getattr(stream.codec_context, "pix_fmt", None))
    except (av.FFmpegError, OSError):
        return "The file can't be read any more.", 25.0
    codec = {"libdav1d": "av1", "libvpx-vp9": "vp9", "libvpx": "vp8"}.get(codec, codec)
    fps = min(120.0, max(1.0, float(rate)))
    if path.suffix.lower() not in _TYPES or codec not in _CODECS or (codec == "h264" and "10" in depth):
        name = readable(path.name)
        kind = f"{codec} in {path.suffix or 'no suffix'}"
        convert = f"ffmpeg -i {name} -c:v libx264 -pix_fmt yuv420p -c:a aac {Path(name).stem}.mp4"
        return f"Browsers don't play this file ({kind}). FFmpeg makes one that they play: {convert}", fps
    return "", fps


def relative_address(file: Path, folder: Path) -> str:
    """The URL of a file as seen from a folder, also for names that are no UTF-8."""
    try:
        relative = os.path.relpath(os.path.realpath(file), os.path.realpath(folder))
    except ValueError:  # another drive
        return file.absolute().as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")))


def _embedded(file: Path) -> str:
    return f"data:{_TYPES[file.suffix.lower()]};base64,{base64.b64encode(file.read_bytes()).decode()}"
