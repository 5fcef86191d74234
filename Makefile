# `make demo` and `make test` do all the set-up they need; Python, git and make are enough.
.PHONY: help setup demo test test-unit test-dashboard test-typescript test-clients test-kit lint format bench soak nemesis lock sbom dist generate dashboard docs clean
.DEFAULT_GOAL := help

PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .uv/bin/uv
BIN := .venv/bin
STACK ?= embedded
WORKERS ?= 6
PYTEST_ARGS ?=
MINUTES ?= 10
ROUNDS ?= 10
QUICK ?=
SEED ?=
FAULTS ?=
DASHBOARD := services/analytics_api/dashboard
AGENT := tests/clients/agents/python
TYPESCRIPT := clients/typescript
# Node.js comes with .venv, so that what is written in TypeScript is checked and built where there is none.
NPM_IN = PATH="$(CURDIR)/$(BIN):$$PATH" npm --loglevel error --prefix
NPM = $(NPM_IN) $(DASHBOARD)

help:  ## what can be done here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

$(UV):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("stepstream needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.13 ...")'
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore --upgrade --target .uv uv==$(UV_VERSION)

.venv/.installed: requirements-dev.txt pyproject.toml | $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	@# Compiled once here: where Python writes no bytecode, each of the many processes would compile it again.
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements-dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(DASHBOARD)/node_modules/.installed: $(DASHBOARD)/package.json $(DASHBOARD)/package-lock.json | .venv/.installed
	@$(NPM) ci --no-progress
	@touch $@

$(TYPESCRIPT)/node_modules/.installed: $(TYPESCRIPT)/package.json $(TYPESCRIPT)/package-lock.json | .venv/.installed
	@$(NPM_IN) $(TYPESCRIPT) ci --no-progress
	@touch $@

setup: .venv/.installed  ## make .venv with everything in it

demo: setup  ## the whole pipeline in a minute, and the dashboard
	@$(BIN)/stepstream demo $(ARGS)

# A run starts some hundred processes. Where Python writes no bytecode, each would compile what it imports.
test: export PYTHONDONTWRITEBYTECODE =
test: setup  ## unit and integration tests; STACK=docker runs them on containers
	STEPSTREAM_TEST_STACK=$(STACK) $(BIN)/pytest -n $(WORKERS) --dist worksteal $(or $(PYTEST_ARGS),--ignore tests/e2e --ignore tests/clients --ignore tests/kit --ignore tests/kit_typescript)

test-unit: setup  ## only what needs no server
	$(BIN)/pytest tests/unit $(PYTEST_ARGS)

test-dashboard: setup $(DASHBOARD)/node_modules/.installed  ## the dashboard: unit tests, then in a real Chromium, which has to be installed
	$(NPM) test
	$(BIN)/pytest tests/e2e $(PYTEST_ARGS)

test-typescript: setup $(TYPESCRIPT)/node_modules/.installed  ## the TypeScript client: unit tests, then as a package, on the real servers
	$(NPM_IN) $(TYPESCRIPT) test
	$(BIN)/pytest tests/kit_typescript $(PYTEST_ARGS)

# Not in `make test`: it needs a JDK, Go, Rust and Node.js, whose clients are skipped where they are not, and minutes.
test-clients: export PYTHONDONTWRITEBYTECODE =
test-clients: setup  ## Kafka clients in Java, Go, JavaScript, C; MCP clients, and its conformance. STEPSTREAM_CLIENTS=all skips none
	$(BIN)/pytest tests/clients -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# Not in `make test`: it wants a JDK, Go and a compiler of C++, and skips by name the clients whose tools are not there.
test-kit: export PYTHONDONTWRITEBYTECODE =
test-kit: setup  ## the kit in schemas/: its ten lines for each client, its documents in Ajv and AsyncAPI's parser
	$(BIN)/pytest tests/kit -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: setup $(DASHBOARD)/node_modules/.installed $(TYPESCRIPT)/node_modules/.installed  ## style, types, import contracts, SQL, generated files, licences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/squawk migrations/*.sql
	$(BIN)/python -m schemas.generate --check
	$(BIN)/python -m services.analytics_api.generate --check
	$(BIN)/python .ci/licences.py --check
	$(NPM) run lint
	$(NPM_IN) $(TYPESCRIPT) run check
	$(NPM_IN) $(TYPESCRIPT) run lint

format: setup $(DASHBOARD)/node_modules/.installed $(TYPESCRIPT)/node_modules/.installed  ## write code the way lint wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(NPM) run format
	$(NPM_IN) $(TYPESCRIPT) run format

generate: setup $(TYPESCRIPT)/node_modules/.installed  ## write the generated files of schemas/, of the API and of the client, and docs/licences.md, anew
	$(BIN)/python -m schemas.generate
	$(NPM_IN) $(TYPESCRIPT) run generate
	$(BIN)/python -m services.analytics_api.generate
	$(BIN)/python .ci/licences.py

dashboard: generate $(DASHBOARD)/node_modules/.installed  ## build the dashboard anew, which is checked in
	$(NPM) run types
	$(NPM) run build
	$(BIN)/python -m services.analytics_api.generate --built

docs: setup  ## write what commands print (docs/operating.md), roles' rights (security.md), clients (agents.md)
	STEPSTREAM_WRITE_DOCS=1 $(BIN)/pytest -q tests/integration/test_operating_page.py -k page_shows
	STEPSTREAM_WRITE_DOCS=1 $(BIN)/pytest -q tests/unit/test_security_page.py tests/unit/test_agents_page.py

bench: setup  ## all that is measured of the pipeline, beside floors of the same run (QUICK=1 shows that it works; ARGS="--only relay")
	$(BIN)/python -m benchmarks.bench $(if $(QUICK),--quick) $(ARGS)

soak: setup  ## traffic for 10 minutes (MINUTES=2 for two): lag and memory over time, and the tables must be exact
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

nemesis: setup  ## faults drawn from a seed (SEED=1 ROUNDS=10 FAULTS=name,name+name), judged by what was acknowledged
	$(BIN)/python -m tests.nemesis --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) $(ARGS)

lock: $(UV)  ## pin the dependencies anew
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 pyproject.toml -o requirements.txt
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --extra dev pyproject.toml -o requirements-dev.txt
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 $(AGENT)/requirements.in -o $(AGENT)/requirements.txt
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 $(AGENT)/requirements-1.in -o $(AGENT)/requirements-1.txt

sbom: setup  ## what requirements.txt locks, with licences, as CycloneDX in dist/sbom.json; the same lock gives the same bytes
	@mkdir -p dist
	@$(BIN)/python -W ignore -m cyclonedx_py requirements requirements.txt --pyproject pyproject.toml --output-reproducible -o dist/sbom.json
	@$(BIN)/python .ci/sbom.py dist/sbom.json
	@echo dist/sbom.json

dist: setup  ## wheel and sdist of what is committed in dist/, held against what they have to be
	@.ci/dist

clean:  ## remove what setup, tests and demo left here
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache $(DASHBOARD)/node_modules $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist
