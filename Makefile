# Works from an empty clone with python3 (3.11 or newer), its venv module and make.

PYTHON ?= python3
VENV ?= .venv
OUT ?= atlas-demo
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := interp kernels probes interventions viz app tests

.PHONY: help demo test test-all notebooks screenshots browser quality format docs replications release-check clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## Draw the head atlas of the default model on the shipped text
	@$(BIN)/interp atlas smollm2-135m --out $(OUT)

test: $(VENV)/.dev ## Fetch the models, then run the tests
	@$(BIN)/python -c 'from interp import catalog; [catalog.fetch(each.name) for each in catalog.entries()]'
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not (slow and (app or bench))"

test-all: test notebooks ## The same, then the notebooks, slow benches, and the explorer in a real browser
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and (app or bench)"

notebooks: $(VENV)/.dev browser ## Run every notebook again
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(WORKERS) $(BIN)/python -m pytest --nbmake --nbmake-timeout=900 notebooks

screenshots: $(VENV)/.dev browser ## Pictures of the explorer's pages, into docs/screenshots
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/screenshots.py

browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -q && apt-get install -y -q chromium; } || { \
		echo "A browser is needed: sudo apt-get install -y chromium"; exit 1; }

quality: $(VENV)/.dev ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## Sort imports and format
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format

# interp.kernels is no regular package (see kernels/README.md), and tools that walk
# packages miss it: they read a copy in which it is one.
docs: $(VENV)/.dev ## Build the documentation into build/site; warnings are errors
	@rm -rf build/api && mkdir -p build/api
	@cp -rL interp build/api/ && touch build/api/interp/kernels/__init__.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

replications: $(VENV)/.installed ## Test published claims again; writes docs/replications.md
	@$(BIN)/interp report docs/replications.toml --out build/replications
	@cp build/replications/replications.md docs/replications.md

release-check: $(VENV)/.dev ## Build wheel and sdist, and try both in a clean environment
	@PYTHON=$(BIN)/python .ci/release-check

clean: ## Remove the environment, caches and the demo's output
	rm -rf $(VENV) $(OUT) build dist interp.egg-info .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -type d -name __pycache__ -prune -exec rm -rf {} +

# A stamp is younger than everything it was made from; an interrupted step leaves none.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12")'
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing PyTorch and the package into $(VENV); the first time takes some minutes"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "Installing what tests and checks need"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
