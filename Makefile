# `make help` lists everything. Works on a bare machine: Python 3.11 or newer and make, no root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help up demo test test-slow test-engines lint format faults fuzz audit-dependencies bench docker-test clean

help: ## list what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

up: $(READY) ## run the whole service here: API, worker, broker, Flower
	@$(BIN)/python manage.py up

demo: $(READY) ## publish 5,000 events, 1,000 of them duplicates, to a service of its own and prove the books
	@$(BIN)/python manage.py demo

test: $(READY) ## run the tests
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -q

test-slow: $(READY) ## run the tests that take long, on a machine with nothing else to do
	@$(BIN)/python -m pytest -q -m slow --ignore=tests/pipeline tests

test-engines: export TEST_DATABASE_URL ?= postgres://postgres@127.0.0.1:5432/postgres
test-engines: $(READY) ## run the tests again on PostgreSQL, and the stack on PostgreSQL, RabbitMQ, Redis and sentinels
	@if $(BIN)/python -c 'import os, psycopg; psycopg.connect(os.environ["TEST_DATABASE_URL"], connect_timeout=3)' 2>/dev/null; \
	then $(BIN)/python -m pytest -n 2 --dist loadgroup -q --ignore=tests/faults --ignore=tests/pipeline \
		--ignore=tests/browser tests; \
	else echo "Skipped: the tests on PostgreSQL. TEST_DATABASE_URL ($(TEST_DATABASE_URL)) names none that answers."; fi
	@env -u TEST_DATABASE_URL $(BIN)/python -m pytest -q -m "slow or not slow" tests/pipeline

lint: $(READY) ## check style, types and migrations
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python manage.py makemigrations --check --dry-run -v 0

format: $(READY) ## write the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

faults: $(READY) ## break the service for ten minutes under load, and prove that nothing is lost
	@$(BIN)/python -m tests.faults

fuzz: $(READY) ## make up 10,000 requests, good and bad, and check every answer against /schema
	@DJANGO_SETTINGS_MODULE=tests.settings $(BIN)/python -m tests.test_fuzz 10000

audit-dependencies: $(READY) ## look for known vulnerabilities in what is installed; asks PyPI
	@$(BIN)/pip-audit --local --strict --progress-spinner off

bench: $(READY) ## measure the service against what the machine can do
	@$(BIN)/python -m bench

docker-test: ## build the image, run it alone and by both Compose files, break parts, check the books; needs Docker
	@$(PYTHON) -m tests.docker

clean: ## remove what was set up here; data/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 …" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
		|| { echo "Python's venv module is missing; on Debian and Ubuntu the package python3-venv has it." >&2; exit 1; }
	@echo "Installing into $(VENV) (once) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
