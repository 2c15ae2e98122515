"""Throughput and run time against hand computation, a published run, and a measured training step."""

import dataclasses
import time

import pytest
import torch
from blocks import GPT2_BLOCK, MODERN_BLOCK

from gpt.config import GPTConfig, OptimConfig, TrainConfig
from gpt.exchange.layouts import GPT2_SIZES
from gpt.optim import create_optimizer
from gpt.planning.hardware import LOCAL, get_hardware
from gpt.planning.plan import estimate
from gpt.planning.throughput import (
    Throughput,
    busy_notice,
    data_sheet_throughput,
    estimate_seconds,
    estimate_times,
    measure_throughput,
    measure_throughputs,
)
from gpt.variants import create_model

SMALL = GPTConfig(vocab_size=65, context_length=64, emb_dim=64, n_heads=4, n_layers=3, drop_rate=0.0)


def plan_gpt2(hardware, **changes):
    config = TrainConfig(model=GPT2_SIZES["gpt2"], device="cpu", dtype="auto", eval_every=0, **changes)
    return estimate(config, hardware=get_hardware(hardware))


def data_sheet_seconds(plan):
    return estimate_seconds(plan, data_sheet_throughput(plan))


def test_hardware_by_name():
    found = get_hardware("H100x8")
    assert (found.name, found.n, found.label) == ("h100", 8, "h100x8")
    assert get_hardware("rtx4090").n == 1
    assert get_hardware("thisx2") == dataclasses.replace(LOCAL, n=2)
    for name in ("j100", "h100x", "h100x0", "x8", ""):
        with pytest.raises(ValueError, match="unknown hardware"):
            get_hardware(name)


def test_tokens_and_seconds_by_hand():
    config = TrainConfig(model=SMALL, device="cpu", max_steps=10, batch_size=3, grad_accum_steps=2, eval_every=4)
    throughput = Throughput(layers=1e9, head=2e9, update=1e6, overhead=0.5)
    plan = estimate(config, n_train_tokens=5000, n_val_tokens=1001)
    assert plan.trained_tokens == 10 * 3 * 2 * 64
    assert plan.evaluated_tokens == 4 * 1000  # at steps 0, 4, 8 and 10
    per_token = plan.layer_flops / 1e9 + plan.head_flops / 2e9
    by_hand = 3840 * per_token + 10 * (2 * 0.5 + plan.n_parameters / 1e6) + (4000 * per_token + 4000 / 3 / 64 * 0.5) / 3
    assert estimate_seconds(plan, throughput) == pytest.approx(by_hand)
    assert estimate_seconds(plan, throughput, first_step=5) == pytest.approx(by_hand / 2)
    assert estimate(dataclasses.replace(config, eval_every=0), 5000, 1001).evaluated_tokens == 1000


def test_nanogpts_published_training_time():
    """Its README: 4 days on 8 A100, for the 600,000 steps of 8 x 5 x 12 examples of 1,024 tokens in its config."""
    plan = plan_gpt2("a100x8", max_steps=600_000, batch_size=12, grad_accum_steps=40)
    assert data_sheet_seconds(plan) / 86_400 == pytest.approx(4, rel=0.1)


def test_processes_share_tokens_and_time():
    one, eight = (plan_gpt2(name, batch_size=16, grad_accum_steps=32) for name in ("h100", "h100x8"))
    assert eight.trained_tokens == one.trained_tokens
    assert 7.9 < data_sheet_seconds(one) / data_sheet_seconds(eight) <= 8


def test_communication_by_hand():
    """A card on PCIe sends 7/8 of 124M gradients twice, 870 MB, in 27 ms; backward hides what it can."""
    plan = plan_gpt2("rtx4090x8", batch_size=8)
    sent = 2 * 7 / 8 * 4 * 124_439_808 / 32e9
    backward = 2 / 3 * 1024 * 854_438_400 / (0.3 * 165e12)
    assert data_sheet_throughput(plan).communication == pytest.approx(sent - backward)
    assert data_sheet_throughput(plan_gpt2("rtx4090x8", batch_size=64)).communication == 0
    per_step = data_sheet_seconds(plan) / plan.config.max_steps
    assert per_step == pytest.approx(1.5 * backward + sent - backward + 40 * 124_439_808 / 1.01e12)


def test_communication_of_shards_by_hand():
    """Each of two passes sends 63/64 of 124M numbers as bfloat16 weights, twice, and as float32 gradients, over a
    network of 50 GB/s, and computes meanwhile. Within a node it does so at 450 GB/s, which computing hides, and then
    sends 7/8 of the sum of an eighth of the gradients twice."""
    fsdp, hsdp = (plan_gpt2("h100x64", batch_size=1, grad_accum_steps=128, parallel=p) for p in ("fsdp", "hsdp"))
    one_pass = 1024 * 854_438_400 / (0.3 * 989e12)
    sent = 63 / 64 * (2 + 2 + 4) * 124_439_808 / 50e9
    assert data_sheet_throughput(fsdp).communication == pytest.approx(2 * (sent - one_pass))
    sent = 2 * 7 / 8 * 4 * 124_439_808 / 8 / 50e9
    assert one_pass > 7 / 8 * 8 * 124_439_808 / 450e9
    assert data_sheet_throughput(hsdp).communication == pytest.approx(max(0, sent - 2 / 3 * one_pass))


def test_plans_are_measured_in_turn_and_the_best_counts(monkeypatch):
    """Another program makes the machine four times slower during the second round."""
    plans = [estimate(TrainConfig(model=SMALL, device="cpu", batch_size=n)) for n in (4, 8)]
    order = []

    def measure(plan):
        order.append(plan.config.batch_size)
        slower = 4 if len(order) in (3, 4) else 1
        return Throughput(8e9 / slower, 4e9 / slower, 1e9 / slower, 0.01 * slower)

    monkeypatch.setattr("gpt.planning.throughput.measure_throughput", measure)
    assert measure_throughputs(plans) == [Throughput(8e9, 4e9, 1e9, 0.01)] * 2
    assert order == [4, 8] * 3
    small = plans[0].peak + 1
    assert [time is None for time in estimate_times(plans, small)] == [False, True]


def test_a_busy_machine_is_noticed(monkeypatch):
    for percent, said in ((3.0, ""), (57.0, "other programs use 57% of this machine's cores")):
        monkeypatch.setattr("psutil.cpu_percent", lambda interval, percent=percent: percent)
        assert busy_notice(torch.device("cpu")).startswith(said)
        assert bool(busy_notice(torch.device("cpu"))) == bool(said)
    assert not busy_notice(torch.device("cuda"))


@pytest.mark.parametrize(("name", "block"), [("adamw", GPT2_BLOCK), ("muon", GPT2_BLOCK), ("muon", MODERN_BLOCK)])
def test_measured_throughput_predicts_a_step_and_draws_nothing(name, block):
    model = dataclasses.replace(SMALL, emb_dim=128, drop_rate=0.1, **block)
    plan = estimate(TrainConfig(model=model, device="cpu", batch_size=8, max_steps=1, optim=OptimConfig(name)))
    before = torch.get_rng_state()
    throughput = measure_throughput(plan)
    assert torch.equal(torch.get_rng_state(), before)
    network, ids = create_model(model), torch.randint(65, (8, 64))
    optimizer = create_optimizer(network, plan.config.optim)

    def step():
        network(ids, ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    # wide bounds: other processes may slow down one of the two measurements
    assert sorted(times)[3] / 4 < estimate_seconds(plan, throughput) < sorted(times)[3] * 4
