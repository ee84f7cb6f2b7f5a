#!/usr/bin/env bash
# Runs pytest once for every instruction set that was built and that this processor has; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$PWD/.venv/bin/python"
for set in $("$python" -c 'from vpgfast.ops import _capability, _registry; print(*_capability.available(_registry.PACKAGE))'); do
  echo "== $set"
  VPGFAST_CPU_CAPABILITY="$set" "$python" -m pytest "$@"
done
