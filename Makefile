# `make quickstart` and `make test` set up .venv first when it is missing or older than the lock file.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
IN := source ./env.sh &&

.PHONY: setup quickstart check test lint types bench docs ui watch lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	[ -x $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV): $$(grep -c == requirements.lock) packages, PyTorch among them, the largest; minutes, once"
	@set -o pipefail; $(VENV)/bin/pip install --disable-pip-version-check --requirement requirements.lock | $(DOWNLOADS)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Of what pip says: what is downloaded, with its size, and that it installs.
DOWNLOADS := awk '/Downloading/ && !/\.metadata/ { print "  " $$2 " " $$3 " " $$4; fflush() } \
	/^Installing collected/ { print "  installing them"; fflush() }'

quickstart: setup
	$(IN) python -m dd_assets.run_study quickstart

# Files side by side, a core each; more than one thread would be in their way. They come in the order of tests/conftest.py,
# the longest first.
PYTEST := $(IN) OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# For daily work: what needs no process, no cluster and no browser.
check: setup lint types
	$(PYTEST) -m "not slow" tests/core tests/figures

# Everything.
test: setup lint types
	$(PYTEST)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo

types: setup
	$(VENV)/bin/mypy

# Ratios against peers, those that take minutes; benchmarks/README.md has all.
bench: setup
	$(IN) OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/bench.py

# Into build/site; open its index.html. tests/test_readme.py builds it, too.
docs: setup
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build
	@echo "The documentation is build/site/index.html"

ui: setup
	$(IN) python -m dd_assets.running.instance port $${DD_PORT:-3000} && env -u DAGSTER_MODULE_NAME dagster dev -w workspace.yaml -h 127.0.0.1 -p $${DD_PORT:-3000}

# Curves of what trains, and the other pages of the UI below /lab, without Dagster.
watch: setup
	$(IN) python -m dd_assets.watch

# Exact versions of everything, from a fresh environment.
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet 'torch==2.14.1' 'torchvision==0.29.1' '.[dev]'
	{ echo '# Exact versions of everything; written by `make lock`.'; \
	  $(VENV)-lock/bin/pip freeze --exclude double-descent-lab; } > requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
