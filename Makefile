# make demo: from nothing to a trained, evaluated model and its report. make test: every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A test process per core, and one thread in each: more threads than cores only wait for each other. A module's tests
# stay together, for they share what took long to make; long modules begin first (tests/conftest.py). A crash ends the
# run and names its test: with a new process, pytest-xdist 3.8 waits without end for the other tests of that module.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadscope --no-loadscope-reorder --max-worker-restart 0

# Without the theme's notice about later versions of MkDocs, which are excluded.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.PHONY: setup demo test lint quick docs docs-serve parity reproduce bench-gpu clean

# What using it needs; developing needs more.
$(VENV)/.usable: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		(echo "efficientnetv2 needs Python 3.11 or newer; name one with: make PYTHON=python3.x" && exit 2)
	@echo "Installing into $(VENV): PyTorch and its libraries are a few gigabytes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable .
	@touch $@

setup: $(VENV)/.installed

$(VENV)/.installed: $(VENV)/.usable
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

demo: $(VENV)/.usable
	$(BIN)/effnetv2 demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.language

# So that a plain mistake shows within minutes.
quick: setup
	$(PYTEST) -m "not slow and not gpu"

# All at once: what the tests of a module share is then made once.
test: lint
	$(PYTEST)

$(VENV)/.docs: $(VENV)/.usable
	$(BIN)/python -m pip install --editable '.[docs]'
	@touch $@

# The documentation as a site in site/. A broken link, anchor or menu entry is an error.
docs: $(VENV)/.docs
	$(MKDOCS) build --strict

# The same on http://127.0.0.1:8000, built again after each change.
docs-serve: $(VENV)/.docs
	$(MKDOCS) serve

# Every table of the paper that can be reproduced, at the scale that shows that it runs.
reproduce: setup
	for table in 1 2 3 5 6 7 9 10 11 12 13 figure1 figure4 figure5; do \
		$(BIN)/python -m benchmarks.paper $$table || exit 1; done
	$(BIN)/python -m benchmarks.paper 8 --weights none

# Equal logits on equal weights against timm, torchvision and Keras; writes benchmarks/results/parity.json.
parity: setup
	$(BIN)/python -m benchmarks.parity

# Training steps on a CUDA device against timm's; makes its own images. About half an hour.
bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu --record

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
