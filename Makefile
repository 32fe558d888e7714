# Two commands for a newcomer: `make demo` and `make test`. Each makes what it needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-long test-release compose-test chaos lint types contracts audit benchmarks clean

demo: $(READY)
	$(BIN)/acmix demo

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not release"

test-long: $(READY)
	$(BIN)/pytest -n 2 -m slow

test-release: $(READY)
	$(BIN)/pytest -n 2 -m release

# docker-compose.yml in real containers, on podman where there is no Docker engine; builds both images
compose-test: $(READY)
	tests/compose/engine.sh /tmp/acmix-compose-test $(abspath $(BIN))/pytest -m release -s tests/compose

# the promises of docs/reliability.md, with their figures; most of an hour
chaos: $(READY)
	$(BIN)/python -m tests.chaos.campaign --seed 2 --jobs 300 --steps 40 --pause-seconds 0.5 --clock-shifts 86400 -86400
	$(BIN)/pytest -m release -s tests/chaos tests/service/test_spec_fuzzing.py tests/worker/test_hostile_data.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

audit: $(READY)
	$(BIN)/python .ci/audit.py

benchmarks: $(READY)
	$(BIN)/python -m benchmarks.overhead

clean:
	rm -rf .venv

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[train,local,dev]'
	touch $(READY)
