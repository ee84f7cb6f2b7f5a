#!/usr/bin/env bash
# Runs the ops' tests over C++ kernels that are built with AddressSanitizer and UndefinedBehaviorSanitizer.
#
# They are built in a copy of the working tree, so .venv and its libraries stay as they are, and kept in build/sanitizers
# until a source changes; `scripts/sanitize.sh build` stops there. The first error ends the run with a report and a status
# that is not zero.
# Other arguments go to pytest: scripts/sanitize.sh -k temporal_iou. VPGFAST_SAMPLE=3 runs a third of the cases (tests/sampling.py).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/sanitizers.sh

python="$PWD/.venv/bin/python"
cxx="${CXX:-g++}"
kept="$PWD/build/sanitizers"
copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT
cp -r _build csrc tests triton_kernels vpgfast LICENSE README.md pyproject.toml setup.py "$copy"
rm -f "$copy"/vpgfast/_C*.so "$copy"/vpgfast/_build_info.json
changed="$([ -e "$kept/_C.abi3.so" ] && find csrc _build/*.py setup.py scripts/sanitize.sh -newer "$kept/_C.abi3.so" -print -quit || echo all)"
cd "$copy"

preload="$(preload_of "$cxx")"

flags="-fsanitize=address,undefined,float-cast-overflow -fno-sanitize=vptr -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS"
# For AVX2, also where the other tests run on AVX-512; on a processor with neither, for what it has.
march=native && grep -qsw avx2 /proc/cpuinfo && march=x86-64-v3
flags+=" -O1 -g1 -fno-omit-frame-pointer -march=$march"
export VPGFAST_CPU_CAPABILITY=default  # the name of the one library that is built
if [ -n "$changed" ]; then
  echo "== building with sanitizers in $copy"
  VPGFAST_BUILD=cpu VPGFAST_CPU_CAPABILITIES=default VPGFAST_CXXFLAGS="$flags" "$python" setup.py --quiet build_ext --inplace
  mkdir -p "$kept"
  cp vpgfast/_C.abi3.so vpgfast/_build_info.json "$kept"
fi
[ "${1:-}" != build ] || exit 0
cp "$kept"/_C.abi3.so "$kept"/_build_info.json vpgfast

export LD_PRELOAD="$preload"
# Python leaks on purpose; gcc 12 misaligns wide vectors on the stack that finds uses after a return (gcc bug 110027).
export ASAN_OPTIONS="detect_leaks=0:halt_on_error=1:strict_init_order=1:detect_stack_use_after_return=0"
export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1"
is_ours "$python"

# What is compiled by torch, interpreted by Triton, run in a process of its own or of the reference alone says nothing
# about the kernels.
echo "== testing"
skipped="triton or compile or registration or memory or export or environment or without_any_library or reference]"
# A sample leaves out what takes longest.
long="more_blocks or pairs_looked_at or documented_bound or many_curves or (test_fuzz and test_deterministic)"
[ "${VPGFAST_SAMPLE:-1}" = 1 ] || skipped+=" or $long"
# Not captured and with no handler of Python's own, so that a report is seen.
PYTHONPATH=tests "$python" -m pytest tests/ops -p sampling -p no:cacheprovider -p no:faulthandler --capture=no -q -m "not slow and not nightly and not gpu" -k "not ($skipped)" "$@"
echo "== no errors"
