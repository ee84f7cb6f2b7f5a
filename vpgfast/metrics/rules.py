"""How predictions are judged, and what the results are called: settings, so ``--help`` needs them, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vpgfast.errors import ConfigError

DIDEMO_MOMENTS = 21
"""Of a video of six segments: all have to be ranked for Rank@1 and Rank@5."""


@dataclass(frozen=True)
class MetricRules:
    """How predictions are judged; the defaults are the rules of SeqPAN, VSLNet and TALL.

    Attributes:
        top_n: the n of R@n: a sentence counts if any of its n best spans fits.
        thresholds: the m of IoU >= m.
        comparison: ">=", or ">" as in 2D-TAN's evaluator; they differ only where an IoU equals m.
        clips: compare spans as whole clips of a video cut into this many; null compares seconds as annotated.
        segment_seconds: compare spans as whole segments of this length (DiDeMo: 5), which is DiDeMo's inclusive IoU.
        annotators: of several annotators' spans, "best3" averages the three highest IoUs (DiDeMo's protocol, adds
            Rank@1 and Rank@5), "majority" takes the interval that most of them chose.
        sentence_order: order in which a sentence counts as the m-th of its paragraph for the baselines and the control:
            "time" (start, then end) or "file" (as annotated).
        average_precision: add mAP@0.5, mAP@0.75 and mAP (the mean over IoU 0.5, 0.55, ..., 0.95), which ask for all
            moments of a sentence that has several (QVHighlights).
    """

    top_n: tuple[int, ...] = (1, 5)
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
    comparison: Literal[">=", ">"] = ">="
    clips: int | None = None
    segment_seconds: float | None = None
    annotators: Literal["best3", "majority"] = "majority"
    sentence_order: Literal["time", "file"] = "time"
    average_precision: bool = False

    def __post_init__(self) -> None:
        if self.clips is not None and self.segment_seconds is not None:
            raise ConfigError("metrics: give clips or segment_seconds, not both")
        if not self.top_n or not self.thresholds or min(self.top_n) < 1:
            raise ConfigError("metrics: top_n needs whole numbers from 1 on, and thresholds at least one")


def metric_names(rules: MetricRules) -> list[str]:
    """The columns that :func:`score` returns, in its order."""
    names = [f"R@{n} IoU={threshold:g}" for n in rules.top_n for threshold in rules.thresholds]
    didemo = ["Rank@1", "Rank@5"] if rules.annotators == "best3" else []
    return [*names, "mIoU", *didemo, *(["mAP@0.5", "mAP@0.75", "mAP"] if rules.average_precision else [])]
