# Every target sets up what it needs. `make quickstart` first, `make test` to be sure, `make real` for real data.
PYTHON ?= python3
DATA ?= ../shared/data
PLAN ?= zoo/evidence.yaml
RESULTS ?= zoo/results
TO ?= zoo/RESULTS.md
RUNS ?= runs/evidence
KILLS ?= 50
SECONDS ?= 600
SEED ?= 0
JOBS ?= 2
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
# Python compiles a module when it is first imported; to compile all that is installed takes a third of the installation.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# Where Python may not keep what it compiled, each program compiles all of torch and transformers again: 15 s of CPU time.
unexport PYTHONDONTWRITEBYTECODE
export HF_HUB_DISABLE_TELEMETRY := 1
# Tests flush thousands of files, which takes 10 ms each on some disks: they are kept in memory where 8 GB are free.
SCRATCH := $(shell grep -qs ' /dev/shm .*noexec' /proc/mounts || df --output=avail,target /dev/shm 2> /dev/null | awk '$$1 > 8000000 && $$2 == "/dev/shm" {print $$2}')

# Tests run side by side, and start programs: one thread each.
test conformance spread torture fuzz hosts: export OMP_NUM_THREADS := 1

.PHONY: quickstart test conformance check check-types check-rooms check-lint real evidence evidence-gpu systems graph transfer second_round bench benchmarks large torture fuzz spread hosts peers peers-speed clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/installed $@

$(VENV)/installed-deepspeed: $(VENV)/installed-dev
	$(PIP) --editable '.[dev,deepspeed]'
	@touch $@

# Only what RecBole needs in other versions; the rest, torch among it, is read from the environment of the project.
$(PEERS)/installed: tests/peers/requirements.txt $(VENV)/installed-dev
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c 'import sys; print("$(CURDIR)", *(path for path in sys.path if "site-packages" in path), sep="\n")' \
		> "$$($(PEERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@touch $@

quickstart: $(VENV)/installed  ## the whole way on the demo world: import, pretrain, publish, transfer, rank
	PATH="$(CURDIR)/$(BIN):$$PATH" ./launch/quickstart.sh

test: $(VENV)/installed-dev  ## all tests but the long ones, which `make torture`, `make hosts` and `make spread` run
	folder=$$(mktemp -d $(or $(SCRATCH),$(TMPDIR),/tmp)/pmmrec-tests-XXXXXX) \
		&& TMPDIR=$$folder $(BIN)/python -m pytest -n 2 --dist loadfile && rm -rf $$folder

conformance: $(VENV)/installed-dev  ## which checks each registered part passes, plugins included; `make test` runs the same checks
	$(BIN)/python -m pmmrec.testing

check: $(VENV)/installed-dev  ## lint, format, types, boundaries between rooms, spelling
	@$(MAKE) --no-print-directory --jobs 2 --output-sync check-types check-rooms check-lint

check-types:
	$(BIN)/mypy

check-rooms:
	$(BIN)/lint-imports

check-lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

real: $(VENV)/installed-dev  ## the whole way on real data in $(DATA); skips where there is none
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/real/transfer.py $(DATA)

evidence: $(VENV)/installed-dev  ## zoo/RESULTS.md from zoo/results; measures what is missing: CELL='TABLE/DOMAIN/*' STALE=1 FRESH=1 JOBS=2
	$(BIN)/python -m tests.real.evidence "$(DATA)" --plan $(PLAN) --jobs $(JOBS) \
		--results $(RESULTS) --page $(TO) --home $(RUNS) \
		$(if $(CELL),--cells '$(CELL)') $(if $(STALE),--stale) $(if $(FRESH),--fresh) $(if $(PAGE),--page-only)

evidence-gpu:  ## the same at larger sizes, on one GPU: zoo/RESULTS_GPU.md from zoo/results_gpu
	$(MAKE) evidence PLAN=zoo/evidence_gpu.yaml RESULTS=zoo/results_gpu TO=zoo/RESULTS_GPU.md RUNS=runs/evidence_gpu JOBS=1

second_round: runs/image_encoder/model.safetensors  ## encoders tuned on items against random and pretrained ones: zoo/SECOND_ROUND.md; measures what is missing
	$(MAKE) evidence PLAN=zoo/evidence_second_round.yaml RESULTS=zoo/results_second_round TO=zoo/SECOND_ROUND.md RUNS=runs/evidence_second_round

systems:  ## every system side by side: zoo/SYSTEMS.md from zoo/results_systems; measures what is missing, which takes hours
	$(MAKE) evidence PLAN=zoo/evidence_systems.yaml RESULTS=zoo/results_systems TO=zoo/SYSTEMS.md RUNS=runs/evidence_systems

graph: runs/image_encoder/model.safetensors  ## graphs and factors side by side: zoo/GRAPH.md from zoo/results_graph; measures what is missing, which takes hours
	$(MAKE) evidence PLAN=zoo/evidence_graph.yaml RESULTS=zoo/results_graph TO=zoo/GRAPH.md RUNS=runs/evidence_graph

runs/image_encoder/model.safetensors: $(VENV)/installed-dev
	$(BIN)/python tests/real/image_encoder.py $(@D)

transfer: runs/image_encoder/model.safetensors  ## when transfer pays: zoo/TRANSFER.md from zoo/results_transfer; measures what is missing, by validation targets
	$(MAKE) evidence PLAN=zoo/evidence_transfer.yaml RESULTS=zoo/results_transfer TO=zoo/TRANSFER.md RUNS=runs/evidence_transfer

bench: $(VENV)/installed-dev  ## tests/benchmarks/BENCHMARKS.md: what a training step costs, how that grows, a naive model beside it; KEEP=1: real rows as measured before
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/page.py "$(DATA)" $(if $(KEEP),--keep)

benchmarks: $(VENV)/installed-dev  ## what kept states of frozen blocks save, and SASRec beside a plain loop, on real data in $(DATA) if it is there; how fast score and ranking are
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/benchmarks/prefix_cache.py "$(DATA)"
	$(BIN)/python tests/benchmarks/score.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/benchmarks/sasrec_loop.py "$(DATA)"
	$(BIN)/python tests/benchmarks/ranking.py

large: $(VENV)/installed-dev  ## how a platform of 50 million users trains, against a small one; takes 6 GB of disk below runs/benchmarks
	$(BIN)/python tests/benchmarks/large_domain.py

spread: $(VENV)/installed-deepspeed  ## two CPU processes under ZeRO-1, 2 and 3: the curve of one, whole parts, stopped and gone on with
	$(BIN)/python -m pytest --timeout 1800 tests/spread tests/unit/launch/test_files.py

torture: $(VENV)/installed-dev  ## what kills, stops, hangs or fills disks; then kill a pretraining KILLS times at random: it must end as if nobody had
	$(BIN)/python -m pytest --timeout 1800 -m long tests/torture
	$(BIN)/python tests/torture/kill_nine.py --kills $(KILLS)

fuzz: $(VENV)/installed-dev  ## import damaged files of every kind for SECONDS, from SEED on: one line or a whole domain, and no row lost unseen
	$(BIN)/python tests/torture/fuzz_imports.py --seconds $(SECONDS) --seed $(SEED)

hosts: $(VENV)/installed-deepspeed  ## pretrain on two hosts (network namespaces: needs root and iproute2), and cut one off
	$(BIN)/python -m pytest --timeout 1800 -m '' tests/distributed/test_two_hosts.py

peers: $(VENV)/installed-dev  ## our systems beside RecBole's classes with the same weights; skips where RecBole cannot be installed
	-$(MAKE) $(PEERS)/installed
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m pytest tests/peers

peers-speed: $(PEERS)/installed  ## an epoch, full ranking and peak memory beside RecBole's, on real data in $(DATA)
	OMP_NUM_THREADS=1 $(PEERS)/bin/python tests/peers/speed.py "$(DATA)"

clean:  ## take away what quickstart made, and nothing else
	./launch/quickstart.sh clean
