# Everything runs in .venv, which the first target makes from any Python 3.11 to 3.13 with the venv module.
comma := ,
suitable = $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys$(1); sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
PYTHON ?= $(or $(call suitable,$(comma) venv$(comma) ensurepip),$(call suitable,))
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check smoke bench clean

demo: $(VENV)/.ready
	$(BIN)/wcfrelay demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

smoke: $(VENV)/.ready-dev
	$(BIN)/wcfrelay demo
	$(BIN)/python -m pytest tests/listener/test_spyne.py tests/wire tests/test_sas.py

bench: $(VENV)/.ready-dev
	$(BIN)/python -m bench

clean:
	rm -rf .venv .venv-newest build dist *.egg-info

$(VENV)/.ready: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "wcfrelay needs Python 3.11, 3.12 or 3.13 as python3.11, python3.12, python3.13 or python3."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install $(notdir $(PYTHON))-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
