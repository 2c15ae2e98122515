"""Masked-token prediction and next-sentence prediction: the losses of BERT."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpt.config import ObjectiveConfig, TrainConfig
from gpt.generation import sample_token
from gpt.loss import losses_and_ranks
from gpt.model import GPTModel
from gpt.objectives.objective import Objective, example_rng
from gpt.objectives.spans import Spans, encode_blanks, text_tokens
from gpt.ops.reference import IGNORE_INDEX
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer

CLS, SEP, MASK = "[CLS]", "[SEP]", "[MASK]"


def choose(tokens: np.ndarray, rate: float, mask_id: int, vocab_size: int, rng: np.random.Generator):
    """What is read and what is to be found of a text: (inputs, targets), int64, as long as `tokens`.

    Of n tokens round(rate · n), at least one, are chosen: they are targets, and the targets of all others are -100. Of
    those chosen 80% are read as [MASK], 10% as a random token, 10% as they are, so that a model cannot know which of
    the tokens that it reads are true. Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    inputs, targets = tokens.copy(), np.full_like(tokens, IGNORE_INDEX)
    chosen = rng.choice(len(tokens), max(1, round(rate * len(tokens))), replace=False)
    targets[chosen] = tokens[chosen]
    fate = rng.random(len(chosen))
    inputs[chosen[fate < 0.8]] = mask_id
    other = chosen[(fate >= 0.8) & (fate < 0.9)]
    inputs[other] = rng.integers(vocab_size, size=len(other))
    return inputs, targets


class Masked(Objective):
    """-ln p of the tokens chosen, given all of the altered text, plus -ln p(the second half continues the first).

    The text is read as [CLS] first half [SEP] second half [SEP]; in one of two cases, drawn at random, the second half
    is as long a piece of another text. A segment embedding says which half a token belongs to, and what [CLS] has
    become decides. Per token chosen, a pair's verdict counts as much as the tokens chosen in it: the sum of both means,
    as in the paper, where all texts are equally long. Without next_sentence it is [CLS] text [SEP], and the first loss
    alone. Devlin et al. 2019, arXiv:1810.04805, section 3.1.
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
            self.sentence_head = nn.Linear(model.config.emb_dim, 2)
            nn.init.normal_(self.segment_emb.weight, std=0.02)
            nn.init.normal_(self.sentence_head.weight, std=0.02)
            nn.init.zeros_(self.sentence_head.bias)

    # --- data ---------------------------------------------------------------------------------------------------------

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> Spans:
        """The stretches of a split that fit the model beside [CLS] and [SEP]."""
        longest = config.model.context_length - 2 - self.config.next_sentence
        if longest < 2:
            raise ValueError(f"model.context_length is {config.model.context_length}, too few for a text to be masked")
        return Spans(config, data, split, longest)

    def batch(self, examples: Spans, indices: Sequence[int], key: tuple[int, ...]) -> dict[str, Tensor]:
        """inputs, targets and segments, int64, (B, T) each; lengths (B,) without padding; continues (B,), 1 where the
        second half is the first one's."""
        ids, vocab_size = examples.tokenizer.special_tokens, examples.tokenizer.base_vocab_size
        rows, is_next = [], []
        for index in indices:
            rng, text, cut = example_rng(key, index), examples.text(index), None
            if self.config.next_sentence:
                cut = int(np.clip(rng.integers(len(text) // 4, 1 + 3 * len(text) // 4), 1, len(text) - 1))
                is_next.append(int(rng.random() < 0.5 or len(examples) == 1))
                if not is_next[-1]:
                    text = np.concatenate([text[:cut], self._foreign(examples, index, len(text) - cut, rng)])
            inputs, targets = choose(text, self.config.mask_rate, ids[MASK], vocab_size, rng)
            rows.append([torch.from_numpy(row) for row in self._framed(inputs, targets, cut, ids)])
        inputs, targets, segments = zip(*rows, strict=True)
        batch = {
            "inputs": pad_sequence(inputs, batch_first=True),
            "targets": pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX),
            "lengths": torch.tensor([len(row) for row in inputs]),
        }
        if not self.config.next_sentence:
            return batch
        return batch | {"segments": pad_sequence(segments, batch_first=True), "continues": torch.tensor(is_next)}

    @staticmethod
    def _foreign(examples: Spans, index: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """So many tokens of another stretch, from a random place of it; all of it where it is shorter."""
        other = examples.text((index + 1 + int(rng.integers(len(examples) - 1))) % len(examples))
        start = int(rng.integers(max(1, len(other) - length + 1)))
        return other[start : start + length]

    @staticmethod
    def _framed(inputs: np.ndarray, targets: np.ndarray, cut: int | None, ids: dict[str, int]) -> Iterator[np.ndarray]:
        """Inputs, targets and segments (T,) with [CLS] before them, and [SEP] behind each half."""
        n = len(inputs)
        ends = [n] if cut is None else [cut, n]
        yield np.concatenate([[ids[CLS]], np.insert(inputs, ends, ids[SEP])])
        yield np.concatenate([[IGNORE_INDEX], np.insert(targets, ends, IGNORE_INDEX)])
        first = 2 + ends[0]
        yield np.concatenate([np.zeros(first, np.int64), np.ones(n + len(ends) + 1 - first, np.int64)])

    # --- loss ---------------------------------------------------------------------------------------------------------

    def encode(self, inputs: Tensor, lengths: Tensor, segments: Tensor | None = None) -> Tensor:
        """What each token has become, (B, T, D), having seen all others of its row; rows longer than `lengths` (B,) are
        padded."""
        mask: Tensor | str = "full"
        if torch.compiler.is_compiling() or bool((lengths < inputs.size(1)).any()):
            mask = (torch.arange(inputs.size(1), device=inputs.device) < lengths[:, None])[:, None]  # (B, 1, T)
        added = None if segments is None else self.segment_emb(segments)  # (B, T, D)
        return self.model.hidden_states(inputs, mask=mask, added=added)

    def forward(self, inputs: Tensor, targets: Tensor, lengths: Tensor, **halves: Tensor) -> tuple[Tensor, Tensor]:
        """(loss summed in nats, tokens chosen), two scalars, for what `batch` returns."""
        hidden, chosen = (
            self.encode(inputs, lengths, halves.get("segments")),
            targets != IGNORE_INDEX,
        )  # (B, T, D), (B, T)
        loss = self.model.losses(hidden[chosen], targets[chosen], "sum", self.smoothing)
        if halves:
            verdicts = F.cross_entropy(self.sentence_head(hidden[:, 0]), halves["continues"], reduction="none")  # (B,)
            loss = loss + (chosen.sum(1) * verdicts).sum()
        return loss, chosen.sum()

    def eval_batch(self, inputs: Tensor, targets: Tensor, lengths: Tensor, **halves: Tensor) -> dict:
        """Both losses and their sum, how many tokens are the likeliest, and how many pairs are told right."""
        hidden, chosen = (
            self.encode(inputs, lengths, halves.get("segments")),
            targets != IGNORE_INDEX,
        )  # (B, T, D), (B, T)
        losses, ranks = losses_and_ranks(self.model, hidden[chosen], targets[chosen])
        loss, n_chosen = losses.sum(), chosen.sum()
        found = {"loss": (loss, n_chosen), "val_masked_accuracy": ((ranks == 0).sum(), n_chosen)}
        if not halves:
            return found
        logits, is_next = self.sentence_head(hidden[:, 0]), halves["continues"]  # (B, 2), (B,)
        verdicts, n_pairs = F.cross_entropy(logits, is_next, reduction="none"), torch.tensor(len(is_next))
        return found | {
            "loss": (loss + (chosen.sum(1) * verdicts).sum(), n_chosen),
            "val_masked_loss": (loss, n_chosen),
            "val_sentence_loss": (verdicts.sum(), n_pairs),
            "val_sentence_accuracy": ((logits.argmax(-1) == is_next).sum(), n_pairs),
        }

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the tokens of the documents, (N,), since each is masked as often."""
        return text_tokens(data, split)

    def trivial_losses(self, config: TrainConfig, data: PreparedData) -> dict[str, float]:
        """See `Objective.trivial_losses`; the second half of a pair is guessed with p = 1/2."""
        coin = math.log(2) * self.config.next_sentence
        return {name: loss + coin for name, loss in super().trivial_losses(config, data).items()}

    # --- writing ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate_text(
        self,
        prompt: str,
        tokenizer: Tokenizer,
        prepend_eot: bool,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        **sampling,
    ) -> Iterator[str]:
        """The prompt with a token for each [MASK] in it. ValueError where there is none, or no room for the prompt."""
        ids = tokenizer.special_tokens
        text = np.array(encode_blanks(prompt, tokenizer, MASK))
        if ids[MASK] not in text:
            raise ValueError(f"this model fills in what is masked: write {MASK} into the prompt, once for each token")
        inputs, _, segments = self._framed(text, text, len(text) // 2 if self.config.next_sentence else None, ids)
        device = next(self.parameters()).device
        inputs, segments = (torch.from_numpy(row)[None].to(device) for row in (inputs, segments))  # (1, T)
        lengths = torch.tensor([inputs.size(1)], device=device)
        hidden = self.encode(inputs, lengths, segments if self.config.next_sentence else None)
        places = inputs == ids[MASK]  # (1, T)
        logits = self.model.out_head(hidden[places])[:, : tokenizer.base_vocab_size]  # (N, V): no special token
        inputs[places] = sample_token(logits, temperature, **sampling)
        yield tokenizer.decode(i for i in inputs[0].tolist() if i not in (ids[CLS], ids[SEP]))

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """sample_prompt filled in, or a text of the validation split, as it is read and as it is filled in."""
        masked = config.sample_prompt
        if not masked:
            examples = self.examples(config, data, data.val)
            text = examples.text(seed % len(examples))[: config.model.context_length - 3]
            rng, mask_id = example_rng((0,), seed), data.tokenizer.special_tokens[MASK]
            chosen = rng.choice(len(text), max(1, round(self.config.mask_rate * len(text))), replace=False)
            text[chosen] = mask_id
            masked = data.tokenizer.decode(text.tolist())
        return f"{masked}\n\nfilled in: {''.join(self.generate_text(masked, data.tokenizer, True))}"
