"""Which files below a folder are videos, and what they are called."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from vpgfast.data.features import open_features
from vpgfast.data.video_folders import named_videos, video_files


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


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_a_folder_that_can_not_be_looked_into_is_told(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("open", "locked"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "v.npy", np.ones((2, 3)))
        (tmp_path / name / "v.mp4").touch()
    real = os.scandir

    def scandir(place: str) -> object:
        if os.path.basename(place) == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)  # root may look everywhere
    if suffix == ".mp4":
        names = [str(path.relative_to(tmp_path)) for path in video_files(tmp_path)]
    else:
        names = [f"{name}.npy" for name in open_features(tmp_path, dim=3).video_ids()]
    assert names == [f"open/v{suffix}"]
    assert f"folder {tmp_path / 'locked'}: can't be looked into (Permission denied)" in caplog.text
