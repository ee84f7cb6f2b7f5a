"""Text from a frozen language model: what is averaged, what does not change it, and what is refused."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from language_models import LIMIT, make_bert, make_gpt2, minilm
from plain_wsra import FEATURE_DIM, make_batch, small_config
from safetensors.torch import load_file, save_file
from small import word_vectors

from vpgfast.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from vpgfast.data.types import Batch, Paragraph
from vpgfast.errors import CheckpointError, ConfigError
from vpgfast.models.language import LanguageModel, MeanOfOutputs
from vpgfast.models.wsra import WSRA

SENTENCES = [
    "A person opens the door.",
    "it vanishes",
    "the red ball grows. " * 8,  # longer than the model takes
    "the door opens",
    "a red person",
    "ball",
    "the person vanishes. it grows.",
    "red door, ball",
]
MAKERS = {"gpt2": make_gpt2, "bert": make_bert}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


def batch_of_sentences(sentences: list[str] = SENTENCES) -> Batch:
    batch = make_batch(dtype=torch.float32)
    return replace(
        batch,
        paragraphs=[Paragraph(p.video_id, p.duration, (s,)) for p, s in zip(batch.paragraphs, sentences, strict=True)],
    )


def make_model(folder: Path, **changes) -> WSRA:
    torch.manual_seed(0)
    return WSRA(small_config(language_model=folder, **changes), FEATURE_DIM, word_vectors())


# what a vector is


@pytest.mark.parametrize("layers", ["all", "last"])
def test_a_real_model_knows_meaning(layers: str) -> None:
    """Sentences that share no word but their meaning are nearer to each other than to others."""
    mean = MeanOfOutputs(LanguageModel(minilm()), layers)
    vectors = mean(
        ["A man closes the door.", "Somebody shuts a gate.", "The dog eats its dinner.", "A puppy is feeding."]
    )
    assert vectors.shape == (4, 384)
    cosines = torch.nn.functional.cosine_similarity(vectors.unsqueeze(0), vectors.unsqueeze(1), dim=2)
    for one, other, unlike in ((0, 1, (2, 3)), (2, 3, (0, 1))):
        assert cosines[one, other] > max(cosines[i, j] for i in (one, other) for j in unlike)


@pytest.mark.parametrize("layers", ["all", "last"])
def test_mean_over_modules_and_tokens(folder: Path, layers: str) -> None:
    """Recomputed from the modules themselves, by hooks: one sentence, nothing padded, no use of ``hidden_states``."""
    language = LanguageModel(folder)
    model, seen = language.model, []
    blocks = model.h if hasattr(model, "h") else model.encoder.layer
    hooks = [block.register_forward_hook(lambda module, inputs, output: seen.append(output)) for block in blocks]
    sentence = SENTENCES[0]
    with torch.no_grad():
        model(input_ids=torch.tensor([language.tokenizer(sentence)["input_ids"]]))
    for hook in hooks:
        hook.remove()
    states = [state[0] if isinstance(state, tuple) else state for state in seen]
    if hasattr(model, "ln_f"):  # GPT-2 ends in a norm behind its last module
        states[-1] = model.ln_f(states[-1])
        tokens = slice(None)
    else:
        tokens = slice(1, -1)  # without [CLS] and [SEP]
    rows = [state.view(-1, language.dim)[tokens].numpy() for state in states]
    expected = np.mean([row.mean(0) for row in (rows if layers == "all" else rows[-1:])], axis=0)
    np.testing.assert_allclose(MeanOfOutputs(language, layers)([sentence])[0], expected, rtol=1e-5, atol=1e-6)


def test_padding_and_order_change_nothing(folder: Path) -> None:
    """A padded call gives what one sentence alone gives; read one by one, not even the last bit differs."""
    language = LanguageModel(folder)
    alone = torch.cat([MeanOfOutputs(language).encode([s]) for s in SENTENCES])
    torch.testing.assert_close(MeanOfOutputs(language).encode(SENTENCES), alone, rtol=1e-5, atol=1e-6)
    order = [3, 0, 7, 1, 5, 2, 6, 4]
    mean = MeanOfOutputs(language)
    mean(SENTENCES[4:6])
    shuffled = mean([SENTENCES[i] for i in order])
    assert torch.equal(shuffled, MeanOfOutputs(language)(SENTENCES)[order])
    assert torch.equal(shuffled, alone[order])
    assert (torch.cdist(alone, alone) + torch.eye(8) > 0.05).all()  # and they are not all the same


def test_padding_is_not_looked_at(folder: Path) -> None:
    """Outputs of a sentence's own tokens beside a longer one; the mask is true on exactly these."""
    language = LanguageModel(folder)
    outputs, mask = language.outputs(SENTENCES[:3])
    assert outputs.shape == (len(language.model.h) if "gpt2" in str(folder) else 2, 3, LIMIT, language.dim)
    for row, sentence in enumerate(SENTENCES[:2]):
        single, own = language.outputs([sentence])
        special = language.tokenizer(sentence, return_special_tokens_mask=True)["special_tokens_mask"]
        assert mask[row].sum() == own.sum() == len(special) - sum(special)
        torch.testing.assert_close(outputs[:, row, mask[row]], single[:, 0, own[0]], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(outputs).all()


def test_longer_than_the_model_takes(folder: Path) -> None:
    mean = MeanOfOutputs(LanguageModel(folder))
    assert mean.language.limit == LIMIT
    long = "the red ball grows. " * 50
    assert torch.equal(mean([long]), mean([long * 2]))


def test_no_token_is_zeros(folder: Path) -> None:
    vectors = MeanOfOutputs(LanguageModel(folder))(["", "ball"])
    assert not vectors[0].any()
    assert vectors[1].any()


def test_each_sentence_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mean, calls = MeanOfOutputs(LanguageModel(folder)), []
    encode = mean.encode
    monkeypatch.setattr(mean, "encode", lambda sentences: calls.append(sentences) or encode(sentences))
    mean(["ball", "door", "ball"])
    mean(["door", "red ball"])
    assert calls == [["ball"], ["door"], ["red ball"]]


def test_autocast_changes_nothing(folder: Path) -> None:
    language = LanguageModel(folder)
    with torch.autocast("cpu", torch.bfloat16):
        half = MeanOfOutputs(language)(SENTENCES)
    assert torch.equal(half, MeanOfOutputs(language)(SENTENCES))


def test_nothing_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args):
        raise AssertionError(f"a connection to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    MeanOfOutputs(LanguageModel(folder))(SENTENCES)


# in WSRA


def test_frozen_and_no_part_of_the_model(folder: Path) -> None:
    model, plain = make_model(folder), WSRA(small_config(), FEATURE_DIM, word_vectors())
    model.train()
    assert not model.sentence.language.model.training
    names = {name for name, _ in plain.named_parameters() if "words" not in name}
    assert {name for name, _ in model.named_parameters()} == names
    assert set(model.state_dict()) == names | {"sentence.probe"}
    before = [p.clone() for p in model.sentence.language.model.parameters()]
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = model.loss(batch_of_sentences())
    losses["loss"].backward()
    optimiser.step()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())
    after = list(model.sentence.language.model.parameters())
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(after, before, strict=True))


def test_the_sentence_as_written_is_what_is_read(gpt2: Path) -> None:
    """Not the word indices of the batch, and all of it: max_words is about these alone."""
    model, batch = make_model(gpt2, max_words=2), batch_of_sentences()
    torch.testing.assert_close(model.query(batch), MeanOfOutputs(LanguageModel(gpt2))(SENTENCES))
    other = replace(batch, words=torch.zeros_like(batch.words))
    assert torch.equal(model(batch), model(other))
    assert not torch.equal(model(batch), model(batch_of_sentences([*SENTENCES[1:], SENTENCES[0]])))
    assert not WSRA.needs(model.config).vocabulary
    assert WSRA.needs(small_config()).vocabulary


def test_layers_are_two_readings(gpt2: Path) -> None:
    batch = batch_of_sentences()
    assert not torch.equal(make_model(gpt2)(batch), make_model(gpt2, language_layers="last")(batch))


def test_spans_are_never_read(gpt2: Path) -> None:
    gradients = []
    for spans in (None, torch.full((8, 1, 2), torch.nan)):
        model = make_model(gpt2)
        model.loss(replace(batch_of_sentences(), spans=spans))["loss"].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_precision_follows_the_batch(gpt2: Path) -> None:
    model, batch = make_model(gpt2), batch_of_sentences()
    expected = model.loss(batch)["loss"]
    double = model.double().loss(replace(batch, video=batch.video.double()))["loss"]
    torch.testing.assert_close(double, expected.double())
    assert model.sentence.probe.dtype == torch.int32


def test_compiled(gpt2: Path) -> None:
    torch._dynamo.reset()
    model, batch = make_model(gpt2), batch_of_sentences()
    compiled = torch.compile(model.loss, backend="eager")(batch)["loss"]
    torch.testing.assert_close(compiled, model.loss(batch)["loss"])


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(folder: Path) -> None:
    model, batch = make_model(folder), batch_of_sentences()
    expected = model.loss(batch)["loss"]
    moved = make_model(folder).cuda()
    torch.testing.assert_close(moved.loss(batch.to("cuda"))["loss"].cpu(), expected, rtol=1e-4, atol=1e-5)
    assert moved.sentence.language.model.device.type == "cuda"


# checkpoints


def save(path: Path, model: WSRA) -> Path:
    description = {
        "feature_dim": FEATURE_DIM,
        "feature_source": "random",
        "encoder": None,
        "corpus": "none",
        "epoch": 1,
        "score": 0.5,
    }
    save_checkpoint(
        path,
        Checkpoint(method="wsra", settings={}, word_vectors=word_vectors(), weights=model.state_dict(), **description),
    )
    return path


def test_checkpoint_is_small_and_comes_back(folder: Path, tmp_path: Path) -> None:
    model, batch = make_model(folder), batch_of_sentences()
    path = save(tmp_path / "m.safetensors", model)
    names = set(load_file(path)) - {"word_vectors"}
    assert names == {f"weights.{name}" for name in model.state_dict()}
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    torch.manual_seed(1)
    again = WSRA(small_config(language_model=moved), FEATURE_DIM, word_vectors())
    assert not torch.equal(again(batch), model(batch))
    load_weights(again, load_checkpoint(path).weights, path)
    assert torch.equal(again(batch), model(batch))


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", make_model(folder))
    weights = load_checkpoint(path).weights
    make = MAKERS[folder.name]
    others = {
        "other weights": {"language_model": make(tmp_path / "seed", seed=1)},
        "another width": {"language_model": make_gpt2(tmp_path / "wide", dim=12)},
        "other layers": {"language_model": folder, "language_layers": "last"},
    }
    for changes in others.values():
        model = WSRA(small_config(**changes), FEATURE_DIM, word_vectors())
        with pytest.raises(CheckpointError, match=r"m\.safetensors: trained with .* --model\.language_model"):
            load_weights(model, weights, path)


def test_with_and_without_do_not_mix(gpt2: Path, tmp_path: Path) -> None:
    model, plain = make_model(gpt2), WSRA(small_config(), FEATURE_DIM, word_vectors())
    with pytest.raises(CheckpointError, match=r"no weight 'sentence\.words\.unknown'"):
        load_weights(plain, model.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match=r"no weight 'sentence\.probe'"):
        load_weights(model, plain.state_dict(), tmp_path)


# what is refused


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such folder; .* --model\.language_model"):
        make_model(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        make_model(tmp_path)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "none of any kind"}))


def damaged_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def weights_of_another_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({name: value.repeat(2) if value.dim() == 1 else value for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize("damage", [no_weights, no_json, unknown_kind, damaged_weights, weights_of_another_shape])
def test_damaged_folders(gpt2: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = shutil.copytree(gpt2, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(ConfigError, match=r"damaged \(--model\.language_model\): can't be loaded") as error:
        LanguageModel(folder)
    assert "\n" not in str(error.value)


def test_no_tokenizer(folder: Path, gpt2: Path, tmp_path: Path) -> None:
    """transformers would make an empty one."""
    bare = shutil.copytree(folder, tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match="its tokenizer's files are missing or another model's"):
        LanguageModel(bare)
    if folder.name == "bert":  # a tokenizer of more words than the model has
        for path in gpt2.glob("tokenizer*"):
            shutil.copy(path, bare)
        with pytest.raises(ConfigError, match="another model's"):
            LanguageModel(bare)


def test_weights_that_are_not_whole(gpt2: Path, tmp_path: Path) -> None:
    """transformers would fill them up with random numbers."""
    folder = shutil.copytree(gpt2, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("h.1.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"half .*{len(weights) - len(kept)} are missing, such as 'h\.1\."):
        LanguageModel(folder)


def test_a_pooler_is_not_needed(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    vectors = MeanOfOutputs(LanguageModel(folder))(SENTENCES)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(MeanOfOutputs(LanguageModel(folder))(SENTENCES), vectors)


def test_two_stacks(gpt2: Path, tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    folder = shutil.copytree(gpt2, tmp_path / "t5")
    size = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5Model(T5Config(vocab_size=300, **size)).save_pretrained(folder)
    with pytest.raises(ConfigError, match="t5 has an encoder and a decoder; a model of one stack"):
        LanguageModel(folder)


def test_without_the_extra(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"transformers, which is not installed: pip install 'vpgfast\[language\]'"):
        make_model(gpt2)
    WSRA(small_config(), FEATURE_DIM, word_vectors())  # which needs none
