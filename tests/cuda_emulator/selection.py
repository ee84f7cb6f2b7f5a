"""A plugin of pytest's for ``scripts/emulate_cuda.sh``: leaves out what says nothing about a kernel, and, unless
``VPGFAST_EMULATOR_ALL`` is set, what takes too long for every day."""

from __future__ import annotations

import os
import re

import pytest
import sampling

MODE = os.environ["VPGFAST_EMULATED"]

OTHER_SUBJECTS = (
    "triton", "compile", "registration", "memory", "export", "environment", "without_any_library", "test_registry",
    # of the C++ library's messages and bits: on a GPU a wrong value is an assertion (check_kernels.py), and products
    # and sums are fused
    "inverted", "wrong_values", "outside_the_video", "equals_the_reference_to_the_bit",
    # of ops whose kernels for CUDA are Triton's
    "conv2d", "anchor_cross_attention",
    # of the reference alone
    r"\[.*\breference\]$",
)  # fmt: skip
# One launch runs at a time, on one thread: other numbers of threads say nothing new, and processes nothing of a kernel.
LONG = (
    "from_four_threads_at_once", "cut_into_videos_and_channels", "more_rows_than_a_chunk_holds", "a_thousand_clips",
    "test_fuzz.py::test_deterministic", "test_life.py::test_two_processes", "pairs_looked_at",
)  # fmt: skip
# Order and poison are not looked at a second time.
LONG_WITH_RACES = (
    "deterministic_and_fully_written", "bmn_itself", "documented_bound", "neither_the",
    "long_video", "many_curves", "many_paragraphs", "brute_force", "equals_2d_tan",
    "maps_larger_than_the_caches", "gradcheck", "more_than_2_32_pairs", "long_and_wide",
)  # fmt: skip
# What a block leaves behind for its next piece of work is looked at with races; without parameters, so in every sample.
LONG_WITHOUT_RACES = (r"than_blocks$",)

# What runs with races leave out, or cut short, the plain ones have whole, whatever their sample.
if MODE == "plain":
    sampling.ALWAYS = re.compile("|".join((*LONG_WITH_RACES, r"test_fuzz\.py")))


def pytest_report_header() -> str:
    return " ".join(f"VPGFAST_EMULATOR_{name}={os.environ[f'VPGFAST_EMULATOR_{name}']}" for name in ("SEED", "POISON"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    patterns = OTHER_SUBJECTS
    if not os.environ.get("VPGFAST_EMULATOR_ALL"):
        patterns += LONG + (LONG_WITHOUT_RACES if MODE == "plain" else LONG_WITH_RACES)
    left_out = re.compile("|".join(patterns))
    chosen: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        chosen[left_out.search(item.nodeid) is None].append(item)
    config.hook.pytest_deselected(items=chosen[False])
    items[:] = chosen[True]
