# The commands of everyday work; `make help` lists them. Flags go in ARGS:
#   make train ARGS="--train.epochs 2 --name first"
SHELL := /bin/bash
BIN := .venv/bin
RECIPE ?= quickstart
ARGS ?=

# Data sets that lie next to the checkout save the download.
ifneq ($(wildcard ../shared/data/.),)
export DIST_TRAIN_DATA ?= $(shell cd ../shared/data && pwd)
endif

.PHONY: help setup train test soak gpu slurm lint clean
.DEFAULT_GOAL := help

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 14

setup: ## make .venv with everything in it (once: a minute; then: at once)
	@launch/setup.sh

train: setup ## train RECIPE (quickstart) on this machine; without data, on the built-in shapes
	@$(BIN)/dist-train show $(RECIPE) $(ARGS) > /dev/null
	@status=0; $(BIN)/dist-train prepare $(RECIPE) $(ARGS) || status=$$?; \
	case $$status in \
	0) dataset= ;; \
	2) $(if $(or $(findstring --data.root,$(ARGS)),$(findstring --data.dataset,$(ARGS))),exit 2;) \
		echo "make: no data for $(RECIPE), so this trains on the built-in shapes instead"; \
		dataset="--data.dataset shapes" ;; \
	*) exit $$status ;; \
	esac; \
	set -x; exec $(BIN)/accelerate launch --config_file launch/one_process.yaml \
		dist_train/main.py $(RECIPE) $(ARGS) $$dataset

lint: setup ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Most tests are about the CPU, also where there is a GPU.
test: lint ## style, types and the tests that take seconds
	CUDA_VISIBLE_DEVICES= $(BIN)/pytest -m "not slow and not gpu" -n 2 --dist loadfile $(ARGS)

soak: setup ## the tests that take minutes (pytest ends with 5 when there are none)
	CUDA_VISIBLE_DEVICES= $(BIN)/pytest -m "slow and not slurm and not gpu" -n 2 --timeout 1800 \
		--durations 10 $(ARGS) || [ $$? = 5 ]

gpu: setup ## what only a GPU can show
	$(BIN)/pytest -m gpu --timeout 1800 $(ARGS)

slurm: setup ## everything about SLURM, on a cluster of two nodes that is started for it (root)
	$(BIN)/pytest -m slurm --timeout 1800 $(ARGS)

clean: ## remove what tools leave behind; keeps .venv, data and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find dist_train tests slurm docs -name __pycache__ -prune -exec rm -rf {} +
