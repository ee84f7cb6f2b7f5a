"""A plugin of pytest's for runs under a sanitizer: of tests with parameters ``VPGFAST_SAMPLE=3`` keeps about a third,
always the same. Without it, or for tests without parameters, nothing is left out."""

from __future__ import annotations

import os
import zlib

import pytest

ONE_OF = int(os.environ.get("VPGFAST_SAMPLE", "1"))


def pytest_report_header() -> str:
    return f"VPGFAST_SAMPLE={ONE_OF}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if "[" in item.name and zlib.crc32(item.nodeid.encode()) % ONE_OF]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
