# Everything is one word: `make demo`, `make test`. The first run installs into .venv; later runs install nothing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
LIBRARY := keras_private/native/_keras_private_ops.so
NATIVE_SOURCES := keras_private/native/build.py $(wildcard keras_private/native/src/*)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps
UV_VERSION := 0.13.9

# Each of them takes about two gigabytes. `make test TEST_PROCESSES=0` runs all in one.
TEST_PROCESSES ?= 2

# The interpreter for .venv, when it is not called python3.11: make demo PYTHON=/path/to/python3.11
export PYTHON
# TensorFlow logs as errors, level 2, that several CUDA plugins ask for the same name.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help install demo test test-long test-slow lint bench notebooks docs doctor lock dataset clean distclean

help:
	@echo "make demo       install, then the whole story on real images: plain, private, federated, encrypted queries"
	@echo "make test       install, then run all checks and tests"
	@echo "make test-long  install, then execute examples, notebooks and the demo, and run the longer tests"
	@echo "make test-slow  install, then run the tests that take minutes each"
	@echo "make bench      install, then measure against plain Keras"
	@echo "make notebooks  install, then execute the notebooks of examples/"
	@echo "make docs       install, then build the documentation into site/"
	@echo "make doctor     what is installed, what is missing, and the command that adds it"
	@echo "make lock       choose the versions in requirements.lock anew"
	@echo "make clean      remove what builds and tests left (make distclean: .venv as well)"

install: $(VENV)/.package

demo: $(VENV)/.package $(VENV)/.dataset
	@$(BIN)/keras-private demo

test: $(VENV)/.package $(VENV)/.browser lint
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

test-long: $(VENV)/.package $(VENV)/.dataset
	$(BIN)/python -m pytest -m long --numprocesses $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

test-slow: $(VENV)/.package
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/.package
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.package
	@for script in $$(grep -l __main__ benchmarks/*.py | grep -v -e opacus_step -e spu_step -e stock_tfe_serving); do echo "== $$script"; $(BIN)/python $$script; done

docs: $(VENV)/.package
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/.package $(VENV)/.dataset
	@$(BIN)/python examples/notebooks/run.py

doctor: $(VENV)/.package
	@$(BIN)/keras-private doctor

dataset:
	@requirements/system.sh dataset

lock: .build/uv/.installed
	@.build/uv/bin/python requirements/lock.py .build/uv/bin/uv

clean:
	rm -rf build dist *.egg-info .build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache demo_output site
	rm -f $(LIBRARY) $(LIBRARY:.so=.json)
	find keras_private tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# Stamps: each says that one step of the install is done, and is made anew only when what it depends on changes.

$(VENV)/.python:
	@python="$$(requirements/system.sh python)"; \
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	  echo "Creating $(VENV) with $$python"; "$$python" -m venv --clear $(VENV); fi
	@touch $@

$(VENV)/.locked: requirements.lock $(VENV)/.python
	@echo "Installing the packages of requirements.lock: about 850 MB to fetch, 3 GB on disk, one to three minutes ..."
	@$(PIP) --retries 10 --timeout 60 --only-binary :all: --require-hashes -r requirements.lock
	@touch $@

# Before pip, so that a compiler's message is seen as it is: pip would bury it.
$(LIBRARY): $(NATIVE_SOURCES) $(VENV)/.locked
	@requirements/system.sh compiler
	@echo "Compiling the native operations ..."
	@$(BIN)/python keras_private/native/build.py > /dev/null
	@touch $@

$(VENV)/.package: setup.py pyproject.toml $(VENV)/.locked | $(LIBRARY)
	@KERAS_PRIVATE_REQUIRE_NATIVE=1 $(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dataset: $(VENV)/.python
	@requirements/system.sh dataset
	@touch $@

$(VENV)/.browser: $(VENV)/.python
	@requirements/system.sh browser
	@touch $@

.build/uv/.installed:
	@"$$(requirements/system.sh python)" -m venv .build/uv
	@.build/uv/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
	@touch $@
