"""What people do to modules: the meta device, copies, pickles, other dtypes and devices, export, DDP and FSDP."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from language_models import make_bert
from torch import Tensor, nn

import vpgfast.nn
from vpgfast.models.registry import METHODS
from vpgfast.nn.constants import ModuleWithConstants

from . import cases
from .cases import EVERY, MODULES, TRAINED, answers, in_dtype, inputs, make


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_every_module_and_method_is_here() -> None:
    assert {type(make(name)) for name in MODULES} == {getattr(vpgfast.nn, name) for name in vpgfast.nn.__all__}
    assert set(EVERY) >= set(METHODS)


@pytest.mark.parametrize("name", MODULES)
def test_made_on_the_meta_device(name: str) -> None:
    module = make(name)
    expected = answers(module, inputs(name, module))
    with torch.device("meta"):
        made = MODULES[name][0]()
    assert all(tensor.is_meta for tensor in [*made.parameters(), *made.buffers()])
    made.to_empty(device="cpu")
    made.load_state_dict(module.state_dict())
    same(answers(made, inputs(name, made)), expected)


@pytest.mark.parametrize("name", MODULES)
def test_loaded_by_assignment(name: str) -> None:
    module = make(name)
    with torch.device("meta"):
        made = nn.Sequential(MODULES[name][0]())
    made.load_state_dict({f"0.{key}": value for key, value in module.state_dict().items()}, assign=True)
    same(answers(made[0], inputs(name, made[0])), answers(module, inputs(name, module)))


@pytest.mark.parametrize("name", METHODS)
def test_methods_refuse_to_be_made_there(name: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"{name} can't be made on the meta device, where its"):
        make(name)


def test_a_mask_without_values_is_refused() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match="mask is on the meta device, where it has no values"):
        vpgfast.nn.TemporalMapConv2d(mask, 2, [3], [3], [1])


@pytest.mark.parametrize("name", EVERY)
def test_there_and_back(name: str) -> None:
    module = make(name)
    expected, weights = answers(module, inputs(name, module)), copy.deepcopy(module.state_dict())
    module.to("meta")
    module.to_empty(device="cpu")
    for part in module.modules():
        constants = set(part.constants()) if isinstance(part, ModuleWithConstants) else set()
        for key, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if key not in constants:
                tensor.data.fill_(True)
    module.load_state_dict(weights)
    same(answers(module, inputs(name, module)), expected)


@pytest.mark.parametrize("name", EVERY)
def test_no_state_is_outside(name: str) -> None:
    """Every buffer is in the state dict or is computed again; nothing else can be lost."""
    module = make(name)
    kept = set(module.state_dict())
    for place, part in module.named_modules():
        constants = set(part.constants()) if isinstance(part, ModuleWithConstants) else set()
        for key, _ in part.named_buffers(recurse=False):
            assert key in constants or f"{place}.{key}".lstrip(".") in kept


@pytest.mark.parametrize("name", EVERY)
def test_copies(name: str) -> None:
    module = make(name)
    expected = answers(module, inputs(name, module))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        same(answers(other, inputs(name, other)), expected)
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.data.zero_()
        same(answers(module, inputs(name, module)), expected)


@pytest.mark.parametrize("name", ["wsra", "dmr_jrg"])
def test_with_a_language_model(name: str, tmp_path: Path) -> None:
    """It is no part of the weights, and follows all the same."""
    folder = make_bert(tmp_path / "bert")
    module = make(name, language_model=folder)
    arguments, weights = inputs(name, module), copy.deepcopy(module.state_dict())
    expected = answers(module, arguments)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        same(answers(other, arguments), expected)
    module.to("meta")
    module.to_empty(device="cpu")
    module.load_state_dict(weights)
    same(answers(module, arguments), expected)


@pytest.mark.parametrize("name", EVERY)
def test_other_dtypes(name: str) -> None:
    module = make(name)
    arguments = inputs(name, module)
    expected = answers(module, arguments)
    wide = answers(copy.deepcopy(module).double(), in_dtype(arguments, torch.float64))
    for one, other in zip(wide, expected, strict=True):
        torch.testing.assert_close(one.to(other.dtype), other, rtol=1e-4, atol=1e-5, equal_nan=True)
    narrow = copy.deepcopy(module).bfloat16()
    found = answers(narrow, in_dtype(arguments, torch.bfloat16))
    assert all(one.shape == other.shape for one, other in zip(found, expected, strict=True))
    if name in MODULES:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.to(other.dtype), other, rtol=0.1, atol=0.1, equal_nan=True)
    back = narrow.float()
    for part, own in zip(back.modules(), module.modules(), strict=True):
        if isinstance(part, ModuleWithConstants):
            for key, value in own.constants().items():  # type: ignore[operator]
                torch.testing.assert_close(part.get_buffer(key), value.to(part.get_buffer(key).dtype), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EVERY)
def test_to_a_gpu_and_back(name: str) -> None:
    module = make(name)
    arguments = inputs(name, module)
    expected = answers(module, arguments)
    module.cuda()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = answers(module, tuple(x.to("cuda") for x in arguments))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4, equal_nan=True)
    same(answers(module.cpu(), arguments), expected)


@pytest.mark.parametrize("name", MODULES)
def test_export(name: str) -> None:
    """A program of another batch size says the same as the module."""
    module = make(name)
    arguments = inputs(name, module)
    batch = torch.export.Dim("batch", min=2)
    shapes = tuple({0: batch} if x.shape[0] > 1 else None for x in arguments)
    program = torch.export.export(module, arguments, dynamic_shapes=shapes)
    for part in (slice(None), slice(0, 3)):
        same(answers(program.module(), inputs(name, module, part)), answers(module, inputs(name, module, part)))
    assert "vpgfast" in str(program.graph), "the ops are calls of ours"


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_not_exported(name: str) -> None:
    """Their batches hold text; the modules that they are made of can be."""
    module = make(name)
    with pytest.raises((ValueError, TypeError), match=r"Unsupported input type .*Batch|missing a required argument"):
        torch.export.export(module, inputs(name, module))


def test_two_processes() -> None:
    """Gradients over two processes, of half of a batch each, are the mean of those of both halves."""
    program = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [sys.executable, str(program), *TRAINED], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:-1] == [f"{name}, {kind}: same" for name in TRAINED for kind in ("ddp", "fsdp")]


def test_cases_have_gradients() -> None:
    for name in TRAINED:
        module = make(name)
        cases.loss(module, *inputs(name, module)).backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters()), name
