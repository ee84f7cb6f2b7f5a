"""Files that are something else than they are taken for: the error names what they are."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from vpgfast.checkpoint import load_checkpoint
from vpgfast.data.annotations import activitynet, load_annotations
from vpgfast.data.batches import warn_of_long_sentences
from vpgfast.data.features import open_features
from vpgfast.data.types import BatchNeeds, Paragraph
from vpgfast.errors import AnnotationError, CheckpointError, FeatureError
from vpgfast.files import kind_of
from vpgfast.ground.grounding import Grounding
from vpgfast.ground.run import read_features
from vpgfast.plots import draw_ranked

OTHERS = {
    "a pickle": pickle.dumps({"a": [1]}),
    "a web page": b"<!DOCTYPE html><html>Not found</html>",
    "a pointer to a file of git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    "a PNG picture": b"\x89PNG\r\n\x1a\n0000",
    "what a Mac keeps beside a file": b"\x00\x05\x16\x07\x00\x02",
    "a gzip file": b"\x1f\x8b\x08\x00",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_wrong_kind_of_file(tmp_path: Path, kind: str) -> None:
    for name in ("f.h5", "f.npy", "m.safetensors"):
        (tmp_path / name).write_bytes(OTHERS[kind])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "v.npy").write_bytes(OTHERS[kind])
    for read, path in {open_features: "f.h5", read_features: "f.npy"}.items():
        with pytest.raises(FeatureError, match=f"is {kind}") as caught:
            read(tmp_path / path)
        assert "allow_pickle" not in str(caught.value)
    with pytest.raises(FeatureError, match=f"is {kind}"):
        open_features(tmp_path / "folder")
    with pytest.raises(CheckpointError, match=f"is {kind}"):
        load_checkpoint(tmp_path / "m.safetensors")


def test_kinds(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w"):
        pass
    np.save(tmp_path / "a.npy", np.zeros(2))
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "empty").touch()
    names = ("a.h5", "a.npy", "a.txt", "empty", "none")
    assert [kind_of(tmp_path / name) for name in names] == ["an HDF5 file", "a NumPy array", "", "", ""]
    with pytest.raises(FeatureError, match=r"is an HDF5 file, no \.npy or \.npz file"):
        read_features(tmp_path / "a.h5")


def test_features_of_four_dimensions(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((5, 1, 1, 3)))
    assert read_features(tmp_path / "a.npy").shape == (5, 3)


def test_virtual_data_whose_file_is_gone(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["x"] = np.ones((4, 3), np.float32)
    layout = h5py.VirtualLayout((4, 3), np.float32)
    layout[:] = h5py.VirtualSource("source.h5", "x", (4, 3))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_virtual_dataset("v", layout)
    assert open_features(tmp_path / "f.h5")["v"].sum() == 12
    (tmp_path / "source.h5").unlink()
    with pytest.raises(FeatureError, match=r"the data lies in source\.h5, which is missing"):
        open_features(tmp_path / "f.h5")["v"]


def test_open_elsewhere(tmp_path: Path) -> None:
    """Asked from another process: within one, HDF5 knows its own files."""
    code = f"from vpgfast.data.features import open_features; open_features({str(tmp_path / 'f.h5')!r})"
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["v"] = np.ones((4, 3), np.float32)
        file.flush()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "f.h5: is open for writing in another program; wait for it" in done.stderr.splitlines()[-1]


def test_what_is_dropped_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"duration": 10.0, "sentences": ["A.", "B."], "timestamps": [[0, 5], [7, 3]]}
    (tmp_path / "train.json").write_text(json.dumps({"v": record, "w": {**record, "timestamps": [[0, 5], [5, 9]]}}))
    assert len(load_annotations("activitynet", "train", tmp_path)) == 1
    assert "1 of 4 sentences start at or after their end or their video's; that drops 1 of 2 paragraphs" in caplog.text
    assert "(first: video 'v', 7 to 3 s of 10 s)" in caplog.text
    (tmp_path / "train.json").write_text(json.dumps({"v": {**record, "timestamps": [[5000, 6000], [7000, 8000]]}}))
    with pytest.raises(AnnotationError, match=r"2 of 2 sentences .* nothing is left. Are these seconds"):
        activitynet.load("train", tmp_path)


def test_long_sentences_are_said_to_be_cut(caplog: pytest.LogCaptureFixture) -> None:
    paragraph = Paragraph("v", 9.0, ("a " * 60, "a b"))
    warn_of_long_sentences([paragraph], BatchNeeds(max_words=50))
    assert "1 of 2 sentences have more than 50 words" in caplog.text
    assert "60 words" in caplog.text
    caplog.clear()
    warn_of_long_sentences([paragraph], BatchNeeds(max_words=60))
    warn_of_long_sentences([paragraph], BatchNeeds(max_words=50, vocabulary=False))
    assert not caplog.text


@pytest.mark.parametrize("name", ["cost_$5_$6", "a_{b}^2$\\frac$", "caf\udce9", "<i>&"])
def test_names_in_pictures(tmp_path: Path, name: str) -> None:
    spans, scores = np.array([[[1.0, 2.0]]]), np.array([[0.5]])
    draw_ranked([f"It {name} runs."], spans, scores, 9.0, tmp_path / "p.png", f"{name}, 9.0 s")
    assert (tmp_path / "p.png").stat().st_size > 1000
    result = Grounding([f"It {name} runs."], 9.0, spans, scores, video=name)
    result.save(tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3
