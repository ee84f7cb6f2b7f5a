"""Registers ops with torch, loads the compiled kernels, and chooses which implementation runs.

Each op exists the moment its Python file is imported: :func:`define` registers the schema, the plain-PyTorch reference
(which runs on any device and dtype that has no kernel) and the fake implementation. The libraries ``_C`` (C++, one for
each instruction set) and ``_C_cuda`` (CUDA) register kernels for single devices, which the dispatcher prefers. Choosing
another backend installs the chosen functions over them, and leaves the dispatcher as it was when the choice ends: no op
ever asks in Python which implementation to run.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad

from ._capability import chosen, library_of

Backend = Literal["auto", "cpp", "cuda", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpp", "cuda", "triton", "reference")
DEVICES = ("cpu",) if torch.version.cuda is None else ("cpu", "cuda")
"""Devices that this torch can use."""
LIBRARY = {"cpu": "_C", "cuda": "_C_cuda"}
PACKAGE = Path(__file__).resolve().parent.parent
BUILD_CURE = "pip install -e . (VPGFAST_BUILD=auto)"

_definitions = torch.library.Library("vpgfast", "DEF")


@dataclass(frozen=True)
class Op:
    """One registered op: its reference and, where it has one, its Triton launcher."""

    name: str
    reference: Callable[..., Any]
    triton: str | None

    def launch_triton(self, *args: Any) -> Any:
        """Run the Triton kernel (imported at the first call: importing Triton takes a while)."""
        assert self.triton is not None
        module, _, function = self.triton.partition(":")
        return getattr(importlib.import_module(f"vpgfast.triton_kernels.{module}"), function)(*args)


OPS: dict[str, Op] = {}
"""Every op that has been registered, backward ops too."""


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    triton: str | None = None,
) -> torch._ops.OpOverload:
    """Register an op under ``torch.ops.vpgfast``.

    Args:
        schema: name, arguments and results in torch's schema language.
        reference: plain PyTorch, the definition of correct; runs wherever there is no kernel.
        fake: results of the right shape, dtype and device without data, for ``torch.compile`` and ``torch.export``.
        triton: ``"file:launcher"`` in ``vpgfast.triton_kernels``, same arguments as the reference.
    """
    name = schema.partition("(")[0]
    _definitions.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _definitions.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vpgfast::{name}", fake)
    OPS[name] = Op(name, reference, triton)
    return getattr(torch.ops.vpgfast, name).default


def differentiable(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Register the derivative of the op ``name``, as ``torch.library.register_autograd`` does.

    What torch can't do with such an op is an error that says so: within the transforms of ``torch.func`` it would tell
    what an op's author should do, and of derivatives in forward mode it would make zeros.
    """
    overload = getattr(torch.ops.vpgfast, name).default
    differentiate = make_autograd_impl(overload, Info(backward, setup_context))

    def run(keyset: torch._C.DispatchKeySet, *args: Any, **options: Any) -> Any:
        if (
            torch.is_grad_enabled()
            and torch._C._are_functorch_transforms_active()
            and torch._C._any_requires_grad(*args)
        ):
            raise RuntimeError(
                f"vpgfast::{name} can't be differentiated within torch.func (grad, jacrev, vmap of what requires a "
                "gradient); use torch.autograd, and give it the batch as it is"
            )
        if forward_ad._current_level >= 0 and any(map(_has_tangent, args)):
            raise RuntimeError(f"vpgfast::{name} has no derivative in forward mode (jvp, jacfwd); use torch.autograd")
        return differentiate(keyset, *args, **options)

    _definitions.impl(name, run, "Autograd", with_keyset=True)


def _has_tangent(arg: Any) -> bool:
    return isinstance(arg, torch.Tensor) and forward_ad.unpack_dual(arg).tangent is not None


def no_second_derivative(name: str) -> None:
    """Make differentiating the backward op ``name`` an error that says so."""

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"vpgfast::{name.removesuffix('_backward')} has no second derivative; "
            "call backward without create_graph=True"
        )

    torch.library.register_autograd(f"vpgfast::{name}", refuse)


def float32_under_autocast(name: str) -> None:
    """Run an op in float32 inside autocast regions: it forms ratios or sums that 16 bits would spoil."""
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"vpgfast::{name}", device, torch.float32)


def autocast_like_conv(name: str) -> None:
    """Run an op in the autocast region's dtype, as torch's convolutions and matrix products are; float64 stays."""
    overload = getattr(torch.ops.vpgfast, name).default
    for device in ("cpu", "cuda"):
        key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")

        def run(*args: Any, device: str = device, key: Any = key) -> Any:
            def cast(arg: Any) -> Any:
                eligible = isinstance(arg, torch.Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
                return arg.to(torch.get_autocast_dtype(device)) if eligible and arg.device.type == device else arg

            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                return overload(*map(cast, args))

        overload.py_impl(key)(run)  # for torch.compile and torch.export
        _definitions.impl(name, run, key.name)


def build_info() -> dict[str, Any]:
    """What the last build left: ``torch``, ``mode``, ``built``, ``not_built`` (name -> reason); maybe nothing."""
    path = PACKAGE / "_build_info.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _load(library: str) -> str | None:
    """Import a kernel library. Returns why it is not there, or ``None`` when it is."""
    global CPU_CAPABILITY
    capability = chosen(PACKAGE) if library == LIBRARY["cpu"] else None
    try:
        importlib.import_module(f"vpgfast.{library if capability is None else library_of(capability)}")
    except ModuleNotFoundError:
        info = build_info()
        return info.get("not_built", {}).get(library) or f"not built; cure: {BUILD_CURE}"
    except ImportError as error:
        return f"built, but does not load ({error}); cure: rebuild with {BUILD_CURE}"
    CPU_CAPABILITY = capability or CPU_CAPABILITY
    return None


MISSING: dict[str, str] = {}
"""Kernel library -> why it is not in use."""

CPU_CAPABILITY: str | None = None
"""The instruction set whose C++ kernels are loaded, if any are."""

COMPILED: set[tuple[str, str]] = set()
"""(op, device) of the kernels in the libraries that are loaded. Some ops have none for CUDA: Triton's is the better."""


def load_libraries() -> None:
    """Load ``_C``, and ``_C_cuda`` where torch can use it; what is missing is noted in :data:`MISSING`."""
    reasons = {"_C": _load("_C")}
    if torch.version.cuda is None:
        reasons["_C_cuda"] = f"torch {torch.__version__} has no CUDA support; cure: install a CUDA build of torch"
    else:
        reasons["_C_cuda"] = _load("_C_cuda")
    MISSING.update({library: reason for library, reason in reasons.items() if reason is not None})
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    COMPILED.update((name, d) for name in OPS for d in LIBRARY if has_kernel(f"vpgfast::{name}", d.upper()))


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, the only way they run on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def implementation(op: Op, device: str, backend: Backend) -> Backend:
    """Which implementation of ``op`` the choice ``backend`` stands for on ``device`` (``"cpu"`` or ``"cuda"``)."""
    if backend == "reference":
        return "reference"
    compiled = (op.name, device) in COMPILED
    if op.triton is not None and _has_triton():
        if backend == "triton" and (device == "cuda" or interpreted()):
            return "triton"
        if device == "cuda" and not compiled:
            return "triton"
    if not compiled:
        return "reference"
    return "cpp" if device == "cpu" else "cuda"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


_installed: torch.library.Library | None = None
_chosen: Backend = "auto"


def set_backend(choice: Backend) -> None:
    """Choose the implementation of every op, for the whole process.

    Args:
        choice: ``"auto"`` (an op's compiled kernel, else on CUDA its Triton kernel, else the reference),
            ``"reference"``, ``"triton"`` (where an op has a Triton kernel; on the CPU only with
            ``TRITON_INTERPRET=1``), ``"cpp"`` or ``"cuda"`` (like auto, but an error when that library is missing).

    Raises:
        ValueError: for an unknown name.
        RuntimeError: when what was asked for is not available, with the reason and the cure.
    """
    global _installed, _chosen
    if choice not in BACKENDS:
        raise ValueError(f"backend is {choice!r}; it must be one of {', '.join(BACKENDS)}")
    library = {"cpp": "_C", "cuda": "_C_cuda"}.get(choice)
    if library in MISSING:
        raise RuntimeError(f"backend {choice!r} is not available: {library} is {MISSING[library]}")
    if choice == "triton" and not _has_triton():
        raise RuntimeError("backend 'triton' is not available: triton is not installed; cure: pip install triton")
    if _installed is not None:
        _installed._destroy()
        _installed = None
    _chosen = choice
    installed = torch.library.Library("vpgfast", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding a previously registered kernel", category=UserWarning)
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        for op in OPS.values():
            for device in DEVICES:
                kind = implementation(op, device, choice)
                if kind == "triton":
                    installed.impl(op.name, op.launch_triton, device.upper())
                elif kind == "reference" and (op.name, device) in COMPILED:
                    installed.impl(op.name, op.reference, device.upper())
    _installed = installed


def get_backend() -> Backend:
    """The backend choice now in force."""
    return _chosen


@contextmanager
def backend(choice: Backend) -> Iterator[None]:
    """``with vpgfast.ops.backend("reference"): ...`` runs the block with another choice (see :func:`set_backend`)."""
    before = get_backend()
    set_backend(choice)
    try:
        yield
    finally:
        set_backend(before)
