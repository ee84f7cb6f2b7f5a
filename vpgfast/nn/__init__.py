"""The ops as modules, to put in the place of what published grounding code has (docs/drop_in.md). Needs torch alone."""

from .anchor_cross_attention import AnchorCrossAttention
from .boundary_matching import BoundaryMatching
from .temporal_map_conv2d import TemporalMapConv2d
from .temporal_map_max_pool import TemporalMapMaxPool

__all__ = ["AnchorCrossAttention", "BoundaryMatching", "TemporalMapConv2d", "TemporalMapMaxPool"]
