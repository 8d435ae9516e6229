# Everything needs python3 (3.11 or newer) with venv, and make; the rest is installed into .venv on first use.
ARGS ?=
PYTHON ?= python3

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@

train: .venv/installed  ## train; ARGS="agent=dqn env=atari/pong" changes what
	.venv/bin/python train.py $(ARGS)

test: .venv/installed  ## the fast tests
	.venv/bin/python -m pytest $(ARGS)

test-slow: .venv/installed  ## full matrices, kill tests, learning to a threshold
	.venv/bin/python -m pytest -m slow $(ARGS)

check: .venv/installed  ## format, lint, types, tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest

doctor: .venv/installed  ## can this machine run it, and how long would it take? ARGS as for train
	.venv/bin/python -m core.doctor $(ARGS)

bench: .venv/installed  ## updates, loops and draws beside the bare limit and peers; ARGS="parts=sac"
	.venv/bin/python -m benchmarks.speed $(ARGS)

bench-gpu: .venv/installed  ## on a GPU, in nine minutes: is it right, and how fast? ARGS="device=cpu" is the dry run
	.venv/bin/python -m benchmarks.gpu $(ARGS)

findings: .venv/installed  ## docs/findings.md from the kept numbers
	.venv/bin/python -m benchmarks.findings

findings-runs: .venv/installed  ## run every claim's ablation anew, an hour on two cores, and keep the numbers
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.findings run $(ARGS)

.PHONY: train test test-slow check doctor bench bench-gpu findings findings-runs
