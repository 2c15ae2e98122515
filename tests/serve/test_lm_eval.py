"""lm_eval, EleutherAI's harness, on the served model and on the exported one: the log-likelihoods of evaluate.py."""

import json
import os
import subprocess
import sys

import pytest
import torch
from served import running

from gpt.exchange.models import open_model
from gpt.text import tales
from scripts import run_script

TASK = """\
task: tales
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/tales.jsonl
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}<|endoftext|>"
metric_list:
  - metric: bits_per_byte
"""

CONFIG = """\
max_steps = 30
[data]
path = "data"
packing = "document"
[model]
vocab_size = 0
context_length = 512
emb_dim = 32
n_heads = 2
n_layers = 2
tie_embeddings = true
qkv_bias = true
init = "gpt2"
"""


@pytest.mark.slow
def test_the_log_likelihoods_are_ours(tmp_path, monkeypatch, capsys):
    """Of ten tales, each with the token that ends it. Offline, on a task of our own."""
    pytest.importorskip("lm_eval", reason="lm_eval belongs to the extra judges")
    pytest.importorskip("tenacity", reason="lm_eval[api] belongs to the extra judges")
    monkeypatch.chdir(tmp_path)
    assert run_script("prepare_data --input tales:200:1 --tokenizer bpe:400 --out data") == 0
    (tmp_path / "small.toml").write_text(CONFIG)
    assert run_script("train --config small.toml --run runs/small") == 0
    assert run_script("export --run runs/small --out exported") == 0
    texts = tales.generate(10, seed=99)
    (tmp_path / "tales.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tales.yaml").write_text(TASK.format(folder=tmp_path))
    loaded = open_model(tmp_path / "runs" / "small")
    end, ours = loaded.tokenizer.eot_id, []
    for text in texts:
        ids = torch.tensor([[end, *loaded.tokenizer.encode(text), end]])
        with torch.no_grad():
            ours.append(-float(loaded.objective.model(ids[:, :-1], ids[:, 1:], reduction="sum")))
    capsys.readouterr()
    assert run_script("evaluate --run runs/small --text tales.jsonl --field text --continuations 0") == 0
    printed = capsys.readouterr().out
    n_tokens = sum(len(loaded.tokenizer.encode(text)) + 1 for text in texts)
    assert (
        f"{n_tokens:,} tokens predicted" in printed and f"loss            {-sum(ours) / n_tokens:.4f} nats" in printed
    )

    def harness(kind, model):
        command = [sys.executable, "-m", "lm_eval", "--model", kind, "--model_args", model, "--tasks", "tales"]
        command += ["--include_path", "tasks", "--output_path", kind, "--log_samples", "--device", "cpu"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
        env = os.environ | offline | {"HF_HOME": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        (log,) = (tmp_path / kind).rglob("samples*.jsonl")
        samples = sorted(map(json.loads, log.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        return [float(sample["resps"][0][0]) for sample in samples]

    assert harness("hf", "pretrained=exported,add_bos_token=False") == pytest.approx(ours, abs=1e-3)
    with running(loaded, rows=4, queue=64) as (_, url):
        model = f"model=tiny,base_url={url}/v1/completions,tokenizer=exported,max_length=512,num_concurrent=4"
        assert harness("local-completions", model) == pytest.approx(ours, abs=1e-3)
