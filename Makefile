# The two commands: `make run` and `make test`. The rest is for developers.
PYTHON ?= python3
PORT ?= 8000
BIN = .venv/bin

WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
HOST ?= 127.0.0.1
SECONDS ?= 60

.PHONY: help install run serve test test-slow check format lint types security licences coverage browser screenshots schema-attack poolers clients chaos cluster foreign bench bench-full openapi tables requirements newest clean

help: ## Show these commands
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 20

install: .venv/dev ## Make the virtual environment, with what tests and checks need

run: .venv/run ## Serve on this machine, on SQLite
	@$(BIN)/python -c 'import socket, sys; s = socket.socket(); sys.exit(s.connect_ex(("127.0.0.1", $(PORT))) == 0)' \
		|| { echo "Port $(PORT) is in use. Stop what listens there, or choose another: make run PORT=8001" >&2; exit 1; }
	@echo "API docs: http://127.0.0.1:$(PORT)/docs, console: http://127.0.0.1:$(PORT)/console"
	@exec $(BIN)/uvicorn main:app --http server.protocol:BoundedProtocol --host 127.0.0.1 --port $(PORT)

# Proxies keep connections for a minute.
serve: .venv/run ## Serve in production, with a worker for each core
	@ENVIRONMENT=production exec $(BIN)/uvicorn main:app --http server.protocol:BoundedProtocol \
		--host $(HOST) --port $(PORT) --workers $(WORKERS) --timeout-keep-alive 75

PYTEST = $(BIN)/pytest --numprocesses=3

test: .venv/dev ## Run the tests, on SQLite and on a PostgreSQL of their own, but for the slow ones
	$(PYTEST) -m "not slow" $(OPTIONS)

test-slow: .venv/dev ## Run those that start and kill servers, cut connections, or migrate and load whole databases
	$(PYTEST) -m slow $(OPTIONS)

check: lint types security licences coverage ## Everything that must be true of a commit

format: .venv/dev
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/tach check

types: .venv/dev
	$(BIN)/mypy .

security: .venv/dev ## Look for insecure code, and for known vulnerabilities of what is installed
	@# It warns of each nosec that concerns a part of a statement only; shown where it finds something.
	@report=$$($(BIN)/bandit --quiet --configfile pyproject.toml --recursive . 2>&1) || { echo "$$report"; exit 1; }
	@$(BIN)/python .ci/vulnerabilities.py

licences: .venv/dev ## List the licences of what the service installs; one that pyproject.toml does not allow fails
	$(BIN)/pip-licenses --order=license --packages $$(sed -nE 's/^([a-z0-9._-]+)(\[.*\])?==.*/\1/p' requirements.txt)

coverage: ## Run all tests, and measure what they reach, the slow ones but for few
	$(MAKE) test OPTIONS=--cov
	$(MAKE) test-slow OPTIONS="--cov --cov-append"
	$(BIN)/coverage report --fail-under=95

browser: .venv/dev ## Use the docs pages and the console in a real browser (needs Debian's chromium)
	$(BIN)/pytest tests/browser

screenshots: .venv/dev ## Make the pictures in docs/console anew, after a change of the console (needs Debian's chromium)
	SCREENSHOTS=$(CURDIR)/docs/console $(BIN)/pytest tests/browser/test_console.py -k every_page

schema-attack: .venv/dev ## Attack the API with what its description allows or forbids, and show how much was accepted
	$(BIN)/pytest --numprocesses=2 -rP tests/test_schema_attack.py

poolers: .venv/dev ## Send 5,000 registrations and transfers through PgBouncer (needs Debian's pgbouncer)
	POOLER_CALLS=5000 $(BIN)/pytest tests/test_poolers.py

clients: .venv/dev .clients/bin/openapi-python-client .clients/node_modules ## Generate the clients of docs/clients.md, and use them (TypeScript: needs npm)
	$(BIN)/pytest --numprocesses=2 tests/clients $(OPTIONS)

.clients/bin/openapi-python-client: .venv/dev tests/clients/requirements.txt
	$(BIN)/uv venv --quiet --clear .clients
	$(BIN)/uv pip install --quiet --python .clients --require-hashes -r tests/clients/requirements.txt
	@touch $@

# Empty where there is no npm; the test of TypeScript is skipped then.
.clients/node_modules: .clients/bin/openapi-python-client tests/clients/package-lock.json
	cp tests/clients/package.json tests/clients/package-lock.json .clients
	if command -v npm >/dev/null; then cd .clients && npm ci --silent --ignore-scripts --no-audit --no-fund; fi
	@mkdir -p $@ && touch $@

chaos: .venv/dev ## Kill, freeze and fill what there is while clients move money, and look for what is lost: make chaos SECONDS=600
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

cluster: .venv/dev .patroni/bin/patroni ## Attack three PostgreSQL nodes under Patroni (needs root, Debian's postgresql-15, etcd-server, haproxy)
	$(BIN)/pytest tests/cluster $(OPTIONS)

# A Python that PostgreSQL's user may run. Why not Debian 12's own Patroni, docs/cluster.md says.
.patroni/bin/patroni: tests/cluster/requirements.txt
	/usr/bin/python3 -m venv --clear .patroni
	.patroni/bin/pip install --quiet --disable-pip-version-check --require-hashes -r tests/cluster/requirements.txt

foreign: .venv/dev ## Run the migration tool on public packages' histories; some of them: make foreign PROJECTS=optuna
	$(BIN)/python alembic_savepoint/tests/foreign.py .foreign $(PROJECTS)

bench: .venv/dev ## Compare with the usual way, pgbench and others, in 5 minutes (needs Debian's wrk)
	$(BIN)/python -m bench quick

bench-full: .venv/dev ## Measure all that bench/results.md shows, and write it anew, in about 45 minutes
	$(BIN)/python -m bench

openapi: .venv/run ## Write docs/openapi.json anew, after a change of the API
	$(BIN)/python -m docs.write_openapi

tables: .venv/run ## Draw the tables in ARCHITECTURE.md anew, after a change of models.py
	$(BIN)/python -m docs.draw_tables

# With extras, since pip asks for the hash of coverage[toml]. Pinned versions stay as long as they fit; all to the newest:
# make requirements UPGRADE=--upgrade
PIN = UV_CUSTOM_COMPILE_COMMAND="make requirements" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-strip-extras $(UPGRADE)

requirements: .venv/dev ## Pin what requirements.in and requirements-dev.in ask for, with hashes
	$(PIN) requirements.in --output-file requirements.txt
	$(PIN) requirements-dev.in --constraints requirements.txt --output-file requirements-dev.txt
	$(PIN) requirements-otel.in --constraints requirements-dev.txt --output-file requirements-otel.txt
	$(PIN) tests/cluster/requirements.in --output-file tests/cluster/requirements.txt
	$(PIN) tests/clients/requirements.in --output-file tests/clients/requirements.txt

newest: .venv/dev ## Run the tests with the newest versions of everything, or some: make newest TESTS=tests/test_ledger.py
	@UV=$(BIN)/uv bash .ci/newest $(TESTS)

clean:
	rm -rf .clients .patroni .venv .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/run: .venv/python requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@
