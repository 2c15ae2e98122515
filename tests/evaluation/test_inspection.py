"""Looks inside a model against transformers, torch and counting by hand; the model is as before afterwards."""

import copy
import math

import pytest
import torch
from numerics import tolerance

from gpt.config import AdapterConfig, GPTConfig
from gpt.evaluation import inspection
from gpt.exchange.pretrained import load_pretrained
from gpt.model import GPTModel
from gpt.variants import adapt, create_model

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
from small_models import in_float64, randomized, small_family  # noqa: E402  (it needs transformers)

FAMILIES = ["gpt2", "llama", "llama tied", "mistral window", "qwen2 every other", "qwen3"]
TINY = GPTConfig(vocab_size=23, context_length=12, emb_dim=16, n_heads=2, n_layers=3, drop_rate=0.5)
LOOKS = [
    inspection.attention_weights,
    inspection.logit_lens,
    inspection.token_surprises,
    lambda model, ids: inspection.calibration(model, [ids]),
]


def tiny(**changes):
    return create_model(GPTConfig(**{**vars(TINY), **changes})).double()


def ids_of(model, n=12):
    return torch.randint(model.config.vocab_size, (n,))


@pytest.fixture(params=FAMILIES)
def pair(request, tmp_path):
    """A model of transformers, which shows all it computes, and the same model here; both in float64."""
    if request.param == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=97, n_positions=24, n_embd=32, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
        )
        theirs = randomized(transformers.GPT2LMHeadModel(config))
    else:
        theirs = small_family(request.param)
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path).double()
    theirs.set_attn_implementation("eager")
    return ours, in_float64(theirs)


def shown(theirs, ids):
    with torch.no_grad():
        return theirs(ids[None], output_attentions=True, output_hidden_states=True)


def test_attention_is_that_of_transformers(pair):
    ours, theirs = pair
    ids = ids_of(ours, 20)
    weights, expected = inspection.attention_weights(ours, ids), torch.cat(shown(theirs, ids).attentions)
    assert weights.shape == (ours.config.n_layers, 4, 20, 20)
    # transformers' eager softmax computes in float32
    torch.testing.assert_close(weights, expected, rtol=0, atol=tolerance(1000, dtype=torch.float32))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]).double(), rtol=0, atol=tolerance(20))
    assert not weights.triu(1).any()
    assert weights.std(-1).max() > 0.1  # not all alike


def test_the_lens_reads_each_hidden_state_of_transformers(pair):
    ours, theirs = pair
    ids, k = ids_of(ours, 20), 4
    probabilities, likeliest = inspection.logit_lens(ours, ids, k)
    output = shown(theirs, ids)
    *streams, last = output.hidden_states  # the last one is normalized already
    with torch.no_grad():
        norm = theirs.base_model.ln_f if hasattr(theirs.base_model, "ln_f") else theirs.base_model.norm
        logits = [theirs.lm_head(norm(stream)) for stream in streams] + [theirs.lm_head(last)]
    expected = torch.cat(logits).softmax(-1)  # (layers + 1, T, V)
    assert probabilities.shape == likeliest.shape == (ours.config.n_layers + 1, 20, k)
    atol = tolerance(1000, dtype=torch.float32)  # of the softmax in float32
    torch.testing.assert_close(probabilities, expected.topk(k).values, rtol=0, atol=atol)
    torch.testing.assert_close(expected.gather(-1, likeliest), probabilities, rtol=0, atol=atol)
    with torch.no_grad():
        own = ours(ids[None])[0].softmax(-1).topk(k)
    torch.testing.assert_close(probabilities[-1], own.values, rtol=0, atol=tolerance(1000))
    assert torch.equal(likeliest[-1], own.indices)


@pytest.mark.parametrize("backbone", ["gpt", "lstm"])
def test_surprises_are_torchs_cross_entropy_in_bits(backbone):
    model = tiny(backbone=backbone)
    ids = ids_of(model, 13)
    found = inspection.token_surprises(model, ids, k=23)
    with torch.no_grad():
        logits = model.eval()(ids[None, :-1])[0]
    nats = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    torch.testing.assert_close(found.bits * math.log(2), nats, rtol=0, atol=tolerance(1000, logits))
    order = logits.argsort(-1, descending=True)
    assert torch.equal(found.ids, order)
    assert found.ranks.tolist() == [row.tolist().index(i) for row, i in zip(order, ids[1:], strict=True)]
    torch.testing.assert_close(found.probabilities, logits.softmax(-1).gather(-1, order), rtol=0, atol=tolerance(100))
    few = inspection.token_surprises(model, ids.tolist(), k=2)
    assert torch.equal(few.ids, found.ids[:, :2])


def test_calibration_counts_the_right_predictions_of_each_bin():
    model, texts = tiny(vocab_size=3), [torch.randint(3, (n,)) for n in (13, 2, 9)]
    model.out_head.weight.data *= 5
    found = inspection.calibration(model, texts, bins=5)
    bins = [[] for _ in range(5)]
    for text in texts:
        with torch.no_grad():
            p = model.eval()(text[None, :-1])[0].softmax(-1)
        for row, target in zip(p, text[1:], strict=True):
            bins[math.ceil(float(row.max()) * 5) - 1].append((float(row.max()), float(row.argmax() == target)))
    assert found.count.tolist() == [len(rows) for rows in bins]
    assert sum(found.count > 0) >= 2
    error = 0.0
    for rows, confidence, accuracy in zip(bins, found.confidence, found.accuracy, strict=True):
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)] if rows else [math.nan] * 2
        assert (float(confidence), float(accuracy)) == pytest.approx(tuple(means), nan_ok=True)
        error += sum(p - correct for p, correct in rows) * (1 if not rows or means[0] > means[1] else -1) / 21
    assert found.expected_calibration_error == pytest.approx(error)


@pytest.mark.parametrize("adapter", [AdapterConfig("lora", rank=2), AdapterConfig("prefix", length=3)])
def test_adapters_are_seen_or_refused(adapter):
    model = adapt(tiny(qkv_bias=True), adapter).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    ids = ids_of(model)
    if adapter.name == "prefix":
        with pytest.raises(ValueError, match="has a prefix"):
            inspection.attention_weights(model, ids)
    else:
        plain = copy.deepcopy(model)
        for block in plain.trf_blocks:
            block.att.W_query, block.att.W_value = block.att.W_query.merged(), block.att.W_value.merged()
        weights = [inspection.attention_weights(each, ids) for each in (model, plain)]
        torch.testing.assert_close(*weights, rtol=0, atol=tolerance(1000))
    with torch.no_grad():
        logits = model.eval()(ids[None])[0]
    assert torch.equal(inspection.logit_lens(model, ids, 1)[1][-1, :, 0], logits.argmax(-1))


@pytest.mark.parametrize("look", LOOKS)
def test_a_model_is_as_before_also_after_an_error(look, monkeypatch):
    model = tiny().train()
    model.trf_blocks[1].eval()

    def state():
        modules = list(model.modules())
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training, "attend" in vars(m)) for m in modules]
        return hooks, [p.clone() for p in model.parameters()], torch.get_rng_state()

    ids = ids_of(model)
    before = state()
    look(model, ids)
    monkeypatch.setattr(model.trf_blocks[2].ff, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        look(model, ids)
    after = state()
    assert before[0] == after[0]
    assert all(map(torch.equal, before[1], after[1]))
    assert torch.equal(before[2], after[2])


def test_what_cannot_be_looked_at_is_named():
    model, lstm = GPTModel(TINY), create_model(GPTConfig(**{**vars(TINY), "backbone": "lstm"}))
    for look, words in ((inspection.attention_weights, "no attention"), (inspection.logit_lens, "no residual stream")):
        with pytest.raises(ValueError, match=words):
            look(lstm, ids_of(lstm))
    with pytest.raises(ValueError, match=r"outside the model's vocabulary of 23 tokens"):
        inspection.attention_weights(model, [1, 23])
    with pytest.raises(ValueError, match="2 or more whole numbers"):
        inspection.token_surprises(model, [1])
    with pytest.raises(ValueError, match="1 or more whole numbers"):
        inspection.logit_lens(model, torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match="k must be 1 to the vocabulary's 23 tokens, not 24"):
        inspection.logit_lens(model, [1], 24)
    with pytest.raises(ValueError, match="context_length 12"):
        inspection.token_surprises(model, ids_of(model, 14))
    with pytest.raises(ValueError, match="no text"):
        inspection.calibration(model, [])
