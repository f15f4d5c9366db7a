# Trivium's commands. `make setup` once; every other target does it when needed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LM_EVAL := .venv-lm-eval
LIVECODEBENCH := .venv-livecodebench
INSPECT := .venv-inspect
SMOLLM2 := .venv-smollm2
VLLM := .venv-vllm
LLAMA_CPP := .venv-llama-cpp

PACKAGES := core_model recipes eval pretrain sft rl distill benchmarks
# Device names belong in one file; everybody else is handed a device.
DEVICE_FILE  := core_model/parallel/device.py
DEVICE_NAMES := torch\.(cuda|npu|mps|xpu|hip)\b|["'](cuda|npu|mps|xpu|hip)(:[0-9]+)?["']

.DEFAULT_GOAL := help
.PHONY: help setup bubblewrap nano test lint bench claims soak interop clean

help:  ## say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 18

setup: $(STAMP)  ## make .venv and install everything

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make setup: Python 3.11 or newer is needed, found $$($(PYTHON) -V 2>/dev/null || echo "no $(PYTHON)"); try: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory bubblewrap
	@echo 'installing Trivium and its libraries into $(VENV) (some minutes the first time)'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	@touch $@

# Programs that a model wrote run inside bubblewrap; without it they are refused.
bubblewrap:
	@if command -v bwrap >/dev/null; then :; \
	elif [ "$$(uname)" != Linux ]; then echo 'no sandbox: the judge needs Linux; all else works' >&2; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo 'installing bubblewrap, the sandbox of judged programs'; \
	  { apt-get install -y -qq bubblewrap libseccomp2 || { apt-get update -qq && apt-get install -y -qq bubblewrap libseccomp2; }; } >/dev/null 2>&1 || \
	  echo 'bubblewrap could not be installed: programs that a model wrote will be refused (isolation level 3)' >&2; \
	else echo 'bubblewrap is missing: programs that a model wrote will be refused (isolation level 2); install it: sudo apt-get install bubblewrap' >&2; fi

nano: $(STAMP)  ## the whole pipeline on a nano V3: pre-train, extend, distil, tune, reinforce, evaluate
	$(BIN)/trivium run recipes/nano/pipeline.yaml

test: $(STAMP)  ## everything that must hold at every landing
	$(BIN)/python -m pytest -n 2 tests

lint: $(STAMP)  ## style, types, who imports whom, device names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@found=$$(grep -rnE --include='*.py' "$(subst ",\",$(DEVICE_NAMES))" $(PACKAGES) | grep -v '^$(DEVICE_FILE):'); \
	  if [ -n "$$found" ]; then echo "$$found"; echo "device names belong in $(DEVICE_FILE) only" >&2; exit 1; fi

bench: $(STAMP)  ## side-by-side measures against peers
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r tests/interop/livecodebench.txt
	$(BIN)/python -m benchmarks

claims: nano  ## the claims at small scale, each against its control (about an hour more)
	$(BIN)/trivium run recipes/nano/claims.yaml

soak: nano  ## SIGKILL in every stage of make nano and in the judge, the judge under load and under attack (docs/soak.md)
	$(BIN)/python tests/soak/kill_stages.py recipes/nano/pipeline.yaml
	$(BIN)/python tests/soak/kill_judge.py
	$(BIN)/python tests/soak/kill_eval.py
	$(BIN)/python tests/soak/judge_load.py
	$(BIN)/python tests/attacks/suite.py --all --check docs/attacks.md

interop: $(STAMP) $(LM_EVAL)/.installed $(LIVECODEBENCH)/.installed $(INSPECT)/.installed $(SMOLLM2)/.installed $(VLLM)/.installed $(LLAMA_CPP)/.installed  ## outside programs, in environments of their own, on our folders and server (docs/interop.md)
	$(BIN)/python -m tests.interop.exported_folders $(VLLM)/bin/python $(LLAMA_CPP)/bin/python $(LLAMA_CPP)/sources/vendor/llama.cpp
	$(BIN)/python tests/interop/lm_eval_server.py $(LM_EVAL)/bin/python
	$(BIN)/python tests/interop/lm_eval_adapter.py $(LM_EVAL)/bin/python
	$(BIN)/python tests/interop/exporters.py $(LIVECODEBENCH)/bin/python $(LM_EVAL)/bin/python $(INSPECT)/bin/python
	$(BIN)/python tests/interop/smollm2.py $(SMOLLM2)

$(LIVECODEBENCH)/.installed: tests/interop/exporters_livecodebench.txt tests/interop/livecodebench.txt
	$(PYTHON) -m venv $(LIVECODEBENCH)
	$(LIVECODEBENCH)/bin/python -m pip install --disable-pip-version-check --quiet -r tests/interop/exporters_livecodebench.txt
	$(LIVECODEBENCH)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -r tests/interop/livecodebench.txt
	@touch $@

$(INSPECT)/.installed: tests/interop/exporters_inspect.txt
	$(PYTHON) -m venv $(INSPECT)
	@echo 'installing inspect into $(INSPECT)'
	$(INSPECT)/bin/python -m pip install --disable-pip-version-check --quiet -r $<
	@touch $@

$(LM_EVAL)/.installed: tests/interop/lm_eval.txt
	$(PYTHON) -m venv $(LM_EVAL)
	@echo 'installing lm-eval into $(LM_EVAL)'
	$(LM_EVAL)/bin/python -m pip install --disable-pip-version-check --quiet -r $<
	@touch $@

$(VLLM)/.installed: tests/interop/vllm.txt
	$(PYTHON) -m venv $(VLLM)
	@echo 'installing vLLM into $(VLLM) (3.4 GB)'
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet -r $<
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(LLAMA_CPP)/.installed: tests/interop/llama_cpp.txt
	$(PYTHON) -m venv $(LLAMA_CPP)
	@echo 'building llama.cpp in $(LLAMA_CPP) (ten minutes on two cores)'
	rm -rf $(LLAMA_CPP)/sources $(LLAMA_CPP)/*.tar.gz
	$(LLAMA_CPP)/bin/python -m pip download --disable-pip-version-check --quiet --no-deps --no-binary :all: --dest $(LLAMA_CPP) -r $<
	mkdir -p $(LLAMA_CPP)/sources
	tar -xzf $(LLAMA_CPP)/llama_cpp_python-*.tar.gz -C $(LLAMA_CPP)/sources --strip-components 1
	$(LLAMA_CPP)/bin/python -m pip install --disable-pip-version-check --quiet ./$(LLAMA_CPP)/sources
	@touch $@

# Not an environment: a folder that the script adds to the path of ours.
$(SMOLLM2)/.installed: tests/interop/smollm2.txt
	@echo 'fetching SmolLM2 into $(SMOLLM2)'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(SMOLLM2) -r $<
	@touch $@

clean:  ## remove caches and build leftovers; runs and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
