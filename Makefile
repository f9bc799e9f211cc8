.DEFAULT_GOAL := help
.PHONY: help install browser prism fmt lint types test test-system test-matrix test-clients test-scale test-ray chaos check run bench wheel schema-version reference screenshots clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATABASE_TESTS := tests/sql tests/coordination

# Some containers set it; every worker of the tests would compile all of them anew.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed ## set up .venv with pgcoord, the embedded Postgres and the tools

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("pgcoord needs Python 3.11 or newer, this is %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) (a minute on a fresh machine)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/pip install --quiet --editable '.[embedded]' --group dev
	@touch $@

fmt: install ## format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: install ## check format and style
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: install ## check types (mypy, strict)
	$(BIN)/mypy

test: install tests/__pycache__ ## run the tests of each rule (2 to 5 minutes, by the speed of two cores)
	$(BIN)/pytest -q -n 4 --dist worksteal --durations 20 -m 'not scale'

# Where a clone has no bytecode of the tests yet, each of the four workers would make all of it. Made here first, by two
# processes, it takes a fifth less processor time until the first test.
tests/__pycache__: | install
	@$(BIN)/pytest -q --collect-only tests/[a-r]* >/dev/null & \
	$(BIN)/pytest -q --collect-only tests/[s-z]* >/dev/null; wait

# The panel is tested in Debian's Chromium without a window, which takes half the processor time of the one with a window.
# Elsewhere PGCOORD_TEST_CHROMIUM names one; without any, those tests are skipped, and say so.
browser:
	@if [ -z "$$PGCOORD_TEST_CHROMIUM" ] && ! command -v chromium-headless-shell >/dev/null \
	    && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    echo "installing Chromium for the tests of the panel"; \
	    apt-get update -qq; \
	    apt-get install -y -qq --no-install-recommends chromium-headless-shell fonts-dejavu-core >/dev/null \
	        || command -v chromium || echo "it cannot be installed: those tests are skipped"; fi

# The contract with GitHub is checked by Prism, on Node. Without any, those tests are skipped, and say so.
prism: .prism/node_modules/.bin/prism

.prism/node_modules/.bin/prism:
	@if ! command -v npm >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    echo "installing Node for the tests of the contract with GitHub"; \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null; fi
	@if command -v npm >/dev/null; then \
	    echo "installing Prism for the tests of the contract with GitHub"; \
	    npm install --silent --no-save --no-package-lock --fetch-retries=1 --fetch-timeout=60000 --prefix .prism @stoplight/prism-cli@5.14.2 \
	        || echo "it cannot be installed: those tests are skipped"; fi

test-system: install ## run the tests of the database on the system's Postgres, where there is one
	@folder=$$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1); \
	if [ -z "$$folder" ]; then echo "skipped: there is no Postgres below /usr/lib/postgresql"; else \
	echo "on $$folder"; \
	PGCOORD_TEST_POSTGRES=$$folder $(BIN)/pytest -q -n 2 -m 'not scale' $(DATABASE_TESTS); fi

test-matrix: install ## run the tests on PostgreSQL 14 to 18: in containers, or from packages of npm (VERSIONS, TESTS)
	$(BIN)/python tests/matrix.py $(VERSIONS) -- $(TESTS)

test-clients: install ## try pgcoord from clients of many languages (installs them into .clients, 200 MB)
	$(BIN)/python tests/clients/run.py $(CLIENTS)

test-scale: install browser prism ## run the tests with browsers, engines, or servers of their own (10 to 25 minutes)
	$(BIN)/pytest -q -n 3 --dist worksteal --durations 20 -m scale

test-ray: install ## run the tests of Ray Jobs on a real cluster (installs Ray, 400 MB, into .ray)
	$(BIN)/python tests/ray_cluster.py

# The options of tests/chaos/storm.py, as in `make chaos SEED=7 STORMS=1`.
SEED ?= $(shell date +%s)
FAULTS ?= 250
MINUTES ?= 10
STORMS ?= 1000
COORDINATORS ?= 3

chaos: install ## let random faults loose on coordinators, phases and a server, and judge what becomes of them
	PYTHONPATH=tests $(BIN)/python -m chaos.storm --seed $(SEED) --faults $(FAULTS) --minutes $(MINUTES) \
	    --storms $(STORMS) --coordinators $(COORDINATORS)

check: lint types test ## what has to be right before a commit

run: install ## run examples/release-check.md to its end on the embedded Postgres
	$(BIN)/pgcoord run examples/release-check.md --config examples/pgcoord.toml

bench: install ## measure pgcoord on the embedded Postgres
	$(BIN)/pgcoord db start
	$(BIN)/pgcoord bench

screenshots: install browser ## take the pictures in docs/screenshots (with Chromium)
	PYTHONPATH=tests $(BIN)/python tests/screenshots.py docs/screenshots

schema-version: install reference ## give a schema that was changed its new number; renew the reference
	$(BIN)/python -c 'from pgcoord.database import schema as s; d = s.digest_of_all(); n = s.VERSION.read_text().split(); \
	    n[1:] == [d] or s.VERSION.write_text(f"{int(n[0]) + 1} {d}\n")'

reference: install ## write docs/reference.md, from the tables of the code
	$(BIN)/python -c 'from pathlib import Path; from pgcoord.commands import reference; \
	    Path("docs/reference.md").write_text(reference.markdown())'

wheel: install ## build sdist and wheel into dist/
	$(BIN)/python -m build --no-isolation

clean: ## remove what was built (never .pgcoord/, which holds your database)
	rm -rf $(VENV) .prism .agents .clients dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
