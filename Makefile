# make demo    build, and see a C++ program compiled and run through boxwright
# make test    everything that CI runs
# make test-vm the tests of cgroup v2, on kernels of their own in an emulated machine, and the service under systemd
# make bench   what the worker, its sandbox and its input roots cost, against buildbox-worker and bubblewrap, and whether the promises are kept
# make soak    100 000 sandboxed commands and 200 kills: nothing is left behind (some minutes)
# make build   target/release/boxwright
# make lint    formatting, clippy, dependencies
# make fuzz    one minute for each fuzz target (FUZZ_SECONDS=...)
# make clean

.PHONY: build demo test test-vm bench soak fuzz lint clean
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
	$(CARGO) bench --profile ci --locked --bench sandbox_overhead
	$(CARGO) bench --profile ci --locked --bench inputs

soak:
	BOXWRIGHT_SOAK=1 $(CARGO) test --profile ci --locked --test full_sandbox_soak -- --nocapture --test-threads 1
	BOXWRIGHT_SOAK=1 $(CARGO) test --profile ci --locked --test full_sandbox crashes:: -- --nocapture --test-threads 1

fuzz:
	tests/all fuzz

lint:
	tests/all format clippy dependencies

clean:
	$(CARGO) clean
