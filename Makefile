# Two commands do everything: `make serve` and `make test`. Both install what is missing into .venv first.
.DEFAULT_GOAL := help
.PHONY: help install serve vllm test check hooks bench diagrams extras clients cluster-test train-test vllm-test dvc-test fuzz clean pull-local pull-s3 push ingest ingest-clear stats train train-hf loop-demo mlflow

PYTHON ?= python3
CONFIG ?= serve_config.yaml
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
TORCH := torch==2.13.0
LLAMA := llama-cpp-python==0.3.36
# Which build of PyTorch: as the GPU driver says; cpu, cu128 and the like; nothing for the package index's own.
TORCH_BACKEND ?= auto

# Where pip is told to look for wheels, uv looks too. It installs here, whatever environment is active.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Compiled once here, not at every start (nor never, where PYTHONDONTWRITEBYTECODE is set).
export UV_COMPILE_BYTECODE := 1
export UV_PROJECT_ENVIRONMENT := $(VENV)
# llama.cpp is compiled for the CPU it is installed on. Its AMX code crashes when gcc 12 compiles it (llama.cpp#20824),
# so that alone is left out; everything else that the CPU has is used.
ifeq ($(shell uname -m),x86_64)
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS=-mno-amx-tile -DCMAKE_CXX_FLAGS=-mno-amx-tile
else
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF
endif

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/serving ## install what is missing, start Ray and the graph, answer on 127.0.0.1:11434
	@$(BIN)/mindfu serve $(CONFIG)

vllm: $(VENV)/vllm ## the same on vLLM, which it installs: profiles/vllm.yaml, or CONFIG=profiles/vllm-awq.yaml
	@$(BIN)/mindfu serve $(if $(filter serve_config.yaml,$(CONFIG)),profiles/vllm.yaml,$(CONFIG))

test: $(VENV)/testing ## install what is missing, lint, type-check, run every test
	@$(MAKE) --no-print-directory check
	@echo "== tests" && $(BIN)/pytest
	@echo "== all green"

check: $(VENV)/testing ## format, lint and types only
	@echo "== format" && $(BIN)/ruff format --check .
	@echo "== lint" && $(BIN)/ruff check .
	@echo "== types" && $(BIN)/mypy
	@echo "== configuration" && MINDFU_API_KEY=checked $(BIN)/mindfu check serve_config.yaml profiles/*.yaml \
		docker/*.yaml cluster/serve.yaml cluster.yaml cluster/gcp.yaml cluster/hosts.yaml

hooks: $(VENV)/testing ## have git check format, lint, types, YAML, TOML and secrets before each commit
	@$(BIN)/pre-commit install

bench: $(VENV)/testing ## the serving benchmark; others are in benchmarks/
	@$(BIN)/python -m benchmarks.serving

clients: $(VENV)/testing ## install real clients (Claude CLI, Codex, Vibe, SDKs) into a cache, and run them against a server
	-@$(BIN)/python -m tests.clients.install
	@$(BIN)/pytest -m clients tests/clients

cluster-test: $(VENV)/testing ## several machines in namespaces (root, sshd, rsync): from zero, and nodes lost under load
	@$(BIN)/pytest -m cluster -s tests/cluster

train-test: $(VENV)/testing ## a run from an upload to an adapter that answers, in a running server; a killed worker (3 minutes)
	@$(BIN)/pytest -m training tests/integration/test_tune.py tests/acceptance/test_training.py

# Exit status 3 of the installer: this build of vLLM cannot be had here.
vllm-test: $(VENV)/testing ## what every engine owes, on real vLLM for CPUs (beside .venv; skipped where it cannot be had)
	@$(BIN)/python -m tests.on_vllm.install $(VENV)-vllm; case $$? in \
	0) HF_HUB_OFFLINE=1 $(VENV)-vllm/bin/python -m pytest -m vllm -W default tests/integration/test_engine_contract.py tests/on_vllm ;; \
	3) ;; *) exit 1 ;; esac

dvc-test: $(VENV)/testing ## what dvc.yaml promises, on DVC in an environment of its own (beside .venv)
	@test -x $(VENV)-dvc/bin/dvc || { $(UV) venv --quiet --clear --python $(BIN)/python $(VENV)-dvc \
		&& $(UV) pip install --quiet --python $(VENV)-dvc/bin/python "dvc>=3.60"; }
	@PATH="$(CURDIR)/$(BIN):$(CURDIR)/$(VENV)-dvc/bin:$$PATH" $(BIN)/pytest tests/integration/test_dvc_repro.py

diagrams: $(VENV)/serving ## render docs/*.mmd to SVG; needs node and Chromium
	@$(BIN)/python docs/render.py

fuzz: $(VENV)/testing ## tests by example, with ten times as many that nobody has tried yet (15 minutes)
	@MINDFU_FUZZ=1 $(BIN)/pytest $$(grep -rlE "^@given" tests/unit tests/integration)

extras: $(VENV)/testing ## install each extra from the lock into an environment of its own, and import it: EXTRAS="s3 vllm"
	@$(BIN)/python -m tests.extras $(EXTRAS)

DATA ?= data

pull-local: $(VENV)/serving ## copy logs of conversations to data/: SRC=/path
	@$(BIN)/mindfu copy "$(SRC)" $(DATA)

pull-s3: $(VENV)/serving ## the same from S3: S3=s3://bucket/logs
	@$(BIN)/mindfu copy "$(S3)" $(DATA)

push: $(VENV)/serving ## copy data/ to S3=s3://bucket/logs
	@$(BIN)/mindfu copy $(DATA) "$(S3)"

ingest: $(VENV)/serving ## import the conversations in data/, for memory and training
	@$(BIN)/mindfu ingest-logs $(DATA)

ingest-clear: $(VENV)/serving ## forget what was imported, and import data/ anew
	@$(BIN)/mindfu ingest-logs --clear $(DATA)

stats: $(VENV)/serving ## how much there is: conversations, documents, memory, disk
	@$(BIN)/mindfu stats

train: $(VENV)/training ## learn from recorded conversations, and from data/: an adapter that can be promoted
	@$(BIN)/mindfu train --conversations $(if $(wildcard $(DATA)),--data $(DATA)) $(ARGS)

train-hf: $(VENV)/training ## learn from a data set of the Hugging Face Hub: DATASET=org/name
	@$(BIN)/mindfu train --dataset "$(DATASET)" $(ARGS)

loop-demo: $(VENV)/training ## the learning loop on real conversations, from corrections to a rollback: CHATS=FILE
	@$(BIN)/python -m train.loop_demo $(if $(CHATS),--chats "$(CHATS)") $(ARGS)

mlflow: $(VENV)/training ## MLflow's pages on http://127.0.0.1:5000
	@$(BIN)/mindfu mlflow

install: $(VENV)/serving ## only install

clean: ## remove the virtual environment (your data in .mindfu stays)
	rm -rf $(VENV)

$(UV):
	@echo "== making $(VENV)"
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), f"MindFu needs Python 3.11 to 3.13, this is {sys.version}"'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# PyTorch comes first and by itself: with wheels of your own, else the build that fits the GPU driver, else the CPU's.
$(VENV)/torch: $(UV)
	@echo "== installing $(TORCH)"
	@$(UV) pip install --quiet --python $(BIN)/python $(if $(UV_FIND_LINKS),,$(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND))) $(TORCH)
	@touch $@

# By pip, whose cache keeps the wheel it built: the next virtual environment takes it from there.
$(VENV)/llama: $(VENV)/torch
	@echo "== installing $(LLAMA) (the first time, llama.cpp is compiled for this CPU: about 7 minutes of two cores)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(LLAMA)
	@touch $@

SYNC = $(UV) sync --quiet --frozen --inexact --no-install-package torch --no-install-package llama-cpp-python

$(VENV)/serving: $(VENV)/llama pyproject.toml uv.lock
	@echo "== installing MindFu"
	@$(SYNC) --no-dev
	@touch $@

$(VENV)/training: $(VENV)/serving
	@echo "== installing what training needs"
	@$(SYNC) --no-dev --extra train
	@touch $@

# With PyTorch from the lock: vLLM is compiled against that build.
$(VENV)/vllm: $(VENV)/serving
	@echo "== installing vLLM for NVIDIA GPUs (gigabytes)"
	@$(UV) sync --quiet --frozen --inexact --no-install-package llama-cpp-python --no-dev --extra vllm
	@touch $@

$(VENV)/testing: $(VENV)/serving
	@echo "== installing the tests' tools"
	@$(SYNC)
	@touch $@
