"""Train GPT-2's sizes on a GPU beside a plain GPT and transformers, and write the tables of docs/gpu.md.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --sizes 124M --steps 5
    python benchmarks/gpu.py --quick            (a smoke test: tiny shapes, on a CPU where there is no GPU)

Each contender runs in a process of its own, in bfloat16 around float32 weights. "plain" is benchmarks/plain_gpt.py as
nanoGPT trains its model: compiled, with the fused AdamW. The time of a step is the median after the warm-up, which
compiles. MFU is as in gpt/planning/utilisation.py: FLOPs that the model needs, over those of the card's data sheet.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.cases import GPT2
from benchmarks.contenders import CLIP, LR, Step, check, gpt_step, transformers_model, transformers_step
from benchmarks.plain_gpt import PlainGPT
from gpt.config import DataConfig, GPTConfig, OptimConfig, TrainConfig
from gpt.generation import generate
from gpt.planning.flops import flops_per_token
from gpt.planning.hardware import find_hardware
from gpt.planning.plan import estimate
from gpt.planning.throughput import data_sheet_throughput, estimate_seconds
from gpt.system.attention import fastest_attention, use_attention
from gpt.system.device import allow_tf32, choose_device, synchronize
from gpt.system.files import write_text
from gpt.system.paths import PROJECT
from gpt.variants import create_model

RECORDS, PAGE = PROJECT / "docs" / "gpu.jsonl", PROJECT / "docs" / "gpu.md"
START, END = "<!-- measured -->\n", "<!-- end of what was measured -->"
SIZES = {  # examples of 1,024 tokens per pass, and GPT-2's shape
    "124M": (32, GPT2),
    "350M": (16, dataclasses.replace(GPT2, emb_dim=1024, n_heads=16, n_layers=24)),
    "774M": (8, dataclasses.replace(GPT2, emb_dim=1280, n_heads=20, n_layers=36)),
}
TINY = dataclasses.replace(GPT2, vocab_size=300, context_length=64, emb_dim=64, n_heads=2, n_layers=2)
DECODED = (1, 64)  # sequences decoded at once
N_NEW = 128  # tokens decoded after a prompt of 32


def plain_step(config: GPTConfig, where: torch.device, compiled: bool) -> tuple[nn.Module, Step]:
    """Return the plain GPT and its training step, as nanoGPT trains."""
    model = PlainGPT(config).to(where)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1, fused=True)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        with torch.autocast(where.type, torch.bfloat16):
            loss = forward(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return model, step


CONTENDERS: dict[str, Callable[..., tuple[nn.Module, Step]]] = {
    "gpt": partial(gpt_step, dtype=torch.bfloat16),
    "gpt compiled": partial(gpt_step, dtype=torch.bfloat16, compiled=True),
    "plain": partial(plain_step, compiled=False),
    "plain compiled": partial(plain_step, compiled=True),
    "transformers": partial(transformers_step, dtype=torch.bfloat16),
}


# --- one contender, in its own process --------------------------------------------------------------------------------


def train(name: str, config: GPTConfig, batch_size: int, n_steps: int, device: torch.device) -> dict:
    """Return the seconds of a training step, tokens per second, MFU and the peak of memory in bytes."""
    allow_tf32(device)
    shape = (batch_size, config.n_heads, config.context_length, config.head_width)
    kernel = ""
    if name.startswith("gpt"):
        use_attention(kernel := fastest_attention(shape, config.kv_heads, 0.0, torch.bfloat16, device))
    model, step = CONTENDERS[name](config, where=device)
    ids = torch.randint(config.vocab_size, (batch_size, config.context_length + 1), device=device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    losses = [step(inputs, targets) for _ in range(3)]
    seconds = []
    for _ in range(n_steps):
        synchronize(device)
        start = time.perf_counter()
        losses.append(step(inputs, targets))
        seconds.append(time.perf_counter() - start)
    check(config, model, losses)
    rate = inputs.numel() / statistics.median(seconds)
    hardware = find_hardware(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "seconds": statistics.median(seconds),
        "tokens_per_second": rate,
        "mfu": rate * sum(flops_per_token(config, config.context_length)) / hardware.flops if hardware else None,
        "memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "attention": kernel,
    }


def decode(name: str, config: GPTConfig, n_rows: int, device: torch.device) -> dict:
    """Return the tokens per second of greedy decoding in bfloat16, prompts of 32 tokens included."""
    prompts = torch.randint(config.vocab_size, (n_rows, 32), device=device)
    n_new = min(N_NEW, config.context_length - 32)
    if name == "gpt":
        model = create_model(config).to(device, torch.bfloat16).eval()
        write = partial(generate, model, prompts, n_new, temperature=0)
    else:
        model, mask = transformers_model(config).to(device, torch.bfloat16).eval(), torch.ones_like(prompts)
        options = {"max_new_tokens": n_new, "min_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}
        write = partial(model.generate, prompts, attention_mask=mask, **options)
    seconds = []
    for _ in range(4):
        synchronize(device)
        start = time.perf_counter()
        assert write().shape == (n_rows, 32 + n_new)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return {"tokens_per_second": n_rows * n_new / statistics.median(seconds[1:])}


def planned(config: GPTConfig, batch_size: int, device: torch.device) -> dict:
    """Return what gpt/planning expects of a step on this card: seconds, and bytes; nothing for an unknown card."""
    if device.type != "cuda":
        return {}
    hardware = find_hardware(torch.cuda.get_device_name(device))
    if hardware is None:
        return {}
    run = TrainConfig(
        max_steps=1, batch_size=batch_size, eval_every=0, dtype="bfloat16", model=config, data=DataConfig(),
        optim=OptimConfig(),
    )  # fmt: skip
    plan = estimate(run, hardware=hardware)
    return {"planned_seconds": estimate_seconds(plan, data_sheet_throughput(plan)), "planned_memory": plan.peak}


def measure(job: dict) -> dict:
    """Return what one contender takes for one job."""
    device = choose_device("auto")
    batch_size, config = (2, TINY) if job["quick"] else SIZES[job["size"]]
    torch.manual_seed(0)
    if job["work"] == "decode":
        return decode(job["contender"], config, job["rows"], device)
    found = train(job["contender"], config, batch_size, job["steps"], device)
    return {**found, "batch_size": batch_size, **planned(config, batch_size, device)}


# --- all of them ------------------------------------------------------------------------------------------------------


def run(jobs: list[dict], card: str) -> list[dict]:
    """Run each job in its own process and return the records; one that fails says why."""
    records = []
    for job in jobs:
        command = [sys.executable, "-m", "benchmarks.gpu", "--job", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
        lines = done.stdout.strip().splitlines()
        errors = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        found = json.loads(lines[-1]) if not done.returncode else {"failed": errors[-1]}
        records.append({"card": card, "torch": torch.__version__, **job, **found})
        print(json.dumps(records[-1]), flush=True)
    return records


def table(records: list[dict]) -> str:
    """Return the records as Markdown: a section for each card."""
    lines = []
    for card in dict.fromkeys(record["card"] for record in records):
        own = [record for record in records if record["card"] == card and "failed" not in record]
        lines += [f"### {card}", "", f"PyTorch {own[0]['torch']}, {own[0]['date']}.", ""] if own else []
        rows = [record for record in own if record["work"] == "train"]
        if rows:
            lines += [
                "| training | examples | tokens/s | MFU | memory | planned time, memory |",
                "|---|---|---|---|---|---|",
            ]
        for record in rows:
            mfu = f"{record['mfu']:.1%}" if record["mfu"] else ""
            memory = f"{record['memory'] / 1e9:.1f} GB" if record["memory"] else ""
            plan = ""
            if "planned_seconds" in record and record["contender"].startswith("gpt"):
                shares = [record["planned_seconds"] / record["seconds"], record["planned_memory"] / record["memory"]]
                plan = " x, ".join(f"{share:.2f}" for share in shares) + " x"
            kernel = f" ({record['attention']})" if record["attention"] else ""
            lines.append(
                f"| {record['size']}, {record['contender']}{kernel} | {record['batch_size']} | "
                f"{record['tokens_per_second']:,.0f} | {mfu} | {memory} | {plan} |"
            )
        rows = [record for record in own if record["work"] == "decode"]
        if rows:
            lines += ["", "| decoding | sequences | tokens/s |", "|---|---|---|"]
        for record in rows:
            name, rate = f"{record['size']}, {record['contender']}", record["tokens_per_second"]
            lines.append(f"| {name} | {record['rows']} | {rate:,.0f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, or run the one job that is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="default: all")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default: 20)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes; writes nothing")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measure(json.loads(arguments.job))))
        return
    device = choose_device("auto")
    if device.type != "cuda" and not arguments.quick:
        parser.error("there is no CUDA device here: --quick tries the program on a CPU")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    common = {"date": time.strftime("%Y-%m-%d"), "quick": arguments.quick}
    names = [name for name in CONTENDERS if not (arguments.quick and "compiled" in name)]
    sizes = arguments.sizes[:1] if arguments.quick else arguments.sizes
    steps = 2 if arguments.quick else arguments.steps
    jobs = [
        {"work": "train", "size": size, "contender": name, "steps": steps, **common} for size in sizes for name in names
    ]
    jobs += [
        {"work": "decode", "size": sizes[0], "contender": name, "rows": n, **common}
        for n in DECODED
        for name in ("gpt", "transformers")
    ]
    records = run(jobs, card)
    if arguments.quick:
        print(table(records))
        if failed := [record["failed"] for record in records if "failed" in record]:
            sys.exit(f"failed: {failed[0]}")
        return
    kept = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.is_file() else []
    kept = [record for record in kept if record["card"] != card] + records
    write_text(RECORDS, "".join(json.dumps(record) + "\n" for record in kept))
    write_page(PAGE, kept)


def write_page(page: Path, records: list[dict]) -> None:
    """Write the tables between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    write_text(page, before + START + table(records) + END + after)


if __name__ == "__main__":
    main()
