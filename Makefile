# Each target makes the virtual environment .venv by itself; `make help` lists them.
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || command -v python3)
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: help install train test test-fast test-system torture check docs bench-data bench-eval bench-train bench-predict \
	bench-tracking bench-onnx bench-scaling bench-launch bench-cpu gpu-bundle gpu-check
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(STAMP) ## make .venv and install pfseg with all that it needs

train: $(STAMP) ## train; settings: make train ARGS="model=pfnet_r50 dataset=dubai dataset.root=..."
	$(VENV)/bin/python train.py $(ARGS)

test: $(STAMP) ## run all tests; ARGS="-k config" for some of them
	$(VENV)/bin/python -m pytest $(ARGS)

test-fast: $(STAMP) ## run the tests that take seconds: under three minutes in all
	$(VENV)/bin/python -m pytest -m "not slow and not system" $(ARGS)

test-system: $(STAMP) ## install Chromium, sshd, SLURM and LaTeX (Debian, root) and run the tests that use them
	tests/system/install.sh
	$(VENV)/bin/python -m pytest -m system --strict-skips $(ARGS)

torture: $(STAMP) ## kills, full disks and damaged files for so long: make torture ARGS="minutes=20 seed=0"
	cd tests && PYTHONPATH=.. ../$(VENV)/bin/python -m torture $(ARGS)

check: $(STAMP) ## ruff and mypy
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

docs: $(STAMP) ## build the documentation in site/; warnings and dead links are errors
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet --site-dir site

bench-data: $(STAMP) ## time preparation and loading beside what the published tools do
	$(VENV)/bin/python benchmarks/data.py $(ARGS)

bench-eval: $(STAMP) ## time boundary scores beside the published way; inference too: TORCH=<python with PyTorch>
	$(VENV)/bin/python benchmarks/boundary.py $(ARGS)
	$(VENV)/bin/python benchmarks/speed.py $(if $(TORCH),--torch $(TORCH)) $(ARGS)

bench-train: $(STAMP) ## time training steps of R50; beside PyTorch: TORCH=<python that has it>
	$(VENV)/bin/python benchmarks/speed.py --train $(if $(TORCH),--torch $(TORCH)) $(ARGS)

bench-cpu: $(STAMP) ## PFNet in each precision beside PyTorch in each mode: TORCH=<python that has it>, ARGS=--write
	$(VENV)/bin/python benchmarks/cpu.py --torch $(TORCH) $(ARGS)

bench-predict: $(STAMP) ## time and memory of maps of GeoTIFFs of 5,000 and 20,000 px a side
	$(VENV)/bin/python benchmarks/predict.py $(ARGS)

bench-tracking: $(STAMP) ## time training steps with and without loggers
	$(VENV)/bin/python benchmarks/tracking.py $(ARGS)

bench-onnx: $(STAMP) ## time a window in Jittor and in ONNX Runtime, in turns
	$(VENV)/bin/python benchmarks/onnx_speed.py $(ARGS)

bench-scaling: $(STAMP) ## time two ranks of one thread beside one rank of two, and sums over ranks
	$(VENV)/bin/python benchmarks/scaling.py $(ARGS)

bench-launch: $(STAMP) ## time what starting and ending a job costs beside its work
	$(VENV)/bin/python benchmarks/launch.py $(ARGS)

gpu-bundle: $(STAMP) ## compile for a GPU machine without a network and pack it all; needs CUDA's wheels, no GPU
	$(VENV)/bin/python benchmarks/gpu_bundle.py gpu-bundle.tar.xz $(ARGS)

gpu-check: $(STAMP) ## check and time everything on a GPU; beside PyTorch: TORCH=<python that has it>
	$(VENV)/bin/python benchmarks/gpu_check.py $(if $(TORCH),--torch $(TORCH)) $(ARGS)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit(f"pfseg needs Python 3.11 or 3.12, got {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
