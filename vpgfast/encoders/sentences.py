"""Sentence vectors by a frozen sentence-transformer (MiniLM) that lies in a local folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpgfast.encoders.transformers_models import load_model, load_tokenizer

_BATCH = 64


class SentenceModel:
    """A sentence as the mean of the last states of all its tokens, of length 1 (Reimers and Gurevych, Sentence-BERT).

    Args:
        folder: of a BERT-like model, as ``save_pretrained`` writes it.

    Attributes:
        dim: width of a vector.

    Raises:
        ConfigError: ``transformers`` is missing, or the folder holds no whole model.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = load_tokenizer(folder)
        self.model: Any = load_model(folder)
        self.dim: int = self.model.config.hidden_size
        about = folder / "sentence_bert_config.json"  # says how long the sentences of its training were
        limit = json.loads(about.read_text(encoding="utf-8"))["max_seq_length"] if about.is_file() else None
        self.limit: int = limit or self.tokenizer.model_max_length

    def to(self, device: torch.device) -> SentenceModel:
        self.model.to(device)
        return self

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """float32 [M, dim] on the model's device, each of length 1; a sentence beyond the model's limit is cut."""
        found = torch.empty(len(sentences), self.dim)
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))  # little padding in a batch
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            texts = [sentences[i] for i in part]
            given = self.tokenizer(texts, padding=True, truncation=True, max_length=self.limit, return_tensors="pt")
            given = given.to(self.model.device)
            states = self.model(**given).last_hidden_state
            mask = given["attention_mask"][..., None].to(states.dtype)
            found[part] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).cpu()
        return found.to(self.model.device)
