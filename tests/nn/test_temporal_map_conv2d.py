from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vpgfast import ops
from vpgfast.nn import TemporalMapConv2d
from vpgfast.ops import dense_anchor_mask, sparse_anchor_mask

STACKS = {
    "ActivityNet": (sparse_anchor_mask(64), [9] * 4, [16, 0, 0, 0]),
    "Charades": (dense_anchor_mask(16), [5] * 8, [16] + [0] * 7),
    "TACoS": (sparse_anchor_mask(128, (16, 8, 8, 8)), [5] * 8, [16] + [0] * 7),
}


def map_conv(x: Tensor, state: dict[str, Tensor], mask: Tensor, paddings: list[int], normalize: bool) -> Tensor:
    """2D-TAN's MapConv in plain PyTorch: full convolutions, and the mask convolved with ones along with them."""
    valid = mask[None, None].to(x.dtype)
    for layer, padding in enumerate(paddings):
        weight, bias = (state[f"map_layer.convs.{layer}.{name}"] for name in ("weight", "bias"))
        ones = torch.ones(1, 1, *weight.shape[2:], dtype=x.dtype)
        count = torch.nn.functional.conv2d(valid, ones, padding=padding).round()
        masked_weight = torch.where(count > 0, 1 / count if normalize else 1.0, 0)
        x = torch.nn.functional.conv2d(x, weight, bias, padding=padding).relu() * masked_weight
        valid = (masked_weight > 0).to(x.dtype)
    return x


@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "plain"])
@pytest.mark.parametrize("name", list(STACKS))
def test_equals_2d_tan_at_every_valid_cell(name: str, normalize: bool) -> None:
    mask, kernel_sizes, paddings = STACKS[name]
    sizes = [3, *[4] * len(kernel_sizes)]
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, k in enumerate(kernel_sizes):
        shape = (sizes[layer + 1], sizes[layer], k, k)
        # With normalization a layer takes a mean over some 30 taps: weights that keep the numbers' size.
        gain = 6.0 if normalize else 1.0
        state[f"map_layer.convs.{layer}.weight"] = gain * torch.randn(shape, generator=generator).double() / k
        state[f"map_layer.convs.{layer}.bias"] = torch.randn(shape[0], generator=generator).double()

    model = nn.Module()
    model.map_layer = TemporalMapConv2d(mask, sizes[0], sizes[1:], kernel_sizes, paddings, normalize).double()
    model.load_state_dict(state)

    x = torch.randn(2, 3, *mask.shape, generator=generator).double() * mask
    expected = map_conv(x, state, mask, paddings, normalize)
    out = model.map_layer(torch.where(mask, x, torch.nan))
    assert out.shape == expected.shape == (2, 4, *mask.shape)
    assert float(expected[:, :, mask].abs().max()) > 1e-3  # the comparison is not of zeros
    torch.testing.assert_close(out, expected * mask, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))


def test_gradients_equal_2d_tan() -> None:
    mask, kernel_sizes, paddings = sparse_anchor_mask(12, (4, 3)), [5, 3], [3, 0]
    layer = TemporalMapConv2d(mask, 3, [4, 5], kernel_sizes, paddings).double()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64) * mask
    incoming = torch.randn(2, 5, 12, 12, dtype=torch.float64) * mask
    parameters = dict(layer.named_parameters())
    ours = torch.autograd.grad(layer(x), list(parameters.values()), incoming)
    state = {f"map_layer.{name}": value for name, value in parameters.items()}
    theirs = torch.autograd.grad(map_conv(x, state, mask, paddings, True), list(parameters.values()), incoming)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_state_dict_is_that_of_2d_tan() -> None:
    layer = TemporalMapConv2d(dense_anchor_mask(6), 3, [4, 5], [3, 3], [2, 0])
    names = ["convs.0.weight", "convs.0.bias", "convs.1.weight", "convs.1.bias"]
    assert list(layer.state_dict()) == names
    assert layer.state_dict()["convs.1.weight"].shape == (5, 4, 3, 3)


def test_masks_move_with_the_module() -> None:
    layer = TemporalMapConv2d(dense_anchor_mask(6), 3, [4], [3], [1]).to("meta")
    assert {buffer.device.type for buffer in layer.buffers()} == {"meta"}
    assert layer(torch.empty(2, 3, 6, 6, device="meta")).shape == (2, 4, 6, 6)


def test_compiles_and_runs_under_autocast() -> None:
    layer = TemporalMapConv2d(dense_anchor_mask(6), 3, [4, 5], [3, 3], [2, 0])
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with ops.backend("reference"):
        torch.testing.assert_close(layer(x), compiled(x), rtol=1e-4, atol=1e-5)


def test_wrong_sizes() -> None:
    mask = dense_anchor_mask(6)
    with pytest.raises(ValueError, match=r"hidden_sizes is \[4\] and kernel_sizes \[3, 3\]"):
        TemporalMapConv2d(mask, 3, [4], [3, 3], [2, 0])
    with pytest.raises(ValueError, match="the last size 6"):
        TemporalMapConv2d(mask, 3, [4, 4], [3, 3], [1, 0])
