"""``torch.func`` on every op: vmap works, and what torch can't differentiate is refused in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .fuzz import CASES, Case, Draw

each_op = pytest.mark.parametrize("op", list(CASES))


def cases(op: str) -> list[Case]:
    drawn = [CASES[op](Draw(seed, finite=True)) for seed in range(8)]
    return [case for case in drawn if all(t.numel() for t in case.inputs)]


def of_floats(case: Case) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The case as a number, and the inputs that it could be differentiated by."""
    places = [i for i, t in enumerate(case.inputs) if t.is_floating_point()]

    def call(*values: Tensor) -> Tensor:
        inputs = list(case.inputs)
        for place, value in zip(places, values, strict=True):
            inputs[place] = value
        return case.function(*inputs).double().sum()

    return call, [case.inputs[place].clone(memory_format=torch.contiguous_format) for place in places]


def is_differentiable(case: Case) -> bool:
    call, values = of_floats(case)
    return call(*(value.detach().requires_grad_() for value in values)).requires_grad


@each_op
def test_vmap(op: str) -> None:
    for case in cases(op):
        inputs = [torch.stack([t, t / 2 if t.is_floating_point() else t]) for t in case.inputs]
        found = torch.func.vmap(case.function)(*inputs)
        expected = torch.stack([case.function(*(t[i] for t in inputs)) for i in range(2)])
        torch.testing.assert_close(found, expected, equal_nan=True)


@each_op
def test_derivatives_within_torch_func_are_refused(op: str) -> None:
    tried = 0
    for case in cases(op):
        call, values = of_floats(case)
        if not is_differentiable(case):
            continue
        tried += 1
        numbers = tuple(range(len(values)))
        for derive in (torch.func.grad, torch.func.jacrev):
            with pytest.raises(RuntimeError, match=r"^vpgfast::\w+ can't be differentiated within torch\.func"):
                derive(call, argnums=numbers)(*values)
        tangents = tuple(map(torch.ones_like, values))
        with pytest.raises(RuntimeError, match=r"^vpgfast::\w+ has no derivative in forward mode \(jvp, jacfwd\)"):
            torch.func.jvp(call, tuple(values), tangents)
    assert tried or op == "temporal_nms"


def test_ops_without_derivative_go_through() -> None:
    """What has none is none to any transform."""
    (case, *_) = cases("temporal_nms")
    call, values = of_floats(case)
    assert all(not g.any() for g in torch.func.grad(call, argnums=tuple(range(len(values))))(*values))
