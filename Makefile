# VENV and PYTHON may be given: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
VENV_LOWEST ?= .venv-lowest
BIN := $(VENV)/bin
# Tests of one file share fixtures, so that they run in one process.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-long test-lowest test-ohif test-faults check positions results clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## train on phantoms for about a minute, segment unseen ones, write a preview
	$(BIN)/volseg demo --samples data_samples/phantoms --output demo_run --overwrite

test: $(VENV)/.test  ## the tests, a process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

test-long: $(VENV)/.test  ## the tests that make test leaves out, because others of their kind run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m long

test-lowest: $(VENV_LOWEST)/.test  ## the same with the lowest versions that pyproject.toml allows; needs Python 3.11
	OMP_NUM_THREADS=1 $(VENV_LOWEST)/bin/python -m pytest $(PARALLEL)

test-ohif: $(VENV)/.test  ## where segmentations lie in the OHIF viewer; needs npm, chromium, chromium-driver, orthanc, orthanc-dicomweb
	$(INSTALL) selenium==4.45.0
	$(BIN)/python -m benchmarks.dicom.ohif.check

test-faults: $(VENV)/.test  ## failing system calls and kills in every verb that writes; under an hour; needs Linux, cc
	$(BIN)/python benchmarks/faults.py

check: $(VENV)/.dev  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

positions: $(VENV)/.test  ## write docs/reference/dicom-positions.md: where other software finds DICOM results
	$(INSTALL) rt-utils==1.2.7
	$(BIN)/python -m benchmarks.dicom.positions

results:  ## write benchmarks/RESULTS.md from benchmarks/results.jsonl
	$(PYTHON) benchmarks/render.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(VENV_LOWEST) demo_run

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

$(VENV_LOWEST)/.test: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(VENV_LOWEST)
	$(VENV_LOWEST)/bin/pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[test]'
	touch $@
