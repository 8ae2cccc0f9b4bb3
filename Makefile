# Everything is set up by the targets themselves: a virtual environment in .venv, made once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build of torch. For a GPU: make TORCH=torch demo
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed

.PHONY: demo test nightly lint bench docs clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(STAMP) ## a real trained pair: tokens per step, speeds, equal ids
	$(BIN)/python examples/quickstart.py

test: $(STAMP) ## the test suite
	$(BIN)/python -m pytest -n 2 -m "not nightly"

nightly: $(STAMP) ## full products of the cases that `test` runs pairwise
	$(BIN)/python -m pytest -n 2

lint: $(STAMP) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP) ## speeds of the tiny pair, alternating rounds
	$(BIN)/python -m eagle.evaluation.bench

docs: $(STAMP) ## rewrite the tables in docs/ from what the tests find
	WRITE_DOCS=1 $(BIN)/python -m pytest tests/test_keywords.py
	$(BIN)/python tests/verdicts.py --write

clean:
	rm -rf $(VENV) build
