"""Buffers that follow from a module's settings, and stay right on every way that modules are moved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ModuleWithConstants(nn.Module):
    """A module with buffers that are computed from its settings and are no part of its state dict.

    Large models are made on the meta device, where tensors have no values, and get their weights by ``to_empty`` and
    ``load_state_dict``. Nothing there restores a buffer that no state dict holds, so this class computes it again.
    """

    def constants(self) -> dict[str, Tensor]:
        """The buffers by name. Called under the device context ``cpu``."""
        return {}

    def register_constants(self) -> None:
        """To be called once, as soon as :meth:`constants` can be."""
        for name, value in self._computed().items():
            self.register_buffer(name, value.to(torch.empty(0).device), persistent=False)  # as parameters are made
        self.register_load_state_dict_post_hook(_leave_meta)

    def _computed(self) -> dict[str, Tensor]:
        with torch.device("cpu"):
            return self.constants()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What ``to``, ``cuda``, ``half`` and ``to_empty`` go through."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        constants = (
            self._computed() if any(self._buffers[name] is not buffer for name, buffer in before.items()) else {}
        )
        for name, value in constants.items():
            now = self._buffers[name]
            assert now is not None
            if not now.is_meta:
                self._buffers[name] = value.to(now.device, now.dtype)
        return self


def _leave_meta(module: nn.Module, _: Any) -> None:
    """After ``load_state_dict(..., assign=True)`` parameters are there, and constants still on the meta device."""
    assert isinstance(module, ModuleWithConstants)
    devices = {parameter.device for parameter in module.parameters()} or {torch.device("cpu")}
    for name, value in module._computed().items():
        now = module._buffers[name]
        if now is not None and now.is_meta and torch.device("meta") not in devices:
            module._buffers[name] = value.to(min(devices, key=str), now.dtype)
