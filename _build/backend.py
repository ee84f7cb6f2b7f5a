"""In-tree build backend: setuptools, building against the torch that the package is being installed beside.

Listing torch as a build requirement would make pip fetch its newest release (gigabytes) into the isolated build
environment and build against that one. pip's isolation hides the target environment's packages but runs the same
interpreter, so the installed torch is found where that interpreter keeps its packages; only where there is none is
one asked for.
"""

from __future__ import annotations

from typing import Any

from extensions import build_mode, find_torch
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (a build backend is the functions of its module)


def _torch_requirement() -> list[str]:
    return [] if build_mode() == "none" or find_torch() else ["torch>=2.11"]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()
