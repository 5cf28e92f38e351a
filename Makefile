# Everything that a fresh Linux machine with Python >= 3.11 needs: each target sets up its environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo demo-video test test-all exhaustive check docs test-oldest test-oldest-aot machine-code gpu-report gpu-test gpu-tune gpu-bench bench clean

# With torch's own wheels, which bring Triton. constraints.txt is the tested set.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -U pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed  ## train a small ATMNet on real images, in minutes on a laptop's CPU
	$(BIN)/python train/demo.py

demo-video: $(VENV)/installed  ## train small ATMNets to tell where digits move, with and without mixing along time
	$(BIN)/python train/demo_video.py

test: $(VENV)/installed  ## the tests, in minutes; those that need a GPU are skipped where there is none
	$(BIN)/python -m pytest -n 2 -m 'not exhaustive'

exhaustive: $(VENV)/installed  ## the rest: every candidate, every mutation, every target, long searches
	$(BIN)/python -m pytest -n 2 -m exhaustive

test-all: test exhaustive test-oldest-aot  ## all tests

check: $(VENV)/installed docs  ## lint, format, types and documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed  ## the documentation, into site/; whatever is wrong with it is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The oldest supported version of everything.
.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q -U pip
	.venv-oldest/bin/python -m pip install -q -c constraints-oldest.txt -e '.[test]'
	touch $@

test-oldest-aot: .venv-oldest/installed  ## what the oldest supported Triton makes of the kernels
	.venv-oldest/bin/python -m pytest -n 2 -m 'not exhaustive' kernels_tests/test_aot.py

test-oldest: .venv-oldest/installed  ## all tests on the oldest supported torch, Triton and libraries
	.venv-oldest/bin/python -m pytest -n 2

machine-code: $(VENV)/installed  ## what every kernel compiles to for every GPU; ONLY=token_mix_dx for one kernel's rows
	PYTHONPATH=.:models $(BIN)/python kernels_tests/machine_code.py --only '$(ONLY)'

# The targets for a machine with a GPU install nothing, so that they also run where there is no network: make gpu-report GPU_PYTHON=python3
# gpu-report is for minutes; the others do one thing in full, go on after what fails, and end with its status. GPU_PYTEST="-n 8" tests in eight
# processes, where pytest-xdist is installed.
GPU_PYTHON ?= $(firstword $(wildcard $(BIN)/python) python3)
GPU_RUN = PYTHONPATH=.:models$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON)
GPU_TUNE = $(GPU_RUN) -m atmnet tune --model atmnet-t --export

gpu-report:  ## on a machine with a GPU: the most important of all that follows, in six minutes; GPU_REPORT_FLAGS='--minutes 10 --resume'
	$(GPU_RUN) bench/gpu_report.py $(GPU_REPORT_FLAGS)

gpu-test:  ## the tests of the operators and of the benchmark on this GPU
	@status=0; set -x; \
	$(GPU_RUN) -m atm_triton selftest --device cuda || status=1; \
	$(GPU_RUN) -m pytest -q -m gpu $(GPU_PYTEST) tests/test_bench.py || status=1; \
	$(GPU_RUN) -m pytest -q -m gpu $(GPU_PYTEST) kernels_tests || status=1; \
	exit $$status

gpu-tune:  ## tune this GPU for the networks of the benchmark, with its batches; also writes atm_triton/tuning/configs/<gpu>.json
	@status=0; set -x; for dtype in bf16 fp32; do \
	$(GPU_TUNE) --dtype $$dtype --resolution 224 --batch 128 || status=1; \
	$(GPU_TUNE) --dtype $$dtype --resolution 800x1280 512x2048 --batch 6 || status=1; \
	$(GPU_TUNE) --dtype $$dtype --resolution 384 --batch 48 || status=1; \
	done; exit $$status

gpu-bench:  ## the benchmark on this GPU, what the targets are about first; the README's figures from it
	$(GPU_RUN) bench/run.py --device cuda $(BENCH_FLAGS); status=$$?; $(GPU_RUN) bench/report.py && exit $$status

bench: $(VENV)/installed  ## everything side by side on this CPU, in ten to fifteen minutes; and the README's figures from it
	$(BIN)/python bench/run.py $(BENCH_FLAGS); status=$$?; $(BIN)/python bench/report.py && exit $$status

clean:
	rm -rf $(VENV) .venv-oldest build dist site *.egg-info
