"""What a command imports before it works: a list of options, or the nearest name to a wrong one, is to come at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vpgfast
from vpgfast.__main__ import COMMANDS
from vpgfast.models.registry import METHODS
from vpgfast.search.actions import ACTIONS

PACKAGE = Path(vpgfast.__file__).parent
HEAVY = {
    *("torch", "torchvision", "torchcodec", "triton", "lightning_fabric", "tensorboard", "safetensors"),
    *("numpy", "scipy", "pandas", "matplotlib", "h5py", "av", "faiss"),
    *("transformers", "tokenizers", "textblob", "nltk"),
}
MOST_MODULES, MOST_SECONDS = 700, 0.6  # of --help; the seconds are of CPU, and there are 0.2 today
PROGRAM = """
import runpy, sys, time
_, before, module, *arguments = sys.argv
if before:
    __import__(before)
sys.argv = ["", *arguments]
try:
    runpy.run_module(module, run_name="__main__")
except SystemExit as end:
    print(len(sys.modules), time.process_time(), file=sys.stderr)
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
    sys.exit(end.code)
"""


def imported(module: str, *arguments: str, before: str = "", quick: bool = True) -> set[str]:
    """Which heavy modules ``python -m MODULE ARGUMENTS``, which has to print help, has imported by its end.

    Args:
        before: a module to import first.
        quick: whether it must not take more modules and time than help should.
    """
    for _ in range(3):  # the quickest of three counts: a processor that others use takes longer for the same
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, before, module, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "usage: " in done.stdout
        counts, names = done.stderr.splitlines()[-2:]
        modules, seconds = counts.split()
        if not quick or float(seconds) <= MOST_SECONDS:
            break
    if quick:
        assert int(modules) <= MOST_MODULES
        assert float(seconds) <= MOST_SECONDS
    return HEAVY & set(names.split())


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
    seen = imported("vpgfast", "--help", before="vpgfast.train.run", quick=False)
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


def test_search_does_without_what_trains() -> None:
    """Lightning Fabric and torch's compiler would be 1.4 of the 3.2 s of CPU of its start."""
    program = (
        "import sys, vpgfast.search.actions;print(*({'lightning_fabric', 'torch._dynamo', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torch"]


@pytest.mark.parametrize("package", ["vpgfast.ops", "vpgfast.nn"])
def test_ops_import_torch_and_numpy_alone(package: str) -> None:
    """And add little to their time: 0.1 s of CPU today."""
    program = (
        "import time, numpy, torch, sys, importlib; before, start = set(sys.modules), time.process_time();"
        f"importlib.import_module({package!r}); print(time.process_time() - start);"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, names = done.stdout.splitlines()
    assert names.split() == ["vpgfast"]
    assert float(seconds) < 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_how_it_is_called(command: str) -> None:
    """The same way, whatever way it was."""
    for program in ((f"vpgfast.{command}",), ("vpgfast", command)):
        done = subprocess.run([sys.executable, "-m", *program, "--help"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"usage: python -m vpgfast.{command}")


def test_bars_are_for_terminals() -> None:
    """Every progress bar says when it is hidden: elsewhere ``disable=None``, or a log would hold a line an update."""
    calls = [
        (file, node)
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tqdm"
    ]
    assert calls
    for file, call in calls:
        assert "disable" in {keyword.arg for keyword in call.keywords}, f"{file}:{call.lineno}"
