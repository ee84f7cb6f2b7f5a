"""A model, and what it can be asked."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpgfast.api import sharing
from vpgfast.cache import encoded
from vpgfast.checkpoint import Checkpoint
from vpgfast.config import TrainConfig
from vpgfast.data.text import tokenize
from vpgfast.data.video_folders import named_videos
from vpgfast.errors import CheckpointError, FeatureError, UserError
from vpgfast.files import readable
from vpgfast.ground.grounding import Grounding, ground, warn_of_unknown_words
from vpgfast.models.method import Method
from vpgfast.models.registry import get_method


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """A video as a model sees it; encoded once, it can be asked about as often as one likes.

    Attributes:
        name: of the video.
        path: its file, where there is one.
        features: float32 [T, d_v].
        duration: seconds.
        problems: what is odd about the file, a line each.
    """

    name: str
    path: Path | None
    features: np.ndarray
    duration: float
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"EncodedVideo({self.name!r}, {self.duration:.1f} s, {len(self.features)} clips)"


class Grounder:
    """A model that says when sentences happen in videos. Made by :func:`vpgfast.load`.

    Several threads may ask one Grounder at the same time.

    Attributes:
        method: name of its method.
        corpus: what it was trained on, or "none".
        source: what it was loaded from.
        results: metrics beside baselines and control, as its run's ``metrics.json`` has them; ``None`` if not known.
        model: the network, in evaluation mode.
        config: the settings of its run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainConfig,
        model: Method,
        source: str,
        results: dict[str, Any] | None = None,
        encoder: str | None = None,
    ) -> None:
        self.method, self.corpus, self.source, self.results = checkpoint.method, checkpoint.corpus, source, results
        self.model, self.config, self.checkpoint = model, config, checkpoint
        self._spec = encoder
        self._encoder: Any = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Grounder({self.source!r}: {self.method}, trained on {self.corpus})"

    @property
    def encoder(self) -> Any:
        """The encoder of its features (:class:`vpgfast.encoders.base.Encoder`), loaded when it is first asked for.

        Raises:
            CheckpointError, ConfigError: what made the features is not known, or its weights are not there.
        """
        with self._lock:
            if self._encoder is None:
                from vpgfast.run_encoder import encoder_of  # and PyAV with it

                device = next(self.model.parameters()).device
                self._encoder = encoder_of(self.checkpoint, self._spec, device)
            return self._encoder

    def encode(self, video: str | Path, *, stream: int | None = None) -> EncodedVideo:
        """A video file as the model sees it; from the cache, where the same encoder has seen it before.

        Args:
            video: any file that FFmpeg decodes.
            stream: number of the stream in the file; ``None``: the moving picture.

        Raises:
            VideoError: it can't be read; names the file.
        """
        path = Path(video)
        found = encoded(self.encoder, path, stream, self.config.data.cache)
        return EncodedVideo(path.stem, path, found.features, found.duration, found.problems)

    def video_of(self, features: np.ndarray, duration: float, name: str = "video") -> EncodedVideo:
        """A video whose features are there already.

        Args:
            features: numbers [T, d_v], as the model's own features.
            duration: of the video, seconds.
            name: what to call it, also in errors.

        Raises:
            FeatureError: they are no such array, or not finite.
            CheckpointError: they are of another width.
        """
        return EncodedVideo(name, None, self._checked(features, name), float(duration))

    def ground(self, video: EncodedVideo | str | Path, sentences: str | Sequence[str], *, top: int = 5) -> Grounding:
        """When sentences happen in a video.

        Args:
            video: encoded, or a file.
            sentences: one, or those of a paragraph in their order, which matters to methods of paragraphs.
            top: spans a sentence.

        Raises:
            UserError: a sentence has no word, or as :meth:`encode`.
        """
        if not isinstance(video, EncodedVideo):
            video = self.encode(video)
        asked = _sentences(sentences)
        if top < 1:
            raise UserError(f"top must be at least 1, got {top}")
        features = self._checked(video.features, str(video.path or video.name))
        vectors = self.checkpoint.word_vectors
        warn_of_unknown_words(asked, vectors, get_method(self.method).needs(self.config.model))
        found = ground(self.model, self.config, vectors, features, video.duration, asked, top)
        found.video = video.name
        return found

    def find(
        self,
        videos: str | Path | EncodedVideo | Iterable[str | Path | EncodedVideo],
        sentences: str | Sequence[str],
        *,
        top: int = 5,
        in_order: bool = True,
        false_alarms: float = 0.05,
    ) -> list[Any]:
        """The moments of several videos that sentences fit, best first; for models without training.

        Args:
            videos: files, folders and encoded videos.
            sentences: one, or a paragraph.
            top: moments of one sentence; of a paragraph, one moment a sentence in so many videos.
            in_order: whether a paragraph's sentences happen one after the other.
            false_alarms: share of unrelated sentences that may be taken for fitting.

        Returns:
            :class:`vpgfast.find.moments.Moment`, with ``fits`` false where nothing better was there.

        Raises:
            UserError: the model was trained: its scores can't be compared between videos, ask :meth:`ground`.
        """
        if self.method != "similarity":
            raise UserError(
                f"find compares videos, which the scores of {self.method} don't; ask ground about each video, or load "
                "an encoder that reads text (objects, clip:FOLDER)"
            )
        from vpgfast.find.moments import Asked, ask, best

        asked = _sentences(sentences)
        ordered = in_order and len(asked) > 1
        question = Asked(self.encoder, asked, ordered, false_alarms)
        several = [videos] if isinstance(videos, str | Path | EncodedVideo) else list(videos)
        ready = [video for video in several if isinstance(video, EncodedVideo)]
        files = named_videos([Path(video) for video in several if not isinstance(video, EncodedVideo)])
        moments = []
        for video in [*ready, *(self.encode(path) for path in files.values())]:
            moments += ask(question, video.name, video.path or Path(video.name), video, top)
        return best(moments, top, ordered)

    def save_pretrained(self, folder: str | Path, *, license: str = "other", name: str | None = None) -> Path:
        """Write the model to be shared: ``model.safetensors``, ``config.json`` and a card, ``README.md``.

        Args:
            folder: is made; these files in it are replaced.
            license: for the card, as Hugging Face names them ("mit", "apache-2.0", ...).
            name: what others will load it by, "user/name", for the card; default: the folder.

        Returns:
            The folder.

        Raises:
            CheckpointError: it can't be written.
        """
        return sharing.save(self, Path(folder), license, name)

    def push_to_hub(self, name: str, *, license: str = "other", private: bool = False, token: str | None = None) -> str:
        """Upload what :meth:`save_pretrained` writes to Hugging Face's hub.

        Args:
            name: "user/name"; is made if it is not there.
            license: see :meth:`save_pretrained`.
            private: whether a new repository is.
            token: of the hub; default: the one that ``hf auth login`` keeps.

        Returns:
            Its address.

        Raises:
            UserError: huggingface_hub is not installed, or the hub refuses; says why.
        """
        return sharing.push(self, name, license, private, token)

    def _checked(self, features: np.ndarray, where: str) -> np.ndarray:
        features = np.asarray(features)
        kind = features.dtype.kind
        if features.ndim != 2 or len(features) == 0 or kind not in "fiu":
            raise FeatureError(
                f"{where}: an array [clips, width] is needed, found {features.dtype} {list(features.shape)}"
            )
        if features.shape[1] != self.checkpoint.feature_dim:
            raise CheckpointError(
                f"{where}: width {features.shape[1]}, but the checkpoint takes {self.checkpoint.feature_dim} "
                f"({self.checkpoint.feature_source})"
            )
        features = features.astype(np.float32, copy=False)
        if not np.isfinite(features).all():
            raise FeatureError(f"{where}: holds values that are not finite")
        return features


def _sentences(sentences: str | Sequence[str]) -> list[str]:
    asked = [sentences] if isinstance(sentences, str) else list(sentences)
    if not asked:
        raise UserError("no sentence is given")
    for number, sentence in enumerate(asked, start=1):
        if not isinstance(sentence, str) or not tokenize(sentence):
            raise UserError(f"sentence {number} ({sentence!r}) has no word in it")
    return [readable(sentence) for sentence in asked]
