# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone with Python and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SBX := .venv-sbx
D3RLPY := .venv-d3rlpy

.PHONY: install demo test test-slow check format bench clean help

help:
	@echo "make demo | test | test-slow | check | format | bench | clean"

# torch first and alone: a later resolver then keeps this build (the CPU build where the index has one)
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n auto -m 'not slow'

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n auto

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

bench: $(STAMP) $(SBX)/.installed
	$(BIN)/python benchmarks/speed/run.py --sbx-python $(SBX)/bin/python --rounds 12 --output docs/results/speed

# SBX in an environment of its own: JAX has other pins than we
$(SBX)/.installed:
	$(PYTHON) -m venv $(SBX)
	$(SBX)/bin/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(SBX)/bin/pip install --quiet sbx-rl==0.28.0 jax==0.10.2
	touch $@

# d3rlpy beside this package, for benchmarks/offline. It pins gymnasium 1.0.0 but works with ours, which pip then puts
# in its place with an "ERROR" about the broken pin
$(D3RLPY)/.installed: constraints.txt
	$(PYTHON) -m venv $(D3RLPY)
	$(D3RLPY)/bin/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(D3RLPY)/bin/pip install --quiet d3rlpy==2.8.1
	$(D3RLPY)/bin/pip install --quiet --constraint constraints.txt --editable . pygame
	touch $@

clean:
	rm -rf $(VENV) $(SBX) $(D3RLPY) build dist *.egg-info demo .pytest_cache .mypy_cache .ruff_cache
