"""Generation against the greedy reference, against each row by itself, and against the probabilities it samples."""

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, MODERN_BLOCK, WINDOWED_BLOCK
from numerics import tolerance

from gpt.generation import (
    Sampling,
    generate,
    generate_stream,
    generate_text_simple,
    process_logits,
    sample_token,
    seen_tokens,
    text_to_token_ids,
    token_ids_to_text,
)
from gpt.model import GPTModel
from gpt.ops import reference
from gpt.text.tokenizers import get_tokenizer

CONFIG = {
    "vocab_size": 19, "context_length": 10, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.3,
}  # fmt: skip


# Relative. Two blocks of a dozen sums of at most 64 terms; norm and softmax amplify tenfold.
ROUNDING = tolerance(64 * 24, 10)


@pytest.fixture
def model():
    torch.manual_seed(5)
    return GPTModel(CONFIG).double().eval()


@pytest.mark.parametrize("implementation", ["reference", "fused"])
@BLOCKS
@pytest.mark.parametrize("new", [0, 1, 6, 25])
def test_greedy_equals_the_reference(implementation, block, new):
    """With the cache up to 10 tokens, the context length, and without it beyond (rotary positions: the next test)."""
    model = GPTModel({**CONFIG, "n_heads": 4, **block, "implementation": implementation}).double().eval()
    idx = torch.randint(0, 19, (3, 4))
    new = new if model.config.position == "learned" else min(new, 6)
    assert torch.equal(generate(model, idx, new, temperature=0), generate_text_simple(model, idx, new, 10))


def logits_without_a_cache(model, ids, n_sinks):
    """The logits (T, V) of a text of any length, each token attending to those that the cache would hold.

    The cache holds 10 tokens; when it is full it drops 2 after the first n_sinks, which keep their distance to those
    before which they are dropped.
    """
    held, dropped, visible, shift = [], 0, torch.zeros(len(ids), len(ids), dtype=torch.bool), []
    for t in range(len(ids)):
        if len(held) == 10:
            held, dropped = held[:n_sinks] + held[n_sinks + 2 :], dropped + 2
        held.append(t)
        visible[t, held] = True
        shift.append(dropped)
    positions, shift = torch.arange(len(ids)), torch.tensor(shift)
    is_sink = (shift[:, None] > 0) & (positions < n_sinks)  # (T, S)
    distance = positions[:, None] - positions - shift[:, None] * is_sink
    near, far = model.pos_emb.rotation(positions), model.pos_emb.rotation(positions - shift)
    x = model.tok_emb(ids)[None]
    for block in model.trf_blocks:
        att, h = block.att, block.norm1(x)
        query, key, value = (att.split_heads(w(h)) for w in (att.W_query, att.W_key, att.W_value))
        query, key = att.q_norm(query), reference.rotate(att.k_norm(key), *near)
        key, value = (y.repeat_interleave(query.size(1) // key.size(1), dim=1) for y in (key, value))
        scores, to_sinks = (reference.rotate(query, *tables) @ key.mT / query.size(-1) ** 0.5 for tables in (near, far))
        allowed = visible & (distance < (att.window or 10))
        weights = torch.where(is_sink, to_sinks, scores).masked_fill(~allowed, -torch.inf).softmax(-1)
        x = x + att.out_proj((weights @ value).transpose(1, 2).flatten(-2))
        x = x + block.ff(block.norm2(x))
    return model.out_head(model.final_norm(x))[0]


@pytest.mark.parametrize("implementation", ["reference", "fused"])
@pytest.mark.parametrize(
    ("block", "n_sinks"), [(MODERN_BLOCK, 4), (WINDOWED_BLOCK, 4), ({**WINDOWED_BLOCK, "full_every": 0}, 0)]
)
@pytest.mark.parametrize("lengths", [(4,), (1, 7, 10, 4), (13, 2)])
def test_beyond_the_context_a_cache_drops_old_tokens(implementation, block, n_sinks, lengths, monkeypatch):
    """40 tokens in a context of 10, each row against itself alone, read again as a whole without a cache."""
    model = GPTModel({**CONFIG, "n_heads": 4, **block, "implementation": implementation, "init": "lecun"}).double()
    model.eval()
    seen = []
    monkeypatch.setattr("gpt.generation.sample_token", lambda logits, *args: seen.append(logits) or logits.argmax(-1))
    prompts = [torch.randint(0, 19, (n,)) for n in lengths]
    for row, (prompt, text) in enumerate(zip(prompts, generate(model, prompts, 40, temperature=0), strict=True)):
        start = max(0, len(prompt) - 10)
        alone = logits_without_a_cache(model, text[start:-1], n_sinks)[len(prompt) - 1 - start :]
        assert torch.equal(text[len(prompt) :], alone.argmax(-1))
        ours = torch.stack([logits[row] for logits in seen])
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5 * alone.abs().max().item())  # float32 angles


def test_a_prompt_longer_than_the_window_is_cropped(model):
    idx = torch.randint(0, 19, (2, 17))
    assert torch.equal(generate(model, idx, 5, temperature=0), generate_text_simple(model, idx, 5, 10))


@pytest.mark.parametrize("new", [3, 20])
def test_prompts_of_unequal_length_continue_as_each_by_itself(model, new, monkeypatch):
    """Tokens and logits: a tiny model may choose the same token for different logits."""
    seen = []
    monkeypatch.setattr("gpt.generation.sample_token", lambda logits, *args: seen.append(logits) or logits.argmax(-1))
    prompts = [torch.randint(0, 19, (n,)) for n in (1, 7, 4, 13)]
    together = generate(model, prompts, new, temperature=0)
    for row, (prompt, text) in enumerate(zip(prompts, together, strict=True)):
        assert torch.equal(text, generate_text_simple(model, prompt[None], new, 10)[0])
        for step, logits in enumerate(seen):
            alone = model(text[None, : len(prompt) + step][:, -10:])[0, -1]
            torch.testing.assert_close(logits[row], alone, rtol=0, atol=ROUNDING * alone.abs().max().item())


@pytest.mark.parametrize("library", ["pytorch", "onednn", "mv"])
@pytest.mark.parametrize("lengths", [(5,), (6, 1, 3)])
def test_float32_logits_are_those_of_the_reference(lengths, library, monkeypatch, fresh_kernels):
    """Within 1e-4 of float64's for each row by itself, with the cache and beyond the window."""
    monkeypatch.setenv("GPT_KERNELS", library)
    torch.manual_seed(5)
    model = GPTModel({**CONFIG, "qkv_bias": True}).eval()
    exact = GPTModel({**CONFIG, "qkv_bias": True}).double().eval()
    exact.load_state_dict(model.state_dict())
    seen = []
    monkeypatch.setattr("gpt.generation.sample_token", lambda logits, *args: seen.append(logits) or logits.argmax(-1))
    prompts = [torch.randint(0, 19, (n,)) for n in lengths]
    texts = generate(model, prompts, 12, temperature=0)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        for step, logits in enumerate(seen):
            alone = exact(text[None, : len(prompt) + step][:, -10:])[0, -1]
            torch.testing.assert_close(logits[row].double(), alone, rtol=0, atol=1e-4)


def test_greedy_equals_hugging_faces_gpt2():
    """Its own cache and its own padding on the left, with the same weights in float64."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    model = GPTModel({**CONFIG, "qkv_bias": True, "tie_embeddings": True}).double().eval()
    config = transformers.GPT2Config(vocab_size=19, n_positions=10, n_embd=16, n_head=2, n_layer=2)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        theirs.transformer.wte.weight.copy_(model.tok_emb.weight)
        theirs.transformer.wpe.weight.copy_(model.pos_emb.weight)
        theirs.transformer.ln_f.weight.copy_(model.final_norm.scale)
        theirs.transformer.ln_f.bias.copy_(model.final_norm.shift)
        for block, other in zip(model.trf_blocks, theirs.transformer.h, strict=True):
            qkv = [block.att.W_query, block.att.W_key, block.att.W_value]
            other.attn.c_attn.weight.copy_(torch.cat([layer.weight for layer in qkv]).T)
            other.attn.c_attn.bias.copy_(torch.cat([layer.bias for layer in qkv]))
            pairs = [(block.att.out_proj, other.attn.c_proj), (block.ff.layers[0], other.mlp.c_fc),
                     (block.ff.layers[2], other.mlp.c_proj)]  # fmt: skip
            for layer, conv in pairs:
                conv.weight.copy_(layer.weight.T)
                conv.bias.copy_(layer.bias)
            for norm, layer_norm in ((block.norm1, other.ln_1), (block.norm2, other.ln_2)):
                layer_norm.weight.copy_(norm.scale)
                layer_norm.bias.copy_(norm.shift)
    prompts = [torch.randint(0, 19, (n,)) for n in (1, 4, 3)]
    padded = torch.stack([F.pad(ids, (4 - len(ids), 0)) for ids in prompts])
    mask = torch.stack([F.pad(torch.ones_like(ids), (4 - len(ids), 0)) for ids in prompts])
    written = theirs.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0,
                              eos_token_id=None)  # fmt: skip
    for prompt, text, other in zip(prompts, generate(model, prompts, 6, temperature=0), written, strict=True):
        assert text.tolist() == [*prompt.tolist(), *other[4:].tolist()]


def test_the_mode_before_is_restored_module_by_module(model):
    model.train()
    model.trf_blocks[1].eval()
    before = [m.training for m in model.modules()]
    first = generate(model, torch.zeros(1, 1, dtype=torch.long), 5, temperature=0)
    assert [m.training for m in model.modules()] == before
    assert torch.equal(first, generate(model.eval(), torch.zeros(1, 1, dtype=torch.long), 5, temperature=0))


def test_an_unfinished_stream_restores_the_mode_too(model):
    model.train()
    tokens = generate_stream(model, torch.zeros(1, 1, dtype=torch.long), 5)
    next(tokens)
    tokens.close()
    assert model.training


def test_a_generator_makes_samples_repeatable_and_leaves_the_global_state_alone(model):
    idx = torch.zeros(2, 1, dtype=torch.long)
    state = torch.get_rng_state()
    a, b = (generate(model, idx, 20, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    other = generate(model, idx, 20, generator=torch.Generator().manual_seed(4))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    assert torch.equal(torch.get_rng_state(), state)


LOGITS = torch.tensor([[0.5, 2.0, -1.0, 1.0, 0.0], [3.0, 3.0, 3.0, -9.0, 0.0]])


def sampled_shares(logits, n=40_000, **kwargs):
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([sample_token(row.expand(n, -1), Sampling(**kwargs), generator=generator) for row in logits])
    return torch.stack([torch.bincount(d, minlength=logits.size(1)) / n for d in draws])


def expected(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution to sample from, by sorting and looping."""
    rows = []
    for row in logits.tolist():
        weights = torch.softmax(torch.tensor(row) / temperature, 0).tolist()
        order = sorted(range(len(row)), key=lambda i: -weights[i])
        if top_k:
            smallest = weights[order[min(top_k, len(row)) - 1]]
            order = [i for i in order if weights[i] >= smallest]  # equal ones stay together
            total = sum(weights[i] for i in order)
            weights = [w / total if i in order else 0.0 for i, w in enumerate(weights)]
        if top_p:
            kept, mass = [], 0.0
            for i in order:
                if mass >= top_p:
                    break
                kept.append(i)
                mass += weights[i]
            weights = [w if i in kept else 0.0 for i, w in enumerate(weights)]
        rows.append(torch.tensor(weights) / sum(weights))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 1}, {"top_k": 2}, {"top_k": 99}, {"top_p": 0.5},
     {"top_p": 0.9}, {"top_p": 1.0}, {"top_p": 1e-9}, {"temperature": 0.7, "top_k": 4, "top_p": 0.8}],
    ids=str,
)  # fmt: skip
def test_samples_follow_the_distribution(kwargs):
    torch.testing.assert_close(sampled_shares(LOGITS, **kwargs), expected(LOGITS, **kwargs), rtol=0, atol=0.01)


def theirs(name, **kwargs):
    """A processor of transformers' generate, as a function of ids (B, T) and logits (B, V)."""
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    return getattr(transformers, f"{name}LogitsProcessor")(**kwargs)


def warper(name, value):
    pytest.importorskip("transformers", reason="transformers is a development dependency")
    from transformers.generation import logits_process

    return getattr(logits_process, f"{name}LogitsWarper")(value)


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 1.3}, {"repetition_penalty": 0.7}, {"logit_bias": {3: 2.5, 7: -100.0, 0: -0.5}},
     {"min_p": 0.05}, {"min_p": 0.5}, {"min_p": 1.0}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.6},
     {"temperature": 1.7, "top_k": 9, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "logit_bias": {1: 3.0}}],
    ids=str,
)  # fmt: skip
def test_logits_are_processed_as_by_transformers(settings):
    """Each setting by itself and all of them in a row, in the order of its generate."""
    torch.manual_seed(2)
    logits, ids = 3 * torch.randn(4, 23, dtype=torch.float64), torch.randint(0, 23, (4, 6))
    chain = []
    if bias := settings.get("logit_bias"):
        chain.append(theirs("SequenceBias", sequence_bias={(token,): x for token, x in bias.items()}))
    if "repetition_penalty" in settings:
        chain.append(theirs("RepetitionPenalty", penalty=settings["repetition_penalty"]))
    names = {"temperature": "Temperature", "top_k": "TopK", "top_p": "TopP", "min_p": "MinP"}
    chain += [warper(name, settings[key]) for key, name in names.items() if key in settings]
    expected = logits.clone()
    for processor in chain:
        expected = processor(ids, expected)
    ours = process_logits(logits, Sampling(**settings), seen_tokens(ids, 23))
    # ours are shifted: the largest is 0; a bias of -100 leaves 0 in float32, which transformers holds biases in
    torch.testing.assert_close(ours.softmax(-1), expected.softmax(-1), rtol=1e-6, atol=1e-12)
    assert torch.equal(ours.isinf(), expected.isinf())
    changed = (ours.softmax(-1) - logits.softmax(-1)).abs().max()
    assert changed > 1e-3, "the setting does something here"


def test_a_penalty_sees_prompt_and_continuation_of_each_row_alone(model):
    """Unequal lengths: padding, which is token 0 too, counts for no row. 1e6 forbids what is there already."""
    prompts = [torch.tensor([3]), torch.tensor([5, 4, 0, 1])]
    for prompt, text in zip(prompts, generate(model, prompts, 8, temperature=0, repetition_penalty=1e6), strict=True):
        alone = generate(model, [prompt], 8, temperature=0, repetition_penalty=1e6)[0]
        assert torch.equal(text, alone)
    scores = torch.tensor([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0]])
    seen = seen_tokens([torch.tensor([1]), torch.tensor([0, 2])], 3)
    assert process_logits(scores, Sampling(temperature=0, repetition_penalty=2.0), seen).tolist() == [
        [2.0, 0.5, -1.0], [1.0, 1.0, -2.0]
    ]  # fmt: skip


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.5, "top_k": 3}], ids=str)
def test_log_probabilities_are_those_of_the_model(model, settings):
    """Whatever the settings: the log-softmax of the model's own logits, by reading the text again."""
    logprobs, generator = [], torch.Generator().manual_seed(1)
    idx = torch.randint(0, 19, (3, 4))
    text = generate(model, idx, 6, generator=generator, logprobs=logprobs, **settings)
    again = model(text[:, :-1]).log_softmax(-1).gather(2, text[:, 1:, None])[:, 3:, 0]
    torch.testing.assert_close(torch.stack(logprobs, 1).double(), again, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(temperature):
    with pytest.raises(FloatingPointError, match="not finite"):
        sample_token(torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]), Sampling(temperature))


def test_temperature_zero_is_greedy():
    assert sample_token(LOGITS[:1], Sampling(temperature=0, top_k=3, top_p=0.1)).item() == 1


def test_the_stop_token_ends_each_row_by_itself(model):
    idx = torch.arange(6)[:, None]
    free = generate(model, idx, 30, generator=torch.Generator().manual_seed(1))
    stop = int(free[0, 9])
    stopped = generate(model, idx, 30, stop_id=stop, generator=torch.Generator().manual_seed(1))
    ends = []
    for row, free_row in zip(stopped.tolist(), free.tolist(), strict=True):
        written = free_row[1:]
        end = written.index(stop) + 2 if stop in written else len(free_row)
        ends.append(end)
        assert row[:end] == free_row[: min(end, len(row))]
        assert set(row[end:]) <= {stop}
    assert stopped.size(1) == max(ends)
    as_list = generate(model, list(idx), 30, stop_id=stop, generator=torch.Generator().manual_seed(1))
    assert [len(row) for row in as_list] == ends


def test_generation_stops_when_all_rows_have_ended(model):
    idx = torch.zeros(1, 1, dtype=torch.long)
    stop = int(generate(model, idx, 1, temperature=0)[0, -1])
    assert generate(model, idx, 50, temperature=0, stop_id=stop).shape == (1, 2)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"top_k": 0}, "top_k"),
     ({"logit_bias": {19: 1.0}}, "logit_bias names token 19"), ({"logit_bias": {3: float("nan")}}, "logit_bias"),
     ({"min_p": 1.1}, "min_p"), ({"repetition_penalty": 0.0}, "repetition_penalty"),
     ({"top_p": 0.0}, "top_p"), ({"top_p": 2.0}, "top_p"), ({"max_new_tokens": -1}, "max_new_tokens")],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused(model, kwargs, words):
    with pytest.raises(ValueError, match=words):
        generate(model, torch.zeros(1, 1, dtype=torch.long), **{"max_new_tokens": 1, **kwargs})


@pytest.mark.parametrize(
    "idx", [torch.zeros(1, 0, dtype=torch.long), [torch.tensor([], dtype=torch.long)], [], torch.tensor([[19]])]
)
def test_invalid_prompts_are_refused(model, idx):
    with pytest.raises(ValueError, match="prompt"):
        generate(model, idx, 3)


def test_text_to_token_ids_and_back():
    tokenizer = get_tokenizer("gpt2")
    ids = text_to_token_ids("Every effort moves you", tokenizer)
    assert ids.tolist() == [[6109, 3626, 6100, 345]]
    assert token_ids_to_text(ids, tokenizer) == token_ids_to_text(ids[0], tokenizer) == "Every effort moves you"
    with pytest.raises(ValueError, match="one sequence"):
        token_ids_to_text(ids.expand(2, -1), tokenizer)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 4}, {"top_p": 0.8}], ids=str)
def test_a_generator_for_each_row_samples_it_as_by_itself(settings):
    logits = torch.randn(5, 11)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(5)]

    together = sample_token(logits, Sampling(**settings), generator=generators())
    alone = [
        sample_token(row[None], Sampling(**settings), generator=g) for row, g in zip(logits, generators(), strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))
    with pytest.raises(ValueError, match="zip"):
        sample_token(logits, Sampling(), generator=generators()[:4])
