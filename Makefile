# Sets up its own environment in .venv and runs the two things a newcomer wants.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs/quickstart
PARALLEL ?= -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# These need the TPU's compiler, not a TPU.
WITH_LIBTPU = tests/test_plan_fits.py tests/test_attention_devices.py

.PHONY: help quickstart test test-all test-plan lint clean weights constraints

help:
	@echo 'make quickstart   the whole pipeline on real text and weights (two cores: see README)'
	@echo 'make test         the tests        make test-all   the slow ones too'
	@echo 'make test-plan    that the paper'"'"'s run fits TPU slices, by their compiler; no TPU needed'
	@echo 'make lint         ruff             make clean      removes .venv and .make'

quickstart: .make/install weights
	$(BIN)/disranker run --config configs/quickstart.py --workdir $(WORKDIR)

weights: .make/install
	$(BIN)/disranker weights minilm-l6 smollm2-135m

test: .make/install-test
	$(BIN)/python -m pytest $(PARALLEL)

test-all: .make/install-test .make/libtpu
	$(BIN)/python -m pytest $(PARALLEL) -m ''
	PYTHONPATH=.make/libtpu $(BIN)/python -m pytest -m slow $(WITH_LIBTPU)

# A part of test-all: the paper's run fits a slice of each generation, by the TPU's own compiler.
test-plan: .make/install-test .make/libtpu
	PYTHONPATH=.make/libtpu $(BIN)/python -m pytest -m slow tests/test_plan_fits.py -k generation

lint: .make/install-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Pinned versions that were tried together; see CONTRIBUTING.md for how the file is made anew.
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

# Beside the environment, not in it: where libtpu is installed every start of JAX looks for a TPU.
.make/libtpu: constraints.txt .make/install-test
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --upgrade --target $@ libtpu
	@touch $@

clean:
	rm -rf $(VENV) .make
