"""What was made once and is kept: arrays of a name, and the features of a video by its content."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vpgfast.errors import CheckpointError, UserError
from vpgfast.files import write_file

if TYPE_CHECKING:
    from vpgfast.encoders.base import Encoded, Encoder

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def home_folder() -> Path:
    """The user's own; where the system knows none (containers run as users without a name), one for temporary files."""
    try:
        return Path.home()
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"vpgfast-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():  # somebody else's, who could put anything there
            raise UserError(f"no home folder is known and {folder} is another user's; set HOME") from None
        return folder


def cache_folder(cache: str | Path | None = None) -> Path:
    """``cache`` if given, else the environment's ``VPGFAST_CACHE``, else ``~/.cache/vpgfast``."""
    return Path(cache or os.environ.get("VPGFAST_CACHE") or home_folder() / ".cache" / "vpgfast").expanduser()


def kept(name: str, make: Callable[[], Arrays], cache: str | Path | None = None) -> Arrays:
    """Arrays from the cache, or made now and kept.

    A cache that can't be read or written costs time and nothing else.

    Args:
        name: of the file below the cache folder, without ``.npz``; must say everything that the arrays depend on.
        make: makes them.
        cache: see :func:`cache_folder`.
    """
    path = cache_folder(cache) / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("an archive of something else than arrays")
        return arrays
    except FileNotFoundError:
        pass
    except Exception as error:  # what a damaged archive raises is not bounded
        log.warning("cache %s: unreadable, made anew (%s)", path, error)
    arrays = make()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, buffer.getvalue())
    except (OSError, CheckpointError) as error:
        reason = getattr(error, "strerror", None) or error
        log.warning("cache %s: can't be written (%s); it will be made again next time", path, reason)
    return arrays


def encoded(
    encoder: Encoder,
    video: Path,
    stream: int | None = None,
    cache: str | Path | None = None,
    progress: Callable[[float | None], None] | None = None,
) -> Encoded:
    """Features of a video, from the cache where the same encoder has seen the same content before.

    Args:
        progress: see :meth:`vpgfast.encoders.base.Encoder.encode`.

    Raises:
        VideoError: it can't be read; names the file.
    """
    from vpgfast.encoders.base import Encoded
    from vpgfast.errors import VideoError

    def make() -> Arrays:
        found = encoder.encode(encoder.clips(video, stream), progress)
        return {
            "features": found.features,
            "times": found.times,
            "duration": np.array(found.duration),
            "problems": np.array(json.dumps(found.problems)),
        }

    if not video.is_file():  # a folder of frames, or nothing at all: the encoder says what is wrong
        return encoder.encode(encoder.clips(video, stream), progress)
    try:
        with video.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VideoError(f"video {video}: can't be read ({error.strerror})") from None
    which = "" if stream is None else f"-{stream}"
    arrays = kept(f"features/{encoder.identity().key[:16]}/{content}{which}", make, cache)
    problems = tuple(json.loads(str(arrays["problems"])))
    return Encoded(arrays["features"], arrays["times"], float(arrays["duration"]), problems)
