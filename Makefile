# Every target sets up the environment in .venv first. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs/quickstart
# Settings of the quickstart, such as --config.data.limit.candidates=100.
FLAGS ?=
PARALLEL ?= -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# These need the TPU compiler, but no TPU.
WITH_LIBTPU = tests/test_plan_fits.py tests/test_attention_devices.py

.PHONY: help quickstart check test test-more test-all test-plan lint clean weights constraints

help:
	@echo 'make quickstart   the whole pipeline on real text and weights'
	@echo 'make check        the edit loop: fast tests and ruff, under 90 seconds on two cores'
	@echo 'make test         all tests except the slow ones'
	@echo 'make test-more    a part of the slow ones: rarer cases, in minutes'
	@echo 'make test-all     all tests'
	@echo 'make test-plan    whether the run of the paper fits TPU slices, by the TPU compiler; no TPU'
	@echo 'make lint         ruff'
	@echo 'make clean        removes .venv and .make'

quickstart: .make/install weights
	$(BIN)/disranker run --config configs/quickstart.py --workdir $(WORKDIR) $(FLAGS)

weights: .make/install
	$(BIN)/disranker weights minilm-l6 smollm2-135m

check: lint
	$(BIN)/python -m pytest $(PARALLEL) --check

test: .make/install-test
	$(BIN)/python -m pytest $(PARALLEL)

test-more: .make/install-test
	$(BIN)/python -m pytest $(PARALLEL) -m more

test-all: .make/install-test .make/libtpu
	$(BIN)/python -m pytest $(PARALLEL) -m ''
	PYTHONPATH=.make/libtpu $(BIN)/python -m pytest -m slow $(WITH_LIBTPU)

# A part of test-all: the run of the paper fits a slice of each TPU generation.
test-plan: .make/install-test .make/libtpu
	PYTHONPATH=.make/libtpu $(BIN)/python -m pytest -m slow tests/test_plan_fits.py -k generation

lint: .make/install-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Pins the versions of this environment; CONTRIBUTING.md says when and how.
constraints: .make/install-test .make/libtpu
	{ head -1 constraints.txt; { $(BIN)/python -m pip freeze --exclude-editable; \
	  $(BIN)/python -m pip freeze --path .make/libtpu; } | grep -v '^torch==' | sort -fu; } \
	  > .make/constraints && mv .make/constraints constraints.txt

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

.make/install: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[serve]'
	@mkdir -p .make && touch $@

.make/install-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@mkdir -p .make && touch $@ .make/install

# Not in .venv: with libtpu installed, JAX looks for a TPU at every start.
.make/libtpu: constraints.txt .make/install-test
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --upgrade --target $@ libtpu
	@touch $@

clean:
	rm -rf $(VENV) .make
