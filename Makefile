# make train       set up, then train a GPT on tales whose entropy is known: under 3 minutes on two CPU cores
# make assistant   teach that model to tell tales on request, and judge it: ten minutes on two CPU cores
# make test        set up, then check the style and run the tests: under 4 minutes
# make test-slow   the tests that take longer: several processes, peak memory, compilers, a browser
# make test-numeric    the tests that compare numbers, for running them under other CPU settings
# make faults      kill, damage and starve runs, and check that none is lost: twenty minutes
# make scaling     measure how loss falls with compute, and compare plans with what runs take: an hour
# make objectives  train every config of configs/objectives and write the tables of docs/objectives.md
# make ladder      train every rung of configs/ladder and write the tables of docs/ladder.md: an hour
# make posttrain   train the model of `make train` further by several methods, write docs/post-training.md: two hours
# make notebooks   run every notebook and its solutions from the first cell to the last: ten minutes
# make bench       time training and decoding next to Hugging Face transformers and a plain GPT: an hour and a half
# make clean       remove .venv and caches; runs and data stay

PYTHON ?= python3
CONFIG ?= configs/tales.toml
# Everything goes through "python -m", since the scripts of a venv break where a path holds a space.
ifeq ($(OS),Windows_NT)
  BIN := .venv/Scripts/python.exe
else
  BIN := .venv/bin/python
endif

NUMERIC := tests/ops tests/variants tests/objectives tests/evaluation tests/test_model.py tests/test_loss.py \
  tests/test_optim.py tests/test_generation.py tests/test_trainer.py

.PHONY: train assistant test test-slow test-numeric notebooks faults scaling objectives ladder posttrain bench lint \
  clean

train: .venv/installed $(if $(findstring tales,$(CONFIG)),data/tales/meta.json)
	"$(BIN)" scripts/train.py --config $(CONFIG)

assistant: runs/tales-001/checkpoints/last data/requests/meta.json data/single_requests/meta.json
	"$(BIN)" scripts/train.py --config configs/posttrain/requests_sft.toml --run requests_sft --resume
	"$(BIN)" scripts/evaluate.py --run requests_sft
	"$(BIN)" scripts/train.py --config configs/posttrain/requests_grpo.toml --run requests_grpo --resume
	"$(BIN)" scripts/evaluate.py --run requests_grpo
	"$(BIN)" scripts/chat.py --run requests_grpo --temperature 0 \
	  --prompt "Tell me a tale about Mina, who lost a red hat, with a giant." \
	  --prompt "Who came along first?" --prompt "How many friends came?"

test: .venv/installed-dev lint
	"$(BIN)" -m pytest -n 2 --dist worksteal

test-slow: .venv/installed-dev
	"$(BIN)" -m pytest -n 2 --dist worksteal -m slow

test-numeric: .venv/installed-dev
	"$(BIN)" -m pytest -n 2 --dist worksteal $(NUMERIC)

faults: .venv/installed
	"$(BIN)" tests/faults.py
	"$(BIN)" tests/faults_together.py

scaling: .venv/installed
	"$(BIN)" benchmarks/plan_accuracy.py
	"$(BIN)" benchmarks/scaling.py
	"$(BIN)" benchmarks/scaling.py shakespeare

objectives: .venv/installed
	"$(BIN)" benchmarks/objectives.py

ladder: .venv/installed
	"$(BIN)" benchmarks/ladder.py

posttrain: .venv/installed
	"$(BIN)" benchmarks/post_training.py
	"$(BIN)" benchmarks/countdown.py

notebooks: .venv/installed-dev
	"$(BIN)" notebooks/run.py

bench: .venv/installed-dev
	"$(BIN)" scripts/benchmark.py

lint: .venv/installed-dev
	"$(BIN)" -m ruff check .
	"$(BIN)" -m ruff format --check .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info

data/tales/meta.json: gpt/text/tales.py gpt/text/grammar.py | .venv/installed
	"$(BIN)" scripts/prepare_data.py --input tales --tokenizer bpe:2048 --val_fraction 0.01 --out data/tales \
	  --overwrite

data/requests/meta.json: gpt/text/requests.py | data/tales/meta.json
	"$(BIN)" scripts/prepare_data.py --input requests:20000:1 --tokenizer data/tales/tokenizer.json \
	  --val_fraction 0.025 --out data/requests --overwrite

data/single_requests/meta.json: data/requests/meta.json
	"$(BIN)" scripts/prepare_data.py --input single-requests:4000:2 --tokenizer data/requests/tokenizer.json \
	  --val_fraction 0.05 --out data/single_requests --overwrite

runs/tales-001/checkpoints/last: | data/tales/meta.json
	"$(BIN)" scripts/train.py --config configs/tales.toml --run tales-001 --resume

.venv/installed: requirements.txt pyproject.toml
	"$(PYTHON)" -m venv .venv
	"$(BIN)" -m pip install --disable-pip-version-check -r requirements.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	"$(BIN)" -m pip install --disable-pip-version-check -r requirements.txt -e ".[dev]"
	@touch $@
