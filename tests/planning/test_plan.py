"""Plans: tokens counted on data, settings suggested where a run does not fit, and what is printed."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch
from blocks import MODERN_BLOCK
from conftest import corpus_of
from conversations import write_conversations

from gpt.config import DataConfig, GPTConfig, ObjectiveConfig, TrainConfig
from gpt.data import packed_spans, padded_batch
from gpt.exchange.layouts import GPT2_SIZES
from gpt.objectives.dpo import DPO
from gpt.objectives.objective import create_examples
from gpt.objectives.sft import SFT
from gpt.planning.hardware import get_hardware
from gpt.planning.plan import (
    check_fits,
    estimate,
    estimate_for_data,
    format_bytes,
    format_duration,
    format_plan,
    format_sweep,
    plan_or_raise,
    summarize_plan,
)
from gpt.planning.throughput import measure_throughput
from gpt.text.prepare import prepare_data
from gpt.tokenizer import CharTokenizer
from gpt.variants import create_model
from scripts import run_script

SMALL = GPTConfig(vocab_size=65, context_length=64, emb_dim=64, n_heads=4, n_layers=3, drop_rate=0.0)
LARGE = dataclasses.replace(SMALL, vocab_size=5000, context_length=512, emb_dim=512, n_layers=8)


def train_config(model=SMALL, **settings):
    return TrainConfig(model=model, device="cpu", **settings)


def test_estimate_draws_nothing_and_needs_a_vocabulary():
    before = torch.get_rng_state()
    estimate(train_config(dataclasses.replace(SMALL, emb_dim=68)))  # a shape that is not cached
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"model\.vocab_size is 0.*--model\.vocab_size 50257"):
        estimate(train_config(dataclasses.replace(SMALL, vocab_size=0)))


# --- does it fit? -----------------------------------------------------------------------------------------------------


def error_of(config, memory):
    with pytest.raises(ValueError) as error:
        check_fits(estimate(config), memory=memory)
    return str(error.value)


def peak(config, **changes):
    of_run = {name: changes.pop(name) for name in ("batch_size", "grad_accum_steps") if name in changes}
    return estimate(dataclasses.replace(config, model=dataclasses.replace(config.model, **changes), **of_run)).peak


@pytest.mark.parametrize("memory", [2_000_000_000, 3_000_000_000, None])
def test_too_large_a_batch_names_the_largest_that_fits(memory):
    config = train_config(LARGE, batch_size=32, grad_accum_steps=2)
    memory = memory or peak(config, batch_size=31)  # one example less fits exactly
    said = error_of(config, memory)
    needed, available = format_bytes(peak(config)), format_bytes(memory)
    assert said.startswith(f"a training step needs about {needed} of memory, but {available} is available: ")
    batch_size, accumulation = map(int, re.search(r"batch_size (\d+) with grad_accum_steps (\d+)", said).groups())
    fitting = [n for n in range(1, 32) if peak(config, batch_size=n, grad_accum_steps=-(-64 // n)) <= memory]
    in_64 = max(n for n in fitting if 64 % n == 0)  # preferred unless it is less than half of what fits
    assert batch_size == (in_64 if 2 * in_64 > max(fitting) else max(fitting))
    total = batch_size * accumulation
    assert 64 <= total < 64 + batch_size
    needed = format_bytes(peak(config, batch_size=batch_size, grad_accum_steps=accumulation))
    assert f"({'the same ' * (total == 64)}{total} examples per step) needs {needed}" in said


def test_too_long_a_context_names_the_longest_that_fits():
    config = train_config(dataclasses.replace(LARGE, context_length=4096), batch_size=2)
    memory = peak(config, batch_size=1, grad_accum_steps=2) // 2
    said = error_of(config, memory)
    context = int(re.search(r"batch_size 1 with grad_accum_steps 2 and model\.context_length (\d+) ", said)[1])
    assert peak(config, batch_size=1, grad_accum_steps=2, context_length=context) <= memory
    assert peak(config, batch_size=1, grad_accum_steps=2, context_length=context + 1) > memory


def test_too_large_a_model_names_the_layers_that_fit():
    config = train_config(dataclasses.replace(LARGE, emb_dim=2048, context_length=64), batch_size=1)
    memory = 4_000_000_000
    layers = int(re.search(r"grad_accum_steps 1 and model\.n_layers (\d+) ", error_of(config, memory))[1])
    assert peak(config, n_layers=layers) <= memory < peak(config, n_layers=layers + 1)
    width = int(re.search(r"grad_accum_steps 1 and model\.emb_dim (\d+) ", error_of(config, 800_000_000))[1])
    n_heads = config.model.n_heads
    assert width % n_heads == 0
    assert peak(config, emb_dim=width) <= 800_000_000 < peak(config, emb_dim=width + n_heads)
    assert "even the smallest model does not fit" in error_of(config, 100_000_000)
    rotary = train_config(dataclasses.replace(config.model, **MODERN_BLOCK), batch_size=1)
    width = int(re.search(r"and model\.emb_dim (\d+) ", error_of(rotary, 550_000_000))[1])
    assert width % (2 * n_heads) == 0  # pairs of numbers are rotated
    assert peak(rotary, emb_dim=width) <= 550_000_000 < peak(rotary, emb_dim=width + 2 * n_heads)


def test_too_little_disk_names_the_checkpoints_to_keep():
    config = train_config(keep_checkpoints=20, max_steps=3000, eval_every=300, save_every=100)
    plan = estimate(config)
    one = 12 * plan.n_parameters
    assert plan.disk == 22 * one
    check_fits(plan, disk=22 * one)
    said = f"take up to {format_bytes(22 * one)} of disk, but {format_bytes(9 * one)} is free: keep_checkpoints 7 needs"
    with pytest.raises(ValueError, match=said):
        check_fits(plan, disk=9 * one + 1)
    with pytest.raises(ValueError, match=f"even keep_checkpoints 1 needs {format_bytes(3 * one)}"):
        check_fits(plan, disk=3 * one - 1)


def test_disk_counts_only_checkpoints_that_are_saved():
    config = train_config(keep_checkpoints=50, max_steps=1000, eval_every=300, save_every=200)
    plan = estimate(config)
    steps = {step for step in range(1, 1001) if step % 300 == 0 or step % 200 == 0 or step == 1000}
    assert plan.disk == len(steps) * 12 * plan.n_parameters
    assert estimate(dataclasses.replace(config, eval_every=0, save_every=0)).disk == 12 * plan.n_parameters


def test_plan_or_raise(prepared, tmp_path, tiny_config, monkeypatch):
    plan = plan_or_raise(tiny_config, prepared, tmp_path / "run")
    assert plan.config.model.vocab_size == prepared.tokenizer.vocab_size
    monkeypatch.setattr("gpt.planning.plan.available_memory", lambda device: 1_000_000)
    with pytest.raises(ValueError, match=r"needs about 0\.4 GB of memory, but 1 MB is available: even the smallest"):
        plan_or_raise(tiny_config, prepared, tmp_path / "run")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_documents_are_padded_to_the_longest_of_their_batch(tmp_path):
    texts = ["a" * n for n in (3, 30, 7, 12, 30, 5, 9, 21, 14, 2, 8, 17)]
    data = prepare_data(corpus_of(tmp_path / "texts", *texts), "char", tmp_path / "data", 0.4)
    model = dataclasses.replace(SMALL, vocab_size=0, context_length=16)
    config = train_config(model, batch_size=2, eval_every=0, max_steps=1, data=DataConfig(str(data.folder), "document"))
    examples = create_examples(config, data)
    plan = estimate_for_data(config, data)
    pairs = itertools.product(range(len(examples)), repeat=2)
    assert plan.example_tokens == pytest.approx(np.mean([examples.batch(pair)[0].size(1) for pair in pairs]))
    val_examples = create_examples(config, dataclasses.replace(data, train=data.val))
    spans = [*zip(val_examples.starts, val_examples.ends, strict=True)]
    batches = [padded_batch(data.val.tokens, spans[i : i + 2])[0] for i in range(0, len(spans), 2)]
    assert plan.evaluated_tokens == pytest.approx(sum(batch.numel() for batch in batches), abs=1)


def test_packed_data_is_evaluated_token_by_token(prepared):
    model = dataclasses.replace(SMALL, vocab_size=0)
    config = train_config(model, eval_every=0, data=DataConfig(str(prepared.folder)))
    spans = packed_spans(len(prepared.val.tokens), 64)
    assert estimate_for_data(config, prepared).evaluated_tokens == sum(end - start for start, end, _ in spans)


def padded(lengths, batch_size):
    """The positions of all batches of some examples, each padded to its longest."""
    batches = (lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size))
    return sum(max(batch) * len(batch) for batch in batches)


def talks(n):
    """Conversations of 2 to 24 tokens: a prompt of n, an answer of 1 to 8."""
    return [[("a" * (1 + k % 16), False), ("b" * (1 + k * 7 % 8), True)] for k in range(n)]


@pytest.mark.parametrize("packing", ["document", "packed"])
def test_conversations_alone_and_in_rows(tmp_path, packing):
    data = write_conversations(tmp_path / "data", CharTokenizer("ab"), talks(24), talks(9))
    model = dataclasses.replace(SMALL, vocab_size=2, context_length=16)
    config = train_config(model, batch_size=2, eval_every=0, max_steps=1, data=DataConfig(str(data.folder), packing))
    config = dataclasses.replace(config, objective=ObjectiveConfig("sft"))
    objective = SFT(create_model(model))
    examples, val = (objective.examples(config, data, split) for split in (data.train, data.val))
    plan = estimate_for_data(config, data)
    couples = itertools.product(range(len(examples)), repeat=2)
    assert plan.example_tokens == pytest.approx(np.mean([examples.batch(couple)[0].size(1) for couple in couples]))
    assert (len(examples) == 24) == (packing == "document")
    widths = [val.batch([i])[0].size(1) for i in range(len(val))]
    assert plan.evaluated_tokens == pytest.approx(padded(widths, 2), abs=1)


def test_dpo_reads_two_conversations_per_pair_and_the_reference_once(tmp_path):
    pairs = [talk for n, talk in enumerate(talks(24)) for talk in (talk, [talk[0], ("a" * (1 + n % 3), True)])]
    data = write_conversations(tmp_path / "data", CharTokenizer("ab"), pairs[:36], pairs[36:], preferences=True)
    model = dataclasses.replace(SMALL, vocab_size=2, context_length=32)
    own = DataConfig(str(data.folder), "document")
    config = train_config(model, batch_size=3, eval_every=5, max_steps=10, data=own)
    sft, dpo = (dataclasses.replace(config, objective=ObjectiveConfig(name)) for name in ("sft", "dpo"))
    plan, objective = estimate_for_data(dpo, data), DPO(create_model(model))
    examples, val = (objective.examples(dpo, data, split) for split in (data.train, data.val))
    triples = itertools.product(range(len(examples)), repeat=3)
    numbers = [examples.batch(triple)[0].numel() for triple in triples]
    assert plan.example_tokens == pytest.approx(np.mean(numbers) / 3)
    assert plan.trained_tokens == pytest.approx(10 * np.mean(numbers), abs=1)
    whole, held_out = (
        sum(part.batch(range(len(part))[i : i + 3])[0].numel() for i in range(0, len(part), 3))
        for part in (examples, val)
    )
    evaluations = 3 * held_out  # at steps 0, 5 and 10
    assert plan.evaluated_tokens == pytest.approx(evaluations + whole + held_out, rel=0.1)
    assert plan.row_tokens == pytest.approx(plan.example_tokens / 2)
    assert measure_throughput(plan).layers > 0
    twice = estimate_for_data(dataclasses.replace(sft, batch_size=6), data)
    assert plan.memory["activations"] == twice.memory["activations"]


# --- output -----------------------------------------------------------------------------------------------------------


def test_formatted_sizes_and_durations():
    assert [format_bytes(n) for n in (18e6, 99e6, 0.6e9, 23.1e9)] == ["18 MB", "99 MB", "0.6 GB", "23.1 GB"]
    durations = [format_duration(n) for n in (40, 144, 3600 * 17, 86400 * 12)]
    assert durations == ["40 seconds", "2.4 minutes", "17 hours", "12 days"]


def test_summary_and_table():
    plan = estimate(train_config(GPT2_SIZES["gpt2"], max_steps=1, batch_size=1))
    needs = f"{format_bytes(plan.peak)} of memory (23.1 GB available), {format_bytes(plan.disk)} of disk"
    assert summarize_plan(plan, 23.1e9, 144) == f"needs  about {needs}, about 2.4 minutes"
    table = format_plan(plan, seconds=144)
    for figure in ("124,439,808", "854,438,400", "1,024", "2,488,796,160", format_bytes(plan.peak), "2.4 minutes"):
        assert figure in table


def test_sweep_has_a_row_for_each_value():
    config = train_config(GPT2_SIZES["gpt2"], dtype="auto")
    plans = {
        str(n): estimate(dataclasses.replace(config, batch_size=n), hardware=get_hardware("h100")) for n in (1, 400)
    }
    lines = format_sweep("batch_size", plans, [60.0, None], int(80e9)).splitlines()
    assert [line.split()[0] for line in lines] == ["batch_size", "1", "400"]
    assert "124,439,808" in lines[1]
    assert "60 seconds" in lines[1]
    assert "too large" in lines[2]


def test_plan_script(prepared, tmp_path, capfd):
    config = tmp_path / "small.toml"
    config.write_text('device = "cpu"\nmax_steps = 2\n[model]\nvocab_size = 0\ncontext_length = 16\nemb_dim = 12\n')
    command = f"plan --config {config} --data.path {prepared.folder}"
    out = tmp_path / "sweep.png"
    assert run_script(f"{command} --sweep model.n_layers=1,2 --out {out} --hardware h100x8") == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "seconds" in capfd.readouterr().out
    for wrong in ("model.n_layer=1", "model.n_layers"):
        assert run_script(f"{command} --sweep {wrong}") == 2
    assert run_script(command) == 0
    assert f"token embedding       {12 * prepared.tokenizer.vocab_size:,}" in capfd.readouterr().out
