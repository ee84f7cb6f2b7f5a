"""The ops as modules, to put in the place of what published grounding code has. See docs/drop_in.md."""

from .anchor_cross_attention import AnchorCrossAttention

__all__ = ["AnchorCrossAttention"]
