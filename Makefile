# Needs only make and Python >= 3.11; everything is installed into .venv, in the versions of constraints.txt.
#   make test PYTHON=python3.12      uses another interpreter (run `make clean` first if .venv exists)

PYTHON ?= python3
VENV := .venv
PIP_INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
# One thread per test process: pytest already uses both cores, and results stay the same from run to run.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help quickstart test test-all quality clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed-demo ## pre-train a small iBOT on real photographs, without a download, into runs/quickstart
	$(VENV)/bin/hf-mim pretrain quickstart --output_dir runs/quickstart

test: $(VENV)/.installed-test ## run the tests, without the slow ones
	$(PYTEST)

test-all: $(VENV)/.installed-test ## run all tests, the slow ones too
	$(PYTEST) -m ""

quality: $(VENV)/.installed-dev ## check lint, formatting, types and spelling
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell $$(git ls-files)

clean: ## remove .venv, caches and build outputs; runs/ stays
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

# The stamps of a larger set of extras cover the smaller ones, so that no later target installs again.
$(VENV)/.installed-demo: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[test]'
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed-demo $(VENV)/.installed-test $@

$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("hf_mim needs Python 3.11 or newer, $(PYTHON) is %d.%d; name another one: make PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) has no venv module: install it (Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
