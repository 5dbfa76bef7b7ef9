# `make demo` and `make test` work first on a fresh clone, with only Python 3.11+ and make: each sets up .venv.
# uv is used when it is there, pip when it is not. BPR_ETL_TEST_DATABASE_URL runs the same tests against any server.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What else is installed, one extra of pyproject.toml each: $(call with,test) is the marker that says it is there.
with = $(VENV)/.has-$(1)
WORKERS ?= 2

# pip shows each package as it comes. Nothing is compiled beforehand: that takes long, in silence, and Python does it as it goes.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt --editable
ENSURE_PIP := $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null

.PHONY: setup consumers ray-extra docs check-recipes screenshots demo test test-slow test-faults coverage lint format bench bench-full bench-setup bench-negatives wheel release-check clean
.DEFAULT_GOAL := setup

# One pip at a time in one environment.
.NOTPARALLEL:

# All that working on bpr-etl takes; each target below installs only its own part.
DEV := $(foreach extra,test docs lint,$(call with,$(extra)))
setup: $(DEV)

# What a run needs, and no more.
$(READY): pyproject.toml constraints.txt hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bpr-etl needs Python 3.11 or newer; say which with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@command -v uv >/dev/null 2>&1 || $(PYTHON) -c 'import venv, ensurepip; ensurepip.version()' 2>/dev/null || \
	  { echo "$(PYTHON) can't make virtual environments: install its venv module (Debian and Ubuntu: apt install python3-venv)."; exit 2; }
	@echo "Setting up $(VENV) with what a run needs: some 250 MB to download, a minute or two at the first time."
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python $(PYTHON) $(VENV) && \
	  VIRTUAL_ENV=$(VENV) uv pip install --constraint constraints.txt --editable .; \
	else \
	  $(PYTHON) -m venv --clear $(VENV) && $(PIP_INSTALL) .; \
	fi
	@touch $@

$(call with,%): $(READY)
	@echo "Setting up $(VENV) with what \"$*\" in pyproject.toml asks for."
	@if command -v uv >/dev/null 2>&1; then \
	  VIRTUAL_ENV=$(VENV) uv pip install --constraint constraints.txt --editable '.[$*]'; \
	else \
	  $(PIP_INSTALL) '.[$*]'; \
	fi
	@touch $@

# PyTorch, Hugging Face datasets and implicit, without which the tests of their recipes skip. By pip even where uv set up the rest:
# uv ignores pip's find-links, which may be where a CPU build of torch is.
consumers: $(call with,consumers)

$(call with,consumers): $(READY)
	@$(ENSURE_PIP)
	@$(PIP_INSTALL) '.[consumers]' --retries 1 || \
	  { echo "PyTorch (its CPU build), Hugging Face datasets or implicit can't be had. PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL may tell pip where."; exit 2; }
	@touch $@

# Ray, without which the tests of --engine ray skip.
ray-extra: $(call with,ray)

$(call with,ray): $(READY)
	@$(ENSURE_PIP)
	@$(PIP_INSTALL) '.[ray]' --retries 1 || { echo "Ray can't be had."; exit 2; }
	@touch $@

demo: $(call with,demo)
	$(BIN)/bpr-etl demo --out bpr-etl-demo

test: $(call with,test)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: $(call with,test)
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

# All fault injections, by the thousand: an hour on two cores. Prints what it tried.
test-faults: $(call with,test)
	$(BIN)/python -m pytest -n $(WORKERS) --full tests/faults

# Branches of etl/ that the tests go through, processes of the command line included.
coverage: $(call with,test)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(WORKERS) -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Its last line looks whether every pin admits the oldest Python, 3.11.0, whichever Python this is; so it needs all of them.
lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet tests/unit/repository/test_dependencies.py

format: $(call with,lint)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Comparisons with other tools: about ten minutes. PYSPARK names an interpreter that has PySpark.
bench: bench-setup
	$(BIN)/python -m benchmarks --save $(if $(PYSPARK),--pyspark $(PYSPARK))

# The same and the scales 100 and 1000: an hour or more, 60 GB of disk (BPR_ETL_BENCH_DIR says where the files go).
bench-full: bench-setup
	$(BIN)/python -m benchmarks --save --full $(if $(PYSPARK),--pyspark $(PYSPARK))

# Training value of negatives: about ten minutes each.
bench-negatives: bench-setup
	$(BIN)/python -m benchmarks negatives large_catalogue --save

bench-setup: $(call with,bench)

# The documentation site, in docs/_build: nothing from outside, and no warning.
docs: $(call with,docs)
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet -b html docs docs/_build
	@echo "docs/_build/index.html"

# The README's two pictures, of real runs: two minutes. Chromium takes the report's.
screenshots: $(call with,test)
	$(BIN)/python docs/screenshots.py

# The programs that the recipes are for look at them, where they are installed; AIRFLOW names an airflow command.
check-recipes:
	docs/recipes/check

wheel: $(READY)
	@$(ENSURE_PIP)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# What a release needs, in dist/: wheel, source distribution, bill of materials. Looks at metadata, licences and versions.
release-check: $(call with,test)
	$(BIN)/python -m pytest --quiet tests/integration/repository/test_wheel.py tests/unit/repository
	PYTHONPATH=. $(BIN)/python .ci/release_check.py

clean:
	rm -rf $(VENV) dist build docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis bpr-etl-demo bpr-etl-demo-recommended
