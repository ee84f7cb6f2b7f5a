"""Every module of ``vpgfast.nn`` and every method, small, and what to ask them: for tests of what is done to them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vpgfast import ops
from vpgfast.data.batches import make_batch, prepare
from vpgfast.data.types import Batch, Paragraph
from vpgfast.models.method import Method
from vpgfast.models.registry import METHODS, get_config, get_method
from vpgfast.nn import AnchorCrossAttention, BoundaryMatching, TemporalMapConv2d, TemporalMapMaxPool

sys.path.append(str(Path(__file__).parents[1] / "models"))
from small import word_vectors
from test_ordered import CLIPS, SMALL, WIDTH

T, C = 8, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention_inputs(batch: int, query_pos: bool) -> tuple[Tensor, ...]:
    inputs = [random(batch, 3, 8), random(batch, T, 8, seed=1), random(1, T, 8, seed=2), random(batch, 3, 8, seed=3)]
    return tuple([*inputs, random(batch, 3, 8, seed=4)] if query_pos else inputs)


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "attention": (lambda: AnchorCrossAttention(8, 2), lambda B: attention_inputs(B, query_pos=False)),
    "attention, first layer": (lambda: AnchorCrossAttention(8, 2, True), lambda B: attention_inputs(B, query_pos=True)),
    "BMN": (lambda: BoundaryMatching(C, 6, T, 5, num_samples=4), lambda B: (random(B, C, T),)),
    "BMN, start_end": (
        lambda: BoundaryMatching(C, 6, T, num_samples=4, layout="start_end", bias=False),
        lambda B: (random(B, C, T),),
    ),
    "2D-TAN's convolutions": (
        lambda: TemporalMapConv2d(anchors(), C, [6, 5], [3, 3], [2, 0]),
        lambda B: (random(B, C, T, T),),
    ),
    "2D-TAN's pooling": (lambda: TemporalMapMaxPool(T), lambda B: (random(B, C, T),)),
    "2D-TAN's pooling, sparse": (lambda: TemporalMapMaxPool(T, (4, 2)), lambda B: (random(B, C, T),)),
}
"""By a name: what makes a module, and its arguments for a batch of B."""


def anchors() -> Tensor:
    with torch.device("cpu"):
        return ops.sparse_anchor_mask(T, (4, 2))


class Tower:
    """Reads sentences for :class:`vpgfast.models.similarity.Similarity`."""

    def encode_text(self, sentences: list[str]) -> Tensor:
        return torch.stack([random(WIDTH, seed=len(sentence)) for sentence in sentences])


PARAGRAPHS = [
    Paragraph("a", 24.0, ("word0 word1.", "word2.", "word0 word3 word4."), np.array([[0, 4.0], [5, 9], [12, 20]])),
    Paragraph("b", 10.0, ("word5.", "word9 word2."), np.array([[1.0, 4.0], [3.0, 9.5]])),
    Paragraph("c", 30.0, ("word6 word1.", "word7 word8."), np.array([[1.0, 4.0], [3.0, 9.0]])),
    Paragraph("d", 20.0, ("word3.", "word1 word11 word5."), np.array([[0.0, 9.0], [11.0, 19.0]])),
]


def make(name: str, **changes: Any) -> nn.Module:
    """A module or a method, of the same weights every time, in evaluation mode; ``changes`` of a method's settings."""
    torch.manual_seed(0)
    if name in MODULES:
        module = MODULES[name][0]()
    else:
        settings: dict[str, Any] = {**SMALL.get(name, {}), **changes}
        vectors = replace(word_vectors(), content_counts=np.arange(20) % 3)
        module = get_method(name)(get_config(name)(**settings), WIDTH, vectors)
        if name == "similarity":
            module.tower = Tower()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.is_meta:
                parameter.copy_(0.5 * torch.randn(parameter.shape))
    return module.eval()


def inputs(name: str, module: Any, part: slice = slice(None)) -> tuple[Any, ...]:
    """What to call it with; ``part`` of a batch of four."""
    if name in MODULES:
        arguments = MODULES[name][1](4)
        return tuple(x if x.shape[0] == 1 else x[part] for x in arguments)
    needs = module.needs(module.config)
    items = prepare(PARAGRAPHS[part], needs, training=False)
    rng = np.random.default_rng(0)
    videos = {p.video_id: rng.standard_normal((CLIPS, WIDTH)).astype(np.float32) for p in PARAGRAPHS}
    return (make_batch(items, [videos[item.video_id] for item in items], word_vectors(), needs, training=False),)


def in_dtype(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The same numbers."""
    changed = []
    for argument in arguments:
        if isinstance(argument, Batch):
            changed.append(argument.to(argument.video.device))
            changed[-1].video = argument.video.to(dtype)
        else:
            changed.append(argument.to(dtype))
    return tuple(changed)


def answers(module: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """All that it says, as tensors."""
    torch.manual_seed(1)
    with torch.no_grad():
        found = module.predict(*arguments, 3) if isinstance(module, Method) else module(*arguments)
    if isinstance(module, Method):
        found = (found.spans, found.scores)
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def loss(module: Any, *arguments: Any) -> Tensor:
    """A number with a gradient for every weight that has one."""
    torch.manual_seed(2)
    if isinstance(module, Method):
        return module.loss(*arguments)["loss"]
    leaves = [leaf for leaf in tree_leaves(module(*arguments)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return torch.stack([F.gelu(leaf).mean() for leaf in leaves]).sum()


TRAINED = [name for name in [*MODULES, *METHODS] if name != "similarity" and "pooling" not in name]
"""Those that have something to learn."""
EVERY = [*MODULES, *METHODS]
