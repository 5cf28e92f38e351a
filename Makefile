# Everything that a fresh Linux machine with Python >= 3.11 needs: each target sets up its environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check test-oldest machine-code gpu-check bench clean

# With torch's own wheels, which bring Triton. constraints.txt is the tested set.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -U pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed  ## train a small ATMNet on real images, in minutes on a laptop's CPU
	$(BIN)/python train/demo.py

test: $(VENV)/installed  ## all tests; those that need a GPU are skipped where there is none
	$(BIN)/python -m pytest -n 2

check: $(VENV)/installed  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd train && $(CURDIR)/$(BIN)/mypy imagenet.py demo.py

# The oldest supported version of everything.
.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q -U pip
	.venv-oldest/bin/python -m pip install -q -c constraints-oldest.txt -e '.[test]'
	touch $@

test-oldest: .venv-oldest/installed  ## all tests on the oldest supported torch, Triton and libraries
	.venv-oldest/bin/python -m pytest -n 2

machine-code: $(VENV)/installed  ## what every kernel compiles to for every GPU; ONLY=token_mix_fwd for one kernel's rows
	PYTHONPATH=.:models $(BIN)/python kernels_tests/machine_code.py --only '$(ONLY)'

# Installs nothing, so that it also runs where there is no network: make gpu-check GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
GPU_RUN = PYTHONPATH=.:models $(GPU_PYTHON)
gpu-check:  ## on a machine with a GPU: its tests, then tuning, then the benchmark; the README's table from it
	$(GPU_RUN) -m atm_triton selftest --device cuda
	$(GPU_RUN) -m pytest -q kernels_tests -m gpu
	$(GPU_RUN) -m atm_triton tune --model atmnet-t --resolution 224 800x1280 384 512x2048 --dtype bf16 --batch 6
	$(GPU_RUN) -m atm_triton tune --model atmnet-t --resolution 224 --dtype fp32 --batch 6
	$(GPU_RUN) bench/run.py --device cuda $(BENCH_FLAGS)
	$(GPU_RUN) bench/report.py

bench: $(VENV)/installed  ## everything side by side on this CPU, in five to ten minutes; and the README's table from it
	$(BIN)/python bench/run.py $(BENCH_FLAGS)
	$(BIN)/python bench/report.py

clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info
