# make demo    virtual environment, build, the main job        make test   the same for all checks and tests
# make native  only the native module, into src/ (for work on the kernels, in an environment that has nanobind)
# make neon    the kernels for 64-bit ARM against products of the reference (needs g++-aarch64-linux-gnu and qemu-user)
# make sanitize the kernel tests on a build with address and undefined-behaviour sanitizers (same environment as make native)
# make emulate the kernel tests with AVX-512 emulated, on a machine without it (needs libsimde-dev, and make install-test before)

PYTHON ?= python3
# Processes of `make test`; 0: all in one. BLAS and PyTorch then have one thread each: two processes' threads would spin for the same cores.
WORKERS ?= 2
VENV ?= .venv
RUN = $(VENV)/bin

.PHONY: demo test check native neon sanitize emulate install install-test clean

demo: install
	$(RUN)/anybit demo

test: install-test
	$(RUN)/ruff check src tests bench
	$(RUN)/mypy
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n $(WORKERS) --dist worksteal

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

SOURCES := $(wildcard native/* pyproject.toml CMakeLists.txt)

check:
	@command -v $(PYTHON) >/dev/null || { echo "anybit needs Python 3.10 or newer: install it, for instance with 'apt install python3 python3-dev python3-venv'"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "anybit needs Python 3.10 or newer, this is $$($(PYTHON) -V 2>&1): install one and run 'make PYTHON=python3.11 ...'"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "this Python cannot make virtual environments: install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || { echo "Python's headers are missing: install python3-dev"; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { echo "no C++ compiler: install g++ (or set CXX)"; exit 1; }

$(VENV)/bin/python: | check
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: $(SOURCES) | $(VENV)/bin/python
	$(RUN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.installed

native:
	cmake -S . -B build/native -G Ninja -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/src/anybit/kernels -DPython_EXECUTABLE=$$(command -v python3) $(NATIVE) >/dev/null
	cmake --build build/native

NEON = build/neon
ARM = aarch64-linux-gnu-g++ -std=gnu++17 -O2 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -Wno-maybe-uninitialized -DANYBIT_ARM -Inative

$(NEON)/%.neondot.o: native/%.cc $(wildcard native/*.h)
	@mkdir -p $(NEON)
	$(ARM) -march=armv8.2-a+dotprod -fno-exceptions -fno-rtti -DANYBIT_ISA=neondot -c $< -o $@

$(NEON)/%.generic.o: native/%.cc $(wildcard native/*.h)
	@mkdir -p $(NEON)
	$(ARM) -fno-exceptions -fno-rtti -DANYBIT_ISA=generic -c $< -o $@

NEON_KERNELS := $(foreach k,linear product ops pack round transform cache gptq sums,$(NEON)/$(k).generic.o $(NEON)/$(k).neondot.o)

$(NEON)/driver: tests/kernels/golden/driver.cc native/operator.cc native/around.cc native/pool.cc native/isas.cc $(NEON_KERNELS)
	$(ARM) $^ -pthread -o $@

neon: $(NEON)/driver
	PYTHONPATH=src $(PYTHON) tests/kernels/golden/write.py $(NEON)/products.bin
	qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu $(NEON)/driver $(NEON)/products.bin neondot

# Its own copy of the package, so that nothing of the ordinary build is loaded. Python itself leaks by design: leaks are not looked for. Signals are left to
# the system: a test dies at a protected page. test_objects.py builds objects of its own, without sanitizers. What is checked: docs/kernels.md.
SANITIZED = ASAN_OPTIONS=detect_leaks=0:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1 LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)"

sanitize:
	mkdir -p build/sanitize/src && cp -r src/. build/sanitize/src && rm -f build/sanitize/src/anybit/kernels/*.so
	cmake -S . -B build/sanitize/build -G Ninja -DANYBIT_SANITIZE=ON -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/build/sanitize/src/anybit/kernels \
		-DPython_EXECUTABLE=$$(command -v python3) $(NATIVE) >/dev/null
	cmake --build build/sanitize/build
	$(SANITIZED) PYTHONPATH=$(CURDIR)/build/sanitize/src python3 -m pytest $(or $(TESTS),tests/kernels --ignore=tests/kernels/test_objects.py tests/engine/test_around_engine.py tests/engine/test_cache_formats.py tests/engine/test_same_bits.py)

# Outside the virtual environment, whose editable install would come before the emulated build.
EMULATED = PYTHONPATH=$(CURDIR)/build/emulate/src:$$($(RUN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') $(PYTHON)

emulate: install-test
	rm -rf build/emulate && mkdir -p build/emulate && cp -r src build/emulate/src && rm -f build/emulate/src/anybit/kernels/*.so
	$(RUN)/python -m pip install --quiet --disable-pip-version-check cmake ninja nanobind
	PATH=$(CURDIR)/$(RUN):$$PATH cmake -S . -B build/emulate/build -G Ninja -DANYBIT_SIMDE=ON -DPython_EXECUTABLE=$(CURDIR)/$(RUN)/python \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/build/emulate/src/anybit/kernels >/dev/null
	PATH=$(CURDIR)/$(RUN):$$PATH cmake --build build/emulate/build
	$(EMULATED) -c 'from anybit.kernels import cpu; assert "avx512vbmi" in cpu.native.supported_isas(), cpu.native.__file__'
	$(EMULATED) -m pytest tests/kernels tests/test_tensor.py tests/engine tests/io/test_golden_model.py

clean:
	rm -rf build $(VENV) src/anybit/kernels/*.so
