from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

from vpgfast import doctor, ops
from vpgfast.doctor import report
from vpgfast.ops import _registry
from vpgfast.video import torchcodec_backend


def test_lists_every_op_with_its_implementation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "DEVICES", ["cpu"])  # a CUDA build of torch may be without our kernels for it
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    rows = {words[0]: words[1] for words in lines if words[0] in ops.OPS}
    assert rows == dict.fromkeys(ops.OPS, "cpp")
    assert "All ops run on kernels." in printed


def test_names_the_cure_where_kernels_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_registry.MISSING, "_C", f"not built; cure: {_registry.BUILD_CURE}")
    monkeypatch.setattr(_registry, "COMPILED", set())
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert "! cpu: _C is not built; cure: pip install -e ." in printed
    assert "reference" in printed


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_gpu_is_well_served_where_some_ops_have_tritons_kernel_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = {(name, "cuda") for name, op in ops.OPS.items() if op.triton is None}
    monkeypatch.setattr(report, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(_registry, "COMPILED", _registry.COMPILED | compiled)
    assert doctor.main([]) == 0
    assert "All ops run on kernels." in capsys.readouterr().out

    monkeypatch.setattr(_registry, "_has_triton", lambda: False)
    assert doctor.main([]) == 1
    assert "! cuda: triton is not installed; cure: pip install triton" in capsys.readouterr().out


def test_names_a_backend_that_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with ops.backend("reference"):
        assert doctor.main([]) == 1
    assert "unset VPGFAST_BACKEND" in capsys.readouterr().out


def test_says_what_decodes_videos(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchcodec_backend, "why_not", lambda: "is not installed (pip install torchcodec)")
    doctor.main([])
    printed = capsys.readouterr().out
    assert f"decoder: PyAV {importlib.metadata.version('av')} with FFmpeg" in printed
    assert "torchcodec (not needed): is not installed (pip install torchcodec)" in printed
