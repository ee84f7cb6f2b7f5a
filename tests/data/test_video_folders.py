"""Which files below a folder are videos, and what they are called."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from vpgfast.data.video_folders import named_videos


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_links_that_lead_back_are_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _touch(tmp_path / "videos", "a.mp4", "below/b.mp4", "other/c.mp4")
    _touch(tmp_path / "elsewhere", "d.mp4")
    for link, target in [
        ("loop", "."),
        ("below/up", ".."),
        ("below/across", "../other"),  # two folders that lead to each other
        ("other/across", "../below"),
        ("linked", "../elsewhere"),
    ]:
        (tmp_path / "videos" / link).symlink_to(target)
    with caplog.at_level(logging.INFO, "vpgfast"):
        found = named_videos([tmp_path / "videos"])
    assert sorted(found) == ["a", "below/across/c", "below/b", "linked/d", "other/across/b", "other/c"]
    assert f"{tmp_path}/videos/loop: leads back to {tmp_path}/videos, and is not followed" in caplog.messages
