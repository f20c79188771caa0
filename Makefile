# `make demo` and `make test` each set up a fresh machine alone: a virtual environment, the packages, and their job.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow zoo cards quality format

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(INSTALLED)  ## plain, guided and inverted training on decoy digits, three seeds, a table and a panel of maps
	$(BIN)/hf-salguide demo --output_dir runs/demo

test: $(INSTALLED)  ## the default test run, two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-slow: $(INSTALLED)  ## what takes longer, every family of backbones among it, two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(PYTEST_ARGS)

zoo: $(INSTALLED)  ## every family of backbones resolved, checked and trained, and docs/backbones.md filled in
	$(BIN)/hf-salguide backbones --train true --processes 2 --json runs/backbones.json
	$(BIN)/python tools/readme.py --backbones runs/backbones.json

cards: $(INSTALLED)  ## the cards of model_cards, rendered from the recorded runs
	$(BIN)/python tools/cards.py

quality: $(INSTALLED)  ## ruff (format and lint), mypy, and whether the cards are those of their records
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/cards.py --check

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
