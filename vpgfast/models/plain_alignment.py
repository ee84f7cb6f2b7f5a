"""``plain_alignment``: the alignment of SiamGTR and DMR-JRG alone. What their networks add has to be more than this.

A bidirectional GRU reads each sentence, one linear layer each clip; the two are compared by :class:`Alignment`, and
spans are read off the similarities. No encoder, no decoder, no pseudo video: nothing sees the rest of a paragraph or of
a video.

Letters: B paragraphs with their videos; M sentences, N of the whole batch without padding; W words; T clips; D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Prediction
from vpgfast.models.alignment import Alignment, own_video
from vpgfast.models.candidates import Candidates
from vpgfast.models.configs.plain_alignment import PlainAlignmentConfig
from vpgfast.models.layers import Linear, WordEmbedding, to_paragraphs
from vpgfast.models.method import Method
from vpgfast.models.ordered import put_in_order
from vpgfast.models.siamgtr import moved_spans, shares_inside
from vpgfast.models.siamgtr_training import guidance_loss


class PlainAlignment(Method):
    """See the module."""

    name = PlainAlignmentConfig.method
    Config = PlainAlignmentConfig
    config: PlainAlignmentConfig

    @staticmethod
    def needs(config: PlainAlignmentConfig) -> BatchNeeds:
        """Paragraphs, the labelled share of them with spans, every video brought to T clips."""
        return BatchNeeds(
            level="paragraph",
            labelled_share={"weakly": 0.0, "semi": config.labelled_share, "fully": 1.0}[config.supervision],
            max_clips=config.max_clips,
            resample="pool",
            fixed_length=True,
            max_words=config.max_words,
            max_sentences=config.max_sentences,
            sentence_order=config.sentence_order,
        )

    def __init__(self, config: PlainAlignmentConfig, feature_dim: int, word_vectors: WordVectors) -> None:
        super().__init__(config, feature_dim, word_vectors)
        self.config = config
        self.words = WordEmbedding(word_vectors.vectors)
        self.gru = nn.GRU(word_vectors.dim, config.dim, bidirectional=True, batch_first=True)
        self.sentence = nn.Linear(2 * config.dim, config.dim)
        self.clips = Linear(feature_dim, config.dim)
        paragraphs = word_vectors if config.alignment_reads == "paragraphs" else None
        self.alignment = Alignment(config.dim, config.pseudo_span_share, config.alignment_gap, paragraphs)

    def forward(self, batch: Batch) -> Tensor:
        """Similarities of all sentences with the clips of all videos, [N, B, T]."""
        words, mask = batch.words[batch.sentence_mask], batch.word_mask[batch.sentence_mask]
        packed = pack_padded_sequence(self.words(words), mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        sentences = self.alignment.read(self.sentence(torch.cat([last[0], last[1]], 1)), batch)
        return self.alignment.similarity(sentences, self.clips(batch.video))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` = ``alignment`` and, unless weakly supervised, ``label``."""
        there, similarity = batch.sentence_mask, self(batch)
        losses = {"alignment": self.alignment.loss(similarity, batch)}
        total = losses["alignment"]
        if self.config.supervision != "weakly":
            losses["label"] = self.label_loss(own_video(similarity, there), batch)
            total = total + self.config.label_weight * losses["label"]
        return {"loss": total, **losses}

    def label_loss(self, similarity: Tensor, batch: Batch) -> Tensor:
        """Asks that the clips inside the span, and none outside, be similar to the sentence; of several moments, those
        inside the one that is nearest to that already.

        Args:
            similarity: of the N sentences and the clips of their video, [N, T].
            batch: some of whose paragraphs have spans; the mean over their sentences counts as their share of all.
        """
        if batch.spans is None or batch.labelled is None:
            return similarity.sum() * 0
        there = batch.sentence_mask
        spans, exist = batch.true_spans
        of_moment = [guidance_loss(similarity, spans[there][:, a].to(similarity.dtype)) for a in range(spans.shape[2])]
        error = torch.stack(of_moment, 1).masked_fill(~exist[there], torch.inf).amin(1)
        labelled = batch.labelled.unsqueeze(1).expand_as(there)[there]
        return error.masked_fill(~labelled, 0).mean() / self.needs(self.config).labelled_share

    @torch.no_grad()
    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        """The one span of each sentence; its score is the share inside of the softmax over clips."""
        there = batch.sentence_mask
        similarity = own_video(self(batch), there)
        spans = self.alignment.spans(similarity, there)
        scores = (similarity.softmax(1) * shares_inside(spans, similarity.shape[1])).sum(1)
        padded = to_paragraphs(spans, there)
        seconds = padded * batch.durations[:, None, None]
        prediction = Prediction(
            spans=F.pad(seconds.unsqueeze(2), (0, 0, 0, top_n - 1)),
            scores=F.pad(to_paragraphs(scores, there, -torch.inf).unsqueeze(2), (0, top_n - 1), value=-torch.inf),
        )
        if self.config.decode == "independent":
            return prediction
        moved, masses = moved_spans(padded, to_paragraphs(similarity.softmax(1), there))
        candidates = Candidates(moved * batch.durations[:, None, None, None], masses)
        ordered = put_in_order(prediction, candidates, there)
        ordered.scores[:, :, 1:] = -torch.inf  # the one span, as before
        return ordered

    @torch.no_grad()
    def candidates(self, batch: Batch, count: int) -> Candidates:
        """As :class:`Method`: log-sum-exp of the similarities inside the span, as the loss compares videos."""
        similarity = own_video(self(batch), batch.sentence_mask)
        spans = self.alignment.spans(similarity, batch.sentence_mask)
        inside = shares_inside(spans, similarity.shape[1]).clamp_min(1e-9).log()
        scores = (similarity + inside.to(similarity.dtype)).logsumexp(1)
        return Candidates((spans * batch.durations[:, None])[:, None], scores[:, None])
