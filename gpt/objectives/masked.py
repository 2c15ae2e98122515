"""Masked-token prediction and next-sentence prediction: the losses of BERT."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpt.config import ObjectiveConfig, TrainConfig
from gpt.generation import Sampling, sample_token, seen_tokens
from gpt.layers import Linear
from gpt.model import GPTModel
from gpt.objectives.objective import Objective, example_rng
from gpt.objectives.ranks import full_precision, losses_and_ranks
from gpt.objectives.spans import SpanExamples, encode_masked_prompt, text_tokens
from gpt.ops.reference import IGNORE_INDEX
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer

CLS, SEP, MASK = "[CLS]", "[SEP]", "[MASK]"


def mask_tokens(
    tokens: np.ndarray, rate: float, mask_id: int, vocab_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets, int64, (T,) each, of a text (T,).

    round(rate · T) random tokens, at least one, are targets; all other targets are -100. In the inputs, 80% of these
    tokens become [MASK], 10% a random token, and 10% stay, so that the model cannot trust any token that it reads.
    Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    inputs, targets = tokens.copy(), np.full_like(tokens, IGNORE_INDEX)
    chosen = rng.choice(len(tokens), max(1, round(rate * len(tokens))), replace=False)
    targets[chosen] = tokens[chosen]
    u = rng.random(len(chosen))
    inputs[chosen[u < 0.8]] = mask_id
    replaced = chosen[(u >= 0.8) & (u < 0.9)]
    inputs[replaced] = rng.integers(vocab_size, size=len(replaced))
    return inputs, targets


class Masked(Objective):
    """-ln p of the masked tokens given the rest of the text, plus -ln p(is_next) of next-sentence prediction.

    The input is [CLS] first half [SEP] second half [SEP]. With probability 1/2 the second half comes from another
    text; the hidden state of [CLS] predicts whether it does. Segment embeddings tell the halves apart. The sentence
    loss of a text is weighted by its number of masked tokens, so that the loss per masked token is the sum of both
    means, as in the paper. With next_sentence false the input is [CLS] text [SEP], and the first loss alone counts.
    Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """

    special_tokens = (CLS, SEP, MASK)
    continues_prompts = False
    left_to_right = False

    def __init__(self, model: GPTModel, config: ObjectiveConfig | None = None):
        super().__init__(model, config)
        self.metrics = ("val_masked_accuracy",)
        if self.config.next_sentence:
            self.metrics = ("val_masked_loss", "val_sentence_loss", "val_masked_accuracy", "val_sentence_accuracy")
            self.segment_emb = nn.Embedding(2, model.config.emb_dim)
            self.sentence_head = Linear(model.config.emb_dim, 2, role="head")
            nn.init.normal_(self.segment_emb.weight, std=0.02)
            nn.init.normal_(self.sentence_head.weight, std=0.02)
            nn.init.zeros_(self.sentence_head.bias)

    # --- data ---------------------------------------------------------------------------------------------------------

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> SpanExamples:
        """Return spans of text short enough that the model has room for [CLS] and [SEP]."""
        max_length = config.model.context_length - 2 - self.config.next_sentence
        if max_length < 2:
            raise ValueError(
                f"model.context_length is {config.model.context_length}, too few for a text to be masked: raise it"
            )
        return SpanExamples(config, data, split, max_length)

    def context_needed(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the context_length that each document of a split needs with its special tokens, (N,)."""
        return super().context_needed(config, data, split) + 1 + self.config.next_sentence

    def batch(self, examples: SpanExamples, indices: Sequence[int], key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return inputs and targets, int64, (B, T) each, and lengths (B,) without padding; with next_sentence also
        segments (B, T), 0 or 1, and is_next (B,), 1 if both halves belong together."""
        ids, vocab_size = examples.tokenizer.special_tokens, examples.tokenizer.base_vocab_size
        rows, is_next = [], []
        for index in indices:
            rng, text, cut = example_rng(key, index), examples.text(index), None
            if self.config.next_sentence:
                cut = int(np.clip(rng.integers(len(text) // 4, 1 + 3 * len(text) // 4), 1, len(text) - 1))
                is_next.append(int(rng.random() < 0.5 or len(examples) == 1))
                if not is_next[-1]:
                    text = np.concatenate([text[:cut], self._other_text(examples, index, len(text) - cut, rng)])
            inputs, targets = mask_tokens(text, self.config.mask_rate, ids[MASK], vocab_size, rng)
            rows.append([torch.from_numpy(row) for row in self._add_special_tokens(inputs, targets, cut, ids)])
        inputs, targets, segments = zip(*rows, strict=True)
        batch = {
            "inputs": pad_sequence(inputs, batch_first=True),
            "targets": pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX),
            "lengths": torch.tensor([len(row) for row in inputs]),
        }
        if not self.config.next_sentence:
            return batch
        return batch | {"segments": pad_sequence(segments, batch_first=True), "is_next": torch.tensor(is_next)}

    @staticmethod
    def _other_text(examples: SpanExamples, index: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """Return `length` tokens of another example, from a random start; all of it if it is shorter."""
        other = examples.text((index + 1 + int(rng.integers(len(examples) - 1))) % len(examples))
        start = int(rng.integers(max(1, len(other) - length + 1)))
        return other[start : start + length]

    @staticmethod
    def _add_special_tokens(
        inputs: np.ndarray, targets: np.ndarray, cut: int | None, ids: dict[str, int]
    ) -> Iterator[np.ndarray]:
        """Yield inputs, targets and segments (T,) with [CLS] at the start and [SEP] after each half."""
        n = len(inputs)
        ends = [n] if cut is None else [cut, n]
        yield np.concatenate([[ids[CLS]], np.insert(inputs, ends, ids[SEP])])
        yield np.concatenate([[IGNORE_INDEX], np.insert(targets, ends, IGNORE_INDEX)])
        first = 2 + ends[0]
        yield np.concatenate([np.zeros(first, np.int64), np.ones(n + len(ends) + 1 - first, np.int64)])

    # --- loss ---------------------------------------------------------------------------------------------------------

    def hidden_states(self, inputs: Tensor, lengths: Tensor, segments: Tensor | None = None) -> Tensor:
        """Return hidden states (B, T, D). Tokens see both sides, but no padding after the `lengths` (B,)."""
        mask: Tensor | str = "full"
        if torch.compiler.is_compiling() or bool((lengths < inputs.size(1)).any()):
            mask = (torch.arange(inputs.size(1), device=inputs.device) < lengths[:, None])[:, None]  # (B, 1, T)
        extra_embeds = None if segments is None else self.segment_emb(segments)  # (B, T, D)
        return self.model.hidden_states(inputs, mask=mask, extra_embeds=extra_embeds)

    def forward(self, inputs: Tensor, targets: Tensor, lengths: Tensor, **halves: Tensor) -> tuple[Tensor, Tensor]:
        """Return (loss summed in nats, number of masked tokens), two scalars, for a batch made by `batch`."""
        hidden = self.hidden_states(inputs, lengths, halves.get("segments"))  # (B, T, D)
        masked = targets != IGNORE_INDEX  # (B, T)
        loss = self.model.loss_from_hidden(hidden[masked], targets[masked], "sum", self.smoothing)
        if halves:
            sentence_losses = F.cross_entropy(
                full_precision(self.sentence_head(hidden[:, 0])), halves["is_next"], reduction="none"
            )  # (B,)
            loss = loss + (masked.sum(1) * sentence_losses).sum()
        return loss, masked.sum()

    def eval_batch(self, inputs: Tensor, targets: Tensor, lengths: Tensor, **halves: Tensor) -> dict:
        """Return both losses, their sum and both accuracies, each as a sum and a count."""
        hidden = self.hidden_states(inputs, lengths, halves.get("segments"))  # (B, T, D)
        masked = targets != IGNORE_INDEX  # (B, T)
        losses, ranks = losses_and_ranks(self.model, hidden[masked], targets[masked])
        loss, n_masked = losses.sum(), masked.sum()
        metrics = {"loss": (loss, n_masked), "val_masked_accuracy": ((ranks == 0).sum(), n_masked)}
        if not halves:
            return metrics
        logits, is_next = full_precision(self.sentence_head(hidden[:, 0])), halves["is_next"]  # (B, 2), (B,)
        sentence_losses, n_pairs = F.cross_entropy(logits, is_next, reduction="none"), torch.tensor(len(is_next))
        return metrics | {
            "loss": (loss + (masked.sum(1) * sentence_losses).sum(), n_masked),
            "val_masked_loss": (loss, n_masked),
            "val_sentence_loss": (sentence_losses.sum(), n_pairs),
            "val_sentence_accuracy": ((logits.argmax(-1) == is_next).sum(), n_pairs),
        }

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the tokens of the text, (N,): each is equally likely to be masked."""
        return text_tokens(data, split)

    def trivial_losses(self, config: TrainConfig, data: PreparedData) -> dict[str, float]:
        """See `Objective.trivial_losses`; next-sentence prediction by a coin toss costs ln 2."""
        coin_toss = math.log(2) * self.config.next_sentence
        return {name: loss + coin_toss for name, loss in super().trivial_losses(config, data).items()}

    # --- samples ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate_text(
        self,
        prompt: str,
        tokenizer: Tokenizer,
        prepend_eot: bool,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        **sampling,
    ) -> Iterator[str]:
        """Yield the prompt with one token for each [MASK]. ValueError if there is none, or no room for the prompt."""
        ids = tokenizer.special_tokens
        text = np.array(encode_masked_prompt(prompt, tokenizer, MASK))
        if ids[MASK] not in text:
            raise ValueError(
                f"this model predicts masked tokens: write {MASK} into the prompt, once for each missing token"
            )
        inputs, _, segments = self._add_special_tokens(
            text, text, len(text) // 2 if self.config.next_sentence else None, ids
        )
        device = next(self.parameters()).device
        inputs, segments = (torch.from_numpy(row)[None].to(device) for row in (inputs, segments))  # (1, T)
        lengths = torch.tensor([inputs.size(1)], device=device)
        hidden = self.hidden_states(inputs, lengths, segments if self.config.next_sentence else None)
        positions = inputs == ids[MASK]  # (1, T)
        logits = self.model.out_head(hidden[positions])[:, : tokenizer.base_vocab_size]  # (N, V): no special token
        seen = seen_tokens([inputs[0]], self.model.config.vocab_size)[:, : logits.size(1)].to(device)
        inputs[positions] = sample_token(logits, Sampling(temperature, **sampling), seen, generator)
        yield tokenizer.decode(i for i in inputs[0].tolist() if i not in (ids[CLS], ids[SEP]))

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """Return sample_prompt, or a masked validation text, and the same with its masks filled in."""
        masked_text = config.sample_prompt
        if not masked_text:
            examples = self.examples(config, data, data.val)
            text = examples.text(seed % len(examples))[: config.model.context_length - 3]
            rng, mask_id = example_rng((0,), seed), data.tokenizer.special_tokens[MASK]
            chosen = rng.choice(len(text), max(1, round(self.config.mask_rate * len(text))), replace=False)
            text[chosen] = mask_id
            masked_text = data.tokenizer.decode(text.tolist())
        return f"{masked_text}\n\nfilled in: {''.join(self.generate_text(masked_text, data.tokenizer, True))}"
