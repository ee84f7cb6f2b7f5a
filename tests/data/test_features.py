from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from vpgfast.data.features import ArrayFeatures, check_features, open_features, resample, write_hdf5
from vpgfast.errors import FeatureError

RNG = np.random.default_rng(0)
ARRAYS = {"v_a": RNG.standard_normal((5, 4)).astype(np.float32), "v_b": RNG.standard_normal((1, 4)).astype(np.float32)}


def write(folder: Path, layout: str, arrays: dict[str, np.ndarray] = ARRAYS) -> Path:
    """The layouts of section 3 of the data notes: HDF5 by video, HDF5 by video and key, .npy and .npz folders."""
    path = folder / layout
    if layout.startswith("hdf5"):
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[f"{name}/c3d_features" if layout == "hdf5_key" else name] = array
        return path
    path.mkdir()
    for name, array in arrays.items():
        if layout == "npy":
            np.save(path / f"{name}.npy", array)
        elif layout == "npz":
            np.savez(path / f"{name}.npz", features=array, other=np.zeros(1))
        else:
            np.savez(path / f"{name}.npz", array)
    return path


LAYOUTS = ["hdf5", "hdf5_key", "npy", "npz", "npz_one"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    reader = open_features(write(tmp_path, layout))
    assert reader.dim == 4
    assert reader.source == layout
    assert sorted(reader.video_ids()) == ["v_a", "v_b"]
    assert "v_a" in reader
    assert "v_c" not in reader
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(reader[name], array)
        assert reader[name].dtype == np.float32
    with pytest.raises(FeatureError, match="'v_c' are missing"):
        reader["v_c"]


def test_keys(tmp_path):
    reader = open_features(write(tmp_path, "hdf5_key"), key="{video_id}/c3d_features")
    np.testing.assert_array_equal(reader["v_a"], ARRAYS["v_a"])
    with pytest.raises(FeatureError, match="lacks '\\{video_id\\}'"):
        open_features(tmp_path / "hdf5_key", key="c3d_features")
    with pytest.raises(
        FeatureError, match=r"no \[clips, width\] array at 'v_a/i3d'; 'v_a' is a group with \['c3d_features'\]"
    ):
        open_features(tmp_path / "hdf5_key", key="{video_id}/i3d")
    assert open_features(write(tmp_path, "npz"), key="features").dim == 4
    with pytest.raises(FeatureError, match="no array 'clip', only"):
        open_features(tmp_path / "npz", key="clip")


def test_group_of_several_arrays_needs_a_key(tmp_path):
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["v_a/rgb"] = file["v_a/flow"] = ARRAYS["v_a"]
    with pytest.raises(FeatureError, match=r"a group with \['flow', 'rgb'\]; say which with a key"):
        open_features(tmp_path / "two.h5")


def test_other_types_and_dimensions_of_one(tmp_path):
    arrays = {"a": ARRAYS["v_a"].astype(np.float16)[:, None, None], "b": np.arange(8).reshape(2, 4)}
    reader = open_features(write(tmp_path, "hdf5", arrays))
    assert reader["a"].shape == (5, 4)
    assert reader["b"].dtype == np.float32


def test_missing_or_damaged_files(tmp_path):
    with pytest.raises(FeatureError, match="no such file or folder"):
        open_features(tmp_path / "none.h5")
    whole = write(tmp_path, "hdf5")
    for name, content in (("cut.h5", whole.read_bytes()[:1500]), ("text.h5", b"hello"), ("empty.h5", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FeatureError, match=f"{name}: not a readable HDF5 file") as error:
            open_features(tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FeatureError, match=r"no \.npy or \.npz file"):
        open_features(tmp_path / "folder")
    h5py.File(tmp_path / "nothing.h5", "w").close()
    with pytest.raises(FeatureError, match="holds nothing"):
        open_features(tmp_path / "nothing.h5")


def test_damaged_array_in_a_folder(tmp_path):
    path = write(tmp_path, "npy")
    (path / "v_b.npy").write_bytes((path / "v_a.npy").read_bytes()[:140])
    with pytest.raises(FeatureError, match=r"'v_b' in .*v_b\.npy: not a readable"):
        open_features(path)["v_b"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_video_may_be_bad(tmp_path, layout):
    """Key and width are those of one that can be read."""
    path = write(tmp_path, layout)
    if path.is_dir():
        (path / "a.npy").write_bytes(b"no array")
        (path / "b.npz").write_bytes(b"")
    else:
        with h5py.File(path, "a") as file:
            file["a"] = np.zeros(3)
            file.create_group("b")
    reader = open_features(path)
    np.testing.assert_array_equal(reader["v_a"], ARRAYS["v_a"])
    assert check_features(reader, reader.video_ids(), "skip") == {"a", "b"}


BAD = {
    "nan": (np.array([[0, 1, np.nan, 3], [0, 1, 2, 3]]), "NaN or infinity in 1 of 2 clips"),
    "inf": (np.array([[0, 1, np.inf, 3]]), "NaN or infinity in 1 of 1 clips"),
    "empty": (np.zeros((0, 4)), r"no clips \(shape \(0, 4\)\)"),
    "wide": (np.zeros((2, 5)), "width 5, expected 4"),
    "flat": (np.zeros(4), r"shape \(4,\), not \[clips, width\]"),
    "deep": (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\), not"),
    "text": (np.array([[b"a", b"b"]]), "not numbers"),
}


@pytest.mark.parametrize("layout", ["hdf5", "npy", "memory"])
@pytest.mark.parametrize("kind", BAD)
def test_unfit_features_are_named(tmp_path, layout, kind):
    array, message = BAD[kind]
    arrays = {**ARRAYS, "v_bad": array}
    reader = ArrayFeatures(arrays) if layout == "memory" else open_features(write(tmp_path, layout, arrays), dim=4)
    np.testing.assert_array_equal(reader["v_a"], ARRAYS["v_a"])
    with pytest.raises(FeatureError, match=message) as error:
        reader["v_bad"]
    assert "'v_bad'" in str(error.value)


def test_check_features(caplog):
    arrays = {**ARRAYS, "v_nan": BAD["nan"][0], "v_wide": BAD["wide"][0]}
    reader = ArrayFeatures(arrays)
    names = ["v_a", "v_nan", "v_gone", "v_wide", "v_a", "v_b"]
    with pytest.raises(
        FeatureError, match=r"3 of 5 videos have no usable features: .*'v_nan'.*'v_gone'.*'v_wide'.*skip"
    ):
        check_features(reader, names)
    with caplog.at_level(logging.WARNING):
        assert check_features(reader, names, on_bad="skip") == {"v_nan", "v_gone", "v_wide"}
    assert "3 of 5 videos" in caplog.text
    assert "v_nan, v_gone, v_wide" in caplog.text
    assert check_features(reader, names, on_bad="skip", read=False) == {"v_gone"}
    assert check_features(reader, ["v_a", "v_b"]) == set()


def test_long_list_of_unfit_features_is_shortened():
    with pytest.raises(FeatureError, match=r"7 of 7 videos .*; and 4 more"):
        check_features(ArrayFeatures(ARRAYS), [f"v_{i}" for i in range(7)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reader_can_be_pickled(tmp_path, layout):
    reader = open_features(write(tmp_path, layout))
    reader["v_a"]  # opened here; the other side must open it anew
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))["v_a"], ARRAYS["v_a"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_open_hdf5_in_other_processes(tmp_path, method):
    reader = open_features(write(tmp_path, "hdf5"))
    reader["v_a"]
    with multiprocessing.get_context(method).Pool(2) as pool:
        for array in pool.map(reader.__getitem__, ["v_a"] * 4):
            np.testing.assert_array_equal(array, ARRAYS["v_a"])


def test_write_hdf5(tmp_path):
    path = tmp_path / "copy.h5"
    write_hdf5(ArrayFeatures(ARRAYS, source="made up"), path)
    reader = open_features(path)
    assert reader.source == "made up"
    np.testing.assert_array_equal(reader["v_b"], ARRAYS["v_b"])
    assert [p.name for p in tmp_path.iterdir()] == ["copy.h5"]


def test_half_written_file_never_remains(tmp_path):
    with pytest.raises(FeatureError, match="NaN"):
        write_hdf5(ArrayFeatures({**ARRAYS, "v_nan": BAD["nan"][0]}), tmp_path / "copy.h5")
    assert list(tmp_path.iterdir()) == []


class TestResample:
    x = np.arange(10, dtype=np.float32)[:, None] * np.ones(2, np.float32)

    def test_pool(self):
        np.testing.assert_allclose(resample(self.x, 5)[:, 0], [0.5, 2.5, 4.5, 6.5, 8.5])
        # 10 clips in 4 pieces: 0 1 | 2 3 4 | 5 6 | 7 8 9
        np.testing.assert_allclose(resample(self.x, 4)[:, 0], [0.5, 3, 5.5, 8])

    @pytest.mark.parametrize("count", [9, 31, 40, 1000])
    def test_pool_is_the_mean_of_pieces(self, count):
        x = RNG.standard_normal((count, 3)).astype(np.float32)
        pieces = [x[i * count // 8 : (i + 1) * count // 8] for i in range(8)]
        np.testing.assert_allclose(resample(x, 8), [piece.mean(axis=0) for piece in pieces], rtol=1e-4, atol=1e-6)

    def test_pick(self):
        np.testing.assert_array_equal(resample(self.x, 5, "pick")[:, 0], [1, 3, 5, 7, 9])
        np.testing.assert_array_equal(resample(self.x, 1, "pick")[:, 0], [5])

    def test_interpolate(self):
        np.testing.assert_allclose(resample(self.x, 5, "interpolate")[:, 0], [0.5, 2.5, 4.5, 6.5, 8.5])

    @pytest.mark.parametrize("how", ["pool", "pick", "interpolate"])
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 31, 1000])
    def test_lengths(self, how, count):
        x = RNG.standard_normal((count, 3)).astype(np.float32)
        assert resample(x, 8, how).shape == (min(count, 8), 3)
        fixed = resample(x, 8, how, fixed_length=True)
        assert fixed.shape == (8, 3)
        assert fixed.dtype == np.float32
        assert fixed.min() >= x.min() - 1e-6
        assert fixed.max() <= x.max() + 1e-6

    def test_short_videos(self):
        assert resample(self.x[:3], 8) is not None
        np.testing.assert_array_equal(resample(self.x[:3], 8), self.x[:3])
        up = resample(self.x[:2], 4, fixed_length=True)[:, 0]
        np.testing.assert_allclose(up, [0, 0.25, 0.75, 1])
        np.testing.assert_array_equal(resample(self.x[3:4], 4, fixed_length=True)[:, 0], [3, 3, 3, 3])

    def test_unknown_way(self):
        with pytest.raises(ValueError, match="unknown way to resample 'max'"):
            resample(self.x, 4, "max")


def test_two_files_of_one_video_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4), np.float32))
    (tmp_path / "kitchen").mkdir()
    np.save(tmp_path / "kitchen" / "b.npy", np.ones((2, 4), np.float32))
    np.savez(tmp_path / "kitchen" / "b.npz", np.zeros((3, 4), np.float32))
    reader = open_features(tmp_path)
    assert reader["a"].shape == (2, 4)
    for ask in (lambda: reader["kitchen/b"], lambda: "kitchen/b" in reader):
        with pytest.raises(FeatureError, match=r"'kitchen/b': there is .*b\.npy and b\.npz; delete one"):
            ask()
    assert list(reader.video_ids()) == ["a", "kitchen/b"]
    assert check_features(reader, ["a", "kitchen/b"], "skip") == {"kitchen/b"}


def test_both_kinds_in_one_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4), np.float32))
    np.savez(tmp_path / "b.npz", features=np.zeros((3, 4), np.float32), duration=np.float64(7))
    (tmp_path / "._a.npy").write_bytes(b"\x00\x05\x16\x07")
    reader = open_features(tmp_path)
    assert list(reader.video_ids()) == ["a", "b"]
    assert (len(reader["a"]), len(reader["b"])) == (2, 3)
    assert (reader.duration("a"), reader.duration("b")) == (None, 7)


def test_opening_does_not_list_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred thousand files: search opens one for every video that it grounds."""
    for number in range(50):
        np.save(tmp_path / f"{number}.npy", np.ones((2, 4), np.float32))
    seen = []
    scan = os.scandir

    @contextmanager
    def counted(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scan(folder) as entries:
            yield (seen.append(entry.name) or entry for entry in entries)

    monkeypatch.setattr("os.scandir", counted)
    assert open_features(tmp_path)["7"].shape == (2, 4)
    assert len(seen) == 1


def test_ids_with_the_ending_of_a_video_find_features_without(tmp_path: Path) -> None:
    one, two = np.full((2, 3), 1.0, np.float32), np.full((2, 3), 2.0, np.float32)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["s1-d1"], file["s2-d2"], file["s2-d2.avi"] = one, one, two
        file["s1-d1"].attrs["duration"] = 7.0
    (tmp_path / "folder").mkdir()
    for name, array in (("s1-d1", one), ("s2-d2", one), ("s2-d2.avi", two)):
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    for reader in (open_features(tmp_path / "f.h5"), open_features(tmp_path / "folder")):
        assert "s1-d1.avi" in reader
        np.testing.assert_array_equal(reader["s1-d1.avi"], one)
        np.testing.assert_array_equal(reader["s2-d2.avi"], two)  # a name that is there as it is goes first
        assert "s3-d3.avi" not in reader
        assert "s1-d1.x" not in reader
        with pytest.raises(FeatureError, match="are missing"):
            reader["s3-d3.avi"]
    assert open_features(tmp_path / "f.h5").duration("s1-d1.avi") == 7.0
