"""Autoregressive blank infilling: the loss of GLM."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpt.config import ObjectiveConfig, TrainConfig
from gpt.generation import Sampling, sample_token, seen_tokens
from gpt.model import GPTModel, KVCache
from gpt.objectives.glm_spans import END, MASK, START, GLMExample, cut_spans, infilling_mask, sample_spans
from gpt.objectives.objective import Objective, example_rng
from gpt.objectives.ranks import losses_and_ranks
from gpt.objectives.spans import SpanExamples, encode_masked_prompt, text_tokens
from gpt.ops.reference import IGNORE_INDEX
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer


class Infilling(Objective):
    """-sum ln p of the tokens of each span and its [EOP], given the text with blanks, the spans before it and its own
    earlier tokens. Du et al. 2022, arXiv:2103.10360, equation 1.

    "val_filled" is the share of spans that greedy decoding fills exactly.
    """

    special_tokens = (MASK, START, END)
    metrics = ("val_filled",)
    continues_prompts = False
    left_to_right = False

    def __init__(self, model: GPTModel, config: ObjectiveConfig | None = None):
        super().__init__(model, config)
        self.span_pos_emb = nn.Embedding(model.config.context_length, model.config.emb_dim)
        nn.init.normal_(self.span_pos_emb.weight, std=0.02)

    @classmethod
    def has_masks(cls, config: TrainConfig) -> bool:
        """See `Objective.has_masks`."""
        return True

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> SpanExamples:
        """Return spans of text short enough that the model has room for [MASK], [SOP] and all blanks."""
        max_length = int(config.model.context_length / (1 + 2 * self.config.mask_rate)) - 1
        if max_length < 2:
            raise ValueError(
                f"model.context_length is {config.model.context_length}, too few for a text with blanks: raise it"
            )
        return SpanExamples(config, data, split, max_length)

    def context_needed(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the context_length that each document of a split needs with its blanks, (N,)."""
        needed = super().context_needed(config, data, split) * (1 + 2 * self.config.mask_rate)
        return np.ceil(needed).astype(np.int64)

    def batch(self, examples: SpanExamples, indices: Sequence[int], key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return inputs, targets, positions and span_positions, int64, (B, T) each, and n_context (B,)."""
        rows = []
        for index in indices:
            rng, text = example_rng(key, index), examples.text(index)
            spans = sample_spans(len(text), self.config.mask_rate, self.config.span_length, rng)
            rows.append(cut_spans(text, spans, rng.permutation(len(spans)).tolist(), examples.tokenizer.special_tokens))
        padding = {"targets": IGNORE_INDEX}  # 0 elsewhere: no token before it sees it
        batch = {
            name: pad_sequence([torch.from_numpy(getattr(row, name)) for row in rows], True, padding.get(name, 0))
            for name in GLMExample._fields[:-1]
        }
        return batch | {"n_context": torch.tensor([row.n_context for row in rows])}

    def target_states(
        self, inputs: Tensor, targets: Tensor, positions: Tensor, span_positions: Tensor, n_context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the hidden states (N, D) that predict targets, the targets (N,), and whether each starts a span."""
        hidden = self.model.hidden_states(
            inputs,
            mask=infilling_mask(n_context, inputs.size(1)),
            positions=positions,
            extra_embeds=self.span_pos_emb(span_positions),
        )
        counted = targets != IGNORE_INDEX  # (B, T)
        return hidden[counted], targets[counted], span_positions[counted] == 1

    def forward(self, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return (loss summed in nats, number of targets), two scalars, for a batch made by `batch`."""
        hidden, targets, _ = self.target_states(**batch)
        return self.model.loss_from_hidden(hidden, targets, "sum", self.smoothing), torch.tensor(len(targets))

    def eval_batch(self, **batch: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the loss and the share of spans that greedy decoding fills exactly, each as a sum and a count."""
        hidden, targets, starts_span = self.target_states(**batch)
        losses, ranks = losses_and_ranks(self.model, hidden, targets)
        wrong = torch.bincount(starts_span.cumsum(0) - 1, (ranks != 0).float())  # errors in each span
        return {
            "loss": (losses.sum(), torch.tensor(len(targets))),
            "val_filled": ((wrong == 0).sum(), torch.tensor(len(wrong))),
        }

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the tokens of the text, (N,): each is equally likely to be in a span. [EOP] is not counted."""
        return text_tokens(data, split)

    # --- samples ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fill(
        self,
        context: list[int],
        ids: dict[str, int],
        max_new_tokens: int | None = None,
        generator: torch.Generator | None = None,
        **sampling,
    ) -> list[list[int]]:
        """Return the tokens that fill each [MASK] of a context, from left to right, at most max_new_tokens for each.

        The model reads the context once, into a cache; `sampling` as in `gpt.generation.Sampling`. ValueError if
        the model's context_length leaves no room.
        """
        config, device = self.model.config, self.span_pos_emb.weight.device
        mask_positions = [position for position, i in enumerate(context) if i == ids[MASK]]
        room = (config.context_length - len(context)) // len(mask_positions) - 1
        if room < 1:
            raise ValueError(
                f"{len(context)} tokens with {len(mask_positions)} blanks leave no room to fill them: shorten it"
            )
        cache, settings = KVCache(config.n_layers, config.context_length), Sampling(**sampling)

        def last_state(tokens: list[int], positions: list[int], span_positions: list[int], mask: str) -> Tensor:
            tokens, positions, span_positions = (
                torch.tensor(numbers, device=device)[None] for numbers in (tokens, positions, span_positions)
            )
            extra = self.span_pos_emb(span_positions)
            x = self.model.hidden_states(tokens, mask=mask, positions=positions, cache=cache, extra_embeds=extra)
            return x[:, -1]

        last_state(context, list(range(len(context))), [0] * len(context), "full")
        spans = []
        for position in mask_positions:
            span, last = [], ids[START]
            while True:
                logits = self.model.out_head(last_state([last], [position], [len(span) + 1], "causal"))  # (1, V)
                logits[:, [ids[MASK], ids[START]]] = -torch.inf
                seen = seen_tokens([torch.tensor(context + span)], logits.size(1)).to(device)
                last = int(sample_token(logits, settings, seen, generator))
                if last == ids[END] or len(span) == min(room, max_new_tokens or room):
                    break
                span.append(last)
            spans.append(span)
        return spans

    def generate_text(
        self,
        prompt: str,
        tokenizer: Tokenizer,
        prepend_eot: bool,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        **sampling,
    ) -> Iterator[str]:
        """Yield the prompt with each [MASK] filled. ValueError if there is none, or no room to fill it."""
        ids = tokenizer.special_tokens
        context = encode_masked_prompt(prompt, tokenizer, MASK)
        if ids[MASK] not in context:
            raise ValueError(f"this model fills in blanks: write {MASK} into the prompt where text is missing")
        spans = iter(self.fill(context, ids, max_new_tokens, temperature=temperature, **sampling))
        yield tokenizer.decode(i for token in context for i in (next(spans) if token == ids[MASK] else [token]))

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """Return sample_prompt, or a validation text with blanks, and the same with its blanks filled in."""
        text = config.sample_prompt
        if not text:
            examples = self.examples(config, data, data.val)
            batch = self.batch(examples, [seed % len(examples)], key=(0,))
            text = data.tokenizer.decode(batch["inputs"][0, : batch["n_context"][0]].tolist())
        return f"{text}\n\nfilled in: {''.join(self.generate_text(text, data.tokenizer, True))}"
