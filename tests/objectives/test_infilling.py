"""GLM's blank infilling: spans, masks and losses by hand and by brute force; filling with a cache."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import GPT2_BLOCK, MODERN_BLOCK
from conftest import corpus_of
from numerics import tolerance

from gpt.config import DataConfig, GPTConfig, ObjectiveConfig, TrainConfig
from gpt.model import GPTModel
from gpt.objectives.glm_spans import cut_spans, infilling_mask, sample_spans
from gpt.objectives.infilling import Infilling
from gpt.text.prepare import prepare_data

IDS = {"[MASK]": 20, "[SOP]": 21, "[EOP]": 22}
TEXT = np.array([10, 11, 12, 13, 14, 15])  # x1 .. x6 of the paper's figure 2
X = -100
TWO_BLOCKS = pytest.mark.parametrize("block", [GPT2_BLOCK, MODERN_BLOCK], ids=["gpt2", "modern"])
ROUNDING = tolerance(24 * 64)  # a loss is made by two dozen sums of at most 64 products


def tiny(block=GPT2_BLOCK, **settings):
    model = GPTModel(GPTConfig(23, 32, 16, 2, 2, 0.0, init="gpt2", **block))
    return Infilling(model, ObjectiveConfig("infilling", **settings)).double().eval()


def tensors(blanks):
    batch = {name: torch.from_numpy(getattr(blanks, name))[None] for name in blanks._fields[:-1]}
    return {**batch, "n_context": torch.tensor([blanks.n_context])}


def test_example_of_the_glm_paper():
    """Figure 2 of Du et al. 2022: x3 and x5 x6 are cut out of x1 .. x6, and written in the order x5 x6, x3."""
    blanks = cut_spans(TEXT, [(2, 3), (4, 6)], [1, 0], IDS)
    assert blanks.inputs.tolist() == [10, 11, 20, 13, 20, 21, 14, 15, 21, 12]
    assert blanks.targets.tolist() == [X, X, X, X, X, 14, 15, 22, 12, 22]
    assert blanks.positions.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 2, 2]  # the paper counts from 1
    assert blanks.span_positions.tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
    assert blanks.n_context == 5


@pytest.mark.parametrize(
    ("spans", "context", "targets"),
    [
        ([(0, 2)], [20, 12, 13, 14, 15], [10, 11, 22]),  # at the beginning
        ([(5, 6)], [10, 11, 12, 13, 14, 20], [15, 22]),  # at the end
        ([(1, 3), (3, 5)], [10, 20, 20, 15], [11, 12, 22, 13, 14, 22]),  # two that touch: a blank each
        ([(0, 6)], [20], [10, 11, 12, 13, 14, 15, 22]),  # the whole text
    ],
)
def test_spans_at_every_position(spans, context, targets):
    blanks = cut_spans(TEXT, spans, range(len(spans)), IDS)
    assert blanks.inputs[: blanks.n_context].tolist() == context
    assert blanks.targets[blanks.n_context :].tolist() == targets
    assert torch.isfinite(tiny()(**tensors(blanks))[0])


@pytest.mark.parametrize(
    ("spans", "order", "complaint"),
    [
        ([], [], "nothing to fill in"),
        ([(2, 2)], [0], "span 2 .. 2 is empty"),
        ([(0, 3), (2, 4)], [0, 1], "span 2 .. 4 .* overlaps"),
        ([(4, 7)], [0], "leaves the 6 tokens"),
        ([(-1, 2)], [0], "span -1 .. 2"),
        ([(0, 1), (2, 3)], [0, 0], "not a permutation"),
    ],
)
def test_invalid_spans_are_refused(spans, order, complaint):
    with pytest.raises(ValueError, match=complaint):
        cut_spans(TEXT, spans, order, IDS)


def may_see(query, key, spans_of):
    """Whether a token may see another, from the paper's words: `spans_of` has the place of each one's span in the order
    of writing, None for the context."""
    if spans_of[key] is None:  # the context is seen by all
        return True
    return spans_of[query] is not None and key <= query  # what has been written already is seen by what is written


def test_attention_mask_equals_brute_force():
    blanks = cut_spans(TEXT, [(0, 1), (2, 3), (4, 6)], [2, 0, 1], IDS)
    spans_of = [None] * blanks.n_context + [0] * 3 + [1] * 2 + [2] * 2
    mask = infilling_mask(torch.tensor([blanks.n_context]), len(blanks.inputs))[0]
    for query, key in itertools.product(range(len(spans_of)), repeat=2):
        assert bool(mask[query, key]) == may_see(query, key, spans_of), (query, key)


@TWO_BLOCKS
def test_loss_equals_one_forward_pass_per_target(block):
    """Each target's -ln p read off the logits of a text that ends with its predecessor, all of which it may see."""
    objective = tiny(block)
    blanks = cut_spans(TEXT, [(2, 3), (4, 6)], [1, 0], IDS)
    batch, expected = tensors(blanks), []
    for place in range(blanks.n_context, len(blanks.inputs)):
        part = {name: batch[name][:, : place + 1] for name in ("inputs", "positions", "span_positions")}
        own = torch.ones(place + 1, place + 1, dtype=torch.bool).tril()
        own[:, : blanks.n_context] = True
        vectors, rotation = objective.model.pos_emb.encode(objective.model.tok_emb(part["inputs"]), part["positions"])
        x = vectors + objective.span_pos_emb(part["span_positions"])
        for layer in objective.model.trf_blocks:
            x = layer(x, own, rotation=rotation)
        logits = objective.model.final_norm(x)[0, -1] @ objective.model.out_head.weight.T
        expected.append(-torch.log_softmax(logits, -1)[blanks.targets[place]])
    loss, counted = objective(**batch)
    assert counted == 5
    torch.testing.assert_close(loss, sum(expected), rtol=ROUNDING, atol=0)
    exact = objective.eval_batch(**batch)
    torch.testing.assert_close(exact["loss"][0], loss, rtol=ROUNDING, atol=0)
    assert exact["val_filled"][1] == 2


def test_spans_see_both_sides_but_not_their_own_targets():
    objective = tiny()
    losses = []
    for changed in (None, 3, 5, 14):  # the context behind the first span; the last token of the last span; ...
        text = TEXT.copy()
        if changed == 3:
            text[3] = 17
        elif changed == 5:
            text[5] = 17
        blanks = cut_spans(text, [(2, 3), (4, 6)], [1, 0], IDS)
        batch = tensors(blanks)
        hidden, _, _ = objective.target_states(**batch)
        losses.append(hidden)
    before, right, answer, again = losses
    assert not torch.allclose(before[0], right[0])  # what stands between the blanks is seen from the left one too
    assert torch.equal(before[:2], answer[:2])  # x5 and x6 are predicted before x6 has been read
    assert not torch.allclose(before[2:], answer[2:])
    assert torch.equal(before, again)


@TWO_BLOCKS
def test_padding_does_not_change_the_loss(block):
    objective = tiny(block)
    short = cut_spans(TEXT[:3], [(1, 2)], [0], IDS)
    long = cut_spans(TEXT, [(2, 3), (4, 6)], [0, 1], IDS)
    alone = sum(objective(**tensors(blanks))[0] for blanks in (short, long))
    n = len(long.inputs) - len(short.inputs)
    filling = {"targets": X}
    padded = {}
    for name in long._fields[:-1]:
        row = F.pad(torch.from_numpy(getattr(short, name)), (0, n), value=filling.get(name, 0))
        padded[name] = torch.stack([row, torch.from_numpy(getattr(long, name))])
    together, counted = objective(**padded, n_context=torch.tensor([short.n_context, long.n_context]))
    torch.testing.assert_close(together, alone, rtol=ROUNDING, atol=0)
    assert counted == 2 + 5


def test_all_arrangements_of_spans_are_equally_likely():
    """All arrangements of two tokens in one or two spans in a text of four, and how often each comes."""
    counts = {}
    for seed in range(6000):
        spans = sample_spans(4, 0.5, 1.0, np.random.default_rng(seed))
        assert sum(end - start for start, end in spans) == 2
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)) and spans[0][0] >= 0 and spans[-1][1] <= 4
        counts[tuple(spans)] = counts.get(tuple(spans), 0) + 1
    singles = {spans: n for spans, n in counts.items() if len(spans) == 1}
    pairs = {spans: n for spans, n in counts.items() if len(spans) == 2}
    assert len(singles) == 3 and len(pairs) == 6  # (0,2) (1,3) (2,4); two of four places, touching ones too
    for group in (singles, pairs):
        mean = sum(group.values()) / len(group)
        assert all(abs(n - mean) < 5 * mean**0.5 for n in group.values())
    assert sample_spans(1, 0.15, 3.0, np.random.default_rng(0)) == [(0, 1)]
    assert sample_spans(5, 0.999, 9.0, np.random.default_rng(0))[0][0] == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("infilling")
    texts = [f"{n} green bottles hang on the wall and {n % 3} fall" for n in range(40)]
    data = prepare_data(corpus_of(folder / "texts", *texts), "char", folder / "data")
    return Infilling.transform(data)


def config_of(data, **model):
    settings = {
        "vocab_size": data.tokenizer.vocab_size,
        "context_length": 64,
        "emb_dim": 16,
        "n_heads": 2,
        "n_layers": 2,
    }
    return TrainConfig(
        model=GPTConfig(**{**settings, "drop_rate": 0.0, "init": "gpt2", **model}),
        data=DataConfig(path=str(data.folder), packing="document"),
        objective=ObjectiveConfig("infilling"),
    )


def test_batch_depends_only_on_indices_and_key(data):
    config = config_of(data)
    objective = Infilling(GPTModel(config.model), config.objective)
    examples = objective.examples(config, data, data.train)
    whole = objective.batch(examples, [3, 0, 5], (7, 1))
    for row, index in enumerate([3, 0, 5]):
        alone = objective.batch(examples, [index], (7, 1))
        n = alone["inputs"].size(1)
        assert torch.equal(whole["inputs"][row, :n], alone["inputs"][0])
        assert (whole["targets"][row, n:] == X).all()
    assert not torch.equal(whole["inputs"][:, :20], objective.batch(examples, [3, 0, 5], (7, 2))["inputs"][:, :20])
    text = examples.text(3).tolist()
    assert data.tokenizer.eot_id not in text
    kept = [i for i in whole["inputs"][0, : whole["n_context"][0]].tolist() if i < data.tokenizer.base_vocab_size]
    cut = [i for i in whole["targets"][0].tolist() if i >= 0 and i < data.tokenizer.base_vocab_size]
    assert sorted(kept + cut) == sorted(text)


@TWO_BLOCKS
def test_filling_with_cache_equals_filling_without(data, block):
    config = config_of(data, **block)
    objective = Infilling(GPTModel(config.model), config.objective).double().eval()
    ids = data.tokenizer.special_tokens
    context = data.tokenizer.encode("1 gr[MASK] bottles [MASK]ll", special=True)
    fillings = objective.fill(context, ids, 5, temperature=0)
    text, positions, places = list(context), list(range(len(context))), [0] * len(context)
    for mask, filling in zip([i for i, t in enumerate(context) if t == ids["[MASK]"]], fillings, strict=True):
        last, written = ids["[SOP]"], []
        while True:
            text, positions, places = [*text, last], [*positions, mask], [*places, len(written) + 1]
            hidden = objective.model.hidden_states(
                torch.tensor([text]),
                mask=infilling_mask(torch.tensor([len(context)]), len(text)),
                positions=torch.tensor([positions]),
                extra_embeds=objective.span_pos_emb(torch.tensor([places])),
            )
            logits = objective.model.out_head(hidden[0, -1])
            logits[[ids["[MASK]"], ids["[SOP]"]]] = -torch.inf
            last = int(logits.argmax())
            if last == ids["[EOP]"] or len(written) == 5:
                break
            written.append(last)
        assert written == filling
    with pytest.raises(ValueError, match=r"write \[MASK\] into the prompt"):
        list(objective.generate_text("green", data.tokenizer, True))
    with pytest.raises(ValueError, match="leave no room"):
        list(objective.generate_text("[MASK]" + "green " * 10 + "[MASK]", data.tokenizer, True))


def test_context_length_too_short_is_refused(data):
    config = config_of(data, context_length=3)
    with pytest.raises(ValueError, match="context_length is 3"):
        Infilling(GPTModel(config.model), config.objective).examples(config, data, data.train)
