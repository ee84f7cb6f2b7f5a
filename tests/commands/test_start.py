"""What a command imports before it works: a list of options, or the nearest name to a wrong one, is to come at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vpgfast.__main__ import COMMANDS
from vpgfast.models.registry import METHODS
from vpgfast.search.actions import ACTIONS

HEAVY = {
    *("torch", "torchvision", "torchcodec", "triton", "lightning_fabric", "tensorboard", "safetensors"),
    *("numpy", "scipy", "pandas", "matplotlib", "h5py", "av", "faiss"),
    *("transformers", "tokenizers", "textblob", "nltk"),
}
PROGRAM = """
import runpy, sys
_, before, module, *arguments = sys.argv
if before:
    __import__(before)
sys.argv = ["", *arguments]
try:
    runpy.run_module(module, run_name="__main__")
except SystemExit as end:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
    sys.exit(end.code)
"""


def imported(module: str, *arguments: str, before: str = "") -> set[str]:
    """Which heavy modules ``python -m MODULE ARGUMENTS``, which has to print help, has imported by its end.

    Args:
        before: a module to import first.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, before, module, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout
    return HEAVY & set(done.stderr.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    allowed = {"numpy"} if command == "extract" else set()  # its files of features are arrays
    assert imported(f"vpgfast.{command}", "--help") <= allowed
    assert imported("vpgfast", command, "--help") <= allowed


@pytest.mark.parametrize("action", ACTIONS)
def test_help_of_an_action_of_search(action: str) -> None:
    assert not imported("vpgfast.search", action, "--help")


@pytest.mark.parametrize("method", METHODS)
def test_help_lists_the_settings_of_any_method_without_it(method: str) -> None:
    assert not imported("vpgfast.train", "--method", method, "--help")


def test_what_is_imported_is_seen() -> None:
    """So that the tests above can fail."""
    seen = imported("vpgfast", "--help", before="vpgfast.train.run")
    assert {"torch", "lightning_fabric", "numpy", "h5py"} <= seen


def test_ground_imports_what_it_uses(run: Path, tmp_path: Path) -> None:
    """Features given, no language model, one process: so nothing that decodes, reads language or spreads out."""
    features = tmp_path / "clips.npy"
    np.save(features, np.ones((8, 144), np.float32))
    arguments = [str(run), "--features", str(features), "--duration=10", "--sentence=it moves", f"--output={tmp_path}"]
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import tiny; tiny.register();"
        f"from vpgfast import ground; code = ground.main({arguments});"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = HEAVY & set(done.stderr.split())
    assert seen <= {"torch", "numpy", "safetensors", "matplotlib", "h5py"}
    assert "torch" in seen
