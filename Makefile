PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# torch, torchvision and timm must be resolved together: a torch of another build breaks torchvision's import.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow bench lint clean

demo: $(VENV)/.installed                 ## set up, then train two heads on overlapping digits
	$(BIN)/mtl-train

test: $(VENV)/.installed-test            ## set up, then run the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed-test       ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed-bench          ## set up with the libraries it is compared with, then measure what a step costs
	$(BIN)/python experiments/cost/benchmark.py

lint: $(VENV)/.installed-test            ## ruff, mypy, and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV)

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
