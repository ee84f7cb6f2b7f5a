from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vpgfast.nn import BoundaryMatching


def sample_mask(T: int, N: int, per_bin: int, ratio: float, layout: str) -> Tensor:
    """The released layer's dense mask restated, [T, N, T, T]: moment (i, j) in cell (j - i, i) or (i, j), else zero."""
    mask = torch.zeros(T, N, T, T, dtype=torch.float64)
    for i in range(T):
        for j in range(i, T):
            length = float(j - i) + 1
            low, high = i - length * ratio, j + length * ratio
            step = (high - low) / (N * per_bin - 1.0)
            row, column = (j - i, i) if layout == "duration_start" else (i, j)
            for point in range(N * per_bin):
                position = low + step * point
                fraction, down = math.modf(position)
                for clip, weight in ((int(down), 1 - fraction), (math.ceil(position), fraction)):
                    if 0 <= clip < T:
                        mask[clip, point // per_bin, row, column] += weight / per_bin
    return mask


class Released(nn.Module):
    """BMN's layer as its authors released it: dense mask, then Conv3d."""

    def __init__(self, C: int, D: int, T: int, N: int, per_bin: int, ratio: float, layout: str) -> None:
        super().__init__()
        self.mask = sample_mask(T, N, per_bin, ratio, layout)
        self.conv = nn.Conv3d(C, D, (N, 1, 1), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        samples = torch.matmul(x, self.mask.flatten(1)).reshape(*x.shape[:2], *self.mask.shape[1:])
        return self.conv(samples).squeeze(2)


@pytest.mark.parametrize("layout", ["duration_start", "start_end"])
@pytest.mark.parametrize(
    ("T", "N", "per_bin", "ratio"), [(20, 32, 3, 0.5), (9, 4, 1, 0.0), (7, 5, 2, 0.3), (1, 3, 2, 1.7)]
)
def test_equals_the_released_layer(T: int, N: int, per_bin: int, ratio: float, layout: str) -> None:
    released = Released(4, 6, T, N, per_bin, ratio, layout)
    ours = BoundaryMatching(4, 6, T, None, N, per_bin, ratio, layout).double()  # type: ignore[arg-type]
    ours.load_state_dict(released.conv.state_dict())  # a Conv3d's weight, [6, 4, N, 1, 1]
    x = torch.randn(2, 4, T, dtype=torch.float64, requires_grad=True)
    expected, out = released(x), ours(x)
    torch.testing.assert_close(out, expected)
    invalid = released.mask.sum((0, 1)) == 0
    assert torch.equal(out[:, :, invalid], ours.bias[:, None].expand(2, 6, int(invalid.sum())))
    incoming = torch.randn_like(expected)
    theirs = torch.autograd.grad(expected, (x, *released.conv.parameters()), incoming)
    mine = torch.autograd.grad(out, (x, ours.weight, ours.bias), incoming)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b.reshape(a.shape))


def test_bmn_itself() -> None:
    """32 samples of 3 points, positions and weights of the whole released mask, in float32."""
    T = 50
    ours = BoundaryMatching(1, 1, T)
    released = sample_mask(T, 32, 3, 0.5, "duration_start").float()
    x = torch.randn(2, 1, T, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("bct,tnsi,dcn->bdsi", x, released, ours.weight) + ours.bias[:, None, None]
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)


def test_longest_duration() -> None:
    x = torch.randn(2, 3, 12)
    full = BoundaryMatching(3, 5, 12, num_samples=4)
    short = BoundaryMatching(3, 5, 12, max_duration=7, num_samples=4)
    short.load_state_dict(full.state_dict())
    torch.testing.assert_close(short(x), full(x)[:, :, :7])
    ends = BoundaryMatching(3, 5, 12, max_duration=7, num_samples=4, layout="start_end")
    ends.load_state_dict(full.state_dict())
    by_ends = ends(x)
    assert by_ends.shape == (2, 5, 12, 12)
    assert ends.bias is not None
    for i in range(12):
        for j in range(12):
            inside = 0 <= j - i < 7
            expected = full(x)[:, :, j - i, i] if inside else ends.bias.expand(2, 5)
            torch.testing.assert_close(by_ends[:, :, i, j], expected)


def test_a_thousand_clips() -> None:
    """The dense mask of this layer would take 128 GB (and 16-bit positions would be off by whole clips)."""
    layer = BoundaryMatching(2, 3, 1000, num_samples=4, samples_per_bin=1, boundary_ratio=0.0)
    x = torch.arange(1000.0).expand(1, 2, 1000).clone().requires_grad_()
    out = layer(x)
    assert out.shape == (1, 3, 1000, 1000)
    # x[t] = t, so a moment of clips i ... i + d samples i + d * n / 3.
    d, i = 300, 650
    samples = i + d * torch.arange(4) / 3
    expected = torch.einsum("dcn,n->d", layer.weight, samples) + layer.bias
    torch.testing.assert_close(out[0, :, d, i], expected, rtol=1e-4, atol=1e-3)
    out.sum().backward()
    assert x.grad is not None


def test_positions_survive_half_precision() -> None:
    layer = BoundaryMatching(2, 3, 600, max_duration=3, num_samples=4, samples_per_bin=1)
    x = torch.randn(1, 2, 600)
    expected = layer(x)
    out = layer.bfloat16()(x.bfloat16())
    torch.testing.assert_close(out.float(), expected, rtol=3e-2, atol=3e-2)


def test_state_dict() -> None:
    layer = BoundaryMatching(2, 3, 8, num_samples=4)
    assert {name: list(t.shape) for name, t in layer.state_dict().items()} == {"weight": [3, 2, 4], "bias": [3]}
    assert list(BoundaryMatching(2, 3, 8, bias=False).state_dict()) == ["weight"]
    model = nn.ModuleDict({"bm": layer})
    conv = nn.Conv3d(2, 3, (4, 1, 1))
    state = {f"bm.{name}": t for name, t in conv.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(layer.weight, conv.weight.flatten(2))
    assert state["bm.weight"].dim() == 5  # the caller's is left alone
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer.load_state_dict({"weight": torch.zeros(3, 2, 5, 1, 1), "bias": torch.zeros(3)})


def test_initial_values_are_conv3ds() -> None:
    torch.manual_seed(3)
    layer = BoundaryMatching(16, 8, 10, num_samples=4)
    torch.manual_seed(3)
    conv = nn.Conv3d(16, 8, (4, 1, 1))
    assert torch.equal(layer.weight, conv.weight.flatten(2))
    assert torch.equal(layer.bias, conv.bias)


def test_compiles_and_runs_under_autocast() -> None:
    layer = BoundaryMatching(2, 3, 8, num_samples=4)
    x = torch.randn(2, 2, 8)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_wrong_arguments() -> None:
    for change, message in (
        ({"num_samples": 0}, "num_samples is 0"),
        ({"samples_per_bin": 0}, "samples_per_bin is 0"),
        ({"max_duration": 9}, "max_duration is 9"),
        ({"boundary_ratio": -1.0}, "boundary_ratio is -1.0"),
        ({"layout": "rows"}, "layout is 'rows'"),
    ):
        with pytest.raises(ValueError, match=message):
            BoundaryMatching(2, 3, 8, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x has shape \[1, 2, 9\]; it must be \[B, 2, 8\]"):
        BoundaryMatching(2, 3, 8)(torch.zeros(1, 2, 9))


def test_lengths_of_the_videos() -> None:
    layer = BoundaryMatching(3, 4, T=8, num_samples=4)
    x = torch.randn(2, 3, 8)
    padded = x.clone()
    padded[1, :, 5:] = 0
    torch.testing.assert_close(layer(x, torch.tensor([8, 5])), layer(padded))
