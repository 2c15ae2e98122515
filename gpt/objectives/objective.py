"""What an objective is: a loss on the GPT's backbone, and all that the rest of the house asks of it."""

import dataclasses
import math
from collections.abc import Iterator, Sequence, Sized

import numpy as np
import torch
from torch import Tensor, nn

from gpt.config import ObjectiveConfig, TrainConfig
from gpt.data import create_examples, fit_to_data
from gpt.generation import generate_ids, sample_documents
from gpt.loss import Evaluation, evaluation_mode
from gpt.model import GPTModel
from gpt.objectives.unigram import MAX_TOKENS, unigram_loss
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer, decode_stream, with_special_tokens

SAMPLE_TOKENS = 120
SAMPLE_TEMPERATURE = 0.8  # a little below 1: less weight on improbable tokens


class Objective(nn.Module):
    """One loss. It holds the backbone as `model`, owns all parameters to be trained, and maps a batch, as its own
    `batch` makes it, to (loss summed in nats, tokens counted).

    The Trainer divides by the count, over micro-batches and processes, so that a token weighs the same however a batch
    is cut. A new objective overrides what is different about it: always `forward`, most often `batch`.
    """

    special_tokens: tuple[str, ...] = ()  # tokens that it adds to any tokenizer, after that one's own
    metrics: tuple[str, ...] = ()  # what it measures besides the loss: further columns of metrics.csv
    reads_any_text = False  # evaluate.py can measure it on any text: its loss is that of the next token
    continues_prompts = True  # generate.py hands it a text to go on with
    left_to_right = True  # its model is a GPT that predicts the next token: other programs can use it

    def __init__(self, model: GPTModel, config: ObjectiveConfig | None = None):
        super().__init__()
        self.model = model
        self.config = config or ObjectiveConfig()

    def forward(self, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """(loss summed in nats, tokens counted), two scalars, for what `batch` returns."""
        raise NotImplementedError

    @property
    def smoothing(self) -> float:
        """The label smoothing of a loss: none when it is measured, so that losses compare."""
        return self.config.label_smoothing if self.training else 0.0

    # --- data ---------------------------------------------------------------------------------------------------------

    @classmethod
    def transform(cls, data: PreparedData) -> PreparedData:
        """Prepared data as this objective reads them: with its special tokens in the vocabulary."""
        if not cls.special_tokens:
            return data
        return dataclasses.replace(data, tokenizer=with_special_tokens(data.tokenizer, cls.special_tokens))

    @classmethod
    def resolve_config(cls, config: TrainConfig, data: PreparedData) -> TrainConfig:
        """The config with what the data decide filled in. ValueError where it does not fit them."""
        return fit_to_data(config, data)

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> Sized:
        """What `batch` takes a batch from: the windows of a split that a config asks for."""
        return create_examples(config, data, split)

    def batch(self, examples: Sized, indices: Sequence[int], key: tuple[int, ...]) -> dict[str, Tensor]:
        """The arguments of `forward` for the windows of these numbers. What is drawn at random for window i is drawn
        by `draw(key, i)`, so that it is the same however a batch is cut, and again when a run is resumed."""
        inputs, targets = examples.batch(indices)
        return {"inputs": inputs, "targets": targets}

    # --- measuring ----------------------------------------------------------------------------------------------------

    def eval_batch(self, **batch: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Of a batch, "loss" and each of `metrics`: a sum, and how many it is the sum of."""
        return {"loss": self(**batch)}

    @torch.no_grad()
    def evaluate(
        self,
        config: TrainConfig,
        data: PreparedData,
        device: torch.device | str = "cpu",
        ctx: DistContext = SINGLE_PROCESS,
    ) -> Evaluation:
        """The loss on the validation split: all of it, or eval_batches spread evenly over it, shared out over the
        processes. What is drawn at random is the same each time, and no random state is touched."""
        examples, size = self.examples(config, data, data.val), config.batch_size
        batches = [range(first, min(first + size, len(examples))) for first in range(0, len(examples), size)]
        if 0 < config.eval_batches < len(batches):
            batches = [batches[i * len(batches) // config.eval_batches] for i in range(config.eval_batches)]
        names = ("loss", *self.metrics)
        measured = np.zeros((len(batches), len(names), 2))  # of each batch a sum, and how many it is the sum of
        with evaluation_mode(self):
            for number in ctx.shard(range(len(batches))):
                batch = self.batch(examples, batches[number], key=(0,))
                found = self.eval_batch(**{name: tensor.to(device) for name, tensor in batch.items()})
                measured[number] = [[float(figure) for figure in found[name]] for name in names]
        sums, counts = np.moveaxis(ctx.all_reduce_sum(measured), 2, 0)  # (batches, metrics) each
        means = sums.sum(0) / counts.sum(0).clip(min=1)
        metrics = dict(zip(self.metrics, means[1:].tolist(), strict=True))
        return Evaluation(np.arange(len(batches)), sums[:, 0], counts[:, 0], metrics=metrics)

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the token ids that the objective predicts in a split, (N,), at most about MAX_TOKENS of them."""
        return split.tokens[1:MAX_TOKENS]

    def trivial_losses(self, config: TrainConfig, data: PreparedData) -> dict[str, float]:
        """Return the validation losses, in nats per token, of models without a context.

        "uniform" gives all tokens the same probability, "unigram" the one with which they are targets in the training
        split.
        """
        train, val = (self.target_tokens(config, data, split) for split in (data.train, data.val))
        vocab_size = data.tokenizer.vocab_size - len(self.special_tokens)
        return {"uniform": math.log(vocab_size), "unigram": unigram_loss(train, val, vocab_size)}

    def has_entropy_floor(self, config: TrainConfig) -> bool:
        """Return whether the entropy of the text bounds the validation loss from below."""
        return False

    # --- writing ------------------------------------------------------------------------------------------------------

    def generate_text(
        self, prompt: str, tokenizer: Tokenizer, prepend_eot: bool, max_new_tokens: int | None = None, **sampling
    ) -> Iterator[str]:
        """The prompt, and what the model makes of it, piece by piece; `sampling` as in `gpt.generation.generate`."""
        written = generate_ids(self.model, tokenizer.encode(prompt), tokenizer, prepend_eot, max_new_tokens, **sampling)
        yield prompt
        yield from decode_stream(tokenizer, written)

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """A text for samples.txt: sample_prompt continued, or the first token of the training split."""
        prompt = config.sample_prompt
        longest = None if config.data.packing == "document" else SAMPLE_TOKENS
        prepend_eot = longest is None or (data.has_eot and not prompt)  # whose first token is end-of-text
        if not prompt and not prepend_eot:
            prompt = data.tokenizer.decode(data.train.tokens[:1].tolist())
        generator = torch.Generator(next(self.model.parameters()).device).manual_seed(seed)
        return "".join(
            self.generate_text(
                prompt, data.tokenizer, prepend_eot, longest, temperature=SAMPLE_TEMPERATURE, generator=generator
            )
        )

    def sample_documents(self, tokenizer: Tokenizer, n: int, seed: int = 0) -> list[str]:
        """n documents as the model writes them, each as probable as it says."""
        return [tokenizer.decode(ids) for ids in sample_documents(self.model, tokenizer.eot_id, n, seed)]


def example_rng(key: tuple[int, ...], index: int) -> np.random.Generator:
    """The generator of what is drawn at random for window `index` under a key."""
    return np.random.default_rng([*key, index])
