"""What the settings of all methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vpgfast.errors import ConfigError


@dataclass  # or jsonargparse would not see dataclasses in those of the methods
class MethodConfig:
    """What the settings of all methods share: checks that name the method and the setting."""

    method: ClassVar[str]

    @classmethod
    def of_checkpoint(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a checkpoint, with what an older one lacks and had no choice about."""
        return dict(settings)

    def require(self, names: str, must: str, holds: Callable[[Any], bool]) -> None:
        """Refuse settings (``names``, separated by spaces) for which ``holds`` is false; ``must`` says it in words.

        Raises:
            ConfigError: one does not hold.
        """
        for name in names.split():
            try:
                good = holds(getattr(self, name))
            except TypeError:  # nothing, where a number has to be
                good = False
            if not good:
                raise ConfigError(f"{self.method}: {name} must {must}, got {getattr(self, name)}")

    def require_weights(self) -> None:
        """Refuse negative weights of losses, the settings that end in ``_weight``."""
        weights = " ".join(name for name in vars(self) if name.endswith("_weight"))
        self.require(weights, "be 0 or more", lambda value: value >= 0)
