"""What an objective is, by all of them: batches, measures, runs that resume, scripts; and the smaller ones by hand."""

import dataclasses
import itertools
import json
import math
import runpy
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import corpus_of

import gpt
from gpt.baselines import tales_floor
from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, DataConfig, GPTConfig, ObjectiveConfig, OptimConfig, TrainConfig
from gpt.corpus import Corpus, open_corpus
from gpt.decoding import generate
from gpt.model import GPTModel
from gpt.objectives import OBJECTIVES, create_objective, fit, load_objective
from gpt.objectives.conditional import Conditional
from gpt.objectives.distill import Distill, distillation_loss
from gpt.objectives.next_token import NextToken
from gpt.objectives.reverse import Reverse
from gpt.prepare import prepare_data
from gpt.trainer import Trainer

SCRIPTS = Path(gpt.__file__).parent.parent / "scripts"
X = -100


def quiet(line):
    pass


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 8)
    monkeypatch.setattr("gpt.trainer.Trainer.draw", lambda self: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two prepared folders with the same tokenizer, and a finished run to start from and to learn from."""
    folder = tmp_path_factory.mktemp("objectives")
    texts = [f"{n} green bottles hang on the wall, {n % 7} fall{'s' * (n % 3)}" for n in range(60)]
    prepare_data(corpus_of(folder / "texts", *texts), "char", folder / "texts_data")
    pairs = [json.dumps({"x": text, "y": f" {n % 7} fall"}) for n, text in enumerate(texts)]
    (folder / "pairs.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    tokenizer = str(folder / "texts_data" / "tokenizer.json")
    prepare_data(Corpus("pairs", [folder / "pairs.jsonl"], fields=("x", "y")), tokenizer, folder / "pairs_data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.trainer.Trainer.draw", lambda self: None)
        Trainer.start(config_of(folder, "next_token"), folder / "base", quiet).train()
    return folder


def config_of(folder, name, **changes):
    data = "pairs_data" if name == "conditional" else "texts_data"
    settings = {"teacher": str(folder / "base")} if name == "distill" else {}
    config = TrainConfig(
        seed=5, max_steps=6, batch_size=4, accumulate=2, log_every=2, eval_every=3, save_every=2, sample_every=3,
        device="cpu",
        model=GPTConfig(0, 80, 16, 2, 2, 0.1, init="gpt2", tie_embeddings=True),
        data=DataConfig(path=str(folder / data), windows="document"),
        optim=OptimConfig(lr=3e-3, min_lr=3e-4, warmup_steps=2),
        objective=ObjectiveConfig(name, **settings),
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def same_run(one, other):
    for name in ("metrics.csv", "samples.txt"):
        rows = [(folder / name).read_text(encoding="utf-8").splitlines() for folder in (one, other)]
        if name == "metrics.csv":  # but for what a clock says
            clock = [rows[0][0].split(",").index(column) for column in ("tokens_per_second", "elapsed_s")]
            rows = [[[c for i, c in enumerate(r.split(",")) if i not in clock] for r in table] for table in rows]
        assert rows[0] == rows[1]
    weights = [safetensors.torch.load_file(RunFolder(f).find("last") / "model.safetensors") for f in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# --- all of them ------------------------------------------------------------------------------------------------------


def test_each_name_has_its_objective():
    assert set(get_type_hints(ObjectiveConfig)["name"].__args__) == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_resumes_as_if_it_had_never_stopped(folder, tmp_path, name):
    config = config_of(folder, name)
    Trainer.start(config, tmp_path / "truth", quiet).train()
    trainer = Trainer.start(config, tmp_path / "run", quiet)
    evaluate = trainer.evaluate
    trainer.evaluate = lambda: trainer._stop(15) or evaluate() if trainer.step == 3 else evaluate()
    trainer.train()
    assert trainer.step == 3
    Trainer.resume(tmp_path / "run", config, quiet).train()  # with the config, as --config ... --resume has it
    same_run(tmp_path / "run", tmp_path / "truth")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_may_be_cut_in_any_way(folder, name):
    """The summed loss and the count of six windows are those of each alone; the same key draws the same."""
    config, data = fit(config_of(folder, name), gpt.prepared.load_data(config_of(folder, name).data.path))
    objective = create_objective(config).double().eval()
    if name == "distill":
        objective._teacher[0].double()
    windows = objective.windows(config, data, data.train)
    whole = objective(**objective.batch(windows, [4, 1, 0, 7, 5, 9], (3, 8)))
    parts = [objective(**objective.batch(windows, [index], (3, 8))) for index in (4, 1, 0, 7, 5, 9)]
    torch.testing.assert_close(whole[0], sum(loss for loss, _ in parts), rtol=1e-11, atol=0)
    assert whole[1] == sum(count for _, count in parts) > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_evaluation_is_a_plain_mean_and_touches_nothing(folder, name):
    config, data = fit(config_of(folder, name), gpt.prepared.load_data(config_of(folder, name).data.path))
    objective = create_objective(config).train()
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    found = objective.evaluate(config, data)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()
    assert objective.training and objective.model.training
    assert objective.evaluate(config, data).loss == found.loss
    if name not in ("next_token", "reverse", "distill"):  # these are measured by gpt.loss.evaluate
        objective.eval()
        windows = objective.windows(config, data, data.val)
        with torch.no_grad():
            parts = [objective(**objective.batch(windows, [i], (0,))) for i in range(len(windows))]
        assert found.loss == pytest.approx(sum(float(a) for a, _ in parts) / sum(int(b) for _, b in parts), rel=1e-5)
        assert found.tokens == sum(int(b) for _, b in parts)
        assert set(found.figures) == set(objective.figures)
        few = objective.evaluate(dataclasses.replace(config, eval_batches=1, batch_size=2), data)
        assert len(few.counts) == 1


def script(monkeypatch, capsys, name, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr()
    return ended.value.code, out.out, out.err


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_can_be_measured_and_used_from_a_terminal(folder, tmp_path, monkeypatch, capsys, name):
    run = tmp_path / "run"
    Trainer.start(config_of(folder, name, max_steps=2, accumulate=1), run, quiet).train()
    status, out, _ = script(monkeypatch, capsys, "evaluate", "--run", run, "--samples", 0, "--continuations", 1)
    assert status == 0 and "loss  " in out and "unigram" in out
    objective, _, checkpoint = load_objective(run)
    for figure in objective.figures:
        assert f"{figure.replace('_', ' '):<16}" in out
    data = objective.as_read(gpt.prepared.load_data(checkpoint.config.data.path))
    loss = objective.evaluate(dataclasses.replace(checkpoint.config, eval_batches=0, batch_size=16), data).loss
    assert f"loss            {loss:.4f} " in out
    prompt = "1 green bottle" if objective.continues_prompts else "1 green[MASK]bottle"
    status, out, _ = script(monkeypatch, capsys, "generate", "--run", run, "--prompt", prompt, "--max_new_tokens", 5)
    assert status == 0 and "green" in out and "[MASK]" not in out
    if not objective.continues_prompts:
        status, _, err = script(monkeypatch, capsys, "generate", "--run", run, "--prompt", "1 green bottle")
        assert status == 2 and "write [MASK] into the prompt" in err
    if not objective.reads_any_text:
        status, _, err = script(monkeypatch, capsys, "evaluate", "--run", run, "--text", "story")
        assert status == 2 and "--text is for models that predict the next token" in err
        status, _, err = script(monkeypatch, capsys, "evaluate", "--run", run, "--weights", "int8")
        assert status == 2 and "--weights int8 is for models that predict the next token" in err


def test_smoothed_labels_are_trained_and_not_measured(folder):
    smoothed = dataclasses.replace(config_of(folder, "next_token"), objective=ObjectiveConfig(label_smoothing=0.2))
    config, data = fit(smoothed, gpt.prepared.load_data(smoothed.data.path))
    objective = create_objective(config)
    batch = objective.batch(objective.windows(config, data, data.train), [0, 1], ())
    logits = objective.eval().model(batch["inputs"]).flatten(0, 1)
    targets = batch["targets"].flatten()
    plain, _ = objective(**batch)
    torch.testing.assert_close(plain, F.cross_entropy(logits, targets, reduction="sum"))
    objective.model.drop_emb.p = 0.0
    for block in objective.model.trf_blocks:
        block.drop_resid.p = block.att.drop_rate = 0.0
    loss, _ = objective.train()(**batch)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.2))


# --- from the other end -----------------------------------------------------------------------------------------------


def test_reverse_predicts_each_token_from_those_behind_it(folder):
    config, data = fit(config_of(folder, "reverse"), gpt.prepared.load_data(folder / "texts_data"))
    objective = create_objective(config).eval()
    true = gpt.prepared.load_data(folder / "texts_data").val.tokens.tolist()
    assert data.val.tokens.tolist() == true[::-1]
    marks = [i for i, token in enumerate(true) if token == data.tokenizer.eot_id]
    total, count = 0.0, 0
    for start, end in itertools.pairwise(marks):
        document = true[start : end + 1]
        for place in range(len(document) - 1):  # p(x_place | all behind it), the mark behind it first
            behind = torch.tensor([document[place + 1 :][::-1]])
            total -= float(torch.log_softmax(objective.model(behind)[0, -1], -1)[document[place]])
            count += 1
    found = objective.evaluate(config, data)
    assert found.tokens == count
    assert found.loss == pytest.approx(total / count, rel=1e-5)


def test_what_is_written_from_the_end_ends_with_the_prompt(folder):
    config, data = fit(config_of(folder, "reverse"), gpt.prepared.load_data(folder / "texts_data"))
    objective = create_objective(config).eval()
    (written,) = objective.write("wall", data.tokenizer, True, 9, temperature=0)
    eot = data.tokenizer.eot_id
    ids = torch.tensor([[eot, *data.tokenizer.encode("wall")[::-1]]])
    expected = generate(objective.model, ids, 9, temperature=0, stop_id=eot)[0, 1:].tolist()
    assert written == data.tokenizer.decode(i for i in expected[::-1] if i != eot)
    assert written.endswith("wall")


def test_the_floor_of_tales_knows_no_direction(tmp_path):
    data = prepare_data(open_corpus("tales:60:3"), "char", tmp_path / "tales")
    config = TrainConfig(
        model=GPTConfig(data.tokenizer.vocab_size, 16), data=DataConfig(path=str(data.folder), windows="document")
    )
    turned = Reverse.as_read(data)
    measure = Reverse(GPTModel(GPTConfig(9, 8, 8, 1, 1))).yardstick(config, turned)
    assert measure.floor.tolist() == tales_floor(data).tolist()[::-1]
    assert Reverse.as_read(turned).train.tokens.tolist() == data.train.tokens.tolist()


# --- given a prompt ---------------------------------------------------------------------------------------------------


def test_five_tokens_by_hand(tmp_path):
    """Prompt ab, target cd: of [end] a b c d [end] the last three count, each from the softmax of its predecessor."""
    (tmp_path / "pairs.jsonl").write_text('{"x": "ab", "y": "cd"}\n' * 3, encoding="utf-8")
    data = prepare_data(Corpus("p", [tmp_path / "pairs.jsonl"], fields=("x", "y")), "char", tmp_path / "data")
    config = config_of(tmp_path, "conditional", data=DataConfig(path=str(data.folder), windows="document"))
    config, data = fit(config, data)
    objective = create_objective(config).double().eval()
    batch = objective.batch(objective.windows(config, data, data.train), [0], ())
    a, b, c, d, end = 0, 1, 2, 3, data.tokenizer.eot_id
    assert batch["inputs"].tolist() == [[end, a, b, c, d]]
    assert batch["targets"].tolist() == [[X, X, c, d, end]]
    log_p = torch.log_softmax(objective.model(batch["inputs"])[0], -1)
    loss, counted = objective(**batch)
    assert counted == 3
    torch.testing.assert_close(loss, -(log_p[2, c] + log_p[3, d] + log_p[4, end]), rtol=1e-12, atol=0)
    changed = batch["inputs"].clone()
    changed[0, 1] = b  # the prompt is context all the same
    assert objective(changed, batch["targets"])[0] != loss


def test_exact_matches_are_what_greedy_decoding_writes(folder):
    """A model that has learnt a part of the answers: teacher forcing and writing agree on which."""
    config, data = fit(config_of(folder, "conditional"), gpt.prepared.load_data(folder / "pairs_data"))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, drop_rate=0.0))
    objective = create_objective(config)
    windows, optimizer = objective.windows(config, data, data.train), torch.optim.AdamW(objective.parameters(), 1e-2)
    for _ in range(40):
        loss, _ = objective(**objective.batch(windows, range(16), ()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    objective.eval()
    right = []
    for index in range(len(windows)):
        prompt, target = windows.pair(index)
        ids = torch.tensor([[data.tokenizer.eot_id, *prompt]])
        written = generate(objective.model, ids, len(target) + 1, temperature=0)[0, len(prompt) + 1 :].tolist()
        right.append(written == [*target, data.tokenizer.eot_id])
    exact = [objective.measure(**objective.batch(windows, [i], ()))["val_exact_match"] for i in range(len(windows))]
    assert [int(hit) for hit, _ in exact] == right and all(int(n) == 1 for _, n in exact)
    assert 0 < sum(right) < len(right)


def test_long_prompts_lose_their_beginning_and_long_targets_are_refused(folder):
    data = gpt.prepared.load_data(folder / "pairs_data")
    config = config_of(folder, "conditional", model=GPTConfig(0, 12, 16, 2, 1))
    config, _ = fit(config, data)
    windows = Conditional(GPTModel(config.model)).windows(config, data, data.train)
    inputs, targets = windows.batch([0])
    prompt, target = windows.pair(0)
    assert inputs[0].tolist() == [data.tokenizer.eot_id, *prompt[-(11 - len(target)) :], *target]
    assert targets[0].tolist() == [X] * (11 - len(target)) + [*target, data.tokenizer.eot_id]
    with pytest.raises(ValueError, match=r"a target takes 8 tokens with its end, but model\.context_length is 7"):
        fit(config_of(folder, "conditional", model=GPTConfig(0, 7, 16, 2, 1)), data)


def test_pairs_are_asked_for(folder):
    texts = gpt.prepared.load_data(folder / "texts_data")
    with pytest.raises(ValueError, match=r"prepare a \.jsonl with --prompt_field and --target_field"):
        fit(config_of(folder, "conditional"), texts)
    stream = config_of(folder, "conditional", data=DataConfig(path=str(folder / "pairs_data")))
    with pytest.raises(ValueError, match=r"data\.windows to 'document'"):
        fit(stream, gpt.prepared.load_data(folder / "pairs_data"))


# --- from a teacher ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_the_distillation_loss_is_pytorchs(temperature):
    student, teacher = torch.randn(7, 11, dtype=torch.float64, requires_grad=True), torch.randn(7, 11).double()
    log_p, log_q = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
    truth = temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    ours = distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(ours, truth)
    (own,), (true,) = torch.autograd.grad(ours, student), torch.autograd.grad(truth, student)
    torch.testing.assert_close(own, true)
    if temperature == 1:  # the same gradient as cross-entropy against the teacher's probabilities
        soft = F.cross_entropy(student, teacher.softmax(-1), reduction="sum")
        torch.testing.assert_close(own, torch.autograd.grad(soft, student)[0])
    assert distillation_loss(teacher, teacher, temperature).abs() < 1e-12


def test_labels_alone_the_teacher_alone_and_both(folder):
    data = gpt.prepared.load_data(folder / "texts_data")
    losses = {}
    for weight in (0.0, 0.3, 1.0):
        own = ObjectiveConfig("distill", teacher=str(folder / "base"), label_weight=weight)
        config, data = fit(dataclasses.replace(config_of(folder, "distill"), objective=own), data)
        torch.manual_seed(1)
        objective = create_objective(config).eval()
        batch = objective.batch(objective.windows(config, data, data.train), [0, 3], ())
        loss, counted = objective(**batch)
        losses[weight] = loss
    plain, same = NextToken(objective.model)(**batch)
    assert counted == same == (batch["targets"] != X).sum()
    torch.testing.assert_close(losses[1.0], plain)
    torch.testing.assert_close(losses[0.3], 0.3 * losses[1.0] + 0.7 * losses[0.0])


def test_the_teacher_is_read_and_never_trained(folder, tmp_path):
    config = config_of(folder, "distill")
    trainer = Trainer.start(config, tmp_path / "run", quiet)
    trainer.train()
    (teacher,) = trainer.objective._teacher
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    saved = safetensors.torch.load_file(RunFolder(tmp_path / "run").find("last") / "model.safetensors")
    assert set(saved) == set(safetensors.torch.load_file(RunFolder(folder / "base").find("last") / "model.safetensors"))
    best = RunFolder(folder / "base").find("best").name
    assert RunFolder(tmp_path / "run").config().objective.teacher == f"{folder / 'base'}:{best}"
    own, _, _ = load_objective(tmp_path / "run")  # which needs no teacher
    assert isinstance(own, Distill) and "_teacher" not in vars(own)


def test_teachers_that_cannot_teach(folder, tmp_path):
    texts = gpt.prepared.load_data(folder / "texts_data")

    def fitted(data=texts, **settings):
        own = ObjectiveConfig("distill", **{"teacher": str(folder / "base"), **settings})
        return fit(dataclasses.replace(config_of(folder, "distill"), objective=own), data)

    with pytest.raises(ValueError, match=r"objective\.teacher is empty"):
        fitted(teacher="")
    with pytest.raises(ValueError, match="unknown run"):
        fitted(teacher=str(tmp_path / "nobody"))
    other = prepare_data(corpus_of(tmp_path / "texts", *["zebra crossing"] * 20), "char", tmp_path / "data")
    with pytest.raises(ValueError, match="has other tokens"):
        fitted(other)
    longer = dataclasses.replace(config_of(folder, "distill"), model=GPTConfig(0, 81, 16, 2, 1))
    with pytest.raises(ValueError, match="more than the 80 of the teacher"):
        fit(longer, texts)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [AdapterConfig("lora", rank=2), AdapterConfig("prefix", length=3)])
@pytest.mark.parametrize("name", ["conditional", "distill"])
def test_any_objective_trains_an_adapter(folder, tmp_path, adapter, name):
    config = config_of(folder, name, adapter=adapter, init_from=str(folder / "base"), model=GPTConfig(0))
    Trainer.start(config, tmp_path / "truth", quiet).train()
    trainer = Trainer.start(config, tmp_path / "run", quiet)
    evaluate = trainer.evaluate
    trainer.evaluate = lambda: trainer._stop(15) or evaluate() if trainer.step == 3 else evaluate()
    trainer.train()
    assert trainer.step == 3
    Trainer.resume(tmp_path / "run", config, quiet).train()  # the shape of the model is left out of it here too
    same_run(tmp_path / "run", tmp_path / "truth")
    trained = {n for n, p in trainer.objective.named_parameters() if p.requires_grad}
    assert trained and all("lora" in n or "prefix" in n for n in trained)
    assert math.isfinite(trainer.evaluation.loss)
