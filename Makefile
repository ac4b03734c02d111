# Two commands do all the set-up: `make demo` and `make test`. They need Python ≥ 3.11, git and make.
# A stamp in the environment remembers what is installed; it is redone when the two files that
# decide it change. Another Python: make PYTHON=python3.13 test

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow browser bench systems systems-training lint format clean

help:
	@echo "make demo       install what the demo needs and run it: out/demo/index.html"
	@echo "make test       install what the tests need, lint, type-check, run the suite"
	@echo "make test-slow  the tests that take long"
	@echo "make browser    a Chromium for the studio's tests, where one can be had"
	@echo "make systems    measure the claims of every system, and keep the values"
	@echo "make systems-training  the claims that train models, into benchmarks/ too; resumable"
	@echo "make bench      overhead beside diffusers, k-diffusion and azula; ODEs beside torchdiffeq and others"
	@echo "make lint       formatting, rules, floors, types"
	@echo "make format     mend what ruff can mend"
	@echo "make clean      remove the environment and all caches"

demo: $(VENV)/.installed-demo
	$(BIN)/pathline demo

# Every test runs on one thread; a file's tests stay together, as they share what they train.
test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# The studio's pages are tested in Chromium: one that is there, Debian's (as root), or Playwright's own.
# Where none can be had, this says so and goes on, and those tests are skipped.
browser: $(VENV)/.installed-test
	@for name in chromium chromium-browser google-chrome chrome; do \
	  if command -v $$name >/dev/null; then echo "browser: $$name"; exit 0; fi; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { apt-get install -qq -y --no-install-recommends chromium || \
	  { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; }; } >/dev/null 2>&1; \
	then echo "browser: Debian's chromium"; \
	elif timeout 300 $(BIN)/playwright install chromium >/dev/null 2>&1; then echo "browser: Playwright's chromium"; \
	else echo "browser: none can be had here; the studio's browser tests will be skipped"; fi

bench: $(VENV)/.installed-bench $(VENV)/.installed-peers
	$(BIN)/pathline bench overhead
	$(BIN)/pathline bench ode

systems: $(VENV)/.installed-test
	$(BIN)/python -m pathline.systems

systems-training: $(VENV)/.installed-test
	$(BIN)/python -m pathline.systems --train

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) dist .import_linter_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Pathline needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.13" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) -e '.[$*]'
	@touch $@

# azula, k-diffusion and deepinv ask for torchvision, and so for another torch. Their samplers work
# without it; one that does not install is left out of the tables.
$(VENV)/.installed-peers: constraints.txt | $(VENV)/.installed-bench
	-$(PIP) --no-deps azula
	-$(PIP) --no-deps k-diffusion
	-$(PIP) --no-deps deepinv
	-$(PIP) torchode diffrax jax
	@touch $@
