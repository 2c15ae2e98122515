"""lm_eval, EleutherAI's harness, with its own definitions of the tasks, on questions of our own: the same answers."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from questions import RECORDS, write_tasks

from gpt.evaluation.ranking import answer_questions
from gpt.evaluation.tasks import TASKS, read_questions, task_file
from gpt.exchange.models import open_model
from scripts import run_script

YAML = {  # where the harness defines each task
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
}
OUR_FILE = """\
include: {yaml}
task: {name}_ours
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    test: {file}
training_split: null
validation_split: null
test_split: test
"""
CONFIG = """\
max_steps = 150
batch_size = 8
eval_every = 0
device = "cpu"
[data]
path = "data/cats"
packing = "document"
[model]
vocab_size = 0
context_length = 64
emb_dim = 32
n_heads = 2
n_layers = 2
tie_embeddings = true
qkv_bias = true
init = "gpt2"
[optim]
lr = 1e-2
"""


def trained(folder):
    """A run whose texts each start with the end-of-text token, trained on cats until it knows some last words."""
    cats = [f"{i} cats sat on the {('mat', 'wall')[i % 2]}" for i in range(40)] + ["the dog sat on the mat"] * 20
    (folder / "cats.txt").write_text("\n".join(cats), encoding="utf-8")
    assert run_script(r"prepare_data --input cats.txt --separator '\n' --tokenizer bpe:300 --out data/cats") == 0
    (folder / "cats.toml").write_text(CONFIG)
    assert run_script("train --config cats.toml --run runs/cats") == 0
    assert run_script("export --run runs/cats --out exported") == 0
    return open_model(folder / "runs" / "cats")


def random_gpt2(folder):
    """A model of GPT-2's shape with its tokens and random weights, which transformers wrote; no text has a start."""
    import transformers

    torch.manual_seed(0)
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).save_pretrained(folder / "exported")
    from gpt.text.hf_tokenizer import to_hf
    from gpt.tokenizer import load_tokenizer

    (folder / "exported" / "tokenizer.json").write_text(json.dumps(to_hf(load_tokenizer("gpt2"), False)))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "exported" / "tokenizer_config.json").write_text(json.dumps(config))
    return open_model(None, pretrained=str(folder / "exported"))


def harness(folder):
    """Let the harness ask a model of transformers. Return its results and samples by task."""
    definitions = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks"
    (folder / "yaml").mkdir()
    for name, yaml in YAML.items():
        file = folder / "data" / "tasks" / f"{name}.jsonl"
        (folder / "yaml" / f"{name}.yaml").write_text(OUR_FILE.format(yaml=definitions / yaml, name=name, file=file))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", "pretrained=exported"]
    command += ["--tasks", ",".join(f"{name}_ours" for name in YAML), "--include_path", "yaml"]
    command += ["--output_path", "out", "--log_samples", "--device", "cpu", "--batch_size", "4"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=400, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (folder / "out").rglob("results*.json")
    samples = {}
    for name in YAML:
        (log,) = (folder / "out").rglob(f"samples_{name}_ours_*.jsonl")
        lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
        samples[name] = sorted(lines, key=lambda sample: sample["doc_id"])
    return json.loads(results.read_text())["results"], samples


@pytest.mark.slow
@pytest.mark.parametrize("model", [trained, random_gpt2])
def test_the_answers_are_those_of_the_harness(tmp_path, monkeypatch, model):
    """Each choice has the same log-probability, each question the same answer. Some texts exceed the context of 64
    tokens, some contexts are empty, some end with spaces; there are several scripts, and choices that begin alike."""
    pytest.importorskip("lm_eval", reason="lm_eval belongs to the extra judges")
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    loaded = model(tmp_path)
    results, samples = harness(tmp_path)
    assert YAML.keys() == TASKS.keys() == RECORDS.keys()
    for name, theirs in samples.items():
        questions = read_questions(name, task_file(name))
        ours = answer_questions(loaded, name, questions, batch_size=3)
        assert len(theirs) == len(ours.correct) == len(RECORDS[name])
        for n, (question, found, sample) in enumerate(zip(questions, ours.log_probabilities, theirs, strict=True)):
            expected = [[*argument.values()] for argument in sample["arguments"].values()]
            assert [list(text) for text in question.texts] == expected, f"{name} {n}"
            expected = [float(response[0][0]) for response in sample["resps"]]
            # float32 sums over some 64 tokens, each to 1e-6 of about 10 nats
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4, err_msg=f"{name} {n}")
        assert ours.correct.tolist() == [bool(sample["acc"]) for sample in theirs], name
        assert float(ours.correct.mean()) == pytest.approx(results[f"{name}_ours"]["acc,none"])
        if TASKS[name].acc_norm:
            assert ours.correct_norm.tolist() == [bool(sample["acc_norm"]) for sample in theirs], name
        else:
            assert "acc_norm,none" not in results[f"{name}_ours"]
            assert ours.correct_norm is None
    perplexity = results["lambada_openai_ours"]["perplexity,none"]
    assert math.log(ours.perplexity()[0]) == pytest.approx(math.log(perplexity), abs=1e-4)
    if model is trained:
        assert 0 < ours.correct.sum() < len(ours.correct), "some last words must be known"
