"""The benchmark's cases: their shapes and contenders. Imports nothing heavy."""

import dataclasses
from dataclasses import dataclass

from gpt.config import GPTConfig

TRANSFORMERS = ("transformers", "transformers tuned")
HALF = "transformers bfloat16 tuned"
TRAIN = ("gpt", "gpt bfloat16", "gpt compiled", *TRANSFORMERS, HALF, "plain")
LLAMA = ("gpt", *TRANSFORMERS)
COMPILED = ("gpt compiled", "gpt bfloat16 compiled", "gpt int8 compiled")
DECODE = ("gpt", "gpt int8", *COMPILED, *TRANSFORMERS, HALF, "plain")
BATCH = ("gpt", "gpt bfloat16", "gpt int8", *TRANSFORMERS, HALF)
PREPARE = ("gpt", "tiktoken")
NEEDS = ("transformers", "tiktoken")  # optional packages, by the contender's name


@dataclass(frozen=True)
class Case:
    """A piece of work that several contenders do.

    A train case takes optimizer steps on `batch_size` windows of `n_tokens` tokens; a decode case continues
    `batch_size` sequences of `n_tokens` by `n_new` each; a prompt case times the reading of the prompt, with one new
    token; a prepare case turns `megabytes` of text into token files.
    """

    title: str
    contenders: tuple[str, ...]
    seconds: float  # per contender on two cores, the mean over them, their start included
    model: GPTConfig | None = None
    batch_size: int = 1
    n_tokens: int = 0
    n_new: int = 0
    megabytes: float = 0.0
    warmup: int = 1  # untimed runs
    steps: int = 1  # timed runs

    def quick(self) -> "Case":
        """Return the case at a shape that takes milliseconds, for a smoke test."""
        shape = {"vocab_size": 300, "context_length": 64, "emb_dim": 64, "n_heads": 2, "n_kv_heads": 0, "n_layers": 2}
        model = self.model and dataclasses.replace(self.model, ffn_dim=0, **shape)
        small = {"batch_size": min(self.batch_size, 2), "n_tokens": min(self.n_tokens, 32), "n_new": min(self.n_new, 8)}
        return dataclasses.replace(
            self, seconds=2, model=model, megabytes=min(self.megabytes, 0.2), steps=min(self.steps, 5), **small
        )


def _model(**shape: int) -> GPTConfig:
    """Return a GPT-2 of a shape: biases, tied head, GPT-2's initial weights, no dropout."""
    return GPTConfig(drop_rate=0.0, qkv_bias=True, tie_embeddings=True, init="gpt2", **shape)


GPT2 = _model(vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12)
MIDDLE = _model(vocab_size=50257, context_length=256, emb_dim=384, n_heads=6, n_layers=6)
SMOLLM2 = GPTConfig(  # SmolLM2-135M, Allal et al. 2025, arXiv:2502.02737
    vocab_size=49152, context_length=8192, emb_dim=576, n_heads=9, n_layers=30, drop_rate=0.0, tie_embeddings=True,
    init="gpt2", bias=False, position="rope", rope_theta=100_000.0, norm="rms", feed_forward="swiglu", ffn_dim=1536,
    n_kv_heads=3,
)  # fmt: skip
SMALL = _model(vocab_size=65, context_length=64, emb_dim=128, n_heads=4, n_layers=4)

CASES = {
    "train-124m": Case("training, 124M parameters, 4 x 256 tokens", TRAIN, 28, GPT2, 4, 256, steps=2),
    "train-30m": Case("training, 30M parameters, 8 x 256 tokens", TRAIN, 17, MIDDLE, 8, 256, steps=3),
    "train-0.8m": Case("training, 0.8M parameters, 12 x 64 tokens", TRAIN, 9, SMALL, 12, 64, warmup=20, steps=150),
    "decode": Case("decoding, 124M parameters, one sequence", DECODE, 22, GPT2, 1, 32, n_new=96),
    "decode-batch-8": Case("decoding, 124M parameters, 8 sequences", BATCH, 22, GPT2, 8, 32, n_new=96),
    "decode-batch-32": Case("decoding, 124M parameters, 32 sequences", BATCH, 32, GPT2, 32, 32, n_new=96),
    "train-smollm2": Case("training, SmolLM2-135M, 4 x 256 tokens", LLAMA, 25, SMOLLM2, 4, 256, steps=2),
    "prompt-smollm2": Case("a prompt of 1,000 tokens, SmolLM2-135M", LLAMA, 15, SMOLLM2, 1, 1000, n_new=1, steps=3),
    "decode-smollm2": Case("decoding, SmolLM2-135M, one sequence", DECODE[:-1], 20, SMOLLM2, 1, 32, n_new=96),
    "prepare": Case("data preparation, GPT-2's tokens", PREPARE, 10, megabytes=32, warmup=0),
}
QUICK = ("train-0.8m", "decode", "prepare")  # the default of --quick
