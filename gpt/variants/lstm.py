"""A language model with a recurrence in place of attention: the baseline that a GPT has to beat."""

from torch import Tensor, nn

from gpt.config import GPTConfig, model_config
from gpt.model import GPTModel, KVCache, LayerNorm, Linear


class LSTMModel(GPTModel):
    """A language model with a recurrence in place of attention: GPTModel's embedding, head, loss and calls, but layers
    of nn.LSTM, emb_dim wide, between them. Hochreiter and Schmidhuber 1997; as a language model Zaremba et al. 2014,
    arXiv:1409.2329. It has no positions, no masks but the causal one and no limit to its context; n_heads means nothing
    to it."""

    def __init__(self, config: GPTConfig | dict):
        config = model_config(config)
        if not config.vocab_size:
            raise ValueError("vocab_size 0 stands for the tokenizer's: set it before a model is made")
        super(GPTModel, self).__init__(config.implementation)
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.drop_emb = nn.Dropout(config.drop_rate)
        between = config.drop_rate if config.n_layers > 1 else 0.0  # dropout stands between layers
        self.lstm = nn.LSTM(config.emb_dim, config.emb_dim, config.n_layers, batch_first=True, dropout=between)
        self.final_norm = LayerNorm(config.emb_dim, config.implementation)
        self.out_head = Linear(config.emb_dim, config.vocab_size, bias=False, implementation=config.implementation)
        if config.init != "pytorch":
            nn.init.normal_(self.tok_emb.weight, std=0.02)
            nn.init.normal_(self.out_head.weight, std=0.02)
        if config.tie_embeddings:
            self.out_head.weight = self.tok_emb.weight

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        mask: Tensor | str = "causal",
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The vectors from which out_head reads logits, (B, T, D). The cache holds one state instead of all keys."""
        if not isinstance(mask, str) or mask != "causal" or positions is not None:
            raise ValueError("an LSTM reads from left to right: it takes no mask, no positions, no padded prompts")
        state = None if cache is None or not cache.length else (cache.keys[0], cache.values[0])
        x, (hidden, cell) = self.lstm(self.drop_emb(self.tok_emb(token_ids)), state)
        if cache is not None:
            cache.keys[0], cache.values[0] = hidden, cell
            cache.length += token_ids.size(-1)
        return self.final_norm(x)
