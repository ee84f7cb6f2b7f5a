"""Which video does a paragraph describe, and when does each sentence happen in it? ``python -m vpgfast.search ...``.

``index`` makes a folder of vectors of videos (:mod:`vpgfast.index`), ``add``, ``remove`` and ``compact`` change it,
``build-faiss`` makes it fast for large corpora, ``info`` says what it holds, and ``query`` asks it: it finds videos by
their vectors and grounds the sentences in each of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vpgfast.cache import encoded
from vpgfast.checkpoint import MODEL_FILE as RUN_MODEL_FILE
from vpgfast.checkpoint import Checkpoint, build_model, load_checkpoint, write_file
from vpgfast.command import command, open_log
from vpgfast.config import TrainConfig
from vpgfast.data.text import split_sentences, tokenize
from vpgfast.data.types import BatchNeeds, Paragraph
from vpgfast.embed import check_finds_videos, embed_clips, embed_texts
from vpgfast.encoders.base import Encoded, Encoder
from vpgfast.errors import ConfigError, FeatureError, SearchIndexError, UserError, VideoError
from vpgfast.evaluate import make_fabric, settings_of
from vpgfast.ground import (
    HOW_PARAGRAPHS_ARE_CUT,
    Grounding,
    add_query,
    asked_sentences,
    ground,
    warn_of_unknown_words,
)
from vpgfast.index import INDEX_FILE, SHARD, Found, VideoEntry, VideoIndex, file_hash, import_faiss
from vpgfast.models.method import Method
from vpgfast.models.registry import get_method
from vpgfast.plots import draw_found
from vpgfast.run_encoder import encoder_of
from vpgfast.video_sources import VideoSource, features_again, open_source, where_is

log = logging.getLogger("vpgfast.search")

SECONDS_BETWEEN_SHARDS = 60.0
"""What a kill may cost: a shard is written at least this often."""


@dataclass
class Searcher:
    """A model that is ready to make vectors and to ground.

    Attributes:
        checkpoint: its file's content.
        config: settings of its run.
        model: on ``device``, in evaluation mode.
        needs: what it asks of a batch.
        device: where it is.
        encoder_spec: where the encoder of its features is, if not where it was.
    """

    checkpoint: Checkpoint
    config: TrainConfig
    model: Method
    needs: BatchNeeds
    device: torch.device
    encoder_spec: str | None = None

    @classmethod
    def load(cls, path: Path, settings: Sequence[str], encoder: str | None = None) -> Searcher:
        """From a checkpoint and settings of its run that are changed, and a spec for where its encoder is now.

        Raises:
            CheckpointError, ConfigError: as for ``evaluate``; or the method has no retrieval branch.
        """
        checkpoint = load_checkpoint(path)
        config = settings_of(checkpoint, path, settings)
        check_finds_videos(checkpoint.method)
        device = make_fabric(replace(config, devices=1, strategy="auto")).device
        model = build_model(checkpoint, config.model, path).to(device)
        return cls(checkpoint, config, model, get_method(config.method).needs(config.model), device, encoder)

    @cached_property
    def encoder(self) -> Encoder:
        """Made when the first video comes. Raises as :func:`vpgfast.run_encoder.encoder_of`."""
        return encoder_of(self.checkpoint, self.encoder_spec, self.device)

    def encode(self, video: Path) -> Encoded:
        """Clip features of a video file, from the cache where it was seen before.

        Raises:
            VideoError: it can't be read.
        """
        return encoded(self.encoder, video, cache=self.config.data.cache)

    def embed_videos(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [B, E] of length 1 from B videos' clips [T_b, d_v]."""
        return embed_clips(self.model, features, self.needs, self.device)

    def embed_query(self, sentences: Sequence[str]) -> np.ndarray:
        """float32 [1, E] of length 1; the query's sentences make one paragraph."""
        paragraph = Paragraph("query", 1.0, tuple(sentences))  # its length in seconds is not known, and not read
        vectors, width = self.checkpoint.word_vectors, self.checkpoint.feature_dim
        return embed_texts(self.model, [paragraph], vectors, self.needs, width, self.device)

    def ground(self, features: np.ndarray, duration: float, sentences: Sequence[str], spans: int) -> Grounding:
        """When each sentence happens in a video."""
        return ground(self.model, self.config, self.checkpoint.word_vectors, features, duration, sentences, spans)


# --- making and changing an index


def index_videos(
    index: VideoIndex, searcher: Searcher, source: VideoSource, on_bad: str, keep: bool
) -> tuple[int, int]:
    """Make vectors of videos and put them into an index, shard by shard. For use in ``index.changing()``.

    Args:
        on_bad: "stop" or "skip" (with a warning) where a video can't be read.
        keep: leave videos alone that are in the index under the same name; else they are replaced.

    Returns:
        How many were put in, and how many were left out as unreadable.
    """
    names = [name for name in source.names if not (keep and name in index)]
    if len(names) < len(source.names):
        log.info("%d of %d videos are in the index already", len(source.names) - len(names), len(source.names))
    size = searcher.config.batch_size
    vectors: list[np.ndarray] = []
    entries: list[VideoEntry] = []
    batch: list[np.ndarray] = []
    added = bad = 0
    written = time.monotonic()
    progress = tqdm(names, desc="indexing", unit="video", leave=False, disable=None, delay=2)
    for number, name in enumerate(progress, start=1):
        try:
            features, entry = source.read(name)
        except (FeatureError, VideoError) as error:
            if on_bad == "stop":
                _flush(index, searcher, vectors, entries, batch)  # what was done is not done again
                raise type(error)(f"{error}. Mend it, or leave such videos out with --on-bad skip") from None
            log.warning("left out: %s", error)
            bad += 1
        else:
            batch.append(features)
            entries.append(entry)
            added += 1
        if len(batch) == size:
            vectors.append(searcher.embed_videos(batch))
            batch.clear()
        full = len(entries) >= SHARD or time.monotonic() - written > SECONDS_BETWEEN_SHARDS
        if full or number == len(names):
            _flush(index, searcher, vectors, entries, batch)
            written = time.monotonic()
    return added, bad


def _flush(
    index: VideoIndex,
    searcher: Searcher,
    vectors: list[np.ndarray],
    entries: list[VideoEntry],
    batch: list[np.ndarray],
) -> None:
    """Write what has been collected as a shard, and empty the lists."""
    if batch:
        vectors.append(searcher.embed_videos(batch))
    if entries:
        index.add(np.concatenate(vectors), entries)
    for collected in (vectors, entries, batch):
        collected.clear()


def command_index(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Make an index, or go on with one that was interrupted."""
    folder: Path = arguments.output
    if arguments.faiss:
        import_faiss()  # before hours of work
    # Where and how fast a model runs is no part of what it is.
    kept = [setting for setting in settings if setting.startswith(("--model.", "--data."))]
    path = arguments.checkpoint / RUN_MODEL_FILE if arguments.checkpoint.is_dir() else arguments.checkpoint
    searcher = Searcher.load(path, settings, arguments.encoder)
    source = _open_source(arguments, folder, searcher)
    if not source.names:
        raise FeatureError(f"{arguments.source}: holds no video")
    if (folder / INDEX_FILE).is_file():
        index = VideoIndex.open(folder)
        if file_hash(path) != index.about["model"]["sha256"] or kept != index.about["settings"]:
            raise SearchIndexError(
                f"index {folder}: made by another model ({index.about['model']['from']}"
                f"{' '.join(['', *index.about['settings']])}); give another --output"
            )
    else:
        features = [np.zeros((1, searcher.checkpoint.feature_dim), np.float32)]
        width = searcher.embed_videos(features).shape[1]
        about = {"source": searcher.checkpoint.feature_source, "width": searcher.checkpoint.feature_dim}
        index = VideoIndex.create(folder, width, path, searcher.checkpoint.method, about, kept)
    with index.changing():
        _say_added(index, *index_videos(index, searcher, source, arguments.on_bad, keep=True))
        if arguments.faiss:
            _build_faiss(index, arguments.recall, None)


def command_add(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Add videos to an index."""
    index, searcher = _open(arguments.index, settings, arguments.encoder)
    source = _open_source(arguments, index.folder, searcher)
    with index.changing():
        _say_added(index, *index_videos(index, searcher, source, arguments.on_bad, keep=not arguments.replace))


def command_remove(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Take videos out."""
    index = VideoIndex.open(arguments.index)
    with index.changing():
        index.remove(arguments.video)
    print(f"{index.folder}: {len(set(arguments.video))} removed, {len(index)} videos left")


def command_compact(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Write the index anew without what was removed."""
    index = VideoIndex.open(arguments.index)
    with index.changing():
        had_faiss = index.faiss is not None
        index.compact()
    print(f"{index.folder}: {len(index)} videos in {len(index.shards)} shards")
    if had_faiss:
        print("what FAISS made was about the old shards and is gone; build-faiss makes it anew")


def command_build_faiss(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Let FAISS make its own index of what is there now."""
    import_faiss()
    if arguments.queries is None:
        index, queries = VideoIndex.open(arguments.index), None
    else:
        index, searcher = _open(arguments.index, settings)
        queries = np.concatenate([searcher.embed_query(p) for p in _read_queries(arguments.queries)])
    with index.changing():
        _build_faiss(index, arguments.recall, queries)


def _build_faiss(index: VideoIndex, recall: float, queries: np.ndarray | None) -> None:
    index.build_faiss(recall, queries)
    print(_about_faiss(index))


def _read_queries(path: Path) -> list[list[str]]:
    """Paragraphs of a text file, one a line, as sentences."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--queries {path}: can't be read ({error})") from None
    paragraphs = [split_sentences(line) for line in lines if tokenize(line)]
    if not paragraphs:
        raise ConfigError(f"--queries {path}: holds no paragraph; write one a line")
    return paragraphs


def _open(folder: Path, settings: list[str], encoder: str | None = None) -> tuple[VideoIndex, Searcher]:
    index = VideoIndex.open(folder)
    index.check_model()
    return index, Searcher.load(index.model_file, [*index.about["settings"], *settings], encoder)


def _open_source(arguments: argparse.Namespace, folder: Path, searcher: Searcher) -> VideoSource:
    return open_source(
        arguments.source,
        folder,
        searcher.checkpoint,
        searcher,
        arguments.features_key,
        arguments.durations,
        arguments.clip_seconds,
    )


def _say_added(index: VideoIndex, added: int, bad: int) -> None:
    left_out = f", {bad} left out as unreadable" if bad else ""
    print(f"{index.folder}: {added} added{left_out}, {len(index)} videos in {len(index.shards)} shards")
    if index.faiss is not None:
        covered = set(index.faiss["shards"])
        later = sum(shard.videos for shard in index.shards if shard.name not in covered)
        if later:
            print(f"{later} videos came after build-faiss and are searched exactly until it is called again")


# --- what it holds


def command_info(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Say what an index holds, and look at every file of it."""
    index = VideoIndex.open(arguments.index)
    index.check_model()
    sources: dict[str, int] = {}
    gone: dict[str, int] = {}
    for _, _, entry in tqdm(
        index.living(), total=len(index), desc="looking at videos", unit="video", delay=2, leave=False, disable=None
    ):
        place = f"{entry.source['kind']} {entry.source['path']}"
        sources[place] = sources.get(place, 0) + 1
        if not where_is(entry, index.folder).exists():
            gone[place] = gone.get(place, 0) + 1
    for shard in index.shards:
        index.vectors(shard)
    size = sum(path.stat().st_size for path in index.folder.iterdir() if path.is_file())
    removed = sum(map(len, index.removed.values()))
    about = index.about
    lines = [
        f"{index.folder}: {len(index)} videos in {len(index.shards)} shards, {size / 2**20:.1f} MiB",
        f"  removed       {removed}" + (" (compact drops them)" if removed else ""),
        f"  method        {about['method']}, vectors of width {index.width}",
        f"  model         {about['model']['from']}{' '.join(['', *about['settings']])}",
        f"  features      {about['features']['source']}, width {about['features']['width']}",
        *(
            f"  videos from   {place}: {count}" + (f", of which {gone[place]} are gone" if place in gone else "")
            for place, count in sources.items()
        ),
        f"  search        {_about_faiss(index)}",
    ]
    print("\n".join(lines))


def _about_faiss(index: VideoIndex) -> str:
    if index.faiss is None:
        return "exact"
    about = index.faiss
    recall = ", ".join(f"{depth} {100 * share:.1f}%" for depth, share in about["recall"].items())
    return (
        f"FAISS, {about['nprobe']} of {about['lists']} lists, {about['bytes_per_video']} bytes a video; recall "
        f"{recall} of exact search, on {about['measured_on']}"
    )


# --- asking it


@dataclass
class Answer:
    """A found video with its moments.

    Attributes:
        found: the video and its score.
        path: where it (or its features) came from.
        grounding: when each sentence happens; ``None`` where the features are gone.
        problem: why not, then.
    """

    found: Found
    path: Path
    grounding: Grounding | None
    problem: str = ""

    def as_text(self, rank: int) -> str:
        """Rank, video and score, then the sentences with their spans."""
        video = self.found.video
        lines = [f"{rank:3d}.  {video.video_id}   score {self.found.score:.4f}   {video.duration:.1f} s   {self.path}"]
        if self.grounding is None:
            body = [f"not grounded: {self.problem}"]
        elif self.grounding.spans.shape[1] > 1:
            body = self.grounding.as_text().splitlines()
        else:
            body = [
                (f"{start:8.2f} - {end:8.2f} s   " if np.isfinite(start) else f"{'no span':>19}     ") + sentence
                for (start, end), sentence in zip(self.grounding.spans[:, 0], self.grounding.sentences, strict=True)
            ]
        return "\n".join([*lines, *(f"      {line}" for line in body)])

    def as_dict(self) -> dict[str, Any]:
        """As ``search.json`` holds it."""
        video = self.found.video
        about = {"video": video.video_id, "score": self.found.score, "path": str(self.path)}
        if self.grounding is None:
            return {**about, "duration": video.duration, "sentences": None, "problem": self.problem}
        return {**about, **self.grounding.as_dict()}


def answer(
    index: VideoIndex, searcher: Searcher, sentences: Sequence[str], top: int, spans: int, exact: bool = False
) -> list[Answer]:
    """The videos that a paragraph describes best, and when its sentences happen in each.

    Args:
        sentences: of the paragraph, in order.
        top: videos.
        spans: spans a sentence and video.
        exact: leave FAISS aside.
    """
    (found,) = index.search(searcher.embed_query(sentences), top, exact)
    answers = []
    for one in tqdm(found, desc="grounding", unit="video", delay=2, leave=False, disable=None):
        path = where_is(one.video, index.folder)
        try:
            features = features_again(one.video, index.folder, searcher.checkpoint.feature_dim, searcher)
        except (FeatureError, VideoError) as error:
            log.warning("video %s is found but can't be grounded: %s", one.video.video_id, error)
            answers.append(Answer(one, path, None, str(error)))
            continue
        answers.append(Answer(one, path, searcher.ground(features, one.video.duration, sentences, spans)))
    return answers


def command_query(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Ask an index."""
    for name in ("top", "spans"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.text is None:
        sentences = asked_sentences(arguments)
    elif not tokenize(arguments.text):
        raise UserError(f"the text to look for ({arguments.text!r}) has no word in it")
    else:
        sentences = split_sentences(arguments.text)
    index, searcher = _open(arguments.index, settings, arguments.encoder)
    warn_of_unknown_words(sentences, searcher.checkpoint.word_vectors, searcher.needs)
    answers = answer(index, searcher, sentences, arguments.top, arguments.spans, arguments.exact)

    text = "\n".join(one.as_text(rank) for rank, one in enumerate(answers, start=1))
    print(text)
    output: Path = arguments.output or index.folder / "query"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}") from None
    content = {"sentences": sentences, "index": str(index.folder), "videos": [one.as_dict() for one in answers]}
    write_file(output / "search.txt", (text + "\n").encode())
    write_file(output / "search.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    draw_found(
        sentences,
        [
            (
                f"{rank}. {one.found.video.video_id}   ({one.found.score:.3f})",
                one.found.video.duration,
                None if one.grounding is None else (one.grounding.spans[:, 0], one.grounding.scores[:, 0]),
            )
            for rank, one in enumerate(answers, start=1)
        ],
        output / "search.png",
        f"the {len(answers)} of {len(index)} videos that fit best",
    )
    print(f"written to {output}: search.txt, search.json, search.png")


# --- command line


def split_settings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments that change settings of the model's run (``--model.language_model F``, ``--batch_size=8``), each as one
    ``--KEY=VALUE``; and the others."""
    known = {field.name for field in fields(TrainConfig)} - {"output", "resume", "overwrite"}
    settings, others = [], []
    waiting = iter(argv)
    for argument in waiting:
        key, equals, _ = argument.partition("=")
        if not key.startswith("--") or key[2:].split(".")[0] not in known:
            others.append(argument)
        elif equals:
            settings.append(argument)
        elif re.match(r"-\D", value := next(waiting, "--")):  # the next option, or none; -3 is a value
            raise ConfigError(f"the command line: {key} needs a value")
        else:
            settings.append(f"{key}={value}")
    return settings, others


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.search",
        description="Find the video that a paragraph describes, and when each of its sentences happens in it.",
        epilog="`python -m vpgfast.search ACTION --help` says more. An index is a folder of plain files, see "
        "docs/search.md.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    changes = (
        "Settings of the model's run can be changed, as in --model.language_model FOLDER where it lies elsewhere now, "
        "--accelerator cpu or --batch_size 64 (videos at a time)."
    )

    def add(name: str, run: Any, text: str, epilog: str = "") -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
        action.set_defaults(run=run)
        if name != "index":
            action.add_argument("index", type=Path, metavar="INDEX", help="folder of the index")
        return action

    index = add(
        "index",
        command_index,
        "make an index of videos; the same command goes on with one that was interrupted",
        f"A shard is written at least every {SECONDS_BETWEEN_SHARDS:.0f} seconds, and what is in the index is not done "
        f"again. {changes}",
    )
    index.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file, or a run's folder")
    index.add_argument("-o", "--output", type=Path, required=True, metavar="INDEX", help="folder to make the index in")
    index.add_argument("--faiss", action="store_true", help="end with build-faiss")
    more = add("add", command_add, "add videos to an index, with the model that is in it", changes)
    more.add_argument("--replace", action="store_true", help="make the vectors of videos that are there anew")
    for action in (index, more):
        action.add_argument(
            "source",
            type=Path,
            metavar="FEATURES_OR_VIDEOS",
            help="an HDF5 file of clip features, a folder of .npy or .npz files named after the videos, or videos, "
            "which are encoded as the model's features were; a relative path is remembered as seen from the index",
        )
        action.add_argument(
            "--durations",
            type=Path,
            metavar="FILE",
            help="with features that don't tell it: seconds that the videos last, .csv (video_id,seconds) or .json",
        )
        action.add_argument("--clip-seconds", type=float, metavar="S", help="with features: length of a clip, instead")
        action.add_argument(
            "--features-key",
            metavar="KEY",
            help="where a video's features are: '{video_id}/c3d_features' (HDF5), an array's name (.npz); default: "
            "found out",
        )
        action.add_argument(
            "--on-bad", choices=("stop", "skip"), default="stop", help="if a video can't be read (default: stop)"
        )

    epilog = f"TEXT is cut as a --paragraph: one {HOW_PARAGRAPHS_ARE_CUT} {changes}"
    query = add("query", command_query, "find videos by a paragraph, and its sentences in them", epilog)
    add_query(query).add_argument("text", nargs="?", metavar="TEXT", help="the paragraph")
    query.add_argument("--top", type=int, default=5, help="videos (default 5)")
    query.add_argument("--spans", type=int, default=1, help="spans a sentence and video (default 1)")
    for action in (index, more, query):
        action.add_argument(
            "--encoder", metavar="SPEC", help="the encoder of the model's features, where its weights lie elsewhere now"
        )
    query.add_argument("--exact", action="store_true", help="compare with every vector, also where FAISS could search")
    query.add_argument("--output", type=Path, help="folder for the results; default: INDEX/query")

    remove = add("remove", command_remove, "take videos out of an index")
    remove.add_argument("video", nargs="+", metavar="VIDEO", help="name of a video")
    add("compact", command_compact, "write an index anew, in full shards and without what was removed")
    faiss = add("build-faiss", command_build_faiss, "let FAISS make an IVF-PQ index of what is there now", changes)
    faiss.add_argument(
        "--queries",
        type=Path,
        metavar="FILE",
        help="text file with a paragraph a line to measure the recall on; default: vectors of videos that training did "
        "not see, which are easier to search for than paragraphs",
    )
    for action in (index, faiss):
        action.add_argument(
            "--recall",
            type=float,
            default=0.95,
            metavar="R",
            help="share of the best video, and of the 10 best, that FAISS has to find; it probes as many lists as that "
            "takes (default 0.95)",
        )
    add("info", command_info, "say what an index holds, and check its files")
    return parser


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast search``."""
    settings, others = split_settings(argv)
    arguments = _parser().parse_args(others)
    open_log()
    if "recall" in arguments and not 0 < arguments.recall <= 1:
        raise ConfigError(f"--recall must be above 0 and at most 1, got {arguments.recall:g}")
    arguments.run(arguments, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
