# `make demo` and `make test` make their environment themselves; the first time takes a few minutes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test format clean

demo: $(READY)
	@$(BIN)/paretune demo $(if $(SEED),--seed $(SEED))

test: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports > .venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

format: $(READY)
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

clean:
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist

# One environment for both, at the exact versions of constraints.txt; made anew when what it is made of changes.
$(READY): pyproject.toml constraints.txt
	@echo "making .venv (once, a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paretune needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Longer proofs, run by hand: docs/results/ holds what they said, with command and date.
.PHONY: proof-demo proof-real
proof-demo: $(READY)
	@$(BIN)/python proofs/demo.py $(SEEDS)

proof-real: $(READY)
	@$(BIN)/paretune run recipes/real-small.yaml data.root=../shared/data policy.path=../shared/models/dialogue-7m

# Ours against its peers, in an environment of its own: make bench WORKLOADS="dialogue short" DTYPES=float32 RUNS=5
BENCH := .venv-bench/.ready
.PHONY: bench
bench: $(BENCH)
	@.venv-bench/bin/python -m bench $(if $(WORKLOADS),--workloads $(WORKLOADS)) $(if $(DTYPES),--dtypes $(DTYPES)) \
		$(if $(RUNS),--runs $(RUNS))

$(BENCH): pyproject.toml constraints.txt
	@echo "making .venv-bench (once, a few minutes)"
	@$(PYTHON) -m venv --clear .venv-bench
	@.venv-bench/bin/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@
