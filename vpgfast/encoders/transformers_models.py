"""Models of the package ``transformers`` from a local folder, or from its cache; nothing is ever downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpgfast.errors import ConfigError
from vpgfast.video import Picture

_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area", 5: "area"}
"""PIL's numbers of filters, as preprocessor files have them (4 and 5, box and hamming, are areas too)."""


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no remarks of transformers while a model is loaded; what matters of them is checked."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def transformers_library(family: str) -> Any:
    """The package. Raises :class:`ConfigError` where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            f"encoder {family}: needs the package transformers, which is not installed: pip install 'vpgfast[language]'"
        ) from None
    return transformers


def find_folder(weights: str | None, family: str, example: str) -> Path:
    """The folder of a model, given as a folder or as a hub name that is in the cache of Hugging Face.

    Args:
        weights: what stands behind the colon of the spec.
        family: the encoder's name.
        example: a hub name of a model of this kind.

    Raises:
        ConfigError: it is neither.
    """
    hint = f"give a folder as save_pretrained writes it, or a name that `hf download {example}` has fetched"
    if not weights:
        raise ConfigError(f"encoder {family}: needs a model, as in --encoder {family}:FOLDER; {hint}")
    transformers_library(family)
    path = Path(weights).expanduser()
    if not path.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(snapshot_download(weights, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
            raise ConfigError(
                f"encoder {family}: {weights} is no folder and not in the cache (nothing is downloaded here); {hint}"
            ) from None
    if not (path / "config.json").is_file():
        raise ConfigError(f"encoder {family}: {path} holds no config.json; {hint}")
    return path


def load_model(folder: Path) -> Any:
    """A model in float32, frozen, in evaluation mode. Raises :class:`ConfigError` where it is not whole."""
    transformers = transformers_library(str(folder))
    try:
        with quiet(transformers):
            model, loaded = transformers.AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, output_loading_info=True, **_LOCAL
            )
    except Exception as error:  # what a damaged folder raises differs from one file and library to the next
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model {folder}: can't be loaded ({type(error).__name__}: {reason})") from None
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ConfigError(
            f"model {folder}: its weights are not whole, {len(missing)} are missing, such as {missing[0]!r}; was it "
            "fetched whole?"
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside a model. Raises :class:`ConfigError` where its files are missing."""
    transformers = transformers_library(str(folder))
    try:
        with quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **_LOCAL)
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model {folder}: its tokenizer can't be loaded ({type(error).__name__}: {reason})") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one where the files are missing
        raise ConfigError(f"model {folder}: its tokenizer's files are missing; was it fetched whole?")
    return tokenizer


def encode_texts(model: Any, tokenizer: Any, sentences: Any, length: int | None) -> Tensor:
    """float32 [M, E], what ``get_text_features`` of a dual encoder gives.

    Args:
        model: with a text tower.
        tokenizer: its own.
        sentences: M texts; what is beyond the model's limit is cut.
        length: tokens to which every sentence is filled up, for models that were trained so; ``None``: the longest's.
    """
    limit = length or getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(limit or tokenizer.model_max_length, tokenizer.model_max_length)
    given = tokenizer(
        list(sentences),
        padding="max_length" if length else True,
        truncation=True,
        max_length=limit,
        return_tensors="pt",
    ).to(model.device)
    names = {name: given[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in given}
    if model.config.model_type in ("siglip", "siglip2"):  # trained without a mask over the padding
        names.pop("attention_mask", None)
    return pooled(model.get_text_features(**names))


def pooled(output: Any) -> Tensor:
    """The vector of an output that is one (transformers 4) or has one (transformers 5)."""
    return output if isinstance(output, Tensor) else output.pooler_output


class Preprocessing:
    """What a ``preprocessor_config.json`` says of pixels.

    Args:
        folder: of the model.
        side: of a square picture, where the file says nothing of the size.

    Attributes:
        picture: scaling and cropping.

    Raises:
        ConfigError: the file is missing or malformed.
    """

    def __init__(self, folder: Path, side: int) -> None:
        files = [folder / name for name in ("preprocessor_config.json", "video_preprocessor_config.json")]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise ConfigError(f"model {folder}: holds no preprocessor_config.json, which says what it does to pixels")
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            self._read(about if isinstance(about, dict) else {}, side)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{file}: not a description of pixels ({type(error).__name__}: {error})") from None

    def _read(self, about: dict[str, Any], side: int) -> None:
        size = about.get("size") if about.get("do_resize", True) else None
        size = {"shortest_edge": size} if isinstance(size, int) else size or {"height": side, "width": side}
        crop = about.get("crop_size", side) if about.get("do_center_crop", False) else None
        if isinstance(crop, dict):
            crop = (int(crop["height"]), int(crop["width"]))
        elif crop is not None:
            crop = (int(crop), int(crop))
        how: Any = _INTERPOLATION[int(about.get("resample", 3))]
        if "shortest_edge" in size:
            edge = int(size["shortest_edge"])
            # Frames of one batch need one size.
            self.picture = Picture(short_side=edge, crop=crop or (edge, edge), interpolation=how)
        else:
            self.picture = Picture(size=(int(size["height"]), int(size["width"])), crop=crop, interpolation=how)
        # pixel * scale + shift, per channel
        scale = torch.full((3,), float(about.get("rescale_factor", 1 / 255)) if about.get("do_rescale", True) else 1.0)
        shift = torch.full((3,), -1.0 if about.get("rescale_offset", False) else 0.0)
        if about.get("do_normalize", True):
            mean, std = (torch.tensor(about.get(name, [0.5] * 3)) for name in ("image_mean", "image_std"))
            scale, shift = scale / std, (shift - mean) / std
        if about.get("include_top", str(about.get("image_processor_type")).startswith("EfficientNet")):
            std = torch.tensor(about["image_std"])  # EfficientNet's own pictures are divided once more
            scale, shift = scale / std, shift / std
        self.scale, self.shift = scale, shift

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [..., H, W, 3] -> float32 [..., 3, H, W]."""
        scaled = frames.float() * self.scale.to(frames.device) + self.shift.to(frames.device)
        return scaled.movedim(-1, -3)
