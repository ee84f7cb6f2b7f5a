"""Features beside each other, and features cut to what belongs to the video."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from vpgfast.config import parse_train
from vpgfast.data.corpus import load_corpus
from vpgfast.data.feature_views import FirstClips, JoinedFeatures
from vpgfast.data.features import ArrayFeatures
from vpgfast.errors import ConfigError, FeatureError

RNG = np.random.default_rng(0)


def arrays(width: int, **counts: int) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal((count, width)).astype(np.float32) for name, count in counts.items()}


def test_joined_by_column() -> None:
    rgb, flow = arrays(3, a=4, b=2, c=1), arrays(2, a=4, b=2, d=1)
    joined = JoinedFeatures([ArrayFeatures(rgb, "rgb"), ArrayFeatures(flow, "flow")])
    assert (joined.dim, joined.source, list(joined.video_ids())) == (5, "rgb + flow", ["a", "b"])
    assert "a" in joined
    assert "c" not in joined
    np.testing.assert_array_equal(joined["b"], np.concatenate([rgb["b"], flow["b"]], 1))
    with pytest.raises(FeatureError, match="'c' are missing from flow"):
        joined["c"]


def test_files_of_other_clips_do_not_stand_side_by_side() -> None:
    joined = JoinedFeatures([ArrayFeatures(arrays(3, a=4), "rgb"), ArrayFeatures(arrays(2, a=5), "flow")])
    with pytest.raises(FeatureError, match="'a': 4 clips in rgb, 5 in flow"):
        joined["a"]


def test_first_clips() -> None:
    whole = arrays(3, a=6, b=6, c=6)
    first = FirstClips(ArrayFeatures(whole, "rows"), {"a": 5, "b": 6})
    assert [len(first[name]) for name in "abc"] == [5, 6, 6]
    np.testing.assert_array_equal(first["a"], whole["a"][:5])


def didemo(folder: Path) -> list[str]:
    """Files as published: videos by file name, six rows each, also of the second video, which has five segments."""
    names = ["1@N00_11_aa.avi", "1@N00_12_bb.mov", "2@N01_13_cc.m4v"]
    for split in ("train", "val", "test"):
        entries = [
            {"video": name, "description": "a dog jumps", "times": [[0, 1], [0, 1], [4, 4], [0, 1]], "num_segments": n}
            for name, n in zip(names, (6, 5, 6), strict=True)
        ]
        (folder / f"{split}_data.json.gz").write_bytes(gzip.compress(json.dumps(entries).encode()))
    for file, width in (("average_fc7.h5", 8), ("average_global_flow.h5", 4)):
        with h5py.File(folder / file, "w") as features:
            for name, array in arrays(width, **dict.fromkeys(names, 6)).items():
                features[name] = array
    return names


def test_didemos_own_features(tmp_path: Path) -> None:
    names = didemo(tmp_path)
    files = [str(tmp_path / "average_fc7.h5"), str(tmp_path / "average_global_flow.h5")]
    config = parse_train(
        [
            "--data.corpus=didemo",
            f"--data.root={tmp_path}",
            "--data.didemo_names=file",
            f"--data.features=[{files[0]}, {files[1]}]",
        ]
    )
    assert config.data.features == files
    corpus = load_corpus(replace(config.data, features_dim=12))
    assert [len(corpus.features[name]) for name in names] == [6, 5, 6]
    assert corpus.features[names[0]].shape == (6, 12)
    with h5py.File(files[1]) as flow:
        np.testing.assert_array_equal(corpus.features[names[1]][:, 8:], flow[names[1]][:5])
    one = load_corpus(replace(config.data, features=files[0]))
    assert one.features[names[1]].shape == (5, 8)
    with pytest.raises(FeatureError, match=r"width 8 \+ 4 = 12, expected 8"):
        load_corpus(replace(config.data, features_dim=8))
    with pytest.raises(ConfigError, match="an empty list"):
        load_corpus(replace(config.data, features=[]))


def test_didemos_ranks_need_all_moments() -> None:
    assert parse_train(["--metrics.annotators=best3"]).top_n == 21
    assert parse_train(["--metrics.annotators=best3", "--top_n=30"]).top_n == 30
    assert parse_train([]).top_n == 10
