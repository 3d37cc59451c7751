# Every target sets up what it needs first; setting up twice takes a second.
VENV := .venv/bin
T ?= tests
N ?= 1000000
R ?= 10

.PHONY: help setup demo transformer test unit check fix coverage fuzz mutants foreign presidio hardware bench drill soak gpu-image clean

help:
	@echo 'make demo    set up, and train the example in a dry run (SIMULATED / NOT CONFIDENTIAL)'
	@echo 'make transformer   the larger example: fine-tune a small GPT-2 in a dry run and natively, and compare (10 minutes, 200 MB)'
	@echo 'make test    set up, and run every test        T=tests/unit narrows it'
	@echo 'make setup   system packages (as root) and .venv, nothing else'
	@echo 'make unit    the tests that start no machine and build no image'
	@echo 'make check   ruff and mypy alone               make fix   let ruff mend what it can'
	@echo 'make coverage   what the unit tests of formats, measure and owner run: fails below 98 %'
	@echo 'make fuzz       a million hostile inputs for each parser (hours)   N=20000 for a first look'
	@echo 'make mutants    which changes of formats and owner do the tests notice (an hour)   M=owner/crl.py for one'
	@echo 'make hardware   on a host with SEV-SNP: a real training, its measurement, and a launch that firmware refuses'
	@echo 'make foreign    dry runs before a verifier that is not ours (fetches it and a Go compiler, 450 MB)'
	@echo 'make presidio   the tests that need Presidio (fetches it, 400 MB)'
	@echo 'make gpu-image   the guest image with NVIDIA'\''s driver: compiled twice, booted, a job in it (minutes, 210 MB)'
	@echo 'make drill   every attack against a dry run, and the refusal it meets'
	@echo 'make bench   measured ratios'
	@echo 'make soak    kill QEMU, libvirtd, cvmtool and SSH at every stage, again and again (R=3: three rounds); then every long test once'

setup:
	@sh tools/setup.sh

demo: setup
	$(VENV)/python examples/digits/prepare.py
	$(VENV)/cvmtool image build base >/dev/null
	$(VENV)/cvmtool image container examples/digits/container --out examples/digits/container.oci.tar --pin examples/digits/job.yaml
	$(VENV)/cvmtool train examples/digits/job.yaml --dry-run

TRANSFORMER := examples/transformer
transformer: setup
	$(VENV)/cvmtool image build base >/dev/null
	$(VENV)/cvmtool image container $(TRANSFORMER)/container --out $(TRANSFORMER)/container.oci.tar --pin $(TRANSFORMER)/job.yaml
	test -d $(TRANSFORMER)/inputs || $(VENV)/python examples/native.py $(TRANSFORMER)/job.yaml $(TRANSFORMER)/prepare.py
	rm -rf results/transformer results/transformer-native && mkdir -p results/transformer-native
	$(VENV)/cvmtool train $(TRANSFORMER)/job.yaml --dry-run --results results/transformer
	$(VENV)/python examples/native.py $(TRANSFORMER)/job.yaml $(TRANSFORMER)/train.py \
	    --inputs $(TRANSFORMER)/inputs --outputs results/transformer-native --merged
	cmp results/transformer/model.safetensors results/transformer-native/model.safetensors

test:
	@sh tools/setup.sh --tests
	$(VENV)/python -m pytest -n 2 $(T)

unit:
	@sh tools/setup.sh --tests
	$(VENV)/python -m pytest -n 2 tests/unit tests/architecture

check:
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy

fix:
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

coverage:
	@sh tools/setup.sh --tests
	$(VENV)/python -m pytest -q -n 2 tests/unit/formats tests/unit/measure tests/unit/owner --cov

fuzz:
	@sh tools/setup.sh --tests
	$(VENV)/python -m pip --disable-pip-version-check -q install -e '.[fuzz]'
	nice $(VENV)/python -m tests.fuzz --runs $(N)

mutants:
	@sh tools/setup.sh --tests
	nice $(VENV)/python -m tools.mutants $(M)

hardware:
	@sh tools/setup.sh --tests
	$(VENV)/python -m pytest -m hardware tests/hardware

foreign:
	@sh tools/setup.sh --tests
	@sh tools/foreign.sh
	CVMTOOL_REQUIRE=foreign $(VENV)/python -m pytest -m foreign tests/foreign

presidio:
	@sh tools/setup.sh --tests
	$(VENV)/python -m pip --disable-pip-version-check -q install -e '.[presidio]'
	$(VENV)/python -m pytest -m presidio tests/unit/data/test_presidio.py

drill: setup
	$(VENV)/cvmtool drill

bench: setup
	$(VENV)/python -m benchmarks.first_output
	$(VENV)/python -m benchmarks.own_cpu
	$(VENV)/python -m benchmarks.upload
	$(VENV)/python -m benchmarks.sealing
	$(VENV)/python -m benchmarks.checkpoint

soak: setup
	@sh tools/setup.sh --tests
	for round in $$(seq $(R)); do $(VENV)/python -m pytest -q tests/scenario/test_kill.py tests/scenario/test_remote.py -k 'kill or cut' -m 'soak or not soak' || exit 1; done
	$(VENV)/python -m pytest -m soak tests/scenario

gpu-image: setup
	@sh tools/setup.sh --tests
	$(VENV)/python -m pytest -m soak tests/scenario/test_gpu_image.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis results
