# make demo    build, and see a C++ program compiled and run through boxwright
# make test    everything that CI runs
# make test-vm the tests of cgroup v2, on kernels of their own in an emulated machine
# make bench   the worker's cost against buildbox-worker's, and whether the promises are kept
# make build   target/release/boxwright
# make lint    formatting, clippy, dependencies
# make fuzz    one minute for each fuzz target (FUZZ_SECONDS=...)
# make clean

.PHONY: build demo test test-vm bench fuzz lint clean
.DEFAULT_GOAL := build

CARGO ?= cargo

build:
	$(CARGO) build --release --locked

demo:
	tests/demo/run

test:
	tests/all

test-vm:
	tests/vm/all

bench: build
	benches/run

fuzz:
	tests/all fuzz

lint:
	tests/all format clippy dependencies

clean:
	$(CARGO) clean
