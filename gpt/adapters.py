"""What is trained in place of a frozen model: low-rank updates of its matrices, or keys and values before the text's.

    adapt(model, AdapterConfig("lora", rank=8))     # freezes the model, but for what is new
    layers = merge(model)                           # a plain GPTModel, as fast as before
    unmerge(model, layers)                          # the updates apart again

A new task then takes a few thousand numbers instead of a copy of the model. Shape letters as in gpt/model.py, and
P length of the prefix.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt import ops
from gpt.config import AdapterConfig, GPTConfig
from gpt.model import GPTModel, KVCache, Linear, MultiHeadAttention


class LoRALinear(Linear):
    """x · W^T + bias + alpha/rank · (x · A^T) · B^T, (..., in) -> (..., out): a layer whose own W and bias stay, and an
    update of W, B · A with A `lora_A` (rank, in) and B `lora_B` (out, rank). Hu et al. 2022, arXiv:2106.09685.

    W and bias are those of the layer that it is made of, under the same names. B is 0 at first, so that it starts as
    that layer; A is normal with the variance 1/in, so that x · A^T is of the size of x.
    """

    def __init__(self, linear: Linear, rank: int, alpha: float):
        with torch.device("meta"):  # without memory and without draws: both weights are replaced
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None, linear.kernels)
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.randn_like(self.weight[:rank]) * self.in_features**-0.5)
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))

    @property
    def matrix(self) -> Tensor:
        """W + alpha/rank · B · A, (out, in)."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        linear = ops.kernels(self.kernels).linear
        reduced = linear(x, self.lora_A)  # (..., rank)
        return super().forward(x) + self.scale * linear(reduced, self.lora_B)

    def merged(self) -> Linear:
        """A plain layer that computes the same; the bias is shared."""
        with torch.device("meta"):
            plain = Linear(self.in_features, self.out_features, self.bias is not None, self.kernels)
        plain.weight, plain.bias = nn.Parameter(self.matrix.detach()), self.bias
        return plain.train(self.training)


class PrefixAttention(MultiHeadAttention):
    """Attention with P learned keys and values, (H, P, K) each, before the text's own: every query sees them, whatever
    its mask, and no token moves to another position. Li and Liang 2021, arXiv:2101.00190.

    They are made of an attention's layers and start as `key` and `value`. The paper's perceptron, which makes a prefix
    of a smaller one while training, is left out.
    """

    def __init__(self, config: GPTConfig, attention: MultiHeadAttention, key: Tensor, value: Tensor):
        with torch.device("meta"):
            super().__init__(config, attention.layer)
        for name, layer in attention.named_children():
            self.set_submodule(name, layer)
        self.prefix_key, self.prefix_value = nn.Parameter(key.clone()), nn.Parameter(value.clone())

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str) -> Tensor:
        n_batch, n_keys, length = key.size(0), key.size(-2), self.prefix_key.size(-2)
        own = ((self.prefix_key, key), (self.prefix_value, value))
        # under autocast the text's are of a lower precision
        key, value = (torch.cat([p.to(t.dtype).expand(n_batch, -1, -1, -1), t], dim=-2) for p, t in own)  # (B,H,P+S,K)
        if isinstance(mask, Tensor):
            mask = F.pad(mask.expand(*mask.shape[:-1], n_keys), (length, 0), value=True)  # (..., P+S)
        return super()._attend(query, key, value, mask)  # "causal": the queries are the last of all P+S


def adapt(model: GPTModel, config: AdapterConfig) -> GPTModel:
    """The model itself, frozen but for what the config adds to it; with "none" all of it is trained, as before.

    ValueError for targets that no layer goes by, for a rank or a length that the model has no room for, and for a model
    that is no transformer.
    """
    if config.name == "none":
        return model
    if model.config.backbone != "gpt":
        raise ValueError(f"adapter {config.name!r} belongs to the backbone 'gpt', not to {model.config.backbone!r}")
    model.requires_grad_(False)
    {"lora": _add_updates, "prefix": _add_prefix}[config.name](model, config)
    return model


def merge(model: GPTModel) -> dict[str, LoRALinear]:
    """Replace each layer that has an update by a plain one of the weight W + alpha/rank · B · A, in place: the model is
    an ordinary one again, and all of it may be trained. The layers, by name, for `unmerge`."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}
    for name, layer in layers.items():
        model.set_submodule(name, layer.merged())
    if layers:
        model.requires_grad_(True)
    return layers


def unmerge(model: GPTModel, layers: dict[str, LoRALinear]) -> None:
    """Undo `merge`, which has returned `layers`: the very same weights and updates, and the model frozen but for
    these."""
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def _add_updates(model: GPTModel, config: AdapterConfig) -> None:
    """An update for each layer that goes by one of config.targets."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}
    known = sorted({name.split(".", 2)[-1] for name in layers})  # without trf_blocks and its number
    for target in (target.strip() for target in config.targets.split(",")):
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not target or not found:
            raise ValueError(f"adapter.targets: no layer is called {target!r}; there are: {', '.join(known)}")
        for name in found:
            layer = layers[name]
            if layer.weight is model.tok_emb.weight:
                raise ValueError(
                    f"adapter.targets: {name} shares its weight with tok_emb (model.tie_embeddings), whose own use an "
                    f"update would leave out: name other layers"
                )
            if config.rank > min(layer.weight.shape):
                raise ValueError(
                    f"adapter.rank {config.rank} is more than the {min(layer.weight.shape)} that {name} has itself: "
                    f"lower it"
                )
            model.set_submodule(name, LoRALinear(layer, config.rank, config.alpha))


def _add_prefix(model: GPTModel, config: AdapterConfig) -> None:
    """A prefix in each layer. It starts as the keys and values of tokens drawn from the vocabulary, as if these stood
    before the text: the model knows what to make of them, and starts near what it was. Keys of size 0.02 would take the
    same share of all attention and give nothing for it. Section 7.4 of the paper."""
    if config.length > model.config.context_length:
        raise ValueError(
            f"adapter.length {config.length} exceeds the model's context_length {model.config.context_length}: lower it"
        )
    device, training = model.tok_emb.weight.device, model.training
    tokens = torch.randint(model.config.vocab_size, (1, config.length), device=device)  # (1, P)
    cache = KVCache(model.config.n_layers, config.length)
    with torch.no_grad():
        model.eval().hidden_states(tokens, cache=cache)
    for block, key, value in zip(model.trf_blocks, cache.keys, cache.values, strict=True):
        block.att = PrefixAttention(model.config, block.att, key[0], value[0])
    model.train(training)
