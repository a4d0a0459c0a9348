# Everything runs in an environment of its own under .venvs/, made on first use and again when pyproject.toml changes
# what it needs. Only Python 3.11 or newer, make and a network are needed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SEEDS ?= 1
RANKS ?= 1
SEED ?= 0
TRL := .venvs/trl/bin
# What holds on every supported TRL; the other tests of the adapter use features and names of the newest.
TRL_EVERYWHERE := $(addprefix tests/trl/test_trl_,loss.py rewards.py teachers.py lora.py checkpoint.py) \
	--deselect tests/trl/test_trl_rewards.py::test_names_are_those_that_trl_gives
# These import verl and OpenRLHF, which have environments of their own.
OTHER_HOSTS := tests/verl tests/support/verl_cpu tests/support/verl_recorded.py adapters/sdpo_verl adapters/hydra_plugins \
	tests/openrlhf tests/support/openrlhf_cpu tests/support/openrlhf_direct.py tests/support/openrlhf_lives.py \
	tests/support/openrlhf_recorded.py adapters/sdpo_openrlhf
# Whole runs, each a dozen processes of which mostly one works: two at a time. A file's tests share its runs.
RUNS ?= 2
RUNS_PYTEST := -m pytest -o faulthandler_timeout=900 -n $(RUNS) --dist loadfile
# Tests that stay out of each other's way.
SIDE_BY_SIDE := tests/core tests/embedded tests/docs tests/browser
VERL_EVERYWHERE := $(addprefix tests/verl/test_verl_,config.py failures.py install.py prompts.py scorers.py step.py)
# The supported releases of OpenRLHF before the newest; each gets an environment of its own.
OPENRLHF_BEFORE ?= 0.10.4 0.11.0 0.11.1
# Tests of single flags are of the newest one's, some of which have other names before.
OPENRLHF_EVERYWHERE := $(addsuffix .py,$(addprefix tests/openrlhf/test_openrlhf_,checkpoint controllers experience \
	failures host_loss launcher parity prompts records resume runs samples scorers tokens training))
DOC_EXAMPLES := --doctest-modules --markdown-docs

.DEFAULT_GOAL := help
.PHONY: help demo demo-verl demo-openrlhf test test-trl test-trl-oldest test-verl test-verl-oldest test-openrlhf \
	test-openrlhf-matrix test-fast docs bench bench-verl lint format clean env-trl

help: ## Say what there is
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: env-trl ## Train with GRPO and with SDPO on this machine and compare them (SEEDS=3 for means and spread)
	@$(TRL)/sdpo demo --seeds $(SEEDS)

demo-verl: ## GRPO and SDPO inside of verl: Ray, TransferQueue, FSDP2 on this CPU (RANKS=2 for two ranks)
	@$(PYTHON) scripts/environment.py verl
	@PYTHONPATH=tests/support .venvs/verl/bin/python -m verl_cpu.demo --ranks $(RANKS) --seed $(SEED)

demo-openrlhf: ## GRPO and SDPO inside of OpenRLHF: Ray, vLLM, DeepSpeed on this CPU (RANKS=2 for two ranks)
	@$(PYTHON) scripts/environment.py openrlhf
	@PYTHONPATH=tests/support .venvs/openrlhf/bin/python -m openrlhf_cpu.demo --ranks $(RANKS) --seed $(SEED)

test: lint test-trl test-verl test-openrlhf ## Lint, types, the examples in docstrings and documents, and every test of every host

test-trl: env-trl ## The core, the examples and the TRL adapter, on the newest TRL
	@$(PYTHON) scripts/browser.py
	@OMP_NUM_THREADS=1 $(TRL)/python $(RUNS_PYTEST) $(SIDE_BY_SIDE)
	@$(TRL)/python -m pytest $(DOC_EXAMPLES) $(addprefix --ignore=,$(SIDE_BY_SIDE) $(OTHER_HOSTS)) \
		tests sdpo_plugins adapters README.md docs

test-trl-oldest: ## What must hold on every supported TRL, on the oldest one
	@$(PYTHON) scripts/environment.py trl-oldest
	@.venvs/trl-oldest/bin/python -m pytest $(TRL_EVERYWHERE)

test-verl: ## The verl adapter's tests, on the newest verl
	@$(PYTHON) scripts/environment.py verl
	@OMP_NUM_THREADS=1 .venvs/verl/bin/python $(RUNS_PYTEST) tests/verl
	@.venvs/verl/bin/python -m pytest $(DOC_EXAMPLES) adapters/sdpo_verl docs/verl.md

test-verl-oldest: ## What must hold on every supported verl, on the oldest one
	@$(PYTHON) scripts/environment.py verl-oldest
	@OMP_NUM_THREADS=1 .venvs/verl-oldest/bin/python $(RUNS_PYTEST) $(VERL_EVERYWHERE)

test-openrlhf: ## The OpenRLHF adapter's tests, on the newest OpenRLHF
	@$(PYTHON) scripts/environment.py openrlhf
	@OMP_NUM_THREADS=1 .venvs/openrlhf/bin/python $(RUNS_PYTEST) tests/openrlhf
	@PYTHONPATH=tests/support/openrlhf_cpu/site:tests/support .venvs/openrlhf/bin/python -m pytest $(DOC_EXAMPLES) \
		adapters/sdpo_openrlhf docs/openrlhf.md

test-openrlhf-matrix: ## What must hold on every supported OpenRLHF, on those before the newest (OPENRLHF_BEFORE=0.10.4 for one)
	@for version in $(OPENRLHF_BEFORE); do \
		echo "OpenRLHF $$version"; \
		$(PYTHON) scripts/environment.py openrlhf-$$version && \
		OMP_NUM_THREADS=1 .venvs/openrlhf-$$version/bin/python $(RUNS_PYTEST) $(OPENRLHF_EVERYWHERE) || exit 1; \
	done

test-fast: env-trl ## The core's quick tests only
	@OMP_NUM_THREADS=1 $(TRL)/python $(RUNS_PYTEST) -m "not slow" tests/core

docs: env-trl ## The documentation in build/docs/html; a warning is an error, and nothing is fetched
	@$(TRL)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky -c docs -d build/docs/doctrees . build/docs/html
	@echo "build/docs/html/index.html"

bench: env-trl ## Memory and time of the loss and of a step, beside other implementations (BENCH=--quick for a try)
	@$(TRL)/python -m benchmarks $(BENCH)

bench-verl: ## Time and memory of SDPO beside GRPO inside of verl (BENCH=--quick for a try)
	@$(PYTHON) scripts/environment.py verl
	@.venvs/verl/bin/python -m benchmarks.verl $(BENCH)

lint: env-trl ## Style and types
	@echo "ruff" && $(TRL)/ruff check . && $(TRL)/ruff format --check .
	@echo "mypy" && $(TRL)/mypy

format: env-trl ## Put the code in order
	@$(TRL)/ruff format --quiet . && $(TRL)/ruff check --quiet --fix .

env-trl: ## Make the TRL environment
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or say where it is: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) scripts/environment.py trl

clean: ## Remove environments, caches and builds; runs/ stays
	@rm -rf .venvs build dist .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
