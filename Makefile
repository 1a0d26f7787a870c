# make demo : set up, then run the whole way on an embedded phantom cohort
# make test : set up, then check style and types and run the tests, within minutes
# make bench : benchmarks in their quick forms, into docs/benchmarks.md; OTHERS=python of other packages, BENCH="--only peers"
# make docs : the manual, into docs/_build/html; runs every block and notebook, checks every link
# make wheel : builds the wheel, installs it into a clean environment and runs the demo from there
# make hooks : lets every commit be checked
# make test-all : the slow ones too (every architecture, ten thousand damaged files)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OTHERS ?= $(BIN)/python
STAMP  := $(VENV)/.ready

.PHONY: demo test test-all bench docs wheel hooks lint clean

demo: $(STAMP)
	$(BIN)/medtransfer demo --out runs/demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist worksteal

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/all.py --others $(OTHERS) $(BENCH)

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,docs]"
	OMP_NUM_THREADS=1 $(BIN)/python docs/build.py

# the wheel, looked into, installed into a clean environment, and its demo run outside of the repository
wheel: $(STAMP)
	$(BIN)/python tests/wheel.py --out dist

hooks: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pre-commit>=4"
	$(BIN)/pre-commit install

# set-up is skipped while neither the dependencies nor their pinned versions have changed
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) docs/_build docs/_made docs/examples .pytest_cache .mypy_cache .ruff_cache .hypothesis
