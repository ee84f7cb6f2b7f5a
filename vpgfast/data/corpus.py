"""A corpus: the splits of a data set, their clip features and their words, from one config."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vpgfast.data.features import HDF5Features
from vpgfast.data.moving_shapes import MovingShapesOptions, make_moving_shapes
from vpgfast.data.text import WordVectors, load_word_vectors, tokenize
from vpgfast.data.types import FeatureReader, Paragraph
from vpgfast.errors import ConfigError

log = logging.getLogger(__name__)

CORPORA = ("moving_shapes",)


@dataclass
class DataConfig:
    """Which corpus, with which features and word vectors.

    Attributes:
        corpus: moving_shapes (made on the spot).
        root: folder of the annotation files; moving_shapes needs none.
        features: feature file or folder; none: the corpus's own.
        features_key: where a video's features are in that file, e.g. "{video_id}/c3d_features"; none: found out.
        word_vectors: GloVe .txt, .txt.gz or .zip, or an .npz with words and vectors; none: hashed vectors.
        word_dim: width of hashed word vectors.
        on_bad_features: stop, or skip the videos whose features are missing or unfit.
        seed: of everything made or chosen at random here.
        cache: folder for what is made here; none: VPGFAST_CACHE, else ~/.cache/vpgfast.
        moving_shapes: what the made corpus looks like.
    """

    corpus: str = "moving_shapes"
    root: Path | None = None
    features: str | None = None
    features_key: str | None = None
    word_vectors: Path | None = None
    word_dim: int = 300
    on_bad_features: Literal["stop", "skip"] = "stop"
    seed: int = 0
    cache: Path | None = None
    moving_shapes: MovingShapesOptions = field(default_factory=MovingShapesOptions)


@dataclass
class Corpus:
    """What training and evaluation need to know of a data set.

    Attributes:
        name: as tables show it; ends in ``" (simulated features)"`` when they are.
        splits: paragraphs of ``"train"``, ``"val"`` and ``"test"``, spans known.
        features: clip features of all their videos.
        word_vectors: vocabulary of all splits with its vectors.
    """

    name: str
    splits: dict[str, list[Paragraph]]
    features: FeatureReader
    word_vectors: WordVectors


def load_corpus(config: DataConfig) -> Corpus:
    """Read (or make) the corpus that a config asks for."""
    if config.corpus not in CORPORA:
        raise ConfigError(f"corpus {config.corpus!r} is not known; choose from {', '.join(CORPORA)}")
    folder = make_moving_shapes(config.moving_shapes, config.seed, config.cache)
    splits = read_moving_shapes(folder)
    features: FeatureReader = HDF5Features(folder / "features.h5")
    vectors = load_word_vectors(config.word_vectors, vocabulary(splits.values()), config.word_dim, config.seed)
    return Corpus(config.corpus, splits, features, vectors)


def vocabulary(splits: Iterable[list[Paragraph]]) -> set[str]:
    """Every word of every sentence."""
    return {word for split in splits for p in split for sentence in p.sentences for word in tokenize(sentence)}


def read_moving_shapes(folder: Path) -> dict[str, list[Paragraph]]:
    """The splits of a corpus that :func:`vpgfast.data.moving_shapes.make_moving_shapes` made."""
    content = json.loads((folder / "annotations.json").read_text())
    return {
        split: [
            Paragraph(video_id, v["duration"], tuple(v["sentences"]), np.array(v["timestamps"], np.float64))
            for video_id, v in videos.items()
        ]
        for split, videos in content.items()
    }
