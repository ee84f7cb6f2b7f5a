"""More than 2^31 elements: indices and their products must be formed in 64 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vpgfast.ops import temporal_iou_map, temporal_map_max_pool

CLIPS = 46_400  # whose square is above 2^31


def available_memory() -> float:
    """GiB that a process can still take without swapping; nothing where the system does not say."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable")), 0.0)


pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        available_memory() < 8, reason=f"needs 8 GiB of memory; {available_memory():.1f} are known to be free"
    ),
]


def test_iou_map() -> None:
    span = torch.tensor([[[0.25, 0.75]]], dtype=torch.bfloat16)
    out = temporal_iou_map(span, CLIPS)[0, 0]
    assert out.numel() > 2**31
    for i, j in [(0, CLIPS - 1), (CLIPS - 1, CLIPS - 1), (CLIPS // 4, 3 * CLIPS // 4 - 1), (CLIPS // 2, CLIPS - 1)]:
        start, end = i / CLIPS, (j + 1) / CLIPS
        shared = max(0.0, min(end, 0.75) - max(start, 0.25))
        assert float(out[i, j]) == pytest.approx(shared / (end - start + 0.5 - shared), rel=1e-2)
    assert not out[-1, :-1].any()


def test_max_pool_map_and_its_gradient() -> None:
    """Of falling features: a moment's first clip is its largest."""
    x = torch.linspace(1, 0, CLIPS).half()[None, None]
    out = temporal_map_max_pool(x)
    for i in (0, CLIPS // 3, CLIPS - 2, CLIPS - 1):
        assert (out[0, 0, i, i:] == x[0, 0, i]).all()
        assert not out[0, 0, i, :i].any()
    grad = torch.ops.vpgfast.temporal_map_max_pool_backward(out, x)
    expected = x.double() * torch.arange(CLIPS, 0, -1)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-3, atol=1e-3)


def test_max_pool_of_spans() -> None:
    channels, T, count = 4_900, 40, 440_000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, T, generator=generator).half()
    spans = torch.randint(0, T, (count, 2), generator=generator).sort(-1).values
    out = temporal_map_max_pool(x, spans)
    assert out.numel() > 2**31
    for channel in (0, channels // 2, channels - 1):
        part = slice(channel, channel + 1)
        assert torch.equal(out[:, part], temporal_map_max_pool(x[:, part], spans))
    first, last = spans[-1].tolist()
    assert out[0, -1, -1] == x[0, -1, first : last + 1].max()
