"""The LSTM against torch's own modules, and wherever a GPT is expected."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import saved_state
from numerics import tolerance
from torch import nn

from gpt.checkpoint import RunFolder
from gpt.config import GPTConfig, TrainConfig
from gpt.exchange.models import load_model
from gpt.generation import generate, generate_text_simple
from gpt.loss import evaluate
from gpt.model import GPTModel, KVCache
from gpt.objectives.next_token import NextToken
from gpt.objectives.weights import load_weights, named_weights
from gpt.text.tokenizers import get_tokenizer
from gpt.variants import create_model
from gpt.variants.lstm import LSTMModel

LSTM = {
    "vocab_size": 19, "context_length": 10, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.3,
    "backbone": "lstm",
}  # fmt: skip

# At most 35 tokens, each through 3 layers, whose gates are sums of 2 · 16 products
CLOSE = {"rtol": 0, "atol": tolerance(35 * 3 * 32, 4)}


@pytest.fixture
def lstm():
    return create_model(GPTConfig(**LSTM)).double().eval()


class Plain(nn.Module):
    """The same in torch's own modules."""

    def __init__(self, vocab_size=19, width=16, n_layers=2):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, width, n_layers, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, ids):
        return self.head(self.norm(self.lstm(self.embedding(ids))[0]))


def with_random_norm(model):
    """LayerNorm's scale and shift, which begin as 1 and 0, moved away from there."""
    with torch.no_grad():
        model.final_norm.scale.normal_(1, 0.5)
        model.final_norm.shift.normal_(0, 0.5)
    return model


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_logits_losses_and_gradients_equal_pytorch_modules(implementation, n_layers):
    model = create_model(GPTConfig(**{**LSTM, "implementation": implementation, "n_layers": n_layers})).double().eval()
    with_random_norm(model)
    plain = Plain(n_layers=n_layers).double()
    plain.embedding.load_state_dict(model.tok_emb.state_dict())
    plain.lstm.load_state_dict(model.lstm.state_dict())
    plain.norm.load_state_dict({"weight": model.final_norm.scale, "bias": model.final_norm.shift})
    plain.head.load_state_dict(model.out_head.state_dict())
    ids, targets = torch.randint(0, 19, (2, 3, 10))
    truth = plain(ids)
    torch.testing.assert_close(model(ids), truth, **CLOSE)
    losses = F.cross_entropy(truth.flatten(0, 1), targets.flatten(), reduction="none").view(3, 10)
    torch.testing.assert_close(model(ids, targets), losses.mean())
    torch.testing.assert_close(model(ids, targets, reduction="sum"), losses.sum())
    torch.testing.assert_close(model(ids, targets, reduction="none"), losses)
    targets[0, 4:] = -100
    targets[2, :7] = -100
    torch.testing.assert_close(model(ids, targets), losses[targets != -100].mean())
    model(ids, targets).backward()
    F.cross_entropy(plain(ids).flatten(0, 1), targets.flatten()).backward()
    torch.testing.assert_close(model.tok_emb.weight.grad, plain.embedding.weight.grad)
    torch.testing.assert_close(model.lstm.weight_hh_l0.grad, plain.lstm.weight_hh_l0.grad)
    torch.testing.assert_close(model.final_norm.scale.grad, plain.norm.weight.grad)


def test_loss_without_targets_is_an_error(lstm):
    with pytest.raises(ValueError, match="no target"):
        lstm(torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), -100))


def test_lstm_is_causal(lstm):
    ids = torch.randint(0, 19, (2, 10))
    for place in range(10):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % 19
        before, after = lstm(ids), lstm(changed)
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.isclose(before[:, place:], after[:, place:]).all(-1).any()  # but of all before, it does


@pytest.mark.parametrize("cuts", [[1] * 9, [4, 5], [3, 1, 5]], ids=str)
def test_cached_hidden_states_equal_uncached(lstm, cuts):
    ids = torch.randint(0, 19, (3, 9))
    cache = KVCache(2, 9)
    parts = [lstm.hidden_states(part, cache=cache) for part in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), lstm.hidden_states(ids), **CLOSE)
    assert cache.length == 9


def test_lstm_reads_beyond_context_length(lstm):
    """A text of any length is read, with a cache of any size: there are no positions to run out of. `generate` and
    `evaluate` keep to context_length all the same, so that both backbones are measured alike."""
    ids = torch.randint(0, 19, (2, 35))
    cache = KVCache(2, 10)
    parts = [lstm.hidden_states(part, cache=cache) for part in ids.split(7, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), lstm.hidden_states(ids), **CLOSE)
    with pytest.raises(ValueError, match="context"):
        evaluate(lstm, np.arange(19), 11)


def test_evaluation_predicts_each_token_once(lstm):
    tokens = np.random.default_rng(0).integers(0, 19, 34)
    truth = []
    for start in range(0, 33, 10):
        window = torch.tensor(tokens[start : start + 11])
        truth += F.cross_entropy(lstm(window[None, :-1])[0], window[1:], reduction="none").tolist()
    result = evaluate(lstm, tokens, 10, batch_size=3)
    assert (result.n_tokens, len(truth)) == (33, 33)
    assert result.loss == pytest.approx(np.mean(truth), abs=1e-6)


@pytest.mark.parametrize("n_prompt", [4, 17])
@pytest.mark.parametrize("new", [0, 1, 6, 25])
def test_greedy_generation_equals_generate_text_simple(lstm, n_prompt, new, monkeypatch):
    """In tokens and in logits: a tiny model may choose the same token from other logits."""
    seen = []
    monkeypatch.setattr("gpt.generation.sample_token", lambda logits, *args: seen.append(logits) or logits.argmax(-1))
    idx = torch.randint(0, 19, (3, n_prompt))
    truth = generate_text_simple(lstm, idx, new, 10)
    assert torch.equal(generate(lstm, idx, new), truth)
    for step, logits in enumerate(seen):
        end = n_prompt + step
        torch.testing.assert_close(logits, lstm(truth[:, max(0, end - 10) : end])[:, -1], **CLOSE)
    assert len(seen) == new


def test_prompts_of_unequal_length_are_refused(lstm):
    prompts = [torch.randint(0, 19, (n,)) for n in (3, 5)]
    with pytest.raises(ValueError, match="no padded prompts"):
        generate(lstm, prompts, 2, temperature=0)
    equal = [torch.randint(0, 19, (5,)) for _ in range(2)]
    for prompt, text in zip(equal, generate(lstm, equal, 8, temperature=0), strict=True):
        assert torch.equal(text, generate_text_simple(lstm, prompt[None], 8, 10)[0])


def test_unequal_prompts_that_both_fill_the_window_need_no_padding(lstm):
    prompts = [torch.randint(0, 19, (n,)) for n in (12, 17)]
    for prompt, text in zip(prompts, generate(lstm, prompts, 4, temperature=0), strict=True):
        assert torch.equal(text, generate_text_simple(lstm, prompt[None], 4, 10)[0])


@pytest.mark.parametrize(
    "kwargs",
    [{"mask": "full"}, {"mask": torch.ones(4, 4, dtype=torch.bool).tril()}, {"positions": torch.arange(4)}],
    ids=["full", "tensor", "positions"],
)
def test_masks_and_positions_are_refused(lstm, kwargs):
    ids = torch.randint(0, 19, (2, 4))
    for call in (lstm, lstm.hidden_states):
        with pytest.raises(ValueError, match="no mask, no positions"):
            call(ids, **kwargs)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_number_of_parameters(n_layers, tied):
    """Each layer has 4 gates of D·D from the input, D·D from the state, and two biases of D."""
    V, D = 19, 16
    model = create_model(GPTConfig(**{**LSTM, "n_layers": n_layers, "tie_embeddings": tied}))
    layers = n_layers * 4 * (D * D + D * D + D + D)
    assert model.num_parameters() == (1 if tied else 2) * V * D + layers + 2 * D
    assert (model.out_head.weight is model.tok_emb.weight) == tied
    model(*torch.randint(0, V, (2, 3, 10))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(("init", "std"), [("pytorch", 1.0), ("gpt2", 0.02)])
def test_initial_weights(init, std):
    """The layers' own defaults, or N(0, 0.02) for both tables; the recurrence is uniform in ±1/sqrt(D) either way."""
    model = create_model(GPTConfig(**{**LSTM, "vocab_size": 500, "emb_dim": 64, "init": init}))
    assert model.tok_emb.weight.std().item() == pytest.approx(std, rel=0.05)
    head = 0.02 if init == "gpt2" else 1 / math.sqrt(3 * 64)
    assert model.out_head.weight.std().item() == pytest.approx(head, rel=0.05)
    for name, weight in model.lstm.named_parameters():
        assert 0.9 / 8 < weight.abs().max().item() <= 1 / 8, name


@pytest.mark.parametrize("n_layers", [1, 2])
def test_dropout_applies_only_in_training(n_layers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nn.LSTM's, of dropout between the layers where there is one
        model = create_model(GPTConfig(**{**LSTM, "n_layers": n_layers}))
    ids = torch.randint(0, 19, (2, 10))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_create_model_returns_the_named_backbone():
    for backbone, kind in (("gpt", GPTModel), ("lstm", LSTMModel)):
        config = GPTConfig(**{**LSTM, "backbone": backbone})
        model = create_model(config)
        assert type(model) is kind
        assert model.config == config
    with pytest.raises(ValueError, match="backbone must be one of 'gpt', 'lstm', not 'rnn'"):
        GPTConfig(backbone="rnn")


@pytest.mark.parametrize("backbone", ["gpt", "lstm"])
def test_a_model_without_a_vocabulary_is_refused(backbone):
    with pytest.raises(ValueError, match="vocab_size is 0"):
        create_model(GPTConfig(**{**LSTM, "vocab_size": 0, "backbone": backbone}))


def in_one_buffer(model):
    """A model whose LSTM's weights lie one after the other, as cuDNN wants them and nn.LSTM puts them on a GPU."""
    weights = list(model.lstm.parameters())
    buffer = torch.cat([weight.detach().flatten() for weight in weights])
    for weight, part in zip(weights, buffer.split([weight.numel() for weight in weights]), strict=True):
        weight.data = part.view_as(weight)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("place", [lambda model: model, in_one_buffer], ids=["apart", "in one buffer"])
def test_checkpoint_of_an_lstm_loads_unchanged(tmp_path, tied, place):
    tokenizer = get_tokenizer("char", ["abcdefghijklmnopqrs"])
    config = TrainConfig(model=GPTConfig(**{**LSTM, "tie_embeddings": tied}))
    run = RunFolder(tmp_path / "run")
    run.create(config, tokenizer)
    run.metrics.touch()
    run.samples.touch()
    model = place(with_random_norm(create_model(config.model))).eval()
    assert run.config() == config
    run.save(named_weights(NextToken(model)), set(), {"optimizer": {"state": {}}}, saved_state(1, config), True, 2)
    loaded, _, checkpoint = load_model(tmp_path / "run")
    assert type(loaded) is LSTMModel
    assert not loaded.training
    ids = torch.randint(0, 19, (2, 10))
    assert torch.equal(loaded(ids), model(ids))
    assert (loaded.out_head.weight is loaded.tok_emb.weight) == tied
    assert sum(weight.numel() for weight in checkpoint.weights.values()) == model.num_parameters()
    with pytest.raises(ValueError, match="do not fit"):
        load_weights(GPTModel({**LSTM, "backbone": "gpt"}), named_weights(model))
