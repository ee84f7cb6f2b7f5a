#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU should check, in one go of under ten minutes:
# build, doctor, GPU tests, compute-sanitizer on the CUDA kernels, training of every method, where the time of its
# steps goes, benchmarks.
#
#   bash scripts/gpu_check.sh [OUTPUT_FOLDER]     (default: gpu_check)
#
# Uses the Python that PYTHON names (default python3), which must have a CUDA build of torch, setuptools 77 or newer,
# pytest and the package's other dependencies; needs no network. With pytest-xdist, tests run and benchmarks compile on all cores;
# whoever measures has the GPU for itself. PREBUILT=1 takes the libraries that lie in vpgfast/. OUTPUT_FOLDER receives
# what each step printed (<step>.txt) and the measured rows (<device>.json). Exit status 0 if everything passed.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=$(mkdir -p "${1:-gpu_check}" && cd "${1:-gpu_check}" && pwd)
status=0
parallel=()
cores=$(nproc)
if "$python" -c "import xdist" 2>/dev/null && [ "$cores" -gt 4 ]; then
  parallel=(-n $((cores - 3)) --dist worksteal)
fi

run() { # name, seconds, command...: for the background; its status goes to <name>.status
  local name=$1 limit=$2 began=$SECONDS code=0
  shift 2
  # An interrupt, so that pytest still stores what it has got when the time is up. -v names a failure as it happens:
  # with many processes pytest may be too slow to say so at the end.
  timeout --signal=INT --kill-after=10 "$limit" "$@" >"$out/$name.txt" 2>&1 || code=$?
  echo "$code after $((SECONDS - began)) s" >"$out/$name.status"
}

tell() { # name...
  for name in "$@"; do
    if [ "$(cut -d' ' -f1 "$out/$name.status")" = 0 ]; then
      echo "== $name ok ($(cat "$out/$name.status"))"
    else
      status=1
      echo "== $name FAILED: status $(cat "$out/$name.status"); the end of $out/$name.txt:"
      grep -E "(FAILED|ERROR)" "$out/$name.txt" | cut -c1-200 | sort -u | head -n 60
      tail -n 5 "$out/$name.txt"
    fi
    rm "$out/$name.status"
  done
}

if [ -n "${PREBUILT:-}" ]; then # not installed: the package's folder of Triton kernels must be where it would be
  ln -sfn ../triton_kernels vpgfast/triton_kernels
  trap 'rm -f vpgfast/triton_kernels' EXIT
else
  run build 130 "$python" -m pip install --no-build-isolation --no-deps -e .
  tell build
fi
run doctor 60 "$python" -m vpgfast.doctor
tell doctor

steps=(tests)
run tests "${TESTS_LIMIT:-150}" "$python" -m pytest -m gpu -v --tb=short -p no:cacheprovider \
  --continue-on-collection-errors "${parallel[@]}" tests/ops tests/nn tests/models &
# The sanitizer slows kernels down a hundredfold: a selection that launches every CUDA kernel once.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    steps+=("sanitizer-$tool")
    run "sanitizer-$tool" "${TESTS_LIMIT:-150}" compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -x \
      -p no:cacheprovider tests/ops -m gpu -k "cuda and (gradcheck or no_valid_cell or test_masks or deterministic and nms)" &
  done
else
  echo "== sanitizer: compute-sanitizer not found, not run"
  status=1
fi
# Every method, as it is trained: once as it is, once in 16 bits.
train_all() { # python, folder
  for method in seqpan wsra marn siamgtr dmr_jrg; do
    for precision in 32-true bf16-mixed; do
      echo "== $method $precision"
      "$1" -m vpgfast.train --config "configs/$method/moving_shapes.yaml" --epochs 1 --precision "$precision" \
        --output "$2/$method-$precision" --overwrite || return 1
    done
  done
}
export -f train_all
steps+=(trains)
run trains "${TRAINS_LIMIT:-200}" bash -c 'train_all "$@"' bash "$python" "$out/trained" &
wait
tell "${steps[@]}"

export VPGFAST_BENCHMARK_RESULTS=$out
run steps 60 "$python" -m benchmarks.step_profile
tell steps
run benchmarks "${BENCHMARKS_LIMIT:-160}" "$python" -m pytest -m gpu -v --tb=short -p no:cacheprovider \
  --continue-on-collection-errors "${parallel[@]}" benchmarks --full
tell benchmarks
exit $status
