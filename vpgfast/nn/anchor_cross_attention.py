"""Cross-attention of conditional-DETR and DAB-DETR decoders, over clips."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vpgfast.ops import AttentionStats, anchor_cross_attention

PARTS = ("ca_", "cross_attn.out_proj.")
"""What the names of a decoder layer's parameters that belong to its cross-attention begin with."""


class AnchorCrossAttention(nn.Module):
    """Queries with anchors attend to clips, on content and position apart; no attention matrix is made.

    The parameters carry the names that conditional DETR and DAB-DETR give them in a decoder layer (``ca_*_proj`` and
    ``cross_attn.out_proj``), so that theirs load as they are (:meth:`from_decoder_layer`). Two differences to those
    layers: tensors are batch first, and there is no dropout on the attention.

    Source: Conditional DETR (Meng et al., ICCV 2021), section 3.3; DAB-DETR (Liu et al., ICLR 2022), section 4.

    Args:
        D: channels of queries and clips, a multiple of ``heads``.
        heads: number of heads H.
        query_pos: whether the content gets the projected positions added, as in the first layer of those decoders
            (``ca_qpos_proj`` exists in that layer alone).
    """

    def __init__(self, D: int, heads: int, query_pos: bool = False) -> None:
        super().__init__()
        if heads < 1 or D < 1 or D % heads:
            raise ValueError(f"D is {D} and heads is {heads}; D must be a positive multiple of heads")
        self.heads = heads
        self.ca_qcontent_proj = nn.Linear(D, D)
        self.ca_qpos_proj = nn.Linear(D, D) if query_pos else None
        self.ca_kcontent_proj = nn.Linear(D, D)
        self.ca_kpos_proj = nn.Linear(D, D)
        self.ca_v_proj = nn.Linear(D, D)
        self.ca_qpos_sine_proj = nn.Linear(D, D)
        self.cross_attn = nn.ModuleDict({"out_proj": nn.Linear(D, D)})

    @classmethod
    def from_decoder_layer(cls, state_dict: Mapping[str, Tensor], heads: int, prefix: str = "") -> AnchorCrossAttention:
        """Built from a decoder layer's parameters, found under ``prefix`` (such as ``"decoder.layers.0."``).

        Raises:
            KeyError: a parameter of the cross-attention is missing; it is named.
        """
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in state_dict.items()
            if name.startswith(prefix) and name.removeprefix(prefix).startswith(PARTS)
        }
        key = "ca_qcontent_proj.weight"
        if key not in own:
            raise KeyError(f"the state dict has no {prefix}{key}; prefix must be that of a decoder layer")
        module = cls(own[key].shape[0], heads, query_pos="ca_qpos_proj.weight" in own)
        missing = sorted(set(module.state_dict()) - set(own))
        if missing:
            raise KeyError(f"the state dict has no {prefix}{missing[0]}")
        module.load_state_dict(own)
        return module.to(own[key].dtype)

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, H, N, D / H], not copied."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        queries: Tensor,
        clips: Tensor,
        clip_pos: Tensor,
        anchors: Tensor,
        query_pos: Tensor | None = None,
        key_mask: Tensor | None = None,
        intervals: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, AttentionStats]:
        """Attend.

        Args:
            queries: [B, Q, D] content of the queries.
            clips: [B, T, D] encoded clips.
            clip_pos: [B, T, D] positional embedding of the clips, or [1, T, D] for the whole batch.
            anchors: [B, Q, D] embedded anchors (:func:`vpgfast.ops.anchor_embedding`).
            query_pos: [B, Q, D] positional embedding of the queries; needed if the module was made with it.
            key_mask, intervals, need_weights: see :func:`vpgfast.ops.anchor_cross_attention`.

        Returns:
            [B, Q, D] and the :class:`~vpgfast.ops.AttentionStats`.
        """
        if (query_pos is None) != (self.ca_qpos_proj is None):
            raise ValueError(
                "query_pos is missing; this layer adds it to the content"
                if query_pos is None
                else "query_pos was given; this layer was made with query_pos=False and has no projection for it"
            )
        content, position = self.ca_kcontent_proj(clips), self.ca_kpos_proj(clip_pos)
        query = self.ca_qcontent_proj(queries)
        if self.ca_qpos_proj is not None:
            query = query + self.ca_qpos_proj(query_pos)
            content = content + position
        out, stats = anchor_cross_attention(
            self._split(query),
            self._split(self.ca_qpos_sine_proj(anchors)),
            self._split(content),
            self._split(position),
            self._split(self.ca_v_proj(clips)),
            key_mask,
            intervals,
            need_weights,
        )
        return self.cross_attn["out_proj"](out.transpose(1, 2).flatten(2)), stats

    def extra_repr(self) -> str:
        return f"heads={self.heads}"
