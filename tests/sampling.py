"""A plugin of pytest's for slow runs: of tests with parameters ``VPGFAST_SAMPLE=3`` keeps about a third, always the
same, and ``VPGFAST_SAMPLE=rest-of-3`` the others. Without it, or for tests without parameters, nothing is left out."""

from __future__ import annotations

import os
import re
import zlib

import pytest

SAMPLE = os.environ.get("VPGFAST_SAMPLE", "1")
# Tests that every sample keeps; another plugin may set it.
ALWAYS: re.Pattern[str] | None = None


def in_sample(item: pytest.Item, one_of: int) -> bool:
    """Whether a test has no parameters or is among the third (``one_of`` 3) of those that have."""
    return "[" not in item.name or zlib.crc32(item.nodeid.encode()) % one_of == 0


def pytest_report_header() -> str:
    return f"VPGFAST_SAMPLE={SAMPLE}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    one_of, rest = int(SAMPLE.removeprefix("rest-of-")), SAMPLE.startswith("rest-of-")
    left_out = [item for item in items if "[" in item.name and in_sample(item, one_of) == rest]
    left_out = [item for item in left_out if ALWAYS is None or ALWAYS.search(item.nodeid) is None]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
