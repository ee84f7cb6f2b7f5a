# `make demo` and `make test` set up .venv by themselves; PYTHON and TORCH (with its TORCHVISION) choose what with.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
BIN := .venv/bin

.PHONY: demo test lint sanitize benchmarks clean
.DEFAULT_GOAL := demo

# Rebuilt when the kernels or the metadata change. torch first, by version: the kernels are built against it.
.venv/.ready: pyproject.toml setup.py $(wildcard _build/*.py csrc/*/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[triton,tensorboard,test,lint]'
	# For the tests of one encoder, and apart from the rest: beside a CPU build of torch it breaks transformers.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv/torchvision '$(TORCHVISION)'
	touch $@

demo: .venv/.ready
	$(BIN)/python -m vpgfast.train

# The tests come last: their closing line is what one wants to read.
test: lint sanitize
	$(BIN)/python -m pytest

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*/*)

sanitize: .venv/.ready
	scripts/sanitize.sh

benchmarks: .venv/.ready
	$(BIN)/python -m pytest benchmarks

clean:
	rm -rf .venv build vpgfast/_C*.so vpgfast/_build_info.json *.egg-info
