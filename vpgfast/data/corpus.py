"""A corpus: the splits of a data set, their clip features and their words, from one config."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpgfast.data.annotations import DATASETS, didemo, load_annotations, own, qvhighlights
from vpgfast.data.annotations._io import find
from vpgfast.data.feature_views import FirstClips, JoinedFeatures, SelectedColumns
from vpgfast.data.features import HDF5Features, check_features, open_features
from vpgfast.data.moving_shapes import make_moving_shapes
from vpgfast.data.options import DataConfig, MovingShapesOptions
from vpgfast.data.pixels import motion_columns
from vpgfast.data.retold import retell_splits, shown
from vpgfast.data.simulated import SimulatedFeatures
from vpgfast.data.text import WordVectors, load_word_vectors, tokenize
from vpgfast.data.types import FeatureReader, Paragraph
from vpgfast.encoders.pixels import Pixels, PixelsOptions
from vpgfast.errors import AnnotationError, ConfigError, FeatureError

log = logging.getLogger(__name__)

CORPORA = ("moving_shapes", "own", *DATASETS)
SIMULATED, MOTION = "simulated", "motion"
"""Values of ``features`` that are neither file nor folder."""

SPLITS = {
    "activitynet": ("train", "val_1", "val_2"),
    "charades_sta": ("train", "held_out", "test"),
    "charades_cd": ("train", "val", "test_ood"),
    "tacos": ("train", "val", "test"),
    "didemo": ("train", "val", "test"),
    "qvhighlights": ("train", "val", "test"),
}
"""Which of a data set's splits are trained on, validated on and tested on unless the config says otherwise.
``"held_out"`` is a share of the training videos, see :func:`hold_out`."""

_FOLDERS = {"activitynet": "activitynet_captions"}


@dataclass
class Corpus:
    """What training and evaluation need to know of a data set.

    Attributes:
        name: as tables show it; with ``" (discourse)"`` where only the paragraph tells which moment is meant, and
            ``" (simulated features)"`` where they are.
        splits: paragraphs of ``"train"``, ``"val"`` and ``"test"``, spans known.
        features: clip features of all their videos.
        word_vectors: the vocabulary with its vectors, see :func:`load_corpus`.
    """

    name: str
    splits: dict[str, list[Paragraph]]
    features: FeatureReader
    word_vectors: WordVectors


def load_corpus(config: DataConfig, punctuation: bool = False) -> Corpus:
    """Read (or make) the corpus that a config asks for.

    With pretrained word vectors the vocabulary is that of all splits, as everywhere in the field (the vectors are
    frozen, so this teaches nothing about the test split). Hashed vectors say nothing about a word that training has
    not seen, so then the vocabulary is that of the training split, and other words are the unknown word.

    Args:
        config: the settings.
        punctuation: whether punctuation marks are words of the vocabulary, as the method's ``needs`` say.

    Raises:
        UserError: one of its kinds, in one line that names the file, the key or the option.
    """
    if config.corpus not in CORPORA:
        raise ConfigError(f"corpus {config.corpus!r} is not known; choose from {', '.join(CORPORA)}")
    made = config.corpus == "moving_shapes"
    features: FeatureReader | None = None
    if config.features not in (None, MOTION, SIMULATED):
        features = _open(config)
    if made:
        folder = make_moving_shapes(config.moving_shapes, config.seed, config.cache)
        splits = read_moving_shapes(folder)
    elif config.corpus == "own":
        splits = read_own(config, features)
    else:
        splits = read_splits(config)
    everything = [paragraph for split in splits.values() for paragraph in split]  # that simulated features show
    made_so = made and config.moving_shapes.discourse
    if made_so and config.features == SIMULATED:
        raise ConfigError(
            "features 'simulated' show the words of single sentences, which is what discourse must not; take "
            "'motion', or leave data.features out"
        )
    if config.simulated.discourse:
        splits, everything = _retold(splits, config)

    told = [splits["train"]] if config.word_vectors is None else [*splits.values(), everything]
    known = vocabulary(told, punctuation)
    vectors = load_word_vectors(config.word_vectors, known, config.word_dim, config.seed)

    name = config.corpus + (" (discourse)" if made_so or config.simulated.discourse else "")
    if config.features == MOTION and not made:
        raise ConfigError(f"features {MOTION!r} are made from the pixels of moving_shapes, there are none of {name}")
    if config.features == SIMULATED:
        # All words need a vector here, or the sentences of other splits would have no meaning to simulate.
        words = vectors
        if config.word_vectors is None:
            words = load_word_vectors(None, vocabulary([everything]), config.word_dim, config.seed)
        features = SimulatedFeatures(everything, words, config.simulated, config.seed)
        name += " (simulated features)"
        log.warning("%s: clip features are simulated from the sentences; results say nothing about real video", name)
    elif features is not None:
        if config.corpus == "didemo":
            features = _of_segments(features, splits)
        splits = _usable(splits, features, config)
    elif made:
        features = HDF5Features(folder / "features.h5")
        if config.features == MOTION:
            features = SelectedColumns(features, motion_columns(), "motion alone")
        features.encoder = pixels_of(config.moving_shapes, motion=config.features == MOTION).identity()
    else:
        raise ConfigError(
            f"corpus {config.corpus} needs features: a feature file or folder, or 'simulated' for a trial without video"
        )
    counts = ", ".join(
        f"{split} {len(p)} paragraphs ({sum(len(x.sentences) for x in p)} sentences)" for split, p in splits.items()
    )
    log.info("%s: %s; features %s, width %d", name, counts, features.source, features.dim)
    if shared := tested_and_validated(splits):
        log.warning(
            "%s: %d of the test videos are among the validation videos, which choose the epoch (data.val_split)",
            *(name, shared),
        )
    return Corpus(name, splits, features, vectors)


def _open(config: DataConfig) -> FeatureReader:
    """The files or folders of ``config.features``: one, or several side by side, whose widths make features_dim."""
    if not isinstance(config.features, list):
        assert config.features is not None
        return open_features(config.features, config.features_key, config.features_dim)
    if not config.features:
        raise ConfigError("data.features is an empty list; name a file or folder, or several")
    joined = JoinedFeatures([open_features(path, config.features_key) for path in config.features])
    if config.features_dim not in (None, joined.dim):
        widths = " + ".join(str(reader.dim) for reader in joined.readers)
        raise FeatureError(f"features {joined.source}: width {widths} = {joined.dim}, expected {config.features_dim}")
    return joined


def _of_segments(features: FeatureReader, splits: Mapping[str, Sequence[Paragraph]]) -> FeatureReader:
    """DiDeMo's own files hold six rows of every video: of five segments the sixth is none."""
    counts = {p.video_id: round(p.duration / didemo.SEGMENT) for split in splits.values() for p in split}
    return FirstClips(features, counts)


def tested_and_validated(splits: Mapping[str, Sequence[Paragraph]]) -> int:
    """How many test videos are validation videos too: what is chosen by these has seen them."""
    validated, tested = ({p.video_id for p in splits.get(name, ())} for name in ("val", "test"))
    return len(validated & tested)


def pixels_of(options: MovingShapesOptions, motion: bool) -> Pixels:
    """The encoder that makes the features of moving_shapes, for other videos."""
    return Pixels(None, PixelsOptions(fps=options.fps, clips_per_second=options.clips_per_second, motion=motion))


def read_own(config: DataConfig, features: FeatureReader | None) -> dict[str, list[Paragraph]]:
    """``"train"``, ``"val"`` and ``"test"`` of annotations of one's own; durations are the features', if they tell.

    Raises:
        ConfigError: no file is named, or too few videos are there to hold some out.
        AnnotationError: as :func:`vpgfast.data.annotations.own.load`.
    """
    files = config.annotations
    if files.train is None:
        raise ConfigError("corpus own needs data.annotations.train, a CSV or TSV file of video,start,end,sentence")

    def duration_of(video: str) -> float | None:
        return None if features is None or video not in features else features.duration(video)

    splits = {"train": own.load(Path(files.train), duration_of)}
    for number, (split, file) in enumerate((("val", files.val), ("test", files.test))):
        if file is not None:
            splits[split] = own.load(Path(file), duration_of)
        else:
            share = getattr(config, split)
            splits["train"], splits[split] = hold_out(splits["train"], share, config.seed + number, f"data.{split}")
        for paragraph in splits[split]:
            if paragraph.spans is None:
                raise AnnotationError(
                    f"{file or files.train}: video {paragraph.video_id!r} is in the {split} split, which is judged by "
                    "spans, and has a sentence without one"
                )
    return splits


def read_splits(config: DataConfig) -> dict[str, list[Paragraph]]:
    """``"train"``, ``"val"`` and ``"test"`` of a data set's annotation files, as the config names them."""
    root = _root(config)
    train, val, test = _split_names(config)
    splits = {"train": _read(config, train, root)}
    if val == "held_out":
        splits["train"], splits["val"] = hold_out(splits["train"], config.held_out_share, config.seed)
    else:
        splits["val"] = _read(config, val, root)
    splits["test"] = splits["val"] if test == val else _read(config, test, root)
    return splits


def _retold(
    splits: Mapping[str, Sequence[Paragraph]], config: DataConfig
) -> tuple[dict[str, list[Paragraph]], list[Paragraph]]:
    """The splits as ``data.simulated.discourse`` tells them, and what their videos show."""
    if config.features != SIMULATED:
        raise ConfigError("data.simulated.discourse is of simulated features; set data.features to 'simulated', too")
    retold = retell_splits(splits, config.seed)
    for name, told in retold.items():
        if left_out := len(splits[name]) - len(told):
            log.warning(
                "%s, %s: %d of %d paragraphs are left out, because their sentences can't be made to need each other "
                "(those of one sentence, and of sentences that are told twice)",
                *(config.corpus, name, left_out, len(splits[name])),
            )
    everything = [shown(told) for split in retold.values() for told in split]
    return {name: [told.paragraph for told in split] for name, split in retold.items()}, everything


def annotation_file(config: DataConfig, split: str) -> Path:
    """Where QVHighlights' annotations of a split, "train", "val" or "test", are read from."""
    names = dict(zip(("train", "val", "test"), _split_names(config), strict=True))
    name = names["train"] if names[split] == "held_out" else names[split]
    return find(_root(config), qvhighlights.FILES[name])


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise ConfigError(f"corpus {config.corpus} needs root, the folder of its annotation files")
    root = Path(config.root)
    inner = root / _FOLDERS.get(config.corpus, config.corpus)
    return inner if inner.is_dir() else root


def _split_names(config: DataConfig) -> tuple[str, ...]:
    chosen = (config.train_split, config.val_split, config.test_split)
    return tuple(own or usual for own, usual in zip(chosen, SPLITS[config.corpus], strict=True))


def _read(config: DataConfig, split: str, root: Path) -> list[Paragraph]:
    options: dict[str, Any] = {}
    level = "paragraph"
    if config.corpus in ("didemo", "qvhighlights"):
        level = "sentence"  # each description stands alone
    elif config.bad_span is not None:
        options["bad_span"] = config.bad_span
    if config.corpus == "charades_sta":
        options["repair"] = config.charades_repair
    elif config.corpus == "didemo":
        options["video_id"] = config.didemo_names
    elif config.corpus == "tacos":
        options |= {"variant": config.tacos_variant, "pieces": config.tacos_pieces}
        level = "sentence" if config.tacos_variant == "tall" else level
    return load_annotations(config.corpus, split, root, level, **options)


def hold_out(
    paragraphs: list[Paragraph], share: float, seed: int, option: str = "held_out_share"
) -> tuple[list[Paragraph], list[Paragraph]]:
    """Split into what stays for training and what is held out for validation: whole videos, chosen by ``seed``."""
    videos = sorted({p.video_id for p in paragraphs})
    count = round(share * len(videos))
    if not 0 < count < len(videos):
        else_ = f", or name a file by data.annotations.{option[5:]}" if option.startswith("data.") else ""
        raise ConfigError(
            f"{option} is {share}, which takes {count} of {len(videos)} training videos; it must leave some and take "
            f"some{else_}"
        )
    held = {videos[i] for i in np.random.default_rng((seed, 2)).permutation(len(videos))[:count]}
    return [p for p in paragraphs if p.video_id not in held], [p for p in paragraphs if p.video_id in held]


def _usable(
    splits: dict[str, list[Paragraph]], features: FeatureReader, config: DataConfig
) -> dict[str, list[Paragraph]]:
    """The splits without the paragraphs whose video has no usable features (or the error that says so)."""
    videos = [p.video_id for split in splits.values() for p in split]
    bad = check_features(features, videos, config.on_bad_features, read=config.check_features == "full")
    left = {name: [p for p in split if p.video_id not in bad] for name, split in splits.items()}
    for name, split in left.items():
        if not split:
            raise FeatureError(
                f"{features.source}: no video of the {name} split has usable features; is the key right?"
            )
    return left


def vocabulary(splits: Iterable[list[Paragraph]], punctuation: bool = False) -> set[str]:
    """Every word of every sentence."""
    sentences = [sentence for split in splits for p in split for sentence in p.sentences]
    return {word for sentence in sentences for word in tokenize(sentence, punctuation)}


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
