"""The objectives against losses written out token by token, PyTorch's functions, and sources that can be counted."""

import copy
import dataclasses
import math
import re
import shutil
from collections import Counter
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import corpus_of, pairs_of
from runs import assert_same_run, change, quiet, stop_at, train
from torch import nn

from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, DataConfig, GPTConfig, ObjectiveConfig, TrainConfig, from_dict, read_toml
from gpt.evaluation.baselines import compute_baselines
from gpt.evaluation.ngrams import ngram_log_probabilities
from gpt.evaluation.samples import check_samples
from gpt.exchange.models import create_objective, load_model, load_objective, resolve_config
from gpt.generation import generate, generate_text_simple
from gpt.model import GPTModel
from gpt.objectives import OBJECTIVES
from gpt.objectives.distill import distillation_loss
from gpt.objectives.next_token import NextToken
from gpt.objectives.objective import Objective, example_rng
from gpt.objectives.reverse import Reverse
from gpt.objectives.sft import SFT, PairExamples
from gpt.run.callbacks import CSVLog, SampleLog
from gpt.run.plots import read_metrics
from gpt.run.training import resume_run, start_run
from gpt.text import tales
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
from gpt.token_files import load_data
from gpt.tokenizer import CharTokenizer
from gpt.trainer import Trainer
from scripts import run_script

NAMES = pytest.mark.parametrize("name", OBJECTIVES)
TEXTS = [f"{n} green bottles, {'one ' * (n % 5)}more" for n in range(40)]
PAIRS = [(f"{'green ' * (n % 4)}{n % 7} and {n % 5} bottles", f"{n % 7 + n % 5}.") for n in range(30)]


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """Pictures and long samples take most of the time of a tiny run."""
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder that holds documents and pairs, of the same characters, and a teacher that has read the documents."""
    folder = tmp_path_factory.mktemp("shelf")
    CharTokenizer("".join([*TEXTS, *map("".join, PAIRS)]), end_of_text=True).save(folder / "tokenizer.json")
    prepare_data(corpus_of(folder / "texts", *TEXTS), str(folder / "tokenizer.json"), folder / "documents")
    prepare_data(pairs_of(folder / "texts", PAIRS), str(folder / "tokenizer.json"), folder / "pairs", 0.2)
    config = config_of("next_token", folder, max_steps=4, save_every=2, eval_every=2, model_n_layers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)
        train(config, folder / "runs" / "teacher")
    return folder


def config_of(name, shelf, **changes):
    """A run of an instant with the objective of this name; model_drop_rate=0 stands for model.drop_rate."""
    data = shelf / ("pairs" if name == "sft" else "documents")
    teacher = {"teacher": str(shelf / "runs" / "teacher")} if name == "distill" else {}
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
        model=GPTConfig(vocab_size=0, context_length=48, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.1),
        data=DataConfig(path=str(data), packing="document"),
        objective=ObjectiveConfig(name=name, **teacher),
    )
    return change(config, **changes)


def fitted(name, shelf, **changes):
    """An objective as a Trainer makes it, its config and its data."""
    config = config_of(name, shelf, **changes)
    config, data = resolve_config(config, load_data(config.data.path))
    return create_objective(config).eval(), config, data


def log_probability(model, ids, first=1):
    """ln of the probability of a sequence's tokens from number `first` on, one prefix after the other."""
    total = 0.0
    for place in range(first, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]]))[0, -1]
        total += float(torch.log_softmax(logits.double(), 0)[ids[place]])
    return total


# --- what all of them have ------------------------------------------------------------------------------------------


def test_every_objective_may_be_named_in_a_config():
    (kind,) = (field.type for field in dataclasses.fields(ObjectiveConfig) if field.name == "name")
    assert set(OBJECTIVES) <= set(get_args(kind))
    assert {"next_token", "reverse", "sft", "distill"} <= set(OBJECTIVES)
    assert ObjectiveConfig().name == "next_token"


@NAMES
def test_a_stopped_run_is_the_run_that_never_stopped(name, shelf, tmp_path):
    config = config_of(name, shelf)
    truth = train(config, tmp_path / "truth")
    assert from_dict(TrainConfig, read_toml(tmp_path / "truth" / "config.toml")) == truth.config
    assert truth.config.objective.name == name
    stop_at(start_run(config, tmp_path / "run", quiet), 1)
    stop_at(resume_run(tmp_path / "run", log=quiet), 3)
    stop_at(resume_run(tmp_path / "run", config, log=quiet), 5)
    resume_run(tmp_path / "run", log=quiet).train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    for figure in ("val_loss", *truth.objective.metrics):
        assert not math.isnan(columns[figure][-1])


@NAMES
def test_micro_batches_of_any_size_make_the_same_steps(name, shelf, tmp_path):
    weights = []
    for batch_size in (8, 2, 1):
        objective, config, data = fitted(
            name, shelf, model_drop_rate=0.0, batch_size=batch_size, grad_accum_steps=8 // batch_size, max_steps=4
        )
        torch.manual_seed(0)
        teacher = {"teacher": objective._teacher[0]} if name == "distill" else {}
        objective = OBJECTIVES[name](GPTModel(config.model), config.objective, **teacher).double()
        run = RunFolder(tmp_path / str(batch_size))
        run.create(config, data.tokenizer)
        CSVLog.create(run.metrics, objective.metrics)
        run.samples.touch()
        Trainer(config, objective, data, run, callbacks=[CSVLog(), SampleLog()], log=quiet).train()
        weights.append(torch.cat([p.detach().flatten() for p in objective.parameters()]))
    # A gradient of norm 1 or less sums 8 · 48 tokens in another order. AdamW divides its rounding by at least 1e-8.
    rounding = torch.finfo(torch.float64).eps * math.sqrt(8 * 48)
    for other in weights[1:]:
        torch.testing.assert_close(weights[0], other, rtol=0, atol=config.max_steps * config.optim.lr * rounding / 1e-8)


@NAMES
def test_a_batch_is_a_function_of_its_arguments_and_padding_changes_nothing(name, shelf):
    objective, config, data = fitted(name, shelf)
    examples = objective.examples(config, data, data.train)
    together = objective.batch(examples, range(6), (3, 5))
    again = objective.batch(examples, range(6), (3, 5))
    assert all(torch.equal(tensor, again[key]) for key, tensor in together.items())
    total, count = objective(**together)
    parts = [objective(**objective.batch(examples, [i], (3, 5))) for i in range(6)]
    assert int(count) == sum(int(n) for _, n in parts)
    assert total.item() == pytest.approx(sum(loss.item() for loss, _ in parts), rel=1e-5)
    assert len({tuple(batch.shape) for batch in (objective.batch(examples, [i], (0,))["inputs"] for i in range(6))}) > 1


@NAMES
def test_a_run_can_be_measured_and_writes_or_says_why_not(name, shelf, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    train(config_of(name, shelf, sample_every=0), tmp_path / "runs" / "mine")
    capfd.readouterr()
    assert run_script("evaluate --run mine --continuations 2") == 0
    out, _ = capfd.readouterr()
    assert "this run" in out
    best = np.nanmin(read_metrics(tmp_path / "runs" / "mine" / "metrics.csv")["val_loss"][1:])
    assert float(re.search(r"^loss +([\d.]+) nats", out, re.MULTILINE)[1]) == pytest.approx(best, abs=1e-4)
    commands = ["generate --run mine --prompt '7 green' --max_new_tokens 5", "generate --run mine --prompt ''"]
    commands += ["evaluate --run mine --text story --stride 3", "evaluate --run mine --checkpoint all"]
    commands += ["evaluate --run mine --weights int8", "generate --run mine --prompt '7' --weights int8"]
    for command in commands:
        status = run_script(command)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        if status:
            assert status == 2
            assert err.splitlines()[-1].startswith(f"{command.split()[0]}.py: error: ")
        elif command.startswith("generate"):
            assert out.strip()


@NAMES
def test_prompts_are_continued_or_their_blanks_filled(name, shelf, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    objective = train(config_of(name, shelf, max_steps=2), tmp_path / "runs" / "mine").objective
    prompt = "7 green" if objective.continues_prompts else "7 green[MASK] more"
    assert run_script(f"generate --run mine --prompt '{prompt}' --max_new_tokens 5") == 0
    out, _ = capfd.readouterr()
    assert "7 green" in out
    assert "[MASK]" not in out
    if not objective.continues_prompts:
        assert run_script("generate --run mine --prompt '7 green'") == 2
        assert "write [MASK] into the prompt" in capfd.readouterr()[1]
    for arguments in ("--text story", "--weights int8") if not objective.reads_any_text else ():
        assert run_script(f"evaluate --run mine {arguments}") == 2
        words = f"{arguments.removesuffix(' story')} is for models that predict the next token"
        assert words in capfd.readouterr()[1]


@pytest.mark.parametrize("adapter", [AdapterConfig("lora", rank=2), AdapterConfig("prefix", length=3)])
@pytest.mark.parametrize("name", ["sft", "distill"])
def test_any_objective_trains_an_adapter(shelf, tmp_path, adapter, name):
    config = config_of(name, shelf, adapter=adapter, init_from=str(shelf / "runs" / "teacher"), model=GPTConfig(0))
    truth = train(config, tmp_path / "truth")
    stop_at(start_run(config, tmp_path / "run", quiet), 3)
    resume_run(tmp_path / "run", config, quiet).train()  # the shape of the model is left out of it here too
    assert_same_run(tmp_path / "run", tmp_path / "truth")
    trained = {n for n, p in truth.objective.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in n or "prefix" in n for n in trained)
    assert math.isfinite(truth.evaluation.loss)


class Drawn(Objective):
    """Tokens that are counted or not as they are drawn."""

    metrics = ("val_mean_token", "val_nothing")

    def batch(self, examples, indices, key):
        inputs, targets = examples.batch(indices)
        for row, index in enumerate(indices):
            kept = torch.from_numpy(example_rng(key, index).random(targets.size(1)) < 0.5)
            targets[row] = targets[row].where(kept, torch.tensor(-100))
        return {"inputs": inputs, "targets": targets}

    def forward(self, inputs, targets):
        return self.model(inputs, targets, reduction="sum"), (targets != -100).sum()

    def eval_batch(self, inputs, targets):
        counted = targets != -100
        return {
            "loss": self(inputs, targets),
            "val_mean_token": (targets[counted].sum(), counted.sum()),
            "val_nothing": (torch.tensor(0.0), torch.tensor(0)),
        }


def test_what_is_drawn_depends_on_the_key_and_on_the_window():
    assert example_rng((1, 2), 3).random(4).tolist() == example_rng((1, 2), 3).random(4).tolist()
    others = [
        example_rng((1, 2), 4),
        example_rng((1, 3), 3),
        example_rng((2, 2), 3),
        example_rng((0,), 3),
        example_rng((3, 2), 1),
    ]
    assert len({example_rng((1, 2), 3).random(), *(generator.random() for generator in others)}) == 6


@pytest.mark.parametrize("eval_batches", [0, 1, 2, 3, 100])
def test_an_evaluation_is_a_plain_loop_over_batches_spread_evenly(shelf, eval_batches):
    base, config, data = fitted("next_token", shelf, batch_size=1, eval_batches=eval_batches)
    objective = Drawn(base.model)
    examples = objective.examples(config, data, data.val)
    n = len(examples)
    assert n == 4
    read = {0: [0, 1, 2, 3], 1: [0], 2: [0, 2], 3: [0, 1, 2], 100: [0, 1, 2, 3]}[eval_batches]
    nats, tokens = 0.0, []
    for index in read:
        inputs, targets = examples[index]
        kept = example_rng((0,), index).random(len(targets)) < 0.5
        losses = F.cross_entropy(base.model(inputs[None])[0], targets, reduction="none")
        nats += losses[torch.from_numpy(kept)].sum().item()
        tokens += targets[torch.from_numpy(kept)].tolist()
    found = objective.evaluate(config, data)
    assert found.loss == pytest.approx(nats / len(tokens), rel=1e-5)
    assert found.n_tokens == len(tokens)
    assert found.metrics == {"val_mean_token": pytest.approx(np.mean(tokens)), "val_nothing": 0.0}


@NAMES
def test_evaluating_touches_no_random_state_and_no_mode(name, shelf):
    objective, config, data = fitted(name, shelf)
    objective.train()
    objective.model.final_norm.eval()
    modes = {key: module.training for key, module in objective.named_modules()}
    torch.rand(3), np.random.rand(3)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = objective.evaluate(config, data)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert {key: module.training for key, module in objective.named_modules()} == modes
    assert first.loss == objective.evaluate(config, data).loss, "no dropout, nothing else at random"
    assert not any(p.grad is not None for p in objective.parameters())


# --- next-token prediction -------------------------------------------------------------------------------------------


def test_labels_are_smoothed_in_training_alone(shelf):
    objective, config, data = fitted(
        "next_token", shelf, model_drop_rate=0.0, objective=ObjectiveConfig(label_smoothing=0.3)
    )
    batch = objective.batch(objective.examples(config, data, data.train), range(5), (0,))
    logits = objective.model(batch["inputs"]).flatten(0, 1)
    truth = {
        smoothing: F.cross_entropy(logits, batch["targets"].flatten(), reduction="sum", label_smoothing=smoothing)
        for smoothing in (0.0, 0.3)
    }
    assert abs(truth[0.3] - truth[0.0]) > 0.1
    objective.eval()
    torch.testing.assert_close(objective(**batch)[0], truth[0.0])
    torch.testing.assert_close(objective.eval_batch(**batch)["loss"][0], truth[0.0])
    whole = objective.evaluate(config, data).loss
    objective.train()
    torch.testing.assert_close(objective(**batch)[0], truth[0.3])
    assert objective.evaluate(config, data).loss == whole
    assert int(objective(**batch)[1]) == int((batch["targets"] != -100).sum())


@pytest.mark.parametrize("name", ["reverse", "sft", "distill"])
def test_other_objectives_smooth_theirs_too(name, shelf):
    objective, config, data = fitted(name, shelf, model_drop_rate=0.0)
    objective.config = dataclasses.replace(objective.config, label_smoothing=0.3)
    if name == "distill":
        objective.config = dataclasses.replace(objective.config, label_weight=1.0)
    batch = objective.batch(objective.examples(config, data, data.train), range(5), (0,))
    logits, targets = objective.model(batch["inputs"]).flatten(0, 1), batch["targets"].flatten()
    for mode, smoothing in ((True, 0.3), (False, 0.0)):
        truth = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        torch.testing.assert_close(objective.train(mode)(**batch)[0], truth)


# --- the text from its end -------------------------------------------------------------------------------------------


def test_the_tokens_are_turned_and_the_texts_are_not(shelf):
    data = load_data(shelf / "documents")
    turned = Reverse.transform(data)
    for split, other in ((data.train, turned.train), (data.val, turned.val)):
        assert other.tokens.tolist() == split.tokens.tolist()[::-1]
        assert list(turned.documents(other)) == list(data.documents(split))[::-1]
    assert turned.train_texts == data.train_texts == frozenset(TEXTS[:36])
    again = Reverse.transform(turned)
    assert again.val.tokens.tolist() == data.val.tokens.tolist()
    assert list(again.documents(again.val)) == TEXTS[36:]


def test_a_text_that_is_not_divided_is_turned_too(tmp_path):
    data = Reverse.transform(prepare_data(corpus_of(tmp_path / "in", "abcdefghij" * 5), "char", tmp_path / "out"))
    assert "".join(data.documents(data.val)) == "fghij"
    assert data.tokenizer.decode(data.val.tokens) == "jihgf"
    config = TrainConfig(model=GPTConfig(vocab_size=0, context_length=4), data=DataConfig(path=str(data.folder)))
    objective = Reverse(GPTModel(GPTConfig(vocab_size=10, context_length=4, emb_dim=8, n_heads=2, n_layers=1)))
    batch = objective.batch(objective.examples(config, data, data.train), [0], (0,))
    assert {key: data.tokenizer.decode(ids[0].tolist()) for key, ids in batch.items()} == {
        "inputs": "edcb",
        "targets": "dcba",
    }
    assert not objective.has_entropy_floor(config)


def test_the_loss_of_reverse_is_that_of_the_reversed_tokens_one_by_one(shelf):
    objective, config, data = fitted("reverse", shelf)
    encode, eot_id = data.tokenizer.encode, data.tokenizer.eot_id
    expected = [-log_probability(objective.model, [eot_id, *encode(text)[::-1], eot_id]) for text in TEXTS[:35:-1]]
    found = objective.evaluate(config, data)
    assert found.sums.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.counts.tolist() == [len(text) + 1 for text in TEXTS[:35:-1]]
    assert found.bytes_per_token == data.val.bytes / sum(len(text) + 1 for text in TEXTS[36:])
    batch = objective.batch(objective.examples(config, data, data.train), [0], (0,))
    assert batch["inputs"].tolist() == [[eot_id, *encode(TEXTS[35])[::-1]]]
    assert batch["targets"].tolist() == [[*encode(TEXTS[35])[::-1], eot_id]]
    assert objective(**batch)[0].item() == pytest.approx(
        -log_probability(objective.model, [eot_id, *encode(TEXTS[35])[::-1], eot_id]), rel=1e-5
    )


class Exact(nn.Module):
    """A model that knows the source, a table of sequences and their probabilities: p(next | so far), by counting."""

    config = GPTConfig(vocab_size=3, context_length=8)

    def __init__(self, source):
        super().__init__()
        self.source = source

    def probability(self, prefix):
        return math.fsum(p for sequence, p in self.source.items() if sequence[: len(prefix)] == prefix)

    def forward(self, inputs, targets, reduction="none", **_):
        losses = torch.zeros(targets.shape, dtype=torch.float64)
        for row, column in (targets != -100).nonzero().tolist():
            prefix = tuple(inputs[row, 1 : column + 1].tolist())
            further = (*prefix, int(targets[row, column]))
            losses[row, column] = -math.log(self.probability(further) / self.probability(prefix))
        return losses


def test_a_source_has_the_same_entropy_from_either_end(tmp_path):
    """Words over two letters, not the same from both ends: each model knows all conditional probabilities of its own
    direction, and both find -ln p of each word."""
    words = {"a": 0.4, "ab": 0.2, "abb": 0.1, "bab": 0.05, "bb": 0.05, "baa": 0.2}
    texts = [*words, *words, "abb", "baa"]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), "char", tmp_path / "out", 8 / 14)
    model = GPTConfig(vocab_size=3, context_length=8)
    config = TrainConfig(model=model, data=DataConfig(path=str(data.folder), packing="document"))
    found = {}
    for kind, order in ((NextToken, 1), (Reverse, -1)):
        source = {(*data.tokenizer.encode(word)[::order], 2): p for word, p in words.items()}
        found[kind] = kind(Exact(source)).evaluate(config, kind.transform(data))
    truth = [-math.log(words[text]) for text in texts[6:]]
    assert found[NextToken].sums.tolist() == pytest.approx(truth, rel=1e-6)
    assert found[Reverse].sums.tolist() == pytest.approx(truth[::-1], rel=1e-6)
    assert found[Reverse].loss == pytest.approx(sum(truth) / sum(len(text) + 1 for text in texts[6:]), rel=1e-6)


@pytest.fixture(scope="module")
def some_tales(tmp_path_factory):
    return prepare_data(open_corpus("tales:30"), "char", tmp_path_factory.mktemp("tales") / "data", 0.1)


def test_the_floor_of_tales_is_that_of_each_tale_and_baselines_read_from_the_right(some_tales):
    texts = tales.generate(30)
    data = Reverse.transform(some_tales)
    config = TrainConfig(data=DataConfig(path=str(data.folder), packing="document"))
    objective = Reverse(GPTModel(GPTConfig(vocab_size=5, emb_dim=8, n_heads=2, n_layers=1)))
    measure, forwards = (
        compute_baselines(objective, config, data),
        compute_baselines(NextToken(objective.model), config, some_tales),
    )
    assert measure.entropy_floor.tolist() == pytest.approx([-tales.log_probability(text) for text in texts[:26:-1]])
    assert forwards.entropy_floor.tolist() == pytest.approx([-tales.log_probability(text) for text in texts[27:]])
    train, val = (np.array(split.tokens.tolist()[::-1]) for split in (some_tales.train, some_tales.val))
    trigram = -ngram_log_probabilities(train, val, 3, data.tokenizer.vocab_size).mean()
    assert measure.losses["trigram"] == pytest.approx(trigram)
    assert measure.losses["trigram"] != pytest.approx(forwards.losses["trigram"], abs=1e-4)
    assert measure.losses["unigram"] == pytest.approx(forwards.losses["unigram"])
    assert measure.n_tokens == forwards.n_tokens
    for other in (
        dataclasses.replace(config, eval_batches=2),
        dataclasses.replace(config, data=DataConfig(path=str(data.folder))),
    ):
        assert compute_baselines(objective, other, data).entropy_floor is None


def test_tales_that_are_written_from_their_end_are_judged_as_tales(some_tales, monkeypatch):
    known, new = tales.generate(30)[3], tales.generate(40)[39]
    data, model = Reverse.transform(some_tales), GPTModel(GPTConfig(vocab_size=5, emb_dim=8, n_heads=2, n_layers=1))
    written = [data.tokenizer.encode(text)[::-1] for text in (known, new, new[::-1])]
    monkeypatch.setattr("gpt.objectives.reverse.sample_documents", lambda model, eot_id, n, seed: written)
    texts, report = check_samples(Reverse(model), data, 3)
    assert texts == [known, new, new[::-1]]
    assert (report.texts, report.accepted, report.unseen) == (3, 2, 1)


@pytest.mark.parametrize("prepend_eot", [True, False])
def test_what_reverse_writes_ends_with_the_prompt(shelf, prepend_eot):
    objective, _, data = fitted("reverse", shelf)
    tokenizer = data.tokenizer
    prompt = [tokenizer.eot_id] * prepend_eot + tokenizer.encode("one more")[::-1]
    greedy = generate_text_simple(objective.model, torch.tensor([prompt]), 7, 48)[0].tolist()
    before = greedy[len(prompt) :]
    before = before[: before.index(tokenizer.eot_id)] if tokenizer.eot_id in before else before
    (written,) = objective.generate_text("one more", tokenizer, prepend_eot, 7, temperature=0)
    assert written == tokenizer.decode(before[::-1]) + "one more"
    if not prepend_eot:
        with pytest.raises(ValueError, match="the prompt is empty"):
            list(objective.generate_text("", tokenizer, False, 7))


# --- conditional generation ------------------------------------------------------------------------------------------


def pairs_by_hand(context_length=8):
    """ab -> cd, a -> ccd, and an empty prompt -> d; 4 ends a text."""
    tokens = np.array([4, 0, 1, 4, 2, 3, 4, 0, 4, 2, 2, 3, 4, 4, 3, 4], np.uint16)
    return PairExamples(tokens, 4, context_length)


@pytest.fixture
def tiny_model():
    return GPTModel(GPTConfig(vocab_size=5, context_length=8, emb_dim=8, n_heads=2, n_layers=2, drop_rate=0.0)).eval()


def test_a_pair_by_hand(tiny_model):
    """ab -> cd: only c, d and the end are asked for, of the six tokens that are read or written."""
    objective = SFT(tiny_model)
    batch = objective.batch(pairs_by_hand(), [0], (0,))
    assert batch["inputs"].tolist() == [[4, 0, 1, 2, 3]]
    assert batch["targets"].tolist() == [[-100, -100, 2, 3, 4]]
    p = torch.softmax(tiny_model(torch.tensor([[4, 0, 1, 2, 3]]))[0], -1)
    loss, count = objective(**batch)
    torch.testing.assert_close(loss, -(p[2, 2].log() + p[3, 3].log() + p[4, 4].log()))
    assert int(count) == 3


def test_pairs_of_several_lengths_by_hand(tiny_model):
    pairs = pairs_by_hand()
    assert len(pairs) == 3
    assert [pairs.pair(i) for i in range(3)] == [([0, 1], [2, 3]), ([0], [2, 2, 3]), ([], [3])]
    inputs, targets = pairs.batch([2, 1, 0])
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs[0, :2].tolist() == [4, 3]
    assert targets.tolist() == [
        [3, 4, -100, -100, -100],
        [-100, 2, 2, 3, 4],
        [-100, -100, 2, 3, 4],
    ]
    assert inputs[1:].tolist() == [[4, 0, 2, 2, 3], [4, 0, 1, 2, 3]]
    objective = SFT(tiny_model)
    total, count = objective(inputs, targets)
    expected = -sum(
        log_probability(tiny_model, ids, first)
        for ids, first in (([4, 3, 4], 1), ([4, 0, 2, 2, 3, 4], 2), ([4, 0, 1, 2, 3, 4], 3))
    )
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert int(count) == 2 + 4 + 3


def test_a_prompt_gives_context_and_no_loss(tiny_model):
    objective = SFT(tiny_model)
    batch = objective.batch(pairs_by_hand(), [0], (0,))
    other = {**batch, "inputs": batch["inputs"].clone()}
    other["inputs"][0, 1] = 3
    loss, count = objective(**batch)
    assert abs((objective(**other)[0] - loss).item()) > 1e-4, "what it says matters"
    assert int(objective(**other)[1]) == int(count)
    hidden = tiny_model.hidden_states(batch["inputs"])
    kept = torch.zeros_like(hidden).index_copy(1, torch.tensor([2, 3, 4]), hidden[:, 2:])  # nothing is read off it
    logits = tiny_model.out_head(kept)[0, 2:]
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([2, 3, 4]), reduction="sum"))


@pytest.mark.parametrize(
    ("context_length", "inputs"),
    [(9, [4, 0, 1, 2, 3, 0, 1, 2, 2]), (8, [4, 1, 2, 3, 0, 1, 2, 2]), (5, [4, 0, 1, 2, 2]), (3, [4, 2, 2])],
)
def test_the_beginning_of_a_prompt_that_is_too_long_is_left_out(context_length, inputs):
    tokens = np.array([4, 0, 1, 2, 3, 0, 1, 4, 2, 2, 4], np.uint16)
    found, targets = PairExamples(tokens, 4, context_length).batch([0])
    assert found.tolist() == [inputs]
    assert targets.tolist() == [[-100] * (context_length - 3) + [2, 2, 4]]
    with pytest.raises(
        ValueError, match=r"a response has 3 tokens with its end, but model\.context_length is 2: raise"
    ):
        PairExamples(tokens, 4, 2)


def test_what_cannot_be_learnt_as_pairs_is_refused(shelf):
    pairs, documents = load_data(shelf / "pairs"), load_data(shelf / "documents")
    config = config_of("sft", shelf)
    assert resolve_config(config, pairs)[0].model.vocab_size == pairs.tokenizer.vocab_size
    with pytest.raises(ValueError, match=r"needs pairs, and .*documents holds none: prepare a \.jsonl"):
        resolve_config(config, documents)
    with pytest.raises(ValueError, match=r"data\.packing is 'packed', .* set it to 'document'"):
        resolve_config(change(config, data=DataConfig(path=config.data.path)), pairs)
    with pytest.raises(ValueError, match=r"a response has 3 tokens with its end, but model\.context_length is 2"):
        resolve_config(change(config, model_context_length=2), pairs)
    assert resolve_config(change(config, model_context_length=3), pairs)


def test_targets_that_match_are_those_that_greedy_decoding_writes(tmp_path):
    """Of a model that has learnt some of them: two prompts are asked for two different things, of which one can be."""
    pairs = [(f"{n % 6}+", f"={n % 6 * 7}{'!' * (n > 5)}") for n in range(8)] * 2
    data = prepare_data(pairs_of(tmp_path / "in", pairs), "char", tmp_path / "out", 0.5)
    config = TrainConfig(
        model=GPTConfig(vocab_size=0, context_length=12, emb_dim=32, n_heads=2, n_layers=1, drop_rate=0.0),
        data=DataConfig(path=str(data.folder), packing="document"),
        objective=ObjectiveConfig(name="sft"),
        batch_size=3,
    )
    config, data = resolve_config(config, data)
    objective = create_objective(config)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    examples, shares = objective.examples(config, data, data.train), []
    for _ in range(40):
        objective(**objective.batch(examples, range(len(examples)), (0,)))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        found = objective.evaluate(config, data)
        exact = []
        for prompt, target in pairs[8:]:
            ids = [data.tokenizer.eot_id, *data.tokenizer.encode(prompt)]
            (written,) = generate(
                objective.model, [torch.tensor(ids)], 12 - len(ids), temperature=0, stop_id=data.tokenizer.eot_id
            )
            exact.append(written.tolist() == [*ids, *data.tokenizer.encode(target), data.tokenizer.eot_id])
            text = "".join(objective.generate_text(prompt, data.tokenizer, True, temperature=0))
            assert (text == prompt + target) or not exact[-1]
        assert found.metrics["val_exact_match"] == pytest.approx(np.mean(exact))
        shares.append(np.mean(exact))
        if shares[-1] == 6 / 8:
            break
    assert shares[-1] == 6 / 8, "all that can be"
    assert shares[0] == 0


def test_the_baselines_of_pairs_are_those_of_their_targets(shelf):
    objective, config, data = fitted("sft", shelf)
    train, val = ([[*target, "end"] for _, target in pairs] for pairs in (PAIRS[:24], PAIRS[24:]))
    counts, vocab_size = Counter(token for target in train for token in target), data.tokenizer.vocab_size
    tokens = [token for target in val for token in target]
    total = sum(counts.values())
    n = Counter(counts.values())  # of modified Kneser-Ney: Y = n1 / (n1 + 2 n2), D(i) = i - (i + 1) Y n(i + 1) / n(i)
    y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
    discount = [0.0, *(max(0.0, i - (i + 1) * y * n[i + 1] / n[i]) if n[i] else 0.0 for i in (1, 2, 3))]
    discount = [d or i * y for i, d in enumerate(discount)]
    freed = sum(discount[min(count, 3)] for count in counts.values())
    measure = compute_baselines(objective, config, data)
    assert len(tokens) == objective.evaluate(config, data).n_tokens
    assert measure.entropy_floor is None
    assert measure.losses == pytest.approx(
        {
            "uniform": math.log(vocab_size),
            "unigram": np.mean(
                [
                    -math.log((counts[token] - discount[min(counts[token], 3)] + freed / vocab_size) / total)
                    for token in tokens
                ]
            ),
        }
    )


def test_a_sample_of_pairs_shows_a_prompt_and_the_truth(shelf):
    objective, config, data = fitted("sft", shelf)
    for seed in (0, 1, 8):
        prompt, target = PAIRS[24 + seed % 6]
        text = objective.sample(config, data, seed)
        assert text.startswith(prompt)
        assert text.endswith(f"\n(true: {target})")
    asked = dataclasses.replace(config, sample_prompt="2 and")
    assert objective.sample(asked, data, 0).startswith("2 and")
    assert "(true" not in objective.sample(asked, data, 0)


# --- distillation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_the_distillation_loss_is_pytorchs_divergence(temperature):
    student, teacher = (torch.randn(7, 11, dtype=torch.float64) * 3 for _ in range(2))
    student.requires_grad_()
    log_q, log_p = (torch.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    truth = temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    ours = distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(ours, truth)
    gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, truth)]
    torch.testing.assert_close(*gradients)
    assert distillation_loss(teacher, teacher, temperature) == 0
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, teacher, temperature), student)


def test_at_temperature_one_the_gradient_is_that_of_soft_labels():
    student, teacher = torch.randn(7, 11, dtype=torch.float64, requires_grad=True), torch.randn(7, 11).double() * 3
    soft = F.cross_entropy(student, torch.softmax(teacher, -1), reduction="sum")
    (ours,) = torch.autograd.grad(distillation_loss(student, teacher, 1.0), student)
    torch.testing.assert_close(ours, torch.autograd.grad(soft, student)[0])


def test_at_a_high_temperature_the_gradient_is_the_difference_of_logits():
    """Hinton et al. 2015, section 2.1: (z_i - v_i) / N for logits of mean zero, once 1/T^2 is made up for."""
    student, teacher = torch.randn(7, 11, dtype=torch.float64, requires_grad=True), torch.randn(7, 11).double()
    (ours,) = torch.autograd.grad(distillation_loss(student, teacher, 1e5), student)
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (student.detach(), teacher)]
    torch.testing.assert_close(ours, (centred[0] - centred[1]) / 11, rtol=1e-3, atol=1e-6)


def with_settings(objective, **changes):
    objective.config = dataclasses.replace(objective.config, **changes)
    return objective


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_a_student_learns_from_labels_and_from_its_teacher(shelf, implementation):
    objective, config, data = fitted("distill", shelf, model_drop_rate=0.0, model_implementation=implementation)
    teacher, _, checkpoint = load_model(shelf / "runs" / "teacher")
    assert objective.config.teacher.endswith(checkpoint.path.name)
    batch = objective.batch(objective.examples(config, data, data.train), range(5), (0,))
    counted = batch["targets"] != -100
    assert not counted.all()
    with torch.no_grad():
        student, expected = (model(batch["inputs"])[counted] for model in (objective.model, teacher))
    labels = F.cross_entropy(student, batch["targets"][counted], reduction="sum")
    soft = 2.5**2 * F.kl_div(
        (student / 2.5).log_softmax(-1), (expected / 2.5).log_softmax(-1), reduction="sum", log_target=True
    )
    for weight in (0.0, 0.3, 1.0):
        loss, count = with_settings(objective, label_weight=weight, temperature=2.5)(**batch)
        torch.testing.assert_close(loss, weight * labels + (1 - weight) * soft)
        assert int(count) == int(counted.sum())
    torch.testing.assert_close(loss, NextToken(objective.model).eval()(**batch)[0])


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(shelf):
    objective, config, data = fitted("distill", shelf, model_n_layers=2, model_drop_rate=0.0)
    objective.model.load_state_dict(load_model(shelf / "runs" / "teacher")[0].state_dict())
    batch = objective.batch(objective.examples(config, data, data.train), range(5), (0,))
    loss, _ = with_settings(objective, label_weight=0.0)(**batch)
    assert abs(loss.item()) < 1e-4
    loss.backward()
    assert max(p.grad.abs().max() for p in objective.parameters()) < 1e-3


def test_a_teacher_is_not_trained_moved_out_of_evaluation_or_saved(shelf, tmp_path):
    trainer = start_run(config_of("distill", shelf), tmp_path / "run", quiet)
    (teacher,) = trainer.objective._teacher
    before = copy.deepcopy(teacher.state_dict())
    trainer.train()
    assert trainer.objective._teacher[0] is teacher
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert trainer.objective.training
    plain = set(GPTModel(trainer.config.model).state_dict())
    assert set(RunFolder(tmp_path / "run").load("last").weights) == plain
    assert {id(p) for p in trainer.parameters} == {id(p) for p in trainer.objective.model.parameters()}


def test_a_student_is_measured_and_writes_without_its_teacher(shelf, tmp_path):
    shutil.copytree(shelf / "runs" / "teacher", tmp_path / "teacher")
    objective = ObjectiveConfig(name="distill", teacher=str(tmp_path / "teacher"))
    trainer = train(config_of("distill", shelf, objective=objective), tmp_path / "run")
    shutil.rmtree(tmp_path / "teacher")
    student, _, checkpoint = load_objective(tmp_path / "run", "last")
    assert student.evaluate(checkpoint.config, trainer.data).loss == pytest.approx(trainer.evaluation.loss)
    assert "".join(student.generate_text("7", trainer.data.tokenizer, True, 3)).startswith("7")
    with pytest.raises(ValueError, match="unknown run"):
        resume_run(tmp_path / "run", log=quiet)


def test_a_teachers_step_is_written_down_for_good(shelf, tmp_path):
    name = str(shutil.copytree(shelf / "runs" / "teacher", tmp_path / "teacher"))
    best = (tmp_path / "teacher/checkpoints/best").read_text().strip()
    other = next(step for step in RunFolder(name).steps() if step != best)
    config = config_of("distill", shelf, objective=ObjectiveConfig(name="distill", teacher=name))
    stop_at(start_run(config, tmp_path / "run", quiet), 3)
    assert read_toml(tmp_path / "run" / "config.toml")["objective"]["teacher"] == f"{name}:{best}"
    (tmp_path / "teacher/checkpoints/best").write_text(f"{other}\n")  # it was trained on
    for step, given in ((4, config), (5, None)):
        trainer = resume_run(tmp_path / "run", given, quiet)
        stop_at(trainer, step)
        assert trainer.config.objective.teacher == f"{name}:{best}"
        truth = load_model(name, best)[0].state_dict()
        assert all(torch.equal(t, truth[key]) for key, t in trainer.objective._teacher[0].state_dict().items())
    for wrong in (f"{name}:{other}", "", str(tmp_path / "another")):
        changed = change(config, objective=dataclasses.replace(config.objective, teacher=wrong))
        with pytest.raises(ValueError, match=r"objective\.teacher is .* it cannot change when a run is resumed"):
            resume_run(tmp_path / "run", changed, quiet)
    named = change(config, objective=dataclasses.replace(config.objective, teacher=f"{name}:{other}"))
    assert resolve_config(named, trainer.data)[0].objective.teacher == f"{name}:{other}"


def test_a_teacher_that_cannot_teach_is_refused(shelf, tmp_path, prepared):
    data, teacher = load_data(shelf / "documents"), str(shelf / "runs" / "teacher")

    def refused(words, name=teacher, data=data, **changes):
        config = config_of("distill", shelf, objective=ObjectiveConfig(name="distill", teacher=name), **changes)
        with pytest.raises(ValueError, match=words) as caught:
            resolve_config(config, data)
        assert "\n" not in str(caught.value)

    refused(r"objective\.teacher is empty: name the run", "")
    refused(r"unknown run 'nobody'", "nobody")
    refused(r"no checkpoint 'step-000009'", f"{teacher}:step-000009")
    refused(r"model\.context_length is 49, but 48 in the teacher", model_context_length=49)
    refused(r"has other tokens than .* prepare the data with --tokenizer .*tokenizer\.json", data=prepared)
    for name in ("reverse",):
        start_run(config_of(name, shelf), tmp_path / name, quiet)._save(is_best=True)
        refused(r"was trained with the objective reverse", str(tmp_path / name))


def test_a_loss_in_bfloat16_is_summed_in_float32(shelf, tmp_path):
    objective, config, data = fitted("distill", shelf, model_drop_rate=0.0)
    batch = objective.batch(objective.examples(config, data, data.train), range(30), (0,))
    truth, _ = objective(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(**batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, truth, rtol=0.02, atol=0)
    soft, _ = with_settings(objective, label_weight=0.0)(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(**batch)
    assert loss.dtype == torch.float32
    assert loss.item() != torch.tensor(loss.item(), dtype=torch.bfloat16).item(), "eight bits hold no sum of many"
    torch.testing.assert_close(loss, soft, rtol=0.1, atol=0)


@NAMES
def test_every_objective_trains_in_bfloat16(name, shelf, tmp_path):
    trainer = train(config_of(name, shelf, dtype="bfloat16", max_steps=2), tmp_path / "run")
    assert trainer.dtype == torch.bfloat16
    assert math.isfinite(trainer.evaluation.loss)
