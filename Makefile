# `make demo` and `make test` need nothing but Python 3.11 or later: they set up .venv first.

PYTHON ?= $(shell for name in python3.11 python3; do \
	if "$$name" -c '' >/dev/null 2>&1; then echo "$$name"; break; fi; done)
VENV := .venv
SOLVE := .venv-solve
OLDEST := .venv-oldest
AUDIT := .venv-audit
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTABLE := $(VENV)/.testable
ENGINES := $(VENV)/engines
PACKAGES_mlx := "mlx[cpu]" mlx-lm

# What the demo's page of Llama-3.1-70B shows.
SHOWN := tps-6000.yaml tps-9568.yaml nemotron-51b.yaml nemotron-49b.yaml
SCENARIOS := 128/1024 128/128 2048/128 2048/2048

# Measured inside llama.cpp, for the picture of SmolLM2-135M's child.
SMOLLM2 := profiles/amd-epyc-avx2-2-threads/smollm2-135m-llama.cpp-q8_0

.DEFAULT_GOAL := help
.PHONY: help setup demo images test test-all test-engines test-oldest test-solve fuzz audit lock lint format clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with the tested versions; again only when those change.

$(READY): pyproject.toml constraints.txt
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "puzzle-search needs Python 3.11 or later; '$(PYTHON)' is not." >&2; \
		echo "Install one and name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
		exit 2; \
	fi
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,plots,report]'
	@touch $@

$(TESTABLE): $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
		-e '.[data,eval,gguf,ray,serve]' tensorboard xllamacpp
	@touch $@

demo: $(READY) ## Find a child for one H100 in seconds, make one of a small model here, write a page of each.
	$(BIN)/puzzle-search solve --gpu h100 --target-tps 6000
	$(BIN)/puzzle-search run examples/stdlib-lm/recipe.yaml
	$(BIN)/puzzle-search frontier runs/stdlib-lm --to speedup=4 --points 30 \
		--out runs/stdlib-lm/frontier
	$(BIN)/puzzle-search frontier --gpu h100 --tp any --points 40 --out runs/llama-3.1-70b/frontier
	@echo "The child of the small model beside its parent:"
	@$(BIN)/puzzle-search report runs/stdlib-lm runs/stdlib-lm/frontier \
		--out runs/stdlib-lm/report.html
	@echo "Children of Llama-3.1-70B on one H100, published ones among them:"
	@$(BIN)/puzzle-search report $(addprefix examples/llama-3.1-70b/children/,$(SHOWN)) \
		runs/llama-3.1-70b/frontier --tp any $(addprefix --scenario ,$(SCENARIOS)) \
		--out runs/llama-3.1-70b/report.html

images: ## Draw the pictures of the README anew, from the frontier that `make demo` wrote.
	$(BIN)/puzzle-search plot frontier $(addprefix examples/llama-3.1-70b/children/,$(SHOWN)) \
		runs/llama-3.1-70b/frontier --tp any --out docs/images/frontier.png
	$(BIN)/puzzle-search plot layers examples/llama-3.1-70b/children/tps-9568.yaml --tp any \
		--out docs/images/layers.png
	$(BIN)/puzzle-search solve --model smollm2-135m --gpu $(SMOLLM2) --scenario 128/128 --concurrency 1 \
		--target-speedup 1.5 --portable llama.cpp --out runs/smollm2-135m-1.5x.yaml
	$(BIN)/puzzle-search plot layers runs/smollm2-135m-1.5x.yaml --model smollm2-135m \
		--gpu $(SMOLLM2) --scenario 128/128 --concurrency 1 --out docs/images/smollm2-layers.png

# One thread a process: more threads than processors wait for each other without end.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

test: $(TESTABLE) lint ## Lint, check types, run the tests but the slow ones: ten minutes on 2 cores.
	$(TEST) -m "not slow"

test-all: $(TESTABLE) lint ## The same with the slow tests and more random examples, as at night.
	$(TEST) --hypothesis-profile thorough

test-oldest: ## The tests on the oldest versions that pyproject.toml allows, in an environment of its own.
	"$(PYTHON)" -m venv --clear $(OLDEST)
	$(OLDEST)/bin/pip install -q --disable-pip-version-check -c constraints-oldest.txt -e '.[test,plots]'
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow"

test-solve: ## Ask questions where torch is not installed, in an environment made for that.
	"$(PYTHON)" -m venv --clear $(SOLVE)
	$(SOLVE)/bin/pip install -q --disable-pip-version-check -c constraints.txt -r requirements-solve.txt
	$(SOLVE)/bin/pip install -q --disable-pip-version-check --no-deps .
	rm -rf $(SOLVE)/answers && mkdir $(SOLVE)/answers
	$(SOLVE)/bin/python tests/cli/ask.py $(SOLVE)/answers
	$(SOLVE)/bin/puzzle-search solve --gpu h100 --target-tps 6000
	@du -sh $(SOLVE)

fuzz: $(TESTABLE) ## Change valid files of every reader, INPUTS times each: nothing may break.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs $(or $(INPUTS),2000)

# Each engine in an environment of its own: they pin what this package does not.
$(ENGINES)/%/.ready: constraints.txt
	"$(PYTHON)" -m venv $(@D)
	$(@D)/bin/pip install --disable-pip-version-check -c constraints.txt $(PACKAGES_$*)
	@touch $@

test-engines: $(TESTABLE) $(ENGINES)/mlx/.ready ## Run exported children in llama.cpp and mlx-lm.
	PUZZLE_SEARCH_MLX_PYTHON=$(ENGINES)/mlx/bin/python OMP_NUM_THREADS=1 $(BIN)/pytest -m engines

audit: ## Look for known weaknesses in the tested versions, and for dangerous calls in the code.
	"$(PYTHON)" -m venv $(AUDIT)
	$(AUDIT)/bin/pip install -q --disable-pip-version-check -c constraints.txt bandit pip-audit
	$(AUDIT)/bin/bandit -q -c pyproject.toml -r puzzle_search
	$(AUDIT)/bin/pip-audit --strict --disable-pip -r constraints-hashed.txt

lock: ## Pin every package by its hash in constraints-hashed.txt, as constraints.txt says.
	"$(PYTHON)" -m venv $(AUDIT)
	$(AUDIT)/bin/pip install -q --disable-pip-version-check -c constraints.txt uv
	$(AUDIT)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --no-emit-index-url -c constraints.txt pyproject.toml -o constraints-hashed.txt

lint: $(READY) ## Check style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Format, and mend what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv, caches and built packages; runs stay.
	rm -rf $(VENV) $(SOLVE) $(OLDEST) $(AUDIT) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
