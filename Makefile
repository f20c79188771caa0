# `make demo` and `make test` each set up a fresh machine alone: a virtual environment, the packages, and their job.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow quality format

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(INSTALLED)  ## plain, guided and inverted training on decoy digits, three seeds, a table and a panel of maps
	$(BIN)/hf-salguide demo --output_dir runs/demo

test: $(INSTALLED)  ## the default test run, two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-slow: $(INSTALLED)  ## what takes longer
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

quality: $(INSTALLED)  ## ruff (format and lint) and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
