from __future__ import annotations

import json
import logging
from dataclasses import replace

import h5py
import numpy as np
import pytest

from vpgfast.data.batches import make_loader
from vpgfast.data.corpus import hold_out, load_corpus, read_splits
from vpgfast.data.options import DataConfig
from vpgfast.data.types import BatchNeeds
from vpgfast.errors import AnnotationError, ConfigError, FeatureError


def sizes(splits) -> dict[str, tuple[int, int]]:
    return {name: (len(split), sum(len(p.sentences) for p in split)) for name, split in splits.items()}


@pytest.fixture
def real(shared) -> DataConfig:
    vectors = shared / "samples/word_vectors/charades_sta_glove_6B_300d.npz"
    return DataConfig(corpus="charades_cd", root=shared, features="simulated", word_vectors=vectors)


@pytest.mark.parametrize(
    ("corpus", "train", "val", "test"),
    [
        pytest.param("charades_cd", (4564, 11071), (333, 859), (1440, 3372), marks=pytest.mark.nightly),
        pytest.param("activitynet", (10005, 37395), (4917, 17505), (4885, 17031), marks=pytest.mark.nightly),
        ("tacos", (1263, 9790), (505, 4436), (444, 4001)),
    ],
)
def test_real_corpora_with_simulated_features(real, corpus, train, val, test):
    loaded = load_corpus(replace(real, corpus=corpus))
    assert loaded.name == f"{corpus} (simulated features)"
    assert loaded.features.source == "simulated (seed 0)"
    assert sizes(loaded.splits) == {"train": train, "val": val, "test": test}
    loader = make_loader(
        loaded.splits["test"][:40], loaded.features, loaded.word_vectors, BatchNeeds(), 16, training=False
    )
    assert sum(map(len, loader)) == sum(len(p.sentences) for p in loaded.splits["test"][:40])


def test_motion_is_of_moving_shapes_alone(real):
    with pytest.raises(ConfigError, match="'motion' are made from the pixels of moving_shapes, there are none of char"):
        load_corpus(replace(real, features="motion"))


def test_held_out_validation(real):
    splits = read_splits(replace(real, corpus="charades_sta"))
    names = {split: {p.video_id for p in paragraphs} for split, paragraphs in splits.items()}
    assert not names["train"] & names["val"]
    assert sizes(splits)["train"][1] + sizes(splits)["val"][1] == 12404
    assert len(names["val"]) == round(0.1 * 5336)
    assert sizes(splits)["test"] == (1334, 3720)
    on_test = read_splits(replace(real, corpus="charades_sta", val_split="test", charades_repair=True))
    assert sizes(on_test)["train"] == (5338, 12408)
    assert sizes(on_test)["val"] == sizes(on_test)["test"]


def test_hold_out_takes_whole_videos(small_corpus):
    twice = small_corpus.splits["train"] * 2
    train, held = hold_out(twice, 0.25, seed=0)
    assert (len(train), len(held)) == (30, 10)
    assert not {p.video_id for p in train} & {p.video_id for p in held}
    assert [p.video_id for p in hold_out(twice, 0.25, seed=0)[1]] == [p.video_id for p in held]
    assert [p.video_id for p in hold_out(twice, 0.25, seed=1)[1]] != [p.video_id for p in held]
    with pytest.raises(ConfigError, match=r"held_out_share is 1\.0"):
        hold_out(twice, 1.0, seed=0)


def test_split_names(real):
    """SeqPAN's way: validate on val_2, test on val_1."""
    splits = read_splits(replace(real, corpus="activitynet", val_split="val_2", test_split="val_1"))
    assert sizes(splits)["test"] == (4917, 17505)
    assert sizes(read_splits(replace(real, test_split="test_iid")))["test"] == (333, 823)


def test_tacos_forms(real):
    pieces = read_splits(replace(real, corpus="tacos", tacos_pieces=True))
    assert {name: size[0] for name, size in sizes(pieces).items()} == {"train": 1526, "val": 688, "test": 673}
    tall = read_splits(replace(real, corpus="tacos", tacos_variant="tall"))
    assert sizes(tall)["test"] == (4083, 4083)


def test_didemo_has_no_train_file(real):
    with pytest.raises(AnnotationError, match=r"no file train_data\.json"):
        load_corpus(replace(real, corpus="didemo"))


def test_vocabulary(real, small_config, small_corpus):
    """Given vectors: the words of all splits; hashed ones: those that training can teach something about."""
    hashed = load_corpus(replace(real, word_vectors=None, word_dim=20))
    given = load_corpus(real)
    words = {"train": set(), "test": set()}
    for split, found in words.items():
        found.update(w for p in given.splits[split] for s in p.sentences for w in s.lower().split() if w.isalpha())
    only_test = words["test"] - words["train"]
    assert only_test
    assert all(hashed.word_vectors.index(w) == 1 for w in only_test)
    assert any(given.word_vectors.index(w) > 1 for w in only_test)
    assert hashed.word_vectors.dim == 20
    assert given.word_vectors.dim == 300


def write_features(path, corpus, bad: dict[str, np.ndarray | None]):
    with h5py.File(path, "w") as file:
        for split in corpus.splits.values():
            for p in split:
                array = bad.get(p.video_id, corpus.features[p.video_id])
                if array is not None:
                    file[p.video_id] = array
    return str(path)


def test_unfit_features_stop_or_are_skipped(small_config, small_corpus, tmp_path, caplog):
    bad = {"train_00003": np.full((3, 144), np.nan), "val_00001": None, "test_00002": np.zeros((4, 7))}
    config = replace(small_config, features=write_features(tmp_path / "f.h5", small_corpus, bad))
    with pytest.raises(
        FeatureError, match=r"3 of 28 videos have no usable features: .*train_00003.*val_00001.*test_00002"
    ):
        load_corpus(config)
    with caplog.at_level(logging.WARNING):
        loaded = load_corpus(replace(config, on_bad_features="skip"))
    assert {name: len(split) for name, split in loaded.splits.items()} == {"train": 19, "val": 3, "test": 3}
    assert "Left out: train_00003, val_00001, test_00002" in caplog.text
    with pytest.raises(FeatureError, match=r"1 of 28 videos .*val_00001"):
        load_corpus(replace(config, check_features="names"))


def test_features_of_other_videos(small_config, tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["somewhere_else"] = np.zeros((3, 4))
    config = replace(small_config, features=str(tmp_path / "f.h5"), on_bad_features="skip")
    with pytest.raises(FeatureError, match="no video of the train split has usable features"):
        load_corpus(config)


def test_width_that_was_asked_for(small_config, small_corpus, tmp_path):
    features = write_features(tmp_path / "f.h5", small_corpus, {})
    assert load_corpus(replace(small_config, features=features, features_dim=144)).features.dim == 144
    with pytest.raises(FeatureError, match="width 144, expected 500"):
        load_corpus(replace(small_config, features=features, features_dim=500))


def test_simulated_features_of_the_made_corpus(small_config):
    loaded = load_corpus(replace(small_config, features="simulated"))
    assert loaded.name == "moving_shapes (simulated features)"
    assert loaded.features.dim == 256


def test_missing_or_wrong_options_are_named(real, tmp_path):
    with pytest.raises(ConfigError, match="corpus 'anet' is not known; choose from moving_shapes, own, activitynet"):
        load_corpus(replace(real, corpus="anet"))
    with pytest.raises(ConfigError, match="corpus tacos needs root"):
        load_corpus(DataConfig(corpus="tacos"))
    with pytest.raises(ConfigError, match="needs features: a feature file or folder, or 'simulated'"):
        load_corpus(replace(real, features=None))
    with pytest.raises(FeatureError, match="no such file or folder"):
        load_corpus(replace(real, features=str(tmp_path / "none.h5")))
    with pytest.raises(AnnotationError, match="no such folder"):
        load_corpus(replace(real, root=tmp_path / "none"))
    with pytest.raises(AnnotationError, match="no split 'val_2'"):
        load_corpus(replace(real, test_split="val_2"))


def test_root_may_be_the_folder_of_the_files_itself(real, shared, tmp_path):
    assert sizes(read_splits(replace(real, root=shared / "charades_cd")))["val"] == (333, 859)
    (tmp_path / "charades_train.json").write_text(json.dumps({"A": {"video_duration": 1.0}}))
    with pytest.raises(AnnotationError, match=r"charades_train\.json, video 'A': no 'sentences'"):
        load_corpus(replace(real, root=tmp_path))
