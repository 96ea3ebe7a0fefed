# make demo | test | lint | bench        PYTHON=python3.12 make …  picks the interpreter
PYTHON ?= python3
BIN := .venv/bin
.DELETE_ON_ERROR:
.PHONY: demo test lint clean

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"jaxwrap wants Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}: run make with PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/jaxwrap demo

test: .venv/installed
	$(BIN)/python -m pytest

# Editable installs hide the folder mapping from type checkers, so the wheel itself is checked.
lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	rm -rf build/wheel && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel/site build/wheel/*.whl
	cd build/wheel/site && MYPYPATH=. ../../../$(BIN)/mypy --config-file ../../../pyproject.toml --package jaxwrap

clean:
	rm -rf .venv build *.egg-info
