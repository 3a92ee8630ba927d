# make run    one prompt on the small checkpoint that ships
# make chat   the interactive prompt
# make serve  the page, at http://127.0.0.1:7860
# make test   what tests need is installed, then every test runs
# make lint   ruff and mypy

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= And the king said
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help run chat serve test lint format clean

help:
	@sed -n '/^$$/q; s/^# //p' $(MAKEFILE_LIST)

run: $(VENV)/.installed
	$(BIN)/python run_inference.py --prompt "$(PROMPT)" --num_tokens 60 --temperature 0.7 --seed 4

chat: $(VENV)/.installed
	$(BIN)/python run_inference.py

serve: $(VENV)/.installed
	$(BIN)/python run_inference_gradio.py

# Tests start some hundred processes: what Python compiles is kept for the next one. Workers share the
# cores; where threads are the subject, a test sets how many.
test: export PYTHONDONTWRITEBYTECODE =
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.installed-dev
	@command -v chromium > /dev/null || \
		echo "The page's tests will fail: they need a browser, apt-get install -y chromium"
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build runtime/build runtime/*.egg-info .pytest_cache .ruff_cache .mypy_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, $(PYTHON) is" "$$($(PYTHON) --version)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are newer than all they stand for: a second call installs nothing.
$(VENV)/.installed: requirements.txt runtime/pyproject.toml | $(VENV)/bin/python
	@echo "Installing what the program needs, once: some minutes, as PyTorch is large"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "Installing what the tests need, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
