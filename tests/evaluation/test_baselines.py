"""n-grams against the paper's definition in plain dictionaries and against a source of known entropy, the LSTM against
torch's own modules, the baselines against the grammar of the tales."""

import json
import math
import warnings
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import corpus_of, saved_state
from torch import nn

import gpt.evaluation.baselines
import gpt.objectives.objective
from gpt.checkpoint import RunFolder, load_weights, named_weights
from gpt.config import DataConfig, GPTConfig, TrainConfig
from gpt.evaluation.baselines import compute_baselines, tales_entropy_floor
from gpt.evaluation.ngrams import ngram_log_probabilities
from gpt.exchange.models import load_model
from gpt.generation import generate, generate_text_simple
from gpt.loss import evaluate
from gpt.model import GPTModel, KVCache
from gpt.objectives.next_token import NextToken
from gpt.text import tales
from gpt.text.prepare import prepare_data
from gpt.text.sources import KNOWN, open_corpus
from gpt.text.tokenizers import get_tokenizer
from gpt.variants import create_model
from gpt.variants.lstm import LSTMModel

STORY = list(KNOWN["story"].path.read_bytes())

# --- n-grams ----------------------------------------------------------------------------------------------------------


class KneserNey:
    """Interpolated modified Kneser-Ney as Chen and Goodman 1999 define it, section 3 and equations 24 to 26.

    c(h w) is how often an n-gram of the highest order stands in the text; of a lower order, the number of different
    tokens that stand before it somewhere. Equation 26 says nothing of a count i that no n-gram has: i · Y, the discount
    of plain absolute discounting, i times.
    """

    def __init__(self, train, n, vocab_size):
        self.vocab_size = vocab_size
        self.levels = []  # of contexts of 0, 1, ... n - 1 tokens: context -> token -> c
        self.discounts = []
        for order in range(1, n + 1):
            count = defaultdict(lambda: defaultdict(int))
            if order == n:
                for i in range(len(train) - n + 1):
                    count[tuple(train[i : i + n - 1])][train[i + n - 1]] += 1
            else:
                for gram in {tuple(train[i : i + order + 1]) for i in range(len(train) - order)}:
                    count[gram[1:-1]][gram[-1]] += 1
            having = defaultdict(int)  # i -> number of n-grams with c = i
            for followers in count.values():
                for c in followers.values():
                    having[c] += 1
            y = having[1] / (having[1] + 2 * having[2])
            discounts = [i - (i + 1) * y * having[i + 1] / having[i] if having[i] else i * y for i in (1, 2, 3)]
            assert all(0 < d <= i for i, d in enumerate(discounts, start=1)), "a text that the paper's formula suits"
            self.levels.append(count)
            self.discounts.append([0, *discounts])

    def probability(self, token, context):
        """p(token | context), where the context has at most n - 1 tokens."""
        lower = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        followers = self.levels[len(context)].get(tuple(context))
        if followers is None:
            return lower
        discounts = self.discounts[len(context)]
        total = sum(followers.values())
        freed = sum(discounts[i] * sum(min(c, 3) == i for c in followers.values()) for i in (1, 2, 3))
        count = followers.get(token, 0)
        return (count - discounts[min(count, 3)] + freed * lower) / total


def zipf_text(n_words, vocab_size, seed):
    """Random words of one to four tokens; as in a language some words and tokens are frequent, and some occur once. The
    first words stand at the end once more."""
    draw = np.random.default_rng(seed)

    def zipf(n_options, n):
        p = 1 / np.arange(1, n_options + 1)
        return draw.choice(n_options, n, p=p / p.sum()).tolist()

    words = [zipf(vocab_size, draw.integers(1, 5)) for _ in range(2 * vocab_size)]
    chosen = zipf(len(words), n_words)
    return [token for word in [*chosen, *chosen[:4]] for token in words[word]]


def distance_from_the_definition(train, text, n, vocab_size):
    """The largest difference in ln p, of tokens with a whole context; the first n - 2 after the first one have a
    shorter one, see below."""
    model = KneserNey(train, n, vocab_size)
    places = range(max(1, n - 1), len(text))
    truth = [math.log(model.probability(text[i], text[i - n + 1 : i])) for i in places]
    found = ngram_log_probabilities(np.array(train), np.array(text), n, vocab_size)
    assert found.shape == (len(text) - 1,)
    return np.abs(found[places[0] - 1 :] - truth).max()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ngrams_of_random_text_follow_the_definition(n, seed):
    """On contexts that the training text has, and on contexts and tokens that it has not."""
    train = zipf_text(1000, 200, seed)
    text = [*train[500:800], *zipf_text(200, 220, seed + 10)]
    assert distance_from_the_definition(train, text, n, 220) < 1e-10


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ngrams_of_a_story_follow_the_definition(n):
    assert distance_from_the_definition(STORY[:20_000], STORY[40_000:41_000], n, 256) < 1e-10


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ngrams_of_a_large_vocabulary_do_not_overflow(n):
    """50257^4 is two thirds of the largest int64; the ids here are the vocabulary's last."""
    train = [50256 - token for token in zipf_text(1000, 200, 3)]
    text = [*train[500:800], *(50256 - token for token in zipf_text(200, 220, 4))]
    assert distance_from_the_definition(train, text, n, 50257) < 1e-10
    found = ngram_log_probabilities(np.array(train, np.uint16), np.array(text, np.uint16), n, 50257)
    assert np.array_equal(found, ngram_log_probabilities(train, text, n, 50257))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_first_tokens_are_predicted_from_the_few_before_them(n):
    """Token i has a context of i tokens while i < n - 1: nothing is made up before the text, such as more of its first
    token, which this training text is full of."""
    train = [*zipf_text(1000, 200, 0), *[0] * 20, *zipf_text(100, 200, 1)]
    text = [0, 0, 1, 0, 2]
    model = KneserNey(train, n, 200)
    truth = [math.log(model.probability(text[i], text[max(0, i - n + 1) : i])) for i in range(1, len(text))]
    np.testing.assert_allclose(ngram_log_probabilities(train, text, n, 200), truth, rtol=0, atol=1e-10)
    for length in range(2, 5):  # shorter than the context, too
        found = ngram_log_probabilities(train, text[:length], n, 200)
        np.testing.assert_allclose(found, truth[: length - 1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_beginning_of_the_training_text_counts_as_any_other_place(n):
    """201 stands before 202 once, at the very beginning: there is one token that 202 follows."""
    train, text = [201, 202, 203, *zipf_text(1000, 200, 5)], [5, 202, 203, 202, 6, 7, 201, 202, 203]
    assert distance_from_the_definition(train, text, n, 204) < 1e-10


def discounts(counts):
    """D(c) of each count c among those of a unigram model, from probabilities alone:
    p(w) - p(a new token) = (c(w) - D(c(w))) / N."""
    train = np.repeat(np.arange(len(counts)), counts)
    new = len(counts)
    p = np.exp(ngram_log_probabilities(train, [0, *range(new + 1)], 1, new + 1))
    return {c: c - len(train) * (p[token] - p[new]) for token, c in enumerate(counts)}


def test_discounts_by_hand():
    """Counts of counts 4, 3, 2, 1: Y = 4 / (4 + 2·3) = 0.4, and D1 = 1 - 2Y·3/4, D2 = 2 - 3Y·2/3, D3 = 3 - 4Y·1/2."""
    found = discounts([1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 9])
    assert found == pytest.approx({1: 0.4, 2: 1.2, 3: 2.2, 4: 2.2, 9: 2.2}, abs=1e-12)


@pytest.mark.parametrize(
    "counts",
    [[100], [1], [1, 1, 1, 1], [2, 2], [3, 3, 3], [4, 4, 4, 4], [50, 50], [1, 2, 2, 2, 3, 3, 3, 3], [2, 3, 3, 3, 3],
     [1, 2, 3, 4, 4, 4, 4, 4, 4, 4], [1, 5, 9]],
    ids=str,
)  # fmt: skip
def test_degenerate_counts_have_discounts_all_the_same(counts):
    """Above 0, or new tokens would have no probability; at most the count, or old ones would have less than none."""
    for count, discount in discounts(counts).items():
        assert 0 < discount <= min(count, 3) + 1e-12


TEXTS = {
    "zipf": zipf_text(300, 7, 0),
    "one token repeated": [3] * 50,
    "two in turn": [0, 1] * 25,
    "every n-gram once": [0, 1, 2, 3, 4, 5, 6],
    "no rare token": [0, 1, 2, 3, 4, 5, 6] * 8,
    "two tokens": [0, 1],
}


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("train", TEXTS.values(), ids=TEXTS)
def test_probabilities_are_positive_and_sum_to_1(train, n):
    """In each context of n - 1 tokens out of 9, of which 7 and 8 are in no training text."""
    contexts = np.stack(np.meshgrid(*[range(9)] * (n - 1), indexing="ij"), -1).reshape(-1, n - 1) if n > 1 else [[]]
    ends = [[*context, token] for context in contexts for token in range(9)]
    text = np.array([0, *np.concatenate(ends)]).astype(int)
    p = np.exp(ngram_log_probabilities(np.array(train), text, n, 9))[n - 1 :: n].reshape(-1, 9)
    assert len(p) == 9 ** (n - 1)
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)


@pytest.fixture(scope="module")
def chain():
    """A second-order Markov chain over 5 tokens, p(next | before, last), and what it wrote."""
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.full(5, 0.4), (5, 5))
    ends, uniform = p.cumsum(-1), draw.random(60_000)
    text = [0, 1]
    for u in uniform:
        text.append(min(4, int(np.searchsorted(ends[text[-2], text[-1]], u))))
    return p, np.array(text)


def test_ngrams_reach_the_exact_entropies_of_a_markov_chain(chain):
    """Of H(X), H(X | 1 before) and H(X | 2 before), from the stationary distribution of pairs, each order sees one."""
    p, text = chain
    pairs = np.full((5, 5), 1 / 25)
    for _ in range(2000):
        pairs = np.einsum("ab,abc->bc", pairs, p)
    np.testing.assert_allclose(pairs, np.einsum("ab,abc->bc", pairs, p), atol=1e-12)
    joint = pairs[:, :, None] * p
    last_two = joint.sum(0)

    def entropy(q):
        return -(q[q > 0] * np.log(q[q > 0])).sum()

    truth = [entropy(pairs.sum(0)), entropy(last_two) - entropy(last_two.sum(1)), entropy(joint) - entropy(pairs)]
    assert truth[0] > 1.05 * truth[1] > 1.05 * 1.05 * truth[2]  # the chain has structure of both orders
    train, val = text[:45_000], text[45_000:]
    losses = [-ngram_log_probabilities(train, val, n, 5).mean() for n in (1, 2, 3)]
    assert losses == pytest.approx(truth, rel=0.02)
    assert losses[1] > 1.1 * truth[2]
    # Two tokens are all that the chain remembers: a longer context is no help, and the back-off keeps it from harm
    assert -ngram_log_probabilities(train, val, 4, 5).mean() == pytest.approx(truth[2], rel=0.02)


def test_longer_contexts_help_in_a_story():
    losses = [-ngram_log_probabilities(STORY[:45_000], STORY[45_000:], n, 256).mean() for n in (1, 2, 3)]
    assert math.log(256) > losses[0] > losses[1] + 0.3 > losses[2] + 0.6


# --- an LSTM ----------------------------------------------------------------------------------------------------------

LSTM = {
    "vocab_size": 19, "context_length": 10, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.3,
    "backbone": "lstm",
}  # fmt: skip


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
def test_logits_and_losses_are_those_of_torchs_modules(implementation, n_layers):
    model = create_model(GPTConfig(**{**LSTM, "implementation": implementation, "n_layers": n_layers})).double().eval()
    with_random_norm(model)
    plain = Plain(n_layers=n_layers).double()
    plain.embedding.load_state_dict(model.tok_emb.state_dict())
    plain.lstm.load_state_dict(model.lstm.state_dict())
    plain.norm.load_state_dict({"weight": model.final_norm.scale, "bias": model.final_norm.shift})
    plain.head.load_state_dict(model.out_head.state_dict())
    ids, targets = torch.randint(0, 19, (2, 3, 10))
    truth = plain(ids)
    torch.testing.assert_close(model(ids), truth, rtol=0, atol=1e-12)
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


def test_a_loss_of_the_lstm_over_no_target_is_an_error(lstm):
    with pytest.raises(ValueError, match="no target"):
        lstm(torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), -100))


def test_the_lstm_sees_nothing_of_what_comes_later(lstm):
    ids = torch.randint(0, 19, (2, 10))
    for place in range(10):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % 19
        before, after = lstm(ids), lstm(changed)
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.isclose(before[:, place:], after[:, place:]).all(-1).any()  # but of all before, it does


@pytest.mark.parametrize("cuts", [[1] * 9, [4, 5], [3, 1, 5]], ids=str)
def test_cached_hidden_states_are_the_uncached_ones(lstm, cuts):
    ids = torch.randint(0, 19, (3, 9))
    cache = KVCache(2, 9)
    parts = [lstm.hidden_states(part, cache=cache) for part in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), lstm.hidden_states(ids), rtol=0, atol=1e-12)
    assert cache.length == 9


def test_context_length_is_no_limit_of_the_recurrence(lstm):
    """A text of any length is read, with a cache of any size: there are no positions to run out of. `generate` and
    `evaluate` keep to context_length all the same, so that both backbones are measured alike."""
    ids = torch.randint(0, 19, (2, 35))
    cache = KVCache(2, 10)
    parts = [lstm.hidden_states(part, cache=cache) for part in ids.split(7, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), lstm.hidden_states(ids), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="context"):
        evaluate(lstm, np.arange(19), 11)


def test_evaluation_of_the_lstm_predicts_each_token_once(lstm):
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
def test_greedy_generation_of_the_lstm_equals_the_oracle(lstm, n_prompt, new, monkeypatch):
    """In tokens and in logits: a tiny model may choose the same token from other logits."""
    seen = []
    monkeypatch.setattr("gpt.generation.sample_token", lambda logits, *args: seen.append(logits) or logits.argmax(-1))
    idx = torch.randint(0, 19, (3, n_prompt))
    truth = generate_text_simple(lstm, idx, new, 10)
    assert torch.equal(generate(lstm, idx, new), truth)
    for step, logits in enumerate(seen):
        end = n_prompt + step
        torch.testing.assert_close(logits, lstm(truth[:, max(0, end - 10) : end])[:, -1], rtol=0, atol=1e-12)
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
def test_masks_and_positions_mean_nothing_to_the_lstm(lstm, kwargs):
    ids = torch.randint(0, 19, (2, 4))
    for call in (lstm, lstm.hidden_states):
        with pytest.raises(ValueError, match="no mask, no positions"):
            call(ids, **kwargs)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_of_the_lstm_by_formula(n_layers, tied):
    """Each layer has 4 gates of D·D from the input, D·D from the state, and two biases of D."""
    V, D = 19, 16
    model = create_model(GPTConfig(**{**LSTM, "n_layers": n_layers, "tie_embeddings": tied}))
    layers = n_layers * 4 * (D * D + D * D + D + D)
    assert model.num_parameters() == (1 if tied else 2) * V * D + layers + 2 * D
    assert (model.out_head.weight is model.tok_emb.weight) == tied
    model(*torch.randint(0, V, (2, 3, 10))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(("init", "std"), [("pytorch", 1.0), ("gpt2", 0.02)])
def test_initial_weights_of_the_lstm(init, std):
    """The layers' own defaults, or N(0, 0.02) for both tables; the recurrence is uniform in ±1/sqrt(D) either way."""
    model = create_model(GPTConfig(**{**LSTM, "vocab_size": 500, "emb_dim": 64, "init": init}))
    assert model.tok_emb.weight.std().item() == pytest.approx(std, rel=0.05)
    head = 0.02 if init == "gpt2" else 1 / math.sqrt(3 * 64)
    assert model.out_head.weight.std().item() == pytest.approx(head, rel=0.05)
    for name, weight in model.lstm.named_parameters():
        assert 0.9 / 8 < weight.abs().max().item() <= 1 / 8, name


@pytest.mark.parametrize("n_layers", [1, 2])
def test_dropout_of_the_lstm_is_for_training_only(n_layers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nn.LSTM's, of dropout between the layers where there is one
        model = create_model(GPTConfig(**{**LSTM, "n_layers": n_layers}))
    ids = torch.randint(0, 19, (2, 10))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_create_model_makes_the_backbone_that_is_named():
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
def test_a_checkpoint_of_the_lstm_is_loaded_as_it_was_saved(tmp_path, tied, place):
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


# --- baselines --------------------------------------------------------------------------------------------------------

TOKENIZERS = ["char", "bpe:512", "gpt2"]
N_VAL = 30  # a tenth of the tales


@pytest.fixture(scope="module")
def tale_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tales")
    return {name: prepare_data(open_corpus("tales:300"), name, folder / name.replace(":", "-")) for name in TOKENIZERS}


def next_token_baselines(data):
    """The baselines of next-token prediction, document by document."""
    return compute_baselines(NextToken(nn.Identity()), TrainConfig(data=DataConfig(packing="document")), data)


@pytest.fixture(scope="module")
def tale_baselines(tale_data):
    return {name: next_token_baselines(data) for name, data in tale_data.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_baselines_are_the_losses_of_a_guess_and_of_ngrams(tale_data, tale_baselines, name):
    data, found = tale_data[name], tale_baselines[name]
    vocab_size = data.tokenizer.vocab_size
    losses = [math.log(vocab_size)]
    losses += [-ngram_log_probabilities(data.train.tokens[1:], data.val.tokens, 1, vocab_size).mean()]
    losses += [-ngram_log_probabilities(data.train.tokens, data.val.tokens, n, vocab_size).mean() for n in (2, 3)]
    assert list(found.losses) == ["uniform", "unigram", "bigram", "trigram"]
    assert list(found.losses.values()) == pytest.approx(losses, rel=1e-12)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > found.entropy_floor_loss


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_floor_is_the_tales_own_probability(tale_data, tale_baselines, name):
    data, found = tale_data[name], tale_baselines[name]
    truth = [-tales.log_probability(tale) for tale in tales.generate(300)[-N_VAL:]]
    assert found.entropy_floor.tolist() == truth
    assert found.n_tokens == len(data.val.tokens) - 1
    assert found.entropy_floor_loss == pytest.approx(sum(truth) / (len(data.val.tokens) - 1), rel=1e-12)


class Guess(nn.Module):
    """A model to which all tokens are equally likely."""

    def __init__(self, vocab_size):
        super().__init__()
        self.config = GPTConfig(vocab_size)

    def forward(self, inputs, targets, reduction):
        return torch.where(targets == -100, 0.0, math.log(self.config.vocab_size))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_baselines_count_the_tokens_that_an_evaluation_does(tale_data, tale_baselines, name):
    """Every document's tokens and the end-of-text token after it; and stretch i of an evaluation is floor[i]'s."""
    data, found = tale_data[name], tale_baselines[name]
    guess = Guess(data.tokenizer.vocab_size)
    result = evaluate(guess, data.val.tokens, 400, eot_id=data.tokenizer.eot_id)
    assert result.n_tokens == found.n_tokens
    assert result.segments.tolist() == list(range(N_VAL))
    assert result.loss == pytest.approx(found.losses["uniform"], rel=1e-6)
    assert result.excess_over_floor(found.entropy_floor).loss == pytest.approx(
        result.loss - found.entropy_floor_loss, abs=1e-9
    )


def test_the_floor_in_bits_per_byte_does_not_depend_on_the_tokenizer(tale_data, tale_baselines):
    bits = [
        found.entropy_floor_loss * found.n_tokens / tale_data[name].val.bytes / math.log(2)
        for name, found in tale_baselines.items()
    ]
    n_bytes = sum(len(tale.encode()) for tale in tales.generate(300)[-N_VAL:])
    assert bits == pytest.approx([tale_baselines["char"].entropy_floor.sum() / n_bytes / math.log(2)] * 3, rel=1e-12)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_entropy_is_that_of_a_tale_over_these_tales_length(tale_baselines, name):
    found = tale_baselines[name]
    assert found.entropy * found.n_tokens / N_VAL == pytest.approx(tales.entropy(), rel=1e-12)
    error = found.entropy_floor.std(ddof=1) / N_VAL**0.5  # of a tale's mean -ln p, whose expectation is the entropy
    assert abs(found.entropy_floor.mean() - tales.entropy()) < 4 * error


def test_the_gap_is_open_at_the_trigram_and_closed_at_the_floor(tale_baselines):
    for found in tale_baselines.values():
        gap = found.losses["trigram"] - found.entropy_floor_loss
        assert found.gap_closed(gap) == 0
        assert found.gap_closed(0) == 1
        assert found.gap_closed(gap * 3 / 4) == pytest.approx(0.25)
        assert found.gap_closed(found.losses["bigram"] - found.entropy_floor_loss) < 0


def test_tales_of_another_grammar_are_refused(tmp_path, monkeypatch):
    data = prepare_data(open_corpus("tales:20"), "char", tmp_path / "data", 0.2)
    assert len(tales_entropy_floor(data)) == 4
    monkeypatch.setattr(tales, "fingerprint", lambda: "00000000")
    with pytest.raises(ValueError, match="tales of another grammar than that of"):
        tales_entropy_floor(data)


def test_other_text_has_no_floor(prepared, tmp_path):
    """Neither one long text nor documents; its baselines it has."""
    documents = prepare_data(
        corpus_of(tmp_path / "in", *(f"document {n}" for n in range(12))), "char", tmp_path / "out"
    )
    assert documents.has_eot
    for data in (prepared, documents):
        found = next_token_baselines(data)
        assert found.entropy_floor is None
        assert list(found.losses) == ["uniform", "unigram", "bigram", "trigram"]
        assert np.isfinite(list(found.losses.values())).all()
        assert found.n_tokens == len(data.val.tokens) - 1


@pytest.mark.parametrize(("place", "has_floor"), [(0, True), (17, True), (18, False), (19, False)])
def test_one_validation_document_that_is_no_tale_leaves_no_floor(tmp_path, place, has_floor):
    """Of 20 documents the last two validate."""
    texts = tales.generate(20)
    texts[place] = texts[place].replace("Once", "Twice").replace("Long ago", "Today")
    assert tales.log_probability(texts[place]) == -math.inf
    found = next_token_baselines(prepare_data(corpus_of(tmp_path / "in", *texts), "char", tmp_path / "out"))
    assert (found.entropy_floor is not None) == has_floor


def test_a_character_of_the_validation_split_alone_has_a_loss(tmp_path):
    """A char tokenizer knows it, from both splits; no character of the training split is as rare."""
    data = prepare_data(corpus_of(tmp_path / "in", *["abcd" * 5] * 11, "abzd"), "char", tmp_path / "out")
    assert np.isfinite(list(next_token_baselines(data).losses.values())).all()


def test_saved_results_are_shown_for_their_own_data_only(tale_data, tmp_path, monkeypatch):
    char, bpe = tale_data["char"], tale_data["bpe:512"]
    results = [
        {"name": "LSTM", "data": char.checksums, "val_loss": 0.5},
        {"name": "another's", "data": bpe.checksums, "val_loss": 0.6},
        {"name": "half another's", "data": {**char.checksums, "val": bpe.val.sha256}, "val_loss": 0.7},
        {"name": "half its own", "data": {**bpe.checksums, "val": char.val.sha256}, "val_loss": 0.8},
    ]
    monkeypatch.setattr(gpt.evaluation.baselines, "RESULTS", tmp_path / "baselines.json")
    gpt.evaluation.baselines.RESULTS.write_text(json.dumps(results))
    found = next_token_baselines(char).losses
    assert list(found) == ["uniform", "unigram", "bigram", "trigram", "LSTM"]
    assert found["LSTM"] == 0.5
    assert list(next_token_baselines(bpe).losses)[4:] == ["another's"]
    assert list(next_token_baselines(tale_data["gpt2"]).losses)[4:] == []


def test_the_results_that_ship_with_the_project_are_whole():
    for result in json.loads(gpt.evaluation.baselines.RESULTS.read_text(encoding="utf-8")):
        assert isinstance(result["name"], str)
        assert 0 < result["val_loss"] < 20
        assert set(result["data"]) == {"train", "val"}
        assert all(len(bytes.fromhex(digest)) == 32 for digest in result["data"].values())


def test_of_larger_splits_the_first_tokens_count(tale_data, tale_baselines, monkeypatch):
    data = tale_data["bpe:512"]
    for module in (gpt.evaluation.baselines, gpt.objectives.objective):
        monkeypatch.setattr(module, "MAX_TOKENS", 2000)
    found = next_token_baselines(data)
    for n, name in ((1, "unigram"), (2, "bigram")):
        loss = -ngram_log_probabilities(data.train.tokens[2 - n : 2000], data.val.tokens[:2000], n, 512).mean()
        assert found.losses[name] == pytest.approx(loss, rel=1e-12)
    assert found.n_tokens == len(data.val.tokens) - 1
    assert found.entropy_floor.tolist() == tale_baselines["bpe:512"].entropy_floor.tolist()
