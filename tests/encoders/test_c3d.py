"""C3D against its layer table written with torch.nn.functional alone, in both published layouts."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from random_weights import Weights, one_line, write_video
from torch import Tensor
from torch.nn import functional as F

from vpgfast.encoders.base import load_encoder
from vpgfast.encoders.c3d import C3D, C3DNetwork, read_pca
from vpgfast.errors import ConfigError

# name in c3d.pickle, name in mmaction2's file, inputs, outputs, pooling behind it (size, padding)
TABLE = [
    ("conv1", "conv1a", 3, 64, ((1, 2, 2), 0)),
    ("conv2", "conv2a", 64, 128, ((2, 2, 2), 0)),
    ("conv3a", "conv3a", 128, 256, None),
    ("conv3b", "conv3b", 256, 256, ((2, 2, 2), 0)),
    ("conv4a", "conv4a", 256, 512, None),
    ("conv4b", "conv4b", 512, 512, ((2, 2, 2), 0)),
    ("conv5a", "conv5a", 512, 512, None),
    ("conv5b", "conv5b", 512, 512, ((2, 2, 2), (0, 1, 1))),
]


@pytest.fixture(scope="module")
def published() -> Weights:
    """As c3d.pickle has them."""
    weights = Weights(0)
    for name, _, inputs, outputs, _ in TABLE:
        weights.convolution(name, outputs, inputs, 3, 3, 3, bias=True)
    weights.linear("fc6", 4096, 8192)
    weights.linear("fc7", 4096, 4096)
    weights.linear("fc8", 487, 4096)
    return weights


@pytest.fixture(scope="module")
def file(published: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c3d") / "c3d.pickle"
    torch.save(dict(published), path, _use_new_zipfile_serialization=False)  # as torch wrote files in 2017
    return path


@pytest.fixture(scope="module")
def encoder(file: Path) -> C3D:
    encoder = load_encoder(f"c3d:{file}")
    assert isinstance(encoder, C3D)
    return encoder


def layers(weights: Weights, x: Tensor) -> dict[str, Tensor]:
    """Output of every layer before its ReLU, by its name in c3d.pickle."""
    outputs = {}
    for name, _, _, _, pool in TABLE:
        outputs[name] = F.conv3d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
        x = outputs[name].clamp(min=0)
        if pool is not None:
            x = F.max_pool3d(x, pool[0], stride=pool[0], padding=pool[1])
    outputs["fc6"] = x.reshape(len(x), 8192) @ weights["fc6.weight"].T + weights["fc6.bias"]
    outputs["fc7"] = outputs["fc6"].clamp(min=0) @ weights["fc7.weight"].T + weights["fc7.bias"]
    return outputs


def test_every_layer(published: Weights, encoder: C3D) -> None:
    clips = torch.randint(0, 256, (1, 16, 112, 112, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found: dict[str, Tensor] = {}
    assert isinstance(encoder.network, C3DNetwork)
    for name, module in encoder.network.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
    with torch.inference_mode():
        encoder.network(clips.permute(0, 4, 1, 2, 3).float())
        fc6 = encoder.encode_clips(clips)
        expected = layers(published, clips.permute(0, 4, 1, 2, 3).float())
    assert found.keys() == expected.keys()
    for name, output in expected.items():
        assert output.std() > 1, name  # or the comparison would say nothing
        torch.testing.assert_close(found[name], output, rtol=1e-3, atol=1e-3 * float(output.std()), msg=name)
    assert fc6.shape == (1, 1, 4096)
    assert 0.2 < (fc6 > 0).float().mean() < 0.8  # after ReLU
    torch.testing.assert_close(fc6[:, 0], expected["fc6"].clamp(min=0), rtol=1e-3, atol=0.1)


def test_mmaction2(published: Weights, encoder: C3D, tmp_path: Path) -> None:
    """The same numbers under mmaction2's names give the same features of the same pixels, less its mean."""
    state = {}
    for name, theirs, *_ in TABLE:
        for part in ("weight", "bias"):
            state[f"backbone.{theirs}.conv.{part}"] = published[f"{name}.{part}"]
    for name in ("fc6", "fc7"):
        for part in ("weight", "bias"):
            state[f"backbone.{name}.{part}"] = published[f"{name}.{part}"]
    state["cls_head.fc_cls.weight"] = torch.zeros(101, 4096)
    torch.save({"meta": {"epoch": 45}, "state_dict": state}, tmp_path / "c3d_sports1m_pretrain.pth")
    other = load_encoder(f"c3d:{tmp_path / 'c3d_sports1m_pretrain.pth'},layer=fc7")
    assert (other.picture.short_side, other.picture.size, other.picture.crop) == (128, None, (112, 112))
    assert (encoder.picture.short_side, encoder.picture.size, encoder.picture.crop) == (None, (112, 200), (112, 112))
    clips = torch.randint(128, 256, (1, 16, 112, 112, 3), dtype=torch.uint8)
    clips[..., 0], clips[..., 1], clips[..., 2] = 104, 117, 128  # the mean: every pixel becomes 0
    with torch.inference_mode():
        found = other.encode_clips(clips)
        assert isinstance(encoder.network, C3DNetwork)
        expected = encoder.network(torch.zeros(1, 3, 16, 112, 112), "fc7")
    torch.testing.assert_close(found[:, 0], expected)
    assert other.identity().key != encoder.identity().key


def test_pca(tmp_path: Path, file: Path, encoder: C3D) -> None:
    draw = np.random.default_rng(2)
    mean, directions = draw.random((1, 4096)), draw.random((4096, 9)) / 4096
    with h5py.File(tmp_path / "pca.hdf5", "w") as pca:
        pca["data/x_mean"], pca["data/U"], pca["data/S"] = mean, directions, np.arange(9.0)
    reduced = load_encoder(f"c3d:{file},pca={tmp_path / 'pca.hdf5'},components=5")
    clips = torch.randint(0, 256, (2, 16, 112, 112, 3), dtype=torch.uint8)
    with torch.inference_mode():
        whole, found = encoder.encode_clips(clips)[:, 0].double().numpy(), reduced.encode_clips(clips)
    expected = (whole - mean) @ directions[:, :5]
    assert reduced.dim == 5
    assert found.shape == (2, 1, 5)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())

    assert reduced.sha256 != encoder.sha256  # which is of both files
    assert "pca" not in reduced.identity().settings["options"]  # where the file lies is no part of it
    assert str(tmp_path / "pca.hdf5") in reduced.identity().spec


def test_a_pca_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*nowhere.hdf5; option pca .*activity-net.org") as caught:
        read_pca(tmp_path / "nowhere.hdf5", 500)
    one_line(caught.value)
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(ConfigError, match=r"text.hdf5 has no datasets x_mean and U"):
        read_pca(tmp_path / "text.hdf5", 500)
    with h5py.File(tmp_path / "narrow.hdf5", "w") as pca:
        pca["x_mean"], pca["U"] = np.zeros(4096), np.zeros((4096, 20))
    with pytest.raises(ConfigError, match=r"\(4096, 20\) of U; 4096 and 4096 x 500 \(option components\)"):
        read_pca(tmp_path / "narrow.hdf5", 500)
    assert read_pca(tmp_path / "narrow.hdf5", 20)[1].shape == (4096, 20)


def test_a_video(encoder: C3D, tmp_path: Path) -> None:
    """34 frames, 10 a second: windows of 16 begin at frames 0, 8 and 16; 24 + 16 > 34."""
    video = write_video(tmp_path / "clip.mp4", frames=34, size=(120, 160))
    encoded = encoder.encode(video)
    assert encoded.features.shape == (3, 4096)
    assert encoded.features.dtype == np.float32
    np.testing.assert_allclose(encoded.times, [[0, 1.6], [0.8, 2.4], [1.6, 3.2]], atol=1e-3)
    assert encoded.duration == pytest.approx(3.4, abs=1e-3)
    assert len(np.unique(encoded.features, axis=0)) == 3


def test_what_is_no_c3d(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs its weights' file, as in --encoder c3d:FILE; that is c3d.pickle of"):
        load_encoder("c3d")
    with pytest.raises(ConfigError, match=r"no file .*nowhere.pickle.*github.com/DavideA/c3d-pytorch") as caught:
        load_encoder(f"c3d:{tmp_path / 'nowhere.pickle'}")
    one_line(caught.value)
    torch.save({"conv1.weight": torch.zeros(64, 3, 3, 3, 3), "layer1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other.pth: 19 of 20 are missing, 'conv1.bias' first") as caught:
        load_encoder(f"c3d:{tmp_path / 'other.pth'}")
    one_line(caught.value)
    with pytest.raises(ConfigError, match="option components must be 1 or more, got 0"):
        load_encoder(f"c3d:{tmp_path / 'other.pth'},components=0")
    with pytest.raises(ConfigError, match="option window must be 1 or more, got 0"):
        load_encoder(f"c3d:{tmp_path / 'other.pth'},window=0")


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("saved", ["torch", "old torch", "pickle"])
def test_a_trap_is_not_executed(tmp_path: Path, saved: str) -> None:
    sprung, file = tmp_path / "sprung", tmp_path / "c3d.pickle"
    content = {"conv1.weight": Trap(sprung)}
    if saved == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=saved == "torch")
    with pytest.raises(ConfigError, match=r"c3d.pickle: holds more than tensors") as caught:
        load_encoder(f"c3d:{file}")
    one_line(caught.value)
    assert not sprung.exists()
    if saved == "pickle":  # it does make the file where it is executed
        pickle.loads(file.read_bytes())
        assert sprung.exists()
