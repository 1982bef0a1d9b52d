# `make run` and `make test` are all that a fresh machine needs: Python 3.11 or newer, and make.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: env run eval test lint clean

env: $(STAMP)

# The stamp is renewed when the packaging changes.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $(STAMP)

run: env
	$(BIN)/bifrons generate "a photo of a red star and a blue circle" --seed 1 -o out/first-picture.png

# 553 sentences of the small world, four pictures each; goes on where it was stopped.
eval: env
	$(BIN)/bifrons eval run --suite shapes --run-dir runs/shapes

test: env
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q

lint: env
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf .venv build dist *.egg-info out
