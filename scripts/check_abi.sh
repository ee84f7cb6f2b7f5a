#!/usr/bin/env bash
# Loads the kernel libraries that lie in vpgfast/ with other Pythons and torches, and compares an op with its reference.
#
#   bash scripts/check_abi.sh PYTHON [PYTHON ...]     each with torch and numpy installed
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/vpgfast"
cp -r "$root"/vpgfast/{__init__.py,ops,_build_info.json} "$root"/vpgfast/_C*.so "$copy/vpgfast"
for python in "$@"; do
  python=$(realpath -s "$python")
  (cd "$copy" && "$python" - <<'CHECK'
import importlib, sys, torch
from vpgfast import ops
from vpgfast.ops._registry import MISSING, PACKAGE

assert "_C" not in MISSING, MISSING
if any(PACKAGE.glob("_C_cuda.*so")):  # it must load beside any torch
    importlib.import_module("vpgfast._C_cuda")
x, spans, heads = torch.randn(2, 3, 9), torch.tensor([[0.0, 4.0], [2.5, 8.0]]), torch.randn(2, 3, 4, 5)
calls = {
    "temporal_map_max_pool": lambda: ops.temporal_map_max_pool(x),
    "proposal_conv": lambda: ops.proposal_conv(x, spans.repeat(5, 1), torch.ones(4, 3, 2)),  # calls mm.out
    "temporal_map_conv2d": lambda: ops.temporal_map_conv2d(x[..., None] * x[:, :, None], torch.ones(4, 3, 5, 5)),  # baddbmm
    "anchor_cross_attention": lambda: ops.anchor_cross_attention(heads, heads, heads, heads, heads)[0],
}
for name, call in calls.items():
    with ops.backend("cpp"):
        ours = call()
    with ops.backend("reference"):
        torch.testing.assert_close(ours, call(), rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")
registered = [key for key in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key("vpgfast::temporal_nms", key)]
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}: kernels for {' and '.join(registered)} registered, CPU equal")
CHECK
  )
done
