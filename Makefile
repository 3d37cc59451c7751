# Every target sets up what it needs first; setting up twice takes a second.
VENV := .venv/bin
T ?= tests

.PHONY: help setup demo test unit check fix bench drill clean

help:
	@echo 'make demo    set up, and train the example in a dry run (SIMULATED / NOT CONFIDENTIAL)'
	@echo 'make test    set up, and run every test        T=tests/unit narrows it'
	@echo 'make setup   system packages (as root) and .venv, nothing else'
	@echo 'make unit    the tests that start no machine and build no image'
	@echo 'make check   ruff and mypy alone               make fix   let ruff mend what it can'
	@echo 'make drill   every attack against a dry run, and the refusal it meets'
	@echo 'make bench   measured ratios'

setup:
	@sh tools/setup.sh

demo: setup
	$(VENV)/python examples/digits/prepare.py
	$(VENV)/cvmtool image build base >/dev/null
	$(VENV)/cvmtool image container examples/digits/container --out examples/digits/container.oci.tar --pin examples/digits/job.yaml
	$(VENV)/cvmtool train examples/digits/job.yaml --dry-run

test:
	@sh tools/setup.sh --tests
	$(VENV)/python -m pytest $(T)

unit:
	@sh tools/setup.sh --tests
	$(VENV)/python -m pytest tests/unit tests/architecture

check:
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy

fix:
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

drill: setup
	$(VENV)/cvmtool drill

bench: setup
	$(VENV)/python benchmarks/first_output.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis results
