"""The registry of methods."""

from __future__ import annotations

import pytest

from vpgfast.models.method import Method
from vpgfast.models.registry import METHODS, get_config, get_method


@pytest.mark.parametrize("name", METHODS)
def test_a_method_and_its_settings_are_where_the_registry_says(name: str) -> None:
    method = get_method(name)
    assert issubclass(method, Method)
    assert method.name == name
    assert method.Config is get_config(name)
    assert method.Config.method == name
