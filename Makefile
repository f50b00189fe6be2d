PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# torch, torchvision and timm must be resolved together: a torch of another build breaks torchvision's import.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The oldest versions that pyproject.toml allows, in an environment of their own.
LOWEST := .venv-lowest

.PHONY: demo test test-slow test-lowest bench gpu docs lint clean

demo: $(VENV)/.installed                 ## set up, then train two heads on overlapping digits
	$(BIN)/mtl-train

test: $(VENV)/.installed-test            ## set up, then run the fast tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.installed-test       ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-lowest: $(LOWEST)/.installed        ## the fast tests at the lower bounds of the dependencies; PYTHON=python3.11 or 3.10
	$(LOWEST)/bin/python -m pytest -n 2 --dist worksteal

bench: $(VENV)/.installed-bench          ## set up with the libraries it is compared with, then measure what a step costs
	$(BIN)/python experiments/cost/benchmark.py

# GPU_PYTHON: a Python that has everything already, where there is no network. GPU_FLAGS: as --device cpu --tiny.
gpu: $(if $(GPU_PYTHON),,$(VENV)/.installed-bench)    ## everything that only a GPU can tell, in ten minutes
	$(or $(GPU_PYTHON),$(BIN)/python) experiments/gpu/gpu.py $(GPU_FLAGS)

lint: $(VENV)/.installed-test            ## ruff, mypy, and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs            ## the documentation, in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

clean:
	rm -rf $(VENV) $(LOWEST) docs/_build docs/_tutorial

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 14), "mtl needs Python 3.10 to 3.13: make PYTHON=python3.12 …"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) -e '.[bench]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	touch $@

# Each "torch>=2.8" of pyproject.toml is the pin torch==2.8.
$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 12), "the oldest versions need Python 3.10 or 3.11: make PYTHON=python3.11 …"'
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	grep -oE '"[A-Za-z-]+(\[[a-z,]+\])?>=[0-9.]+' pyproject.toml | sed -E 's/"([^[>]+)[^>]*>=/\1==/' > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[test]'
	touch $@
