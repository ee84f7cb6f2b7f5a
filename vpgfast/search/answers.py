"""The videos that fit a paragraph, with its moments in them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vpgfast.errors import FeatureError, VideoError
from vpgfast.ground.grounding import Grounding
from vpgfast.search.index import Found
from vpgfast.search.searcher import Searcher
from vpgfast.search.sources import features_again, where_is

log = logging.getLogger(__name__)


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
        return {**self.grounding.to_dict(curves=False), **about}


def answer(
    found: Sequence[Found], index: Path, searcher: Searcher, sentences: Sequence[str], spans: int
) -> list[Answer]:
    """When a paragraph's sentences happen in each of the videos that were found for it.

    Args:
        found: the videos.
        index: its folder.
        sentences: of the paragraph, in order.
        spans: spans a sentence and video.
    """
    answers = []
    for one in tqdm(found, desc="grounding", unit="video", delay=2, leave=False, disable=None):
        path = where_is(one.video, index)
        try:
            features = features_again(one.video, index, searcher.checkpoint.feature_dim, searcher)
        except (FeatureError, VideoError) as error:
            log.warning("video %s is found but can't be grounded: %s", one.video.video_id, error)
            answers.append(Answer(one, path, None, str(error)))
            continue
        answers.append(Answer(one, path, searcher.ground(features, one.video.duration, sentences, spans)))
    return answers
