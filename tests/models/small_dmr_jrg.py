"""What the tests of DMR-JRG start from: small models and batches."""

from __future__ import annotations

from pathlib import Path

import torch
from small import counted, paragraph_batch, with_random_weights
from torch import Tensor

from vpgfast.data.types import Batch
from vpgfast.models.dmr_jrg import DMRJRG, DMRJRGConfig, Draws

CONFIGS = Path(__file__).parents[2] / "configs" / "dmr_jrg"
T, K, D, FEATURE_DIM = 12, 6, 8, 6
SENTENCES = (3, 1, 4)


def small(**changes) -> DMRJRGConfig:
    settings = {
        "max_clips": T,
        "segments": K,
        "dim": D,
        "heads": 2,
        "layers": 2,
        "feed_forward": 12,
        "dropout": 0.0,
        "tan_layers": 2,
        "tan_kernel": 3,
        "reconstructor_heads": 2,
        "reconstructor_layers": 2,
        "reconstructor_clips": 5,
        "moment_samples": 3,
    }
    return DMRJRGConfig(**{**settings, **changes})


def make_model(spread: float = 0.4, **changes) -> DMRJRG:
    return with_random_weights(DMRJRG(small(**changes), FEATURE_DIM, counted()), spread)


def random_batch(sentences=SENTENCES, seed: int = 0, videos=None) -> Batch:
    """Paragraphs of that many sentences of 1 to 5 words."""
    return paragraph_batch(sentences, (T, FEATURE_DIM), seed, videos)


def losses_of(model: DMRJRG, batch: Batch, seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return model.loss(batch)


def as_maps(x: torch.Tensor) -> torch.Tensor:
    """What is listed by moment, [N, P] or [N, P, D], as maps [N, K, K] or [N, D, K, K]."""
    side = int((2 * x.shape[1]) ** 0.5)
    maps = torch.zeros(len(x), side, side, *x.shape[2:], dtype=x.dtype)
    maps[:, *torch.triu_indices(side, side)] = x.detach()
    return maps.movedim(3, 1) if x.dim() == 3 else maps


def torchs_encoder(layers: torch.nn.ModuleList, hidden: int) -> torch.nn.TransformerEncoder:
    """torch's own post-norm encoder with the same weights."""
    layer = torch.nn.TransformerEncoderLayer(D, 2, hidden, 0.0, batch_first=True, dtype=torch.float64)
    theirs = torch.nn.TransformerEncoder(layer, len(layers), enable_nested_tensor=False)
    for ours, other in zip(layers, theirs.layers, strict=True):
        copy_attention(ours.itself, other.self_attn, other.norm1)
        copy_feed_forward(ours.feed_forward, other, other.norm2)
    return theirs


def copy_attention(ours, theirs, norm) -> None:
    inner = ours.layer
    theirs.in_proj_weight.data = torch.cat([inner.query.weight, inner.key_value.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([inner.query.bias, inner.key_value.bias]).detach()
    theirs.out_proj.load_state_dict(inner.out.state_dict())
    norm.load_state_dict(ours.norm.state_dict())


def copy_feed_forward(ours, theirs, norm) -> None:
    theirs.linear1.load_state_dict(ours.layer.hidden.state_dict())
    theirs.linear2.load_state_dict(ours.layer.out.state_dict())
    norm.load_state_dict(ours.norm.state_dict())


def fixed_draws(model: DMRJRG, batch: Batch) -> Draws:
    """Makes a model draw the same every time."""
    drawn = model.draw(batch)
    model.draw = lambda batch: drawn
    return drawn
