"""From Python: ``model = vpgfast.load(...)``, then :class:`Grounder`'s ``encode``, ``ground``, ``find`` and
``save_pretrained``. The commands are thin over it."""

from vpgfast.api.grounder import EncodedVideo, Grounder
from vpgfast.api.loading import load
from vpgfast.ground.grounding import Grounding, Sentence

__all__ = ["EncodedVideo", "Grounder", "Grounding", "Sentence", "load"]
