"""The choice of a matrix product: the fastest, remembered, the same in all processes, and restored with a run."""

import dataclasses
import json
import time

import pytest
import torch
import torch.nn.functional as F
from runs import change

from gpt.ops import fused
from gpt.run.training import resume_run, start_run
from gpt.system import kernels

X, WEIGHT = torch.randn(5, 8), torch.randn(6, 8)


def slowed(product, calls):
    def slow(*arguments):
        calls.append(product)
        time.sleep(0.002)
        return product(*arguments)

    return slow


@pytest.fixture
def timed(monkeypatch, fresh_kernels):
    """PyTorch's product takes 2 ms more than oneDNN's. Return the calls of it."""
    calls = []
    candidates = {"pytorch": slowed(F.linear, calls), "onednn": F.linear}
    monkeypatch.setitem(kernels.CANDIDATES, "rows", candidates)
    return calls


def forget():
    """Be as a new process."""
    kernels.choices.clear()
    kernels._products.clear()


def test_the_fastest_is_chosen_once_and_remembered(timed):
    assert kernels.choose("rows", X, WEIGHT) is F.linear
    assert kernels.choices == {"rows 16x6x8": "onednn"}
    assert json.loads(kernels.cache_file().read_text()) == kernels.choices
    measured = len(timed)
    forget()
    assert kernels.choose("rows", X, WEIGHT) is F.linear
    assert len(timed) == measured  # the file has the answer


def test_a_small_gain_does_not_replace_pytorchs(monkeypatch, timed):
    monkeypatch.setattr(kernels, "MARGIN", 0.0)  # no time is less than this share
    assert kernels.choose("rows", X, WEIGHT) is kernels.CANDIDATES["rows"]["pytorch"]


@pytest.mark.parametrize("content", ["", "[]", '{"rows 16x6x8": "cuda"}'])
def test_a_damaged_file_is_measured_anew(timed, content):
    kernels.cache_file().parent.mkdir(parents=True)
    kernels.cache_file().write_text(content)
    kernels.choose("rows", X, WEIGHT)
    assert json.loads(kernels.cache_file().read_text()) == {"rows 16x6x8": "onednn"}


def test_a_folder_that_cannot_be_written_costs_only_time(timed, fresh_kernels):
    fresh_kernels.write_text("a file where the folder should be")
    assert kernels.choose("rows", X, WEIGHT) is F.linear


def test_numbers_of_rows_share_a_choice_up_to_a_power_of_4(monkeypatch, fresh_kernels):
    monkeypatch.setattr(kernels, "COLD_BYTES", 0)  # else many thousand copies of so small a weight
    for n in (2, 3, 4, 5, 16, 17, 1000, 3000):
        kernels.choose("rows", torch.randn(n, 8), WEIGHT)
    kernels.choose("rows", torch.randn(1, 1, 8), WEIGHT)
    assert sorted(kernels.choices) == sorted(["row 1x6x8", *(f"rows {n}x6x8" for n in (4, 16, 64, 1024))])


def test_the_environment_overrides(monkeypatch, timed):
    monkeypatch.setenv("GPT_KERNELS", "pytorch")
    kernels.choose("rows", X, WEIGHT)
    assert kernels.choices == {"rows 16x6x8": "pytorch"}
    assert not timed
    assert not kernels.cache_file().exists()


def test_another_machine_has_another_file(monkeypatch):
    here = kernels.cache_file()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert kernels.cache_file() != here


def test_every_candidate_computes_the_same(fresh_kernels):
    x, grad = torch.randn(4, 8), torch.randn(4, 6)
    bias = torch.randn(6)
    for kind, rows in (("row", x[:1]), ("rows", x)):
        for product in kernels.CANDIDATES[kind].values():
            torch.testing.assert_close(product(rows, WEIGHT, bias), rows @ WEIGHT.T + bias)
            torch.testing.assert_close(product(rows, WEIGHT), rows @ WEIGHT.T)
    for product in kernels.CANDIDATES["grad"].values():
        torch.testing.assert_close(product(grad, WEIGHT), grad @ WEIGHT)


@pytest.mark.skipif(not kernels.HAS_ONEDNN, reason="this PyTorch has no oneDNN")
def test_a_run_goes_on_with_the_choices_of_its_checkpoint(tiny_config, tmp_path, monkeypatch, fresh_kernels):
    """oneDNN adds in another order than MKL, so the weights show which one was used."""
    optim = dataclasses.replace(tiny_config.optim, decay_steps=6)
    config = change(tiny_config, max_steps=6, save_every=3, optim=optim)
    monkeypatch.setenv("GPT_KERNELS", "onednn")
    whole = start_run(config, tmp_path / "whole")
    whole.train()
    start_run(change(config, max_steps=3), tmp_path / "run").train()
    monkeypatch.setenv("GPT_KERNELS", "auto")
    monkeypatch.setattr(kernels, "_fastest", lambda *_: "pytorch")
    forget()
    resumed = resume_run(tmp_path / "run", config)
    resumed.train()
    assert set(kernels.choices.values()) == {"onednn"}
    for name, weight in whole.objective.state_dict().items():
        assert torch.equal(weight, resumed.objective.state_dict()[name]), name


def test_a_checkpoint_from_before_the_choices_is_resumed(tiny_config, tmp_path):
    start_run(change(tiny_config, max_steps=1), tmp_path / "run").train()
    trainer = resume_run(tmp_path / "run")
    checkpoint, _ = trainer.run.load_newest_valid()
    del checkpoint.state["kernels"]
    trainer.restore(checkpoint)
    assert trainer.step == 1


def test_small_products_have_no_choice():
    assert not kernels.can_choose(X, WEIGHT)
    torch.testing.assert_close(fused.linear(X, WEIGHT), X @ WEIGHT.T)


@pytest.mark.parametrize(("kind", "n_rows", "cold"), [("row", 1, True), ("rows", 64, False)])
def test_one_row_is_timed_with_weights_from_memory(monkeypatch, kind, n_rows, cold):
    """Decoding reads each weight once per token: from memory, not from the cache, where a repeated product has it."""
    weight, used = torch.zeros(512, 512), set()
    monkeypatch.setitem(kernels.CANDIDATES, kind, {"pytorch": lambda x, weight: used.add(weight.data_ptr())})
    kernels._fastest(kind, n_rows, weight)
    assert len(used) * weight.nbytes >= kernels.COLD_BYTES if cold else used == {weight.data_ptr()}


@pytest.mark.slow
def test_compiled_code_takes_the_chosen_product(fresh_kernels):
    compiled = torch.compile(fused.linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X, WEIGHT), X @ WEIGHT.T)
    assert list(kernels.choices) == ["rows 16x6x8"]
