"""No file that a user may be given is executed: malicious files of every kind through everything that loads a file.

What is promised is in ``SECURITY.md``.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import make_bert
from video_files import numbered, write

from vpgfast.ablate.tables import read_tables
from vpgfast.api.loading import load
from vpgfast.cache import kept
from vpgfast.checkpoint import load_checkpoint, load_state
from vpgfast.config import from_dict, parse_train, read_yaml
from vpgfast.data.annotations import own, qvhighlights
from vpgfast.data.features import open_features
from vpgfast.data.submissions import read_submission
from vpgfast.data.text import load_word_vectors
from vpgfast.encoders.base import load_encoder
from vpgfast.encoders.flow_clips import read_flow
from vpgfast.encoders.s3d_howto100m import read_dictionary
from vpgfast.encoders.weights import read_arrays, read_tensors
from vpgfast.errors import UserError, VideoError
from vpgfast.ground.run import read_features
from vpgfast.models.language import LanguageModel
from vpgfast.search.index import VideoIndex
from vpgfast.search.shards import VideoEntry

PROJECT = Path(__file__).parents[1]


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def saved(evil: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(evil, buffer, **options)
    return buffer.getvalue()


def array(evil: Evil) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([evil, evil], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def archive(evil: Evil) -> bytes:
    """With the evil array under every name that something here asks for."""
    buffer = io.BytesIO()
    names = ("features", "words", "vectors", "times", "about", "a")
    np.savez(buffer, **{name: np.array([evil], dtype=object) for name in names})
    return buffer.getvalue()


def package(evil: Evil) -> bytes:
    """A zip archive of torch.save whose pickle is plain: its protocol and layout are of no version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"epoch": evil}))
        file.writestr("archive/version", "3")
    return buffer.getvalue()


KINDS: dict[str, Callable[[Evil], bytes]] = {
    **{f"pickle {n}": lambda evil, n=n: pickle.dumps({"blobs": {"a": evil}, "epoch": 1}, n) for n in (0, 2, 4, 5)},
    "torch.save": lambda evil: saved({"epoch": 1, "state_dict": {"a": torch.zeros(2), "b": evil}}),
    "torch.save, old format": lambda evil: saved({"epoch": evil}, _use_new_zipfile_serialization=False),
    "torch.save, by hand": package,
    "npy": array,
    "npz": archive,
    "YAML": lambda evil: (
        f"method: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{evil.marker}']]\n"
        f"epoch: !!python/object/apply:os.system ['touch {evil.marker}']\n"
    ).encode(),
    "Python": lambda evil: f"import pathlib; pathlib.Path({str(evil.marker)!r}).touch()\n".encode(),
}
"""What a malicious file may hold, whatever it is called."""


def placed(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def glove(path: Path) -> object:
    return load_word_vectors(path, ["a"], 3)


def index_with(content: bytes, folder: Path, pattern: str) -> None:
    """Read all of an index one file of which was exchanged."""
    (folder / "model").write_bytes(b"weights")
    index = VideoIndex.create(folder / "index", 4, folder / "model", "tiny", {"source": "x", "width": 3})
    with index.changing():
        index.add(np.eye(4, dtype=np.float32), [VideoEntry(f"v{i}", 1.0, {"kind": "hdf5"}) for i in range(4)])
    next((folder / "index").glob(pattern)).write_bytes(content)
    again = VideoIndex.open(folder / "index")
    again.search(np.eye(4, dtype=np.float32), 2)
    list(again.living())


def language_folder(content: bytes, folder: Path, name: str) -> Path:
    """A model's folder in which one file is exchanged; weights of torch.save in the place of safetensors."""
    make_bert(folder / "bert")
    if name == "pytorch_model.bin":
        (folder / "bert" / "model.safetensors").unlink()
    (folder / "bert" / name).write_bytes(content)
    return folder / "bert"


def resumed(content: bytes, folder: Path) -> None:
    placed(folder / "run" / "training_state.pt", content)
    load_state(folder / "run" / "training_state.pt")


LOADERS: dict[str, Callable[[bytes, Path], object]] = {
    "checkpoint": lambda content, folder: load_checkpoint(placed(folder / "x.safetensors", content)),
    "checkpoint of a run": lambda content, folder: load_checkpoint(placed(folder / "best.safetensors", content).parent),
    "shared model": lambda content, folder: load(placed(folder / "model.safetensors", content).parent),
    "training state": resumed,
    "weights, .pt": lambda content, folder: read_tensors(placed(folder / "w.pt", content)),
    "weights, .pth": lambda content, folder: read_tensors(placed(folder / "w.pth", content)),
    "weights, .pickle": lambda content, folder: read_tensors(placed(folder / "w.pickle", content)),
    "weights, .safetensors": lambda content, folder: read_tensors(placed(folder / "w.safetensors", content)),
    "weights of Caffe2": lambda content, folder: read_arrays(placed(folder / "w.pkl", content)),
    **{
        f"encoder {family}": lambda content, folder, family=family: load_encoder(
            f"{family}:{placed(folder / 'w.pt', content)}"
        )
        for family in ("c3d", "i3d", "slowfast", "s3d_howto100m", "torchvision")
    },
    "encoder clip": lambda content, folder: load_encoder(
        f"clip:{language_folder(content, folder, 'pytorch_model.bin')}"
    ),
    "language model": lambda content, folder: LanguageModel(language_folder(content, folder, "pytorch_model.bin")),
    "tokenizer": lambda content, folder: LanguageModel(language_folder(content, folder, "tokenizer.json")),
    "words of s3d_howto100m": lambda content, folder: read_dictionary(placed(folder / "words.npy", content), 10),
    "flow": lambda content, folder: list(read_flow(placed(folder / "flow.npy", content))),
    "features, HDF5": lambda content, folder: open_features(placed(folder / "f.h5", content)),
    "features, folder of .npy": lambda content, folder: open_features(placed(folder / "f" / "v.npy", content).parent),
    "features, folder of .npz": lambda content, folder: open_features(placed(folder / "f" / "v.npz", content).parent),
    "features of ground": lambda content, folder: read_features(placed(folder / "f.npy", content)),
    "word vectors, .npz": lambda content, folder: glove(placed(folder / "v.npz", content)),
    "word vectors, .txt": lambda content, folder: glove(placed(folder / "v.txt", content)),
    "index, vectors": lambda content, folder: index_with(content, folder, "vectors-*.npy"),
    "index, videos": lambda content, folder: index_with(content, folder, "videos-*.json"),
    "index, what it is": lambda content, folder: index_with(content, folder, "index.json"),
    "settings": lambda content, folder: read_yaml(placed(folder / "config.yaml", content)),
    "settings of train": lambda content, folder: parse_train(["--config", str(placed(folder / "c.yaml", content))]),
    "tables of ablations": lambda content, folder: read_tables(placed(folder / "ablations.yaml", content)),
    "annotations": lambda content, folder: own.load(placed(folder / "a.json", content), lambda video: 1.0),
    "annotations, CSV": lambda content, folder: own.load(placed(folder / "a.csv", content), lambda video: 1.0),
    "annotations of QVHighlights": lambda content, folder: qvhighlights.read(placed(folder / "a.jsonl", content)),
    "submission": lambda content, folder: read_submission(placed(folder / "s.jsonl", content), [], folder / "truth"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loader", LOADERS)
def test_nothing_is_executed(loader: str, kind: str, tmp_path: Path) -> None:
    """And what is said of it is an error for the user."""
    marker = tmp_path / "executed"
    folder = tmp_path / "files"
    folder.mkdir()
    with pytest.raises(UserError) as caught:
        LOADERS[loader](KINDS[kind](Evil(marker)), folder)
    assert not marker.exists(), str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_is_made_anew(kind: str, tmp_path: Path) -> None:
    marker, made = tmp_path / "executed", {"a": np.arange(3)}
    placed(tmp_path / "name.npz", KINDS[kind](Evil(marker)))
    assert np.array_equal(kept("name", lambda: made, tmp_path)["a"], made["a"])
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["pickle 4", "torch.save", "torch.save, old format", "npy", "npz"])
def test_these_files_would_do_harm(kind: str, tmp_path: Path) -> None:
    """So that the tests above can fail."""
    marker = tmp_path / "executed"
    path = placed(tmp_path / "file", KINDS[kind](Evil(marker)))
    if kind.startswith("torch"):
        torch.load(path, weights_only=False)
    else:
        loaded = pickle.loads(path.read_bytes()) if kind == "pickle 4" else np.load(path, allow_pickle=True)
        if kind == "npz":
            loaded["a"]
    assert marker.exists()


def test_code_beside_a_language_model_is_not_run(tmp_path: Path) -> None:
    """``auto_map`` of its config names a class in a Python file of the folder."""
    folder, marker = make_bert(tmp_path / "bert"), tmp_path / "executed"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Model", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        LanguageModel(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "os.system"},
        {"method": "seqpan", "model": {"class_path": "os.system", "init_args": {"command": "touch MARKER"}}},
        {"method": "seqpan", "optim": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "MARKER"]}}},
        {"method": "seqpan", "output": {"class_path": "pathlib.Path.touch", "init_args": {}}},
        {"method": "seqpan", "data": "evil.yaml"},
        {"method": "seqpan", "__class__": "os.system"},
        {"method": "seqpan", "config": "evil.yaml"},
    ],
    ids=str,
)
def test_settings_of_a_checkpoint_make_no_objects(settings: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint tells its settings, which are numbers, words and lists; no class is looked up by them."""
    marker = tmp_path / "executed"
    text = json.dumps(settings).replace("MARKER", str(marker))
    with pytest.raises(UserError):
        from_dict(json.loads(text), "checkpoint x")
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:3.3,\nURL/x.ts\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:3.3,\nfile:FOLDER/real.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile real.ts\n",
        "ffconcat version 1.0\nfile URL/x.ts\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
    ids=["HLS of the net", "HLS of a file", "concat of a file", "concat of the net", "SDP"],
)
def test_a_list_of_other_videos_opens_none(text: str, tmp_path: Path) -> None:
    write(tmp_path / "real.ts", [numbered(i) for i in range(20)], rate=10)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        video = tmp_path / "video.mp4"
        video.write_text(text.replace("URL", address).replace("FOLDER", str(tmp_path)))
        with pytest.raises(VideoError):
            load_encoder("pixels").encode(video)
        with pytest.raises(TimeoutError):
            server.accept()
    assert load_encoder("pixels").encode(tmp_path / "real.ts").features.size  # it could have been opened


SAFE = {"load": {"np": "allow_pickle=False", "torch": "weights_only=True"}}
FORBIDDEN = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load_all"),
    ("marshal", "loads"),
    ("shelve", "open"),
    ("joblib", "load"),
    ("dill", "load"),
    ("torch.jit", "load"),
    ("torch.hub", "load"),
    ("torch.package", "PackageImporter"),
    ("os", "system"),
}


def calls(file: Path) -> list[tuple[str, str, str]]:
    """Module, function and arguments of each call ``module.function(...)`` in a file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            arguments = ", ".join(map(ast.unparse, [*node.args, *node.keywords]))
            found.append((ast.unparse(node.func.value), node.func.attr, arguments))
    return found


@pytest.mark.parametrize("folder", ["vpgfast", "scripts", "benchmarks", "examples", "triton_kernels"])
def test_whatever_loads_a_file_says_that_it_is_safe(folder: str) -> None:
    """Every call of ``np.load``, ``torch.load`` and ``yaml.load``, so that a new one is safe too."""
    for file in sorted((PROJECT / folder).rglob("*.py")):
        for module, function, arguments in calls(file):
            where = f"{file}: {module}.{function}({arguments})"
            assert (module, function) not in FORBIDDEN, where
            if (module, function) == ("yaml", "load"):
                assert arguments.endswith("_UniqueKeys"), where  # a yaml.SafeLoader
            elif function == "load" and module in SAFE["load"]:
                assert SAFE["load"][module] in arguments, where
            assert "trust_remote_code=True" not in arguments, where
            assert "shell=True" not in arguments, where
