# Each target sets up .venv by itself and does nothing twice. `make` alone lists them.

PYTHON ?= python3
PYTEST_FLAGS ?=
BIN := .venv/bin
READY := .venv/.ready
BROWSER ?= tests/browser
CELL_TIMEOUT := 600
TWO_AT_A_TIME := $(BIN)/python -m pytest -n 2 --dist loadfile

# Every kernel, rank and test process imports the library: compiled once, not each time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help lab run test quick lint notebooks record bench browser

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make lab PYTHON=python3.12      with another interpreter (3.11 or newer)"
	@echo "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make lab"
	@echo "                                  on Linux without a GPU: a torch that is gigabytes smaller"

lab: $(READY)  ## open the chapters in JupyterLab, on copies under work/
	@$(BIN)/course lab $(if $(CHAPTER),$(CHAPTER))

run: $(READY)  ## execute every chapter without a browser, and print a table
	@$(BIN)/course run $(CHAPTER)

# One thread each, or two notebooks fight for the cores; the notebooks first, for they take longest.
test: lint  ## lint, tests, doctests, every notebook (not the browser: make browser)
	OMP_NUM_THREADS=1 $(TWO_AT_A_TIME) --no-loadscope-reorder -m "not browser" \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=$(CELL_TIMEOUT) \
		notebooks tests course_lib $(PYTEST_FLAGS)

quick: lint  ## lint and the fast tests
	$(TWO_AT_A_TIME) -m "not slow and not browser and not gpu" tests course_lib $(PYTEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(READY)  ## write notebooks/ from notebooks/src/, executed (CHAPTER=01 for one)
	$(BIN)/python tools/build_notebooks.py $(CHAPTER)

record: $(READY)  ## make a recorded run again: make record NAME=objectives
	@test -n "$(NAME)" || { echo "Which record? make record NAME=objectives"; exit 2; }
	$(BIN)/course record $(NAME)

bench: $(READY)  ## the benchmarks, ours beside a peer
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

# Chromium wants the cores too: torch's threads should not spin while they wait (benchmarks/waiting_threads.py).
browser: $(READY)  ## every chapter in a real Chromium: run whole, every control moved
	GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest -m browser $(BROWSER) $(PYTEST_FLAGS)

# The stamp is touched last, so an installation that was cut off starts again.
# What is compiled at its first import need not be compiled now: a minute less, of modules that nothing here imports.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name yours: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "This course needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
		echo "Name a newer one: make PYTHON=python3.12 (Windows, or no newer one at hand: see environment.yml)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: its venv and ensurepip modules are missing."; \
		echo "Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv; the first time takes a few minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[test]'
	@touch $@
