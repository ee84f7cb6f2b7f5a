"""Which clips show a sentence, learned from whose video it describes: nobody's paper, what SiamGTR and DMR-JRG lack.

Sentences and clips are compared as they are by themselves, before any context: an encoded clip knows its whole video
and an encoded sentence its whole paragraph, and then nothing has to be about the event. Where sentences say little by
themselves, paragraphs can be read as a whole instead, :mod:`vpgfast.models.paragraph_alignment`.

Letters: B paragraphs with their videos; M sentences; N sentences of the whole batch, without padding; T clips; D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch
from vpgfast.models.layers import at_least_float32, mlp, same_videos, to_paragraphs
from vpgfast.models.paragraph_alignment import ParagraphReader, ordered_evidence, paragraph_alignment_loss


class Alignment(nn.Module):
    """How similar clips are to a sentence. Neither side sees its context: both are what they are by themselves.

    Args:
        dim: D.
        share: of :func:`similar_spans`.
        gap: of :func:`~vpgfast.models.paragraph_alignment.ordered_scores`.
        paragraphs: the vocabulary, where paragraphs are read as a whole: a sentence is then also what was said before
            it, and is looked for in the order of its paragraph.
    """

    def __init__(self, dim: int, share: float, gap: int = 1, paragraphs: WordVectors | None = None) -> None:
        super().__init__()
        self.share, self.gap = share, gap
        self.reader = None if paragraphs is None else ParagraphReader(paragraphs, dim)
        self.clips = nn.Sequential(nn.LayerNorm(dim), mlp(dim, dim, dim))
        self.scale = nn.Parameter(torch.tensor([math.log(10.0)]))  # [1]: FSDP takes no scalar

    def similarity(self, sentences: Tensor, clips: Tensor) -> Tensor:
        """Cosines, times a learned scale, of sentences F_s [N, D] and clips F_v [B, T, D]: [N, B, T]."""
        return (self.of_sentences(sentences) @ self.of_clips(clips).flatten(0, 1).t()).unflatten(1, clips.shape[:2])

    def read(self, sentences: Tensor, batch: Batch) -> Tensor:
        """The N sentences [N, D] of a batch as they are compared."""
        return sentences if self.reader is None else sentences + self.reader(batch).to(sentences.dtype)

    def loss(self, similarity: Tensor, batch: Batch) -> Tensor:
        """Of similarities [N, B, T]: :func:`alignment_loss`, or that of paragraphs."""
        if self.reader is None:
            return alignment_loss(similarity, batch.sentence_mask, same_videos(batch))
        return paragraph_alignment_loss(similarity, batch.sentence_mask, same_videos(batch), self.gap)

    def located(self, similarity: Tensor, sentences: Tensor) -> Tensor:
        """Similarities of N sentences and the clips of their video [N, T], lowered, to the least of a sentence at most,
        where the other sentences of its paragraph leave no room for it; bool [B, M] says which sentences there are."""
        if self.reader is None:
            return similarity
        return self._evidence(similarity, sentences).maximum(similarity.amin(1, keepdim=True))

    def spans(self, similarity: Tensor, sentences: Tensor) -> Tensor:
        """The stretch of each of N sentences, [N, 2], as :func:`similar_spans`; arguments as of :meth:`located`."""
        evidence = None if self.reader is None else self._evidence(similarity, sentences)
        return similar_spans(similarity, self.share, evidence)

    def _evidence(self, similarity: Tensor, sentences: Tensor) -> Tensor:
        return ordered_evidence(to_paragraphs(similarity, sentences), sentences, self.gap)[sentences]

    def of_sentences(self, sentences: Tensor) -> Tensor:
        """[..., D] -> vectors as long as the scale."""
        return F.normalize(at_least_float32(sentences), dim=-1) * self.scale.exp().clamp(max=50)

    def of_clips(self, clips: Tensor) -> Tensor:
        """[..., D] -> vectors of length 1."""
        return F.normalize(at_least_float32(self.clips(clips)), dim=-1)


def alignment_loss(similarity: Tensor, sentences: Tensor, same_video: Tensor) -> Tensor:
    """Whose video does a sentence describe, and which sentence describes a video? The sum of both cross-entropies.

    A video is as similar to a sentence as its best clips are, by log-sum-exp (MIL-NCE: Miech et al., CVPR 2020). The
    other sentences of a video, and other items of the same video, are no negatives.

    Args:
        similarity: [N, B, T].
        sentences: bool [B, M], which there are; the N in their order.
        same_video: bool [B, B].
    """
    own = sentences.nonzero()[:, 0]
    number, item = torch.arange(len(own), device=own.device), torch.arange(len(sentences), device=own.device)
    of_video = similarity.logsumexp(2)
    of_sentence = of_video.t()[own]  # [N, N]: the video of each sentence with every sentence
    other_item = same_video[own] & (item != own.unsqueeze(1))
    other_sentence = same_video[own][:, own] & (number != number.unsqueeze(1))
    return F.cross_entropy(of_video.masked_fill(other_item, -torch.inf), own) + F.cross_entropy(
        of_sentence.masked_fill(other_sentence, -torch.inf), number
    )


def own_video(similarity: Tensor, sentences: Tensor) -> Tensor:
    """Of the N sentences that bool [B, M] ``sentences`` says there are, [N, B, T], each with its own video: [N, T]."""
    own = sentences.nonzero()[:, 0]
    return similarity[torch.arange(len(own), device=own.device), own]


@torch.no_grad()
def similar_spans(similarity: Tensor, share: float, evidence: Tensor | None = None) -> Tensor:
    """The stretch around each sentence's best clip whose similarities exceed a level by the most in sum.

    The best clip, and the level, are found among similarities that are smoothed over 3 clips: the level lies ``share``
    of the way from a clip that is surely no part of the event, the best of the worst tenth, to the best one. From the
    best clip the stretch grows to either side until its sum has fallen by that whole way (as an X-drop: Altschul et
    al., 1990). So it bridges the dips of a clip or two that noise makes, and does not reach the next event.

    Args:
        similarity: of N sentences and the clips of one video each, [N, T].
        share: 0 to 1.
        evidence: by which the best clip is chosen, where not by similarity, [N, T].

    Returns:
        [N, 2], fractions of the duration.
    """
    T = similarity.shape[1]
    smooth = _smooth(similarity)
    place = (smooth if evidence is None else _smooth(evidence)).argmax(1, keepdim=True)
    best = smooth.gather(1, place)
    low = smooth.kthvalue(math.ceil(T / 10), 1, keepdim=True).values
    excess, drop = similarity - torch.lerp(low, best, share), (best - low).clamp_min(0)
    end = _end_of_growth(excess, place, drop)
    start = T - _end_of_growth(excess.flip(1), T - 1 - place, drop)
    return torch.stack([start, end], 1).to(smooth.dtype) / T


def _smooth(x: Tensor) -> Tensor:
    """[N, T], each clip with half of both neighbours."""
    T = x.shape[1]
    return (x[:, [0, *range(T - 1)]] + 2 * x + x[:, [*range(1, T), T - 1]]) / 4


def _end_of_growth(excess: Tensor, first: Tensor, drop: Tensor) -> Tensor:
    """Behind which clip a stretch that grows from clip ``first`` [N, 1] ends: int64 [N], of ``excess`` [N, T].

    Its sum is the greatest one that comes before a sum that is more than ``drop`` [N, 1] below the greatest so far.
    """
    lowest = torch.finfo(excess.dtype).min
    ahead = torch.arange(excess.shape[1], device=excess.device) < first
    total = excess.masked_fill(ahead, 0).cumsum(1).masked_fill(ahead, lowest)
    fallen = total.cummax(1).values - total > drop
    return total.masked_fill(fallen.cumsum(1) > 0, lowest).argmax(1) + 1
