"""The model against PyTorch's modules, transformers' GPT-2 and published figures."""

import copy
import pickle

import pytest
import torch
from blocks import BLOCKS, MODERN_BLOCK
from numerics import tolerance
from torch import nn

from gpt.config import GPT_CONFIG_124M, GPTConfig
from gpt.exchange.layouts import GPT2_SIZES
from gpt.generation import generate_text_simple, text_to_token_ids, token_ids_to_text
from gpt.layers import GELU, FeedForward, LayerNorm
from gpt.model import GPTModel, KVCache, MultiHeadAttention, TransformerBlock
from gpt.ops import use_implementation
from gpt.system import kernels
from gpt.text.tokenizers import get_tokenizer

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "fused"])
SMALL = {
    "vocab_size": 23, "context_length": 12, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0,
    "qkv_bias": True,
}  # fmt: skip


def small(**changes):
    return GPTModel({**SMALL, **changes}).double()


def using(implementation, module):
    """The module, computing with the formulas of one implementation."""
    use_implementation(module, implementation)
    return module


def tokens(*shape):
    return torch.randint(0, SMALL["vocab_size"], shape)


def assert_close(a, b):
    """Equal but for rounding: three layers of six products of 64 terms, which norms and softmaxes amplify."""
    size = b.detach().abs().max().item() if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance(3 * 6 * 64, 100, 100 * size, dtype=b.dtype))


def assert_same_module(ours, theirs, x, pairs=()):
    """Two functions of x: equal values, and equal gradients with respect to x and to parameters, given as
    pairs of ours and a function that returns the gradient of theirs."""
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    value, truth = ours(a), theirs(b)
    assert_close(value, truth)
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view(value.shape)
    (value * weights).sum().backward()
    (truth * weights).sum().backward()
    assert_close(a.grad, b.grad)
    for parameter, gradient in pairs:
        assert_close(parameter.grad, gradient())


# --- published figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (GPT_CONFIG_124M, 163_009_536),
        ({**GPT_CONFIG_124M, "tie_embeddings": True}, 124_412_160),
        ({**GPT_CONFIG_124M, "tie_embeddings": True, "qkv_bias": True}, 124_439_808),
        (GPT2_SIZES["gpt2"], 124_439_808),
        (GPT2_SIZES["gpt2-medium"], 354_823_168),
        (GPT2_SIZES["gpt2-large"], 774_030_080),
        (GPT2_SIZES["gpt2-xl"], 1_557_611_200),
    ],
)
def test_parameter_counts(config, count):
    with torch.device("meta"):
        assert GPTModel(config).num_parameters() == count


@pytest.fixture(scope="module")
def untrained_124m():
    torch.manual_seed(123)
    return GPTModel({**GPT_CONFIG_124M, "context_length": 256}).eval()


@IMPLEMENTATIONS
def test_the_worked_example(implementation, untrained_124m):
    """Raschka 2024, chapter 5: two texts of three tokens, an untrained model of GPT-2's smallest size."""
    model = using(implementation, untrained_124m)
    inputs = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])  # "every effort moves", "I really like"
    targets = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])  # " effort moves you", " really like chocolate"
    tokenizer = get_tokenizer("gpt2")
    with torch.no_grad():
        logits = model(inputs)
        probabilities = torch.softmax(logits, dim=-1)
        assert probabilities.shape == (2, 3, 50257)
        chosen = probabilities.gather(-1, targets[..., None]).squeeze(-1)
        published = torch.tensor([[7.4540e-05, 3.1061e-05, 1.1563e-05], [1.0337e-05, 5.6776e-05, 4.7559e-06]])
        torch.testing.assert_close(chosen, published, rtol=1e-4, atol=0)
        logarithms = torch.tensor([[-9.5042, -10.3796, -11.3677], [-11.4798, -9.7764, -12.2561]])
        torch.testing.assert_close(chosen.log(), logarithms, rtol=0, atol=6e-5)
        assert chosen.log().mean().item() == pytest.approx(-10.7940, abs=5e-5)
        loss = model(inputs, targets)
        assert loss.item() == pytest.approx(10.7940, abs=5e-5)
        assert loss.exp().item() == pytest.approx(48725.82, abs=0.05)  # one float32 step of the loss is 0.046
        assert token_ids_to_text(probabilities[0].argmax(dim=-1), tokenizer) == " Armed heNetflix"


def test_the_untrained_models_text(untrained_124m):
    """Raschka 2024, chapter 5: ten tokens after "Every effort moves you", each the most probable one."""
    tokenizer = get_tokenizer("gpt2")
    idx = text_to_token_ids("Every effort moves you", tokenizer)
    text = token_ids_to_text(generate_text_simple(using("fused", untrained_124m), idx, 10, 256), tokenizer)
    assert text == "Every effort moves you rentingetic wasnم refres RexMeCHicular stren"


def test_a_checkpoint_in_the_books_layout_loads_with_strict():
    """Raschka 2024: these names, in this order, and a constant mask in each block."""
    block = [f"att.{w}.weight" for w in ("W_query", "W_key", "W_value")]
    block += [
        "att.out_proj.weight",
        "att.out_proj.bias",
        "ff.layers.0.weight",
        "ff.layers.0.bias",
        "ff.layers.2.weight",
    ]
    block += ["ff.layers.2.bias", "norm1.scale", "norm1.shift", "norm2.scale", "norm2.shift"]
    names = ["tok_emb.weight", "pos_emb.weight", *(f"trf_blocks.{n}.{name}" for n in range(3) for name in block)]
    names += ["final_norm.scale", "final_norm.shift", "out_head.weight"]
    model = GPTModel({**SMALL, "qkv_bias": False})
    assert list(model.state_dict()) == names
    theirs = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    masks = {f"trf_blocks.{n}.att.mask": torch.ones(12, 12).triu(1) for n in range(3)}
    model.load_state_dict({**theirs, **masks}, strict=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name])
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**theirs, "trf_blocks.0.att.other": torch.ones(1)}, strict=True)


def test_a_model_can_be_copied_and_pickled():
    model = small().eval()
    ids = tokens(1, 5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(ids), model(ids))


# --- against PyTorch's modules ----------------------------------------------------------------------------------------


@IMPLEMENTATIONS
def test_layer_norm_module(implementation):
    ours, truth = using(implementation, LayerNorm(8)).double(), nn.LayerNorm(8).double()
    nn.init.normal_(ours.scale), nn.init.normal_(ours.shift)
    truth.load_state_dict({"weight": ours.scale, "bias": ours.shift})
    pairs = [(ours.scale, lambda: truth.weight.grad), (ours.shift, lambda: truth.bias.grad)]
    assert_same_module(ours, truth, torch.randn(3, 5, 8).double() * 7 + 2, pairs)


@IMPLEMENTATIONS
def test_gelu_module(implementation):
    x = torch.linspace(-5, 5, 50).double()
    assert_same_module(using(implementation, GELU()), nn.GELU(approximate="tanh"), x)
    assert_same_module(using(implementation, GELU(exact=True)), nn.GELU(), x)


def copy_attention(ours, theirs):
    """Our separate projections into nn.MultiheadAttention's stacked one."""
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.W_query.weight, ours.W_key.weight, ours.W_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.W_query.bias, ours.W_key.bias, ours.W_value.bias]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


@IMPLEMENTATIONS
@pytest.mark.parametrize("mask", ["causal", "full"])
def test_attention_module(implementation, mask):
    ours = using(implementation, MultiHeadAttention(SMALL)).double()
    truth = nn.MultiheadAttention(16, 4, batch_first=True).double()
    copy_attention(ours, truth)
    hidden = torch.ones(7, 7).triu(1).bool() if mask == "causal" else None  # PyTorch's masks say what is hidden
    pairs = [(ours.out_proj.weight, lambda: truth.out_proj.weight.grad)]
    for n, layer in enumerate((ours.W_query, ours.W_key, ours.W_value)):
        pairs.append((layer.weight, lambda n=n: truth.in_proj_weight.grad[16 * n : 16 * n + 16]))
        pairs.append((layer.bias, lambda n=n: truth.in_proj_bias.grad[16 * n : 16 * n + 16]))
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    assert_same_module(
        lambda x: ours(x, mask), lambda x: truth(x, x, x, attn_mask=hidden, need_weights=False)[0], x, pairs
    )


@IMPLEMENTATIONS
def test_block_module(implementation):
    ours = using(implementation, TransformerBlock(SMALL)).double()
    truth = nn.TransformerEncoderLayer(
        16, 4, 64, 0.0, lambda x: nn.functional.gelu(x, approximate="tanh"), batch_first=True, norm_first=True
    ).double()
    copy_attention(ours.att, truth.self_attn)
    truth.linear1.load_state_dict(ours.ff.layers[0].state_dict())
    truth.linear2.load_state_dict(ours.ff.layers[2].state_dict())
    for norm, theirs in ((ours.norm1, truth.norm1), (ours.norm2, truth.norm2)):
        nn.init.normal_(norm.scale), nn.init.normal_(norm.shift)
        theirs.load_state_dict({"weight": norm.scale, "bias": norm.shift})
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    pairs = [
        (ours.att.W_value.weight, lambda: truth.self_attn.in_proj_weight.grad[32:]),
        (ours.ff.layers[0].weight, lambda: truth.linear1.weight.grad),
        (ours.ff.layers[2].bias, lambda: truth.linear2.bias.grad),
        (ours.norm1.scale, lambda: truth.norm1.weight.grad),
        (ours.norm2.shift, lambda: truth.norm2.bias.grad),
    ]
    hidden = torch.ones(7, 7).triu(1).bool()
    assert_same_module(ours, lambda x: truth(x, src_mask=hidden), x, pairs)


@IMPLEMENTATIONS
def test_feed_forward_module(implementation):
    ours = using(implementation, FeedForward(SMALL)).double()
    truth = nn.Sequential(nn.Linear(16, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 16)).double()
    truth.load_state_dict({name.removeprefix("layers."): w for name, w in ours.state_dict().items()})
    pairs = [(ours.layers[n].weight, lambda n=n: truth[n].weight.grad) for n in (0, 2)]
    assert_same_module(ours, truth, torch.randn(2, 7, 16).double(), pairs)


def assert_same_loss(ours, theirs):
    """Equal logits and loss; the backward pass of both gives gradients to compare."""
    ids, targets = tokens(2, 12), tokens(2, 12)
    their_logits = theirs(ids).logits
    assert_close(ours(ids), their_logits)
    loss = ours(ids, targets)
    their_loss = nn.functional.cross_entropy(their_logits.flatten(0, 1), targets.flatten())
    assert_close(loss, their_loss)
    loss.backward(), their_loss.backward()


def transformers_gpt2(ours):
    """transformers' GPT-2 of the same shape with the same weights (its linear layers are stored transposed)."""
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    c = ours.config
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.context_length, n_embd=c.emb_dim, n_layer=c.n_layers,
            n_head=c.n_heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=c.tie_embeddings,
        )
    ).double()  # fmt: skip
    with torch.no_grad():
        theirs.transformer.wte.weight.copy_(ours.tok_emb.weight)
        theirs.transformer.wpe.weight.copy_(ours.pos_emb.weight)
        theirs.lm_head.weight.copy_(ours.out_head.weight)
        for a, b in zip(ours.trf_blocks, theirs.transformer.h, strict=True):
            parts = (a.att.W_query, a.att.W_key, a.att.W_value)
            b.attn.c_attn.weight.copy_(torch.cat([p.weight for p in parts]).T)
            b.attn.c_attn.bias.copy_(torch.cat([p.bias for p in parts]))
            pairs = ((b.attn.c_proj, a.att.out_proj), (b.mlp.c_fc, a.ff.layers[0]), (b.mlp.c_proj, a.ff.layers[2]))
            for conv, linear in pairs:
                conv.weight.copy_(linear.weight.T), conv.bias.copy_(linear.bias)
    return theirs.eval()


@IMPLEMENTATIONS
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_whole_model_against_transformers(implementation, tied):
    ours = small(implementation=implementation, tie_embeddings=tied, init="gpt2").eval()
    theirs = transformers_gpt2(ours)
    assert_same_loss(ours, theirs)
    assert_close(ours.tok_emb.weight.grad, theirs.transformer.wte.weight.grad)
    assert_close(ours.pos_emb.weight.grad, theirs.transformer.wpe.weight.grad)
    assert_close(ours.trf_blocks[0].att.W_key.weight.grad, theirs.transformer.h[0].attn.c_attn.weight.grad[:, 16:32].T)


FAMILIES = {
    "llama": ({"n_kv_heads": 2}, {"attention_bias": False, "mlp_bias": False}),
    "llama 3": (
        {"n_kv_heads": 1, "rope_scaling": 8.0, "rope_original_length": 256, "rope_theta": 5e5},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
            }
        },
    ),
    "mistral": ({"n_kv_heads": 2, "window": 5}, {"sliding_window": 5}),
    "qwen2": ({"qkv_bias": True, "n_kv_heads": 2}, {}),
    "qwen3": ({"n_kv_heads": 2, "qk_norm": True, "head_dim": 6}, {"head_dim": 6}),
}  # fmt: skip


def transformers_family(name, ours, settings):
    """transformers' model of a family, of the same shape and with the same weights, in float64.

    Its RMSNorm computes in float32 whatever the model's type: PyTorch's takes its place.
    """
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    kind = name.split()[0].capitalize()
    c = ours.config
    theirs = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(
            vocab_size=c.vocab_size, max_position_embeddings=c.context_length, hidden_size=c.emb_dim,
            num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads, num_key_value_heads=c.kv_heads,
            intermediate_size=c.ffn_width, rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tie_embeddings, **settings,
        )
    ).double().eval()  # fmt: skip
    for module_name, module in list(theirs.named_modules()):
        if module_name.endswith("norm"):
            theirs.set_submodule(module_name, nn.RMSNorm(len(module.weight), eps=c.norm_eps).double())
    for their_part, our_part in list(pairs_of_family(theirs, ours)):
        with torch.no_grad():
            for parameter, our_parameter in zip(their_part.parameters(), our_part.parameters(), strict=True):
                parameter.copy_(our_parameter)
    return theirs


def pairs_of_family(theirs, ours):
    """Modules of transformers' model and ours that hold the same weights."""
    yield from [(theirs.model.embed_tokens, ours.tok_emb), (theirs.model.norm, ours.final_norm)]
    yield theirs.lm_head, ours.out_head
    for a, b in zip(theirs.model.layers, ours.trf_blocks, strict=True):
        yield from [(a.self_attn.q_proj, b.att.W_query), (a.self_attn.k_proj, b.att.W_key)]
        yield from [(a.self_attn.v_proj, b.att.W_value), (a.self_attn.o_proj, b.att.out_proj)]
        yield from [(a.mlp.gate_proj, b.ff.gate), (a.mlp.up_proj, b.ff.up), (a.mlp.down_proj, b.ff.down)]
        yield from [(a.input_layernorm, b.norm1), (a.post_attention_layernorm, b.norm2)]
        if b.att.q_norm is not None and hasattr(a.self_attn, "q_norm"):
            yield from [(a.self_attn.q_norm, b.att.q_norm), (a.self_attn.k_norm, b.att.k_norm)]


@IMPLEMENTATIONS
@pytest.mark.parametrize("family", FAMILIES)
def test_todays_blocks_against_transformers(implementation, family):
    """Logits, loss and the gradient of every weight."""
    options, settings = FAMILIES[family]
    block = {**MODERN_BLOCK, "qk_norm": False, "qkv_bias": False, **options}
    ours = small(implementation=implementation, tie_embeddings=family == "qwen3", init="gpt2", **block).eval()
    for name, parameter in ours.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter)
    theirs = transformers_family(family, ours, settings)
    assert_same_loss(ours, theirs)
    for their_part, our_part in pairs_of_family(theirs, ours):
        for parameter, our_parameter in zip(their_part.parameters(), our_part.parameters(), strict=True):
            assert_close(our_parameter.grad, parameter.grad)


# --- the forward pass ----------------------------------------------------------------------------------------


@IMPLEMENTATIONS
@BLOCKS
def test_causal_mask_hides_later_tokens(implementation, block):
    model = small(implementation=implementation, **block).eval()
    ids = tokens(1, 12)
    before = model(ids)
    for place in range(12):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % 23
        after = model(changed)
        assert_close(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])


def test_full_mask_sees_everything():
    model = small().eval()
    ids = tokens(1, 6)
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 23
    assert not torch.allclose(model(ids, mask="full")[:, 0], model(changed, mask="full")[:, 0])


@IMPLEMENTATIONS
@BLOCKS
def test_a_mask_tensor_of_each_shape(implementation, block):
    model = small(implementation=implementation, **block).eval()
    ids = tokens(2, 6)
    causal = torch.ones(6, 6).tril().bool()
    for mask in (causal, causal.expand(2, 6, 6), causal.expand(2, 4, 6, 6)):
        assert_close(model(ids, mask=mask), model(ids))


@BLOCKS
def test_a_mask_per_row_hides_padding(block):
    """Rows padded on the left, with positions of their own, give what the rows alone give."""
    model = small(**block).eval()
    ids = tokens(1, 5)
    padded = torch.cat([tokens(1, 3), ids], dim=1)
    visible = torch.ones(8, 8).tril().bool() & ((torch.arange(8) >= 3) | torch.eye(8).bool())
    positions = (torch.arange(8) - 3).clamp(min=0)
    assert_close(model(padded, mask=visible[None], positions=positions)[:, 3:], model(ids))


@BLOCKS
def test_positions_are_absolute_if_learned_and_relative_if_rotary(block):
    model = small(**block).eval()
    ids = tokens(2, 4)
    assert_close(model(ids, positions=torch.arange(4)), model(ids))
    assert_close(model(ids, positions=torch.arange(4).expand(2, 4)), model(ids))
    assert not torch.allclose(model(ids, positions=2 * torch.arange(4)), model(ids))
    shifted = model(ids, positions=torch.arange(4) + 1)
    is_rotary = model.config.position == "rope"
    assert torch.allclose(shifted, model(ids), rtol=1e-5, atol=1e-5) == is_rotary  # angles are float32


@IMPLEMENTATIONS
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 6]])
@pytest.mark.parametrize("grad", [True, False])
@BLOCKS
def test_cached_logits_equal_uncached_logits(implementation, pieces, grad, block):
    model = small(implementation=implementation, **block).eval()
    ids = tokens(2, 12)
    cache = KVCache(model.config.n_layers, 12)
    with torch.set_grad_enabled(grad):
        logits = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
    assert_close(logits, model(ids))
    assert cache.length == 12
    with pytest.raises(ValueError, match="13 tokens exceed"):
        model(ids[:, :1], cache=cache)


def test_a_window_hides_earlier_tokens():
    model = small(window=3, n_layers=2, full_every=0).eval()
    ids = tokens(1, 12)
    before = model(ids)
    changed = ids.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 23
    differs = (model(changed) - before).abs().amax(-1)[0] > 0
    assert differs.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]  # two layers of two earlier tokens each


@IMPLEMENTATIONS
def test_loss_reductions_and_ignored_targets(implementation):
    model = small(implementation=implementation).eval()
    ids, targets = tokens(3, 5), tokens(3, 5)
    targets[0, :4] = targets[2, 1] = -100
    losses = nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="none").view(3, 5)
    assert_close(model(ids, targets, reduction="none"), losses)
    assert_close(model(ids, targets, reduction="sum"), losses.sum())
    assert_close(model(ids, targets), losses.sum() / 10)


def test_all_targets_ignored_is_an_error():
    with pytest.raises(ValueError, match="no target counts"):
        small()(tokens(1, 3), torch.full((1, 3), -100))


@pytest.mark.parametrize(
    "kwargs", [{"mask": "causl"}, {"mask": torch.ones(3, 3)}, {"reduction": "men", "targets": torch.ones(1, 3).long()}]
)
def test_invalid_arguments_are_errors(kwargs):
    with pytest.raises(ValueError, match=r"mask|reduction"):
        small()(tokens(1, 3), **kwargs)


def test_too_many_tokens_are_an_error():
    with pytest.raises(ValueError, match="13 tokens exceed the model's context_length 12"):
        small()(tokens(1, 13))


@IMPLEMENTATIONS
def test_dropout_where_gpt2_has_it(implementation):
    model = small(drop_rate=0.5, implementation=implementation)
    ids = tokens(1, 8)
    assert not torch.allclose(model(ids), model(ids))
    model.eval()
    assert_close(model(ids), model(ids))
    # embeddings, two residual branches per block; attention weights drop inside the attention op
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 1 + SMALL["n_layers"]
    model.train()
    model.drop_emb.p = 0.0
    for block in model.trf_blocks:
        block.drop_resid.p = 0.0
    assert not torch.allclose(model(ids), model(ids))  # attention weights alone


def test_gpt2_initialisation():
    model = GPTModel(GPTConfig(512, 64, 256, 4, 8, 0.0, True, True, "gpt2"))
    assert model.tok_emb.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.trf_blocks[3].att.W_key.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for layer in (model.trf_blocks[0].att.out_proj, model.trf_blocks[7].ff.layers[2]):
        assert layer.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)  # sqrt(2 x 8 layers) = 4
        assert not layer.bias.any()
    assert (model.final_norm.scale == 1).all()
    assert not model.trf_blocks[0].att.W_query.bias.any()


def test_lecun_initialisation_preserves_variance():
    model = GPTModel(GPTConfig(512, 64, 256, 4, 8, 0.0, True, True, "lecun"))
    assert model.tok_emb.weight.std().item() == pytest.approx(0.02, rel=0.02)
    x = torch.randn(2000, 256)
    attention, (wide, _, narrow) = model.trf_blocks[3].att, model.trf_blocks[3].ff.layers
    for layer in (attention.W_query, attention.W_key, attention.W_value, wide):
        assert layer(x).var().item() == pytest.approx(1, rel=0.05)
    for layer, given in ((attention.out_proj, x), (narrow, torch.randn(2000, 1024))):
        assert layer(given).var().item() == pytest.approx(1 / 16, rel=0.05)  # 2 x 8 layers write to the stream


def test_a_tied_head_is_the_embedding():
    model = small(tie_embeddings=True)
    assert model.out_head.weight is model.tok_emb.weight
    assert small().out_head.weight is not small().tok_emb.weight


def test_dict_and_config_make_the_same_model():
    torch.manual_seed(1)
    a = GPTModel(SMALL)
    torch.manual_seed(1)
    b = GPTModel(GPTConfig(**SMALL))
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


@IMPLEMENTATIONS
@pytest.mark.parametrize("tie", [True, False])
def test_gradient_of_a_tied_weight(implementation, tie):
    """The sum of the embedding's gradient and the head's, as from two separate copies of the weight."""
    model = small(implementation=implementation, tie_embeddings=tie)
    ids = tokens(2, 8)
    for reduction in ("mean", "sum", "none"):
        model.zero_grad()
        for _ in range(2):  # and added up over two passes
            model(ids[:, :-1], ids[:, 1:], reduction=reduction).sum().backward()
        apart = copy.deepcopy(model)
        apart.out_head.weight = nn.Parameter(model.out_head.weight.detach().clone())
        apart.zero_grad()
        apart(ids[:, :-1], ids[:, 1:], reduction=reduction).sum().backward()
        expected = apart.tok_emb.weight.grad + (apart.out_head.weight.grad if tie else 0)
        assert not model.tok_emb.weight.grad.is_sparse
        assert_close(model.tok_emb.weight.grad, 2 * expected)


def test_gradient_of_hidden_states_is_dense():
    model = small(tie_embeddings=True)
    model(tokens(1, 5))
    model.hidden_states(tokens(1, 5)).sum().backward()
    assert not model.tok_emb.weight.grad.is_sparse


def test_both_implementations_train_alike():
    """Same weights, data and steps, without dropout: the same losses."""
    curves = []
    for implementation in ("reference", "fused"):
        torch.manual_seed(3)
        model = small(implementation=implementation, tie_embeddings=True, init="gpt2")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        ids = tokens(4, 13)
        losses = []
        for _ in range(20):
            loss = model(ids[:, :-1], ids[:, 1:])
            losses.append(loss.item())
            optimizer.zero_grad(), loss.backward(), optimizer.step()
        curves.append(losses)
    # 20 steps of three layers, forward and backward; each step amplifies the rounding of those before it
    assert curves[0] == pytest.approx(curves[1], rel=tolerance(20 * 2 * 3 * 6 * 64, 1000))
    assert curves[0][-1] < curves[0][0] - 0.3


@pytest.mark.slow
@BLOCKS
def test_compiled_model_is_one_graph(monkeypatch, block, fresh_kernels):
    """A branch on data, or a call that it cannot trace, would split the graph."""
    model = GPTModel(GPTConfig(**{**SMALL, **block, "n_layers": 1, "tie_embeddings": True}))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids, gradients = tokens(2, 12), []
    for call in (model, compiled):
        loss = call(ids, ids)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad()
    for eager, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("library", ["pytorch", "onednn"])
def test_both_implementations_train_alike_in_float32(library, monkeypatch, fresh_kernels):
    """The losses of eight steps in float32, with every product by one library."""
    monkeypatch.setenv("GPT_KERNELS", library)
    losses = {}
    batches = torch.randint(700, (8, 4, 33), generator=torch.Generator().manual_seed(1))
    for implementation in ("reference", "fused"):
        torch.manual_seed(0)
        shape = {"vocab_size": 700, "context_length": 32, "emb_dim": 256, "n_heads": 4, "n_layers": 2}
        model = GPTModel(
            GPTConfig(**shape, drop_rate=0.0, qkv_bias=True, tie_embeddings=True, implementation=implementation)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        losses[implementation] = []
        for batch in batches:
            loss = model(batch[:, :-1], batch[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[implementation].append(loss.item())
    assert set(kernels.choices.values()) == {library}
    assert losses["fused"] == pytest.approx(losses["reference"], abs=1e-4)


@BLOCKS
def test_recomputed_blocks_have_the_same_gradients_to_the_bit(block):
    """With dropout: the second forward pass draws the numbers of the first."""
    torch.manual_seed(2)
    model = GPTModel({**SMALL, **block, "drop_rate": 0.3, "tie_embeddings": True})
    ids, calls = tokens(4, 12), []
    model.trf_blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    results = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        torch.manual_seed(5)
        loss = model(ids, ids)
        loss.backward()
        results.append([loss.detach(), torch.rand(3), *(p.grad.clone() for p in model.parameters())])
    assert len(calls) == 3  # once without recomputation, twice with it
    assert all(map(torch.equal, *results))


class PlainGPT(nn.Module):
    """The book's model out of PyTorch's own modules: nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Embedding."""

    def __init__(self, ours):
        super().__init__()
        c = ours.config
        self.n_heads = c.n_heads
        self.tok_emb, self.pos_emb = nn.Embedding(c.vocab_size, c.emb_dim), nn.Embedding(c.context_length, c.emb_dim)
        self.drop = nn.Dropout(c.drop_rate)
        self.blocks = nn.ModuleList()
        for block in ours.trf_blocks:
            parts = {name: nn.Linear(c.emb_dim, c.emb_dim, bias=False) for name in ("W_query", "W_key", "W_value")}
            parts["out_proj"] = nn.Linear(c.emb_dim, c.emb_dim)
            parts["expand"], parts["project"] = nn.Linear(c.emb_dim, 4 * c.emb_dim), nn.Linear(4 * c.emb_dim, c.emb_dim)
            for name in ("W_query", "W_key", "W_value", "out_proj"):
                parts[name].load_state_dict(getattr(block.att, name).state_dict())
            parts["expand"].load_state_dict(block.ff.layers[0].state_dict())
            parts["project"].load_state_dict(block.ff.layers[2].state_dict())
            self.blocks.append(
                nn.ModuleDict({**parts, "norm1": nn.LayerNorm(c.emb_dim), "norm2": nn.LayerNorm(c.emb_dim)})
            )
        self.final_norm = nn.LayerNorm(c.emb_dim)
        self.out_head = nn.Linear(c.emb_dim, c.vocab_size, bias=False)
        for name in ("tok_emb", "pos_emb", "out_head"):
            getattr(self, name).load_state_dict(getattr(ours, name).state_dict())
        self.gelu = nn.GELU(approximate="tanh")

    def attention(self, block, x):
        query, key, value = (
            block[name](x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for name in ("W_query", "W_key", "W_value")
        )
        scores = query @ key.transpose(2, 3)
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        weights = self.drop(torch.softmax(scores / key.shape[-1] ** 0.5, dim=-1))
        return block["out_proj"]((weights @ value).transpose(1, 2).flatten(2))

    def forward(self, ids):
        x = self.drop(self.tok_emb(ids) + self.pos_emb(torch.arange(ids.size(1))))
        for block in self.blocks:
            x = x + self.drop(self.attention(block, block["norm1"](x)))
            x = x + self.drop(block["project"](self.gelu(block["expand"](block["norm2"](x)))))
        return self.out_head(self.final_norm(x))


@IMPLEMENTATIONS
def test_dropout_draws_what_pytorchs_modules_draw(implementation):
    """Ten steps of ours and of PyTorch's modules, same seed, dropout 0.1.

    Both models compute in float64, whose rounding differs between kernels, and agree to the last bit of float32. A
    single other draw would change the third digit. The fused attention drops weights inside
    PyTorch's kernel, which on a CPU draws the same numbers.
    """
    torch.manual_seed(123)
    ours = GPTModel({**SMALL, "qkv_bias": False, "drop_rate": 0.1, "implementation": implementation})
    theirs = PlainGPT(ours)
    batches = torch.randint(SMALL["vocab_size"], (10, 2, 13))
    losses = []
    for loss_of in (
        lambda ids: ours(ids[:, :-1], ids[:, 1:]),
        lambda ids: nn.functional.cross_entropy(theirs(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()),
    ):
        model = (theirs if losses else ours).double().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
        torch.manual_seed(123)
        losses.append([])
        for batch in batches:
            loss = loss_of(batch)
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            losses[-1].append(loss.detach().float())
        losses[-1].append(torch.rand(()))  # and as many numbers as theirs
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))
