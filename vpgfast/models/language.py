"""Text from a frozen language model (GPT-2, BERT, MiniLM, ...) that lies in a local folder; nothing is ever downloaded.

Needs the package ``transformers`` (``pip install 'vpgfast[language]'``), imported only when a model is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vpgfast.encoders.transformers_models import quiet
from vpgfast.errors import CheckpointError, ConfigError
from vpgfast.models.layers import masked_mean

SETTING = "--model.language_model"
PROBE = "A person opens the door, then 2 dogs run outside."
"""Its vector is kept with trained weights, to recognise the language model that they were trained beside."""
_LONGEST = 1024  # tokens, of a model that names no limit


class LanguageModel:
    """What each module of a frozen language model gives for each token of a sentence.

    Not an ``nn.Module``: the model that reads its outputs neither trains, saves nor initialises it.

    Args:
        folder: as ``save_pretrained`` writes it: ``config.json``, the weights, and the tokenizer's files.

    Attributes:
        dim: width d of an output.

    Raises:
        ConfigError: ``transformers`` is not installed, or the folder is missing or holds no whole language model.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            found = "holds no config.json" if folder.is_dir() else "no such folder"
            raise ConfigError(
                f"language model {folder}: {found}; give the folder of a model, as save_pretrained of the package "
                f"transformers writes it, as {SETTING} (nothing is downloaded)"
            )
        try:
            import transformers
        except ImportError:
            raise ConfigError(
                f"{SETTING} needs the package transformers, which is not installed: pip install 'vpgfast[language]'"
            ) from None
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quiet(transformers):
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **local)
                self.model, loaded = transformers.AutoModel.from_pretrained(
                    str(folder), dtype=torch.float32, output_loading_info=True, **local
                )
        except Exception as error:  # what a damaged folder raises differs from one file and library to the next
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"language model {folder} ({SETTING}): can't be loaded ({type(error).__name__}: {reason})"
            ) from None
        # A pooler over the outputs, which many folders lack, is not used here.
        missing = sorted(name for name in loaded["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise ConfigError(
                f"language model {folder} ({SETTING}): its weights are not whole, {len(missing)} are missing, such as "
                f"{missing[0]!r}; was it fetched whole?"
            )
        config = self.model.config
        if config.is_encoder_decoder:
            raise ConfigError(
                f"language model {folder} ({SETTING}): {config.model_type} has an encoder and a decoder; a model of "
                "one stack is needed, such as GPT-2 or BERT"
            )
        # Without the files of a tokenizer transformers makes an empty one.
        words, special = len(self.tokenizer), len(self.tokenizer.all_special_ids)
        if not special < words <= config.vocab_size:
            raise ConfigError(
                f"language model {folder} ({SETTING}): its tokenizer's files are missing or another model's (it has "
                f"{words} tokens, {special} of them special, the model {config.vocab_size})"
            )
        config.use_cache = False  # for generating text
        self.model.eval().requires_grad_(False)
        self.folder, self.dim = folder, int(config.hidden_size)
        limits = (self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None), _LONGEST)
        self.limit: int = min(limit for limit in limits if limit)

    def __reduce__(self) -> tuple[type[LanguageModel], tuple[Path]]:
        return LanguageModel, (self.folder,)  # a copy reads the folder again: transformers' models may hold local hooks

    def to(self, device: torch.device) -> LanguageModel:
        """Move it to a device."""
        if self.model.device != device:
            self.model.to(device)
        return self

    @torch.no_grad()
    def outputs(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Every module's output for every token, of several sentences in one padded call.

        A sentence of more tokens than the model takes loses the rest. Always in float32, whatever autocast says: a
        sentence's outputs are the same in every run.

        Args:
            sentences: S of them, as written.

        Returns:
            float32 [L, S, W, d], the outputs of the L modules in their order (the token embeddings below the first
            are none of them; the last is what the model itself gives, in GPT-2 behind the closing layer norm), and
            bool [S, W], true on the sentence's own tokens: neither padding nor what the tokenizer puts around it
            ([CLS], [SEP]).
        """
        texts = list(sentences)
        encoded = self.tokenizer(texts, truncation=True, max_length=self.limit, return_special_tokens_mask=True)
        longest = max(1, *map(len, encoded["input_ids"]))
        # Padded here and on the right: GPT-2's tokenizer has no padding, and the model does not look at what it is.
        ids = torch.zeros(len(texts), longest, dtype=torch.int64)
        given, own = (torch.zeros(ids.shape, dtype=torch.bool) for _ in range(2))
        rows = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        for row, (tokens, special) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            given[row, : len(tokens)] = True
            own[row, : len(tokens)] = torch.tensor(special) == 0
        given[:, 0] = True  # an empty sentence: attention over nothing would not be a number
        device = self.model.device
        with torch.autocast(device.type, enabled=False):
            result = self.model(
                input_ids=ids.to(device), attention_mask=given.long().to(device), output_hidden_states=True
            )
        return torch.stack(result.hidden_states[1:]), own.to(device)


class MeanOfOutputs(nn.Module):
    """A sentence as the mean of a frozen language model's outputs, over its tokens and modules (WSRA, section 4).

    Each sentence is read once and then remembered. The language model follows this module from device to device and
    is no part of its state dict, which holds the vector of :data:`PROBE` instead.

    Args:
        language: the model.
        layers: "all" modules, or the "last" alone.

    Attributes:
        out_dim: width d of a vector.
    """

    def __init__(self, language: LanguageModel, layers: Literal["all", "last"] = "all") -> None:
        super().__init__()
        self.language, self.layers, self.out_dim = language, layers, language.dim
        self.known: dict[str, Tensor] = {}
        # The bits of float32 as integers, which a module's change of precision leaves alone.
        self.register_buffer("probe", self.encode([PROBE])[0].view(torch.int32))
        self.probe: Tensor

    @torch.compiler.disable
    def forward(self, sentences: Sequence[str]) -> Tensor:
        """S sentences, as written -> float32 [S, d] on the module's device, without gradient; zeros for no token."""
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.known]
        if new:
            self.language.to(self.probe.device)
            # On a CPU one by one: what a vector's last bits are then does not depend on which sentences come together
            # and which were read before, so that a resumed run repeats an uninterrupted one.
            size = 1 if self.probe.device.type == "cpu" else len(new)
            for start in range(0, len(new), size):
                part = new[start : start + size]
                self.known.update(zip(part, self.encode(part).cpu(), strict=True))
        return torch.stack([self.known[sentence] for sentence in sentences]).to(self.probe.device)

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """The vectors of S sentences in one padded call, float32 [S, d] on the language model's device."""
        outputs, mask = self.language.outputs(sentences)
        outputs = outputs.mean(0) if self.layers == "all" else outputs[-1]
        return masked_mean(outputs, mask)

    def check_weights(self, weights: Mapping[str, Tensor], prefix: str, path: Path) -> None:
        """Refuse weights that were trained beside another language model.

        Args:
            weights: a state dict that holds this module's under ``prefix``.
            path: of the file they come from.

        Raises:
            CheckpointError: the vector of :data:`PROBE` in them is not this model's.
        """
        if f"{prefix}probe" not in weights:
            return  # trained without a language model: the loading of the weights says so
        there, here = (x.cpu().view(torch.float32) for x in (weights[f"{prefix}probe"], self.probe))
        # Machines differ in the last bits of a sum, models in the first.
        if there.shape != here.shape or not (there - here).norm() <= 1e-3 * there.norm():
            raise CheckpointError(
                f"checkpoint {path}: trained with the outputs of another language model (or of other layers); "
                f"give the folder of the one it was trained with as {SETTING}"
            )
