# Smolt: `make demo` and `make test` need Python 3.11, pip and make; the rest is installed into .venv.

# The first Python 3.11 found; name another with `make demo PYTHON=/path/to/python3.11`.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# Passed to pip: for instance an --extra-index-url of PyTorch builds for your card.
PIP_ARGS ?=
# Processes that run tests side by side.
JOBS ?= auto
# Of `make demo`: hear or train; else both.
PART ?=
# Where the real recordings lie, for `make real`; see configs/real.
PREFIX ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install demo demo-short real tiny test quick lint format clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(PY):
	@test -n "$(PYTHON)" || { echo "No Python 3.11 found. Install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and "Python %d.%d is too old: 3.11 is needed" % v)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "venv failed (Debian: apt-get install python3.11-venv)"; exit 1; }

$(VENV)/.installed: requirements.txt | $(PY)
	$(PIP) install -q $(PIP_ARGS) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements.txt | $(PY)
	$(PIP) install -q $(PIP_ARGS) -r requirements-dev.txt
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed ## make .venv and install what the program needs

demo: $(VENV)/.installed ## PART=hear: a trained model on recordings (2 minutes); PART=train: one is trained and measured (12); else both
	@# Status 3 of tools.hear: something is missing that a user can provide, which its message names; training needs none of it.
	@case "$(PART)" in ""|hear|train) ;; *) echo "make demo: PART=$(PART) is not known; expected hear or train"; exit 2;; esac
	@test "$(PART)" = train || $(PY) -m tools.hear || \
		{ status=$$?; test "$(PART)$$status" = 3 || exit $$status; echo "make demo: continuing with PART=train"; }
	@test "$(PART)" = hear || $(PY) -m tools.demo

demo-short: $(VENV)/.installed ## the same path in a few steps: shows that it runs, not what it reaches
	$(PY) -m tools.demo --short

real: $(VENV)/.installed ## train and evaluate on real recordings: make real PREFIX=/path/to/recordings (half an hour)
	@test -n "$(PREFIX)" || { echo "Where are the recordings? Call: make real PREFIX=/path/to/recordings"; exit 2; }
	@test -d "$(PREFIX)" || { echo "make real: PREFIX=$(PREFIX) is no folder"; exit 2; }
	$(PY) -m tools.demo --recipe real --prefix "$(PREFIX)"

tiny: $(VENV)/.installed ## train the tiny model from real weights: make tiny PREFIX=/path/to/recordings; again to go on
	@test -n "$(PREFIX)" || { echo "Where are the recordings? Call: make tiny PREFIX=/path/to/recordings"; exit 2; }
	@test -d "$(PREFIX)" || { echo "make tiny: PREFIX=$(PREFIX) is no folder"; exit 2; }
	$(PY) -m tools.weights tiny
	$(PY) -m data.prepare tiny --from "$(PREFIX)" --out outputs/tiny/corpus
	OMP_NUM_THREADS=1 $(PY) -m tools.launch --standalone --nproc-per-node 2 train.py \
		--cfg-path configs/tiny/align.yaml --resume
	$(PY) -m tools.pack_adapter outputs/tiny/stage2 outputs/tiny/adapter

test: $(VENV)/.installed-dev ## the whole test suite
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS)

quick: $(VENV)/.installed-dev ## the tests that take a moment
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -m "not slow"

lint: $(VENV)/.installed-dev ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(VENV)/.installed-dev ## ruff: fix what can be fixed automatically
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove outputs and caches
	rm -rf outputs .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	rm -rf $(VENV)
