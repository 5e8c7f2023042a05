# All targets run in a virtual environment, which they create themselves; each installs only the
# dependencies that it needs.
PYTHON ?= python3
BIN := .venv/bin
# The editable mode that only adds a path, since the other one imports a dozen modules at each start.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	--config-settings editable_mode=compat -e
REPORT := .venv/.report
EXPLORER := .venv/.explorer
ALL := .venv/.all

.PHONY: recommend explore test pytest quick soak fuzz check setup clean

recommend: $(REPORT)
	@mkdir -p report
	@$(BIN)/specroof recommend --scenario default --tp 1,2,4,8 --engine vllm --html report/recommendation.html
	@echo "Report with charts: report/recommendation.html"

explore: $(EXPLORER)
	@$(BIN)/specroof explore

# Both at once, since mypy leaves a core idle.
test: $(ALL)
	@$(MAKE) --no-print-directory -j 2 check pytest

pytest: $(ALL)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Tests that need neither network nor browser and take less than about a second each.
quick: $(ALL)
	$(BIN)/python -m pytest -n 2 -m "not slow and not network and not gpu"

# Long comparisons of speculative and plain decoding over random models, and recommendations for
# 2,000 random scenarios.
TOKENS ?= 100000
soak: $(ALL)
	$(BIN)/python tests/soak/lossless.py --tokens $(TOKENS)
	SCENARIOS=2000 $(BIN)/python -m pytest tests/perfmodel/planning/test_no_contradiction.py

# Mutated files and flags; each must end with one line and exit code 0, 2 or 3. An interrupted run is
# continued; failures are in the folder fuzz.
INPUTS ?= 1000000
SEED ?= 0
fuzz: $(ALL)
	$(BIN)/python tests/soak/fuzz.py --inputs $(INPUTS) --seed $(SEED)

check: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

setup: $(ALL)

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(REPORT): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) ".[report]"
	@touch $@

$(EXPLORER): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) ".[report,explorer,calibration]"
	@touch $@

$(ALL): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) ".[report,calibration,explorer,runtime,smollm2,dev]"
	@touch $@ $(REPORT) $(EXPLORER)

clean:
	rm -rf .venv report
