#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU should check, in one go of under ten minutes:
# build, doctor, GPU tests, compute-sanitizer on the CUDA kernels, benchmarks.
#
#   bash scripts/gpu_check.sh [OUTPUT_FOLDER]     (default: gpu_check)
#
# Uses the Python that PYTHON names (default python3), which must have a CUDA build of torch, setuptools 77 or newer,
# pytest, numpy, tqdm and h5py; needs no network. OUTPUT_FOLDER receives what each step printed (<step>.txt) and the
# measured rows (<device>.json). Exit status 0 if everything passed.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=$(mkdir -p "${1:-gpu_check}" && cd "${1:-gpu_check}" && pwd)
status=0

step() { # name, seconds, command...
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  echo "== $name"
  # An interrupt, so that pytest still says and stores what it has got when the time is up.
  if timeout --signal=INT --kill-after=10 "$limit" "$@" >"$out/$name.txt" 2>&1; then
    echo "   ok, $((SECONDS - began)) s"
  else
    status=1
    echo "   FAILED (status $?) after $((SECONDS - began)) s; the end of $out/$name.txt:"
    tail -n 25 "$out/$name.txt"
  fi
}

step build 130 "$python" -m pip install --no-build-isolation --no-deps -e .
step doctor 30 "$python" -m vpgfast.doctor
step tests 150 "$python" -m pytest -m gpu -q -p no:cacheprovider --continue-on-collection-errors \
  tests/ops tests/nn tests/models
# The sanitizer slows kernels down a hundredfold: a selection that launches every CUDA kernel once.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "sanitizer-$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -x \
      -p no:cacheprovider tests/ops -m gpu -k "cuda and (gradcheck or no_valid_cell or test_masks or deterministic and nms)"
  done
else
  echo "== sanitizer: compute-sanitizer not found, not run"
  status=1
fi
export VPGFAST_BENCHMARK_RESULTS=$out
step benchmarks 160 "$python" -m pytest -m gpu -q -s -p no:cacheprovider --continue-on-collection-errors benchmarks
tail -n 60 "$out/benchmarks.txt"
exit $status
