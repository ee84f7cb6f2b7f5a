"""Which implementation runs: backends, their errors, and the ops without compiled libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.utils.checkpoint

from vpgfast import ops
from vpgfast.ops import _registry


def runs(name: str) -> str:
    """Where the CPU kernel of an op that the dispatcher would run was registered."""
    dump = torch._C._dispatch_dump(f"vpgfast::{name}")
    return next(line for line in dump.splitlines() if line.startswith("CPU: "))


def test_backends_replace_the_kernel_and_put_it_back() -> None:
    assert ".cpp" in runs("temporal_iou")
    with ops.backend("reference"):
        assert "_registry.py" in runs("temporal_iou")
        with ops.backend("cpp"):
            assert ".cpp" in runs("temporal_iou")
        assert ops.get_backend() == "reference"
    assert ops.get_backend() == "auto"
    assert ".cpp" in runs("temporal_iou")


def test_backend_is_put_back_after_an_error() -> None:
    with pytest.raises(KeyError), ops.backend("reference"):
        raise KeyError
    assert ops.get_backend() == "auto"


def test_every_op_has_a_cpu_kernel_and_one_for_cuda() -> None:
    for name in ops.OPS:
        assert ".cpp" in runs(name)
    sources = "".join(p.read_text() for p in (_registry.PACKAGE.parent / "csrc" / "cuda").glob("*.cu"))
    assert [n for n, op in ops.OPS.items() if f'm.impl("{n}"' not in sources and op.triton is None] == []


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend is 'fast'; it must be one of auto, cpp"):
        ops.set_backend("fast")  # type: ignore[arg-type]


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA support")
def test_cuda_backend_says_why_it_is_missing() -> None:
    with pytest.raises(RuntimeError, match=r"_C_cuda is torch .* has no CUDA support; cure: install a CUDA build"):
        ops.set_backend("cuda")


def test_environment_chooses_the_backend() -> None:
    code = "import vpgfast.ops as o; print(o.get_backend())"
    env = os.environ | {"VPGFAST_BACKEND": "reference"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "reference\n"


WITHOUT_LIBRARIES = """
import sys
for name in ("_C", "_C_v3", "_C_v4", "_C_sve"):
    sys.modules[f"vpgfast.{name}"] = None  # as if it had never been built
import torch, vpgfast.ops as ops
x = torch.randn(2, 3, 5, requires_grad=True)
ops.temporal_map_max_pool(x).sum().backward()
spans = torch.tensor([[[0.0, 0.5], [0.2, 0.9]]])
mask = ops.dense_anchor_mask(4)
ops.temporal_map_bce(torch.zeros(1, 2, 4, 4, requires_grad=True), spans, mask).backward()
print(ops.temporal_iou(spans, spans)[0, 0, 0].item(), ops.temporal_nms(spans, torch.zeros(1, 2), 0.5).tolist())
print(sorted(m for m in sys.modules if m.split(".")[0] in {"h5py", "av", "matplotlib", "lightning_fabric", "triton"}))
try:
    ops.set_backend("cpp")
except RuntimeError as error:
    print(error)
"""


def test_ops_run_without_any_library_and_need_torch_alone() -> None:
    result = subprocess.run([sys.executable, "-c", WITHOUT_LIBRARIES], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, modules, error = result.stdout.splitlines()
    assert first == "1.0 [[0, 1]]"
    assert modules == "[]"
    assert "_C" in error
    assert "pip install" in error


class Moments(torch.nn.Module):
    """Uses ops of both families, with a gradient."""

    def forward(self, x: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
        logits = ops.temporal_map_max_pool(x).sum(1, keepdim=True)
        return ops.temporal_map_bce(logits, spans, ops.dense_anchor_mask(8)) + ops.temporal_iou(spans, spans).mean()


def test_ops_export() -> None:
    args = torch.randn(2, 3, 8), torch.tensor([[[0.0, 0.5]], [[0.2, 0.9]]])
    exported = torch.export.export(Moments(), args)
    torch.testing.assert_close(exported.module()(*args), Moments()(*args))
    names = {str(node.target) for node in exported.graph.nodes if "vpgfast" in str(node.target)}
    assert {"vpgfast.temporal_map_max_pool.default", "vpgfast.temporal_map_bce.default"} <= names


def test_activation_checkpointing() -> None:
    x, spans = torch.randn(2, 3, 8, requires_grad=True), torch.tensor([[[0.0, 0.5]], [[0.2, 0.9]]])
    plain = torch.autograd.grad(Moments()(x, spans), x)
    kept = torch.utils.checkpoint.checkpoint(Moments(), x, spans, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(kept, x), plain)


@pytest.mark.slow
def test_inductor_compiles_ops_into_a_full_graph() -> None:
    @torch.compile(fullgraph=True)
    def step(x: torch.Tensor, spans: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = ops.temporal_map_max_pool(x * 2).sum(1, keepdim=True)
        return ops.temporal_map_bce(logits, spans, mask) + ops.temporal_giou(spans, spans).mean()

    x = torch.randn(2, 3, 8, requires_grad=True)
    spans = torch.tensor([[[0.0, 0.5]], [[0.2, 0.9]]])
    mask = ops.dense_anchor_mask(8)
    loss = step(x, spans, mask)
    (grad,) = torch.autograd.grad(loss, x)
    eager = step._torchdynamo_orig_callable(x, spans, mask)  # type: ignore[attr-defined]
    torch.testing.assert_close(loss, eager)
    torch.testing.assert_close(grad, torch.autograd.grad(eager, x)[0])
