"""What answers: an encoder that nobody trained, or a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vpgfast.api.loading import load_with
from vpgfast.data.types import Paragraph
from vpgfast.encoders.base import Encoded, Encoder, load_encoder
from vpgfast.errors import CheckpointError, ConfigError, UserError
from vpgfast.files import MODEL_FILE
from vpgfast.find.moments import Asked, Moment, ask, best, unrelated_scores
from vpgfast.find.run import default_encoder
from vpgfast.ground.grounding import ground, unknown_words
from vpgfast.models.embed import embed_clips, embed_texts, finds_videos
from vpgfast.models.registry import get_method
from vpgfast.page.content import Content, Video
from vpgfast.page.results import asked as title_of
from vpgfast.page.results import find_content, grounded
from vpgfast.serve.library import Entry
from vpgfast.untrained import METHOD, is_untrained

FALSE_ALARMS = 0.05
"""As of ``find``."""


MOST_SHOWN = 20
"""Videos that a model grounds for a question, if it can't say which fit better."""


class Model(Protocol):
    """What a page is answered by; asked by one thread at a time."""

    encoder: Encoder
    name: str
    cache: Path | None

    def warm_up(self) -> None:
        """Do what the first question would wait for."""

    def answer(self, entries: Sequence[Entry], sentences: Sequence[str], top: int) -> Content:
        """The moments of sentences in videos that are ready."""


def load_model(given: Path | None, encoder: str | None = None) -> Model:
    """The model that a command line names; ``None``: the encoder that ``find`` takes.

    Args:
        given: a run, a checkpoint, or an encoder's spec.
        encoder: where the encoder of a trained model's features is now.

    Raises:
        UserError: one of its kinds, as ``find`` and ``ground`` raise.
    """
    if given is None or is_untrained(given):
        if encoder is not None:
            raise UserError("--encoder goes with a trained model; name the encoder itself as MODEL")
        return Untrained(default_encoder() if given is None or str(given) == METHOD else str(given))
    if given.is_dir() and not (given / MODEL_FILE).is_file():
        raise CheckpointError(
            f"{given}: holds no {MODEL_FILE}, so it is no run; a folder of videos is --library {given}"
        )
    return Trained(given, encoder)


class Untrained:
    """``find``'s way: an encoder with a text tower; scores can be compared between videos."""

    cache: Path | None = None

    def __init__(self, spec: str) -> None:
        self.encoder, self.name = load_encoder(spec), spec
        if not self.encoder.has_text:
            raise ConfigError(f"encoder {spec}: reads no text, so it answers nothing untrained; objects and clip do")
        self._reader = _ReadsOnce(self.encoder)
        self._chance: dict[tuple[str, tuple[int, int]], np.ndarray] = {}

    def warm_up(self) -> None:
        """Read the sentences that every question is compared with."""
        nothing = Encoded(np.ones((1, self.encoder.dim), np.float32), np.array([[0.0, 1.0]]), 1.0)
        unrelated_scores(Asked(self._reader, ["x"], False, FALSE_ALARMS), "nothing", nothing)

    def answer(self, entries: Sequence[Entry], sentences: Sequence[str], top: int) -> Content:
        in_order = len(sentences) > 1
        asked = Asked(self._reader, sentences, in_order, FALSE_ALARMS)
        moments: list[Moment] = []
        durations = {}
        for entry in entries:
            video = _features(entry)
            key = (entry.name, entry.stamp)
            if key not in self._chance:
                self._chance[key] = unrelated_scores(asked, entry.name, video)
            durations[entry.name] = video.duration
            moments += ask(asked, entry.name, entry.path, video, top, self._chance[key])
        fitting = {moment.video for moment in moments if moment.fits}
        fit = [moment for moment in moments if moment.fits or (in_order and moment.video in fitting)]
        shown = best(fit or moments, top, in_order)
        return find_content(shown, sentences, durations, self.name)


class Trained:
    """``ground``'s way: a trained model. The videos come by how well they fit, if its method finds videos."""

    def __init__(self, given: Path, encoder: str | None) -> None:
        loaded = load_with(given, [], encoder)
        self._checkpoint, self._config, self._model = loaded.checkpoint, loaded.config, loaded.model
        self._needs = get_method(loaded.method).needs(loaded.config.model)
        self.encoder: Encoder = loaded.encoder
        self.name, self.cache = f"{loaded.method} ({given})", loaded.config.data.cache

    def warm_up(self) -> None:
        pass

    def answer(self, entries: Sequence[Entry], sentences: Sequence[str], top: int) -> Content:
        vectors = self._checkpoint.word_vectors
        videos = []
        scores = self._scores(entries, sentences)
        order = np.argsort(-scores, kind="stable")[:top] if scores is not None else np.arange(len(entries))[:MOST_SHOWN]
        for place in order:
            entry, features = entries[place], _features(entries[place])
            found = ground(self._model, self._config, vectors, features.features, features.duration, sentences, top)
            video = grounded(found, entry.name, entry.path)
            score = None if scores is None else float(scores[place])
            videos.append(Video(video.name, video.duration, video.lanes, entry.path, score))
        about = f"Looked through {len(entries)} videos with {self.name}."
        if scores is None and len(entries) > 1:
            about += " This method can't say which video fits better: they come by name"
            about += f", the first {MOST_SHOWN}; choose one below to ask it." if len(entries) > MOST_SHOWN else "."
        unknown = unknown_words(sentences, vectors) if self._needs.vocabulary else []
        status = f"The model has not seen these words and ignores them: {', '.join(unknown)}." if unknown else ""
        return Content(title_of(sentences), videos, about, status)

    def _scores(self, entries: Sequence[Entry], sentences: Sequence[str]) -> np.ndarray | None:
        """How well each video fits the paragraph, float32 [B]; ``None`` if the method can't say."""
        if not entries or not finds_videos(self._config.method):
            return None
        device = torch.device("cpu")
        videos = embed_clips(self._model, [_features(entry).features for entry in entries], self._needs, device)
        paragraph = Paragraph("query", 1.0, tuple(sentences))
        width, vectors = self._checkpoint.feature_dim, self._checkpoint.word_vectors
        scores: np.ndarray = videos @ embed_texts(self._model, [paragraph], vectors, self._needs, width, device)[0]
        return scores


def _features(entry: Entry) -> Encoded:
    assert entry.video is not None, "only videos that are ready are asked"
    return entry.video


class _ReadsOnce:
    """An encoder's text tower that reads a sentence once: the unrelated ones come with every question."""

    MOST = 4096

    def __init__(self, encoder: Encoder) -> None:
        self.dim, self.device, self._encoder = encoder.dim, encoder.device, encoder
        self._known: dict[str, Tensor] = {}

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(sentences) if text not in self._known]
        if len(self._known) + len(new) > self.MOST:
            self._known.clear()
            new = list(dict.fromkeys(sentences))
        if new:
            self._known.update(zip(new, self._encoder.encode_text(new), strict=True))
        return torch.stack([self._known[text] for text in sentences])
