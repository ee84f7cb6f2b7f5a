"""``vpgfast.load`` and what it gives: the same answers as the commands, from several threads, and after sharing."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from video_files import numbered, write

import vpgfast
from vpgfast import ground, train
from vpgfast.api import Grounder, sharing
from vpgfast.data.feature_files import FeatureStore, Source, VideoFeatures
from vpgfast.encoders.base import load_encoder
from vpgfast.errors import CheckpointError, FeatureError, UserError

SENTENCES = ["The red dog runs.", "The blue dog runs."]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write(path, [numbered(i) for i in range(80)], rate=10)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of SeqPAN, on features of `pixels` that are not those of any video."""
    folder = tmp_path_factory.mktemp("run")
    encoder = load_encoder("pixels")
    store, rng = FeatureStore(folder / "f.h5", encoder.identity(), {}), np.random.default_rng(0)
    lines = []
    for number in range(8):
        rows = rng.standard_normal((20, encoder.dim)).astype(np.float32)
        times = np.stack([np.arange(20), np.arange(1, 21)], 1).astype(np.float64)
        store.add(f"v{number}", VideoFeatures(rows, times, 20.0, (), Source(1, 1)))
        for m, sentence in enumerate(SENTENCES):
            lines.append(f"v{number},{2 + 7 * m},{8 + 7 * m},{sentence}\n")
    store.finish()
    (folder / "a.csv").write_text("video,start,end,sentence\n" + "".join(lines))
    splits = [f"--data.annotations.{split}={folder / 'a.csv'}" for split in ("train", "val", "test")]
    settings = ["--data.corpus=own", *splits, f"--data.features={folder / 'f.h5'}", "--accelerator=cpu"]
    tiny = ["--epochs=1", "--model.dim=16", "--model.heads=2", "--pictures=0", f"--output={folder / 'run'}"]
    assert train.main([*settings, *tiny]) == 0
    return folder / "run"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VPGFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def _objects(cache: Path, put_class_vectors: Callable[[Path], None]) -> None:
    put_class_vectors(cache)


@pytest.mark.usefixtures("cache")
def test_the_command_says_the_same(run: Path, video: Path, tmp_path: Path) -> None:
    model = vpgfast.load(run)
    found = model.ground(video, SENTENCES, top=3)
    asked = [argument for sentence in SENTENCES for argument in ("--sentence", sentence)]
    output = ["--output", str(tmp_path / "out"), "--top=3"]
    assert ground.main([str(run), "--video", str(video), *asked, *output]) == 0
    assert json.loads((tmp_path / "out" / "grounding.json").read_text()) == found.to_dict()
    assert (tmp_path / "out" / "grounding.txt").read_text() == f"{found}\n"
    again = found.save(tmp_path / "again")
    for name in ("grounding.json", "grounding.txt", "grounding.png"):
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_results(run: Path, video: Path, cache: Path) -> None:
    model = vpgfast.load(run)
    seen = model.encode(video)
    assert len(list((cache / "features").rglob("*.npz"))) == 1
    assert seen.duration == pytest.approx(8.0)
    assert repr(seen).startswith("EncodedVideo('clip', 8.0 s")
    found = model.ground(seen, SENTENCES, top=2)
    assert len(found) == 2
    assert [sentence.sentence for sentence in found] == SENTENCES
    assert found[0].spans.shape == (2, 2)
    assert (np.diff(found[0].scores) <= 0).all()
    assert found[0].curve is None
    one = model.ground(seen, SENTENCES[0], top=2)
    np.testing.assert_array_equal(one[0].spans, found[0].spans)
    text = model.ground(seen, "The <b>dog</b> & it.")._repr_html_()
    assert "&lt;b&gt;dog" in text
    assert "<b>" not in text
    ordered = vpgfast.load(run, settings={"model.decode": "ordered"})
    assert ordered.config.model.decode == "ordered"
    starts = [sentence.spans[0, 0] for sentence in ordered.ground(seen, SENTENCES[::-1])]
    assert starts == sorted(starts)


def test_features_that_are_there(run: Path) -> None:
    model = vpgfast.load(run)
    rows = np.random.default_rng(0).standard_normal((12, model.checkpoint.feature_dim))
    assert model.ground(model.video_of(rows, 12.0), SENTENCES[0])[0].spans.max() <= 12
    for bad, kind in {0: FeatureError, 1: CheckpointError, 2: FeatureError}.items():
        array = [rows[0], rows[:, :3], rows * np.nan][bad]
        with pytest.raises(kind, match="mine: "):
            model.video_of(array, 12.0, "mine")


@pytest.mark.usefixtures("_objects")
def test_without_training(video: Path) -> None:
    model = vpgfast.load("objects")
    assert model.method == "similarity"
    found = model.ground(video, SENTENCES, top=2)
    assert found[1].curve is not None
    assert found.to_dict()["sentences"][0]["curve"] == pytest.approx(found[0].curve, abs=1e-4)
    moments = model.find(video, SENTENCES[0], top=3)
    assert moments == model.find([model.encode(video)], [SENTENCES[0]], top=3)
    assert 1 <= len(moments) <= 3
    assert {moment.video for moment in moments} == {"clip"}
    assert len(model.find([video.parent], SENTENCES)) == 2, "a paragraph has one moment a sentence"


@pytest.mark.parametrize("spec", ["run", "objects"])
@pytest.mark.usefixtures("cache")
def test_threads(run: Path, video: Path, spec: str, request: pytest.FixtureRequest) -> None:
    """Many questions at a time get the answers that they get one by one."""
    if spec == "objects":
        request.getfixturevalue("_objects")
    sentences = [f"The {colour} dog {verb}." for colour in ("red", "blue", "old") for verb in ("runs", "sleeps", "is")]
    source = run if spec == "run" else spec
    alone = vpgfast.load(source)
    expected = [alone.ground(video, sentence).to_dict() for sentence in sentences]
    shared = vpgfast.load(source)  # the encoder is not loaded yet
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda sentence: shared.ground(video, sentence).to_dict(), sentences * 4))
    assert found == expected * 4


# Sharing


@pytest.mark.usefixtures("cache")
def test_saved_and_loaded(run: Path, video: Path, tmp_path: Path) -> None:
    model = vpgfast.load(run)
    folder = model.save_pretrained(tmp_path / "shared", license="mit", name="me/dogs")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = vpgfast.load(folder)
    assert again.ground(video, SENTENCES).to_dict() == model.ground(video, SENTENCES).to_dict()
    assert again.results == model.results == json.loads((run / "metrics.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert config["method"] == "seqpan"
    assert config["encoder"]["spec"] == "pixels"
    assert load_file(folder / "model.safetensors")
    # Once more, from what was loaded.
    second = again.save_pretrained(tmp_path / "second", license="mit", name="me/dogs")
    for name in ("README.md", "config.json"):
        assert (second / name).read_bytes() == (folder / name).read_bytes()
    before, after = (load_file(place / "model.safetensors") for place in (folder, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    # A file alone does, and the commands take both.
    shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
    alone = vpgfast.load(tmp_path / "alone.safetensors")
    assert alone.results is None
    for place in (folder, tmp_path / "alone.safetensors"):
        asked = ["--sentence", SENTENCES[0], "--output", str(tmp_path / "out")]
        assert ground.main([str(place), "--video", str(video), *asked]) == 0


def test_the_card(run: Path, tmp_path: Path) -> None:
    model = vpgfast.load(run)
    text = (model.save_pretrained(tmp_path, license="cc-by-4.0", name="me/dogs") / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["license"] == "cc-by-4.0"
    assert about["library_name"] == "vpgfast"
    assert "seqpan" in about["tags"]
    assert "vpgfast.load('me/dogs')" in body
    assert "`pixels`" in body
    assert model.results is not None
    for label, row in {"seqpan": model.results["metrics"], **model.results["baselines"]}.items():
        assert f"| {label} | " + " | ".join(f"{100 * value:.1f}" for value in row.values()) in body
    assert "| seqpan, sentences swapped |" in body
    model.results = None
    assert "Nothing is known." in sharing.card(model, "mit", "x")
    with pytest.raises(UserError, match="license 'a\\\\nb: c'"):
        model.save_pretrained(tmp_path, license="a\nb: c")


def test_from_the_hub(run: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """By name from Hugging Face's cache, which is all that there is without a network; uploading sends these files."""
    hub = pytest.importorskip("huggingface_hub")
    model = vpgfast.load(run)
    snapshot = tmp_path / "hub" / "models--me--dogs" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    model.save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    found = vpgfast.load("me/dogs")
    assert found.ground(video, SENTENCES).to_dict() == model.ground(video, SENTENCES).to_dict()
    with pytest.raises(CheckpointError, match="me/cats: no such file or folder, and the hub does not give it"):
        vpgfast.load("me/cats")

    uploads: dict[str, list[str]] = {}

    class Api:
        def __init__(self, token: str | None) -> None:
            pass

        def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
            return f"https://huggingface.co/{name}"

        def upload_folder(self, folder_path: str, repo_id: str, commit_message: str) -> None:
            uploads[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())

    monkeypatch.setattr(hub, "HfApi", Api)
    assert model.push_to_hub("me/dogs") == "https://huggingface.co/me/dogs"
    assert uploads == {"me/dogs": ["README.md", "config.json", "model.safetensors"]}


def test_without_the_hub(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        vpgfast.load("me/dogs")
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        vpgfast.load(run).push_to_hub("me/dogs")


class Bomb:
    """What a pickle does to whoever loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["best.safetensors", "model.safetensors", "training_state.pt", "config.json"])
def test_no_pickle_is_executed(run: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "executed"
    folder = tmp_path / "run"
    if name in ("model.safetensors", "config.json"):
        vpgfast.load(run).save_pretrained(folder)
    else:
        shutil.copytree(run, folder)
    for content in (pickle.dumps(Bomb(mark)), None):
        if content is None:
            torch.save({"epoch": 1, "x": Bomb(mark)}, folder / name)
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError) if name.endswith(".safetensors") else nullcontext():
            vpgfast.load(folder)
        assert not mark.exists()
    if name == "training_state.pt":
        from vpgfast.checkpoint import load_state

        with pytest.raises(CheckpointError, match="damaged"):
            load_state(folder / name)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb is none"


def test_errors(run: Path, tmp_path: Path, video: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such file or folder, no encoder's spec, and no name"):
        vpgfast.load("nowhere")
    with pytest.raises(CheckpointError, match="no such file; give a"):
        vpgfast.load(tmp_path)
    model = vpgfast.load(run)
    for sentences, expected in {
        (): "no sentence is given",
        ("It runs.", "..."): r"sentence 2 \('...'\) has no word",
    }.items():
        with pytest.raises(UserError, match=expected):
            model.ground(video, sentences)
    with pytest.raises(UserError, match="top must be at least 1"):
        model.ground(video, "It runs.", top=0)
    with pytest.raises(UserError, match="find compares videos, which the scores of seqpan don't"):
        model.find(video, "It runs.")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="nothing can be written there"):
        model.save_pretrained(tmp_path / "file" / "x")
    with pytest.raises(UserError, match="nothing can be written there"):
        model.ground(video, "It runs.").save(tmp_path / "file" / "x")


# Start-up and docs


def test_import_is_instant() -> None:
    code = "import sys, vpgfast; print('torch' in sys.modules or 'numpy' in sys.modules); vpgfast.load"
    code += "; print('torch' in sys.modules, vpgfast.Grounder.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "Grounder"]
    assert set(vpgfast.__all__) <= set(dir(vpgfast))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vpgfast.nothing  # noqa: B018


@pytest.mark.usefixtures("_objects")
def test_examples_of_the_docs(run: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/python.md, block after block, in a folder with what it names."""
    text = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    shutil.copytree(run, tmp_path / "runs" / "seqpan-own")
    (tmp_path / "videos").mkdir()
    shutil.copy(video, tmp_path / "videos")
    shutil.copy(video, tmp_path / "clip.mp4")
    np.save(tmp_path / "clip.npy", np.zeros((5, vpgfast.load(run).checkpoint.feature_dim), np.float32))
    monkeypatch.chdir(tmp_path)
    pushed: list[str] = []
    monkeypatch.setattr(Grounder, "push_to_hub", lambda self, name, **more: pushed.append(name))
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 3
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert pushed == ["user/name"]
