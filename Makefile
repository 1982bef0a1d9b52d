# `make run` and `make test` are all that a fresh machine needs: Python 3.11 or newer, and make.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: env run eval train-demo sums-demo test fuzz lint docs docs-help clean

env: $(STAMP)

# The stamp is renewed when the packaging changes.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@mkdir -p .venv/checkout && ln -sfn ../.. .venv/checkout/bifrons  # pyright finds the package there
	@touch $(STAMP)

run: env
	$(BIN)/bifrons generate "a photo of a red elephant left of a blue umbrella" --seed 1 -o out/first-picture.png --force

# 553 sentences, four pictures each, by the suite and the detector of what janus-nano knows; goes on where it was stopped.
eval: env
	$(BIN)/bifrons eval run --run-dir runs/eval

# Teaches janus-nano to paint mushrooms from 200 captioned pictures by LoRA, and measures it before and after; goes on where it was stopped.
# DTYPE=float32 is quicker on CPUs without instructions for bfloat16.
DEMO = out/train-demo
DEMO_STEPS ?= 110
SENTENCES ?= 6
DTYPE ?= bfloat16

train-demo: env
	$(BIN)/python -m bifrons.nano.recipes.new_thing $(DEMO)
	$(BIN)/bifrons train sft -m janus-nano --dtype $(DTYPE) --data $(DEMO)/pictures -o $(DEMO)/run --lora 8 --learning-rate 3e-3 --steps $(DEMO_STEPS) --batch-size 4 --rows-at-once 4 --save-every 25 --sample-every 0 --validation 0 --replay 0.33 --replay-prompts $(DEMO)/replay.txt --replay-pictures 24
	$(BIN)/python -W ignore -m bifrons.eval.nano.new_thing --dtype $(DTYPE) --batch-size 8 --sentences $(SENTENCES) --adapter $(DEMO)/run/adapter

# A tiny language model of new weights learns sums from texts, then by rewards to think first; measured after each.
SUMS = out/sums-demo
TEXT_STEPS ?= 600
REWARD_STEPS ?= 60
MEASURE = $(BIN)/bifrons eval math $(SUMS)/test.jsonl --max-new-tokens 24 --temperature 1 --samples 4

sums-demo: env
	$(BIN)/python -m bifrons.nano.recipes.sums $(SUMS)
	$(BIN)/bifrons train sft --from-scratch -m $(SUMS)/model --data $(SUMS)/texts.jsonl -o $(SUMS)/texts --steps $(TEXT_STEPS) --batch-size 32 --rows-at-once 32 --learning-rate 3e-3 --validation 0
	$(MEASURE) -m $(SUMS)/texts/model
	$(BIN)/bifrons train grpo -m $(SUMS)/texts/model --prompts $(SUMS)/questions.jsonl --reward answer --reward 'format:<think>\n(\S+\n)+</think>\n\d+' --reward-weight 1 --reward-weight 0.2 -o $(SUMS)/rewards --steps $(REWARD_STEPS) --prompts-per-step 32 --rows-at-once 256 --learning-rate 3e-5 --max-new-tokens 24
	$(MEASURE) -m $(SUMS)/rewards/model

# Files start in the order of collection, which ends with quick ones, so that no process is left with a long one.
# Bytecode is kept even where the environment says otherwise: tests start some hundred processes.
test: env
	$(BIN)/ruff check .
	$(BIN)/pyright
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# More hostile inputs than `make test` tries, such as `make fuzz CASES=10000 SEED=1` (SECONDS limits each kind) or
# `make fuzz KINDS=pictures PILLOW=11.0.0`. A case is repeated with the command that is printed for it.
CASES ?= 1000
SEED ?= 0
SECONDS ?= inf
OTHER_PILLOW = out/pillow-$(PILLOW)

fuzz: env
	$(if $(PILLOW),$(BIN)/python -m pip install --quiet --target $(OTHER_PILLOW) pillow==$(PILLOW))
	$(if $(PILLOW),PYTHONPATH=$(OTHER_PILLOW)) $(BIN)/python tests/fuzz $(KINDS) --cases $(CASES) --seed $(SEED) --seconds $(SECONDS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/pyright

# The documentation, in out/site; a warning is an error. `make docs-help` writes docs/cli.md from the parsers.
docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-help: env
	$(BIN)/python docs/write_cli_page.py

clean:
	rm -rf .venv build dist *.egg-info out
