"""SeqPAN's encoder of Eq. 1, which video and sentence share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vpgfast.models.configs.seqpan import SeqPANConfig
from vpgfast.models.layers import SeparableConvLayer


class Encoder(nn.Module):
    """Learned positions and a stack of separable convolutions (Eq. 1)."""

    def __init__(self, config: SeqPANConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(max(config.max_clips, config.max_words), config.dim))
        nn.init.xavier_uniform_(self.positions)
        self.layers = nn.ModuleList(
            SeparableConvLayer(config.dim, config.conv_kernel, config.dropout) for _ in range(config.conv_layers)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, d] and [B, T] -> [B, T, d]."""
        length = x.shape[1]
        if length > len(self.positions):
            raise ValueError(f"a sequence of {length} elements, but positions were learned for {len(self.positions)}")
        x = x + self.positions[:length]
        for layer in self.layers:
            x = layer(x, mask)
        return x
