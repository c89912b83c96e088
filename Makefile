# A fresh machine needs git, make and Python 3.11: `make demo` and `make test` do the rest.
.DEFAULT_GOAL := help
.PHONY: help venv demo test check lint types drill bench tree lock clean
BIN := .venv/bin

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

venv: ## make .venv from requirements.lock and install this checkout into it
	@bash .ci/venv.sh $@

demo: venv ## the whole job on this machine, its node killed twice, compared with an undisturbed run
	$(BIN)/alpaca-jobs drill alpaca_jobs/examples/demo.yaml --kills 2

test: venv ## the whole test suite: two or three tests at a time, then the cloud in a box (ARGS picks some)
	@bash .ci/s3_servers.sh
	@bash .ci/tests.sh $(ARGS)

check: venv lint types ## what to run before a commit: lint, types, the tests that need one process (2 to 3 minutes)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not process and not cloud" $(ARGS)

lint: venv ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## mypy --strict over the four rooms
	$(BIN)/mypy

drill: venv ## the long drill: 20 kills over 4 seeds, each result compared bit for bit (about half an hour)
	$(BIN)/python .ci/drill.py $(ARGS)

bench: venv ## the programs behind docs/BENCHMARKS.md, one after the other
	for program in benchmarks/*.py; do echo "== $$program"; $(BIN)/python $$program $(ARGS) && continue; \
	  [ $$? = 2 ] && [ $$program = benchmarks/training_gpu.py ] && echo "left out, as it says above" || exit 1; done

tree: venv ## bring the tree of files in README.md up to date
	$(BIN)/python .ci/tree.py

lock: venv ## write requirements.lock from pyproject.toml (ARGS=--upgrade moves the pins)
	bash .ci/lock.sh $(ARGS)

clean: ## remove caches and build results; runs and .venv stay
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
