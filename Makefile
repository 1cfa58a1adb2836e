# make demo | test | check | results; VENV and PYTHON may be given: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check results clean

demo: $(VENV)/.installed  ## train on phantoms for about a minute, segment unseen ones, write a preview
	$(BIN)/volseg demo --samples data_samples/phantoms --output demo_run --overwrite

test: $(VENV)/.test  ## the whole test suite
	$(BIN)/python -m pytest

check: $(VENV)/.dev  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results:  ## write benchmarks/RESULTS.md from benchmarks/results.jsonl
	$(PYTHON) benchmarks/render.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) demo_run

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(INSTALL) -e '.[test]'
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(INSTALL) -e '.[test,dev]'
	touch $@
