"""The keys and values of texts that a model writes together, where a text may join or leave before any step."""

import torch
from torch import Tensor, nn

from gpt.model import KVCache


class Slots:
    """One row of keys and values for each text. All rows end at the same column, where the next token is written.

    A row of n tokens takes the n columns before that one, so that a model needs no kernel of its own: a step is that of
    a batch padded on the left (gpt/generation.py). Memory grows by doubling, and is given back when no text is left.

    Shape letters: B texts, G key/value heads, S columns, K head_dim.
    """

    def __init__(self, model: nn.Module, max_rows: int):
        self.model, self.max_rows = model, max_rows
        self.lengths: list[int] = []  # tokens of each row
        self.end = 0  # the next column
        self.keys: list[Tensor] = []  # of each layer, (rows, G, columns, K) with rows >= B and columns >= end
        self.values: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def join(self, cache: KVCache) -> None:
        """Add a row after the others: the keys and values of a text that was read by itself, (1, G, S, K) each."""
        n = cache.length
        self._reserve(len(self) + 1, max([n, *self.lengths]), n_new=1, like=cache)
        row, columns = len(self), slice(self.end - n, self.end)
        for own, theirs in ((self.keys, cache.keys), (self.values, cache.values)):
            for stored, new in zip(own, theirs, strict=True):
                stored[row, :, : self.end] = 0  # an earlier text could have left NaN, which no mask hides
                stored[row, :, columns] = new[0, :, :n]
        self.lengths.append(n)

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = len(self) - 1
        if row != last:
            for tensor in (*self.keys, *self.values):
                tensor[row] = tensor[last]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.keys, self.values, self.end = [], [], 0

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Read the next token of each text, (B,), and return the logits of the one after it, (B, V)."""
        n, longest, device = len(self), max(self.lengths), tokens.device
        self._reserve(n, longest, n_new=1)
        cache, first = KVCache(len(self.keys), longest + 1), self.end - longest
        cache.keys = [keys[:n, :, first:] for keys in self.keys]
        cache.values = [values[:n, :, first:] for values in self.values]
        cache.length = longest
        lengths, mask = torch.tensor(self.lengths, device=device), "causal"
        if min(self.lengths) < longest:
            column = torch.arange(longest + 1, device=device)
            mask = (column >= longest - lengths[:, None])[:, None]  # (B, 1, S): not the columns before a text
        x = self.model.hidden_states(tokens[:, None], mask=mask, positions=lengths[:, None], cache=cache)
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        return self.model.out_head(x[:, -1])

    def _reserve(self, n_rows: int, width: int, n_new: int, like: KVCache | None = None) -> None:
        """Make room for n_rows rows whose last `width` columns are in use, and for n_new columns after them."""
        rows, columns = (self.keys[0].size(0), self.keys[0].size(2)) if self.keys else (0, 0)
        if n_rows <= rows and width <= self.end and self.end + n_new <= columns:
            return
        rows = rows if n_rows <= rows else min(2 * n_rows, self.max_rows)
        columns, used = min(2 * width, self.model.config.context_length) + 64, max(self.lengths, default=0)

        def grown(stored: Tensor) -> Tensor:
            new = stored.new_zeros(rows, stored.size(1), columns, stored.size(3))
            if self.lengths:
                new[: len(self), :, width - used : width] = stored[: len(self), :, self.end - used : self.end]
            return new

        keys, values = (self.keys, self.values) if self.keys else (like.keys, like.values)
        self.keys, self.values, self.end = [*map(grown, keys)], [*map(grown, values)], width
