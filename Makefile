# Each target does all its own set-up: a virtual environment in the checkout, everything from PyPI.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest/bin
NEXT := .venv-next/bin

# Images often forbid bytecode: each process of the suite would compile torch and timm anew, for 14 s of a slow core.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-release test-oldest test-next mutations lint bench sweep kernel-hub clean

demo: .venv/installed
	$(BIN)/tsm-triton demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Whole models under the compile backend, and what else takes long.
test-slow: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# The distributions: built, compared with the tree, installed into empty environments and tried outside of the checkout.
test-release: .venv/installed
	$(BIN)/python -m pytest -m slow tests/test_release.py

# The oldest torch we support, with the triton it brings: the suite, or some files of it, TESTS="tests/test_ops.py ...".
test-oldest: .venv-oldest/installed
	$(OLDEST)/python -m pytest -n 2 --dist worksteal $(TESTS)

# What the next torch and Triton break: pre-releases, where PyPI has any, else the newest. Looked up anew each time.
test-next:
	$(PYTHON) -m venv .venv-next
	$(NEXT)/python -m pip install --quiet uv
	$(NEXT)/uv pip install --quiet --upgrade --prerelease allow --python $(NEXT)/python --editable '.[test]'
	$(NEXT)/python -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
	$(NEXT)/python -m pytest -n 2 --dist worksteal

# Break the kernels and the patching on purpose: the check of tsm-triton verify that each names must find it within a
# minute on two idle cores; and without one all checks hold.
mutations: .venv/installed
	$(BIN)/python -m tests.mutations

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/installed
	$(BIN)/python -m benchmarks

# Patch and check every model of the installed timm and torchvision; goes on where it was stopped.
sweep: .venv/installed
	$(BIN)/python -m sweep

# The ops as a kernel of Hugging Face's hub, in build/kernel_hub.
kernel-hub: .venv/installed
	$(BIN)/python -m kernel_hub

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet uv
	$(OLDEST)/uv pip install --quiet --python $(OLDEST)/python --editable '.[test]' 'torch==2.11.*'
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-next
