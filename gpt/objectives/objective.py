"""The base class of objectives: a loss on the GPT backbone, its data, its evaluation and its samples."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence, Sized

import numpy as np
import torch
from torch import Tensor, nn

from gpt.config import ObjectiveConfig, TrainConfig
from gpt.data import DocumentExamples, Examples, PackedExamples, document_spans
from gpt.loss import Evaluation, evaluation_mode
from gpt.model import GPTModel
from gpt.objectives.documents import generate_ids
from gpt.objectives.unigram import MAX_TOKENS, unigram_loss
from gpt.objectives.weights import frozen_names, named_weights
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.text.streams import decode_stream
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer, with_special_tokens

SAMPLE_TOKENS = 120
SAMPLE_TEMPERATURE = 0.8  # a little below 1: less weight on improbable tokens


class Objective(nn.Module):
    """A loss to train by. It holds the backbone as `model` and all trainable parameters.

    `forward` maps a batch, made by `batch`, to (loss summed in nats, number of tokens). The Trainer divides the sums
    over all micro-batches and processes, so that each token has the same weight. A subclass always overrides `forward`
    and usually `batch`.
    """

    special_tokens: tuple[str, ...] = ()  # added to the tokenizer's vocabulary
    metrics: tuple[str, ...] = ()  # names of evaluation results other than the loss: extra columns of metrics.csv
    training_metrics: tuple[str, ...] = ()  # names of what `step_metrics` returns, columns as well
    reads_any_text = False  # the loss is that of the next token, defined on any text
    continues_prompts = True  # generate.py passes it a prompt to continue, not one with blanks
    left_to_right = True  # the model predicts the next token, so that it can be exported
    unit = "token"  # the loss is a mean over them, as are its perplexity and speed
    needs_reference = False  # also reads the model that the run starts from, given to it as `reference`
    passes = 1  # steps in a row that train on the same examples
    prepare_passes = 0  # times that `prepare` reads all examples

    def __init__(self, model: GPTModel, config: ObjectiveConfig | None = None):
        super().__init__()
        self.model = model
        self.config = config or ObjectiveConfig()

    def forward(self, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return (loss summed in nats, number of tokens), two scalars, for a batch made by `batch`."""
        raise NotImplementedError

    def named_weights(self, ctx: DistContext = SINGLE_PROCESS) -> dict[str, Tensor]:
        """Return all tensors by the names under which checkpoints store them."""
        return named_weights(self)

    def frozen_names(self) -> set[str]:
        """Return the names of the parameters that are not trained."""
        return frozen_names(self)

    @property
    def smoothing(self) -> float:
        """The label smoothing: 0 in evaluation mode, so that losses are comparable."""
        return self.config.label_smoothing if self.training else 0.0

    # --- data ---------------------------------------------------------------------------------------------------------

    @classmethod
    def transform(cls, data: PreparedData) -> PreparedData:
        """Return the prepared data as this objective reads them: with its special tokens in the vocabulary."""
        if not cls.special_tokens:
            return data
        return dataclasses.replace(data, tokenizer=with_special_tokens(data.tokenizer, cls.special_tokens))

    @classmethod
    def resolve_config(cls, config: TrainConfig, data: PreparedData) -> TrainConfig:
        """Return the config with vocab_size and decay_steps filled in. ValueError if it does not fit the data."""
        model, tokenizer = config.model, data.tokenizer
        if model.vocab_size not in (0, tokenizer.vocab_size):
            raise ValueError(
                f"model.vocab_size is {model.vocab_size}, but {data.folder} was prepared with the tokenizer "
                f"{tokenizer.name} of {tokenizer.vocab_size} tokens: set model.vocab_size to 0, or prepare the data "
                f"again"
            )
        cls.check_packing(config, data)
        if model.window and not cls.continues_prompts:
            raise ValueError(
                f"model.window is {model.window}, but the objective {config.objective.name} reads both sides of a "
                f"token: set it to 0"
            )
        try:
            cls.encode_prompt(config.sample_prompt, tokenizer)
        except ValueError as error:  # a char tokenizer may not know the prompt's characters
            raise ValueError(f"sample_prompt: {error}") from None
        return dataclasses.replace(
            config,
            model=dataclasses.replace(model, vocab_size=tokenizer.vocab_size),
            optim=dataclasses.replace(config.optim, decay_steps=config.optim.decay_steps or config.max_steps),
        )

    @classmethod
    def check_packing(cls, config: TrainConfig, data: PreparedData) -> None:
        """ValueError unless the data can be cut into examples as data.packing says."""
        context_length = config.model.context_length
        if config.data.packing == "document" and not data.has_eot:
            raise ValueError(
                f"data.packing is 'document', but the text of {data.folder} is not divided into documents: set it to "
                f"'packed', or prepare several files, or a file with a --separator"
            )
        if config.data.packing == "packed" and len(data.train.tokens) <= context_length:
            raise ValueError(
                f"the training split of {data.folder} has {len(data.train.tokens)} tokens, too few for one example of "
                f"context_length {context_length}: lower model.context_length or use a longer text"
            )

    @classmethod
    def starts_with_eot(cls, config: TrainConfig) -> bool:
        """Return whether a text that the model reads starts with the end-of-text token: it reads whole documents."""
        return config.data.packing == "document"

    @classmethod
    def overlong(cls, data: PreparedData) -> tuple[str, str]:
        """Return the name of examples that exceed the model's context, and what becomes of them."""
        return "documents", "they are divided"

    def prepare(
        self,
        config: TrainConfig,
        data: PreparedData,
        device: torch.device | str = "cpu",
        ctx: DistContext = SINGLE_PROCESS,
    ) -> None:
        """Compute what a fresh run needs before its first step, as buffers, which checkpoints keep."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of metrics.csv that only this objective has."""
        return (*self.training_metrics, *self.metrics)

    def step_metrics(self) -> list[float]:
        """Return a number for each of `training_metrics`, of the step that ends now, in this process."""
        return []

    def is_best(self, loss: float, best: float | None) -> bool:
        """Return whether a model of this validation loss is better than the best one so far; None: there is none."""
        return best is None or loss < best

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> Sized:
        """Return the examples of a split, from which `batch` makes batches."""
        return create_examples(config, data, split)

    @classmethod
    def example_lengths(cls, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the tokens that the model reads of each example of a split, (N,); empty if all have context_length."""
        if config.data.packing == "packed" or not data.has_eot:
            return np.zeros(0, np.int64)
        stride = config.data.stride if split is data.train else 0
        spans = document_spans(split.tokens, data.tokenizer.eot_id, config.model.context_length, stride)
        return spans[:, 1] - spans[:, 0]

    @classmethod
    def rows_per_example(cls, config: TrainConfig) -> int:
        """Return the number of sequences that the model reads for one example."""
        return 1

    @classmethod
    def samples(cls, config: TrainConfig) -> bool:
        """Return whether the model writes the sequences itself, which takes most of the time."""
        return False

    @classmethod
    def has_masks(cls, config: TrainConfig) -> bool:
        """Return whether each example has an attention mask of its own."""
        return False

    def context_needed(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the context_length that each document of a split needs to stay whole, (N,); empty if it is packed."""
        if config.data.packing == "packed":
            return np.zeros(0, np.int64)
        return np.diff(np.flatnonzero(split.tokens == data.tokenizer.eot_id))

    def batch(self, examples: Sized, indices: Sequence[int], key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the arguments of `forward` for the examples with these indices.

        Random numbers for example i come from `example_rng(key, i)`, so that they depend neither on the batch size nor
        on whether the run was resumed.
        """
        inputs, targets = examples.batch(indices)
        return {"inputs": inputs, "targets": targets}

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def eval_batch(self, **batch: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return a sum and a count, two scalars each, for "loss" and for each name in `metrics`."""
        return {"loss": self(**batch)}

    @torch.no_grad()
    def evaluate(
        self,
        config: TrainConfig,
        data: PreparedData,
        device: torch.device | str = "cpu",
        ctx: DistContext = SINGLE_PROCESS,
    ) -> Evaluation:
        """Return the loss on the validation split, or on eval_batches batches spread evenly over it.

        Processes share the batches. Masks and spans are the same at each call, and no global random state changes.
        """
        examples, size = self.examples(config, data, data.val), config.batch_size
        batches = [range(first, min(first + size, len(examples))) for first in range(0, len(examples), size)]
        if 0 < config.eval_batches < len(batches):
            batches = [batches[i * len(batches) // config.eval_batches] for i in range(config.eval_batches)]
        names = ("loss", *self.metrics)
        results = np.zeros((len(batches), len(names), 2))  # a sum and a count of each batch and name
        with evaluation_mode(self):
            for number, is_own in ctx.shard_evenly(range(len(batches))):
                batch = self.batch(examples, batches[number], key=(0,))
                result = self.eval_batch(**{name: tensor.to(device) for name, tensor in batch.items()})
                results[number] = is_own * np.array([[float(scalar) for scalar in result[name]] for name in names])
        sums, counts = np.moveaxis(ctx.all_reduce_sum(results), 2, 0)  # (batches, names) each
        means = sums.sum(0) / counts.sum(0).clip(min=1)
        metrics = dict(zip(self.metrics, means[1:].tolist(), strict=True))
        return Evaluation(np.arange(len(batches)), sums[:, 0], counts[:, 0], metrics=metrics)

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the token ids that the objective predicts in a split, (N,); of a large split the first MAX_TOKENS."""
        return split.tokens[1:MAX_TOKENS]

    def trivial_losses(self, config: TrainConfig, data: PreparedData) -> dict[str, float]:
        """Return the validation losses, in nats per token, of models without a context.

        "uniform" gives all tokens the same probability, "unigram" the one with which they are targets in the training
        split.
        """
        train, val = (self.target_tokens(config, data, split) for split in (data.train, data.val))
        vocab_size = data.tokenizer.vocab_size - len(self.special_tokens)
        return {"uniform": math.log(vocab_size), "unigram": unigram_loss(train, val, vocab_size)}

    def has_ngrams(self, data: PreparedData) -> bool:
        """Return whether the loss on these data can be compared with that of n-grams: it is one of every token."""
        return False

    def has_entropy_floor(self, config: TrainConfig) -> bool:
        """Return whether the entropy of the text bounds the validation loss from below."""
        return False

    # --- samples ------------------------------------------------------------------------------------------------------

    @classmethod
    def encode_prompt(cls, prompt: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids that the model reads for a prompt. In it the name of a special token is this token."""
        return tokenizer.encode(prompt, special=True)

    @classmethod
    def join_text(cls, prompt: str, new: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
        """Yield the text of a prompt and of the ids generated for it, piece by piece as they come."""
        yield prompt
        yield from decode_stream(tokenizer, new)

    def generate_text(
        self, prompt: str, tokenizer: Tokenizer, prepend_eot: bool, max_new_tokens: int | None = None, **sampling
    ) -> Iterator[str]:
        """Yield the prompt and its continuation piece by piece; `sampling` as in `generate_ids`."""
        ids = self.encode_prompt(prompt, tokenizer)
        new = generate_ids(self.model, ids, tokenizer, prepend_eot, max_new_tokens, **sampling)
        yield from self.join_text(prompt, new, tokenizer)

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """Return a text for samples.txt: a continuation of sample_prompt, or of the training split's first token."""
        prompt = config.sample_prompt
        max_new_tokens = None if self.starts_with_eot(config) else SAMPLE_TOKENS
        prepend_eot = max_new_tokens is None or (data.has_eot and not prompt)
        if not prompt and not prepend_eot:
            prompt = data.tokenizer.decode(data.train.tokens[:1].tolist())
        generator = torch.Generator(next(self.model.parameters()).device).manual_seed(seed)
        return "".join(
            self.generate_text(
                prompt, data.tokenizer, prepend_eot, max_new_tokens, temperature=SAMPLE_TEMPERATURE, generator=generator
            )
        )


def example_rng(key: tuple[int, ...], index: int) -> np.random.Generator:
    """Return the random generator of example `index` under a key."""
    return np.random.default_rng([*key, index])


def create_examples(config: TrainConfig, data: PreparedData, split: TokenFile | None = None) -> Examples:
    """Return the examples of a split (default: training), packed or by document as the config says."""
    tokens = (split or data.train).tokens
    if config.data.packing == "document":
        return DocumentExamples(tokens, config.model.context_length, data.tokenizer.eot_id, config.data.stride)
    return PackedExamples(tokens, config.model.context_length, config.data.stride)
