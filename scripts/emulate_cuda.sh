#!/usr/bin/env bash
# Runs the ops' tests over the CUDA kernels, on this machine's processor (tests/cuda_emulator).
#
#   scripts/emulate_cuda.sh [plain | races | asan] [pytest's arguments]
#
# plain (the default): threads in a random order, uninitialised memory poisoned, barriers and warps' meetings checked.
# races: the same, and every access to memory is looked at; other poison. asan: AddressSanitizer and
# UndefinedBehaviorSanitizer. The library is built into a copy of the working tree, so .venv and its libraries stay as
# they are. VPGFAST_EMULATOR_SEED repeats an order, VPGFAST_EMULATOR_POISON=0x3c sets the poison's byte,
# VPGFAST_EMULATOR_ALL=1 runs the long tests too, VPGFAST_SAMPLE=3 a third of the cases (tests/sampling.py).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/sanitizers.sh

mode=plain
case "${1:-}" in plain | races | asan) mode="$1" && shift ;; esac
python="${PYTHON:-$PWD/.venv/bin/python}"
cxx="${CXX:-g++}"
copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT
cp -r _build csrc tests triton_kernels vpgfast LICENSE README.md pyproject.toml setup.py "$copy"
rm -f "$copy"/vpgfast/_C*.so
export VPGFAST_EMULATOR_CACHE="${VPGFAST_EMULATOR_CACHE:-$PWD/build/cuda_emulator}"
cd "$copy"

echo "== building the CUDA kernels for the CPU in $copy ($mode)"
"$python" tests/cuda_emulator/build.py . "$mode" vpgfast/_C.abi3.so

[ "$mode" = plain ] && poison=0xff || poison=0x3c
export VPGFAST_EMULATOR_SEED="${VPGFAST_EMULATOR_SEED:-$RANDOM}" VPGFAST_EMULATOR_POISON="${VPGFAST_EMULATOR_POISON:-$poison}"
export VPGFAST_EMULATED="$mode"
if [ "$mode" = asan ]; then
  preload="$(preload_of "$cxx")"
  export LD_PRELOAD="$preload"
  export ASAN_OPTIONS="detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0"
  export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1"
fi
is_ours "$python"

echo "== testing with VPGFAST_EMULATOR_SEED=$VPGFAST_EMULATOR_SEED VPGFAST_EMULATOR_POISON=$VPGFAST_EMULATOR_POISON"
# Not captured and with no handler of Python's own, so that a report is seen. What is left out: selection.py.
PYTHONPATH=tests "$python" -m pytest tests/cuda_emulator/check_kernels.py tests/ops tests/nn -p cuda_emulator.selection -p sampling \
  -p no:cacheprovider -p no:faulthandler --capture=no -q -m "not slow and not nightly and not gpu" "$@"
echo "== no errors"
