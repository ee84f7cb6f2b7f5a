"""The Ray example, on a local Ray of two workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from video_files import numbered, write

from vpgfast.data.features import open_features
from vpgfast.extract import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_extract.py"


pytest.importorskip("ray", reason="needs the extra `ray` (the extra `test` brings it)")


def test_ray_writes_what_extract_writes(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(5):
        write(videos / f"{number}.mp4", [numbered(10 * number + i) for i in range(8 + number)], rate=10)
    (videos / "bad.mp4").write_bytes(b"no video")
    command = [sys.executable, str(EXAMPLE), str(videos), "--encoder", "pixels", "-o", str(tmp_path / "ray.h5")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "5 videos, 5 of them new" in done.stdout
    assert "failed: bad: video" in done.stdout
    assert main([str(videos), "--encoder", "pixels", "-o", str(tmp_path / "one.h5")]) == 1
    one, several = open_features(tmp_path / "one.h5"), open_features(tmp_path / "ray.h5")
    assert list(one.video_ids()) == list(several.video_ids()) == [str(number) for number in range(5)]
    assert one.encoder == several.encoder
    for name in one.video_ids():
        np.testing.assert_array_equal(one[name], several[name])
        assert one.duration(name) == several.duration(name)
    (videos / "bad.mp4").unlink()
    assert subprocess.run(command, capture_output=True, text=True, timeout=300).returncode == 0
