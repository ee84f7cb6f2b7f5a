"""Published ways to make features, by name: which encoder, with which options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings of an encoder under which published features were made.

    Attributes:
        family: the encoder.
        about: whose features these are, and how many rows they have.
        options: of the family.
    """

    family: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {}
