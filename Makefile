# `make demo` and `make test` need Python 3.11+ and a package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SDK := .venv-sdk
SHIP := .venv-ship
CONSTRAINTS := constraints.txt
GOAL := $(MAKECMDGOALS)
INSTALL = @GOAL='$(GOAL)' CONSTRAINTS='$(CONSTRAINTS)' .ci/install $(PYTHON)

.DEFAULT_GOAL := help
.PHONY: help demo writable test explore sdk ship check audit docs seal dist sbom mutate bench upgrade newest clean

help: ## this list
	@sed -n 's/^requires-python = ">=\(.*\)"$$/It needs Python \1 or newer, and a package index./p' pyproject.toml
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What `make demo` needs, and what all others need beside it.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(INSTALL) $(VENV) --editable '.[local]'
	@touch $@

$(READY): $(VENV)/.demo
	$(INSTALL) $(VENV) --group dev
	@touch $@

demo: $(VENV)/.demo ## a job that fails and a job that succeeds, watched hop by hop on the embedded stack
	$(BIN)/genctl demo

writable: # all but the demo keep or make something in the checkout
	@GOAL='$(GOAL)' .ci/writable .

test: writable $(READY) ## all tests; with GENCTL_TEST_REQUIRE=all a left-out one is a failure
	$(BIN)/python -m pytest -n 12  # they often wait: twelve at once keep two cores busy

explore: writable $(READY) ## the invariants on new examples: each run draws others, and prints how to play a failure again
	GENCTL_TEST_INTERLEAVINGS=$${GENCTL_TEST_INTERLEAVINGS:-100} $(BIN)/python -m pytest -n 8 --hypothesis-profile=explore $$(grep -rlE '^(from|import) hypothesis' tests --include='test_*.py')

sdk: writable $(SDK)/.ready ## the SDKs of the provider, for tests that are left out without them (160 MB)

$(SDK)/.ready: pyproject.toml constraints.txt
	$(INSTALL) $(SDK) --no-compile --group sdk
	@touch $@

ship: writable $(SHIP)/.ready ## judges of container, templates and manifests, for tests that are left out without them (430 MB)

$(SHIP)/.ready: pyproject.toml constraints.txt
	$(INSTALL) $(SHIP) --no-compile --group ship
	@touch $@

check: writable $(READY) ## formatting, lint, types, import rules, dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/deptry src tests docs --exclude '^$$' --ignore DEP002,DEP004
	$(BIN)/deptry examples/genctl-tool-example --config examples/genctl-tool-example/pyproject.toml

audit: writable .venv-audit/.ready ## known holes of what is installed here, and of the oldest versions that users may have
	.ci/audit .venv-audit/bin/pip-audit

.venv-audit/.ready: pyproject.toml constraints.txt
	$(INSTALL) .venv-audit --group audit
	@touch $@

docs: writable $(READY) ## what is made: docs/cli.md, docs/runbooks/, runbooks/schema.json, docs/schemas/
	$(BIN)/python docs/make_runbooks.py
	$(BIN)/python docs/make_schemas.py
	$(BIN)/python docs/make_cli.py

seal: ## adds the new migrations to migrations/SHA256SUMS: from then on they never change
	@cd migrations && sha256sum --check --quiet SHA256SUMS
	@cd migrations && new=$$(sha256sum *.sql | grep -vxFf SHA256SUMS); [ -z "$$new" ] || echo "$$new" | tee -a SHA256SUMS

dist: writable $(READY) $(SHIP)/.ready ## dist/: wheel and sdist, the same bytes from the same commit
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct || echo 1580601600) $(BIN)/python -m build --no-isolation
	$(SHIP)/bin/twine check --strict dist/*

sbom: dist ## and the bill of materials of what a user installs: the wheel and what it needs
	$(PYTHON) -m venv --clear --without-pip .venv-sbom
	$(SHIP)/bin/pip --python .venv-sbom/bin/python install --quiet --constraint constraints.txt dist/*.whl
	find .venv-sbom -name direct_url.json -delete # it names a folder of this machine
	$(SHIP)/bin/cyclonedx-py environment --output-reproducible --output-file dist/genctl.cdx.json .venv-sbom/bin/python

mutate: writable $(READY) ## takes out one guard of the protocol at a time: a test must fail each time (docs/mutations.md)
	$(BIN)/python -m tests.mutate

bench: writable $(READY) ## speed as ratios against peers, measured in one run; needs npm for a fast SQS emulator
	npm install --prefix benchmarks --no-package-lock --no-audit --no-fund
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/redrive.py
	$(BIN)/python benchmarks/owed.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/movements.py
	$(BIN)/python benchmarks/footprint.py rows
	$(BIN)/python benchmarks/footprint.py notify
	$(BIN)/python benchmarks/footprint.py connections
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/bridge.py
	$(BIN)/python benchmarks/bridge.py many
	$(INSTALL) benchmarks/.venv --requirement benchmarks/requirements.txt
	$(BIN)/python benchmarks/worker.py --draw
	$(BIN)/python benchmarks/worker.py scale
	$(BIN)/python benchmarks/life.py
	$(BIN)/python benchmarks/inflight.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/processes.py calls
	$(BIN)/python benchmarks/pace.py

upgrade: writable $(READY) ## constraints.txt with the newest versions that pyproject.toml allows; shows what has changed
	$(INSTALL) $(VENV) --group upgrade
	@cp constraints.txt $(VENV)/constraints.before
	$(BIN)/uv pip compile --quiet --system-certs --upgrade --universal --python-version 3.11 --no-annotate \
		--custom-compile-command 'make upgrade' --output-file constraints.txt \
		pyproject.toml benchmarks/requirements.txt --extra local --extra otel --group dev --group sdk --group upgrade --group audit --group ship
	@diff $(VENV)/constraints.before constraints.txt | grep '^[<>]' || echo 'nothing has changed'

newest: ## the unit tests and the demo with what users get: the newest versions, in a fresh environment
	rm -rf .newest
	$(MAKE) --no-print-directory .newest/.ready VENV=.newest CONSTRAINTS= GOAL=newest
	.newest/bin/python -m pytest -n 2 tests/unit
	.newest/bin/genctl demo

clean: ## forget the virtual environment and the caches
	rm -rf $(VENV) $(SDK) $(SHIP) .venv-audit .venv-sbom benchmarks/.venv .newest .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
