"""2D-TAN's pooling of clips to a map of moments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vpgfast.nn.constants import ModuleWithConstants
from vpgfast.ops import dense_anchor_mask, sparse_anchor_mask, temporal_map_max_pool


class TemporalMapMaxPool(ModuleWithConstants):
    """Max-pooled features of 2D-TAN's anchors, on the map; stands in for its dense and its sparse pooling module.

    Source: 2D-TAN (Zhang et al., AAAI 2020), section 3.2 and its released pooling modules.

    Args:
        T: number of clips.
        layers: numbers of lengths of each layer of the sparse anchors (``(16, 8, 8)`` at T = 64); None for the dense
            anchors, every moment.
    """

    def __init__(self, T: int, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        self.T = T
        self.layers = None if layers is None else tuple(layers)
        self.register_constants()  # 2D-TAN's modules have nothing in their state dict
        self.mask: Tensor

    def constants(self) -> dict[str, Tensor]:
        """``mask``: bool [T, T], the anchors."""
        return {"mask": dense_anchor_mask(self.T) if self.layers is None else sparse_anchor_mask(self.T, self.layers)}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pool.

        Args:
            x: floating [B, C, T].

        Returns:
            The map [B, C, T, T], zero where there is no anchor, and the anchors [B, 1, T, T], 1 and 0 in the dtype of
            ``x``, as 2D-TAN hands them on.
        """
        if x.dim() != 3 or x.shape[2] != self.T:
            raise ValueError(f"x has shape {list(x.shape)}; it must be [B, C, {self.T}]")
        moments = temporal_map_max_pool(x)
        if self.layers is not None:
            moments = moments.masked_fill(~self.mask, 0)
        return moments, self.mask.to(x.dtype).expand(x.shape[0], 1, -1, -1)

    def extra_repr(self) -> str:
        return f"T={self.T}, layers={self.layers}"
