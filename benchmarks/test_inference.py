"""One video and its text, as someone asks about it, against the same network in plain PyTorch: a call's cost counts.
Ours and the plain one run as they are and compiled by torch.

At the papers' sizes, with random weights; a sentence, or a paragraph of four for the methods that read paragraphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.data.types import Batch
from vpgfast.models import dmr_jrg, marn, wsra
from vpgfast.models.method import Method

from . import test_dmr_jrg, test_marn, test_seqpan, test_siamgtr, test_wsra
from .measure import Provider, measure
from .test_temporal_nms import iou_matrix

CASES: dict[str, Callable[[torch.device], tuple[torch.nn.Module, Batch]]] = {
    "wsra": lambda device: test_wsra.make_step(1, device),
    "marn": lambda device: test_marn.make_step("Charades-STA", 1, device),
    "seqpan": lambda device: test_seqpan.make_step(1, device),
    "siamgtr": lambda device: test_siamgtr.make_step(1, device),
    "dmr_jrg": lambda device: test_dmr_jrg.make_step(1, 4, device, segments=16),
}
TOP_N = 5


def plain_nms(spans: Tensor, scores: Tensor, threshold: float, top_k: int) -> Tensor:
    kept = iou_matrix(spans.flatten(0, -3), scores.flatten(0, -2), threshold, top_k)
    return kept.view(*scores.shape[:-1], top_k)


@contextmanager
def plain(by_taps: bool) -> Iterator[None]:
    """In here a method's prediction uses plain PyTorch in the place of our ops.

    Args:
        by_taps: how DMR-JRG convolves its maps: the cells that count, or whole maps.
    """
    with ExitStack() as stack:
        stack.enter_context(ops.backend("reference"))
        stack.enter_context(test_dmr_jrg.plain(by_taps))
        for module in (wsra, marn, dmr_jrg):
            stack.enter_context(mock.patch.object(module, "temporal_nms", plain_nms))
        yield


def in_plain(predict: Callable[[Batch], Tensor], by_taps: bool = False) -> Callable[[Batch], Tensor]:
    def run(batch: Batch) -> Tensor:
        with plain(by_taps):
            return predict(batch)

    return run


def best_spans(model: Method) -> Callable[[Batch], Tensor]:
    """The first of each sentence's, in seconds; of the others two may be equally good, and change places."""
    return lambda batch: model.predict(batch, TOP_N).spans[:, :, 0].float()


@pytest.mark.parametrize("method", CASES)
@torch.inference_mode()
def test_inference(method: str, device: torch.device, eager_only: bool, record) -> None:
    step, batch = CASES[method](device)
    model = step.get_submodule("model").eval()
    assert isinstance(model, Method)
    other = step.get_submodule("plain").eval() if method == "siamgtr" else model
    assert isinstance(other, Method)
    ways = {
        "plain": in_plain(best_spans(other)),
        "plain, compiled": in_plain(torch.compile(best_spans(other))),
        "vpgfast": best_spans(model),
        "vpgfast, compiled": torch.compile(best_spans(model)),
    }
    if method == "dmr_jrg":
        ways["plain, cells that count"] = in_plain(best_spans(other), by_taps=True)
    if eager_only:
        del ways["plain, compiled"], ways["vpgfast, compiled"]

    def provider(way: str) -> Provider:
        return Provider(way, lambda video: ways[way](replace(batch, video=video)), is_ours=way.startswith("vpgfast"))

    parameters = sum(p.numel() for name, p in model.named_parameters() if "words" not in name)
    record(
        measure(
            "inference",
            f"{method} B=1 T={batch.video.shape[1]} M={batch.words.shape[1]}",
            [provider(way) for way in ways],
            [batch.video],
            floor_bytes={"forward": 4 * (batch.video.numel() + parameters)},
            tolerance=3e-3,
            whole_step=True,
        )
    )
