"""``torchvision:NAME`` with random weights, against the network's own classifier and torchvision's own transforms."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vpgfast.encoders.base import load_encoder
from vpgfast.errors import ConfigError


@pytest.fixture(scope="module")
def models() -> Iterator[Any]:
    """torchvision's models, from a folder of their own.

    PyPI's build is for CUDA: beside a CPU build of torch its operators can't load, and its import trips over two that
    are then unknown. The networks need none of them. In the environment itself it would break transformers.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    if torch.version.cuda is None:
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(sys.prefix, "torchvision")))
        yield pytest.importorskip("torchvision.models", reason="`make test` puts torchvision into .venv/torchvision")


NETWORKS = {"s3d": 14, "r3d_18": 16, "mvit_v2_s": 16, "swin3d_t": 32}
"""Some of each kind, and how many frames a clip has."""
LARGE = ("mvit_v2_s", "swin3d_t")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] if name in LARGE else []) for name in NETWORKS]
)
def test_rows_are_what_the_classifier_takes(models: Any, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = models.get_model(name, weights=None).eval()
    file = tmp_path / f"{name}.pth"
    torch.save(network.state_dict(), file)
    encoder = load_encoder(f"torchvision:{name},file={file}")
    transform = models.get_model_weights(name).DEFAULT.transforms()
    assert encoder.sampling.window == NETWORKS[name]
    assert encoder.picture.crop == (transform.crop_size[0], transform.crop_size[-1])
    frames = np.random.default_rng(0).integers(0, 256, (1, NETWORKS[name], *encoder.picture.crop, 3), np.uint8)
    rows = torch.from_numpy(encoder.encode_batch(frames))
    assert rows.shape == (1, encoder.dim)
    # Already of the final size: the transforms leave only the normalisation to do.
    transform.resize_size = list(encoder.picture.crop)
    pixels = transform(torch.from_numpy(frames).permute(0, 1, 4, 2, 3))
    classifier = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv3d) and 400 in m.weight.shape[:1]][
        -1
    ]
    with torch.no_grad():
        expected = network(pixels)
        scores = rows @ classifier.weight.flatten(1).T
        if classifier.bias is not None:
            scores = scores + classifier.bias
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-3)


def test_errors(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for spec, expected in {
        "torchvision:s3d": "s3d-d76dad2f.pth, which PyTorch publishes at https://download.pytorch.org/models/s3d-d76dad2f",
        "torchvision:resnet18": "no video network 'resnet18'; there are mc3_18, ",
        "torchvision": "no video network None",
        "torchvision:s3d,window=0": "window must be at least 1, got 0",
        "torchvision:s3d,fps=0": "fps must be above 0, got 0",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load_encoder(spec)
        assert expected in str(caught.value)
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="are missing"):
        load_encoder(f"torchvision:s3d,file={tmp_path / 'other.pth'}")
