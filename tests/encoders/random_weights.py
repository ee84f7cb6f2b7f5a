"""Random weights under published names, for tests that restate a network from those names; and a video to encode."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor


class Weights(dict[str, Tensor]):
    """A state dict that is drawn name by name, with sizes that keep numbers of order one through many layers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def convolution(self, name: str, outputs: int, inputs: int, *kernel: int, bias: bool = False) -> None:
        fan_in = inputs * int(np.prod(kernel))
        self[f"{name}.weight"] = self.normal(outputs, inputs, *kernel) * (2 / fan_in) ** 0.5
        if bias:
            self[f"{name}.bias"] = self.normal(outputs) * 0.1

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.convolution(name, outputs, inputs, bias=True)

    def batch_norm(self, name: str, channels: int) -> None:
        """Small variances among them, so that an epsilon of another size is seen."""
        self[f"{name}.weight"] = 0.7 + 0.2 * self.normal(channels).abs()
        self[f"{name}.bias"] = 0.2 * self.normal(channels)
        self[f"{name}.running_mean"] = 0.2 * self.normal(channels)
        self[f"{name}.running_var"] = 0.5 + self.normal(channels).abs()
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)


def write_video(path: Path, frames: int, rate: int = 10, size: tuple[int, int] = (48, 64)) -> Path:
    """A video (MPEG-4) of moving noise: ``frames`` frames of height x width ``size``, ``rate`` a second."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    picture = coarse.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def one_line(error: BaseException) -> str:
    """The message of an error, which must be a single line."""
    text = str(error)
    assert "\n" not in text, text
    return text
