"""The layers of SeqPAN's released code, where they have more in them than the paper's text says.

Of https://github.com/26hzhang/SeqPAN, ``models/modules.py`` and ``models/layers.py``. Letters as in
:mod:`vpgfast.models.seqpan`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vpgfast.models.configs.seqpan import SeqPANConfig
from vpgfast.models.layers import Dropout, at_least_float32, attend
from vpgfast.models.seqpan_encoder import Encoder

_EPSILON = 1e-6


class ReleasedParallelAttention(nn.Module):
    """``dual_attn_block``: beside the SGPA block of Eq. 2-4 a norm for the other modality, a linear layer before the
    self-guided head, the block's input in that head, a linear layer behind it, and the feed-forward layer."""

    def __init__(self, config: SeqPANConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.attention_dropout = config.heads, config.dropout
        self.norm_attention = nn.LayerNorm(dim, eps=_EPSILON)
        self.norm_other = nn.LayerNorm(dim, eps=_EPSILON)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.cross_key_value = nn.Linear(dim, 2 * dim)
        self.out_self = nn.Linear(dim, dim)
        self.out_cross = nn.Linear(dim, dim)
        self.gate_self = nn.Linear(dim, dim)
        self.gate_cross = nn.Linear(dim, dim)
        self.guided = nn.Linear(dim, dim)
        self.confidence = nn.Linear(2 * dim, dim) if config.attention == "sgpa" else None
        self.value = nn.Linear(2 * dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm_feed_forward = nn.LayerNorm(dim, eps=_EPSILON)
        self.feed_forward = nn.Linear(dim, dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor, other_mask: Tensor) -> Tensor:
        """x [B, T, d] looks at itself and at ``other`` [B, W, d] -> [B, T, d]."""
        normed, dropped = self.norm_attention(x), self.attention_dropout * self.training
        query, key, value = self.query_key_value(normed).chunk(3, -1)
        cross_key, cross_value = self.cross_key_value(self.norm_other(other)).chunk(2, -1)
        v_self = self.out_self(attend(query, key, value, self.heads, mask, dropped))
        v_cross = self.out_cross(attend(query, cross_key, cross_value, self.heads, other_mask, dropped))
        gated = self.gate_cross(v_cross).sigmoid() * v_self + self.gate_self(v_self).sigmoid() * v_cross
        both = torch.cat([normed, self.guided(gated)], -1)
        refined = self.value(both)
        if self.confidence is not None:
            refined = self.confidence(both).sigmoid() * refined
        x = x + self.dropout(self.out(refined))
        return x + self.dropout(self.feed_forward(self.dropout(self.norm_feed_forward(x))))


class ReleasedFeatureEncoder(nn.Module):
    """``feature_encoder``: positions, convolutions and a transformer layer whose heads no linear layer joins."""

    def __init__(self, config: SeqPANConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.attention_dropout = config.heads, config.dropout
        self.encoder = Encoder(config)
        self.norm_attention = nn.LayerNorm(dim, eps=_EPSILON)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.norm_feed_forward = nn.LayerNorm(dim, eps=_EPSILON)
        self.feed_forward = nn.Linear(dim, dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, d] and [B, T] -> [B, T, d]."""
        x = self.encoder(x, mask)
        query, key, value = self.query_key_value(self.dropout(self.norm_attention(x))).chunk(3, -1)
        x = x + self.dropout(attend(query, key, value, self.heads, mask, self.attention_dropout * self.training))
        return x + self.dropout(self.feed_forward(self.dropout(self.norm_feed_forward(x))))


class ReleasedLocalizer(nn.Module):
    """``conditioned_predictor``: that encoder in the place of the transformer blocks of Eq. 12, and a hidden layer
    before the scores."""

    def __init__(self, config: SeqPANConfig) -> None:
        super().__init__()
        dim = config.dim
        self.encoder = ReleasedFeatureEncoder(config)
        self.end_encoder = ReleasedFeatureEncoder(config) if config.localizer == "two" else None
        self.norm_start = nn.LayerNorm(dim, eps=_EPSILON)
        self.norm_end = nn.LayerNorm(dim, eps=_EPSILON)
        self.start = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))
        self.end = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, d] and [B, T] -> two [B, T]."""
        h_start = self.encoder(x, mask)
        h_end = (self.end_encoder or self.encoder)(h_start, mask)
        start = self.start(torch.cat([self.norm_start(h_start), x], -1))
        end = self.end(torch.cat([self.norm_end(h_end), x], -1))
        return at_least_float32(start.squeeze(-1)), at_least_float32(end.squeeze(-1))
