"""SlowFast R50 8x8 against its layer table written with torch.nn.functional alone; three layouts; HERO's windows."""

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
from vpgfast.encoders.slowfast import SlowFast, SlowFastNetwork
from vpgfast.errors import ConfigError, VideoError

NAMES: list[tuple[str, str, str, tuple[int, ...]]] = []
"""Every convolution with the normalisation behind it: both names in PySlowFast's, pytorchvideo's and Caffe2's layout
(joined by a blank), and the shape of its kernel."""

for p, t, channels, time in ((0, "", 64, 1), (1, "t_", 8, 5)):
    NAMES.append(
        (
            f"s1.pathway{p}_stem.conv s1.pathway{p}_stem.bn",
            f"blocks.0.multipathway_blocks.{p}.conv blocks.0.multipathway_blocks.{p}.norm",
            f"{t}conv1 {t}res_conv1_bn",
            (channels, 3, time, 7, 7),
        )
    )
for k, fast, blob in (
    (1, 8, "t_pool1"),
    (2, 32, "t_res2_2_branch2c_bn"),
    (3, 64, "t_res3_3_branch2c_bn"),
    (4, 128, "t_res4_5_branch2c_bn"),
):
    NAMES.append(
        (
            f"s{k}_fuse.conv_f2s s{k}_fuse.bn",
            f"blocks.{k - 1}.multipathway_fusion.conv_fast_to_slow blocks.{k - 1}.multipathway_fusion.norm",
            f"{blob}_subsample {blob}_subsample_bn",
            (2 * fast, fast, 7, 1, 1),
        )
    )
# stage, blocks, channels: slow into, slow inner, slow out, fast into, fast inner, fast out; size in time: slow, fast
STAGES = [
    (2, 3, (80, 64, 256), (8, 8, 32), 1, 3),
    (3, 4, (320, 128, 512), (32, 16, 64), 1, 3),
    (4, 6, (640, 256, 1024), (64, 32, 128), 3, 3),
    (5, 3, (1280, 512, 2048), (128, 64, 256), 3, 3),
]
for k, blocks, slow, fast_, slow_time, fast_time in STAGES:
    for p, t, (into, inner, out), time in ((0, "", slow, slow_time), (1, "t_", fast_, fast_time)):
        for i in range(blocks):
            s, v, c = (
                f"s{k}.pathway{p}_res{i}",
                f"blocks.{k - 1}.multipathway_blocks.{p}.res_blocks.{i}",
                f"{t}res{k}_{i}",
            )
            first = into if i == 0 else out
            for letter, shape in (
                ("a", (inner, first, time, 1, 1)),
                ("b", (inner, inner, 1, 3, 3)),
                ("c", (out, inner, 1, 1, 1)),
            ):
                NAMES.append(
                    (
                        f"{s}.branch2.{letter} {s}.branch2.{letter}_bn",
                        f"{v}.branch2.conv_{letter} {v}.branch2.norm_{letter}",
                        f"{c}_branch2{letter} {c}_branch2{letter}_bn",
                        shape,
                    )
                )
            if i == 0:
                NAMES.append(
                    (
                        f"{s}.branch1 {s}.branch1_bn",
                        f"{v}.branch1_conv {v}.branch1_norm",
                        f"{c}_branch1 {c}_branch1_bn",
                        (out, into, 1, 1, 1),
                    )
                )


@pytest.fixture(scope="module")
def published() -> Weights:
    """As PySlowFast's own checkpoints have them."""
    weights = Weights(0)
    for names, _, _, (outputs, inputs, *kernel) in NAMES:
        convolution, norm = names.split()
        weights.convolution(convolution, outputs, inputs, *kernel)
        weights.batch_norm(norm, outputs)
        if convolution.endswith("branch2.c"):
            weights[f"{norm}.weight"] *= 0.3  # or sums over many blocks grow
    weights.linear("head.projection", 400, 2304)
    return weights


@pytest.fixture(scope="module")
def folder(published: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same numbers in the three layouts."""
    folder = tmp_path_factory.mktemp("slowfast")
    torch.save({"epoch": 196, "model_state": dict(published), "cfg": "MODEL: ..."}, folder / "pyslowfast.pyth")
    state = {"blocks.6.proj.weight": published["head.projection.weight"]}
    blobs = {"pred_w": published["head.projection.weight"].numpy(), "lr": np.float32(0.1), "model_iter": np.ones(1)}
    bn = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    for names, others, blob_names, _ in NAMES:
        (conv, norm), (conv_video, norm_video) = names.split(), others.split()
        conv_blob, norm_blob = blob_names.split()
        state[f"{conv_video}.weight"] = published[f"{conv}.weight"]
        blobs[f"{conv_blob}_w"] = published[f"{conv}.weight"].numpy()
        blobs[f"{conv_blob}_w_momentum"] = np.zeros(3, np.float32)
        for part, short in bn.items():
            state[f"{norm_video}.{part}"] = published[f"{norm}.{part}"]
            blobs[f"{norm_blob}_{short}"] = published[f"{norm}.{part}"].numpy()
    torch.save({"model_state": state}, folder / "pytorchvideo.pyth")
    (folder / "SLOWFAST_8x8_R50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SlowFast:
    encoder = load_encoder(f"slowfast:{folder / 'pyslowfast.pyth'}")
    assert isinstance(encoder, SlowFast)
    return encoder


def layers(weights: Weights, clip: Tensor) -> dict[str, Tensor]:
    """Output of every stem before its ReLU, of every fusion before its ReLU, of every block."""
    outputs: dict[str, Tensor] = {}

    def unit(name: str, norm: str, x: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        kernel = weights[f"{name}.weight"]
        y = F.conv3d(x, kernel, stride=stride, padding=[k // 2 for k in kernel.shape[2:]])
        mean, var = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        scale = weights[f"{norm}.weight"] / (var + 1e-5).sqrt()
        return y * scale.view(-1, 1, 1, 1) + (weights[f"{norm}.bias"] - mean * scale).view(-1, 1, 1, 1)

    def pool(x: Tensor) -> Tensor:
        return F.max_pool3d(x, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))

    paths = [clip[:, :, [0, 4, 8, 13, 17, 22, 26, 31]], clip]  # of 32 frames
    for path in (0, 1):
        name = f"s1.pathway{path}_stem"
        outputs[name] = unit(f"{name}.conv", f"{name}.bn", paths[path], (1, 2, 2))
        paths[path] = pool(outputs[name].clamp(min=0))
    for k, blocks, *_ in STAGES:
        name = f"s{k - 1}_fuse"
        outputs[name] = unit(f"{name}.conv_f2s", f"{name}.bn", paths[1], (4, 1, 1))
        paths[0] = torch.cat([paths[0], outputs[name].clamp(min=0)], dim=1)
        for path in (0, 1):
            for i in range(blocks):
                name, x = f"s{k}.pathway{path}_res{i}", paths[path]
                stride = (1, 2, 2) if k > 2 and i == 0 else (1, 1, 1)
                y = unit(f"{name}.branch2.a", f"{name}.branch2.a_bn", x).clamp(min=0)
                y = unit(f"{name}.branch2.b", f"{name}.branch2.b_bn", y, stride).clamp(min=0)
                y = unit(f"{name}.branch2.c", f"{name}.branch2.c_bn", y)
                shortcut = unit(f"{name}.branch1", f"{name}.branch1_bn", x, stride) if i == 0 else x
                outputs[name] = paths[path] = (shortcut + y).clamp(min=0)
    return outputs


@pytest.mark.parametrize("size", [(33, 45), (64, 47)])
def test_every_layer(published: Weights, encoder: SlowFast, size: tuple[int, int]) -> None:
    network = encoder.network
    assert isinstance(network, SlowFastNetwork)
    clip = torch.randn(1, 3, 32, *size, generator=torch.Generator().manual_seed(0))
    modules = {f"stems.{path}": f"s1.pathway{path}_stem" for path in (0, 1)}
    modules |= {f"fuse.{stage}": f"s{stage + 1}_fuse" for stage in range(4)}
    for k, blocks, *_ in STAGES:
        modules |= {f"stages.{k - 2}.{p}.{i}": f"s{k}.pathway{p}_res{i}" for p in (0, 1) for i in range(blocks)}
    found: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(ours).register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
        for ours, name in modules.items()
    ]
    with torch.inference_mode():
        row, expected = network(clip), layers(published, clip)
    for hook in hooks:
        hook.remove()
    assert found.keys() == expected.keys()
    assert len(expected) == 2 + 4 + 2 * 16
    for name, output in expected.items():
        assert 0.05 < output.std() < 50, name  # or the comparison would say nothing
        torch.testing.assert_close(found[name], output, rtol=1e-3, atol=1e-3 * float(output.std()), msg=name)
    means = [expected[f"s5.pathway{path}_res2"].mean(dim=(2, 3, 4)) for path in (0, 1)]
    torch.testing.assert_close(row, torch.cat(means, dim=1), rtol=1e-3, atol=1e-3)


def test_pooling_above_224(encoder: SlowFast) -> None:
    """256 pixels give 8 x 8: four windows of 7 x 7, in which the middle 6 x 6 counts four times and a corner once."""
    assert isinstance(encoder.network, SlowFastNetwork)
    last: list[Tensor] = []
    blocks = [encoder.network.get_submodule(name) for name in ("stages.3.0.2", "stages.3.1.2")]
    hooks = [block.register_forward_hook(lambda _, __, y: last.append(y)) for block in blocks]
    clip = torch.randint(0, 256, (1, 32, 256, 256, 3), dtype=torch.uint8)
    with torch.inference_mode():
        row = encoder.encode_clips(clip[:, :8])  # 8 frames are enough to see it
    for hook in hooks:
        hook.remove()
    weight = torch.ones(8, 8)
    weight[1:7] *= 2
    weight[:, 1:7] *= 2
    means = [(y * weight).sum(dim=(3, 4)).mean(2) / (4 * 49) for y in last]
    assert last[0].shape[3:] == (8, 8)
    assert row.shape == (1, 1, 2304)
    torch.testing.assert_close(row[:, 0], torch.cat(means, dim=1), rtol=1e-3, atol=1e-4)


def test_pixels(encoder: SlowFast) -> None:
    assert isinstance(encoder.network, SlowFastNetwork)
    clips = torch.randint(0, 256, (2, 32, 32, 48, 3), dtype=torch.uint8)
    pixels = (clips.double() / 255 - 0.45) / 0.225
    with torch.inference_mode():
        expected = encoder.network(pixels.float().permute(0, 4, 1, 2, 3))
        torch.testing.assert_close(encoder.encode_clips(clips)[:, 0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("file", ["pytorchvideo.pyth", "SLOWFAST_8x8_R50.pkl"])
def test_layouts_give_the_same(folder: Path, encoder: SlowFast, file: str) -> None:
    other = load_encoder(f"slowfast:{folder / file}")
    clips = torch.randint(0, 256, (1, 32, 40, 40, 3), dtype=torch.uint8)
    with torch.inference_mode():
        first, second = encoder.encode_clips(clips), other.encode_clips(clips)
    assert first.std() > 0.05
    assert torch.equal(first, second)


def test_hero(folder: Path, tmp_path: Path) -> None:
    """5.2 s at 10 frames a second, looked at 30 times a second: 156 frames, windows at 0, 60 and 120 (36 of 60 there).

    Frames are spread over 64 * 10 / 30 = 21.33 of the window: floor of linspace(0, 20.33, 32), step 0.656. At 30 looks
    a second each picture of the file comes three times.
    """
    video = write_video(tmp_path / "clip.mp4", frames=52, rate=10, size=(48, 64))
    encoder = load_encoder(f"slowfast:{folder / 'pyslowfast.pyth'}", preset="moment_detr_slowfast")
    source = encoder.clips(video)
    (windows,) = source
    assert windows.shape == (3, 32, 224, 224, 3)
    np.testing.assert_allclose(source.times, [[0, 2], [2, 4], [4, 5.2]], atol=1e-3)
    positions = np.floor(np.linspace(0, 64 * 10 / 30 - 1, 32)).astype(int)
    assert (positions[0], positions[1], positions[2], positions[31]) == (0, 0, 1, 20)
    same = [int((windows[1, i] == windows[1, i + 1]).all()) for i in range(31)]
    pictures = (60 + positions) // 3
    assert same == [int(pictures[i] == pictures[i + 1]) for i in range(31)]
    rows, times = encoder.finish(np.zeros((3, 2304)), source.times, 4.0)  # ceil(4 / 2) = 2
    assert len(rows) == len(times) == 2
    assert len(encoder.finish(np.zeros((3, 2304)), source.times, 4.01)[0]) == 3


def test_hero_of_a_fast_file(folder: Path, tmp_path: Path) -> None:
    """50 frames a second: over 106.7 frames, of which the window has 60: from the 18th on it is the 60th."""
    video = write_video(tmp_path / "clip.mp4", frames=100, rate=50, size=(48, 64))
    source = load_encoder(f"slowfast:{folder / 'pyslowfast.pyth'}", preset="moment_detr_slowfast").clips(video)
    (windows,) = source
    positions = np.minimum(np.floor(np.linspace(0, 64 * 50 / 30 - 1, 32)).astype(int), 59)
    assert positions.tolist()[16:20] == [54, 57, 59, 59]
    same = [bool((windows[0, i] == windows[0, i + 1]).all()) for i in range(31)]
    assert same == [False] * 18 + [True] * 13


def test_a_video(folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", frames=9, rate=3, size=(48, 64))
    encoded = load_encoder(f"slowfast:{folder / 'pyslowfast.pyth'},size=224,tail=drop").encode(video)
    assert encoded.features.shape == (1, 2304)  # of 90 frames the first 64
    np.testing.assert_allclose(encoded.times, [[0, 64 / 30]], atol=1e-3)


def test_what_is_no_slowfast(folder: Path, tmp_path: Path, published: Weights) -> None:
    def refused(spec: str, match: str, kind: type[Exception] = ConfigError) -> None:
        with pytest.raises(kind, match=match) as caught:
            load_encoder(spec)
        one_line(caught.value)

    refused(f"slowfast:{tmp_path / 'nowhere.pkl'}", r"no file .*nowhere.pkl.*github.com/facebookresearch/SlowFast")
    refused(f"slowfast:{folder / 'pyslowfast.pyth'},size=200", "option size must be 224 or more, got 200")
    refused(f"slowfast:{folder / 'pyslowfast.pyth'},fps=none,spread=hero", "spread=hero needs option fps")
    deeper = dict(published) | {"s4.pathway0_res6.branch2.a.weight": torch.zeros(3)}  # R101 has 23 blocks there
    torch.save({"model_state": deeper}, tmp_path / "r101.pyth")
    refused(
        f"slowfast:{tmp_path / 'r101.pyth'}", r"1 are of another network, 's4.pathway0_res6.branch2.a.weight' first"
    )
    blobs = pickle.loads((folder / "SLOWFAST_8x8_R50.pkl").read_bytes())["blobs"]
    blobs["res4_6_branch2a_w"] = np.zeros(3, np.float32)
    (tmp_path / "r101.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    refused(f"slowfast:{tmp_path / 'r101.pkl'}", r"1 are of another network, 'res4_6_branch2a_w' first")
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros((64, 3, 7, 7))}}, protocol=2))
    refused(f"slowfast:{tmp_path / 'other.pkl'}", r"other.pkl: \d+ of \d+ are missing, 'stems.0.bn.weight' first")
    encoder = load_encoder(f"slowfast:{folder / 'pyslowfast.pyth'}", preset="moment_detr_slowfast")
    with pytest.raises(VideoError, match=r"nowhere\.mp4"):
        list(encoder.clips(tmp_path / "nowhere.mp4"))


@pytest.mark.parametrize("name", ["trap.pkl", "trap.pyth"])
def test_a_trap_is_not_executed(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    content = pickle.dumps({"blobs": {"conv1_w": Trap()}}, protocol=2)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}: (no pickle of arrays alone|holds more than tensors)") as caught:
        load_encoder(f"slowfast:{tmp_path / name}")
    one_line(caught.value)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(content)  # it does make the file where it is executed
    assert (tmp_path / "sprung").exists()
