"""An LSTM language model: the baseline that a GPT has to beat."""

from torch import Tensor, nn

from gpt.config import GPTConfig, from_dict
from gpt.layers import NORMS, Linear, TokenEmbedding
from gpt.model import GPTModel, KVCache


class LSTMModel(GPTModel):
    """A GPTModel with nn.LSTM layers, emb_dim wide, in place of the transformer blocks.

    Hochreiter and Schmidhuber 1997; as a language model Zaremba et al. 2014, arXiv:1409.2329. It has no positions, no
    mask except the causal one and no limit to its context, and ignores n_heads.
    """

    def __init__(self, config: GPTConfig | dict):
        super(GPTModel, self).__init__()
        self.config = config = from_dict(GPTConfig, config)
        self.tok_emb = TokenEmbedding(config.vocab_size, config.emb_dim)
        self.drop_emb = nn.Dropout(config.drop_rate)
        between = config.drop_rate if config.n_layers > 1 else 0.0  # nn.LSTM has dropout only between layers
        self.lstm = nn.LSTM(config.emb_dim, config.emb_dim, config.n_layers, batch_first=True, dropout=between)
        self.final_norm = NORMS[config.norm](config.emb_dim, config.norm_eps)
        self.out_head = Linear(config.emb_dim, config.vocab_size, bias=False, role="head")
        self._finish_init()

    def _init_normal(self) -> None:
        nn.init.normal_(self.tok_emb.weight, std=0.02)
        nn.init.normal_(self.out_head.weight, std=0.02)

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        mask: Tensor | str = "causal",
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        sparse_grad: bool = False,
    ) -> Tensor:
        """Return the input of out_head, (B, T, D). The cache holds the recurrent state in place of keys and values."""
        if not isinstance(mask, str) or mask != "causal" or positions is not None:
            raise ValueError("an LSTM reads from left to right: it takes no mask, no positions and no padded prompts")
        state = None if cache is None or not cache.length else (cache.keys[0], cache.values[0])
        x, (hidden, cell) = self.lstm(self.drop_emb(self.tok_emb(token_ids, sparse_grad)), state)
        if cache is not None:
            cache.keys[0], cache.values[0] = hidden, cell
            cache.length += token_ids.size(-1)
        return self.final_norm(x)
