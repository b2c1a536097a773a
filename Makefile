# make demo: from nothing to a trained, evaluated model and its report. make test: all that CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pillow, numpy and torch give each test process its own threads: more than the cores only slow each other.
export OMP_NUM_THREADS ?= 2

.PHONY: setup demo test lint quick clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "efficientnetv2 needs Python 3.11 or newer; name one with PYTHON=python3.x" && exit 2)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/effnetv2 demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: setup
	$(BIN)/pytest -m "not slow and not gpu"

# Quick tests first, so that a plain mistake shows within a minute.
test: lint quick
	$(BIN)/pytest -m "slow or gpu"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
