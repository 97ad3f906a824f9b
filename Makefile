# Two commands on a fresh machine: `make demo` and `make test`; both set themselves up in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
# Folder by folder: what takes longest comes first, so that no process is left with it alone.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-ci test-all test-xla faults check bench clean

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.ready
	$(BIN)/accelerate launch --quiet recipes/multiscale.py --data-root characters --synthetic-classes 16 --synthetic-count 4800 \
		--strategy progressive-simultaneous --epochs 15 --seed 0 --resume never

test: .venv/.ready
	$(PYTEST) -m "not slow"

# What CI runs after `test`: the slow tests of what strategies, parts of one's own and several processes promise.
test-ci: .venv/.ready
	$(PYTEST) -m slow tests/contract tests/seams tests/distributed

test-all: .venv/.ready
	$(PYTEST)

# Training by way of XLA, as on TPUs, with its compiler for CPUs: docs/tpu.md. About 6 minutes to install.
XLA ?= torch_xla==2.9.0
.venv-xla/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-xla
	.venv-xla/bin/python -m pip install --quiet --disable-pip-version-check torch==2.9.0 '$(XLA)' torchvision==0.24.0 -e . pytest
	@touch $@

test-xla: .venv-xla/.ready
	.venv-xla/bin/python -m pytest tests/xla

faults: .venv/.ready
	FAULTS=all $(PYTEST) -rA tests/faults $(shell grep -rlw SLOW tests --include=test_*.py)

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.ready
	$(BIN)/python benchmarks/strategies.py
	$(BIN)/python benchmarks/input_pipeline.py
	$(BIN)/python benchmarks/decode_accuracy.py
	$(BIN)/python benchmarks/saving.py
	$(BIN)/python benchmarks/cascade.py

clean:
	rm -rf .venv .venv-xla build *.egg-info
