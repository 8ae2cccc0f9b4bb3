# Everything is set up by the targets themselves: a virtual environment in .venv, made once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build of torch. For a GPU: make TORCH=torch demo
TORCH ?= torch==2.13.0
# The oldest transformers that `dependencies` in pyproject.toml allows.
OLDEST := 5.0.0
OLD := build/transformers-$(OLDEST)
# Test files with marks of it; others may import what the oldest transformers does not have.
CONTRACT = $(shell grep -lE "mark\.contract|^from contract import" tests/test_*.py)
STAMP := $(VENV)/.installed

.PHONY: demo test test-oldest nightly lint bench docs clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(STAMP) ## a real trained pair: tokens per step, speeds, equal ids
	$(BIN)/python examples/quickstart.py

test: $(STAMP) ## the test suite
	$(BIN)/python -m pytest -n 2 -m "not nightly"

test-oldest: $(STAMP) $(OLD)/.installed ## what must hold with the oldest supported transformers
	PYTHONPATH=$(OLD) $(BIN)/python -c "import transformers as t; assert t.__version__ == '$(OLDEST)', t.__file__"
	PYTHONPATH=$(OLD) $(BIN)/python -m pytest -n 2 -m "contract and not nightly" $(CONTRACT)

$(OLD)/.installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --target $(OLD) "transformers==$(OLDEST)"
	touch $@

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
