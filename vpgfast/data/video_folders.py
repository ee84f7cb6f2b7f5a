"""Videos by name: the files that a command line names, and those below its folders."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from vpgfast.errors import VideoError
from vpgfast.files import warn_of_folder

log = logging.getLogger(__name__)

_SUFFIXES = """
.3g2 .3gp .avi .divx .dv .flv .gif .h264 .hevc .ivf .m2ts .m4v .mjpeg .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut .ogm .ogv
.ts .vob .webm .wmv .y4m
"""
VIDEO_SUFFIXES = tuple(_SUFFIXES.split())
_FLOW = re.compile(r"((flow_)?x_\d+|.*-\d+x)\.(jpe?g|png)", re.IGNORECASE)


def named_like_video(path: Path) -> bool:
    """Whether a file's name ends as those of videos do."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def without_suffix(path: Path) -> str:
    """A video's name; also of ``..mp4``, which pathlib's own ``with_suffix`` refuses from Python 3.12 on."""
    return path.as_posix().removesuffix(path.suffix)


def named_like_flow(path: Path) -> bool:
    """Whether a path is named as optical flow is: an ``.npy`` file, or a folder of pictures of x and y."""
    if not path.is_dir():
        return path.suffix.lower() == ".npy"
    return any(_FLOW.fullmatch(name) for name in os.listdir(path))


def video_files(folder: Path, takes: Callable[[Path], bool] = named_like_video) -> list[Path]:
    """The videos below a folder, sorted; hidden files and folders are left out, as are others, and counted in the log.

    Links to folders are followed, but not to a folder that holds the link: that would be the same videos for ever.

    Args:
        takes: whether a file, or a folder of frames, is a video.
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    hidden: list[Path] = []
    above = {str(folder): {os.path.realpath(folder)}}  # of each folder to come: itself and those it lies in, no links
    for place, folders, files in os.walk(folder, onerror=warn_of_folder, followlinks=True):
        here = above.pop(place)
        inner: list[str] = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(place, name))
            if real in here:
                log.info("%s: leads back to %s, and is not followed", os.path.join(place, name), real)
            elif not name.startswith("."):
                inner.append(name)
                above[os.path.join(place, name)] = here | {real}
        whole = [name for name in inner if takes(Path(place, name))]
        folders[:] = [name for name in inner if name not in whole]
        found += [Path(place, name) for name in whole]
        for name in files:
            path = Path(place, name)
            if takes(path):
                (hidden if name.startswith(".") else found).append(path)
            elif not name.startswith("."):
                others[path.suffix.lower() or "no suffix"] += 1
    if hidden:
        log.info("%s: %d hidden files are left out, such as %s", folder, len(hidden), min(hidden))
    if others:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(4))
        log.info("%s: %d files that are not named like videos are left out (%s)", folder, others.total(), kinds)
    return sorted(found)


def named_videos(paths: Iterable[Path], takes: Callable[[Path], bool] = named_like_video) -> dict[str, Path]:
    """Videos by name: below a folder the path without its suffix, a file alone its name without the suffix.

    Args:
        paths: files (taken whatever their suffix) and folders.
        takes: whether a file or folder found below a folder is a video.

    Raises:
        VideoError: nothing is there, or two videos have one name; names them.
    """
    named: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise VideoError(f"video {path}: no such file or folder")
        folder = path.is_dir() and not takes(path)
        files = video_files(path, takes) if folder else [path]
        if not files:
            raise VideoError(f"{path}: holds no video (known are {' '.join(VIDEO_SUFFIXES)})")
        for file in files:
            whole = file.relative_to(path) if folder else Path(file.name)
            name = whole.as_posix() if file.is_dir() else without_suffix(whole)
            if name in named and named[name] != file:
                raise VideoError(f"videos {named[name]} and {file}: two videos of one name, {name!r}; rename one")
            named[name] = file
    return named
