"""2D-TAN's temporal adjacent network: a stack of convolutions over the map of moments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vpgfast import ops
from vpgfast.nn.constants import ModuleWithConstants
from vpgfast.ops.temporal_map_conv2d_cells import at_cells, on_map


class TemporalMapConv2d(ModuleWithConstants):
    """2D-TAN's ``MapConv``, computing only what reaches a valid moment of the result.

    Every layer is ``relu(conv2d(x))`` times, with ``normalize``, one over the number of valid taps; the mask grows with
    every layer. Between layers only the cells that count are stored. The parameters have the names of 2D-TAN's
    (``convs.0.weight``, ...), so a released ``map_layer`` loads as it is, and the result equals 2D-TAN's at every cell
    of ``mask``. Everywhere else it is zero, where 2D-TAN's holds numbers that its prediction layer masks away.

    Source: 2D-TAN (Zhang et al., AAAI 2020), section 3.3 and its released code.

    Args:
        mask: bool [T, T], the valid moments (``dense_anchor_mask``, ``sparse_anchor_mask``).
        in_channels: of the map.
        hidden_sizes: output channels of each layer; 2D-TAN: 512 each.
        kernel_sizes: of each layer; 2D-TAN: four times 9 (ActivityNet), eight times 5 (Charades, TACoS).
        paddings: of each layer; together they keep the map's size. 2D-TAN: 16 at the first layer, then 0.
        normalize: divide by the number of valid taps, as 2D-TAN; its successor MS-2D-TAN does not.

    Raises:
        ValueError: lists of different lengths, kernels and paddings that do not keep the map's size, or a mask without
            values (of the meta device).
    """

    def __init__(
        self,
        mask: Tensor,
        in_channels: int,
        hidden_sizes: Sequence[int],
        kernel_sizes: Sequence[int],
        paddings: Sequence[int],
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if len(hidden_sizes) != len(kernel_sizes):
            raise ValueError(
                f"hidden_sizes is {list(hidden_sizes)} and kernel_sizes {list(kernel_sizes)}; "
                "they must be one of each a layer"
            )
        if mask.is_meta:
            raise ValueError("mask is on the meta device, where it has no values; give one of the CPU")
        self._anchors = mask.detach().cpu()
        channels = [in_channels, *hidden_sizes]
        layers = zip(channels[:-1], channels[1:], kernel_sizes, paddings, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(c, d, k, padding=padding) for c, d, k, padding in layers)
        self.kernel_sizes, self.paddings, self.normalize = tuple(kernel_sizes), tuple(paddings), normalize
        self.sizes = [reached.shape[0] for reached in self._reached()]
        self.register_constants()

    def _reached(self) -> list[Tensor]:
        """bool [T', T'] of the input and of every layer: the cells that count."""
        masks = ops.temporal_map_masks(self._anchors, self.kernel_sizes, self.paddings)
        return [masks[0][0], *(out_mask for _, out_mask in masks)]

    def constants(self) -> dict[str, Tensor]:
        """``cells0`` ... ``cellsN``: int64 [P], the cells that count, row by row."""
        return {f"cells{layer}": mask.flatten().nonzero()[:, 0] for layer, mask in enumerate(self._reached())}

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, T] to [B, hidden_sizes[-1], T, T]; what ``x`` holds outside the mask has no effect."""
        first, last = self.get_buffer("cells0"), self.get_buffer(f"cells{len(self.convs)}")
        return on_map(self.on_cells(at_cells(x, first)), last, x.shape[2])

    def on_cells(self, x: Tensor) -> Tensor:
        """The same from listed cells to listed cells, row by row: [B, P, C] to [B, P, hidden_sizes[-1]].

        They are those of ``mask``, if no layer makes the map smaller than T; else those numbered in the buffers
        ``cells0`` and ``cellsN``, behind N layers.
        """
        for layer, (conv, padding) in enumerate(zip(self.convs, self.paddings, strict=True)):
            assert isinstance(conv, nn.Conv2d)
            cells = self.get_buffer(f"cells{layer}"), self.get_buffer(f"cells{layer + 1}")
            x = ops.temporal_map_conv2d_cells(
                x, conv.weight, conv.bias, *cells, self.sizes[layer], padding, "relu", self.normalize
            )
        return x
