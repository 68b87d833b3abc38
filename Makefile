# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Errors only: warnings about a registry's layout say nothing to whoever installs.
QUIET := -qq --disable-pip-version-check
# Further arguments of pytest, such as PYTEST="-k store".
PYTEST ?=

.PHONY: demo test test-platform lint bench docs up down clean

demo: $(STAMP)
	@$(BIN)/sparse-probing demo

test: $(STAMP)
	@$(BIN)/pytest --numprocesses 2 --dist loadfile $(PYTEST)

# Servers and workers that are started, killed and cut off: minutes each.
test-platform: $(STAMP)
	@$(BIN)/pytest --numprocesses 2 --dist loadfile -m platform $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	@$(BIN)/pip install $(QUIET) -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks

# The site begins at build/site/index.html, and loads nothing from the network.
docs: $(STAMP)
	@$(BIN)/pip install $(QUIET) -c constraints.txt -e ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

up: $(STAMP)
	@$(BIN)/sparse-probing up

down: $(STAMP)
	@$(BIN)/sparse-probing down

clean:
	rm -rf data build dist .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt requirements-demo.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 …')"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): some two minutes on a fast machine, the first time only."
	@$(BIN)/pip install $(QUIET) -c constraints.txt -e ".[gguf,dev]"
	@$(BIN)/pip install $(QUIET) --no-deps -r requirements-demo.txt
	@touch $@
