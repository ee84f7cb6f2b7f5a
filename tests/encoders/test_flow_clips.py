"""Optical flow from images and arrays: values, order, windows, what is refused; and I3D's weights of flow."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from random_weights import one_line, write_video
from test_i3d import draw, layers

from vpgfast.data.video_folders import named_videos
from vpgfast.encoders.base import load_encoder
from vpgfast.encoders.flow_clips import FlowClips, as_image, find_pairs, read_flow, read_grey
from vpgfast.encoders.sampling import Sampling
from vpgfast.encoders.specs import takes
from vpgfast.errors import ConfigError, VideoError
from vpgfast.video import Picture


def write_grey(path: Path, image: np.ndarray, pixels: str = "yuvj420p") -> None:
    """A JPEG whose brightness is the image, in the best quality."""
    frame = av.VideoFrame.from_ndarray(image, format="gray").reformat(format=pixels, src_color_range=2)
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("mjpeg", rate=1, options={"q:v": "1", "qmin": "1"})
        stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], pixels
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def flow() -> np.ndarray:
    """float32 [5, 24, 32, 2], smooth, in pixels a frame: x grows to the right, y downwards, both with time."""
    t, y, x = np.mgrid[0:5, 0:24, 0:32].astype(np.float32)
    return np.stack((x / 2 - 8 + t, y / 3 - 4 - t), axis=-1)


@pytest.mark.parametrize(
    "names",
    [
        ("flow_x_{:05d}.jpg", "flow_y_{:05d}.jpg"),
        ("x_{:04d}.jpg", "y_{:04d}.jpg"),
        ("AB-C1-{:06d}x.jpg", "AB-C1-{:06d}y.jpg"),
    ],
)
def test_images_and_arrays_are_the_same(tmp_path: Path, flow: np.ndarray, names: tuple[str, str]) -> None:
    folder = tmp_path / "video"
    folder.mkdir()
    np.save(tmp_path / "video.npy", flow)
    for number, frame in enumerate(as_image(flow), start=8):  # 10 comes after 9, not after 1
        for axis, name in enumerate(names):
            write_grey(folder / name.format(number), frame[..., axis])
    (folder / "notes.txt").touch()
    from_images, from_array = np.stack(list(read_flow(folder))), np.stack(list(read_flow(tmp_path / "video.npy")))
    assert from_images.dtype == from_array.dtype == np.uint8
    assert np.abs(from_images.astype(int) - from_array).max() <= 3  # what JPEG loses
    assert np.abs(from_images.astype(float) - from_array).mean() < 0.7


def test_values() -> None:
    """No motion is 128; 6.375 a pixel; beyond 20 pixels nothing more."""
    flow = np.array([0, 1, -1, 10, 19.9, 20, 1000, -20, -1000], np.float32)
    assert as_image(flow).tolist() == [128, 134, 122, 192, 255, 255, 255, 0, 0]


def test_windows(tmp_path: Path) -> None:
    """7 frames at 5 a second, windows of 4, 2 apart: 0-3, 2-5; the 7th is left. Scaled to 16 x 21, middle 16 x 16."""
    flow = np.zeros((7, 24, 32, 2), np.float32)
    flow[..., 0] = np.arange(7)[:, None, None]
    flow[:, :, :2, 1], flow[:, :, -2:, 1] = 20, 20  # at the sides, which are cut off
    np.save(tmp_path / "flow.npy", flow)
    windows = FlowClips(tmp_path / "flow.npy", Sampling(5, 4, 2), Picture(short_side=16, crop=(16, 16)), batch=8)
    (batch,) = windows
    assert batch.shape == (2, 4, 16, 16, 2)
    assert batch[:, :, 8, 8, 0].tolist() == [list(as_image(np.arange(s, s + 4))) for s in (0, 2)]
    assert (batch[..., 1] == 128).all()
    np.testing.assert_allclose(windows.times, [[0, 0.8], [0.4, 1.2]])
    assert windows.duration == pytest.approx(1.4)


def test_what_is_refused(tmp_path: Path, flow: np.ndarray) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(VideoError, match=match) as caught:
            list(FlowClips(path, Sampling(5, 2), Picture(), batch=1))
        assert str(tmp_path) in one_line(caught.value)

    folder = tmp_path / "video"
    folder.mkdir()
    refused(folder, "holds no flow_x_00001.jpg")
    for number in (1, 2, 3):
        for axis in "xy":
            write_grey(folder / f"flow_{axis}_{number:05d}.jpg", as_image(flow[0, ..., 0]))
    assert len(find_pairs(folder)) == 3
    (folder / "flow_y_00002.jpg").rename(tmp_path / "kept.jpg")
    refused(folder, "the image of y with number 2 is missing")
    (folder / "flow_y_00002.jpg").write_bytes(b"no image")
    refused(folder, "flow_y_00002.jpg: no image that can be decoded")
    write_grey(folder / "flow_y_00002.jpg", as_image(flow[0, :16, :16, 0]))
    refused(folder, r"flow_x_00002.jpg: is \(24, 32\), flow_y_00002.jpg is \(16, 16\)")
    write_grey(folder / "flow_x_00002.jpg", as_image(flow[0, :16, :16, 0]))
    refused(folder, r"one image is \(16, 16\), the first was \(24, 32\)")

    refused(write_video(tmp_path / "clip.mp4", 3), "weights of flow want a folder with flow_x_00001.jpg")
    refused(tmp_path / "nowhere.npy", "weights of flow want a folder")
    np.save(tmp_path / "wide.npy", flow[..., :1])
    refused(tmp_path / "wide.npy", r"is float32 \[5, 24, 32, 1\], \[F, H, W, 2\] in pixels is needed")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    refused(tmp_path / "objects.npy", "no array in NumPy's format")
    flow[3, 2, 1, 0] = np.nan
    np.save(tmp_path / "nan.npy", flow)
    refused(tmp_path / "nan.npy", "frame 3 holds what is no number")


def test_brightness_is_not_stretched(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8), 8)[None].repeat(16, 0)
    for pixels in ("yuvj420p", "yuvj444p"):
        write_grey(tmp_path / "ramp.jpg", ramp, pixels)
        assert np.abs(read_grey(tmp_path / "ramp.jpg").astype(int) - ramp).max() <= 3
        shutil.move(tmp_path / "ramp.jpg", tmp_path / f"{pixels}.jpg")


def test_i3d_of_flow(tmp_path: Path) -> None:
    """Its weights have two input channels; flow f in pixels goes in as round(128 + 6.375 f) / 255 * 2 - 1."""
    weights = draw(2)
    torch.save(dict(weights), tmp_path / "flow_imagenet.pt")
    spec = f"i3d:{tmp_path / 'flow_imagenet.pt'},window=12,stride=12,short_side=224"
    with pytest.raises(ConfigError, match=r"flow_imagenet.pt has weights of flow, say so with option modality=flow"):
        load_encoder(spec)
    spec += ",modality=flow"
    with pytest.raises(ConfigError, match=r"images of flow have no clock; option fps says how many make a second"):
        load_encoder(f"{spec},fps=none")
    encoder = load_encoder(f"{spec},fps=25,tail=drop")
    flow = np.random.default_rng(0).normal(0, 9, (13, 224, 224, 2)).astype(np.float16)
    np.save(tmp_path / "flow.npy", flow)
    encoded = encoder.encode(tmp_path / "flow.npy")
    pixels = np.rint(128 + 6.375 * np.clip(flow[:12].astype(np.float32), -20, 20)).clip(0, 255) / 127.5 - 1
    with torch.inference_mode():
        last = layers(weights, torch.from_numpy(pixels).permute(3, 0, 1, 2)[None], eps=1e-3)["Mixed_5c"]
    assert encoded.features.shape == (1, 1024)
    np.testing.assert_allclose(encoded.features[0], last.mean(dim=(0, 2, 3, 4)).numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(encoded.times, [[0, 12 / 25]])
    assert encoded.duration == pytest.approx(13 / 25)


def test_extract_finds_flow(tmp_path: Path, flow: np.ndarray) -> None:
    """Below a folder an encoder of flow takes arrays and folders of images, of every layout, and no videos."""
    for video, name in (("a", "flow_x_00001.jpg"), ("b", "x_0001.jpg"), ("c", "C-000001x.jpg"), ("d", "x.jpg")):
        (tmp_path / video).mkdir()
        write_grey(tmp_path / video / name, as_image(flow[0, ..., 0]))
    np.save(tmp_path / "e.npy", flow)
    write_video(tmp_path / "f.mp4", 3)
    found = named_videos([tmp_path], takes("i3d", {"modality": "flow"}))
    assert list(found) == ["a", "b", "c", "e"]
    assert list(named_videos([tmp_path], takes("i3d", {}))) == ["f"]
