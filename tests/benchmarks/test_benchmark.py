"""The benchmark: its arithmetic against the CSV by hand, its contenders against each other and against the Trainer."""

import csv
import dataclasses
import math
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from numerics import tolerance

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))  # as scripts/benchmark.py does

from benchmarks import contenders, measure  # noqa: E402
from benchmarks.cases import CASES  # noqa: E402
from benchmarks.plain_gpt import PlainGPT  # noqa: E402
from gpt.exchange.layouts import GPT2_SIZES  # noqa: E402
from gpt.planning.flops import count_parameters  # noqa: E402
from gpt.run.training import start_run  # noqa: E402
from gpt.text.tokenizers import get_tokenizer  # noqa: E402
from gpt.variants import create_model  # noqa: E402

SHAPE = CASES["train-124m"].quick().model


def table(folder):
    """The rows of benchmark.csv by case and contender."""
    with (folder / "benchmark.csv").open(newline="", encoding="utf-8") as file:
        return {(row["case"], row["contender"]): row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_quick_run_of_the_command(tmp_path):
    """One case, in processes of its own, and the files that it writes."""
    command = [sys.executable, "scripts/benchmark.py", "--quick", "--cases", "prepare", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path)
    machine = [("machine", "matmul"), ("machine", "onednn"), ("machine", "bandwidth")]
    assert list(rows) == [*machine, ("prepare", "gpt"), ("prepare", "tiktoken")]
    assert all(float(rows["machine", name]["per_second"]) > 1e8 for name in ("matmul", "bandwidth"))
    assert abs(int(rows["prepare", "gpt"]["tokens"]) - int(rows["prepare", "tiktoken"]["tokens"])) <= 2
    assert all(float(rows["prepare", name]["peak_mb"]) > 50 for name in ("gpt", "tiktoken"))
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "benchmark.txt").read_text(encoding="utf-8").strip() in done.stdout
    first = next(line for line in done.stdout.splitlines() if "processes" in line)
    assert first == "3 processes, one after the other: about 6 s on two cores"


MACHINE = {"matmul": 1e9, "onednn": 4e9, "bandwidth": 8e9, "threads": 2, "peak_bytes": 1}


@pytest.fixture
def printed(monkeypatch):
    """The jobs run, in order, and what each contender prints, round by round; one without output dies."""
    jobs, lines = [], {}

    def run(job):
        jobs.append((job["case"], job["contender"]))
        if job["case"] == "machine":
            return MACHINE
        rounds = lines.get(job["contender"], [])
        return rounds.pop(0) if rounds else {"problem": "died with status 1: MemoryError"}

    monkeypatch.setattr(measure, "run", run)
    return jobs, lines


def rounds_of(*seconds, **more):
    return [{"seconds": s, "units": 6, "peak_bytes": 5e6 + s, "threads": 2, **more} for s in seconds]


def test_medians_ratios_and_shares(tmp_path, printed):
    jobs, lines = printed
    times = {"gpt": (2.0, 9.0, 3.0), "transformers": (8.0, 5.0, 6.0), "transformers tuned": (1.0, 1.5, 2.0)}
    for name, seconds in times.items():
        lines[name] = rounds_of(*seconds, flops=6e9, parameters=7)
    lines["plain"] = rounds_of(4.0)  # and dies in the second round
    said = []
    rows = measure.benchmark(["train-30m"], 3, tmp_path, log=said.append)
    names = ["gpt", "transformers", "transformers tuned", "plain"]
    assert [c for case, c in jobs if case != "machine"] == names * 2 + names[:3], "in turn, and a dead one but once"
    found = table(tmp_path)
    for name, seconds in times.items():
        row = found["train-30m", name]
        assert float(row["seconds"]) == statistics.median(seconds)
        assert float(row["times_gpt"]) == pytest.approx(statistics.median(seconds) / 3)
        assert float(row["per_second"]) == pytest.approx(6 / statistics.median(seconds))
        assert float(row["share_of_peak"]) == pytest.approx(6e9 / statistics.median(seconds) / 4e9)  # oneDNN's
        assert float(row["peak_mb"]) == pytest.approx((5e6 + max(seconds)) / 1e6)
    dead = found["train-30m", "plain"]
    assert (dead["problem"], dead["seconds"], dead["times_gpt"]) == ("died with status 1: MemoryError", "", "")
    assert sum("MemoryError" in line for line in said) == 2, "as it happened, and in the table"
    assert [row["contender"] for row in rows if "problem" in row] == ["plain"]


def test_a_share_of_bandwidth_and_other_work(tmp_path, printed):
    _, lines = printed
    lines["gpt"] = rounds_of(2.0, bytes=4e9)
    lines["transformers"] = rounds_of(4.0, bytes=4e9)
    measure.benchmark(["decode"], 1, tmp_path, log=lambda line: None)
    assert float(table(tmp_path)["decode", "gpt"]["share_of_bandwidth"]) == pytest.approx(0.25)
    lines["gpt"], lines["tiktoken"] = rounds_of(2.0, tokens=1000), rounds_of(2.0, tokens=990)
    measure.benchmark(["prepare"], 1, tmp_path, text=Path("any.txt"), log=lambda line: None)
    row = table(tmp_path)["prepare", "tiktoken"]
    assert (row["problem"], row["times_gpt"]) == ("not the same work: 990 tokens, and gpt's 1,000", "")


def test_without_gpt_there_are_no_ratios(tmp_path, printed):
    _, lines = printed
    lines["plain"] = rounds_of(4.0)
    measure.benchmark(["decode"], 1, tmp_path, log=lambda line: None)
    found = table(tmp_path)
    assert found["decode", "plain"]["seconds"] and not found["decode", "plain"]["times_gpt"]
    assert found["decode", "gpt"]["problem"]


def test_ctrl_c_writes_the_results_so_far(tmp_path, printed, monkeypatch):
    _, lines = printed
    lines["gpt"] = rounds_of(1.0, flops=1e9)
    one = measure.run

    def run(job):
        if job["contender"] == "transformers":
            raise KeyboardInterrupt
        return {"problem": "died"} if job["case"] == "machine" else one(job)

    monkeypatch.setattr(measure, "run", run)
    said = []
    measure.benchmark(["train-30m", "decode"], 2, tmp_path, log=said.append)
    assert list(table(tmp_path)) == [("train-30m", "gpt")]
    assert "the machine's own rates are not known: died" in said[-1]
    assert table(tmp_path)["train-30m", "gpt"]["share_of_peak"] == ""


def test_a_missing_package_is_reported_and_left_out(tmp_path, printed, monkeypatch):
    jobs, lines = printed
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None if name == "transformers" else 1)
    lines["gpt"], lines["plain"], said = rounds_of(1.0), rounds_of(2.0), []
    measure.benchmark(["train-30m"], 1, tmp_path, log=said.append)
    assert jobs == [("machine", ""), ("train-30m", "gpt"), ("train-30m", "plain")]
    assert "transformers is not installed" in said[0]


def test_a_process_that_dies_is_reported():
    job = {"case": "train-30m", "contender": "nobody", "quick": True}
    assert measure.run(job) == {"problem": "died with status 1: KeyError: 'nobody'"}
    if hasattr(signal, "SIGKILL"):
        assert measure.ending(-9, "") == "killed by SIGKILL, as the system does where memory runs out"
    assert measure.ending(3, "\n") == "died with status 3: it said nothing"


# --- equal work -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt", "transformers", "plain"])
def test_each_contender_learns_the_same_shape(name):
    if name == "transformers":
        pytest.importorskip("transformers", reason="transformers is a development dependency")
    case = CASES["train-124m"].quick()
    result = contenders.train(case, name)
    assert result["parameters"] == sum(count_parameters(SHAPE).values())
    assert result["units"] == 2 * 32
    assert result["first_loss"] == pytest.approx(math.log(300), rel=0.05)
    assert result["last_loss"] < result["first_loss"]
    assert contenders.decode(CASES["decode"].quick(), name)["units"] == 8


def test_the_published_size():
    with torch.device("meta"):
        assert contenders.count(PlainGPT(CASES["train-124m"].model)) == 124_439_808
    assert dataclasses.replace(CASES["train-124m"].model, drop_rate=0.1) == GPT2_SIZES["gpt2"]


def test_unequal_work_is_refused():
    model = PlainGPT(SHAPE)
    for losses, words in (([5.7, float("nan")], "the model learned nothing"), ([2.0, 1.0], "not the uniform loss")):
        with pytest.raises(ValueError, match=words):
            contenders.check(SHAPE, model, losses)
    with pytest.raises(ValueError, match="parameters are not"):
        contenders.check(dataclasses.replace(SHAPE, n_layers=3), model, [5.7, 5.0])


def test_the_plain_gpt_is_the_same_function():
    """With the same weights its logits and its loss are those of GPTModel."""
    ours, plain = create_model(SHAPE).double().eval(), PlainGPT(SHAPE).double()
    names = {"trf_blocks": "blocks", "att.out_proj": "proj", "ff.layers": "mlp", "final_norm": "norm"}
    names |= {"scale": "weight", "shift": "bias", "out_head": "head"}
    weights = {}
    for name, tensor in ours.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = tensor + 0.1 * torch.randn_like(tensor)
    ours.load_state_dict(dict(zip(ours.state_dict(), weights.values(), strict=True)))
    weights["head.weight"] = weights["tok_emb.weight"] = ours.tok_emb.weight.detach()
    for layer in range(SHAPE.n_layers):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{layer}.att.W_{part}.{kind}") for part in ("query", "key", "value")]
            weights[f"blocks.{layer}.qkv.{kind}"] = torch.cat(parts)
    plain.load_state_dict(weights)
    inputs, targets = torch.randint(300, (2, 3, 20))
    logits, loss = ours(inputs).detach(), ours(inputs, targets)
    atol = tolerance(SHAPE.n_layers * 6 * SHAPE.emb_dim, logits)
    torch.testing.assert_close(plain(inputs), logits, rtol=0, atol=atol)
    torch.testing.assert_close(plain(inputs, targets), loss, rtol=0, atol=atol)
    from gpt.generation import generate

    assert plain.generate(inputs[:1], 12).equal(generate(ours, inputs[:1], 12, temperature=0))


def test_gpts_step_is_the_trainers(tiny_config, tmp_path):
    """After three steps on the Trainer's batches the weights are the Trainer's, bit for bit."""
    constant = {"lr": contenders.LR, "min_lr": 0.0, "warmup_steps": 0, "schedule": "constant"}
    optim = dataclasses.replace(tiny_config.optim, **constant, grad_clip=contenders.CLIP, weight_decay=0.1)
    model = dataclasses.replace(tiny_config.model, drop_rate=0.0)
    rare = {"eval_every": 0, "save_every": 0, "sample_every": 0}
    config = dataclasses.replace(tiny_config, optim=optim, model=model, grad_accum_steps=1, max_steps=3, **rare)
    trainer = start_run(config, tmp_path / "run", log=lambda line: None)
    objective, step = contenders.gpt_step(trainer.config.model)
    objective.load_state_dict(trainer.objective.state_dict())
    for n in range(3):
        step(*trainer.examples.batch(trainer.sampler.step(n)))
    trainer.train()
    for name, parameter in objective.state_dict().items():
        assert parameter.equal(trainer.objective.state_dict()[name]), name


def test_the_generated_text_has_many_words(tmp_path):
    text = measure.make_text(tmp_path / "text.txt", 300_000).read_text(encoding="utf-8")
    assert 300_000 <= len(text) < 340_000
    words = text.lower().replace(".", " ").split()
    assert len(set(words)) > 5_000, "a cache of words must not be flattered"
    assert len(words) > len(text) / 9, "words are short, as a language's are"
    assert 2.0 < len(text) / len(get_tokenizer("gpt2").encode(text)) < 5.0  # bytes per token
    assert text == measure.make_text(tmp_path / "again.txt", 300_000).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--text", "nowhere.txt"], "--text: there is no file nowhere.txt"),
        (["--cases", "cook"], "--cases: invalid choice: 'cook'"),
    ],
)
def test_mistakes(typed, words):
    done = subprocess.run([sys.executable, "scripts/benchmark.py", *typed], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr
