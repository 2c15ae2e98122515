"""Make the runs that notebook 16 takes apart: six runs on tales, each with something wrong. This file names what.

    python notebooks/solutions/make_broken_runs.py           # all six, into notebooks/broken_runs/
    python notebooks/solutions/make_broken_runs.py run-c     # one of them

They are trained as scripts/train.py trains; what is wrong is in the config or in the text, never in the code. Of each
run the small files are kept: config.toml, metrics.csv, samples.txt, tokenizer.json and state.json, meta.json of the
data, its validation tales (val.txt), some of its training tales (train.txt: all of them up to 200, else 60) and the
losses to compare with (baselines.json).
"""

import contextlib
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt.config import TrainConfig, from_dict
from gpt.run.callbacks import Page, Plot, baselines_of
from gpt.run.training import start_run
from gpt.text import tales
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus

HERE = Path(__file__).parents[1] / "broken_runs"
N_TRAIN, N_FEW, N_VAL, N_LEAKED = 3000, 100, 40, 36  # tales
N_SHOWN, MAX_SHOWN = 60, 200  # training tales in train.txt
BASE: dict[str, Any] = {
    "max_steps": 400, "batch_size": 4, "log_every": 5, "eval_every": 40, "save_every": 0, "sample_every": 200,
    "seed": 1, "device": "cpu", "dtype": "float32",
    "model": {"vocab_size": 0, "context_length": 288, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0,
              "qkv_bias": True, "tie_embeddings": True, "init": "lecun"},
    "optim": {"name": "muon", "lr": 1e-2, "min_lr": 5e-4, "warmup_steps": 20, "beta2": 0.99},
}  # fmt: skip

WRONG: dict[str, tuple[str, dict[str, Any]]] = {  # what is wrong, and the settings that differ from BASE
    "run-a": ("tokenizer", {"model": {"context_length": 512}}),  # byte pairs learned from another text
    "run-b": ("leak", {}),  # most of the validation tales are training tales
    "run-c": ("memorised", {}),  # a hundred tales, each read 16 times
    "run-d": ("rate", {"optim": {"lr": 1.0, "min_lr": 0.01, "warmup_steps": 200}}),  # rises until the run breaks
    "run-e": ("shift", {}),  # split by villain: that of the validation tales is in no training tale
    "run-f": ("warmup", {"optim": {"warmup_steps": 20000}}),  # longer than the run: the rate stays tiny
}


def texts(wrong: str) -> tuple[list[str], list[str]]:
    """Return the training and validation tales of a run in which this is wrong."""
    found = [tale.strip() for tale in tales.generate(N_TRAIN + N_VAL, seed=16)]
    train, val = found[:-N_VAL], found[-N_VAL:]
    if wrong == "shift":
        last = max(tales.facts(tale).villain for tale in found)
        train = [tale for tale in found if tales.facts(tale).villain != last]
        val = [tale for tale in found if tales.facts(tale).villain == last][:N_VAL]
    if wrong == "memorised":
        train = train[:N_FEW]
    if wrong == "leak":
        train = [*train[: N_FEW - N_LEAKED], *val[:N_LEAKED]]
        random.Random(16).shuffle(train)
    return train, val


def make(name: str, out: Path) -> None:
    """Train a run and write its small files to the folder `out`."""
    wrong, changes = WRONG[name]
    train, val = texts(wrong)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("train.txt").write_text("\n".join(train) + "\n", encoding="utf-8")
        Path("val.txt").write_text("\n".join(val) + "\n", encoding="utf-8")
        tokenizer = "bpe:2048"
        if wrong == "tokenizer":
            prepare_data(open_corpus("story"), "bpe:512", Path("data", "tokens"))
            tokenizer = "data/tokens/tokenizer.json"
        corpora = [open_corpus(file, "\n") for file in ("train.txt", "val.txt")]
        prepare_data(corpora[0], tokenizer, Path("data", name), val_corpus=corpora[1])
        settings = {key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
                    for key, value in BASE.items()}  # fmt: skip
        config = from_dict(TrainConfig, {**settings, "data": {"path": f"data/{name}", "packing": "document"}})
        trainer = start_run(config, Path(name), log=lambda line: None)
        trainer.callbacks[:] = [c for c in trainer.callbacks if not isinstance(c, Page | Plot)]
        trainer.train()
        shutil.rmtree(out, ignore_errors=True)
        steps = Path("checkpoints", f"step-{config.max_steps:06}")
        (out / steps).mkdir(parents=True)
        for file in ("config.toml", "metrics.csv", "samples.txt", "tokenizer.json", steps / "state.json"):
            shutil.copy(Path(name, file), out / file)
        shutil.copy(Path(name, "checkpoints", "last"), out / "checkpoints")
        shutil.copy(Path("data", name, "meta.json"), out)
        baselines = baselines_of(trainer)
    shown = train if len(train) <= MAX_SHOWN else train[:: len(train) // N_SHOWN][:N_SHOWN]
    (out / "train.txt").write_text("\n".join(shown) + "\n", encoding="utf-8")
    (out / "val.txt").write_text("\n".join(val) + "\n", encoding="utf-8")
    losses = {"losses": baselines.losses, "floor": baselines.entropy_floor_loss, "n_tokens": baselines.n_tokens}
    (out / "baselines.json").write_text(json.dumps(losses, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for run in sys.argv[1:] or WRONG:
        make(run, HERE / run)
        print(HERE / run)
