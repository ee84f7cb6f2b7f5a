"""What ``python -m vpgfast.search`` does, one function an action."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vpgfast.command import open_log
from vpgfast.errors import ConfigError, FeatureError, SearchIndexError
from vpgfast.files import MODEL_FILE as RUN_MODEL_FILE
from vpgfast.search.about import INDEX_FILE, file_hash
from vpgfast.search.faiss_index import import_faiss
from vpgfast.search.index import VideoIndex
from vpgfast.search.indexing import index_videos
from vpgfast.search.query import command_query, read_queries
from vpgfast.search.searcher import Searcher
from vpgfast.search.session import Session, know_encoder
from vpgfast.search.sources import VideoSource, open_source, where_is
from vpgfast.untrained import as_checkpoint

log = logging.getLogger(__name__)


def command_index(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Make an index, or go on with one that was interrupted."""
    folder: Path = arguments.output
    if arguments.faiss:
        import_faiss()  # before hours of work
    place = as_checkpoint(arguments.checkpoint)
    path = place / RUN_MODEL_FILE if place.is_dir() else place
    searcher = Searcher.load(path, settings, arguments.encoder)
    kept = searcher.changed_settings()  # where and how fast a model runs is no part of what it is
    index = VideoIndex.open(folder) if (folder / INDEX_FILE).is_file() else None
    if index is not None:
        if file_hash(path) != index.about["model"]["sha256"] or _of_model(kept) != _of_model(index.about["settings"]):
            made = " ".join([index.about["model"]["from"], *index.about["settings"]])
            asked = " ".join([str(path), *kept])
            raise SearchIndexError(
                f"index {folder}: made by another model ({made}) than {asked}; give another --output"
            )
        know_encoder(searcher, index)
    source = _open_source(arguments, folder, searcher)
    if not source.names:
        raise FeatureError(f"{arguments.source}: holds no video")
    if index is None:
        about = {"source": searcher.checkpoint.feature_source, "width": searcher.checkpoint.feature_dim}
        method, probe = searcher.checkpoint.method, searcher.probe()
        index = VideoIndex.create(folder, len(probe[0]), path, method, about, kept, probe)
    with index.changing():
        _remember_encoder(index, searcher, source)
        added, bad = index_videos(index, searcher, source, arguments.on_bad, keep=True)
        if arguments.faiss:
            index.build_faiss(arguments.recall)
    _say_added(index, added, bad)
    if arguments.faiss:
        print(_about_faiss(index))


def _of_model(settings: list[str]) -> set[str]:
    return {setting for setting in settings if setting.startswith("--model")}


def _remember_encoder(index: VideoIndex, searcher: Searcher, source: VideoSource) -> None:
    """Where the model does not know what made its features, the index does, from now on."""
    if searcher.checkpoint.encoder is None and source.encoder is not None:
        index.commit({**index.about, "features": {**index.about["features"], "encoder": asdict(source.encoder)}})


def command_add(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Add videos to an index."""
    session = Session.open(arguments.index, settings, arguments.encoder)
    index, searcher = session.index, session.searcher
    source = _open_source(arguments, index.folder, searcher)
    with index.changing():
        _remember_encoder(index, searcher, source)
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
        session = Session.open(arguments.index, settings)
        index = session.index
        queries = np.concatenate([session.searcher.embed_query(p) for p in read_queries(arguments.queries)])
    with index.changing():
        _build_faiss(index, arguments.recall, queries)


def command_info(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Say what an index holds, and look at every file of it."""
    index = VideoIndex.open(arguments.index)
    index.check_model()
    sources, gone = index.steadily(lambda: _look_at_all(index))
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
            f"  videos from   {place}: {count}" + (f", of which {gone[place]} are gone" if gone[place] else "")
            for place, count in sources.items()
        ),
        f"  search        {_about_faiss(index)}",
    ]
    print("\n".join(lines))


def _look_at_all(index: VideoIndex) -> tuple[Counter[str], Counter[str]]:
    """Videos by where they come from, and those that are gone from there; every file of the index is looked at."""
    sources: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    for shard in index.shards:
        index.vectors(shard)
    for _, _, entry in tqdm(
        index.living(), total=len(index), desc="looking at videos", unit="video", delay=2, leave=False, disable=None
    ):
        place = f"{entry.source['kind']} {entry.source['path']}"
        sources[place] += 1
        gone[place] += not where_is(entry, index.folder).exists()
    return sources, gone


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


def _build_faiss(index: VideoIndex, recall: float, queries: np.ndarray | None) -> None:
    index.build_faiss(recall, queries)
    print(_about_faiss(index))


def _about_faiss(index: VideoIndex) -> str:
    if index.faiss is None:
        return "exact"
    about = index.faiss
    recall = ", ".join(f"{depth} {100 * share:.1f}%" for depth, share in about["recall"].items())
    return (
        f"FAISS, {about['nprobe']} of {about['lists']} lists, {about['bytes_per_video']} bytes a video; recall "
        f"{recall} of exact search, on {about['measured_on']}"
    )


ACTIONS = {
    "index": command_index,
    "add": command_add,
    "remove": command_remove,
    "compact": command_compact,
    "build-faiss": command_build_faiss,
    "info": command_info,
    "query": command_query,
}
"""What the first argument names."""


def run(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Do what the command line asks; ``settings`` are arguments that change those of the model's run."""
    open_log()
    if "recall" in arguments and not 0 < arguments.recall <= 1:
        raise ConfigError(f"--recall must be above 0 and at most 1, got {arguments.recall:g}")
    ACTIONS[arguments.action](arguments, settings)
