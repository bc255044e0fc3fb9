# Two commands: `make demo` and `make test`. Each sets itself up on a machine that has Python >= 3.11 and a network.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint demo-weights clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[host,rtx,modelopt,dev,train]'
	@touch $(STAMP)

demo: $(STAMP)  ## check a shipped adapter end to end: real artifacts, a real TensorRT-RTX build, a verdict
	$(BIN)/qcheck demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## lint, types, layer rules, tests
	$(BIN)/python -m pytest

test-all: lint  ## the same with the slow tests
	$(BIN)/python -m pytest -m ''

demo-weights: $(STAMP)  ## train the demo pipeline again (about 2.5 hours on two cores; needs npm for the pictures)
	$(BIN)/python -m qcheck.demo.training

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
