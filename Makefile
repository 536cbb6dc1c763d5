PYTHON ?= python3
BIN := .venv/bin
# A worker a core, each with one thread; the tests of a file stay together, since they share what was loaded for them, and
# files in their order, which has the long ones in the middle.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test slow gpu lint audit clean

demo: .venv/installed ## install and run the quick board on the embedded model
	$(BIN)/infoprune demo

test: .venv/installed ## install and run the tests
	$(PYTEST)

slow: .venv/installed ## the tests that take minutes
	$(PYTEST) -m "slow and not gpu and not network"

gpu: .venv/installed ## what only a GPU can show, within 15 minutes: tests, a published size, training, and the table of bars
	failed=0; \
	timeout 100 $(BIN)/python -m pytest -q -m gpu || failed=1; \
	timeout 150 $(BIN)/infoprune sweep geometry-qwen2-vl-7b --device cuda --results runs/gpu --set budgets=[0.3125] --set methods=[random] || failed=1; \
	timeout 120 $(BIN)/infoprune reference train --device cuda --out runs/gpu/mini --images 20000 || failed=1; \
	timeout 200 $(BIN)/infoprune bench --device cuda --only compression --out runs/gpu/compression.json || failed=1; \
	timeout 330 $(BIN)/infoprune bench --device cuda --only answers --only speed --only svd --out runs/gpu/bars.json || failed=1; \
	exit $$failed

lint: .venv/installed ## formatting, lint, types, what is known to be unsafe, packages that do not go together
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive harness baselines
	$(BIN)/python -m pip --disable-pip-version-check check

audit: .venv/installed ## vulnerabilities known of the pinned versions; asks PyPI about each, so it is no part of CI
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv/audit/bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip --requirement constraints.txt

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean: ## remove the virtual environment
	rm -rf .venv
