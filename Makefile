# Everything from a fresh clone: `make demo` or `make test`. Needs git, make, Python >= 3.11 and its venv module
# (Debian 12: apt install git make python3-venv).
#
#   PYTHON=python3.12    another interpreter for the environment
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                        where torch comes from. PyPI's Linux build brings gigabytes of CUDA; this one is for CPUs only.
#   PIP_ARGS=...         further arguments of every pip install
#   NAME=...             which benchmark (empty lists them), or which peer (empty: all)
#   WORKERS=2            processes of the tests

PYTHON ?= python3
TORCH_INDEX ?=
PIP_ARGS ?=
WORKERS ?= 2
NAME ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell grep '^torch==' requirements.txt)
# One thread a process: the tests run side by side, and labels and training parallelise by processes.
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations=10

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo lint check test bench peers docs clean
.DEFAULT_GOAL := setup

## setup: the environment in .venv
setup: $(READY)

# The stamp is written last: an interrupted set-up is taken up again by the next `make`.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "needs Python >= 3.11 with venv (Debian: apt install python3-venv), or PYTHON=path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps --editable .
	$(BIN)/sapis doctor
	@touch $(READY)

## demo: from the SMILES of ethanol to a checked model and its report
demo: $(READY)
	$(BIN)/sapis run recipes/ethanol.yaml

## lint: style, types, import layers
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## check: the same and the fast tests
check: lint
	$(PYTEST) -m "not slow"

## test: all tests
test: $(READY)
	$(PYTEST)

## bench NAME=...: one benchmark
bench: $(READY)
	$(BIN)/python -m benchmarks.run $(NAME)

## peers NAME=...: the environment of one of the potentials in benchmarks/peers, or of all of them
PEERS := $(notdir $(basename $(wildcard benchmarks/peers/requirements/*.txt)))
peers: $(foreach peer,$(or $(NAME),$(PEERS)),.peers/$(peer)/.ready)

# Each in its own, for their requirements exclude each other; all pinned, so that nothing is left to resolve.
.peers/%/.ready: benchmarks/peers/requirements/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(PIP_ARGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' $<)
	$(@D)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps -r $<
	@touch $@

## docs: run the examples of docs/ and check its links and references
docs: $(READY)
	$(PYTEST) tests/test_docs.py

## clean: remove the environment and caches; runs/ stays
clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
