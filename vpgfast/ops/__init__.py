"""The hot paths of video grounding as drop-in ops. Needs torch and numpy alone.

Every function has a plain-PyTorch reference, a C++ CPU kernel, a CUDA kernel and, where tile-shaped, a Triton kernel;
``python -m vpgfast.doctor`` tells which of them run here.
"""

import os

from ._registry import BACKENDS, OPS, Backend, backend, get_backend, load_libraries, set_backend
from .anchor_cross_attention import AttentionStats, anchor_cross_attention
from .anchor_embedding import anchor_embedding
from .ordered_candidates import ordered_candidates
from .ordered_spans import ordered_spans
from .ordered_suppression_scan import ordered_suppression_scan
from .pairwise_relevance import pairwise_relevance
from .proposal_conv import proposal_conv
from .proposal_grids import ProposalGrid, boundary_matching_grid, marn_stride, multi_scale_grid, sliding_windows
from .sample_proposals import sample_proposals
from .temporal_contrast_spans import temporal_contrast_spans
from .temporal_iou import temporal_giou, temporal_iou
from .temporal_iou_map import temporal_iou_map
from .temporal_map_bce import temporal_map_bce
from .temporal_map_conv2d import temporal_map_conv2d, temporal_map_masks
from .temporal_map_conv2d_cells import temporal_map_conv2d_cells
from .temporal_map_max_pool import dense_anchor_mask, sparse_anchor_mask, temporal_map_max_pool
from .temporal_nms import temporal_nms

load_libraries()
set_backend(os.environ.get("VPGFAST_BACKEND", "auto"))  # type: ignore[arg-type]  # checked there

__all__ = [
    "BACKENDS",
    "OPS",
    "AttentionStats",
    "Backend",
    "ProposalGrid",
    "anchor_cross_attention",
    "anchor_embedding",
    "backend",
    "boundary_matching_grid",
    "dense_anchor_mask",
    "get_backend",
    "marn_stride",
    "multi_scale_grid",
    "ordered_candidates",
    "ordered_spans",
    "ordered_suppression_scan",
    "pairwise_relevance",
    "proposal_conv",
    "sample_proposals",
    "set_backend",
    "sliding_windows",
    "sparse_anchor_mask",
    "temporal_contrast_spans",
    "temporal_giou",
    "temporal_iou",
    "temporal_iou_map",
    "temporal_map_bce",
    "temporal_map_conv2d",
    "temporal_map_conv2d_cells",
    "temporal_map_masks",
    "temporal_map_max_pool",
    "temporal_nms",
]
