"""Generate text from the command line: one text as it is written, or many in batches; notices on stderr."""

import functools
import itertools
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpt.config import GPTConfig
from gpt.exchange.models import LoadedModel, open_model
from gpt.objectives.documents import complete, default_length, generate_ids, with_start
from gpt.run.cli import sampling_from
from gpt.system.device import choose_device
from gpt.system.memory import set_allocator_flags
from gpt.system.text import escape
from gpt.text.chat import encode_chat, stop_ids
from gpt.text.readers import form, read_chunks, read_fields
from gpt.text.sources import open_corpus
from gpt.text.streams import TextStream, decode_stream
from gpt.variants.compiled import compile_decoding
from gpt.variants.quantized import QuantizedGPTModel, weight_bytes

ANSWER_TOKENS = 1000  # the longest answer to a message, unless --max_new_tokens says another


class Job(NamedTuple):
    """A text to generate."""

    prompt: str
    ids: list[int]  # what the model continues; none if it fills in blanks
    seed: int


def generate_from(folder: Path | None, arguments: Namespace) -> None:
    """Generate as the options of scripts/generate.py say, and print it. `folder` is a run's, or None.

    Text i has the seed --seed + i. ValueError for a mistake in the options, before the model is loaded, or in a prompt.
    """
    sampling = sampling_from(arguments)
    listed = arguments.prompts is not None
    prompts = [arguments.prompt or ""]
    if listed:
        prompts = read_prompts(arguments.prompts, arguments.field, arguments.encoding)
    loaded = load(folder, arguments)
    writer = Writer(
        loaded, arguments.chat, arguments.system, arguments.max_new_tokens, sampling, arguments.stop, arguments.logprobs
    )
    ids = [writer.encode(prompt, f"prompt {n}: " * listed) for n, prompt in enumerate(prompts, start=1)]
    notice_long_prompts([len(prompt) for prompt in ids], loaded.objective.model.config.context_length)
    pairs = [pair for pair in zip(prompts, ids, strict=True) for _ in range(arguments.num_samples)]
    jobs = [Job(*pair, arguments.seed + i) for i, pair in enumerate(pairs)]
    if arguments.format == "text" and not listed:
        print_pieces(map(writer.stream, jobs))
        return
    size = 1 if loaded.objective.model.config.backbone == "lstm" else arguments.batch_size  # it takes no padded prompts
    for first in range(0, len(jobs), size):
        for result in writer.complete(jobs[first : first + size]):
            print(json.dumps(result, ensure_ascii=False) if arguments.format == "jsonl" else escape(result["text"]))


def load(folder: Path | None, arguments: Namespace) -> LoadedModel:
    """Return the model that --run or --pretrained names, on --device, as --weights and --compile say.

    Its name goes to stderr.
    """
    device = choose_device(arguments.device)
    if device.type != "cpu" and (arguments.compile or arguments.weights != "float32"):
        raise ValueError(f"--compile and --weights {arguments.weights} are for a CPU, not {device}: add --device cpu")
    set_allocator_flags()
    loaded = open_model(folder, arguments.checkpoint, arguments.pretrained)
    print(loaded.name, file=sys.stderr)
    if arguments.weights != "float32":
        round_weights(loaded, arguments.weights)
    loaded.objective.to(device)
    if arguments.compile:
        print("compiling, which takes some seconds", file=sys.stderr)
        compile_decoding(loaded.objective.model, lambda line: print(line, file=sys.stderr))
    return loaded


def read_prompts(source: str, field: str | None, encoding: str = "utf-8") -> list[str]:
    """Return the lines of a text, the empty ones too, or the texts of a `field` (or template) of records.

    `source` is a file or another source of `open_corpus`, such as - for standard input. ValueError if it holds none.
    """
    corpus = open_corpus(source, fields=(field or "",), encoding=encoding)
    prompts: list[str] = []
    for path in corpus.paths:
        if field:
            prompts += read_fields(path, (field,), corpus.encoding)
        elif form(path, corpus.encoding):
            raise ValueError(f"{corpus.name} holds records: name the field that is the prompt, --field NAME")
        elif text := "".join(read_chunks(path, corpus.encoding)):
            prompts += text.removesuffix("\n").split("\n")
    if not prompts:
        raise ValueError(f"{corpus.name} holds no prompt")
    return prompts


def round_weights(loaded: LoadedModel, weights: str) -> None:
    """Round the weights of a loaded model to bfloat16 or int8, and print the bytes saved."""
    before = weight_bytes(loaded.objective.model)
    loaded.objective.model = QuantizedGPTModel(loaded.objective.model, weights)
    after = weight_bytes(loaded.objective.model)
    print(f"{weights} weights: {after / 1e6:,.1f} MB, float32 {before / 1e6:,.1f} MB", file=sys.stderr)


class Writer:
    """A loaded model, and how it writes: as an assistant or not, at most how many tokens, and the sampling settings."""

    def __init__(
        self,
        loaded: LoadedModel,
        chat: bool,
        system: str | None,
        max_new_tokens: int | None,
        sampling: dict,
        stops: Sequence[str] = (),
        with_logprobs: bool = False,
    ):
        self.objective, self.tokenizer, self.prepend_eot = loaded.objective, loaded.tokenizer, loaded.prepend_eot
        self.model, self.chat = loaded.objective.model, chat
        self.instructions = [] if system is None else [{"role": "system", "content": system}]
        self.continues = chat or loaded.objective.continues_prompts
        if max_new_tokens is None and self.continues:
            max_new_tokens = ANSWER_TOKENS if chat else default_length(self.model, loaded.prepend_eot)
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.stops, self.with_logprobs = stops, with_logprobs
        if stops and not (self.continues and loaded.objective.left_to_right):
            raise ValueError(f"{loaded.name} does not write from left to right: leave --stop out")
        self.stop_ids = stop_ids(self.tokenizer) if chat else {self.tokenizer.eot_id}
        self.on_overflow = overflow_notice(self.model.config)

    def encode(self, prompt: str, name: str = "") -> list[int]:
        """Return the ids that the model continues. ValueError, after `name`, for a prompt that it cannot read."""
        try:
            if self.chat:
                return encode_chat(self.tokenizer, [*self.instructions, {"role": "user", "content": prompt}])
            ids = self.objective.encode_prompt(prompt, self.tokenizer)
            return with_start(ids, self.tokenizer, self.prepend_eot) if self.continues else ids
        except ValueError as error:
            raise ValueError(f"{name}{error}") from None

    def stream(self, job: Job) -> Iterator[str]:
        """Yield a text piece by piece: the prompt and what continues it, or the answer to a message."""
        options = {**self.sampling, "generator": self._generator(job)}
        if not self.continues:
            return self.objective.generate_text(
                job.prompt, self.tokenizer, self.prepend_eot, self.max_new_tokens, **options
            )
        new = generate_ids(
            self.model, job.ids, self.tokenizer, False, self.max_new_tokens, self.stop_ids,
            on_overflow=self.on_overflow, **options,
        )  # fmt: skip
        return self._text(job, new)

    def complete(self, jobs: list[Job]) -> Iterator[dict[str, Any]]:
        """Yield the results of a batch of jobs: prompt, text (that of `stream`), finish_reason, n_tokens, seed, and
        `with_logprobs` those of the tokens, in nats.

        finish_reason is "stop" at a token that ends a text or an answer, or at a stop string, and "length" if the text
        is cut; n_tokens are those generated.
        """
        if not self.continues:
            yield from (_result(job, self.stream(job), "stop", None) for job in jobs)
            return
        streams = [TextStream(self.tokenizer, self.stops) for _ in jobs]

        def is_over(row: int, i: int) -> bool:
            streams[row].push(i)
            return streams[row].stopped

        steps: list[torch.Tensor] | None = [] if self.with_logprobs else None
        written = complete(
            self.model, [job.ids for job in jobs], self.stop_ids, self.max_new_tokens, on_overflow=self.on_overflow,
            is_over=is_over if self.stops else None, generator=[self._generator(job) for job in jobs], logprobs=steps,
            **self.sampling,
        )  # fmt: skip
        for row, (job, (new, ended)) in enumerate(zip(jobs, written, strict=True)):
            reason = "stop" if ended or streams[row].stopped else "length"
            result = _result(job, self._text(job, new), reason, len(new))
            yield result if steps is None else result | {"logprobs": [float(step[row]) for step in steps[: len(new)]]}

    def _text(self, job: Job, new: Iterable[int]) -> Iterator[str]:
        if not self.objective.left_to_right:
            return self.objective.join_text(job.prompt, new, self.tokenizer)
        return itertools.chain([job.prompt] * (not self.chat), decode_stream(self.tokenizer, new, self.stops))

    def _generator(self, job: Job) -> torch.Generator:
        return torch.Generator(next(self.model.parameters()).device).manual_seed(job.seed)


def _result(job: Job, text: Iterable[str], finish_reason: str, n_tokens: int | None) -> dict[str, Any]:
    found = {"prompt": job.prompt, "text": "".join(text), "finish_reason": finish_reason, "n_tokens": n_tokens}
    return found | {"seed": job.seed}


def overflow_notice(config: GPTConfig) -> Callable[[], None]:
    """Return a function that says, at its first call, what happens to a text beyond the model's context."""
    effect = "generation slows down: each new token reads the whole context again"
    if config.position == "rope" and config.backbone == "gpt":
        effect = "the model forgets the oldest ones, a quarter of them at a time"
    # on a terminal the text is in the middle of a line
    start = "\n" * sys.stdout.isatty()
    return functools.cache(lambda: print(f"{start}beyond {config.context_length} tokens {effect}", file=sys.stderr))


def notice_long_prompts(lengths: list[int], context_length: int) -> None:
    """Say which prompts, by their lengths in tokens, the model cannot see whole."""
    too_long = [n for n in lengths if n > context_length]
    if too_long and len(lengths) == 1:
        print(f"the prompt has {too_long[0]} tokens; the model sees the last {context_length} of them", file=sys.stderr)
    elif too_long:
        share = f"{len(too_long)} of {len(lengths)} prompts have more than {context_length} tokens"
        print(f"{share}; the model sees the last {context_length} of each", file=sys.stderr)


def print_pieces(texts: Iterable[Iterable[str]]) -> None:
    """Print texts, each piece as it comes."""
    for n, pieces in enumerate(texts):
        if n:
            print("\n---")
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
