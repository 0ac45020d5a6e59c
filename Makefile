# Two commands set everything up on a fresh machine: `make demo` and `make test`. Both make .venv,
# and make it again when setup.cfg changes; otherwise they start at once and need no network.
#
#   PYTHON  the interpreter that .venv is made with
#   TORCH   the torch to train with. Any CPU or CUDA build of 2.6 or later will do: for a small CPU
#           one, set PIP_EXTRA_INDEX_URL to the index of CPU wheels that pytorch.org names.
#           To change it or PYTHON later, `make clean` first.
#   JOBS    test files that run side by side; each keeps to one core, more or less
#   ARGS    further arguments for pytest, or for the demo
PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq --retries 5
# Two threads against one change the bits of a sum: a test must not depend on the machine's cores.
# Tests start hundreds of processes: each would compile the kit anew where bytecode is not written.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg PYTHONDONTWRITEBYTECODE=
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest --color=no -q
# By files and classes, so that what one sets up is set up once; the longest first.
SIDE_BY_SIDE := -n $(JOBS) --dist loadscope --no-loadscope-reorder

.PHONY: help demo test slow soak gpu check mutate format bench bench-gpu notebook clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      three short sessions on this machine, from nothing to a finished run"
	@echo "make test      the quick tests            make slow   the slow ones"
	@echo "make check     ruff and mypy              make soak   those that take very long"
	@echo "make bench     every benchmark            make gpu    those that need a CUDA device"
	@echo "make mutate    what the quick tests would not notice, of 120 small changes"
	@echo "make bench-gpu the training step on a GPU; on all of them together where there are several"
	@echo "make notebook  the .ipynb from its .py    make format, make clean"

# torch goes first and by itself, so that the choice of its build stays with TORCH.
$(STAMP): setup.cfg pyproject.toml
	@echo "setting up $(VENV) ..."
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade "pip>=24" "setuptools>=77" wheel
	@$(PIP) install "$(TORCH)"
	@$(PIP) install --editable ".[dev]" "$(TORCH)"
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/mapsage-kaggle demo $(ARGS)

test: $(STAMP)
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not soak and not gpu" $(ARGS)

slow: $(STAMP)
	$(PYTEST) $(SIDE_BY_SIDE) -m "slow and not soak and not gpu" --durations=10 $(ARGS)

soak: $(STAMP)
	$(PYTEST) -m soak --timeout=0 $(ARGS) || [ $$? -eq 5 ]  # 5: there is none

gpu: $(STAMP)
	$(PYTEST) -m gpu $(ARGS) || [ $$? -eq 5 ]

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

mutate: $(STAMP)
	$(BIN)/python tests/mutate.py --jobs $(JOBS) $(ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

bench: $(STAMP)
	@set -e; for file in tests/benchmarks/bench_*.py; do \
		test -e "$$file" || { echo "no benchmarks in tests/benchmarks"; break; }; \
		echo "== $$file"; OMP_NUM_THREADS=1 $(BIN)/python "$$file"; \
	done

# Memory formats and compiling are measured beside it: they are off, and this says where they would pay.
bench-gpu: $(STAMP)
	@num=$$($(BIN)/python -c "import torch; print(torch.cuda.device_count())"); \
	test "$$num" -gt 0 || { echo "torch sees no GPU here"; exit 1; }; set -ex; \
	$(BIN)/python tests/benchmarks/bench_step.py --profile; \
	$(BIN)/python tests/benchmarks/bench_step.py --variants; \
	test "$$num" -lt 2 || $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node "$$num" \
		tests/benchmarks/bench_step.py

notebook: $(STAMP)
	@$(BIN)/python notebooks/generate.py

clean:
	rm -rf $(VENV) build dist demo out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
