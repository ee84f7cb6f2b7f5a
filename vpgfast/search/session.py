"""An index that is open, with its model: asked again and again without starting up."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from vpgfast.checkpoint import settings_of
from vpgfast.data.text import split_sentences, tokenize
from vpgfast.encoders.identity import Identity
from vpgfast.errors import SearchIndexError, UserError
from vpgfast.files import readable
from vpgfast.search.answers import Answer, answer
from vpgfast.search.index import VideoIndex
from vpgfast.search.searcher import Searcher
from vpgfast.train.folder import first_difference

_SAME = 1e-3
"""By which a number of a vector may differ between machines; models and settings differ in the first digits."""


@dataclass
class Session:
    """What a question needs. Several threads may ask one at the same time.

    Attributes:
        index: the videos.
        searcher: the model that made their vectors.
    """

    index: VideoIndex
    searcher: Searcher
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, folder: str | Path, settings: Sequence[str] = (), encoder: str | None = None) -> Session:
        """Open an index.

        Args:
            folder: of the index.
            settings: of the model's run that are changed, as on a command line; none that changes vectors.
            encoder: the encoder of the model's features, where its weights lie elsewhere now.

        Raises:
            SearchIndexError: there is no index, it is damaged, or a setting changes vectors.
            CheckpointError, ConfigError: as for ``evaluate``.
        """
        index = VideoIndex.open(Path(folder))
        index.check_model()
        searcher = Searcher.load(index.model_file, [*index.about["settings"], *settings], encoder)
        if settings:
            _check_same_vectors(index, searcher, settings)
        know_encoder(searcher, index)
        return cls(index, searcher)

    def ask(self, paragraph: str | Sequence[str], *, top: int = 5, spans: int = 1, exact: bool = False) -> list[Answer]:
        """The videos that a paragraph describes best, best first, and when its sentences happen in each.

        Args:
            paragraph: a text, which is cut into sentences, or the sentences.
            top: videos.
            spans: spans a sentence and video.
            exact: leave FAISS aside.

        Raises:
            UserError: there is no word in a sentence; the index holds no video.
        """
        sentences = split_sentences(paragraph) if isinstance(paragraph, str) else list(paragraph)
        sentences = [readable(sentence) for sentence in sentences]
        if not sentences or not all(map(tokenize, sentences)):
            raise UserError(f"the text to look for ({paragraph!r}) has a sentence without a word in it")
        vectors = self.searcher.embed_query(sentences)
        with self._turn:  # while one takes in what has changed, no other is looking
            self.index.refresh()
            (found,) = self.index.search(vectors, top, exact)
        return answer(found, self.index.folder, self.searcher, sentences, spans)


def know_encoder(searcher: Searcher, index: VideoIndex) -> None:
    """Tell a model that does not know what made its features what made those of the index, where that is known."""
    known = index.about["features"].get("encoder")
    if searcher.checkpoint.encoder is None and known is not None:
        searcher.checkpoint.encoder = Identity(**known)


def _check_same_vectors(index: VideoIndex, searcher: Searcher, settings: Sequence[str]) -> None:
    changed = " ".join(settings)
    expected = np.array(index.about.get("probe") or ())
    if not len(expected):
        if not any(setting.startswith("--model") for setting in settings):
            return  # where and how fast the model runs
        raise SearchIndexError(
            f"index {index.folder}: does not say how its model is known again (it is older than that), so whether "
            f"{changed} changes vectors can't be told; leave it out, or make the index anew"
        )
    found = np.array(searcher.probe())
    if found.shape != expected.shape or np.abs(found - expected).max() > _SAME:
        made = settings_of(searcher.checkpoint, index.model_file, index.about["settings"])
        difference = first_difference(*({"model": asdict(one.model)} for one in (made, searcher.config)))
        raise SearchIndexError(
            f"index {index.folder}: {changed} changes vectors, and those in the index were made without "
            f"({difference}); leave it out, or make an index with it"
        )
