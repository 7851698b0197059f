# Everything works from a fresh clone with Python 3.11+ and make. `make` alone lists the targets.
# TORCH=cpu is the default; TORCH=cu130 (or another backend that `uv` knows) installs the CUDA build.
# An environment that is there keeps its torch: `make clean-venv` first to change it.

PYTHON ?= python3
TORCH ?= cpu
TORCH_VERSION := 2.13.0
UV_VERSION := 0.13.9
UI_PORT ?= 3000
REPORTS_PORT ?= 3001
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
export DAGSTER_HOME := $(CURDIR)/.dagster_home
export DO_NOT_TRACK := 1
# Never asked of a hub: models come from the registry of this project.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-all ui test torture check format lock clean-venv clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/ready $(DAGSTER_HOME)/dagster.yaml  ## fetch real data, train, score real dates, report
	@$(BIN)/python -m batch_platform.demo.run

demo-all: $(VENV)/ready $(DAGSTER_HOME)/dagster.yaml  ## the demo, e-mails embedded for search by meaning, and recommendations
	@$(BIN)/python -m batch_platform.demo.run --all

ui: $(VENV)/ready $(DAGSTER_HOME)/dagster.yaml  ## Dagster on 127.0.0.1:$(UI_PORT), with the drift reports beside it
	@$(BIN)/python -m batch_platform.cli.ui --port $(UI_PORT) --reports-port $(REPORTS_PORT)

test: $(VENV)/ready  ## everything needed to pass the tests, then the tests
	@$(BIN)/python -m batch_platform_tests.requirements
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

torture: $(VENV)/ready  ## a thousand kills, full disks, races: the table of docs/reliability.md, in about an hour
	@$(BIN)/python -m batch_platform_tests.torture.requirements
	@$(BIN)/python -m batch_platform_tests.torture.report

check: $(VENV)/ready  ## format, lint, layers, types, and the pipeline files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/dg check defs

format: $(VENV)/ready  ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, every process would compile all that it imports.
$(VENV)/ready: requirements.lock pyproject.toml setup.py
	@command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' is not installed: install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: '$(PYTHON)' is older than Python 3.11: name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: '$(PYTHON)' cannot make virtual environments: install its venv package (Debian: python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV) (about 3.5 GB, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check "uv==$(UV_VERSION)" || { echo "make: the Python package index cannot be reached: check the network, or pip's configuration" >&2; exit 1; }
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(MAKE) -s torch-$(if $(filter cpu,$(TORCH)),cpu,cuda)
	@$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -r requirements.lock || { echo "make: installing requirements.lock failed (see above); run the same command again to go on" >&2; exit 1; }
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# An index that pip is configured with may carry the CPU build; if not, uv knows where PyTorch publishes it.
.PHONY: torch-cpu torch-cuda
torch-cpu:
	@$(BIN)/python -m pip install -q --disable-pip-version-check "torch==$(TORCH_VERSION)+cpu" 2>/dev/null \
	|| $(BIN)/uv pip install -q --python $(BIN)/python --torch-backend cpu "torch==$(TORCH_VERSION)" \
	|| { echo "make: no CPU build of torch $(TORCH_VERSION) can be had: check the network" >&2; exit 1; }

torch-cuda:
	@$(BIN)/uv pip install -q --python $(BIN)/python --torch-backend $(TORCH) "torch==$(TORCH_VERSION)" \
	|| { echo "make: no build of torch $(TORCH_VERSION) for '$(TORCH)' can be had: check TORCH and the network" >&2; exit 1; }

# A link, so that Dagster reads the project's own file.
$(DAGSTER_HOME)/dagster.yaml: dagster.yaml
	@mkdir -p $(DAGSTER_HOME)
	@ln -sf ../dagster.yaml $@

lock: $(VENV)/ready  ## pin the newest versions that pyproject.toml allows
	@echo "torch==$(TORCH_VERSION)+cpu" > $(VENV)/overrides.txt
	@$(BIN)/uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	  $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) --override $(VENV)/overrides.txt \
	  --no-emit-package torch --no-annotate --no-header -o requirements.lock

clean-venv:  ## remove the virtual environment
	rm -rf $(VENV)

clean: clean-venv  ## remove everything that was made, the lake and the demo data included
	rm -rf .batch_platform .dagster_home .demo_data
