# Sets up its own environment in .venv and runs the two things a newcomer wants.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs/quickstart
PARALLEL ?= -n auto --maxprocesses=4 --dist=loadfile

.PHONY: help quickstart test test-all lint clean weights constraints

help:
	@echo 'make quickstart   the whole pipeline on real text and weights (two cores: see README)'
	@echo 'make test         the tests        make test-all   the slow ones too'
	@echo 'make lint         ruff             make clean      removes .venv and .make'

quickstart: .make/install weights
	$(BIN)/python -m disranker_jax.main --config configs/quickstart.py --workdir $(WORKDIR)

weights: .make/install
	$(BIN)/python -m disranker_jax.weights minilm-l6 smollm2-135m

test: .make/install-test
	$(BIN)/python -m pytest $(PARALLEL)

test-all: .make/install-test
	$(BIN)/python -m pytest $(PARALLEL) -m ''

lint: .make/install-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Pinned versions that were tried together; see CONTRIBUTING.md for how the file is made anew.
constraints: .make/install-test
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^torch==' > constraints.txt

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

.make/install: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@mkdir -p .make && touch $@

.make/install-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@mkdir -p .make && touch $@ .make/install

clean:
	rm -rf $(VENV) .make
