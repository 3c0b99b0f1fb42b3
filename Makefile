# Needs Python 3.11 or later and nothing else; everything goes into .venv.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed

# For `make gpu`, which installs nothing: the environment of `make run` where it exists, else any Python with torch.
GPU_PYTHON ?= $(firstword $(wildcard $(VENV)/bin/python) python3)

.PHONY: run test test-all nightly bench gpu lint audit clean

run: $(STAMP)
	$(VENV)/bin/compressor run

# A process for each core, so each with one thread, and one more, because some tests wait: for other processes, or for the
# last module, which stays in one process that makes its fixtures once.
# Bytecode is kept whatever the environment says, or each of some hundred interpreters would compile the project anew.
WORKERS := $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)")
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# Of each kind of case some, and two or five families of models; the others are marked slow.
test: $(STAMP)
	$(PYTEST) -m "not slow and not nightly" $(PYTEST_ARGUMENTS)

test-all: $(STAMP)
	$(PYTEST) -m "not nightly" $(PYTEST_ARGUMENTS)

# Bad input by machine, thousands of examples.
nightly: $(STAMP)
	$(PYTEST) -m nightly $(PYTEST_ARGUMENTS)

bench: $(STAMP)
	$(VENV)/bin/python -m tests.benchmarks

gpu:
	PYTHON=$(GPU_PYTHON) bash tests/benchmarks/gpu/run.sh $(GPU_ARGUMENTS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Known vulnerabilities of the pinned packages. It needs the network, so it is no part of the tests.
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
