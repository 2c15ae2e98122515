"""Autoregressive blank infilling: the loss of GLM."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpt.config import ObjectiveConfig, TrainConfig
from gpt.generation import sample_token
from gpt.loss import losses_and_ranks
from gpt.model import GPTModel, KVCache
from gpt.objectives.glm_spans import END, MASK, START, GLMSpans, cut_spans, draw_spans, infilling_mask
from gpt.objectives.objective import Objective, example_rng
from gpt.objectives.spans import Spans, encode_blanks, text_tokens
from gpt.ops.reference import IGNORE_INDEX
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer


class Infilling(Objective):
    """-sum ln p of the tokens of each span, and of its end, given the text with blanks in their places, the spans
    written before it, and its own tokens so far. Du et al. 2022, arXiv:2103.10360, equation 1.

    "val_filled" is the share of spans of which each token, and the end, is the likeliest after those before it.
    """

    special_tokens = (MASK, START, END)
    metrics = ("val_filled",)
    continues_prompts = False
    left_to_right = False

    def __init__(self, model: GPTModel, config: ObjectiveConfig | None = None):
        super().__init__(model, config)
        self.span_pos_emb = nn.Embedding(model.config.context_length, model.config.emb_dim)
        nn.init.normal_(self.span_pos_emb.weight, std=0.02)

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> Spans:
        """The stretches of a split that leave room for two more tokens per span, were all spans of one token."""
        longest = int(config.model.context_length / (1 + 2 * self.config.mask_rate)) - 1
        if longest < 2:
            raise ValueError(f"model.context_length is {config.model.context_length}, too few for a text with blanks")
        return Spans(config, data, split, longest)

    def batch(self, examples: Spans, indices: Sequence[int], key: tuple[int, ...]) -> dict[str, Tensor]:
        """inputs, targets, positions, span_positions, int64, (B, T) each; n_context (B,)."""
        rows = []
        for index in indices:
            rng, text = example_rng(key, index), examples.text(index)
            spans = draw_spans(len(text), self.config.mask_rate, self.config.span_length, rng)
            rows.append(cut_spans(text, spans, rng.permutation(len(spans)).tolist(), examples.tokenizer.special_tokens))
        filling = {"targets": IGNORE_INDEX}  # 0 elsewhere; nothing sees what stands behind it
        batch = {
            name: pad_sequence([torch.from_numpy(getattr(row, name)) for row in rows], True, filling.get(name, 0))
            for name in GLMSpans._fields[:-1]
        }
        return batch | {"n_context": torch.tensor([row.n_context for row in rows])}

    def read(
        self, inputs: Tensor, targets: Tensor, positions: Tensor, span_positions: Tensor, n_context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors (N, D) from which N targets are predicted, these targets, and which of them begin a span."""
        hidden = self.model.hidden_states(
            inputs,
            mask=infilling_mask(n_context, inputs.size(1)),
            positions=positions,
            added=self.span_pos_emb(span_positions),
        )
        counted = targets != IGNORE_INDEX  # (B, T)
        return hidden[counted], targets[counted], span_positions[counted] == 1

    def forward(self, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """(loss summed in nats, tokens of spans and their ends), two scalars, for what `batch` returns."""
        hidden, targets, _ = self.read(**batch)
        return self.model.losses(hidden, targets, "sum", self.smoothing), torch.tensor(len(targets))

    def eval_batch(self, **batch: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The loss, and how many spans greedy filling would write."""
        hidden, targets, begins = self.read(**batch)
        losses, ranks = losses_and_ranks(self.model, hidden, targets)
        wrong = torch.bincount(begins.cumsum(0) - 1, (ranks != 0).float())  # of each span
        return {
            "loss": (losses.sum(), torch.tensor(len(targets))),
            "val_filled": ((wrong == 0).sum(), torch.tensor(len(wrong))),
        }

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the tokens of the documents, (N,), since each is as often in a span; the ends of spans are left out."""
        return text_tokens(data, split)

    # --- writing ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fill(self, context: list[int], ids: dict[str, int], longest: int | None = None, **sampling) -> list[list[int]]:
        """What fills each [MASK] of a context, from left to right, each up to its end or to `longest` tokens. The
        context is read once, into a cache; `sampling` as in `gpt.generation.sample_token`."""
        config, device = self.model.config, self.span_pos_emb.weight.device
        places = [place for place, i in enumerate(context) if i == ids[MASK]]
        room = (config.context_length - len(context)) // len(places) - 1
        if room < 1:
            raise ValueError(f"{len(context)} tokens with {len(places)} blanks leave no room to fill them: shorten it")
        cache = KVCache(config.n_layers, config.context_length)

        def read(tokens: list[int], positions: list[int], span_positions: list[int], mask: str) -> Tensor:
            tokens, positions, span_positions = (
                torch.tensor(numbers, device=device)[None] for numbers in (tokens, positions, span_positions)
            )
            added = self.span_pos_emb(span_positions)
            return self.model.hidden_states(tokens, mask=mask, positions=positions, cache=cache, added=added)[:, -1]

        read(context, list(range(len(context))), [0] * len(context), "full")
        fillings = []
        for place in places:
            filling, last = [], ids[START]
            while True:
                logits = self.model.out_head(read([last], [place], [len(filling) + 1], "causal"))  # (1, V)
                logits[:, [ids[MASK], ids[START]]] = -torch.inf
                last = int(sample_token(logits, **sampling))
                if last == ids[END] or len(filling) == min(room, longest or room):
                    break
                filling.append(last)
            fillings.append(filling)
        return fillings

    def generate_text(
        self,
        prompt: str,
        tokenizer: Tokenizer,
        prepend_eot: bool,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        **sampling,
    ) -> Iterator[str]:
        """The prompt with each [MASK] in it filled. ValueError where there is none, or no room for what fills it."""
        ids = tokenizer.special_tokens
        context = encode_blanks(prompt, tokenizer, MASK)
        if ids[MASK] not in context:
            raise ValueError(f"this model fills in blanks: write {MASK} into the prompt where something is missing")
        fillings = iter(self.fill(context, ids, max_new_tokens, temperature=temperature, **sampling))
        yield tokenizer.decode(i for token in context for i in (next(fillings) if token == ids[MASK] else [token]))

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """sample_prompt filled in, or a text of the validation split, with its blanks and as it is filled in."""
        blanks = config.sample_prompt
        if not blanks:
            examples = self.examples(config, data, data.val)
            batch = self.batch(examples, [seed % len(examples)], key=(0,))
            blanks = data.tokenizer.decode(batch["inputs"][0, : batch["n_context"][0]].tolist())
        return f"{blanks}\n\nfilled in: {''.join(self.generate_text(blanks, data.tokenizer, True))}"
