from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vpgfast.nn import TemporalMapMaxPool


def dense_pool(x: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """2D-TAN's dense pooling, written down from the paper: one MaxPool1d of kernel 2 more a length."""
    moments, mask = x.new_zeros(*x.shape[:2], T, T), x.new_zeros(x.shape[0], 1, T, T)
    for offset in range(T):
        x = x if offset == 0 else nn.functional.max_pool1d(x, 2, stride=1)
        starts = torch.arange(T - offset)
        moments[:, :, starts, starts + offset] = x
        mask[:, :, starts, starts + offset] = 1
    return moments, mask


def sparse_pool(x: Tensor, T: int, layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """2D-TAN's sparse pooling: in layer k windows grow by 2^k clips and start 2^k apart."""
    moments, mask = x.new_zeros(*x.shape[:2], T, T), x.new_zeros(x.shape[0], 1, T, T)
    stride, offset = 1, 0
    for k, lengths in enumerate(layers):
        for step in range(lengths):
            if k == 0 and step == 0:
                pass  # a clip by itself
            elif k > 0 and step == 0:
                x = nn.functional.max_pool1d(x, 3, stride=2)  # every second window, two steps longer
                stride, offset = stride * 2, offset + 2 * stride
            else:
                x = nn.functional.max_pool1d(x, 2, stride=1)
                offset += stride
            starts = torch.arange(0, T - offset, stride)
            moments[:, :, starts, starts + offset] = x
            mask[:, :, starts, starts + offset] = 1
    return moments, mask


@pytest.mark.parametrize(("T", "layers"), [(16, None), (9, None), (64, (16, 8, 8)), (128, (16, 8, 8, 8)), (16, (16,))])
def test_equals_2d_tans_pooling_and_its_gradient(T: int, layers: tuple[int, ...] | None) -> None:
    x = torch.randn(2, 3, T, generator=torch.Generator().manual_seed(0), requires_grad=True)
    moments, mask = TemporalMapMaxPool(T, layers)(x)
    expected, expected_mask = dense_pool(x, T) if layers is None else sparse_pool(x, T, layers)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(moments, expected)
    incoming = torch.randn(moments.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(*(torch.autograd.grad(m, x, incoming)[0] for m in (moments, expected)))


def test_keeps_no_state_and_refuses_another_length() -> None:
    module = TemporalMapMaxPool(8, (4, 2))
    assert not module.state_dict()
    with pytest.raises(ValueError, match=r"x has shape \[2, 3, 9\]; it must be \[B, C, 8\]"):
        module(torch.zeros(2, 3, 9))
