"""Fixtures and helpers that several test files share."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from blocks import GPT2_BLOCK

from gpt.config import DataConfig, GPTConfig, OptimConfig, TrainConfig
from gpt.system import kernels
from gpt.text.prepare import prepare_data
from gpt.text.sources import Corpus

torch.set_num_threads(1)  # the models are tiny: more threads would be slower

TEXT = "".join(
    f"{n} green bottles hanging on the wall, and if {n % 7} should fall there is more to sing.\n" for n in range(120)
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A test in a real browser is slow."""
    for item in items:
        if {"browser", "open_page"} & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test marked `forks` in a process of its own: a fork of one that has run other tests, with the threads of
    pytest-xdist and of PyTorch, may wait for a lock that one of them held."""
    if not pyfuncitem.get_closest_marker("forks") or "ALONE" in os.environ:
        return None
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "slow or not slow",
        "-p",
        "no:cacheprovider",
        pyfuncitem.nodeid,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, env={**environment, "ALONE": "1"}, cwd=pyfuncitem.config.rootpath, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def corpus_of(folder, *texts, separator=""):
    """Return a corpus of one file per text: a document each, or several with a separator."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{n:03}.txt" for n in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return Corpus("a corpus", paths, separator)


def pairs_of(folder, pairs):
    """Return a corpus of pairs, written as a .jsonl file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"q": prompt, "a": target}) for prompt, target in pairs)
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Corpus("pairs", [folder / "pairs.jsonl"], fields=("q", "a"))


def saved_state(step, config):
    """Return the state that a checkpoint stores after some steps."""
    return {
        "step": step,
        "tokens_seen": 9 * step,
        "report_due": False,
        "sums": [1.5, 2.0, 1.0],
        "grad_norm": None,
        "best_loss": None,
        "elapsed_s": 0.1,
        "data": {},
        "environment": {},
        "config": dataclasses.asdict(config),
    }


@pytest.fixture
def block():
    """The model's block in tests that are not parametrized with BLOCKS."""
    return GPT2_BLOCK


@pytest.fixture
def fresh_kernels(tmp_path, monkeypatch):
    """No choice of a product is known yet, and small weights have one too. Return the folder that remembers them."""
    monkeypatch.setattr(kernels, "MIN_NUMEL", 0)
    monkeypatch.setattr(kernels, "choices", {})
    monkeypatch.setattr(kernels, "_products", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Prepare a few thousand characters with a char tokenizer."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "bottles.txt").write_text(TEXT, encoding="utf-8")
    return prepare_data(Corpus("bottles", [folder / "bottles.txt"]), "char", folder / "bottles")


@pytest.fixture
def tiny_config(prepared):
    """Return the config of a short run with dropout, gradient accumulation, and more than one epoch."""
    return TrainConfig(
        seed=7,
        max_steps=12,
        batch_size=4,
        grad_accum_steps=2,
        log_every=3,
        eval_every=4,
        save_every=5,
        sample_every=6,
        sample_prompt="on the",
        device="cpu",
        model=GPTConfig(vocab_size=0, context_length=16, emb_dim=32, n_heads=4, n_layers=2, drop_rate=0.1, init="gpt2"),
        data=DataConfig(path=str(prepared.folder), stride=256),
        optim=OptimConfig(lr=3e-3, min_lr=3e-4, warmup_steps=3),
    )


@pytest.fixture
def pages():
    """Runs write their pages in this test."""


@pytest.fixture(autouse=True)
def _no_pages(request, monkeypatch):
    """Runs write no page unless a test asks for them: it takes longer than many a run."""

    def write(self, trainer):
        """Write nothing."""

    if "pages" not in request.fixturenames:
        monkeypatch.setattr("gpt.run.callbacks.Page.write", write)


@pytest.fixture(autouse=True)
def _same_draws():
    torch.manual_seed(0)
