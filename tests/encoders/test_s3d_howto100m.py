"""MIL-NCE's S3D-G and its text tower against their tables written with torch.nn.functional alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import Weights, one_line, write_video
from torch import Tensor
from torch.nn import functional as F

from vpgfast.encoders.base import load_encoder
from vpgfast.encoders.s3d_howto100m import S3DHowTo100M, S3DNetwork, split_words
from vpgfast.errors import ConfigError

MIXED = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
WORDS = ["the", "open", "door", "cut", "tomato", "don't", "a"]


@pytest.fixture(scope="module")
def published() -> Weights:
    """As s3d_howto100m.pth has them, of a smaller vocabulary."""
    weights = Weights(0)

    def plain(name: str, outputs: int, inputs: int, *kernel: int) -> None:
        weights.convolution(f"{name}.conv1", outputs, inputs, *(kernel or (1, 1, 1)))
        weights.batch_norm(f"{name}.bn1", outputs)

    def separable(name: str, outputs: int, inputs: int) -> None:
        plain(name, outputs, inputs, 1, 3, 3)
        weights.convolution(f"{name}.conv2", outputs, outputs, 3, 1, 1)
        weights.batch_norm(f"{name}.bn2", outputs)

    plain("conv1", 64, 24, 2, 4, 4)
    plain("conv_2b", 64, 64)
    separable("conv_2c", 192, 64)
    weights.linear("gating.fc", 192, 192)
    inputs = 192
    for name, (b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        plain(f"{name}.conv_b0", b0, inputs)
        plain(f"{name}.conv_b1_a", b1a, inputs)
        separable(f"{name}.conv_b1_b", b1b, b1a)
        plain(f"{name}.conv_b2_a", b2a, inputs)
        separable(f"{name}.conv_b2_b", b2b, b2a)
        plain(f"{name}.conv_b3_b", b3b, inputs)
        for branch, width in enumerate((b0, b1b, b2b, b3b)):
            weights.linear(f"{name}.gating_b{branch}.fc", width, width)
        inputs = b0 + b1b + b2b + b3b
    weights.linear("fc", 512, 1024)
    weights["text_module.word_embd.weight"] = weights.normal(1 + len(WORDS), 300)
    weights.linear("text_module.fc1", 2048, 300)
    weights.linear("text_module.fc2", 512, 2048)
    return weights


@pytest.fixture(scope="module")
def folder(published: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s3d")
    torch.save(dict(published), folder / "s3d_howto100m.pth")
    np.save(folder / "s3d_dict.npy", np.array(WORDS))
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> S3DHowTo100M:
    encoder = load_encoder(f"s3d_howto100m:{folder / 's3d_howto100m.pth'}")
    assert isinstance(encoder, S3DHowTo100M)
    return encoder


def layers(weights: Weights, clip: Tensor) -> dict[str, Tensor]:
    """Output of every layer, of [1, 3, T, H, W]."""
    outputs: dict[str, Tensor] = {}

    def unit(name: str, x: Tensor, number: int = 1) -> Tensor:
        kernel = weights[f"{name}.conv{number}.weight"]
        norm = [weights[f"{name}.bn{number}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        y = F.conv3d(x, kernel, padding=[k // 2 for k in kernel.shape[2:]])
        outputs[name] = F.batch_norm(y, *norm, eps=1e-5).clamp(min=0)
        return unit(name, outputs[name], 2) if number == 1 and f"{name}.conv2.weight" in weights else outputs[name]

    def gate(name: str, x: Tensor) -> Tensor:
        mean = x.flatten(2).mean(2)
        scale = 1 / (1 + (-(mean @ weights[f"{name}.fc.weight"].T + weights[f"{name}.fc.bias"])).exp())
        outputs[name] = torch.einsum("bc,bcthw->bcthw", scale, x)
        return outputs[name]

    def pool(x: Tensor, size: int, step: int, axes: tuple[int, ...]) -> Tensor:
        """Windows that begin at 0, step, 2 step, ... of what is padded by size - step at the end."""
        for axis in axes:
            n = x.shape[axis]
            x = torch.cat([x] + [torch.zeros_like(x.narrow(axis, 0, 1))] * (size - step), dim=axis)
            total = x.shape[axis]
            pieces = [
                x.narrow(axis, begin, min(size, total - begin)).amax(dim=axis, keepdim=True)
                for begin in range(0, n, step)
            ]
            x = torch.cat(pieces, dim=axis)
        return x

    # space to depth: channel = ((time offset * 2 + row offset) * 2 + column offset) * 3 + colour
    offsets = [clip[:, c, i::2, j::2, k::2] for i in (0, 1) for j in (0, 1) for k in (0, 1) for c in range(3)]
    x = unit("conv1", torch.stack(offsets, dim=1))[:, :, 1:, 1:, 1:]
    x = unit("conv_2b", pool(x, 3, 2, (3, 4)))
    x = pool(gate("gating", unit("conv_2c", x)), 3, 2, (3, 4))
    for name in MIXED:
        if name == "mixed_4b":
            x = pool(x, 3, 2, (2, 3, 4))
        if name == "mixed_5b":
            x = pool(x, 2, 2, (2, 3, 4))
        around = F.max_pool3d(F.pad(x, (1,) * 6, value=-torch.inf), 3, stride=1)
        branches = (
            unit(f"{name}.conv_b0", x),
            unit(f"{name}.conv_b1_b", unit(f"{name}.conv_b1_a", x)),
            unit(f"{name}.conv_b2_b", unit(f"{name}.conv_b2_a", x)),
            unit(f"{name}.conv_b3_b", around),
        )
        x = torch.cat([gate(f"{name}.gating_b{i}", branch) for i, branch in enumerate(branches)], dim=1)
        outputs[name] = x
    return outputs


@pytest.mark.parametrize("size", [(10, 50, 36), (16, 26, 28)])
def test_every_layer(published: Weights, encoder: S3DHowTo100M, size: tuple[int, int, int]) -> None:
    network = encoder.network
    assert isinstance(network, S3DNetwork)
    clip = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = layers(published, clip)
        found: dict[str, Tensor] = {}
        hooks = [
            network.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
            for name in expected
        ]
        mean = network(clip)
        for hook in hooks:
            hook.remove()
    assert len(expected) == 4 + 9 * (6 + 4 + 1)
    for name, output in expected.items():
        assert output.std() > 0.01, name  # or the comparison would say nothing
        torch.testing.assert_close(found[name], output, rtol=1e-3, atol=1e-3 * float(output.std()), msg=name)
    torch.testing.assert_close(mean, expected["mixed_5c"].mean(dim=(2, 3, 4)), rtol=1e-3, atol=1e-5)


def test_outputs(published: Weights, folder: Path, encoder: S3DHowTo100M) -> None:
    wide = load_encoder(f"s3d_howto100m:{folder / 's3d_howto100m.pth'},output=mixed_5c,window=16,size=64")
    clips = torch.randint(0, 256, (2, 16, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        embedding, mixed = encoder.encode_clips(clips), wide.encode_clips(clips)
        one = layers(published, clips[1:].permute(0, 4, 1, 2, 3) / 255)["mixed_5c"].mean(dim=(2, 3, 4))
    assert (encoder.dim, wide.dim) == (512, 1024)
    assert embedding.shape == (2, 1, 512)
    assert mixed.shape == (2, 1, 1024)
    assert (mixed >= 0).all()
    torch.testing.assert_close(mixed[1], one, rtol=1e-3, atol=1e-5)
    joint = one @ published["fc.weight"].T + published["fc.bias"]
    torch.testing.assert_close(embedding[1], joint, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="output=mixed_5c is not the space that sentences are in"):
        wide.encode_text(["open door"])


def test_text(published: Weights, encoder: S3DHowTo100M) -> None:
    """Numbers of words begin with 1; words that are not known are left out; the rest of 16 is word 0, which counts."""
    long = " ".join(["a"] * 15 + ["door", "tomato"])  # the 17th is not read
    sentences = ["Open the DOOR!", "zebra", "", "don't cut zebra-tomato", long]
    numbers = [[2, 1, 3] + [0] * 13, [0] * 16, [0] * 16, [6, 4, 5] + [0] * 13, [7] * 15 + [3]]
    vectors = published["text_module.word_embd.weight"][torch.tensor(numbers)]
    hidden = vectors @ published["text_module.fc1.weight"].T + published["text_module.fc1.bias"]
    joint = hidden.clamp(min=0).max(dim=1).values @ published["text_module.fc2.weight"].T
    found = encoder.encode_text(sentences)
    assert found.shape == (5, 512)
    torch.testing.assert_close(found, joint + published["text_module.fc2.bias"], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[1], found[2])
    assert not torch.allclose(found[0], found[3])
    assert encoder.encode_text([]).shape == (0, 512)


def test_words() -> None:
    assert split_words("Don't cut the well-known tomato_soup, 2 times.") == [
        "don't", "cut", "the", "well", "known", "tomato_soup", "2", "times",
    ]  # fmt: skip


def test_the_dictionary(folder: Path, tmp_path: Path, encoder: S3DHowTo100M) -> None:
    weights = tmp_path / "s3d_howto100m.pth"
    weights.symlink_to(folder / "s3d_howto100m.pth")
    lonely = load_encoder(f"s3d_howto100m:{weights},dictionary={tmp_path / 'words.npy'}")
    assert isinstance(lonely, S3DHowTo100M)

    def refused(match: str) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            lonely.encode_text(["open door"])
        one_line(caught.value)

    refused(r"no dictionary .*words.npy.*dictionary=FILE; that is s3d_dict.npy of https://github.com/antoine77340")
    np.save(tmp_path / "words.npy", np.arange(3))
    refused("words.npy is no array of strings")
    np.save(tmp_path / "words.npy", np.array([f"word{i}" for i in range(9)]))
    refused("words.npy has 9 words, the weights have vectors of 8")
    np.save(tmp_path / "words.npy", np.array(WORDS[::-1]))
    assert torch.equal(lonely.encode_text(["cut"]), encoder.encode_text(["cut"]))  # in the middle: the same number
    other = load_encoder(f"s3d_howto100m:{weights},dictionary={tmp_path / 'words.npy'}")
    assert other.identity().key == encoder.identity().key  # clips lie where they lay: features stay good
    same = load_encoder(f"s3d_howto100m:{weights},dictionary={folder / 's3d_dict.npy'}")
    assert same.identity().key == encoder.identity().key


def test_a_trap_is_not_executed(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    np.save(tmp_path / "words.npy", np.array([Trap(), "door"], object), allow_pickle=True)
    encoder = load_encoder(f"s3d_howto100m:{folder / 's3d_howto100m.pth'},dictionary={tmp_path / 'words.npy'}")
    with pytest.raises(ConfigError, match=r"words.npy is no array of strings in NumPy's format") as caught:
        encoder.encode_text(["door"])
    one_line(caught.value)
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"fc.weight": Trap()}, protocol=2))
    with pytest.raises(ConfigError, match=r"trap.pth: holds more than tensors"):
        load_encoder(f"s3d_howto100m:{tmp_path / 'trap.pth'}")
    assert not (tmp_path / "sprung").exists()


def test_a_video(folder: Path, tmp_path: Path) -> None:
    """3 s at 10 frames a second: windows of 16 begin at 0 and 16; the second is filled up from frame 30 on."""
    video = write_video(tmp_path / "clip.mp4", frames=30, size=(48, 64))
    spec = f"s3d_howto100m:{folder / 's3d_howto100m.pth'},window=16,stride=16,size=40"
    encoded = load_encoder(spec).encode(video)
    assert encoded.features.shape == (2, 512)
    np.testing.assert_allclose(encoded.times, [[0, 1.6], [1.6, 3.0]], atol=1e-3)


def test_what_is_no_s3d(folder: Path, tmp_path: Path, published: Weights) -> None:
    with pytest.raises(ConfigError, match=r"no file .*nowhere.pth.*github.com/antoine77340/S3D_HowTo100M") as caught:
        load_encoder(f"s3d_howto100m:{tmp_path / 'nowhere.pth'}")
    one_line(caught.value)
    for option in ("window=31", "size=223"):
        with pytest.raises(ConfigError, match=f"option {option.split('=')[0]} must be even"):
            load_encoder(f"s3d_howto100m:{folder / 's3d_howto100m.pth'},{option}")
    ungated = {name: value for name, value in published.items() if "gating" not in name}
    torch.save(ungated, tmp_path / "s3d.pth")
    with pytest.raises(ConfigError, match=r"s3d.pth: 74 of \d+ are missing, 'gating.fc.weight' first") as caught:
        load_encoder(f"s3d_howto100m:{tmp_path / 's3d.pth'}")
    one_line(caught.value)
