# `make quickstart` and `make test` set up .venv first: what each needs, where it is missing or not as in the lock file.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
IN := source ./env.sh &&

.PHONY: setup setup-all quickstart check test lint types bench docs notebook ui watch lock clean

# What there is to install, and whether: environment/install.py. DD_TORCH=cpu or cuda chooses the build of PyTorch.
ENVIRONMENT ?= $(if $(and $(wildcard $(VENV)/bin/pip),$(realpath $(VENV)/bin/python)),$(VENV)/bin/python,$(PYTHON)) \
	-m environment.install

# For quickstart, ui, watch and ddlab.
setup:
	@$(ENVIRONMENT) run

# Also for tests, checks, documentation and the notebook.
setup-all:
	@$(ENVIRONMENT) all

quickstart: setup
	$(IN) python -m dd_assets.run_study quickstart

# Files side by side, a core each; more than one thread would be in their way. They come in the order of tests/conftest.py,
# the longest first.
PYTEST := $(IN) OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# For daily work: what needs no process, no cluster and no browser.
check: setup-all lint types
	$(PYTEST) -m "not slow" tests/core tests/figures

# Everything.
test: setup-all lint types
	$(PYTEST)

lint: setup-all
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo

types: setup-all
	$(VENV)/bin/mypy

# Ratios against peers, those that take minutes; benchmarks/README.md has all.
bench: setup-all
	$(IN) OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/bench.py

# Into build/site; open its index.html. tests/test_readme.py builds it, too.
docs: setup-all
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build
	@echo "The documentation is build/site/index.html"

notebook: setup-all
	$(IN) marimo edit docs/notebook/quickstart.py

ui: setup
	$(IN) python -m dd_assets.running.instance port $${DD_PORT:-3000} && env -u DAGSTER_MODULE_NAME dagster dev -w workspace.yaml -h 127.0.0.1 -p $${DD_PORT:-3000}

# Curves of what trains, and the other pages of the UI below /lab, without Dagster.
watch: setup
	$(IN) python -m dd_assets.watch

# Exact versions of everything, from a fresh environment.
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet 'torch==2.14.1' 'torchvision==0.29.1' '.[dev]'
	$(VENV)-lock/bin/python -m environment.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
