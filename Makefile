# `make demo` and `make test` need Python 3.11+ and a package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check docs mutate bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "genctl needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local]' --group dev
	touch $@

demo: $(READY) ## a job that fails and a job that succeeds, watched hop by hop on the embedded stack
	$(BIN)/genctl demo

test: $(READY) ## all tests; with GENCTL_TEST_REQUIRE=all a left-out one is a failure
	$(BIN)/python -m pytest -n 6  # they mostly wait: six at once keep two cores busy

check: $(READY) ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## docs/runbooks/ and runbooks/schema.json, from the runbooks and their model
	$(BIN)/python docs/make_runbooks.py

mutate: $(READY) ## takes out one guard of the protocol at a time: a test must fail each time (docs/mutations.md)
	$(BIN)/python -m tests.mutate

bench: $(READY) ## speed as ratios against peers, measured in one run; needs npm for a fast SQS emulator
	npm install --prefix benchmarks --no-package-lock --no-audit --no-fund
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/redrive.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/movements.py
	$(PYTHON) -m venv benchmarks/.venv && benchmarks/.venv/bin/pip install -q -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/worker.py
	$(BIN)/python benchmarks/worker.py scale

clean: ## forget the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
