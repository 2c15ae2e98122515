"""Every objective: its batches, its evaluation, its runs."""

import json
import math
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import GPT2_BLOCK, MODERN_BLOCK
from numerics import tolerance
from runs import assert_same_run, change, quiet, stop_at, train
from shard_folders import split_files
from small_objectives import DATA, FROM_MODEL, create, create_workspace, short_config

from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, GPTConfig, ObjectiveConfig, TrainConfig, from_dict, read_toml
from gpt.model import GPTModel
from gpt.objectives import OBJECTIVES
from gpt.objectives.objective import Objective, example_rng
from gpt.run.callbacks import CSVLog, SampleLog
from gpt.run.logging import read_metrics
from gpt.run.training import resume_run, start_run
from gpt.system.files import checksummed, sha256
from gpt.system.shards import ShardedArray
from gpt.trainer import Trainer
from scripts import run_script

EVERY_OBJECTIVE = pytest.mark.parametrize("name", OBJECTIVES)


@pytest.fixture(autouse=True)
def _short_samples_and_no_plots(monkeypatch):
    """Plots and long samples take most of the time of a tiny run."""
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return create_workspace(tmp_path_factory.mktemp("workspace"))


def test_config_accepts_every_objective():
    (kind,) = (field.type for field in fields(ObjectiveConfig) if field.name == "name")
    assert set(OBJECTIVES) <= set(get_args(kind))
    assert {"next_token", "reverse", "sft", "dpo", "distill"} <= set(OBJECTIVES)
    assert ObjectiveConfig().name == "next_token"


@pytest.mark.slow
@EVERY_OBJECTIVE
@pytest.mark.parametrize("packing", ["document", "packed"])
def test_data_of_several_files_train_as_of_one(name, packing, workspace, tmp_path):
    """Also when the run is resumed; and it is refused if one of the files is another."""
    config = short_config(name, workspace)
    if packing == "packed" and name in ("next_token", "reverse", "masked", "infilling", "distill"):
        config = change(config, data=replace(config.data, packing=packing))
    folder = split_files(Path(config.data.path), tmp_path / "data", 60)
    sharded = change(config, data=replace(config.data, path=str(folder)))
    stop_at(start_run(sharded, tmp_path / "run", quiet), 3)
    run = resume_run(tmp_path / "run", log=quiet)
    run.train()
    assert isinstance(run.data.train.tokens, ShardedArray)
    for name, weight in train(config, tmp_path / "truth").objective.named_weights().items():
        assert torch.equal(run.objective.named_weights()[name], weight), name
    meta = json.loads((folder / "meta.json").read_text())
    path = folder / meta["train"]["shards"][1]["file"]
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(ValueError, match=r"train-00001\.bin has changed since it was written"):
        resume_run(tmp_path / "run", change(sharded, max_steps=9), log=quiet)
    meta["train"]["shards"][1]["sha256"] = sha256(path)
    (folder / "meta.json").write_text(checksummed(meta))
    with pytest.raises(ValueError, match=r"is not what the run .* was trained on"):
        resume_run(tmp_path / "run", change(sharded, max_steps=9), log=quiet)


@EVERY_OBJECTIVE
def test_resumed_run_equals_uninterrupted_run(name, workspace, tmp_path):
    config = short_config(name, workspace)
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


@EVERY_OBJECTIVE
def test_micro_batch_size_does_not_change_the_steps(name, workspace, tmp_path):
    weights = []
    for batch_size in (8, 2, 1):
        objective, config, data = create(
            name, workspace, model_drop_rate=0.0, batch_size=batch_size, grad_accum_steps=8 // batch_size, max_steps=4
        )
        torch.manual_seed(0)
        other = {"distill": "teacher", "grpo": "reference"}.get(name)
        others = {other: getattr(objective, f"_{other}")[0]} if other else {}
        objective = OBJECTIVES[name](GPTModel(config.model), config.objective, **others).double()
        objective.prepare(config, data)
        run = RunFolder(tmp_path / str(batch_size))
        run.create(config, data.tokenizer)
        CSVLog.create(run.metrics, objective.columns)
        run.samples.touch()
        Trainer(config, objective, data, run, callbacks=[CSVLog(), SampleLog()], log=quiet).train()
        weights.append(torch.cat([p.detach().flatten() for p in objective.parameters()]))
    # A gradient of norm 1 or less sums 8 · 48 tokens in another order. AdamW divides its rounding by at least 1e-8.
    rounding = tolerance(8 * 48)
    for other in weights[1:]:
        torch.testing.assert_close(weights[0], other, rtol=0, atol=config.max_steps * config.optim.lr * rounding / 1e-8)


@EVERY_OBJECTIVE
def test_batch_is_deterministic_and_padding_does_not_change_the_loss(name, workspace):
    objective, config, data = create(name, workspace)
    examples = objective.examples(config, data, data.train)
    together = objective.batch(examples, range(6), (3, 5))
    again = objective.batch(examples, range(6), (3, 5))
    assert all(torch.equal(tensor, again[key]) for key, tensor in together.items())
    total, count = objective(**together)
    parts = [objective(**objective.batch(examples, [i], (3, 5))) for i in range(6)]
    assert int(count) == sum(int(n) for _, n in parts)
    assert total.item() == pytest.approx(sum(loss.item() for loss, _ in parts), rel=1e-5)
    assert len({tuple(batch.shape) for batch in (objective.batch(examples, [i], (0,))["inputs"] for i in range(6))}) > 1


@EVERY_OBJECTIVE
def test_evaluate_and_generate_work_or_explain_why_not(name, workspace, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    train(short_config(name, workspace, sample_every=0), tmp_path / "runs" / "mine")
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


@EVERY_OBJECTIVE
def test_generate_continues_prompts_or_fills_masks(name, workspace, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    objective = train(short_config(name, workspace, max_steps=2), tmp_path / "runs" / "mine").objective
    prompt = "7 green" if objective.continues_prompts else "7 green[MASK] more"
    assert run_script(f"generate --run mine --prompt '{prompt}' --max_new_tokens 5") == 0
    out, _ = capfd.readouterr()
    assert "7 green" in out
    assert "[MASK]" not in out
    if not objective.continues_prompts:
        assert run_script("generate --run mine --prompt '7 green'") == 2
        assert "write [MASK] into the prompt" in capfd.readouterr()[1]
    for arguments in ("--context 8", "--weights int8") if not objective.reads_any_text else ():
        assert run_script(f"evaluate --run mine {arguments}") == 2
        words = f"{arguments.removesuffix(' 8')} is for models that predict the next token"
        assert words in capfd.readouterr()[1]


@EVERY_OBJECTIVE
def test_generate_takes_many_prompts_and_needs_no_data(name, workspace, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    data = shutil.copytree(workspace / DATA.get(name, "documents"), tmp_path / "data")
    config = short_config(name, workspace, max_steps=2)
    objective = train(change(config, data=replace(config.data, path="data")), tmp_path / "runs" / "mine").objective
    shutil.rmtree(data)
    prompts = [f"{n} green" if objective.continues_prompts else f"{n} [MASK] bottles" for n in (7, 11)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    capfd.readouterr()
    assert run_script("generate --run mine --prompts prompts.txt --max_new_tokens 5 --format jsonl") == 0
    rows = list(map(json.loads, capfd.readouterr()[0].splitlines()))
    assert [row["prompt"] for row in rows] == prompts
    for seed, row in enumerate(rows):
        assert run_script(f"generate --run mine --prompt '{row['prompt']}' --max_new_tokens 5 --seed {seed}") == 0
        assert capfd.readouterr()[0] == row["text"] + "\n"


@pytest.mark.parametrize("adapter", [AdapterConfig("lora", rank=2), AdapterConfig("prefix", length=3)])
@pytest.mark.parametrize("name", ["sft", "dpo", "distill"])
def test_objectives_train_adapters(workspace, tmp_path, adapter, name):
    config = short_config(
        name, workspace, adapter=adapter, init_from=str(workspace / "runs" / "teacher"), model=GPTConfig(0)
    )
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


def test_example_rng_depends_on_key_and_index():
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
def test_evaluation_equals_a_loop_over_evenly_spread_batches(workspace, eval_batches):
    base, config, data = create("next_token", workspace, batch_size=1, eval_batches=eval_batches)
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


@EVERY_OBJECTIVE
def test_evaluation_keeps_random_state_and_training_mode(name, workspace):
    objective, config, data = create(name, workspace)
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


@pytest.mark.parametrize("name", ["masked", "infilling"])
def test_a_window_needs_an_objective_that_reads_from_left_to_right(name, workspace):
    with pytest.raises(
        ValueError, match=f"model.window is 4, but the objective {name} reads both sides .*: set it to 0"
    ):
        create(name, workspace, model_window=4)


@pytest.mark.parametrize("name", ["reverse", "sft", "distill"])
def test_label_smoothing_of_other_objectives(name, workspace):
    objective, config, data = create(name, workspace, model_drop_rate=0.0)
    objective.config = replace(objective.config, label_smoothing=0.3)
    if name == "distill":
        objective.config = replace(objective.config, label_weight=1.0)
    batch = objective.batch(objective.examples(config, data, data.train), range(5), (0,))
    logits, targets = objective.model(batch["inputs"]).flatten(0, 1), batch["targets"].flatten()
    for mode, smoothing in ((True, 0.3), (False, 0.0)):
        truth = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        torch.testing.assert_close(objective.train(mode)(**batch)[0], truth)


@EVERY_OBJECTIVE
@pytest.mark.parametrize("block", [GPT2_BLOCK, MODERN_BLOCK], ids=["gpt2", "modern"])
def test_every_objective_trains_in_bfloat16(name, workspace, tmp_path, block):
    model = {f"model_{setting}": value for setting, value in block.items()}
    if name in FROM_MODEL:  # it starts from a model of this block
        train(short_config("next_token", workspace, max_steps=1, **model), tmp_path / "source")
        model |= {"init_from": str(tmp_path / "source"), "model_n_layers": 1}
    trainer = train(short_config(name, workspace, dtype="bfloat16", max_steps=2, **model), tmp_path / "run")
    assert trainer.dtype == torch.bfloat16
    assert math.isfinite(trainer.evaluation.loss)
