# make run: the main job.  make test: the tests.  make check: style, types, floors of the house.
# make floors: the lowest versions that pyproject.toml allows, installed and tried.
# Each makes its own environment in .venv when it is missing (pip alone; about 5 GB, a few minutes).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST := $(VENV)-lowest

.PHONY: run test check floors clean

run: $(VENV)/.ready
	$(BIN)/sifm demo --out runs/demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

# Every ">=" of pyproject.toml as "=="; with a ComfyUI, its own requirements must still fit in beside them.
floors: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest -q tests/test_lowest_versions.py tests/judges tests/test_bad_input.py
	test -z "$(COMFYUI_PATH)" || $(LOWEST)/bin/python -m pip install --quiet --dry-run \
	  -c $(LOWEST)/lowest.txt -r requirements.txt -r "$(COMFYUI_PATH)/requirements.txt"

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

$(LOWEST)/.ready: pyproject.toml
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	grep -o '"[a-z][a-z0-9_-]*>=[0-9.]*' pyproject.toml | sed 's/"//; s/>=/==/' > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/lowest.txt -e ".[gemini,openai,data]" pytest
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) runs .pytest_cache .ruff_cache .mypy_cache
