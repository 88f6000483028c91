PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
READY := $(VENV)/.ready

CPP := build/cpp$(addprefix -,$(SANITIZE))

.PHONY: demo test test-all cpp-test benchmark lint clean

demo: $(READY)
	$(BIN)/acn-kernels demo

test: $(READY)
	$(BIN)/python -m pytest
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/test_aot.py tests/test_compiled_traffic.py

test-all: $(READY)
	$(BIN)/python -m pytest -m "not gpu"
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m "not gpu" tests/test_aot.py tests/test_compiled_traffic.py

# The runtime without Python: library, acn_infer, ctest. SANITIZE=address, undefined or thread.
cpp-test: $(READY)
	cmake -S . -B $(CPP) -G Ninja -DACN_SANITIZE=$(SANITIZE) \
	  -DCMAKE_PREFIX_PATH=$$($(BIN)/python -c 'import torch; print(torch.utils.cmake_prefix_path)')
	cmake --build $(CPP) -j2
	ctest --test-dir $(CPP) --output-on-failure

# Saves the times of the CPU paths and sets them against the last ones saved.
benchmark: $(READY)
	$(BIN)/python -m pytest tests/test_benchmarks_cpu.py -m slow --benchmark-only \
	  --benchmark-autosave --benchmark-compare --benchmark-sort=name \
	  --benchmark-columns=median,iqr,min,rounds

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# torch goes first, so that nothing after it pulls another one; the extension is compiled against
# it, which is why the build is not isolated.
$(READY): constraints.txt pyproject.toml setup.py $(shell find csrc -name '*.cpp' -o -name '*.h')
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) torch
	$(PIP) setuptools wheel ninja pybind11 ruff
	$(PIP) --no-build-isolation --editable '.[demo,triton,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info acn_kernels/*.so
