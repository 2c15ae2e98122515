"""The benchmark: its arithmetic against the CSV by hand, its contenders against each other and against the Trainer."""

import csv
import dataclasses
import json
import math
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from numerics import tolerance

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))  # as scripts/benchmark.py does

from benchmarks import contenders, measure, results  # noqa: E402
from benchmarks import machine as this_machine  # noqa: E402
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
    machine = [("machine", name) for name in ("matmul", "onednn", "bfloat16", "bandwidth")]
    assert list(rows) == [*machine, ("prepare", "gpt"), ("prepare", "tiktoken")]
    assert all(float(rows["machine", name]["per_second"]) > 1e8 for name in ("matmul", "bandwidth"))
    assert abs(int(rows["prepare", "gpt"]["tokens"]) - int(rows["prepare", "tiktoken"]["tokens"])) <= 2
    assert all(float(rows["prepare", name]["peak_mb"]) > 50 for name in ("gpt", "tiktoken"))
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "benchmark.txt").read_text(encoding="utf-8").strip() in done.stdout
    first = next(line for line in done.stdout.splitlines() if "processes" in line)
    assert first == "3 processes, one after the other: about 6 s on two cores"


KIND = {
    "cpu": "Some CPU (R)", "family": 6, "model": 85, "capability": "AVX2", "bfloat16": False, "limits": {}, "cores": 2,
    "threads": 4,
}  # fmt: skip
MACHINE = {"matmul": 1e9, "onednn": 4e9, "bfloat16": 16e9, "bandwidth": 8e9, "peak_bytes": 1, "machine": KIND}


@pytest.fixture
def printed(monkeypatch):
    """The jobs run, in order, and what each contender prints, round by round; one without output dies, and those that
    compute in another type are left out."""
    jobs, lines = [], {}

    def run(job):
        jobs.append((job["case"], job["contender"]))
        if job["case"] == "machine":
            return MACHINE
        if job["contender"] not in lines and set(job["contender"].split()) & {"bfloat16", "int8", "compiled"}:
            return {"left_out": "no hardware"}
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
    run = [c for case, c in jobs if case != "machine"]
    assert [c for c in run if c in names] == names * 2 + names[:3], "in turn, and a dead one but once"
    assert sorted(set(run) - set(names)) == ["gpt bfloat16", "gpt compiled", "transformers bfloat16 tuned"]
    assert len(run) == 14, "what is left out has but one process"
    assert sum("left out: no hardware" in line for line in said) == 3
    found = table(tmp_path)
    for name, seconds in times.items():
        row = found["train-30m", name]
        expected = [statistics.median(seconds), min(seconds), max(seconds)]
        assert [float(row[key]) for key in ("seconds", "lowest", "highest")] == expected
        assert float(row["times_gpt"]) == pytest.approx(statistics.median(seconds) / 3)
        assert float(row["per_second"]) == pytest.approx(6 / statistics.median(seconds))
        assert float(row["share_of_peak"]) == pytest.approx(6e9 / statistics.median(seconds) / 4e9)  # oneDNN's
        assert float(row["peak_mb"]) == pytest.approx((5e6 + max(seconds)) / 1e6)
    dead = found["train-30m", "plain"]
    assert (dead["problem"], dead["seconds"], dead["times_gpt"]) == ("died with status 1: MemoryError", "", "")
    assert sum("MemoryError" in line for line in said) == 2, "as it happened, and in the table"
    assert [row["contender"] for row in rows if "problem" in row] == ["plain"]


def test_the_share_of_a_bfloat16_contender_is_of_the_bfloat16_peak(tmp_path, printed):
    _, lines = printed
    lines["gpt"], lines["gpt bfloat16"] = rounds_of(2.0, flops=4e9), rounds_of(1.0, flops=4e9)
    measure.benchmark(["train-30m"], 1, tmp_path, log=lambda line: None)
    shares = [table(tmp_path)["train-30m", name]["share_of_peak"] for name in ("gpt", "gpt bfloat16")]
    assert list(map(float, shares)) == pytest.approx([4e9 / 2 / 4e9, 4e9 / 1 / 16e9])


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
    assert [c for _, c in jobs] == ["", "gpt", "gpt bfloat16", "gpt compiled", "plain"]
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


@pytest.mark.parametrize("name", ["gpt", "transformers"])
def test_units_are_tokens_of_all_sequences_or_of_the_prompt(name):
    if name == "transformers":
        pytest.importorskip("transformers", reason="transformers is a development dependency")
    assert [CASES[f"decode-batch-{n}"].batch_size for n in (8, 32)] == [8, 32]
    several, prompt = CASES["decode-batch-8"].quick(), CASES["prompt-smollm2"].quick()
    results = [contenders.decode(case, name) for case in (several, prompt)]
    assert [result["units"] for result in results] == [2 * 8, 32]
    per_step = [result["bytes"] / case.n_new for result, case in zip(results, (several, prompt), strict=True)]
    assert per_step[0] == contenders.decode(dataclasses.replace(several, batch_size=1), name)["bytes"] / 8, "read once"


def test_too_few_tokens_are_refused(monkeypatch):
    short = SimpleNamespace(parameters=list), lambda prompts, n_new: prompts[:1]
    monkeypatch.setitem(contenders.WRITERS, "gpt", (lambda config: short, 4))
    with pytest.raises(ValueError, match=r"tokens of shape \(1, 32\) were written in place of \(2, 40\)"):
        contenders.decode(CASES["decode-batch-8"].quick(), "gpt")


@pytest.mark.parametrize("name", ["gpt", "transformers"])
def test_training_in_bfloat16_rounds_the_products_but_not_the_weights(name):
    if name == "transformers":
        pytest.importorskip("transformers", reason="transformers is a development dependency")
    case, losses = dataclasses.replace(CASES["train-124m"].quick(), warmup=1, steps=1), []
    for contender in (name, f"{name} bfloat16"):
        torch.manual_seed(0)
        losses.append(contenders.train(case, contender)["first_loss"])
        torch.manual_seed(0)
        model, step = contenders.STEPS[contender](case.model)
        step(*torch.randint(300, (2, 1, 8)))
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=torch.finfo(torch.bfloat16).eps)


def test_the_compiled_contender_is_compiled(monkeypatch):
    """The eager backend is enough to test that."""
    compiled, compile_module = [], torch.compile
    monkeypatch.setattr("gpt.variants.compiled.compile_obstacle", lambda device: None)
    monkeypatch.setattr(
        "torch.compile", lambda module: compiled.append(module) or compile_module(module, backend="eager")
    )
    losses = []
    for name in ("gpt", "gpt compiled"):
        torch.manual_seed(0)
        losses.append(contenders.train(CASES["train-0.8m"].quick(), name)["last_loss"])
    assert len(compiled) == 1 + CASES["train-0.8m"].quick().model.n_layers  # each block, and the loss
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_the_machine_cannot_run_is_left_out(monkeypatch):
    monkeypatch.setattr("gpt.system.device.has_fast_bfloat16", lambda: False)
    monkeypatch.setattr("gpt.system.device.compile_obstacle", lambda device: "no compiler")
    job = {"case": "decode", "quick": True}
    for name, words in (("transformers bfloat16", "no bfloat16 in hardware"), ("gpt compiled", "no compiler")):
        with pytest.raises(contenders.LeftOutError, match=words):
            contenders.measured(job, name)

    def refuse(model, weights):
        raise ValueError(f"no product for {weights} here")

    monkeypatch.setitem(sys.modules, "gpt.variants.quantized", SimpleNamespace(QuantizedGPTModel=refuse))
    with pytest.raises(contenders.LeftOutError, match="no product for int8 here"):
        contenders.measured(job, "gpt int8")


def test_rounded_weights_are_read_by_the_rounded_model(monkeypatch):
    rounded = []
    fake = SimpleNamespace(QuantizedGPTModel=lambda model, weights: rounded.append(weights) or model)
    compiled = []
    monkeypatch.setitem(sys.modules, "gpt.variants.quantized", fake)
    monkeypatch.setitem(
        sys.modules, "gpt.variants.compiled", SimpleNamespace(compile_decoding=lambda *given: compiled.append(given))
    )
    case = CASES["decode"].quick()
    names = [name for name in contenders.WRITERS if name.startswith("gpt")]
    read = {name: contenders.decode(case, name)["bytes"] for name in names}
    assert rounded == ["bfloat16", "int8", "bfloat16", "int8"]
    assert len(compiled) == 3
    for name in names:
        assert read["gpt"] / read[name] == pytest.approx(2 if "bfloat16" in name else 4 if "int8" in name else 1)


def test_every_contender_can_be_timed():
    for name, case in CASES.items():
        if (known := {"train": contenders.STEPS, "decode": contenders.WRITERS}.get(name.partition("-")[0])) is not None:
            assert {c.removesuffix(" tuned") for c in case.contenders} <= known.keys(), name
            assert set(case.contenders) <= {c for row in results.ROWS.values() for c in row}, "each has a place"


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


# --- results of several machines --------------------------------------------------------------------------------------


def figures(*seconds, units=100, peak_mb=2000.0):
    """What a contender's rounds of these seconds leave in a file."""
    found = {"seconds": statistics.median(seconds), "lowest": min(seconds), "highest": max(seconds)}
    return found | {"units": units, "rounds": len(seconds), "peak_mb": peak_mb}


def row(case, contender, *seconds, **more):
    return {"case": case, "contender": contender} | figures(*seconds) | more


def file(cases, kind=KIND):
    """The content of a file, cases by name as contenders with figures."""
    rates = {key: MACHINE[key] for key in results.RATES}
    about = {"date": "2026-03-01", "versions": {"PyTorch": "2.9"}}
    found = {name: about | {"title": CASES[name].title, "contenders": c} for name, c in cases.items()}
    return {"machine": kind, "rates": rates, "cases": found}


def written(folder, *files):
    folder.mkdir(exist_ok=True)
    for content in files:
        (folder / f"{results.slug(content['machine'])}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def cells(lines, label):
    """The cells of the row of a table with this label."""
    (found,) = [line for line in lines if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in found.split("|")[2:-1]]


TITLES = {name: case.title for name, case in CASES.items()}
FIVE = (4.0, 2.0, 2.5, 2.0, 5.0)  # their median is 2.5


def test_a_table_by_hand(tmp_path):
    train = {
        "gpt": figures(*FIVE, units=1000, peak_mb=2840.0),  # 400 tokens/s, from 200 to 500
        "transformers": figures(*[8.0] * 5, units=1000, peak_mb=4800.0),
        "transformers tuned": figures(*[4.0] * 7, units=1000, peak_mb=4000.0),
        "gpt bfloat16": figures(*[1.0] * 5, units=1000, peak_mb=3000.0),
        "transformers bfloat16 tuned": figures(*[3.0] * 5, units=1000, peak_mb=3100.0),
        "gpt compiled": figures(*[2.0] * 5, units=1000, peak_mb=3000.0),
    }
    decode = {"gpt": figures(*[3.0] * 5), "plain": figures(*[20.0] * 5), "gpt int8": figures(*[1.0] * 5)}
    prepare = {"gpt": figures(*[2.0] * 5, units=32e6), "tiktoken": figures(*[5.0] * 5, units=32e6)}
    content = file({"decode": decode, "train-124m": train, "prepare": prepare})
    content["cases"]["decode"]["date"] = "2026-02-11"
    lines = results.tables(written(tmp_path / "results", content))
    assert "### Some CPU (R) (family 6, model 85), AVX2 without bfloat16, 4 threads on 2 cores" in lines
    (measured,) = [line for line in lines if line.startswith("Measured on")]
    assert measured == (
        "Measured on 2026-02-11 to 2026-03-01: memory read at 8.0 GB/s, matrix products in float32 4 GFLOP/s "
        "(PyTorch's 1, oneDNN's 4), bfloat16 16. PyTorch 2.9."
    )
    title = CASES["train-124m"].title
    assert cells(lines, title) == [
        "400 (200–500), 2.8 GB", "125 (125–125), 4.8 GB", "250 (250–250), 4.0 GB", "", "**1.60 x**", "5",
    ]  # fmt: skip
    assert cells(lines, f"{title}, bfloat16") == [
        "1,000 (1,000–1,000), 3.0 GB", "", "333 (333–333), 3.1 GB", "", "**3.00 x**", "5",
    ]  # fmt: skip
    assert cells(lines, f"{title}, compiled")[-2:] == ["**2.00 x**", "5"], "to float32, where its own is not measured"
    assert not [line for line in lines if line.startswith(f"| {title}, int8")], "no row of what was not measured"
    title = CASES["decode"].title
    assert cells(lines, title) == ["33.3 (33.3–33.3)", "", "", "5.0 (5.0–5.0)", "", "5"]
    assert cells(lines, f"{title}, int8") == ["100 (100–100)", "", "", "", "", "5"]
    assert lines[-2] == (
        "Data preparation, GPT-2's tokens: this project 16.0 (16.0–16.0) MB/s, tiktoken on one thread 6.4 (6.4–6.4) "
        "MB/s; ratio **2.50 x**; 5 rounds."
    )


def test_ratios_by_hand():
    assert results.ratio(figures(2.0, units=100), figures(6.0, units=100)) == "**3.00 x**"
    assert results.ratio(figures(2.0, units=100), figures(6.0, units=150)) == "**2.00 x**"
    assert results.ratio(None, figures(6.0)) == results.ratio(figures(6.0), None) == ""


def test_a_case_measured_again_replaces_that_case_whole():
    old = file({"decode": {"gpt": figures(*FIVE), "plain": figures(*FIVE)}, "prepare": {"gpt": figures(*FIVE)}})
    rows = [row("decode", "gpt", *[1.23456] * 5), row("decode", "plain", 1.0, problem="died")]
    titles, faster = {"decode": "another title"}, MACHINE | {"bandwidth": 9.87654e9}
    new = results.merge(old, rows, faster, titles, "2026-05-05", {"PyTorch": "3"})
    assert new["cases"]["prepare"] == old["cases"]["prepare"]
    case = new["cases"]["decode"]
    assert (case["date"], case["title"], case["versions"]) == ("2026-05-05", "another title", {"PyTorch": "3"})
    assert list(case["contenders"]) == ["gpt"], "the old figure of one that failed now is not kept"
    assert case["contenders"]["gpt"] == figures(*[1.235] * 5)
    assert new["rates"]["bandwidth"] == 9.877e9
    assert list(old["cases"]["decode"]["contenders"]) == ["gpt", "plain"]


def test_four_rounds_are_not_recorded():
    rows = [row("decode", "gpt", *FIVE), row("decode", "plain", *FIVE[:4]), row("prepare", "gpt", *FIVE)]
    assert results.complete(rows) == ["prepare"]
    assert results.complete([row("decode", "gpt", *FIVE, problem="died")]) == []
    assert list(results.merge({}, rows, MACHINE, TITLES, "2026-05-05", {})["cases"]) == ["prepare"]


def test_a_run_is_recorded_and_drawn(tmp_path, printed, monkeypatch):
    folder, page = tmp_path / "results", tmp_path / "speed.md"
    monkeypatch.setattr(results, "FOLDER", folder)
    monkeypatch.setattr(results, "PAGE", page)
    page.write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n", encoding="utf-8")
    other = KIND | {"cpu": "Another CPU", "family": None, "model": None, "cores": None, "limits": {"LIMIT": "AVX2"}}
    written(folder, file({"train-0.8m": {"gpt": figures(*FIVE)}}, other))
    _, lines = printed
    for cases in (["decode"], ["train-30m"]):
        for name, seconds in (("gpt", 1.0), ("transformers tuned", 2.0)):
            lines[name] = rounds_of(*[seconds] * 5)
        measure.benchmark(cases, 5, tmp_path, log=lambda line: None, record=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "another-cpu-avx2-limit-avx2-4-threads.json", "some-cpu-r-6-85-avx2-2-cores-4-threads.json",
    ]  # fmt: skip
    text = (folder / "some-cpu-r-6-85-avx2-2-cores-4-threads.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert text == json.dumps(content, indent=1, sort_keys=True) + "\n"
    assert list(content["cases"]) == ["decode", "train-30m"]
    assert content["cases"]["decode"]["versions"]["PyTorch"] == torch.__version__
    drawn = page.read_text(encoding="utf-8")
    assert drawn.startswith("before\n<!-- results -->\n") and drawn.endswith("<!-- end of results -->\nafter\n")
    assert "old" not in drawn
    headings = [line for line in drawn.splitlines() if line.startswith("###")]
    assert headings[0] == "### Another CPU, AVX2 without bfloat16, 4 threads, LIMIT=AVX2"
    assert headings[1].startswith("### Some CPU (R)")
    assert cells(drawn.splitlines(), CASES["decode"].title)[4] == "**2.00 x**"
    (folder / "another-cpu-avx2-limit-avx2-4-threads.json").unlink()
    results.redraw(folder, page)
    assert "Another CPU" not in page.read_text(encoding="utf-8")


def test_nothing_is_recorded_of_an_unknown_machine(tmp_path):
    said = []
    rows = [row("decode", "gpt", *FIVE)]
    results.record(rows, {"problem": "stopped"}, TITLES, tmp_path / "results", tmp_path / "none.md", said.append)
    assert said == ["nothing is recorded, since the machine is not known: stopped"]
    assert not (tmp_path / "results").exists()


def test_the_page_shows_the_committed_results():
    text = results.PAGE.read_text(encoding="utf-8")
    part = text.partition("<!-- results -->\n")[2].partition("<!-- end of results -->")[0]
    assert part == "\n".join(results.tables()) + "\n", "python scripts/benchmark.py --redraw"
    for path in results.FOLDER.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert path.stem == results.slug(content["machine"])
        for case in content["cases"].values():
            assert all(found["rounds"] >= 5 for found in case["contenders"].values())


def test_a_machine_is_what_the_system_says(monkeypatch):
    monkeypatch.setattr(this_machine, "has_fast_bfloat16", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    text = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    found = this_machine.describe()
    assert [found[key] for key in ("cpu", "family", "model", "bfloat16")] == ["AMD EPYC", 25, 17, True]
    assert found["limits"]["ONEDNN_MAX_CPU_ISA"] == "AVX2" and "ATEN_CPU_CAPABILITY" not in found["limits"]
    assert found["threads"] == torch.get_num_threads()
    assert results.slug(found) != results.slug(found | {"limits": {}})


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--record", "--rounds", "4"], "--record takes at least 5 rounds"),
        (["--record", "--quick", "--rounds", "5"], "--record takes at least 5 rounds, without --quick and --text"),
        (["--text", "nowhere.txt"], "--text: there is no file nowhere.txt"),
        (["--cases", "cook"], "--cases: invalid choice: 'cook'"),
    ],
)
def test_mistakes(typed, words):
    done = subprocess.run([sys.executable, "scripts/benchmark.py", *typed], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr
