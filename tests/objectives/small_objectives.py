"""Small data and short runs for the tests of the objectives."""

import pytest
import torch
from conftest import corpus_of, pairs_of
from conversations import write_conversations
from runs import change, train

from gpt.config import DataConfig, GPTConfig, ObjectiveConfig, TrainConfig
from gpt.exchange.models import create_objective, resolve_config
from gpt.text.prepare import prepare_data
from gpt.token_files import load_data
from gpt.tokenizer import CharTokenizer

TEXTS = [f"{n} green bottles, {'one ' * (n % 5)}more" for n in range(40)]
DATA = {"sft": "pairs", "dpo": "preferences"}  # of the workspace; of other objectives "documents"
PAIRS = [(f"{'green ' * (n % 4)}{n % 7} and {n % 5} bottles", f"{n % 7 + n % 5}.") for n in range(30)]

# of one to three turns, of which the answers count
TALKS = [[(part, k == 1) for p in PAIRS[n : n + 1 + n % 3] for k, part in enumerate(p)] for n in range(27)]
PREFERENCES = [
    [(prompt, False), (answer, True)] for prompt, chosen in PAIRS for answer in (chosen, f"{len(prompt)} bottles")
]


def create_workspace(folder):
    """Return a folder with documents, pairs and conversations of the same characters, and a teacher trained on the
    documents."""
    tokenizer = CharTokenizer("".join([*TEXTS, *map("".join, PAIRS)]), end_of_text=True)
    tokenizer.save(folder / "tokenizer.json")
    write_conversations(folder / "conversations", tokenizer, TALKS[:20], TALKS[20:])
    write_conversations(folder / "preferences", tokenizer, PREFERENCES[:40], PREFERENCES[40:], preferences=True)
    prepare_data(corpus_of(folder / "texts", *TEXTS), str(folder / "tokenizer.json"), folder / "documents")
    prepare_data(pairs_of(folder / "texts", PAIRS), str(folder / "tokenizer.json"), folder / "pairs", 0.2)
    config = short_config("next_token", folder, max_steps=4, save_every=2, eval_every=2, model_n_layers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)  # it takes most of the time
        train(config, folder / "runs" / "teacher")
    return folder


def short_config(name, workspace, **changes):
    """Return the config of a short run with an objective; model_drop_rate=0 sets model.drop_rate."""
    teacher = str(workspace / "runs" / "teacher")
    config = TrainConfig(
        seed=3,
        max_steps=6,
        batch_size=4,
        grad_accum_steps=2,
        log_every=2,
        eval_every=3,
        save_every=4,
        sample_every=3,
        device="cpu",
        init_from=teacher if name == "dpo" else "",
        model=GPTConfig(0, 48, emb_dim=16, n_heads=2, n_layers=2 if name == "dpo" else 1, drop_rate=0.1),
        data=DataConfig(path=str(workspace / DATA.get(name, "documents")), packing="document"),
        objective=ObjectiveConfig(name=name, teacher=teacher if name == "distill" else ""),
    )
    return change(config, **changes)


def create(name, workspace, **changes):
    """Return an objective as a Trainer creates it, its config and its data."""
    config = short_config(name, workspace, **changes)
    config, data = resolve_config(config, load_data(config.data.path))
    objective = create_objective(config).eval()
    objective.prepare(config, data)
    return objective, config, data


def log_probability(model, ids, first=1):
    """Return ln p of a sequence's tokens from number `first` on, by one forward pass per prefix."""
    total = 0.0
    for place in range(first, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]]))[0, -1]
        total += float(torch.log_softmax(logits.double(), 0)[ids[place]])
    return total
