# make run: the main job.  make test: the tests.  make check: style, types, floors.
# Each makes its own environment in .venv when it is missing (pip alone; about 5 GB, a few minutes).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test check clean

run: $(VENV)/.ready
	$(BIN)/sifm demo --out runs/demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
