"""The text that a run prints: tables computed by hand, and tales checked by the grammar."""

import dataclasses
import math
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt.config import DataConfig, GPTConfig, OptimConfig, TrainConfig
from gpt.evaluation import samples
from gpt.evaluation.baselines import Baselines, compute_baselines
from gpt.loss import Evaluation
from gpt.run import logging
from gpt.run.callbacks import Summary
from gpt.run.training import start_run
from gpt.text import tales
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
from gpt.text.tales import GrammarReport

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tale_run(tmp_path_factory):
    """Train six steps on tales; return the trainer and what it printed."""
    folder = tmp_path_factory.mktemp("tales")
    prepare_data(open_corpus("tales:60"), "bpe:700", folder / "data", 0.2)
    config = TrainConfig(
        max_steps=6, batch_size=4, eval_every=3, save_every=3, keep_checkpoints=9, sample_every=0, device="cpu",
        model=GPTConfig(vocab_size=0, context_length=360, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.0),
        data=DataConfig(path=str(folder / "data"), packing="document"),
        optim=OptimConfig(warmup_steps=2),
    )  # fmt: skip
    printed = []
    trainer = start_run(config, folder / "run", printed.append)
    trainer.callbacks.append(Summary())
    trainer.train()
    return trainer, "\n".join(printed)


def rows(text):
    """Return the rows of a table: name -> numbers."""
    found = re.findall(r"^(\S.*?)\s{2,}([\d.,]+)\s+([\d.,]+)\s+([\d.,]+)(?:\s+([\d.,]+))?$", text, re.MULTILINE)
    return {name: [float(figure.replace(",", "")) for figure in figures if figure] for name, *figures in found}


def test_the_comparison_equals_one_computed_by_hand():
    """Three documents of 10, 20 and 10 tokens, with floors of 4, 10 and 6 nats and losses of 6, 11 and 9."""
    measured = Baselines({"uniform": 5.0, "trigram": 1.5}, np.array([4.0, 10.0, 6.0]), 40)
    evaluation = Evaluation(np.arange(3), np.array([6.0, 11.0, 9.0]), np.array([10.0, 20.0, 10.0]), 4.0)
    text = logging.comparison(measured, "mine", evaluation)
    table = rows(text)
    assert table["uniform"] == [5.0, 148.41, pytest.approx(5 / math.log(2), abs=1e-4), pytest.approx(1.8034, abs=1e-4)]
    assert table["mine"][:2] == [0.65, pytest.approx(math.exp(0.65), abs=0.01)]
    assert table["floor: -ln p of these tales"][0] == 0.5
    assert table["exact entropy of all tales"][0] == pytest.approx(3 * tales.entropy() / 40, abs=1e-4)
    # differences 2, 1, 3; their mean per token 6/40; residuals 2 - 1.5, 1 - 3, 3 - 1.5
    error = math.sqrt(3 / 2 * (0.5**2 + 2**2 + 1.5**2)) / 40
    assert f"The loss is 0.1500 nats per token above the floor (standard error {error:.4f})" in text
    assert "closes 85.0%" in text  # (1.5 - 0.65) / (1.5 - 0.5)
    losses = [figures[0] for figures in table.values()]
    assert losses == sorted(losses, reverse=True)


def test_without_a_floor_the_comparison_has_no_floor_rows():
    text = logging.comparison(Baselines({"uniform": 5.0}, None, 40), "mine", Evaluation(np.arange(2), *np.ones((2, 2))))
    assert list(rows(text)) == ["uniform", "mine"]
    assert "byte" not in text  # nor of bytes, where their number is not known
    assert "floor" not in text


def test_a_grammar_report_is_formatted():
    text = samples.describe_grammar(GrammarReport(200, 150, 149, -70.25, {"order": 40, "thing": 10}))
    assert text.splitlines()[0].startswith("200 sampled tales")
    figures = dict(re.findall(r"^(\S.*?)\s{2,}(\d+\s+[\d.]+%)$", text, re.MULTILINE))
    assert {name: figure.split() for name, figure in figures.items()} == {
        "accepted by the grammar": ["150", "75.0%"],
        "first rule broken: order": ["40", "20.0%"],
        "first rule broken: thing": ["10", "5.0%"],
    }
    assert "149 (99.3%) are not in the training set" in text
    assert f"mean ln p is -70.2 nats (mean over all tales: {-tales.entropy():.1f})" in text
    assert "mean" not in samples.describe_grammar(GrammarReport(5, 0, 0, math.nan, {"unknown sentence": 5}))


@pytest.mark.parametrize("rule", ["order", "unknown sentence", "a rule with a name longer than any other"])
def test_the_columns_of_a_table_end_below_each_other(rule):
    table = samples.describe_grammar(GrammarReport(9, 4, 4, -70.0, {rule: 5})).split("\n\n")[0].splitlines()
    assert len({len(line) for line in table}) == 1
    evaluation = Evaluation(np.arange(2), *np.ones((2, 2)), metrics={f"val_{rule}": 0.5, "val_b": 0.25})
    starts = [re.search(r"\d\.\d{4}", line).start() for line in logging.describe_evaluation(evaluation).splitlines()]
    assert len(set(starts)) == 1


def test_a_run_on_tales_ends_with_comparison_report_and_three_tales(tale_run):
    trainer, printed = tale_run
    table = rows(printed)
    measured = compute_baselines(trainer.objective, trainer.config, trainer.data)
    for name, loss in measured.losses.items():
        assert table[name][0] == pytest.approx(loss, abs=1e-4)
    assert table["this run, step 6"][0] == pytest.approx(trainer.evaluate().loss, abs=1e-4)
    texts = list(trainer.data.documents(trainer.data.val))
    information = [-tales.log_probability(text) for text in texts]
    tokens = sum(len(trainer.data.tokenizer.encode(text)) + 1 for text in texts)  # the end of a tale counts
    assert table["floor: -ln p of these tales"][0] == pytest.approx(sum(information) / tokens, abs=1e-4)
    assert re.search(r"^100 sampled tales .*\naccepted by the grammar +0 +0.0%$", printed, re.MULTILINE)
    assert str(trainer.run.plot) in printed
    shown = printed.split("the first three:\n\n")[1].split("finished")[0]
    assert shown.count("    (breaks the rule: unknown sentence)\n") == 3


def test_sampled_tales_are_checked_by_the_grammar(tale_run, monkeypatch):
    """With the grammar's own tales in place of the model's. Those in the training set are not new."""
    trainer, _ = tale_run
    known = list(trainer.data.documents(trainer.data.train))[:3]
    written = [*known, *tales.generate(2, seed=99), known[0].replace("found", "kept")]
    encoded = [trainer.data.tokenizer.encode(text) for text in written]
    monkeypatch.setattr("gpt.evaluation.samples.sample_documents", lambda model, eot_id, n, seed: encoded)
    texts, verdict, _ = samples.check_samples(trainer.objective, trainer.data, 6)
    assert texts == written
    assert (verdict.texts, verdict.accepted, verdict.unseen) == (6, 5, 2)
    assert verdict.log_probability == pytest.approx(np.mean([tales.log_probability(text) for text in written[:5]]))


def evaluate(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PROJECT / "scripts" / "evaluate.py"), run_name="__main__")
    return end.value.code, capsys.readouterr()


def test_evaluate_prints_the_loss_of_a_run_on_tales(tale_run, monkeypatch, capsys):
    trainer, printed = tale_run
    status, (out, _) = evaluate(monkeypatch, capsys, "--run", trainer.run.path, "--samples", 5, "--device", "cpu")
    assert status == 0
    assert list(rows(out).values()) == list(rows(printed).values())
    for name in ("accuracy", "top-5 accuracy", "ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU, 0 to 100"):
        score = re.search(rf"^{name}\s+([\d.]+)(?:%|$)", out, re.MULTILINE)[1]
        assert 0 <= float(score) <= 100
    assert re.search(r"^\d+ greedy continuations +precision +recall +F1$", out, re.MULTILINE)
    assert max(map(len, out.splitlines()[1:])) <= 120  # the first names a folder of any length
    assert re.search(r"^5 sampled tales .*\naccepted by the grammar +0 +0.0%$", out, re.MULTILINE)


def test_evaluate_reads_tales_from_text_files(tale_run, monkeypatch, capsys, tmp_path):
    """The validation tales as one file each give the same loss."""
    trainer, _ = tale_run
    for n, text in enumerate(trainer.data.documents(trainer.data.val)):
        (tmp_path / f"{n:03}.txt").write_text(text, encoding="utf-8")
    arguments = ("--run", trainer.run.path, "--text", tmp_path, "--device", "cpu")
    status, (out, _) = evaluate(monkeypatch, capsys, *arguments)
    evaluation = trainer.evaluate()
    assert status == 0
    assert float(re.search(r"loss +(\S+)", out)[1]) == pytest.approx(evaluation.loss, abs=1e-4)
    assert float(re.search(r"bits per byte +(\S+)", out)[1]) == pytest.approx(evaluation.bits_per_byte, abs=1e-4)


def test_evaluate_checks_the_tales_of_every_checkpoint(tale_run, monkeypatch, capsys):
    trainer, _ = tale_run
    arguments = ("--run", trainer.run.path, "--samples", 4, "--checkpoint", "all", "--device", "cpu")
    status, (out, _) = evaluate(monkeypatch, capsys, *arguments)
    assert status == 0
    assert re.findall(r"^step-\d+", out, re.MULTILINE) == trainer.run.steps() == ["step-000003", "step-000006"]
    assert (trainer.run.path / "grammar.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_all_checkpoints_needs_tales(tiny_config, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(tiny_config, max_steps=1)
    start_run(config, tmp_path / "run", lambda line: None).train()
    status, (_, err) = evaluate(monkeypatch, capsys, "--run", tmp_path / "run", "--checkpoint", "all")
    assert status == 2
    assert "does not hold tales" in err
    status, (out, _) = evaluate(monkeypatch, capsys, "--run", tmp_path / "run", "--continuations", 0)
    assert status == 0
    assert "accuracy" in out
    assert "BLEU" not in out
    assert set(rows(out)) == {"uniform", "unigram", "bigram", "trigram", "this run"}


def test_a_loss_of_pairs_has_no_perplexity():
    evaluation = Evaluation(np.arange(2), np.array([0.5, 0.7]), np.ones(2))
    text = logging.comparison(Baselines({"the reference": math.log(2)}, None, 40, "pair"), "mine", evaluation)
    assert [line.split() for line in text.splitlines()] == [
        ["validation", "loss", "nats/pair"], ["the", "reference", "0.6931"], ["mine", "0.6000"]
    ]  # fmt: skip
    assert logging.describe_evaluation(evaluation, "pair").startswith("loss            0.6000 nats per pair")
    row = {"step": 5, "train_loss": 0.7, "val_loss": 0.6, "tokens_per_second": 20.0, "elapsed_s": 9.0}
    assert logging.progress_line(row, 10, "pair") == "step  5/10 | train loss 0.700 | val loss 0.600 | 20 pairs/s | 9 s"
