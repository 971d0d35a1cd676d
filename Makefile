# Everything runs in .venv, which the targets create when it is missing. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := platform,annotate,spacy,docs,dev
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check chaos gpu-test bench docs settings image clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv and install the platform with pinned versions

# Check the version first: on an old Python, pip would fail much later and less clearly.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is required, found {v.major}.{v.minor}; set PYTHON=python3.11")'
	@test -x $(BIN)/python || { echo "creating .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing the pinned packages (about two minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(READY)

demo: $(READY) ## end to end on this machine: data, three stages, evaluation, endpoint, report
	@$(BIN)/kosmosg run demo toyworld

chaos: $(READY) ## kill drivers, workers, nodes and stores of builds and trainings, fill their disks, many times
	@KOSMOSG_CHAOS_ROUNDS=$${ROUNDS:-10} $(BIN)/python -m pytest -q \
		tests/platform/datasets/test_killed_builds.py tests/platform/datasets/test_storage_faults.py \
		tests/platform/datasets/test_layouts_on_two_nodes.py tests/jobs/test_three_nodes.py \
		tests/platform/training/test_stalls.py tests/platform/training/test_lost_nodes.py \
		tests/platform/training/test_full_disks.py

test: check ## lint, type checks, import layers and the whole test suite
	@$(BIN)/python -m pytest -q --durations=15 -m "not slow" -n 2 --dist loadfile
	@$(BIN)/python -m pytest -q --durations=15 -m slow -n 2 --dist loadfile

check: $(READY) ## lint, formatting, type checks and import layers only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

gpu-test: $(READY) ## run the tests that need a CUDA device
	@$(BIN)/python -m pytest -q -m gpu

bench: $(READY) ## run the side-by-side speed benchmarks (they never fail on a timing)
	@for file in tests/benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docs: $(READY) ## build the documentation site into runs/site, offline, and check its links
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo "runs/site/index.html"

settings: $(READY) ## write docs/configuration.md and jobs/settings.json after a setting has changed
	@$(BIN)/python -c "from jobs.settings_page import write; write()"

image: ## build the container image that clusters run
	docker build -f platform/infra/Dockerfile -t kosmosg:latest .

clean: ## remove caches, but neither results nor .venv
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
