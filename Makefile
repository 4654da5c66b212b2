# make help lists what there is. Everything runs in .venv, which `make setup` makes and the others call for.

SECONDS ?= 600
PYTHON ?= python3.11 python3.12 python3.13 python3
BIN := .venv/bin
READY := .venv/.ready
UNAVAILABLE := 69# exit status of a benchmark whose extra is not installed: the others go on

.PHONY: help setup demo test check bench faults clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 16

setup: $(READY)  ## .venv with everything in it; quick the second time
	@echo "Ready in .venv: $$($(BIN)/streamproc --version)" >&2

demo: $(READY)  ## a real Kafka, a recorded feed, standing questions: make demo ARGS="--records 500 --json"
	@$(BIN)/streamproc demo $(ARGS)

test: $(READY)  ## all tests, two files at a time, on a real Kafka: make test ARGS="tests/unit -x"
	@$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(READY)  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(READY)  ## every benchmark; the last line of each is JSON
	@for file in benchmarks/bench_*.py; do \
	  echo "$$file"; $(BIN)/python -P "$$file" $(ARGS) || [ $$? -eq $(UNAVAILABLE) ] || exit 1; \
	done

faults: $(READY)  ## faults of every kind until the time is over: make faults SECONDS=1800 ARGS="--only T1,T3"
	@PYTHONPATH=tests/support:tests/faults $(BIN)/python -P -m harness --seconds $(SECONDS) $(ARGS)

clean:  ## remove .venv and all caches
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

$(READY): pyproject.toml constraints.txt setup.py $(wildcard streamproc/engine/cpu/*.cpp streamproc/engine/cpu/*.h)
	@python=; for name in $(PYTHON); do \
	  if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: Python 3.11 or newer is needed, none found as: $(PYTHON); try make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	[ -x $(BIN)/pip ] || $$python -m venv .venv; \
	if ! $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  echo "Installing into .venv: a large download (torch and its CUDA libraries; 5 GB on disk), some minutes ..." >&2; \
	else \
	  echo "Bringing .venv up to date ..." >&2; \
	fi
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]'
	@touch $@
