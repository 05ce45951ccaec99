# One word per habit. `make test` and `make demo`, each alone, set up everything on a fresh machine and then do their job.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two cores are busier with two test processes of one thread than with one of two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-all check style bench cards docs clean

demo: $(READY)
	$(BIN)/python training_scripts/run_demo.py --output demo_output

test: $(READY)
	$(PYTEST)

test-all: $(READY)
	$(PYTEST) -m ""

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cards: $(READY)
	$(BIN)/htsat card model_cards/*/

# About 25 minutes on two cores, which should have nothing else to do; peers to compare with are installed first.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m benchmarks.speed

# The site, in build/site; mkdocs is not among what the other words install.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python docs/make_commands.py
	$(BIN)/mkdocs build --strict

# The marker is written last, so that an interrupted installation is repeated.
$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or later is needed; name one with: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Setting up $(VENV): some minutes, and about 2 GB."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_output
