"""Putting a page together, and writing it to a file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vpgfast.errors import UserError
from vpgfast.files import output_folder, write_file
from vpgfast.page.content import Content, Video

MOST_EMBEDDED = 300 * 2**20
"""Bytes of videos in one page: browsers hold no string of more than half a gigabyte."""
_FILTER = """<label for="words">Filter sentences and videos</label>
    <input id="words" type="search" autocomplete="off" spellcheck="false">"""
_QUERY = """<label for="words">A sentence, or a paragraph: what happens, in its order</label>
    <textarea id="words" rows="2" autocomplete="off" autofocus placeholder="A dog jumps into the water."></textarea>"""
WRITTEN = ("player.js", "downloads.js", "page.js", "written.js")
SERVED = ("player.js", "downloads.js", "page.js", "served.js")


def write_page(path: Path, content: Content, embed: bool = False) -> None:
    """Write a page to an HTML file.

    Args:
        path: of the file. Videos are linked to relative to it: moved together, they still find each other.
        content: what it shows.
        embed: put the videos into the file.

    Raises:
        UserError: the file can't be written, or the videos are too large to embed.
    """
    media: dict[str, str] = {}
    if embed:
        total = sum(v.path.stat().st_size for v in content.videos if v.path is not None and v.path.is_file())
        if total > MOST_EMBEDDED:
            raise UserError(
                f"--page-embed: the videos have {total / 2**20:.0f} MiB, a page holds {MOST_EMBEDDED // 2**20}; leave "
                "it out, and the page links to them"
            )
    rows = []
    for number, video in enumerate(content.videos):
        row = video.as_dict(None if embed else _link(video, path))
        if embed and video.path is not None and video.path.is_file():
            row["embedded"] = f"video-{number}"
            media[row["embedded"]] = base64.b64encode(video.path.read_bytes()).decode()
        rows.append(row)
    page = page_html(content.as_dict(rows), media)
    output_folder(path.parent, f"page {path}: folder")
    write_file(path, page.encode())


def page_html(content: dict[str, Any], media: dict[str, str] | None = None, served: bool = False) -> str:
    """The page as text.

    Args:
        content: of :meth:`Content.as_dict`.
        media: base64 by the id of the element that holds it.
        served: with a query that asks the server and a list of its videos, see :mod:`vpgfast.serve`.
    """
    style, script = _read("style.css"), "".join(f"{_read(name)}\n" for name in (SERVED if served else WRITTEN))
    script = f'"use strict";\n{script}'
    connect = "'self'" if served else "'none'"
    # Injected scripts stay blocked. Text is evaluated by no script here, but by the tools that test pages in browsers.
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)} 'unsafe-eval'; img-src data:; "
        f"media-src 'self' file: blob:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(content["title"]),
        "style": style,
        "script": script,
        "content": json.dumps(content, allow_nan=False).replace("<", "\\u003c"),
        "media": "\n".join(
            f'<script type="text/plain" id="{name}">{data}</script>' for name, data in (media or {}).items()
        ),
        "query": _QUERY if served else _FILTER,
        "library": _read("library.html") if served else "",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("template.html"))


def _read(name: str) -> str:
    return (files("vpgfast.page") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Allows this one script or style and no other, whatever might slip into the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _link(video: Video, page: Path) -> str | None:
    """The address of a video as seen from the page."""
    if video.path is None or not video.path.is_file():
        return None
    return quote(os.fsencode(Path(os.path.relpath(video.path.absolute(), page.parent.absolute())).as_posix()))
