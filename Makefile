# `make demo` and `make test` make the virtual environment themselves; nothing else is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Many tests wait for processes that start or for time to pass: two at once take little more than half.
TEST_WORKERS ?= 2
ROOMS := controlplane dataplane kernels storage protos/chorale tests benchmarks examples
PROTOS := $(wildcard protos/chorale/v1/*.proto)

.PHONY: setup demo up test verify fmt lint types proto proto-check bench gpu-check gpu-sanitize gpu-bench gpu-wheels \
	clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## the virtual environment with everything in it

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## every part on this machine; all demo adapters answer one prompt at once
	$(BIN)/python -m examples.demo.run

up: $(STAMP) ## serve the demo model on 127.0.0.1:50051 (gRPC) and :8000 (HTTP)
	$(BIN)/chorale up

# Some tests start whole deployments, which a busy machine can stall: what failed beside other tests is
# asked once more, alone, and shown both times. Only 1 means that all tests ran and some failed.
TESTS := -m "not gpu and not slow"
test: $(STAMP) ## all tests that need no GPU
	@rm -f .pytest_cache/v/cache/lastfailed
	$(BIN)/python -m pytest $(TESTS) -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder || \
		{ test $$? -eq 1 && echo "== what failed, alone ==" && \
		$(BIN)/python -m pytest $(TESTS) --last-failed --last-failed-no-failures none; }

verify: lint types proto-check test ## what CI runs

fmt: $(STAMP) ## format and sort
	$(BIN)/ruff check --fix --quiet $(ROOMS)
	$(BIN)/ruff format --quiet $(ROOMS)

lint: $(STAMP) ## style and the rule of who may import whom
	$(BIN)/ruff check $(ROOMS)
	$(BIN)/ruff format --check $(ROOMS)
	PYTHONPATH=.:protos $(BIN)/lint-imports --no-cache

types: $(STAMP) ## static types
	$(BIN)/basedpyright --level error

proto: $(STAMP) ## regenerate the stubs beside the .proto files
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos \
		--grpc_python_out=protos $(PROTOS)

proto-check: $(STAMP) ## fails when the committed stubs are stale
	$(BIN)/python tests/helpers/stale_stubs.py

bench: $(STAMP) ## engine throughput on this machine: base only and mixed adapters, in one run
	$(BIN)/python -m benchmarks.engine

# On a GPU machine these run from the source tree with its own packages: PYTHON is used as it is.
# GPU_OPTIONS go to the program behind the target; see docs/benchmarks.md.
GPU_OPTIONS ?=
GPU_PYTHON ?= 3.12
# pip takes a wheel only by the very platform that it names.
GPU_PLATFORMS := manylinux2014_x86_64 $(foreach n,17 24 26 27 28 31 34 35,manylinux_2_$(n)_x86_64)

gpu-check: ## kernels against their twins, and the engine against float32, on the real device
	PYTHONPATH=.:protos:$(PYTHONPATH) $(PYTHON) -m benchmarks.gpu.check $(GPU_OPTIONS)

gpu-sanitize: ## the LoRA and attention kernels' tests under compute-sanitizer's memcheck
	PYTHONPATH=.:protos:$(PYTHONPATH) $(PYTHON) -m benchmarks.gpu.check --memcheck $(GPU_OPTIONS)

gpu-bench: ## whole models on a GPU, in parts that a second run goes on with
	PYTHONPATH=.:protos:$(PYTHONPATH) $(PYTHON) -m benchmarks.gpu $(GPU_OPTIONS)

gpu-wheels: ## wheels for a GPU machine without network, in .whl/
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
		--python-version $(GPU_PYTHON) $(addprefix --platform ,$(GPU_PLATFORMS)) \
		--dest .whl --requirement benchmarks/gpu/wheels.txt

clean: ## everything that make made
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
