# Two commands do everything on a fresh machine: make quickstart, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch is installed first and by version: a range would bring the newest build, with several GB of CUDA packages.
TORCH := torch==2.13.0
PIP := $(BIN)/pip --disable-pip-version-check --quiet install --constraint constraints.txt

.PHONY: quickstart test test-slow mutants bench screen docs lint types clean

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable ".[features,report]"
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable ".[dev]"
	touch $@

quickstart: $(VENV)/.core  ## real handwritten digits in, synthetic digits out, in minutes on two cores
	$(BIN)/dpldm public digits --output runs/digits-data
	$(BIN)/dpldm run --config examples/quickstart.yaml
	$(BIN)/dpldm report runs/quickstart

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests tools benchmarks docs examples
	$(BIN)/ruff format --check src tests tools benchmarks docs examples

types: $(VENV)/.dev
	$(BIN)/mypy --strict src

test: $(VENV)/.dev lint types  ## under 15 minutes
	$(BIN)/pip --disable-pip-version-check check
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

mutants: $(VENV)/.dev  ## our own code broken on purpose, a defect at a time: every one must be noticed
	$(BIN)/python tools/mutants.py

bench: $(VENV)/.dev  ## what a private gradient costs, ours and others'; up to 45 minutes, on an idle machine
	$(BIN)/python benchmarks/run.py

screen: $(VENV)/.dev  ## ablations on a public stand-in, an arm after another; hours, and it goes on where it stopped
	$(BIN)/python tools/screen.py
	$(BIN)/python tools/screen.py --page

docs: $(VENV)/.dev  ## these pages as a static site in site/, which fails on a link or a name that leads nowhere
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --doctree-dir site/.doctrees docs site

clean:
	rm -rf $(VENV) build dist site
