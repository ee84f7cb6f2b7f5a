"""``clip`` and ``video_text`` against what transformers itself makes of the same pixels and words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="needs transformers (the extra `test` brings it)")
import transformers
from dual_encoders import CLIPS, PICTURES, make_clip, make_xclip

from vpgfast.encoders.base import Encoder, load_encoder
from vpgfast.errors import ConfigError

SENTENCES = ["A person opens the door.", "red ball", "a dog. " * 40]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in (PICTURES | CLIPS).items()}


def frames(encoder: Encoder, clips: int, seed: int = 0) -> np.ndarray:
    size = encoder.picture.crop or encoder.picture.size
    assert size is not None
    shape = (clips, len(encoder.sampling.picked()), *size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def tokens(folder: Path, model: Any, filled: bool) -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if filled else True
    limit = model.config.text_config.max_position_embeddings
    given = tokenizer(SENTENCES, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
    return {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_and_sentences_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    """Pixels through transformers' own (PIL) preprocessing, both towers through the model's joint forward."""
    folder = folders[name]
    encoder = load_encoder(f"clip:{folder}")
    pixels = frames(encoder, 5)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    given = processor(list(pixels[:, 0]), do_resize=name == "siglip2", do_center_crop=False, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    words = tokens(folder, model, filled=name.startswith(("siglip", "align")))
    if name.startswith("siglip"):
        del words["attention_mask"]
    with torch.no_grad():
        out = model(**words, **given)
    rows = torch.from_numpy(encoder.encode_batch(pixels))
    torch.testing.assert_close(rows, F.normalize(out.image_embeds, dim=-1), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        encoder.encode_text(SENTENCES), F.normalize(out.text_embeds, dim=-1), atol=2e-5, rtol=1e-4
    )
    assert rows.shape == (5, encoder.dim)
    assert rows.std(0).max() > 1e-4, "the pictures are told apart by nothing"


@pytest.mark.parametrize("name", CLIPS)
def test_clips_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    folder = folders[name]
    encoder = load_encoder(f"video_text:{folder}")
    pixels = frames(encoder, 3)
    about = json.loads((folder / "preprocessor_config.json").read_text())
    values = torch.from_numpy(pixels).float().permute(0, 1, 4, 2, 3) * about["rescale_factor"]
    if about["do_normalize"]:
        mean, std = (torch.tensor(about[key])[:, None, None] for key in ("image_mean", "image_std"))
        values = (values - mean) / std
    model = transformers.AutoModel.from_pretrained(folder).eval()
    words = tokens(folder, model, filled=name == "videoprism")
    key = "pixel_values" if name == "xclip" else "pixel_values_videos"
    with torch.no_grad():
        out = model(**words, **{key: values})
    rows = torch.from_numpy(encoder.encode_batch(pixels))
    torch.testing.assert_close(rows, F.normalize(out.video_embeds, dim=-1), atol=2e-5, rtol=1e-4)
    text = encoder.encode_text(SENTENCES)
    assert text.shape == (3, encoder.dim)
    if name == "videoprism":  # X-CLIP's joint forward adds a prompt from the video to its sentences
        torch.testing.assert_close(text, F.normalize(out.text_embeds, dim=-1), atol=2e-5, rtol=1e-4)


def test_options(folders: dict[str, Path]) -> None:
    encoder = load_encoder(f"clip:{folders['clip']},fps=4,normalize=false")
    assert encoder.sampling.fps == 4
    pixels = frames(encoder, 2)
    loud = np.linalg.norm(encoder.encode_batch(pixels), axis=-1)
    assert (abs(loud - 1) > 1e-3).all()
    encoder = load_encoder(f"video_text:{folders['xclip']},stride=2")
    assert (encoder.sampling.window, encoder.sampling.stride) == (4, 2)


def test_moment_detr(folders: dict[str, Path]) -> None:
    """150 s are 75 rows; each looks at the frame in the middle of its two seconds."""
    encoder = load_encoder(f"clip:{folders['clip']}", preset="moment_detr")
    looked_at = (np.arange(200) + encoder.sampling.offset) / 0.5
    looked_at = looked_at[looked_at < 150]
    assert looked_at[:2].tolist() == [1.0, 3.0]
    times = encoder.sampling.times(looked_at, 150.0)
    assert times.shape == (75, 2)
    assert times[-1].tolist() == [148.0, 150.0]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("clip", "needs a model, as in --encoder clip:FOLDER"),
        ("clip:nobody/nothing", "nobody/nothing is no folder and not in the cache (nothing is downloaded here)"),
        ("clip:{empty}", "holds no config.json"),
        ("clip:{broken}", "can't be loaded"),
        ("clip:{half}", "its weights are not whole"),
        ("clip:{bare}", "holds no preprocessor_config.json"),
        ("clip:{xclip}", "is a xclip without get_image_features"),
        ("video_text:{clip}", "is a clip; known are xclip, videoprism, and clip for pictures"),
        ("clip:{clip},fps=0", "fps must be above 0, got 0"),
        ("clip:{clip},fps=fast", "option fps must be a number, got 'fast'"),
        ("clip:{clip},speed=2", "no option 'speed'"),
        ("clip:{clip},fps=1,fps=2", "option fps is given twice"),
        ("video_text:{xclip},stride=0", "stride must be at least 1, got 0"),
    ],
)
def test_errors(folders: dict[str, Path], tmp_path: Path, spec: str, expected: str) -> None:
    places = {name: tmp_path / name for name in ("empty", "broken", "half", "bare")}
    places["empty"].mkdir()
    for name in ("broken", "half", "bare"):
        make_clip(places[name])
    (places["broken"] / "model.safetensors").write_bytes(b"no weights")
    from safetensors.torch import load_file, save_file

    tensors = load_file(places["half"] / "model.safetensors")
    save_file(dict(list(tensors.items())[:9]), places["half"] / "model.safetensors", {"format": "pt"})
    (places["bare"] / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError) as caught:
        load_encoder(spec.format(**places, **folders))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_are_part_of_the_identity(folders: dict[str, Path], tmp_path: Path) -> None:
    here = load_encoder(f"clip:{folders['clip']}").identity()
    again = load_encoder(f"clip:{make_clip(tmp_path / 'copy')}").identity()
    other = load_encoder(f"clip:{make_clip(tmp_path / 'other', seed=1)}").identity()
    assert here.key == again.key
    assert here.spec != again.spec
    assert here.differences(again) == []
    assert "weights" in here.differences(other)[0]
    video = load_encoder(f"video_text:{make_xclip(tmp_path / 'x')}").identity()
    assert here.differences(video) == ["family clip and video_text"]
