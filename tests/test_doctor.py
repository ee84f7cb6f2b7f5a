from __future__ import annotations

import importlib.metadata

import pytest

from vpgfast import doctor, ops
from vpgfast.ops import _registry
from vpgfast.video import torchcodec_backend


def test_lists_every_op_with_its_implementation(capsys: pytest.CaptureFixture[str]) -> None:
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
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert "! cpu: _C is not built; cure: pip install -e ." in printed
    assert "reference" in printed


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
