# `make demo` and `make test` work first on a fresh clone, with only Python 3.11+ and make: each sets up .venv.
# uv is used when it is there, pip when it is not. BPR_ETL_TEST_DATABASE_URL runs the same tests against any server.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSUMERS := $(VENV)/.consumers
RAY := $(VENV)/.ray
WORKERS ?= 2

.PHONY: setup consumers ray-extra docs check-recipes screenshots demo test test-slow test-faults coverage lint format bench bench-full bench-setup bench-negatives wheel clean
.DEFAULT_GOAL := setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bpr-etl needs Python 3.11 or newer; say which with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python $(PYTHON) $(VENV) && \
	  VIRTUAL_ENV=$(VENV) uv pip install --quiet --constraint constraints.txt --editable '.[dev]'; \
	else \
	  $(PYTHON) -m venv --clear $(VENV) && \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $(READY)

# PyTorch and Hugging Face datasets, without which the tests of their recipes skip. By pip even where uv set up the rest:
# uv does not look where pip is told to find wheels (find-links), which is where a CPU build of torch may lie.
consumers: $(CONSUMERS)

$(CONSUMERS): $(READY)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --retries 1 --constraint constraints.txt \
	  --editable '.[dev,consumers]' || \
	  { echo "PyTorch (its CPU build) or Hugging Face datasets can't be had. PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL may tell pip where."; exit 2; }
	@touch $(CONSUMERS)

# Ray, without which the tests of --engine ray skip.
ray-extra: $(RAY)

$(RAY): $(READY)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --retries 1 --constraint constraints.txt \
	  --editable '.[dev,ray]' || { echo "Ray can't be had."; exit 2; }
	@touch $(RAY)

demo: setup
	$(BIN)/bpr-etl demo --out bpr-etl-demo

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

# Everything that can happen at night, by the thousand: an hour on two cores. Prints what it tried.
test-faults: setup
	$(BIN)/python -m pytest -n $(WORKERS) --full tests/faults

# Branches of etl/ that the tests go through, processes of the command line included.
coverage: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(WORKERS) -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Everything side by side with what else does it: some ten minutes. PYSPARK names an interpreter that has PySpark.
bench: bench-setup
	$(BIN)/python -m benchmarks --save $(if $(PYSPARK),--pyspark $(PYSPARK))

# The same and the scales 100 and 1000: an hour or more, 60 GB of disk (BPR_ETL_BENCH_DIR says where the files go).
bench-full: bench-setup
	$(BIN)/python -m benchmarks --save --full $(if $(PYSPARK),--pyspark $(PYSPARK))

# Which negatives teach: some ten minutes each.
bench-negatives: bench-setup
	$(BIN)/python -m benchmarks.negatives --save
	$(BIN)/python -m benchmarks.large_catalogue --save

bench-setup: setup
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'

# The documentation site, in docs/_build: nothing from outside, and no warning.
docs: setup
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet -b html docs docs/_build
	@echo "docs/_build/index.html"

# The README's two pictures, of real runs: two minutes. Chromium takes the report's.
screenshots: setup
	$(BIN)/python docs/screenshots.py

# The programs that the recipes are for look at them, where they are installed; AIRFLOW names an airflow command.
check-recipes:
	docs/recipes/check

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist build docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis bpr-etl-demo
