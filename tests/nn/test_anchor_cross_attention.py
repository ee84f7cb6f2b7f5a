from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vpgfast.nn import AnchorCrossAttention
from vpgfast.ops import anchor_embedding

B, Q, T, D, H = 2, 5, 12, 16, 4


class DecoderLayer(nn.Module):
    """The cross-attention of a conditional-DETR decoder layer, written down from the paper: sequence first, content and
    position concatenated per head, attention by torch.nn.functional on the joined heads."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.ca_qcontent_proj, self.ca_kcontent_proj, self.ca_v_proj = (nn.Linear(D, D) for _ in range(3))
        self.ca_kpos_proj, self.ca_qpos_sine_proj = nn.Linear(D, D), nn.Linear(D, D)
        if first:
            self.ca_qpos_proj = nn.Linear(D, D)
        self.cross_attn = nn.Module()
        self.cross_attn.out_proj = nn.Linear(D, D)
        self.linear1 = nn.Linear(D, D)  # belongs to the feed-forward network, not to the attention

    def forward(self, tgt: Tensor, memory: Tensor, pos: Tensor, sine: Tensor, query_pos: Tensor | None) -> Tensor:
        q, k, k_pos = self.ca_qcontent_proj(tgt), self.ca_kcontent_proj(memory), self.ca_kpos_proj(pos)
        if query_pos is not None:
            q, k = q + self.ca_qpos_proj(query_pos), k + k_pos
        outs = []
        for h in range(H):
            part = slice(h * D // H, (h + 1) * D // H)
            joined_q = torch.cat([q[..., part], self.ca_qpos_sine_proj(sine)[..., part]], -1).transpose(0, 1)
            joined_k = torch.cat([k[..., part], k_pos[..., part]], -1).transpose(0, 1)
            weights = (joined_q @ joined_k.mT / math.sqrt(2 * D / H)).softmax(-1)
            outs.append(weights @ self.ca_v_proj(memory)[..., part].transpose(0, 1))
        return self.cross_attn.out_proj(torch.cat(outs, -1)).transpose(0, 1)


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(B, Q, 2, generator=generator)
    return {
        "queries": torch.randn(B, Q, D, generator=generator),
        "clips": torch.randn(B, T, D, generator=generator),
        "clip_pos": torch.randn(B, T, D, generator=generator),
        "anchors": anchor_embedding(anchors, D),
        "query_pos": torch.randn(B, Q, D, generator=generator),
    }


@pytest.mark.parametrize("first", [True, False])
def test_loads_a_decoder_layer_and_gives_its_output(first: bool) -> None:
    torch.manual_seed(1)
    layer = DecoderLayer(first)
    state = {f"decoder.layers.3.{name}": tensor for name, tensor in layer.state_dict().items()}
    module = AnchorCrossAttention.from_decoder_layer(state, H, prefix="decoder.layers.3.")
    given = tensors()
    if not first:
        given.pop("query_pos")
    out, stats = module(**given, need_weights=True)
    expected = layer(*(given[k].transpose(0, 1) for k in ("queries", "clips", "clip_pos", "anchors")),
                     given["query_pos"].transpose(0, 1) if first else None)  # fmt: skip
    torch.testing.assert_close(out, expected.transpose(0, 1))
    torch.testing.assert_close(stats.weights.sum(-1), torch.ones(B, H, Q))


def test_one_positional_embedding_for_the_batch() -> None:
    module, given = AnchorCrossAttention(D, H), tensors()
    given.pop("query_pos")
    once = given["clip_pos"][:1]
    each, _ = module(**given | {"clip_pos": once.expand(B, -1, -1)})
    shared, _ = module(**given | {"clip_pos": once})
    torch.testing.assert_close(each, shared)


def test_every_parameter_gets_a_gradient() -> None:
    module = AnchorCrossAttention(D, H, query_pos=True)
    out, stats = module(**tensors(), intervals=torch.tensor([2.0, 7.0]).expand(B, Q, 2))
    (out.square().sum() + stats.centroid.sum() + stats.mass.log().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_wrong_arguments() -> None:
    given = tensors()
    with pytest.raises(ValueError, match="D is 10 and heads is 4"):
        AnchorCrossAttention(10, 4)
    with pytest.raises(ValueError, match="query_pos was given"):
        AnchorCrossAttention(D, H)(**given)
    given.pop("query_pos")
    with pytest.raises(ValueError, match="query_pos is missing"):
        AnchorCrossAttention(D, H, query_pos=True)(**given)
    with pytest.raises(KeyError, match=r"no decoder\.ca_qcontent_proj\.weight"):
        AnchorCrossAttention.from_decoder_layer(DecoderLayer(True).state_dict(), H, prefix="decoder.")
    state = DecoderLayer(True).state_dict()
    del state["ca_v_proj.bias"]
    with pytest.raises(KeyError, match=r"no ca_v_proj\.bias"):
        AnchorCrossAttention.from_decoder_layer(state, H)
