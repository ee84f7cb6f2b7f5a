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
for library in PACKAGE.glob("_C*.so"):  # _C_cuda too: it must load beside any torch
    importlib.import_module(f"vpgfast.{library.name.split('.')[0]}")
x = torch.randn(2, 3, 9)
with ops.backend("cpp"):
    ours = ops.temporal_map_max_pool(x)
with ops.backend("reference"):
    assert torch.equal(ours, ops.temporal_map_max_pool(x))
registered = [key for key in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key("vpgfast::temporal_nms", key)]
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}: kernels for {' and '.join(registered)} registered, CPU equal")
CHECK
  )
done
