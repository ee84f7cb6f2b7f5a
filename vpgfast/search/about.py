"""``index.json``, which says what counts in the folder of an index."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vpgfast.errors import SearchIndexError

INDEX_FILE = "index.json"
FORMAT, VERSION = "vpgfast search index", 1


def read_about(path: Path) -> dict[str, Any]:
    """What ``index.json`` holds. Raises :class:`SearchIndexError` where it is damaged or of another format."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SearchIndexError(f"index {path.parent}: its {INDEX_FILE} is damaged ({error}); put back a copy") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise SearchIndexError(f"index {path.parent}: its {INDEX_FILE} is not of an index that this package made")
    if about.get("version") != VERSION:
        raise SearchIndexError(
            f"index {path.parent}: format {about.get('version')}, this is format {VERSION}; make it anew"
        )
    needed = ("method", "width", "features", "model", "settings", "next", "shards", "removed", "faiss")
    missing = [key for key in needed if key not in about]
    if missing:
        raise SearchIndexError(f"index {path.parent}: its {INDEX_FILE} lacks {', '.join(missing)}; put back a copy")
    try:
        videos = {shard["name"]: shard["videos"] for shard in about["shards"]}
        fits = all(0 <= row < videos[name] for name, rows in about["removed"].items() for row in rows)
        fits &= about["faiss"] is None or set(about["faiss"]["shards"]) <= set(videos)
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise SearchIndexError(
            f"index {path.parent}: its {INDEX_FILE} contradicts itself (shards, removed, faiss); put back a copy"
        )
    return about


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
