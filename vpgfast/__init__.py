"""vpgfast: fast video grounding in PyTorch. When does each sentence happen in a video?

    model = vpgfast.load("objects")                     # or a run, a checkpoint, "user/name" on a hub
    found = model.ground("clip.mp4", ["A man opens a door.", "He sits down."])
    found[0].spans, found[0].scores

Nothing is imported before it is asked for: the ops, ``vpgfast.ops``, need torch and numpy alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpgfast.api import EncodedVideo, Grounder, Grounding, load

__version__ = "0.1.0"
__all__ = ["EncodedVideo", "Grounder", "Grounding", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("vpgfast.api"), name)
    raise AttributeError(f"module 'vpgfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
