# Everything the project can do, each target doing its own set-up: see `make help`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The newest Python ≥ 3.11 that runs, unless one is named: `make install PYTHON=python3.12`.
PYTHON ?= $$(scripts/find_python.sh)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# More for the command behind a target: `make test-unit ARGS="-k correlation -x"`, `make lock ARGS=--upgrade`.
ARGS ?=

.PHONY: help
help:  ## this list
	@sed -nE 's/^([a-z -]+):.*  ## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "%-54s %s\n", $$1, $$2}'

# --- use it

.PHONY: demo
demo: $(VENV)/.runtime  ## one intent through three services under one correlation id
	$(BIN)/quantum-bus demo $(ARGS)

.PHONY: stack
stack: $(VENV)/.runtime tools  ## the demo's services with the collector, Loki and their neighbours, on loopback
	$(BIN)/python scripts/stack.py $(ARGS)

# --- test it

# Side by side where tests mostly wait: for replies, and for leases that run out.
PYTEST := $(BIN)/python -m pytest
SIDE_BY_SIDE := --numprocesses=4 --dist=worksteal
# Processes that publish and handle under load want more of a core each.
UNDER_LOAD := --numprocesses=3 --dist=worksteal
# How much of the fault suite: short, whole or long; see tests/faults/README.md.
FAULTS ?= short

.PHONY: test
test: tools lint system-packages bench-install  ## everything: lint and all tiers of tests
	$(PYTEST) tests/unit tests/contract tests/benchmarks $(SIDE_BY_SIDE) $(ARGS)
	$(PYTEST) tests/faults --faults=$(FAULTS) $(UNDER_LOAD) $(ARGS)
	$(PYTEST) tests/packaging tests/stack $(ARGS)

.PHONY: test-benchmarks
test-benchmarks: install bench-install  ## the tier of what the benchmarks measure: that it is done, not how fast
	$(PYTEST) tests/benchmarks $(ARGS)

.PHONY: test-unit test-contract test-packaging
test-unit test-contract test-packaging: test-%: install  ## one tier
	$(PYTEST) tests/$* $(ARGS)

.PHONY: test-stack
test-stack: install tools  ## the tier on the real collector, Loki and their neighbours
	$(PYTEST) tests/stack $(ARGS)

.PHONY: test-faults
test-faults: install system-packages  ## the tier of what happens when servers and processes die, in its short form
	$(PYTEST) tests/faults --faults=$(FAULTS) $(UNDER_LOAD) $(ARGS)

.PHONY: faults
faults: install system-packages  ## the same, whole; or for hours: make faults ARGS=--faults=long
	$(PYTEST) tests/faults --faults=whole $(UNDER_LOAD) $(ARGS)

# Its notice of the end of Material for MkDocs: docs/decisions/0020-mkdocs-material-for-now.md.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.PHONY: lint
lint: install tools system-packages  ## style, types, which module may import which, the documentation, every configuration
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/shellcheck scripts/*.sh
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache  # its cache does not notice modules that came since
	$(BIN)/python -m observability.grafana.generate --check
	$(BIN)/hadolint deploy/*/Dockerfile
	$(MKDOCS) build  # not --quiet: it counts no warnings then
	scripts/check_configuration.sh
	scripts/check_units.sh

# --- measure it

.PHONY: bench
bench: install bench-install tools  ## the bus beside Redis and its peers, 15 min, against benchmarks/budgets.toml
	$(BENCH_VENV)/bin/python -m benchmarks $(ARGS)

.PHONY: bench-quick
bench-quick: bench-install  ## the same in 90 seconds: what most budgets are about (ARGS="--only latency --rounds 7")
	$(BENCH_VENV)/bin/python -m benchmarks --quick $(ARGS)

.PHONY: bench-micro
bench-micro: bench-install  ## single steps of the hot path
	$(BENCH_VENV)/bin/python -m pytest -c benchmarks/micro/pytest.ini benchmarks/micro $(ARGS)

.PHONY: profile
profile: bench-install  ## where each microsecond of a publish and of a handling goes
	$(BENCH_VENV)/bin/python -m benchmarks.profiling $(ARGS)

# --- set it up

.PHONY: install
install: $(VENV)/.development  ## the environment in .venv: locked dependencies, and the project itself, editable

# Two steps, so that `make demo` on a fresh machine does not wait for linters.
$(VENV)/.runtime: requirements/run.txt pyproject.toml
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$(PYTHON); echo "making $(VENV) with $$python"; rm -rf $(VENV); "$$python" -m venv $(VENV); \
	fi
	@echo "installing $<"
	@$(PIP_INSTALL) --require-hashes --only-binary=:all: -r $<
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.development: requirements/dev.txt $(VENV)/.runtime
	@echo "installing $<"
	@$(PIP_INSTALL) --require-hashes --only-binary=:all: -r $<
	@touch $@

.PHONY: docs docs-serve
docs: install  ## the documentation as a site, in build/site
	$(MKDOCS) build $(ARGS)
docs-serve: install  ## the same while you write, on http://127.0.0.1:8000
	$(MKDOCS) serve $(ARGS)

.PHONY: dashboards
dashboards: install  ## writes Grafana's dashboards anew from observability/grafana/generate.py
	$(BIN)/python -m observability.grafana.generate

.PHONY: picture
picture: $(VENV)/.runtime  ## the README's pictures, of what demo and trace really print
	$(BIN)/python scripts/picture.py

# The bus beside its peers, whose dependencies are none of its own.
BENCH_VENV := .venv-bench
$(BENCH_VENV)/.ready: requirements/bench.txt
	@echo "making $(BENCH_VENV): $<"
	@rm -rf $(BENCH_VENV)
	@$(BIN)/python -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r $<
	@touch $@

.PHONY: bench-install
bench-install: $(VENV)/.runtime $(BENCH_VENV)/.ready  ## the environment of the benchmarks, with the peers, in .venv-bench

.PHONY: system-packages
system-packages:  ## a current Redis, libfaketime and systemd-analyze, where they are missing and apt-get can install them
	@scripts/system_packages.sh

.PHONY: tools
tools:  ## builds the pipeline's programs once, into a cache outside the checkout
	@scripts/tools.sh

.PHONY: tools-path
tools-path:  ## the folder they are in (make -s tools-path)
	@scripts/tools.sh --path

.PHONY: lock
lock:  ## resolves the dependencies anew into requirements/ (ARGS=--upgrade for newer ones)
	scripts/lock.sh $(ARGS)

.PHONY: clean
clean:  ## removes what these targets made here; the caches outside the checkout stay
	rm -rf $(VENV) $(BENCH_VENV) .quantum build dist .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
