# make demo | test | check | bench     PYTHON names the interpreter to start from (3.11 to 3.13); ARGS go to the program;
#                                      JOBS is how many tests run at a time

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test

.PHONY: demo test check unit bench docs clean

demo: $(RUN_STAMP)
	$(BIN)/fedgpt2 demo $(ARGS)

test: check unit

check: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

unit: $(TEST_STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --durations=20 --cov --cov-report= $(ARGS)
	$(BIN)/coverage report --fail-under=100

bench: $(TEST_STAMP)
	$(BIN)/fedgpt2 bench transport $(ARGS)
	$(BIN)/fedgpt2 bench compute $(ARGS)
	$(BIN)/fedgpt2 bench round $(ARGS)
	$(BIN)/fedgpt2 bench aggregation $(ARGS)

docs: $(RUN_STAMP)
	$(BIN)/python scripts/write_settings.py

clean:
	rm -rf $(VENV) build dist runs .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: everything after it is small, and a pin that is already met is not looked at again
$(RUN_STAMP): $(BIN)/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(TEST_STAMP): $(RUN_STAMP) requirements-test.txt
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	touch $@
