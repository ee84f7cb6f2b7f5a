"""When do sentences happen in a video? ``python -m vpgfast.ground CHECKPOINT --video FILE --sentence "..."``.

Prints ranked spans in seconds, and writes them as text, json and a picture.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpgfast.cache import encoded
from vpgfast.checkpoint import Checkpoint, build_model, load_checkpoint, write_file
from vpgfast.command import command, open_log
from vpgfast.config import TrainConfig
from vpgfast.data.batches import make_batch, prepare
from vpgfast.data.text import UNKNOWN, WordVectors, split_sentences, tokenize
from vpgfast.data.types import BatchNeeds, Paragraph
from vpgfast.errors import CheckpointError, FeatureError, UserError
from vpgfast.evaluate import settings_of
from vpgfast.metrics.spans import ranked_spans
from vpgfast.models.method import Method
from vpgfast.models.registry import get_method
from vpgfast.plots import draw_ranked
from vpgfast.run_encoder import encoder_of

log = logging.getLogger("vpgfast.ground")


@dataclass
class Grounding:
    """Where a paragraph's sentences happen.

    Attributes:
        sentences: M of them.
        duration: of the video, in seconds.
        spans: float64 [M, K, 2], seconds, best first; NaN where there are fewer.
        scores: float64 [M, K], on the method's own scale.
    """

    sentences: list[str]
    duration: float
    spans: np.ndarray
    scores: np.ndarray

    def as_text(self) -> str:
        """The sentences with their spans, one a line; several sentences are numbered."""
        lines = []
        for number, (sentence, spans, scores) in enumerate(
            zip(self.sentences, self.spans, self.scores, strict=True), start=1
        ):
            lines.append(f"{number}. {sentence}" if len(self.sentences) > 1 else sentence)
            for rank, ((start, end), score) in enumerate(zip(spans, scores, strict=True), start=1):
                if np.isfinite(start):
                    lines.append(f"{rank:4d}.  {start:8.2f} - {end:8.2f} s   score {score:.4g}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """As ``grounding.json`` holds it."""
        sentences = []
        for sentence, spans, scores in zip(self.sentences, self.spans, self.scores, strict=True):
            found = [
                {"start": round(float(start), 3), "end": round(float(end), 3), "score": float(score)}
                for (start, end), score in zip(spans, scores, strict=True)
                if np.isfinite(start)
            ]
            sentences.append({"sentence": sentence, "spans": found})
        return {"duration": self.duration, "sentences": sentences}


def ground(
    model: Method,
    config: TrainConfig,
    vectors: WordVectors,
    features: np.ndarray,
    duration: float,
    sentences: Sequence[str],
    top: int = 5,
) -> Grounding:
    """Ask a trained method about one video.

    Args:
        model: in evaluation mode, on the CPU or a GPU.
        config: the run's settings.
        vectors: the model's vocabulary.
        features: float32 [T, d_v], any T >= 1; the method's own rule brings a long video down to the clips it takes.
        duration: seconds.
        sentences: at least one, in the order of the paragraph they make (it matters to methods that take paragraphs).
        top: spans a sentence.
    """
    needs = get_method(config.method).needs(config.model)
    paragraph = Paragraph("query", duration, tuple(sentences))
    device = next(model.parameters()).device
    spans, scores = [], []
    for item in prepare([paragraph], needs, training=False):
        batch = make_batch([item], [features], vectors, needs, training=False).to(device)
        with torch.no_grad():
            prediction = model.predict(batch, top)
        spans.append(ranked_spans(prediction, batch)[0])
        scores.append(prediction.scores[0, : len(item.sentences)].double().cpu().numpy())
    return Grounding(list(sentences), duration, _join(spans, top), _join(scores, top))


def _join(parts: Sequence[np.ndarray], top: int) -> np.ndarray:
    """[m_i, k_i, ...] -> [M, top, ...], filled up with NaN."""
    joined = np.full((sum(map(len, parts)), top, *parts[0].shape[2:]), np.nan)
    row = 0
    for part in parts:
        joined[row : row + len(part), : part.shape[1]] = part[:, :top]
        row += len(part)
    return joined


HOW_PARAGRAPHS_ARE_CUT = (
    "of several lines has one sentence a line. A single line is cut after . ! ? and ... that a space or the end "
    "follows, but not after Mr. Mrs. Ms. Dr. Prof. St. vs. e.g. i.e., not after etc., Jr., Sr., a.m., U.S., an "
    "ellipsis or a closing quote where a lower-case letter follows, and not where a piece would have no letter."
)
"""For ``--help``; what :func:`vpgfast.data.text.split_sentences` does."""


def add_query(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Give a command the ways to say what to look for; :func:`asked_sentences` reads them."""
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--sentence", action="append", help="what to look for; may be repeated")
    query.add_argument(
        "--paragraph",
        type=Path,
        metavar="FILE",
        help="text file (UTF-8) with the sentences to look for, in order; - reads standard input; see below",
    )
    return query


def asked_sentences(arguments: argparse.Namespace) -> list[str]:
    """What ``--sentence`` or ``--paragraph`` asks for: at least one sentence, each with a word.

    Raises:
        UserError: there is no word in a sentence; or as :func:`read_paragraph`.
    """
    for number, sentence in enumerate(arguments.sentence or (), start=1):
        if not tokenize(sentence):
            raise UserError(f"--sentence {number} ({sentence!r}) has no word in it")
    return arguments.sentence or read_paragraph(arguments.paragraph)


def read_paragraph(path: Path) -> list[str]:
    """The sentences of a UTF-8 text file, cut by :func:`split_sentences`: at least one, each with a word.

    Args:
        path: of the file; ``-`` is standard input.

    Raises:
        UserError: the file can't be read, is not UTF-8, is empty, or a line of it has no word.
    """
    where = f"--paragraph {path}"
    try:
        content = sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{where}: can't be read ({error.strerror}); give a text file, or - for standard input"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the text as UTF-8"
        ) from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not tokenize(line):
            raise UserError(
                f"{where}, line {number}: {line.strip()!r} has no word in it; write a sentence or delete it"
            )
    sentences = split_sentences(text)
    if not sentences:
        raise UserError(f"{where}: is empty; write at least one sentence")
    log.info("paragraph %s: %d sentences", path, len(sentences))
    return sentences


def read_features(path: Path) -> np.ndarray:
    """float32 [T, d_v] from an ``.npy`` file, or an ``.npz`` with one array or one named "features".

    Raises:
        FeatureError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise FeatureError(f"features {path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            with loaded:
                names = loaded.files
                if "features" not in names and len(names) != 1:
                    raise FeatureError(f"features {path}: needs an array named 'features', has {', '.join(names)}")
                array = loaded["features" if "features" in names else names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FeatureError(f"features {path}: not a readable .npy or .npz file ({error})") from None
    return np.asarray(array)


def unknown_words(sentences: Sequence[str], vectors: WordVectors) -> list[str]:
    """The words that a model has no vector for, in order, each once."""
    words = dict.fromkeys(word for sentence in sentences for word in tokenize(sentence))
    return [word for word in words if vectors.index(word) == UNKNOWN]


def warn_of_unknown_words(sentences: Sequence[str], vectors: WordVectors, needs: BatchNeeds) -> None:
    """Name the words that a method which reads by its vocabulary can't read."""
    unknown = unknown_words(sentences, vectors)
    if unknown and needs.vocabulary:
        log.warning("the model has not seen these words and ignores their meaning: %s", ", ".join(unknown))


def _features(arguments: argparse.Namespace, checkpoint: Checkpoint, config: TrainConfig) -> tuple[np.ndarray, float]:
    """Features [T, d_v] and duration of what the command line names."""
    if arguments.video is not None:
        if arguments.duration is not None:
            raise UserError("--duration goes with --features; a video tells its own")
        encoder = encoder_of(checkpoint, arguments.encoder)
        video = encoded(encoder, arguments.video, arguments.stream, config.data.cache)
        features, duration, where = video.features, video.duration, str(arguments.video)
    else:
        for name in ("encoder", "stream"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name} goes with --video; --features are made already")
        if arguments.duration is None:
            raise UserError("--features needs --duration, the video's length in seconds")
        if not (np.isfinite(arguments.duration) and arguments.duration > 0):
            raise UserError(f"--duration must be above 0 seconds, got {arguments.duration:g}")
        features, duration = read_features(arguments.features), arguments.duration
        where = f"features {arguments.features}"
    return _checked(features, checkpoint, where), duration


def _checked(features: np.ndarray, checkpoint: Checkpoint, where: str) -> np.ndarray:
    if features.ndim != 2 or len(features) == 0 or features.dtype.kind not in "fiu":
        raise FeatureError(f"{where}: an array [clips, width] is needed, found {features.dtype} {list(features.shape)}")
    if features.shape[1] != checkpoint.feature_dim:
        raise CheckpointError(
            f"{where}: width {features.shape[1]}, but the checkpoint takes {checkpoint.feature_dim} "
            f"({checkpoint.feature_source})"
        )
    features = features.astype(np.float32)
    if not np.isfinite(features).all():
        raise FeatureError(f"{where}: holds values that are not finite")
    return features


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast ground``."""
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.ground",
        description="Find when sentences happen in a video.",
        epilog=f"Several --sentence make a paragraph, in that order. A --paragraph {HOW_PARAGRAPHS_ARE_CUT} Settings "
        "of the run can be changed, as in --model.language_model FOLDER where it lies elsewhere now.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file, or the folder of a run")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", type=Path, help="any video file; it is encoded as the model's features were")
    source.add_argument("--features", type=Path, help=".npy or .npz file of clip features [clips, width]")
    parser.add_argument(
        "--encoder", metavar="SPEC", help="the encoder of the model's features, where its weights lie elsewhere now"
    )
    parser.add_argument(
        "--stream", type=int, help="number of the stream in the video file (default: the moving picture)"
    )
    parser.add_argument("--duration", type=float, help="length of the video in seconds, with --features")
    add_query(parser)
    parser.add_argument("--top", type=int, default=5, help="spans a sentence (default 5)")
    parser.add_argument(
        "--output", type=Path, help="folder for the results; default: ground-NAME beside the checkpoint"
    )
    arguments, rest = parser.parse_known_args(argv)
    open_log()
    if arguments.top < 1:
        raise UserError(f"--top must be at least 1, got {arguments.top}")
    sentences = asked_sentences(arguments)

    checkpoint = load_checkpoint(arguments.checkpoint)
    config = settings_of(checkpoint, arguments.checkpoint, rest)
    model = build_model(checkpoint, config.model, arguments.checkpoint)
    features, duration = _features(arguments, checkpoint, config)
    needs = get_method(config.method).needs(config.model)
    warn_of_unknown_words(sentences, checkpoint.word_vectors, needs)
    if len(features) > (limit := needs.max_clips):
        log.info("%d clips are brought down to %d: one is %.1f s", len(features), limit, duration / limit)
    if needs.level == "paragraph" and needs.max_sentences and len(sentences) > needs.max_sentences:
        log.info("the method takes %d sentences at a time: %d are cut into pieces", needs.max_sentences, len(sentences))
    found = ground(model, config, checkpoint.word_vectors, features, duration, sentences, arguments.top)

    print(found.as_text())
    name = (arguments.video or arguments.features).stem
    folder = arguments.checkpoint if arguments.checkpoint.is_dir() else arguments.checkpoint.parent
    output: Path = arguments.output or folder / f"ground-{name}"
    output.mkdir(parents=True, exist_ok=True)
    write_file(output / "grounding.txt", (found.as_text() + "\n").encode())
    write_file(output / "grounding.json", (json.dumps({"video": name, **found.as_dict()}, indent=2) + "\n").encode())
    draw_ranked(
        found.sentences, found.spans, found.scores, duration, output / "grounding.png", f"{name}, {duration:.1f} s"
    )
    print(f"written to {output}: grounding.txt, grounding.json, grounding.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
