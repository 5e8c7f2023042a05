# Everything runs in a virtual environment that these targets make themselves.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: recommend explore test check setup clean

recommend: $(STAMP)
	@$(BIN)/specroof recommend --scenario default --tp 1,2,4,8 --html report/recommendation.html
	@echo "Report with charts: report/recommendation.html"

explore: $(STAMP)
	@$(BIN)/specroof explore

test: $(STAMP) check
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[report,calibration,explorer,runtime,smollm2,dev]"
	@touch $(STAMP)

clean:
	rm -rf .venv report
