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
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
# More for pytest: `make test-unit ARGS="-k correlation -x"`.
ARGS ?=

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | sed -E 's/:[^#]*## */\t/' | expand -t 16

.PHONY: install
install: $(STAMP)  ## the environment in .venv: locked dependencies, and the project itself, editable

$(STAMP): requirements/dev.txt pyproject.toml scripts/find_python.sh
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    rm -rf $(VENV); python=$(PYTHON); echo "installing into $(VENV) ($$python)"; "$$python" -m venv $(VENV); \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: lock
lock:  ## resolve the dependencies anew into requirements/ (ARGS=--upgrade for newer ones)
	scripts/lock.sh $(ARGS)
