"""Run one contender on one case in its own process, and print its times as a line of JSON.

Each contender runs as its users run it. "gpt" calls `set_allocator_flags()` before the first tensor, as all scripts of
this project do; of the others only those named "tuned" do. All compute in float32, except those whose name says
otherwise: training in "bfloat16" is autocast around float32 weights, decoding in "bfloat16" or "int8" reads
weights of that type. What cannot run on this machine prints {"left_out": why}.

A training step is forward, backward, clipping and AdamW:

    gpt             the Trainer's step: its objective, optimizer and clipping; a test holds it to the Trainer's bits
    gpt compiled    the same with compile = true; the warm-up compiles
    transformers    GPT2LMHeadModel or LlamaForCausalLM with the fused AdamW and without the cache, the defaults of its
                    Trainer, whose loop would only cost more
    plain           benchmarks/plain_gpt.py, with AdamW and clipping as PyTorch has them by default
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.cases import CASES, Case
from gpt.config import GPTConfig, OptimConfig
from gpt.planning.flops import count_parameters, flops_per_token
from gpt.system import device
from gpt.system.memory import set_allocator_flags
from gpt.variants import create_model
from gpt.variants.compiled import compile_training

LR, CLIP = 3e-4, 1.0
CPU = torch.device("cpu")
Step = Callable[[Tensor, Tensor], float]  # inputs and targets (B, T) -> the mean loss in nats
Writer = Callable[[Tensor, int], Tensor]  # prompts (B, T), how many tokens more -> all of them (B, T + new)


class LeftOutError(Exception):
    """This machine cannot run the contender; says why."""


def require_hardware(contender: str) -> None:
    """Raise LeftOutError for bfloat16 where the CPU would emulate it, and for compilation without a compiler."""
    if "bfloat16" in contender and not device.has_fast_bfloat16():
        raise LeftOutError("this CPU has no bfloat16 in hardware")
    if "compiled" in contender and (obstacle := device.compile_obstacle(CPU)):
        raise LeftOutError(obstacle)


def _leave_out(reason: str) -> None:
    """Raise LeftOutError: what would be measured is not what it is called."""
    raise LeftOutError(reason)


# --- training ---------------------------------------------------------------------------------------------------------


def gpt_step(
    config: GPTConfig, dtype: torch.dtype = torch.float32, compiled: bool = False, where: torch.device = CPU
) -> tuple[nn.Module, Step]:
    """Return this project's model and its training step, the same as the Trainer's, on a device."""
    from gpt.objectives.next_token import NextToken
    from gpt.optim import create_optimizer, scale_and_clip

    objective = NextToken(create_model(config)).to(where).train()
    if compiled:
        compile_training(objective.model, where, _leave_out)
    optimizer = create_optimizer(objective, OptimConfig(lr=LR, grad_clip=CLIP))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(inputs: Tensor, targets: Tensor) -> float:
        with device.autocast(where, dtype):
            loss, count = objective(inputs, targets)
        loss.backward()
        scale_and_clip(parameters, count.double(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item() / int(count)

    return objective, step


def transformers_step(
    config: GPTConfig, dtype: torch.dtype = torch.float32, where: torch.device = CPU
) -> tuple[nn.Module, Step]:
    """Hugging Face's model; its labels are the inputs, which it shifts itself."""
    model = transformers_model(config).to(where).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1, fused=True)

    def forward(inputs: Tensor, _: Tensor) -> Tensor:
        with device.autocast(where, dtype):
            return model(inputs, labels=inputs, use_cache=False).loss

    return model, _usual_step(model, optimizer, forward)


def plain_step(config: GPTConfig) -> tuple[nn.Module, Step]:
    """The plain GPT."""
    from benchmarks.plain_gpt import PlainGPT

    model = PlainGPT(config)
    return model, _usual_step(model, torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1), model)


def _usual_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, forward: Callable[[Tensor, Tensor], Tensor]
) -> Step:
    def step(inputs: Tensor, targets: Tensor) -> float:
        loss = forward(inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def transformers_model(config: GPTConfig) -> nn.Module:
    """A GPT2LMHeadModel, or with rotary positions a LlamaForCausalLM, of a config's shape, with weights of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if config.position == "rope":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size, max_position_embeddings=config.context_length, hidden_size=config.emb_dim,
                num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
                num_key_value_heads=config.kv_heads, intermediate_size=config.ffn_width, rope_theta=config.rope_theta,
                tie_word_embeddings=config.tie_embeddings, bos_token_id=None, eos_token_id=None,
            )
        )  # fmt: skip
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.emb_dim,
            n_head=config.n_heads, n_layer=config.n_layers, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


STEPS = {
    "gpt": gpt_step,
    "gpt bfloat16": partial(gpt_step, dtype=torch.bfloat16),
    "gpt compiled": partial(gpt_step, compiled=True),
    "transformers": transformers_step,
    "transformers bfloat16": partial(transformers_step, dtype=torch.bfloat16),
    "plain": plain_step,
}


def train(case: Case, contender: str) -> dict:
    """Time optimizer steps on one batch of random tokens, which each contender begins to memorise."""
    model, step = STEPS[contender](case.model)
    windows = torch.randint(case.model.vocab_size, (case.batch_size, case.n_tokens + 1))
    inputs, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
    losses: list[float] = []
    seconds = timed(lambda: losses.append(step(inputs, targets)), case)
    check(case.model, model, losses)
    units = inputs.numel()
    flops = units * sum(flops_per_token(case.model, case.n_tokens))
    ends = {"first_loss": losses[0], "last_loss": losses[-1]}
    return {"seconds": seconds, "units": units, "flops": flops, "parameters": count(model), **ends}


def check(config: GPTConfig, model: nn.Module, losses: list[float]) -> None:
    """Raise ValueError unless the model has the config's size, starts at the uniform loss and improves."""
    if count(model) != (expected := sum(count_parameters(config).values())):
        raise ValueError(f"{count(model):,} parameters are not the {expected:,} of the others")
    uniform = math.log(config.vocab_size)
    if not abs(losses[0] - uniform) < 0.1 * uniform:
        raise ValueError(f"the first loss, {losses[0]:.3f}, is not the uniform loss, {uniform:.3f}")
    if not losses[-1] < losses[0]:
        raise ValueError(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}: the model learned nothing")


# --- decoding ---------------------------------------------------------------------------------------------------------


def gpt_writer(config: GPTConfig, weights: str = "float32", compiled: bool = False) -> tuple[nn.Module, Writer]:
    """This project's model, its weights rounded to a type and compiled before the clock starts, and its `generate`.

    LeftOutError where PyTorch cannot multiply weights of that type here.
    """
    from gpt.generation import generate

    model = writer = create_model(config)
    if weights != "float32":
        from gpt.variants.quantized import QuantizedGPTModel

        try:
            writer = QuantizedGPTModel(model, weights)
        except ValueError as error:
            raise LeftOutError(str(error)) from None
    if compiled:
        from gpt.variants.compiled import compile_decoding

        compile_decoding(writer, _leave_out)
    return model, lambda prompts, n_new: generate(writer, prompts, n_new, temperature=0)


def transformers_writer(config: GPTConfig, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Writer]:
    """Hugging Face's model, and its own `generate` with its KV cache."""
    model = transformers_model(config).to(dtype).eval()

    def write(prompts: Tensor, n_new: int) -> Tensor:
        mask = torch.ones_like(prompts)
        return model.generate(prompts, attention_mask=mask, max_new_tokens=n_new, do_sample=False, pad_token_id=0)

    return model, write


def plain_writer(config: GPTConfig) -> tuple[nn.Module, Writer]:
    """The plain GPT, which has no cache."""
    from benchmarks.plain_gpt import PlainGPT

    model = PlainGPT(config).eval()
    return model, model.generate


# a contender: how it writes, and the bytes of a weight that it reads
WRITERS = {
    "gpt": (gpt_writer, 4),
    "gpt bfloat16": (partial(gpt_writer, weights="bfloat16"), 2),
    "gpt int8": (partial(gpt_writer, weights="int8"), 1),
    "gpt compiled": (partial(gpt_writer, compiled=True), 4),
    "gpt bfloat16 compiled": (partial(gpt_writer, weights="bfloat16", compiled=True), 2),
    "gpt int8 compiled": (partial(gpt_writer, weights="int8", compiled=True), 1),
    "transformers": (transformers_writer, 4),
    "transformers bfloat16": (partial(transformers_writer, dtype=torch.bfloat16), 2),
    "plain": (plain_writer, 4),
}


def decode(case: Case, contender: str) -> dict:
    """Greedy tokens after prompts of random ones. The time includes the reading of the prompts.

    A case that writes one token counts the tokens of its prompts, others those that they write. Each step reads every
    weight of a matrix product once for all sequences, which makes the bytes.
    """
    create, weight_bytes = WRITERS[contender]
    model, write = create(case.model)
    prompts = torch.randint(case.model.vocab_size, (case.batch_size, case.n_tokens))
    shapes: list[tuple[int, ...]] = []
    seconds = timed(lambda: shapes.append(tuple(write(prompts, case.n_new).shape)), case)
    if shapes[-1] != (expected := (case.batch_size, case.n_tokens + case.n_new)):
        raise ValueError(f"tokens of shape {shapes[-1]} were written in place of {expected}")
    units = case.batch_size * (case.n_tokens if case.n_new == 1 else case.n_new)
    read = int(case.n_new * weight_bytes * sum(flops_per_token(case.model, 1)) / 6)
    return {"seconds": seconds, "units": units, "bytes": read, "parameters": count(model)}


# --- data preparation -------------------------------------------------------------------------------------------------


def prepare(case: Case, contender: str, text: Path, folder: Path) -> dict:
    """A text file into token files.

    gpt: all that scripts/prepare_data.py does: the tokenizer, the split, checksums, a folder written whole or not at
    all. tiktoken: one thread as its users write it, its tokenizer made before the clock runs.
    """
    from gpt.tokenizer import load_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokens: list[int] = []
    if contender == "gpt":
        from gpt.text.prepare import prepare_data
        from gpt.text.sources import open_corpus

        def work() -> None:
            data = prepare_data(open_corpus(str(text)), "gpt2", folder / "gpt")
            tokens.append(len(data.train.tokens) + len(data.val.tokens))

    elif contender == "tiktoken":
        encoding = load_tokenizer("gpt2")._engine  # tiktoken.get_encoding("gpt2"), without its download

        def work() -> None:
            ids = np.array(encoding.encode_ordinary(text.read_text(encoding="utf-8")), dtype=np.uint16)
            ids.tofile(folder / "tokens.bin")
            tokens.append(len(ids))

    else:
        raise ValueError(f"unknown contender {contender!r}")
    return {"seconds": timed(work, case), "units": text.stat().st_size, "tokens": tokens[-1]}


# --- the process ------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], object], case: Case) -> float:
    """Return the median time of the case's steps in seconds, after its warm-up runs."""
    seconds = []
    for _ in range(case.warmup + case.steps):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[case.warmup :])


def count(model: nn.Module) -> int:
    """Return the number of parameters; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters())


def peak_bytes() -> int:
    """Return the peak resident memory in bytes of this process or its largest child."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Run the job given as JSON on the command line, and print its result."""
    job = json.loads(sys.argv[1])
    contender = job["contender"].removesuffix(" tuned")
    if contender.startswith("gpt") or contender != job["contender"]:
        set_allocator_flags()
    torch.manual_seed(0)
    try:
        result = measured(job, contender)
    except LeftOutError as reason:
        result = {"left_out": str(reason)}
    print(json.dumps({**result, "peak_bytes": peak_bytes()}), flush=True)


def measured(job: dict, contender: str) -> dict:
    """Return what a job measures. LeftOutError where this machine cannot run its contender."""
    if job["case"] == "machine":
        return {**machine.rates(job["quick"]), "machine": machine.describe()}
    require_hardware(contender)
    case = CASES[job["case"]]
    case = case.quick() if job["quick"] else case
    kind = job["case"].partition("-")[0]
    if kind == "prepare":
        return prepare(case, contender, Path(job["text"]), Path(job["folder"]))
    return {"train": train, "prompt": decode, "decode": decode}[kind](case, contender)


if __name__ == "__main__":
    main()
