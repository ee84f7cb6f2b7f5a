"""Random paragraphs with their videos, for the benchmarks of training steps."""

from __future__ import annotations

import numpy as np
import torch

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, Paragraph

FEATURE_DIM, WORD_DIM, WORDS = 500, 300, 13  # of C3D features and GloVe vectors; words of a sentence


def random_vectors(vocabulary: int) -> WordVectors:
    """Word vectors of a vocabulary all of whose words are counted as nouns or verbs, the later the more often."""
    words = ["<pad>", "<unk>", *map(str, range(vocabulary - 2))]
    numbers = np.random.default_rng(0).standard_normal((vocabulary, WORD_DIM), dtype=np.float32)
    return WordVectors(words, numbers, "random", content_counts=np.maximum(np.arange(vocabulary) - 1, 0))


def random_batch(B: int, sentences: int, clips: int, vocabulary: int) -> Batch:
    """B paragraphs of equally many sentences, each with a video of its own."""
    mask = torch.ones(B, sentences, WORDS, dtype=torch.bool)
    batch = Batch(
        paragraphs=[Paragraph(str(b), 100.0, ("",) * sentences) for b in range(B)],
        video=torch.randn(B, clips, FEATURE_DIM),
        video_mask=torch.ones(B, clips, dtype=torch.bool),
        words=torch.randint(1, vocabulary, mask.shape),
        word_mask=mask,
        sentence_mask=torch.ones(B, sentences, dtype=torch.bool),
        durations=torch.full((B,), 100.0, dtype=torch.float64),
    )
    batch.words[0, 0, 0] = 1  # an unknown word, whose vector is trained
    return batch
