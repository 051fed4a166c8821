# `make example` and `make test` are all a fresh machine needs: a Rust toolchain, Python 3.11 or newer, and the package
# registries. Everything is installed into .venv, pinned by tests/requirements.txt and Cargo.lock.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help example check test lint test-neon check-macos models runtimes bench clean
help:
	@echo 'make example   install ramrs into .venv and quantize the bundled example model to 4 bits per weight'
	@echo 'make check     lints and quick tests: less than two minutes, once everything was built'
	@echo 'make test      install everything into .venv and run every test'
	@echo 'make test-neon the tests in Rust on an emulated AArch64 (needs an emulator: see the Makefile)'
	@echo 'make check-macos  what a machine of another kind can tell of the library on macOS: that it compiles'
	@echo 'make lint      formatting, lints and types alone'
	@echo 'make models    make models/smollm2-135m, the real model some tests use (93 MB to fetch)'
	@echo 'make runtimes  what transformers, vLLM and llama.cpp compute with outputs (fetches 1.6 GB, takes 4.2 GB of disk)'
	@echo 'make bench     kernels, the probe, memory and quality'

example: .venv/ramrs
	$(BIN)/ramrs quantize examples/llama2xs-280k --budget 4.0 --output build/llama2xs-280k-4bpw --overwrite

# Lints, all tests in Rust, and the tests in Python that are not marked as slow. The library that this leaves in .venv is
# not optimized much: `make test` and `make bench` build their own.
check: .venv/tests lint
	$(BIN)/maturin develop --locked --quiet
	cargo test --locked --quiet
	$(BIN)/pytest --quiet --numprocesses 2 -m 'not slow'

test: .venv/tests lint
	@$(MAKE) --no-print-directory models || echo 'models/smollm2-135m was not made: the tests that need it will be skipped'
	$(BIN)/maturin develop --release --locked --quiet
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml ramrs._native
	cargo test --locked
	$(BIN)/pytest --numprocesses 2

# Lints and tests in Rust as on AArch64, whose kernels a machine of another kind does not even compile. It needs the target
# (`rustup target add aarch64-unknown-linux-gnu`), a linker and a C library for it, and an emulator: on Debian and Ubuntu
# the packages gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static. Few machines have them, so it is no part of
# `make test`. It takes minutes.
NEON := aarch64-unknown-linux-gnu
test-neon: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER ?= aarch64-linux-gnu-gcc
test-neon: export CARGO_PROFILE_TEST_OPT_LEVEL ?= 3
test-neon: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER ?= qemu-aarch64-static -L /usr/aarch64-linux-gnu
test-neon:
	@if cargo clippy --version >/dev/null 2>&1; then \
		cargo clippy --locked --all-targets --target $(NEON) -- -D warnings; \
	else echo 'no clippy: not checked'; fi
	cargo test --locked --target $(NEON)

# Lints of the library as on macOS, without linking it: it needs the target alone (`rustup target add aarch64-apple-darwin`).
check-macos:
	cargo clippy --locked --lib --features python --target aarch64-apple-darwin -- -D warnings

lint: .venv/tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; else echo 'no rustfmt: not checked'; fi
	@if cargo clippy --version >/dev/null 2>&1; then \
		cargo clippy --locked --all-targets --features python -- -D warnings; \
	else echo 'no clippy: not checked'; fi
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --quiet
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --locked --no-deps --quiet --document-private-items

models: models/smollm2-135m/config.json
models/smollm2-135m/config.json: | .venv/tests
	$(BIN)/python benches/quality/models.py smollm2-135m

# Outputs in compressed-tensors and GGUF, loaded by the runtimes that read them. It installs transformers and vLLM, with a
# torch that needs no GPU, and llama.cpp (25 MB of the 1.6 GB) into build/runtimes: from PyPI alone, on x86-64 Linux with gcc
# and readelf. The record is replaced if all tests pass.
runtimes: .venv/tests
	$(BIN)/python tests/runtimes/environments.py
	@$(MAKE) --no-print-directory models || echo 'models/smollm2-135m was not made: the tests that need it will be skipped'
	$(BIN)/maturin develop --release --locked --quiet
	$(BIN)/pytest tests/runtimes --timeout 3600 -o tmp_path_retention_policy=none --record benches/record/runtimes.md

bench: .venv/tests models
	$(BIN)/maturin develop --release --locked --quiet
	cargo bench --locked --bench kernels
	cargo bench --locked --bench probe -- models/smollm2-135m
	$(BIN)/python benches/memory.py models/smollm2-135m
	$(BIN)/python benches/quality/quality.py examples/llama2xs-280k models/smollm2-135m --text tests/data/text/tinystories.txt

# The package alone, built as a user's pip would.
.venv/ramrs: .venv/made $(shell find rust python -name '*.rs' -o -name '*.py') Cargo.toml Cargo.lock pyproject.toml
	$(BIN)/pip install --quiet .
	@touch $@

.venv/tests: .venv/made tests/requirements.txt
	$(BIN)/pip install --quiet --requirement tests/requirements.txt
	@touch $@

.venv/made:
	$(PYTHON) -m venv .venv
	@touch $@

clean:
	rm -rf .venv build target
