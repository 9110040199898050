# Everyday commands. `make` alone lists them.
#
# Variables that can be given on the command line:
#   PYTHON=python3.12        the interpreter that the environment is made with (3.11 or newer)
#   TORCH=torch==2.13.0      the torch requirement handed to pip
#   PIP_ARGS=...             further arguments for pip, such as an index that serves torch without CUDA

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
# Most of what is installed is never imported. What is, is compiled at its first import, and that must be kept.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile

.DEFAULT_GOAL := help
.PHONY: help install install-demo demo test check-format lint types layers docs unit oldest mutants kills equality format gallery \
	evidence bench clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(DEV_STAMP)  ## make .venv with the package (editable) and the tools of development

install-demo: $(RUN_STAMP)  ## make .venv with the package (editable) only

demo: install-demo  ## two reference clips, two pictures doing the same, and a contact sheet
	$(BIN)/sememe demo
	@echo "your own files: $(BIN)/sememe generate video-as-prompt --reference any.mp4 --image any.png -o out.mp4"

test: install  ## everything CI checks: format, lint, types, layers, docs, tests
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target check-format lint layers docs
	@$(MAKE) --no-print-directory --jobs 2 types unit

check-format: install  ## is every file formatted?
	$(BIN)/ruff format --check

lint: install  ## ruff's rules
	$(BIN)/ruff check

types: install  ## mypy over src and tests
	$(BIN)/mypy

layers: install  ## which package may import which
	$(BIN)/lint-imports

docs: install  ## the documentation with its API reference, in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

unit: install  ## pytest over the whole suite, one process a core
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

oldest:  ## pytest with the oldest versions that pyproject.toml allows, in .venv-oldest
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable ".[dev]"
	$(OLDEST)/bin/python -m pytest --numprocesses auto --dist worksteal -W ignore::DeprecationWarning

mutants: install  ## which tests notice mistakes in the source, and do damaged files do harm? (long)
	PYTHONPATH=src:tests $(BIN)/python tests/mutations/media.py
	$(BIN)/python tests/mutations/networks.py

kills: install  ## kill training runs at 200 random moments, with one process and with two; each must end as if undisturbed (long)
	PYTHONPATH=src $(BIN)/python tests/training/kills.py --processes 1
	PYTHONPATH=src $(BIN)/python tests/training/kills.py --processes 2
	PYTHONPATH=src $(BIN)/python tests/training/kills.py --hang

equality: install  ## train on one process, two and four: how far are the results apart? (minutes)
	PYTHONPATH=src:tests $(BIN)/python tests/training/equality.py

format: install  ## format and repair what ruff can
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

gallery: install-demo  ## draw the gallery of all conditions of the procedural world
	$(BIN)/sememe world gallery

evidence: install-demo  ## measure the built-in Video-As-Prompt model again (long)
	$(BIN)/sememe evaluate video-as-prompt --model tiny --json

bench: install-demo  ## measure speed and memory on this machine's CPU; see docs/benchmarks.md (minutes, nothing else running)
	$(BIN)/python -m benchmarks

clean:  ## remove caches and builds; .venv stays
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A development install holds all that a plain one does, so it satisfies both stamps.
$(DEV_STAMP): pyproject.toml | $(BIN)/python
	$(INSTALL) $(PIP_ARGS) "$(TORCH)" --editable ".[dev]"
	@touch $(RUN_STAMP) $(DEV_STAMP)

$(RUN_STAMP): pyproject.toml | $(BIN)/python
	$(INSTALL) $(PIP_ARGS) "$(TORCH)" --editable "."
	@touch $(RUN_STAMP)
