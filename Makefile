# `make help` lists everything. Works on a bare machine: Python 3.11 or newer and make, no root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
#: When each file says that what it lists is installed: the service, and what its tests and checks need.
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev

.DEFAULT_GOAL := help
.PHONY: help up demo test test-slow test-engines lint format faults fuzz audit-dependencies bench docker-test test-bare clean

help: ## list all targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

up: $(READY) ## run the whole service: API, worker, broker, Flower
	@$(BIN)/python manage.py up

demo: $(READY) ## publish 5,000 events with 1,000 duplicates to a temporary service, and prove the counters
	@$(BIN)/python manage.py demo

test: $(READY_DEV) ## run the tests; those of other databases and brokers are test-engines
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -q --ignore=tests/pipeline

test-slow: $(READY_DEV) ## run the slow tests; nothing else should run on the machine
	@$(BIN)/python -m pytest -q -m slow --ignore=tests/pipeline tests

test-engines: export TEST_DATABASE_URL ?= postgres://postgres@127.0.0.1:5432/postgres
test-engines: $(READY_DEV) ## run the tests again on PostgreSQL, and the stack on PostgreSQL, RabbitMQ, Redis and sentinels
	@if $(BIN)/python -c 'import os, psycopg; psycopg.connect(os.environ["TEST_DATABASE_URL"], connect_timeout=3)' 2>/dev/null; \
	then $(BIN)/python -m pytest -n 2 --dist loadgroup -q --ignore=tests/faults --ignore=tests/pipeline \
		--ignore=tests/browser tests; \
	else echo "Skipped: the tests on PostgreSQL. TEST_DATABASE_URL ($(TEST_DATABASE_URL)) names none that answers."; fi
	@env -u TEST_DATABASE_URL $(BIN)/python -m pytest -q -m "slow or not slow" tests/pipeline

lint: $(READY_DEV) ## check style, types and migrations
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT \
		&& DATA_DIR=$$folder $(BIN)/python manage.py makemigrations --check --dry-run -v 0

format: $(READY_DEV) ## write the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

faults: $(READY_DEV) ## break the service for ten minutes under load, and prove that nothing is lost
	@$(BIN)/python -m tests.faults

fuzz: $(READY_DEV) ## send 10,000 generated requests, good and bad, and check every answer against /schema
	@DJANGO_SETTINGS_MODULE=tests.settings $(BIN)/python -m tests.test_fuzz 10000

audit-dependencies: $(READY_DEV) ## look for known vulnerabilities in the installed packages; asks PyPI
	@$(BIN)/pip-audit --local --strict --progress-spinner off

bench: $(READY_DEV) ## measure the service, and compare it with the limits of the machine
	@$(BIN)/python -m bench

docker-test: ## build the image, run it alone and with both Compose files, kill parts, check the counters; needs Docker
	@$(PYTHON) -m tests.docker

test-bare: ## run the tests in a container with only Python, make and git, without root; needs Docker
	@$(PYTHON) -m tests.docker.bare

clean: ## remove what make has installed; data/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# In a terminal pip shows how far it is.
PIP = $(BIN)/pip install --disable-pip-version-check $$(test -t 1 || echo --quiet)

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 …" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
		|| { echo "Python's venv module is missing; on Debian and Ubuntu the package python3-venv has it." >&2; exit 1; }
	@echo "Installing what the service needs into $(VENV) (once, a minute) …"
	@$(PIP) -r requirements.txt
	@touch $@

$(READY_DEV): requirements-dev.txt $(READY)
	@echo "Installing what the tests and checks need into $(VENV) (once, a minute) …"
	@$(PIP) -r requirements.txt -r requirements-dev.txt
	@touch $@
