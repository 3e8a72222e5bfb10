# For a newcomer: `make demo`, `make demo-russell` and `make test`. Each makes .venv if there is none and installs what it
# needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-russell test test-fast lint format clean

demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tiny_world/demo.sh

demo-russell: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tiny_world/demo_russell.sh

test-fast: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[gpu,dev]"
	@touch $@

clean:
	rm -rf .venv demo demo_russell build *.egg-info
