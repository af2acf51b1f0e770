# Every command of the project. `make` alone prints them; the work is done by the scripts beside what they serve.
#
# ARGS reaches the program: `make run ARGS=--help`, `make test ARGS=sandbox`.

.DEFAULT_GOAL := help
.PHONY: help build run demo test bench lint clean

help: ## print this
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 14

build: ## target/release/wasmvol, wasmvol-mountd, and target/drivers/NAME.wasm
	@host/build.sh

run: build ## build, then serve Docker and Podman on this machine until Ctrl-C (asks for sudo)
	@host/run.sh $(ARGS)

demo: build ## a tour without Docker: create, mount, write, kill -9, restart, read back, remove
	@tests/demo.sh

test: ## everything, with a real dockerd and podman of its own (asks for sudo)
	@tests/run.sh $(ARGS)

bench: build ## the figures of README.md, as ratios in one run (asks for sudo)
	@tests/bench.sh $(ARGS)

lint: ## what .ci/run checks beside the tests: format, clippy, rustdoc, invariants, licences
	@.ci/lint

clean: ## remove what was built
	@cargo clean
