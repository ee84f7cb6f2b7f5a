# `make demo` and `make test` set up .venv by themselves; PYTHON and TORCH (with its TORCHVISION) choose what with.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
BIN := .venv/bin
# Processes that the tests run in; each takes up to 2 GB.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n : 8)))
EMULATOR := $(wildcard tests/cuda_emulator/*.cpp tests/cuda_emulator/*.h tests/cuda_emulator/*.cu tests/cuda_emulator/include/*)

# pip would compile every module that it installs. What is imported is compiled then, and kept, whatever the environment
# says: the tests start some hundred processes.
QUICK := --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint style types compiled sanitize emulate-plain emulate-races emulate nightly benchmarks clean
.DEFAULT_GOAL := demo

# torch first, by version: the kernels are built against it.
.venv/.torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(QUICK) '$(TORCH)'
	touch $@

# Rebuilt when the kernels or the metadata change.
.venv/.ready: .venv/.torch pyproject.toml setup.py $(wildcard _build/*.py csrc/*/*)
	$(BIN)/pip install $(QUICK) '$(TORCH)' -e '.[triton,tensorboard,test,lint]'
	# For the tests of one encoder, and apart from the rest: beside a CPU build of torch it breaks transformers.
	$(BIN)/pip install $(QUICK) --no-deps --target .venv/torchvision '$(TORCHVISION)'
	touch $@

demo: .venv/.ready
	$(BIN)/python -m vpgfast.train

# The tests come last: their closing line is what one wants to read. What comes before them ends together when it is
# started together. pip, which keeps one core busy for long, goes before what is compiled beside it.
test:
	$(MAKE) --no-print-directory -j2 style compiled
	$(MAKE) --no-print-directory --output-sync -j4 types sanitize emulate-plain emulate-races
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not nightly"

lint: style types

style: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*/*) $(EMULATOR)

types: .venv/.ready
	$(BIN)/mypy

# What sanitize and emulate compile, ahead of what they run: that needs more than torch.
compiled: .venv/.torch
	nice $(BIN)/python tests/cuda_emulator/build.py . plain build/cuda_emulator/all.so
	nice scripts/sanitize.sh build

# A quarter of the cases with a sanitizer, and fewer at random; `make nightly` runs all.
sanitize: .venv/.ready
	VPGFAST_FUZZ_CASES=10 VPGFAST_SAMPLE=4 scripts/sanitize.sh

# The CUDA kernels on the CPU: a third of the cases with races, where the tests that hold the most memory are left out,
# and the rest without, with another order and poison; `make nightly` runs all in both ways.
emulate: emulate-plain emulate-races

emulate-plain: .venv/.ready
	OMP_NUM_THREADS=1 VPGFAST_SAMPLE=rest-of-3 scripts/emulate_cuda.sh plain

emulate-races: .venv/.ready
	OMP_NUM_THREADS=1 VPGFAST_FUZZ_CASES=20 VPGFAST_SAMPLE=3 scripts/emulate_cuda.sh races

# The tests that `make test` leaves out; the ops for every instruction set that is here; the emulator in every mode, and
# what the tests notice of faults that are planted: hours.
nightly: export VPGFAST_EMULATOR_ALL = 1
nightly: export VPGFAST_FUZZ_CASES = 160
nightly: .venv/.ready
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m nightly
	scripts/every_instruction_set.sh tests/ops -m "not gpu"
	scripts/sanitize.sh
	scripts/emulate_cuda.sh plain
	scripts/emulate_cuda.sh races
	scripts/emulate_cuda.sh asan
	$(BIN)/python scripts/kernel_traffic.py --check
	env -u VPGFAST_EMULATOR_ALL $(BIN)/python tests/cuda_emulator/mutations.py

# Each op at its first shape, in under eight minutes. BENCHMARKS=--full measures everything and stores the rows,
# BENCHMARKS='-k temporal_nms' one op.
benchmarks: .venv/.ready
	$(BIN)/python -m pytest benchmarks $(BENCHMARKS)

clean:
	rm -rf .venv build vpgfast/_C*.so vpgfast/_build_info.json *.egg-info
