# Every target sets up .venv by itself. Other Python: make test PYTHON=python3.12
PYTHON ?= python3
PROMPT ?= a fox in the snow
# On Linux one tested version; elsewhere whatever pip finds. Another one: make demo TORCH=torch==2.12.1
TORCH ?= $(if $(filter Linux,$(shell uname -s)),torch==2.13.0,torch)

BIN := .venv/bin
CLI := .venv/.installed-cli
ALL := .venv/.installed-all
# Two workers of one thread each (more threads than cores are many times slower), each with a run of neighbours, which
# share fixtures and servers.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-slow test-unit lint comfyui clean

demo: $(CLI)
	$(BIN)/python -m text2layer_core "$(PROMPT)" --out demo

test: $(ALL)
	$(PYTEST) -m "not slow"

test-slow: $(ALL)
	$(PYTEST) -m slow

test-unit: $(ALL)
	$(PYTEST) tests/core tests/train tests/nodes -m "not (slow or gpu or comfy or browser)"

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

comfyui:
	$(PYTHON) -m scripts.comfyui

clean:
	rm -rf .venv .pytest_cache .ruff_cache build dist demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.torch: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	touch $@

$(CLI): .venv/.torch
	$(BIN)/python -m pip install --quiet --editable ".[cli]"
	touch $@

$(ALL): .venv/.torch
	$(BIN)/python -m pip install --quiet --editable ".[cli,train,synthesis,dev]"
	$(BIN)/python -c "import rembg"  # its pymatting compiles itself at the first import, a minute's work
	touch $@ $(CLI)
