"""Damaged files of every kind give a result or an error of the user's, see :mod:`fuzz_files`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from fuzz_files import FOUND, KINDS, fuzz, replay

CASES = int(os.environ.get("VPGFAST_FUZZ_CASES", "60"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind: str) -> None:
    _, faults = fuzz(kind, 60.0, CASES, seed=0)
    assert not faults, "\n".join(trace for _, _, trace in faults.values())


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name[:12]}")
def test_what_was_found_before(path) -> None:  # type: ignore[no-untyped-def]
    file = path.name.split("-", 1)[1].replace("@", "/")
    assert not replay(path.parent.name, file, path.read_bytes())
