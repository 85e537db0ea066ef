# The commands people type. `make help` lists them.
PY := .venv/bin/python
PYTHON ?= $(shell python3 ops/choose_python.py)
UV := $(shell command -v uv 2>/dev/null || echo .venv/bin/uv)
LOCK := $(UV) pip compile -q pyproject.toml --all-extras --group dev --universal --generate-hashes --no-header --no-emit-index-url --no-annotate

.DEFAULT_GOAL := help
.PHONY: help install run demo test test-all check fmt lock bench bench-quick faults soak new-provider

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' Makefile | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: .venv/.installed  ## set-up only; leaves .venv/bin/onward

.venv/.installed: requirements.lock pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@test -x "$(UV)" || $(PY) -m pip install -q --disable-pip-version-check $$(grep -o '^uv==[^ ]*' requirements.lock)
	@VIRTUAL_ENV=.venv $(UV) pip install -q --require-hashes -r requirements.lock
	@VIRTUAL_ENV=.venv $(UV) pip install -q --no-deps --no-build-isolation -e .
	@touch $@

run: install  ## the service on embedded defaults, with the sandbox and a sample project
	@.venv/bin/onward up --sandbox

demo: install  ## the whole story against the sandbox
	@.venv/bin/onward demo

test: install  ## every test but the slow ones of faults
	@$(PY) -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: install  ## every test
	@$(PY) -m pytest -q -n 2 --dist loadfile

faults: install  ## break everything, account for every event; ends with a table of what held
	@$(PY) -m pytest -q tests/faults --durations=0 --durations-min=60

soak: install  ## faults at random moments for 5 minutes, and a count from outside; more: python -m tests.faults.soak --help
	@$(PY) -m tests.faults.soak

check: install  ## formatter, linter, strict types, import rules, lock up to date
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/onward providers docs --check
	@cp requirements.lock .venv/requirements.lock && $(LOCK) -o .venv/requirements.lock && diff -u requirements.lock .venv/requirements.lock

fmt: install  ## format, and mend what the linter can
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

lock:  ## bring the lock up to date with pyproject.toml
	@$(LOCK) --upgrade -o requirements.lock

bench: install  ## all benchmarks, about seven minutes; writes tests/bench/results.json and plot.svg
	@$(PY) -m tests.bench

bench-quick: install  ## the main ones in a minute; name one: python -m tests.bench tls
	@$(PY) -m tests.bench --quick

new-provider: install  ## NAME=acme: an adapter, its tests and its fake upstream, to fill in
	@$(PY) -m worker.cli.scaffold "$(NAME)"
