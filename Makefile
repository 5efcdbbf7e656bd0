# Every target sets up what it needs in $(VENV) and says what it does; a second run sets nothing up again.
# Another Python or another torch pair: make setup PYTHON=python3.10 TORCH=2.9.1 TORCHVISION=0.24.1
PYTHON ?= python3
TORCH ?= 2.14.1
TORCHVISION ?= 0.29.1
VENV ?= .venv

BIN := $(VENV)/bin
READY := $(VENV)/.ready-torch$(TORCH)-torchvision$(TORCHVISION)
TOY := datasets/toy
OUTLINES := datasets/outlines
# Processes that share the tests, each of one thread.
TEST_WORKERS ?= 2

.PHONY: help setup demo demo-full test test-all test-numeric test-mutations lint format bench storm

help:
	@echo "make setup      create $(VENV) and install torch $(TORCH), torchvision $(TORCHVISION), detectron2 and this project"
	@echo "make demo       the whole way on a toy set: pre-train, convert, fine-tune, table (7 minutes on 2 free cores)"
	@echo "make demo-full  the same with ResNet-50 and the C4 detectors (12 minutes on 2 free cores, 42 on busy ones)"
	@echo "make test       unit tests and one whole way (10 minutes on 2 free cores)"
	@echo "make test-all   make test, then the slow tests (45 minutes on 2 cores)"
	@echo "make test-numeric  tests of numbers, with the plainest CPU kernels (4 minutes on 2 cores)"
	@echo "make test-mutations  600 changed data sets: check and training agree on each (10 minutes on 1 core)"
	@echo "make lint       ruff and mypy"
	@echo "make storm      kills, failing disks, flipped bits and damaged run folders, by seed (an hour on 2 cores)"
	@echo "make bench      ours beside a named peer in the same run, with the numbers' equality checked"

setup: $(READY)

$(READY): pyproject.toml tools/install_detectron2.py
	@echo "== setting up $(VENV): torch $(TORCH), torchvision $(TORCHVISION), detectron2, this project (once; a few GB)"
	$(PYTHON) -m venv $(VENV)
	@echo "== [1/3] torch and torchvision"
	$(BIN)/python -m pip install -q torch==$(TORCH) torchvision==$(TORCHVISION)
	@echo "== [2/3] detectron2"
	$(BIN)/python tools/install_detectron2.py
	@echo "== [3/3] this project and its tools"
	$(BIN)/python -m pip install -q -e '.[dev]' torch==$(TORCH) torchvision==$(TORCHVISION)
	@rm -f $(VENV)/.ready-*
	@touch $@
	@echo "== set up; $(BIN)/python tools/doctor.py lists what this machine has"

demo: $(READY)
	@echo "== demo: scratch, SimSiam and supervised on a toy set, 2 trials of VOC07 and 1 of COCO each; 7 minutes on 2 free cores, in 8 GiB"
	@echo "== toy set: $(OUTLINES)"
	$(BIN)/python tools/data.py toy $(OUTLINES) --any-hue --photos 1536
	$(BIN)/python tools/launch.py submit configs/experiments/demo.yaml --cluster local
	@echo "== what to look for: on five of five toy sets supervised's VOC07 AP50 ended above scratch's; two trials cannot tell about SimSiam"
	@echo "== the page: runs/demo/table.html"

demo-full: $(READY)
	@echo "== demo-full: scratch, SimSiam and supervised, two trials each of VOC07, VOC07+12 and COCO; 12 minutes on 2 free cores, 42 on busy ones, in 8 GiB"
	@echo "== toy set: $(TOY)"
	$(BIN)/python tools/data.py toy $(TOY)
	$(BIN)/python tools/launch.py submit configs/experiments/demo_full.yaml --cluster local
	@echo "== the page: runs/demo-full/table.html"

test: $(READY)
	@echo "== unit tests and one whole way"
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) -m "not slow" --durations=10

test-mutations: $(READY)
	@echo "== 300 mutations of a COCO file and 300 of a VOC set: each is checked, and trained on for two steps"
	MUTATIONS=300 $(BIN)/python -m pytest -q tests/integration/test_mutations.py

test-all: test
	@echo "== slow tests"
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile -m slow --durations=10

# The kernels of the plainest x86 CPU: tolerances hold on any machine, not only on the one they were written on.
test-numeric: $(READY)
	@echo "== tests of numbers with the plainest CPU kernels"
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(BIN)/python -m pytest -q -n $(TEST_WORKERS) \
	    -m "numeric and not slow" --durations=10

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks

# Another seed strikes at other places: make storm SEED=2
SEED ?= 1
storm: $(READY)
	@echo "== a storm over every tool"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.storm.storm --seed $(SEED)
