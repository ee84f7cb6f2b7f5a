"""The k best of what a search has seen so far."""

from __future__ import annotations

import numpy as np


class Best:
    """The k best of what was seen so far, of each of Q queries."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = np.full((queries, k), -np.inf, np.float32)
        self.places = np.full((queries, k), -1, np.int64)

    def take(self, scores: np.ndarray, places: np.ndarray, rows: slice = slice(None)) -> None:
        """Scores [q, n] of places [n], for some of the queries."""
        scores = np.concatenate((self.scores[rows], scores), axis=1)
        places = np.concatenate((self.places[rows], np.broadcast_to(places, (len(scores), len(places)))), axis=1)
        if self.k < scores.shape[1]:
            kept = np.argpartition(-scores, self.k - 1, axis=1)[:, : self.k]
            scores, places = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(places, kept, axis=1)
        self.scores[rows], self.places[rows] = scores, places

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Best first; equal ones in the order of the index."""
        order = np.stack([np.lexsort(pair) for pair in zip(self.places, -self.scores, strict=True)])
        return np.take_along_axis(self.scores, order, axis=1), np.take_along_axis(self.places, order, axis=1)
