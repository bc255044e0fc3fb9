# Two commands: `make demo` and `make test`. Each sets itself up on a machine that has Python >= 3.11 and a network.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OPTIMUM ?= .venv-optimum
PEERS ?= .venv-peers
LOWEST ?= .venv-lowest
STAMP := $(VENV)/.installed
PIPELINES := demo velocity pair flow

.PHONY: demo test test-all test-lowest lint licences docs browser coverage bench demo-weights zoo clean

# Without --no-compile pip compiles every module of every package, which takes longer than to fetch and unpack them. Python
# compiles what is imported, and keeps it.
unexport PYTHONDONTWRITEBYTECODE

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[host,judge,bitsandbytes,rtx,modelopt,ray,parquet,mlflow,sign,dev,docs,train]'
	@touch $(STAMP)

demo: $(STAMP)  ## check a shipped adapter end to end: real artifacts, a real TensorRT-RTX build, a verdict
	$(BIN)/qcheck demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/api/typed_script.py
	$(BIN)/lint-imports

browser:  ## the Chromium that the tests of the HTML report look with; without it they are skipped
	@command -v chromium >/dev/null || \
	{ [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq -y --no-install-recommends install chromium >/dev/null; } || \
	echo "no chromium: the tests of report.html in a browser will be skipped (Debian: apt-get install chromium)"

test: lint browser  ## lint, types, layer rules, tests: a process a core, each with one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Tests that need nothing but the light dependencies, and so no tests/conftest.py, which imports torch.
LIGHT := tests/test_light.py tests/test_docs.py tests/test_verdict.py tests/report/test_junit.py tests/report/test_markdown.py \
	tests/report/test_plain.py tests/audit

test-lowest: $(LOWEST)/.installed  ## the light part with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest --noconftest -p tests.audit.conftest $(LIGHT)

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable . \
		pytest hypothesis jinja2 jsonschema lxml markdown-it-py linkify-it-py pyyaml
	@touch $@

test-all: lint browser $(OPTIMUM)/.installed  ## the same with the slow tests, and with optimum in an environment of its own
	QCHECK_OPTIMUM=$(CURDIR)/$(OPTIMUM)/bin/python $(BIN)/python -m pytest -m ''

licences: $(STAMP)  ## the licences of what is installed with qcheck, and of what it ships; an unknown one is an error
	$(BIN)/python -m tools.licences

docs: $(STAMP)  ## the documentation as a site in build/site; a broken link or anchor is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs build/site

$(OPTIMUM)/.installed: constraints-optimum.txt
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install --quiet --constraint constraints-optimum.txt \
		optimum-onnx torch diffusers transformers onnxruntime-gpu onnx pillow
	@touch $@

coverage: $(STAMP)  ## branches of what measures and judges that its own tests take: at least 95 %
	@mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest tests/measure tests/test_measurements.py tests/test_verdict.py \
		tests/test_compare.py tests/test_faults.py
	$(BIN)/python -m coverage report

bench: $(STAMP) $(PEERS)/.installed  ## the tables of time, memory and quality beside other tools (docs/peers.md, docs/schemes.md)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quantizers --threads 1
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers --python $(PEERS)/bin/python
	$(BIN)/python -m benchmarks.readme

$(PEERS)/.installed: constraints-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet --no-compile --constraint constraints-peers.txt \
		aimet-onnx nncf polygraphy onnxruntime onnx numpy
	@touch $@

demo-weights: $(STAMP)  ## train the demo pipeline again (about 2.5 hours on two cores; needs npm for the pictures)
	$(BIN)/python -m tools.train_demo

zoo: $(STAMP)  ## pipelines, adapters of known fate and their cases from nothing, a day of two cores (docs/zoo.md)
	$(BIN)/python -m tools.train_demo download --pictures build/pictures
	$(BIN)/python -m tools.train_demo zoo --pictures build/pictures
	for name in velocity pair flow; do $(BIN)/python -m tools.train_zoo $$name || exit; done
	for name in $(PIPELINES); do $(BIN)/python -m benchmarks.zoo.style $$name || exit; done
	$(BIN)/python -m benchmarks.zoo.cases $(PIPELINES) few --jobs 2
	$(BIN)/python -m benchmarks.verdicts --list

clean:
	rm -rf $(VENV) $(OPTIMUM) $(PEERS) $(LOWEST) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
