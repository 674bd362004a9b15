# Needs only make and Python >= 3.11; everything is installed into .venv, in the versions of constraints.txt.
#   make test PYTHON=python3.12      uses another interpreter (run `make clean` first if .venv exists)

PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
LATEST := .venv-latest
TORCHVISION := .venv-torchvision
# A stamp lies in its environment: $(@D) where make creates it, $(<D) where a target needs it first.
PIP_INSTALL = $(@D)/bin/python -m pip install --disable-pip-version-check
# One thread per test process: pytest already uses both cores, and results stay the same from run to run.
PYTEST = OMP_NUM_THREADS=1 $(<D)/bin/python -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help quickstart test test-all test-lowest test-latest test-torchvision quality clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed-demo ## pre-train a small iBOT on real photographs, without a download, into runs/quickstart
	$(VENV)/bin/hf-mim pretrain quickstart --output_dir runs/quickstart

test: $(VENV)/.installed-test ## run the tests, without the slow ones
	$(PYTEST)

test-all: $(VENV)/.installed-test ## run all tests, the slow ones too
	$(PYTEST) -m ""

test-lowest: $(LOWEST)/.installed ## run the tests with the lowest versions that pyproject.toml allows
	$(PYTEST)

test-latest: $(LATEST)/.installed ## run the tests with the newest releases of everything but torch
	$(PYTEST)

test-torchvision: $(TORCHVISION)/.installed ## run the tests with torchvision and the torch that it needs
	$(PYTEST)

quality: $(VENV)/.installed-dev ## check lint, formatting, types and spelling
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell $$(git ls-files)

clean: ## remove .venv, .venv-*, caches and build outputs; runs/ stays
	rm -rf $(VENV) $(LOWEST) $(LATEST) $(TORCHVISION) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

# The stamps of a larger set of extras cover the smaller ones, so that no later target installs again.
$(VENV)/.installed-demo: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -c constraints.txt -e '.[test]'
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.installed-demo $(VENV)/.installed-test $@

# On Linux, PyPI has torch 2.7 only with CUDA: 3 GB to download, 7 GB in the environment.
$(LOWEST)/.installed: $(LOWEST)/.created pyproject.toml constraints-lowest.txt
	$(PIP_INSTALL) -c constraints-lowest.txt -e '.[test]'
	@touch $@

# torch stays at the version of constraints.txt: its newest release would be gigabytes of CUDA again. To look for newer
# releases of the others, remove .venv-latest/.installed.
$(LATEST)/.installed: $(LATEST)/.created pyproject.toml constraints.txt
	grep '^torch==' constraints.txt > $(@D)/constraints.txt
	$(PIP_INSTALL) -c $(@D)/constraints.txt --upgrade --upgrade-strategy eager -e '.[test]'
	@touch $@

# Each torchvision needs its own torch; on Linux, PyPI has this pair only with CUDA, 5.5 GB. The rest is as in .venv.
$(TORCHVISION)/.installed: $(TORCHVISION)/.created pyproject.toml constraints.txt
	{ echo torch==2.14.1; echo torchvision==0.29.1; grep -v '^torch==' constraints.txt; } > $(@D)/constraints.txt
	$(PIP_INSTALL) -c $(@D)/constraints.txt -e '.[test,vision]'
	@touch $@

%/.created:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("hf_mim needs Python 3.11 or newer, $(PYTHON) is %d.%d; name another one: make PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) has no venv module: install it (Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
	@touch $@
