# One word per habit. `make test` and `make demo`, each alone, set up everything on a fresh machine and then do their job.

PYTHON ?= python3
VENV := .venv
BIN = $(VENV)/bin
READY := $(VENV)/.ready
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Two cores are busier with two test processes of one thread than with one of two.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-all browser versions oldest newest check style bench cards docs clean

demo: $(READY)
	$(BIN)/python training_scripts/run_demo.py --output demo_output

test: $(READY)
	$(PYTEST)

test-all: $(READY)
	$(PYTEST) -m "not browser"

# The page of `htsat demo` in Chromium; pictures of it lie in build/screenshots afterwards.
browser: $(READY)
	$(INSTALL) --constraint constraints.txt --editable ".[browser]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/test_demo_browser.py

# The tests with the oldest releases that setup.cfg allows, and with the newest that pip finds. Each has an environment of
# its own: 2 GB where PyTorch comes for processors alone, 6 GB where it brings its libraries for GPUs.
versions: oldest newest

oldest newest: VENV = .venv-$@

# Releases as old are built for no later Python.
oldest:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' || \
		{ echo "Python 3.10 or 3.11 is needed; name one with: make oldest PYTHON=python3.10"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints-oldest.txt --editable ".[dev]"
	$(BIN)/python -m pip list
	$(PYTEST)

newest:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade --upgrade-strategy eager --editable ".[dev]"
	$(BIN)/python -m pip list
	$(PYTEST)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cards: $(READY)
	$(BIN)/htsat card model_cards/*/

# About 15 minutes on two cores, which should have nothing else to do; peers to compare with are installed first.
bench: $(READY)
	$(INSTALL) --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m benchmarks.speed

# The site, in build/site; mkdocs is not among what the other words install.
docs: $(READY)
	$(INSTALL) --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python docs/make_commands.py
	$(BIN)/mkdocs build --strict

# The marker is written last, so that an interrupted installation is repeated.
$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or later is needed; name one with: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Setting up $(VENV): some minutes, and about 2 GB."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_output
