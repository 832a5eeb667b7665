# Every target sets up .venv by itself; once set up it needs no network.
PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python


.PHONY: demo test test-all lint format clean

$(VENV)/.run: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.run
	$(PY) -m pip install --quiet --editable ".[test,lint]"
	touch $@

demo: $(VENV)/.run  ## a full look on two poses into outputs/demo/
	$(PY) -m infer.demo --out outputs/demo

test: $(VENV)/.test  ## the tests that fit in about 12 minutes on 2 cores
	$(PY) -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.test  ## the slow ones too
	$(PY) -m pytest -n 2 --dist loadfile -m ""

lint: $(VENV)/.test  ## what CI checks besides the tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

format: $(VENV)/.test
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) outputs build dist *.egg-info
