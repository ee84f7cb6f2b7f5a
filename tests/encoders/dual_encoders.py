"""Folders of tiny dual encoders with random weights, as ``save_pretrained`` writes them; made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from vpgfast.encoders.transformers_models import quiet

WORDS = "a person opens the door . red ball grows it vanishes dog cat"
_TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
_VISION = {**_TEXT, "image_size": 32, "patch_size": 8}
_MEAN, _STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
CROPPED = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _MEAN,
    "image_std": _STD,
}
SQUARE = {
    "image_processor_type": "SiglipImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def _save(folder: Path, config: Any, pixels: dict[str, Any], limit: int, seed: int) -> Path:
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    vocabulary = {word: i for i, word in enumerate([*special.values(), *WORDS.split()])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [(name, vocabulary[name]) for name in ("<bos>", "<eos>")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    torch.manual_seed(seed)
    with quiet(transformers):
        model = transformers.AutoModel.from_config(config)
        for name, value in model.named_parameters():  # many start at 0, and would hide what is left out
            if value.dim() > 0 and "logit" not in name:
                scale = 0.05 if "bias" in name else 0.3
                value.data = scale * torch.randn(value.shape) + (value.dim() == 1 and "weight" in name)
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.data = 0.5 + torch.rand(value.shape)
        model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=limit, **special).save_pretrained(
        folder
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


def _two_towers(text: type, vision: type, whole: type, **both: Any) -> Any:
    words = {"vocab_size": 20, **_ENDS}
    return whole(
        text_config=text(**_TEXT, **words, max_position_embeddings=16, **both).to_dict(),
        vision_config=vision(**_VISION, **both).to_dict(),
        projection_dim=12,
    )


def make_clip(folder: Path, seed: int = 0) -> Path:
    t = transformers
    return _save(folder, _two_towers(t.CLIPTextConfig, t.CLIPVisionConfig, t.CLIPConfig), CROPPED, 16, seed)


def make_metaclip2(folder: Path, seed: int = 0) -> Path:
    t = transformers
    config = _two_towers(t.MetaClip2TextConfig, t.MetaClip2VisionConfig, t.MetaClip2Config)
    return _save(folder, config, CROPPED, 16, seed)


def make_siglip(folder: Path, seed: int = 0) -> Path:
    t = transformers
    text = t.SiglipTextConfig(**_TEXT, **_ENDS, vocab_size=20, max_position_embeddings=64, projection_size=16).to_dict()
    config = t.SiglipConfig(text_config=text, vision_config=t.SiglipVisionConfig(**_VISION).to_dict())
    return _save(folder, config, SQUARE, 64, seed)


def make_siglip2(folder: Path, seed: int = 0) -> Path:
    t = transformers
    text = t.Siglip2TextConfig(
        **_TEXT, **_ENDS, vocab_size=20, max_position_embeddings=64, projection_size=16
    ).to_dict()
    vision = {**_TEXT, "num_patches": 16, "patch_size": 8}
    config = t.Siglip2Config(text_config=text, vision_config=t.Siglip2VisionConfig(**vision).to_dict())
    pixels = {**SQUARE, "image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16}
    del pixels["size"]
    return _save(folder, config, pixels, 64, seed)


def make_align(folder: Path, seed: int = 0, top: bool = False) -> Path:
    t = transformers
    text = t.AlignTextConfig(**_TEXT, vocab_size=20, max_position_embeddings=64, pad_token_id=1).to_dict()
    vision = t.AlignVisionConfig(
        image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=24, dropout_rate=0.0
    ).to_dict()
    config = t.AlignConfig(text_config=text, vision_config=vision, projection_dim=80)
    pixels = {
        "image_processor_type": "EfficientNetImageProcessor",
        "do_resize": True,
        "size": {"height": 72, "width": 72},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
        "do_rescale": True,
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
        "include_top": top,
    }
    return _save(folder, config, pixels, 64, seed)


def make_xclip(folder: Path, seed: int = 0) -> Path:
    t = transformers
    words = {"vocab_size": 20, **_ENDS}
    text = t.XCLIPTextConfig(**_TEXT, **words, max_position_embeddings=16).to_dict()
    vision = t.XCLIPVisionConfig(
        **_VISION,
        num_frames=4,
        mit_hidden_size=12,
        mit_intermediate_size=24,
        mit_num_hidden_layers=1,
        mit_num_attention_heads=2,
    ).to_dict()
    config = t.XCLIPConfig(text_config=text, vision_config=vision, projection_dim=12, prompt_num_attention_heads=2)
    return _save(folder, config, CROPPED, 16, seed)


def make_videoprism(folder: Path, seed: int = 0) -> Path:
    t = transformers
    text = t.VideoPrismTextConfig(**_TEXT, vocab_size=20, max_position_embeddings=64, pad_token_id=1).to_dict()
    vision = t.VideoPrismVisionConfig(
        image_size=32,
        num_frames=4,
        tubelet_size=[1, 8, 8],
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_spatial_layers=2,
        num_temporal_layers=1,
        num_auxiliary_layers=1,
    ).to_dict()
    config = t.VideoPrismConfig(text_config=text, vision_config=vision)
    return _save(folder, config, {**SQUARE, "resample": 3, "do_normalize": False}, 64, seed)


PICTURES: dict[str, Callable[..., Path]] = {
    "clip": make_clip,
    "metaclip2": make_metaclip2,
    "siglip": make_siglip,
    "siglip2": make_siglip2,
    "align": make_align,
    "align_top": partial(make_align, top=True),
}
CLIPS: dict[str, Callable[..., Path]] = {"xclip": make_xclip, "videoprism": make_videoprism}
