# `make help` lists the targets. Everything is built once, in one profile, into target/ and .venv/.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport VIRTUAL_ENV PYTHONPATH
# The one pin of torch in the repository is in the wheel's dependencies.
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' python/client/pyproject.toml)
SERVER := target/release/trustformers-serve
WHEEL_SOURCES = $(shell find crates python/client -type f \( -name '*.rs' -o -name '*.toml' -o -name '*.py' -o -name '*.pyi' -o -name '*.cc' -o -name '*.md' -o -path '*/tinylm/*' \)) Cargo.lock

.PHONY: help serve test bench bench-llm bench-python fmt clean build models wheel lint check-rust check-python lock

help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: build models ## Build, and serve the built-in models on http://127.0.0.1:8000
	@exec $(SERVER)

test: lint check-rust check-python ## All checks
	@echo "all checks passed"

bench: build-bench models ## Load tests, beside the peers; tables here, JSON in .bench/results
	@python tests/bench/run.py all

bench-llm: build-bench ## Texts of a language model, beside llama.cpp (built here, once) and transformers
	@python tests/bench/run.py llm

bench-python: wheel ## Batching of Python functions, beside a bare hand-off, bare futures and Flyte; served, beside mosec and LitServe
	@python tests/bench/python_faces.py --json .bench/results/python_faces.json
	@python tests/bench/python_served.py

fmt: $(VENV)/.installed ## Format everything
	cargo fmt --all
	ruff format .
	ruff check --fix .

clean: ## Remove everything that was built or installed here
	rm -rf target $(VENV) .bench

build: $(VENV)/.installed
	@cargo build --release --package trustformers-serve

build-bench: $(VENV)/.installed
	@cargo build --release --package trustformers-serve --bin trustformers-serve --example echo --example decode_bench

wheel: target/wheels/.installed

lint: $(VENV)/.installed
	cargo fmt --all --check
	ruff format --check .
	ruff check .
	cargo clippy --release --workspace --all-targets -- -D warnings

check-rust: build models
	@cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest
	cargo nextest run --release --no-fail-fast

check-python: wheel build models
	pyright
	pytest tests/python

$(VENV)/.installed: python/requirements.txt python/client/pyproject.toml
	@echo "installing $(TORCH) and the pinned Python packages into $(VENV) (about 5 GB, some minutes)"
	$(PYTHON) -m venv $(VENV)
	python -m pip install --disable-pip-version-check --progress-bar on $(TORCH) -r python/requirements.txt
	@touch $@

# Into the user's cache folder, where the server looks; what is there is kept.
models: $(VENV)/.installed
	@python python/client/src/trustformers_serve/builtin.py

target/wheels/.installed: $(WHEEL_SOURCES) $(VENV)/.installed
	rm -f target/wheels/*.whl
	cd python/client && maturin build --release --target-dir $(CURDIR)/target --out $(CURDIR)/target/wheels --interpreter python
	python -m pip install --disable-pip-version-check --quiet --force-reinstall --no-deps target/wheels/*.whl
	@touch $@

lock: ## Pin the Python packages that are installed now (all but torch and what it brings)
	python -m pip freeze --exclude torch --exclude triton --exclude trustformers-serve | grep -v -E '^(nvidia|cuda)-' > python/requirements.txt
