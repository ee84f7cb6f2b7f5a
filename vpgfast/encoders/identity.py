"""Which encoder made some features: kept in feature files and checkpoints, so that others can be made the same way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Identity:
    """Which encoder made some features.

    Attributes:
        spec: that loads it again, if its weights are still there.
        family: its name.
        sha256: hash of its weights; ``None`` for a family without.
        dim: width of its rows.
        settings: see :meth:`Encoder.settings`.
    """

    spec: str
    family: str
    sha256: str | None
    dim: int
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash (hexadecimal) of all that decides what the features are; where the weights lie is no part of it."""
        about = [self.family, self.sha256, self.dim, self.settings]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Identity:
        """Raises ``ValueError`` for anything but what :meth:`to_json` gave."""
        content = json.loads(text)
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or set(content) != names:
            raise ValueError(f"not the description of an encoder: {text[:80]!r}")
        return cls(**content)

    def differences(self, other: Identity) -> list[str]:
        """What differs, a phrase each; empty where the features are the same."""
        if self.family != other.family:
            return [f"family {self.family} and {other.family}"]
        found = []
        if self.sha256 != other.sha256:
            found.append(f"weights {str(self.sha256)[:12]} and {str(other.sha256)[:12]} (SHA-256)")
        mine, others = _flat(self.settings), _flat(other.settings)
        for name in sorted(mine.keys() | others.keys()):
            if mine.get(name) != others.get(name):
                found.append(f"{name} {mine.get(name, 'not said')} and {others.get(name, 'not said')}")
        return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
