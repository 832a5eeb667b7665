# Every target sets up .venv by itself; once set up it needs no network.
PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python


.PHONY: help demo train-demo test test-all test-plan lint format clean

help:
	@grep -E "^[a-z-]+:.*##" Makefile | sed -E "s/:.*##/:/"

$(VENV)/.run: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.run
	$(PY) -m pip install --quiet --editable ".[test,lint]"
	# Oracles that declare torchvision, which would bring another torch and which is not needed of them.
	$(PY) -m pip install --quiet --no-deps clean-fid==0.1.35 lpips==0.1.4 torch-fidelity==0.4.0
	# The body model that --estimate runs lies in this package, of which nothing is imported.
	$(PY) -m pip install --quiet --no-deps "mediapipe==0.10.14; python_version < '3.13'"
	touch $@

demo: $(VENV)/.run  ## a full look on two poses, a try-on and an album, into outputs/demo/
	$(PY) -m infer.demo --out outputs/demo

TRAINED = outputs/train-demo
TRAIN = $(PY) -m train.run --config tiny --out $(TRAINED)/run --data $(TRAINED)/latents --vae $(TRAINED)/vae/model \
	--heldout $(TRAINED)/latents_heldout --watch-every 100 --log-every 50 --checkpoint-every 100 \
	--steps 400 --batch-size 8 --optimizer.learning-rate 3e-3 --optimizer.warmup-steps 20 --optimizer.ema-decay 0.98

train-demo: $(VENV)/.run  ## data, a tiny model trained, stopped, continued, exported, and what it composes; no beauty
	rm -rf $(TRAINED)
	$(PY) -m train.prepare wardrobe --out $(TRAINED)/pictures --count 96 --height 64 --width 48
	$(PY) -m train.prepare wardrobe --out $(TRAINED)/pictures_heldout --count 8 --height 64 --width 48 --split heldout
	$(PY) -m train.run --config tiny_vae --data $(TRAINED)/pictures --out $(TRAINED)/vae --steps 300 --log-every 50 \
		--optimizer.learning-rate 3e-3 --optimizer.warmup-steps 20 --optimizer.ema-decay 0.98
	for set in pictures pictures_heldout; do $(PY) -m train.prepare latents --config tiny \
		--data $(TRAINED)/$$set --model $(TRAINED)/vae/model --out $(TRAINED)/latents$${set#pictures} || exit 1; done
	@echo "SIGTERM stops this run once its log has step 150:"
	$(TRAIN) & run=$$!; trap "kill $$run; exit 1" INT TERM; \
	until grep -qs '"step": 150,' $(TRAINED)/run/log.jsonl; do kill -0 $$run && sleep 0.1 || exit 1; done; \
	kill $$run && wait $$run && test ! -e $(TRAINED)/run/model
	@echo "The same command goes on where it stopped:"
	$(TRAIN)
	$(PY) -m train.export $(TRAINED)/run $(TRAINED)/model
	$(PY) -m infer.demo --model $(TRAINED)/model --out $(TRAINED)/composed

test: $(VENV)/.test  ## the tests that fit in about 12 minutes on 2 cores
	$(PY) -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.test  ## the slow ones too
	$(PY) -m pytest -n 2 --dist loadfile -m ""

# A venv of its own, as JAX looks for a TPU wherever its compiler is installed.
PLAN = $(VENV)-plan
test-plan:  ## the planner's tests for hardware that is not there, whose compilers it installs
	test -x $(PLAN)/bin/python || $(PYTHON) -m venv $(PLAN)
	$(PLAN)/bin/python -m pip install --quiet --editable ".[test,tpu,cuda]"
	JAX_PLATFORMS=cpu $(PLAN)/bin/python -m pytest -m "" tests/test_plan_compilers.py

lint: $(VENV)/.test  ## what CI checks besides the tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

format: $(VENV)/.test
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) $(PLAN) outputs/demo $(TRAINED) build dist *.egg-info
