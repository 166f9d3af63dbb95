# Every target makes .venv on its first call and starts at once on the next.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart quick test test-slow test-on-demand gpu-check lint lines docs clean

quickstart: $(STAMP)
	$(BIN)/ribray quickstart

# Two processes, each with a Ray cluster of its own where it needs one; a file's tests share what they have made.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

quick: $(STAMP)
	$(PYTEST) -m "not ray and not lengthy and not slow and not on_demand"

test: quick
	$(PYTEST) -m "(ray or lengthy) and not slow and not on_demand"

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not on_demand"

test-on-demand: $(STAMP)
	$(BIN)/python -m pytest -m on_demand

# Without an environment of its own, which a machine with a GPU but no network could not make: ARGS="--only a,d".
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks gpu $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lines:
	$(PYTHON) tools/lines.py

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ribray needs Python 3.11 or newer; set PYTHON=python3.11 or the like"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs,crf,optuna,photos,s3]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info site runs
