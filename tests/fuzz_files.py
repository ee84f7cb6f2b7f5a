"""Random damage to every kind of file that is read: ``python tests/fuzz_files.py --minutes 10 [--only KIND ...]``.

A valid file of each kind is damaged at random: bytes, lines and words lost, doubled, swapped or replaced, JSON values
exchanged for others. Reading what comes of that must give a result or a :class:`UserError`, and nothing else. What went
wrong is stored in ``tests/fuzz_found/KIND/``, which ``tests/test_fuzz_files.py`` reads again and again.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import logging
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from vpgfast.checkpoint import Checkpoint, load_checkpoint, load_state, save_checkpoint, save_state
from vpgfast.config import parse_train
from vpgfast.data.annotations import load_annotations, own, qvhighlights
from vpgfast.data.feature_files import FeatureStore, Source, VideoFeatures, read_stored
from vpgfast.data.features import open_features
from vpgfast.data.submissions import read_submission
from vpgfast.data.text import WordVectors, load_word_vectors
from vpgfast.encoders.identity import Identity
from vpgfast.errors import UserError
from vpgfast.search.index import VideoIndex
from vpgfast.search.query import read_queries
from vpgfast.search.shards import VideoEntry
from vpgfast.search.sources import read_durations

FOUND = Path(__file__).with_name("fuzz_found")
VALUES: list[Any] = [
    *(None, True, -1, 0, 1e308, -1e-308, 10**400, float("nan"), float("inf"), "", "x", "\ud800", "0", "1e3", [], {}),
    *([[]], [None], {"a": 1}, "\x00", "é", "a/b", "..", 2**63, [1, 2, 3], "nan"),
]
TOKENS = [
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"{",
    b"]",
    b'"',
    b",",
    b"\n",
    b"\t",
    b"NaN",
    b"1e999",
    b"-1",
    b"\r",
    b" ",
    b"##",
]


@dataclass
class Kind:
    """A kind of file.

    Attributes:
        make: writes valid files into a folder.
        files: those that are damaged.
        read: reads them.
    """

    make: Callable[[Path], None]
    files: list[str]
    read: Callable[[Path], Any] = field(repr=False)


# --- valid files

SENTENCES = {"timestamps": [[0.5, 5.0], [4.0, 9.0]], "sentences": ["A man runs.", "He jumps."]}
QUERY = {"qid": 1, "query": "It runs.", "vid": "v", "duration": 150, "relevant_windows": [[0, 4], [8, 12]]}


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def several(*makers: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [make(folder) for make in makers] and None


def make_hdf5(folder: Path) -> None:
    with h5py.File(folder / "f.h5", "w") as file:
        for name in "ab":
            file[f"{name}/features"] = np.ones((3, 4), np.float32)
            file[name].attrs["duration"] = 3.0


def make_extracted(folder: Path) -> None:
    store = FeatureStore(folder / "f.h5", Identity("pixels", "pixels", None, 4, {}), {}, "float32")
    times = np.array([[0.0, 1.0], [1.0, 2.0]])
    for name in ("a", "b/c"):
        store.add(name, VideoFeatures(np.ones((2, 4), np.float32), times, 2.0, (), Source(10, 1)))
    store.finish()


def read_features(path: Path) -> None:
    reader = open_features(path)
    for name in list(reader.video_ids())[:5]:
        reader[name]
        reader.duration(name)


def make_checkpoint(folder: Path) -> None:
    words = WordVectors(["<pad>", "<unk>", "dog"], np.ones((3, 2), np.float32), "test")
    weights = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4)}
    about: dict[str, Any] = {"method": "seqpan", "settings": {"method": "seqpan"}, "feature_dim": 4, "encoder": None}
    about |= {"feature_source": "s", "corpus": "c", "epoch": 1, "score": 0.5}
    save_checkpoint(folder / "best.safetensors", Checkpoint(**about, word_vectors=words, weights=weights))


def make_index(folder: Path) -> None:
    (folder / "model").write_bytes(b"model")
    index = VideoIndex.create(folder / "index", 2, folder / "model", "m", {"source": "s", "width": 1})
    source = {"kind": "folder", "path": "/f", "key": None}
    with index.changing():
        index.add(np.eye(2, dtype=np.float32), [VideoEntry(name, 1.0, source) for name in "ab"])


def read_index(folder: Path) -> None:
    index = VideoIndex.open(folder / "index")
    for _ in index.living():
        pass
    if index.width == 2:
        index.search(np.eye(2, dtype=np.float32), 2, exact=True)


def annotations(
    corpus: str, split: str, levels: tuple[str, ...] = ("sentence", "paragraph"), **options: Any
) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        for level in levels:
            load_annotations(corpus, split, folder, level, **options)

    return read


DIDEMO = [{"video": "a_1_b.mp4", "description": "A dog.", "num_segments": 6, "times": [[0, 0], [2, 3], [2, 3]]}] * 2
TACOS = {"s1-d1.avi": {**SENTENCES, "fps": 29.4, "num_frames": 300}}
CHARADES_CD = {"A": {**SENTENCES, "video_duration": 10.0, "decode_duration": 10.0}}
YAML = """method: seqpan
model:
  dim: 64
data:
  corpus: moving_shapes
  moving_shapes:
    train_videos: 3
optim:
  lr: 0.1
"""
LINES = "\n".join(json.dumps({**QUERY, "qid": number}) for number in range(3))
ANSWERS = "\n".join(
    json.dumps({"qid": number, "pred_relevant_windows": [[0, 2, 0.5]], "pred_saliency_scores": [0.5] * 75})
    for number in range(3)
)

KINDS = {
    "activitynet": Kind(
        text("train.json", json.dumps({"v": {"duration": 10.0, **SENTENCES}})), ["train.json"],
        annotations("activitynet", "train"),
    ),
    "charades_sta": Kind(
        several(
            text("charades_sta_train.txt", "AO8RW 0.0 6.9##a person runs.\nAO8RW 1.0 3##a dog sits.\n"),
            text("Charades_v1_train.csv", "id,length\nAO8RW,30.5\n"),
        ),
        ["charades_sta_train.txt", "Charades_v1_train.csv"],
        annotations("charades_sta", "train"),
    ),
    "charades_cd": Kind(text("charades_train.json", json.dumps(CHARADES_CD)), ["charades_train.json"],
                        annotations("charades_cd", "train")),
    "tacos": Kind(
        several(text("val.json", json.dumps(TACOS)), text("TACoS_val_samples.txt", "s1-d1.avi_3_9:a#b#\n")),
        ["val.json", "TACoS_val_samples.txt"],
        lambda folder: [
            annotations("tacos", "val")(folder),
            annotations("tacos", "val", ("sentence",), variant="tall")(folder),
        ],
    ),
    "didemo": Kind(text("val_data.json", json.dumps(DIDEMO)), ["val_data.json"], annotations("didemo", "val")),
    "qvhighlights": Kind(text("t.jsonl", LINES), ["t.jsonl"], lambda folder: qvhighlights.read(folder / "t.jsonl")),
    "submission": Kind(
        several(text("s.jsonl", ANSWERS), text("t.jsonl", LINES)), ["s.jsonl"],
        lambda folder: read_submission(folder / "s.jsonl", qvhighlights.read(folder / "t.jsonl"), folder / "t.jsonl"),
    ),
    "own_csv": Kind(
        text("a.csv", "video,start,end,sentence\nv.mp4,0,1:02.5,A dog.\nw,,,\"It, runs.\"\n"), ["a.csv"],
        lambda folder: own.read(folder / "a.csv", lambda _: 100.0),
    ),
    "own_tsv": Kind(
        text("a.tsv", "video\tstart\tend\tsentence\nv\t0\t1\tA dog.\n"), ["a.tsv"],
        lambda folder: own.read(folder / "a.tsv", lambda _: None),
    ),
    "own_jsonl": Kind(text("a.jsonl", LINES), ["a.jsonl"], lambda folder: own.read(folder / "a.jsonl", lambda _: None)),
    "own_json": Kind(
        text("a.json", json.dumps({"v": {"duration": 10.0, **SENTENCES}})), ["a.json"],
        lambda folder: own.read(folder / "a.json", lambda _: 5.0),
    ),
    "npy": Kind(
        lambda folder: np.save(folder / "a.npy", np.ones((3, 4), np.float32)), ["a.npy"], read_features
    ),
    "npz": Kind(
        lambda folder: np.savez(folder / "a.npz", features=np.ones((3, 4), np.float32), duration=np.float64(3)),
        ["a.npz"], read_features,
    ),
    "hdf5": Kind(make_hdf5, ["f.h5"], lambda folder: read_features(folder / "f.h5")),
    "word_vectors": Kind(
        text("g.txt", "the 1 2 3\ncat 4 5 6\ndog 0 0 1\n"), ["g.txt"],
        lambda folder: load_word_vectors(folder / "g.txt", ["the", "cat"], 3),
    ),
    "word_table": Kind(
        lambda folder: np.savez(folder / "w.npz", words=np.array(["the", "cat"]), vectors=np.ones((2, 3), np.float32)),
        ["w.npz"], lambda folder: load_word_vectors(folder / "w.npz", ["the", "cat"], 3),
    ),
    "config": Kind(text("c.yaml", YAML), ["c.yaml"], lambda folder: parse_train(["--config", str(folder / "c.yaml")])),
    "checkpoint": Kind(make_checkpoint, ["best.safetensors"], lambda folder: load_checkpoint(folder)),
    "training_state": Kind(
        lambda folder: save_state(folder / "s.pt", {"epoch": 1, "w": torch.ones(3), "l": [1, "a"]}), ["s.pt"],
        lambda folder: load_state(folder / "s.pt"),
    ),
    "index": Kind(
        make_index, ["index/index.json", "index/videos-00000.json", "index/vectors-00000.npy"], read_index
    ),
    "durations": Kind(
        several(text("d.csv", "video,seconds\na,3\nb,4.5\n"), text("d.json", '{"a": 3, "b": {"duration": 4}}')),
        ["d.csv", "d.json"],
        lambda folder: [read_durations(folder / name) for name in ("d.csv", "d.json")],
    ),
    "queries": Kind(text("q.txt", "A dog runs.\nIt jumps. It sits.\n"), ["q.txt"],
                    lambda folder: read_queries(folder / "q.txt")),
    "extracted": Kind(make_extracted, ["f.h5"], lambda folder: read_stored(folder / "f.h5")),
    "extracted_features": Kind(make_extracted, ["f.h5"], lambda folder: read_features(folder / "f.h5")),
}  # fmt: skip


# --- damage


def damaged(content: bytes, chance: random.Random) -> bytes:
    """One to four changes."""
    for _ in range(chance.randint(1, 4)):
        if chance.random() < 0.4 and (changed := _json_changed(content, chance)) is not None:
            content = changed
            continue
        at, width = chance.randint(0, len(content)), chance.choice((1, 1, 2, 4, 16, 64))
        piece = content[at : at + width]
        content = content[:at] + chance.choice(
            [
                b"",  # lost
                piece + piece,
                bytes(chance.randrange(256) for _ in piece),
                chance.choice(TOKENS),
                chance.choice(TOKENS) + piece,
                re.sub(rb"\d", lambda _: str(chance.randrange(10)).encode(), piece),
            ]
        ) + content[at + width :]  # fmt: skip
        if chance.random() < 0.1:
            content = content[: chance.randint(0, len(content))]
    return content


def _json_changed(content: bytes, chance: random.Random) -> bytes | None:
    """One value somewhere in JSON (or in a line of JSON) exchanged; ``None`` where there is none."""
    lines = content.split(b"\n") if b"\n{" in content else [content]
    number = chance.randrange(len(lines))
    try:
        value = json.loads(lines[number])
    except (ValueError, RecursionError):
        return None
    places: list[tuple[Any, Any]] = []

    def walk(inside: Any) -> None:
        items = inside.items() if isinstance(inside, dict) else enumerate(inside) if isinstance(inside, list) else ()
        for key, item in items:
            places.append((inside, key))
            walk(item)

    walk(value)
    if not places:
        return None
    inside, key = chance.choice(places)
    if isinstance(inside, dict) and chance.random() < 0.2:
        inside[chance.choice([str(value) for value in VALUES])] = inside.pop(key)
    else:
        inside[key] = chance.choice(VALUES)
    lines[number] = json.dumps(value).encode()
    return b"\n".join(lines)


def read_quietly(kind: Kind, folder: Path) -> str:
    """Read the files of a folder; the trace of what is no :class:`UserError`, else nothing."""
    try:
        kind.read(folder)
    except UserError as error:
        if not str(error) or "\n" in str(error).strip():
            return f"the error is no line: {str(error)!r}"
    except Exception:
        return traceback.format_exc()
    return ""


def fuzz(name: str, seconds: float, cases: int, seed: int) -> tuple[int, dict[str, tuple[str, bytes, str]]]:
    """Damage files of a kind for so long, or so often; how often, and what went wrong by where it did."""
    kind, chance, faults, count = KINDS[name], random.Random(seed), {}, 0
    with tempfile.TemporaryDirectory() as place:
        valid, folder = Path(place, "valid"), Path(place, "damaged")
        valid.mkdir()
        kind.make(valid)
        kind.read(valid)
        deadline = time.process_time() + seconds
        while count < cases and time.process_time() < deadline:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(valid, folder)
            file = chance.choice(kind.files)
            content = damaged((valid / file).read_bytes(), chance)
            (folder / file).write_bytes(content)
            count += 1
            faulthandler.dump_traceback_later(60, exit=True)  # a library that never returns can't be stopped otherwise
            trace = read_quietly(kind, folder)
            faulthandler.cancel_dump_traceback_later()
            if trace:
                last = [line.strip() for line in trace.splitlines() if line.strip().startswith("File")][-1:]
                faults.setdefault(f"{last} {trace.splitlines()[-1][:80]}", (file, content, trace))
    return count, faults


def replay(name: str, file: str, content: bytes) -> str:
    """What reading a stored input gives, as :func:`read_quietly`."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as place:
        kind.make(Path(place))
        Path(place, file).write_bytes(content)
        return read_quietly(kind, Path(place))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the processor, for each kind (default 10)")
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    bad = 0
    for name in arguments.only:
        count, faults = fuzz(name, 60 * arguments.minutes, sys.maxsize, arguments.seed)
        print(f"{name}: {count} damaged files, {len(faults)} faults", flush=True)
        for file, content, trace in faults.values():
            place = FOUND / name / f"{hashlib.sha256(content).hexdigest()[:12]}-{file.replace('/', '@')}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            print(f"{place}\n{trace}", flush=True)
        bad += len(faults)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
