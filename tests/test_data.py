"""gpt/data.py: examples, their order, and the examples of a run."""

import dataclasses
import math
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import corpus_of
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.config import DataConfig, GPTConfig, OptimConfig, TrainConfig
from gpt.data import (
    DocumentExamples,
    ExampleSampler,
    PackedExamples,
    create_dataloader,
    document_spans,
    packed_spans,
)
from gpt.objectives.next_token import NextToken
from gpt.objectives.objective import create_examples
from gpt.system import permutation
from gpt.system.shards import Shard, ShardedArray
from gpt.text.encode import encode_documents
from gpt.text.prepare import prepare_data
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import CharTokenizer

STORY = (Path(__file__).parent.parent / "data" / "story.txt").read_text(encoding="utf-8")
quick = settings(deadline=None, derandomize=True, max_examples=60)


def book_examples(ids, context_length, stride):
    """Examples by the formula of the book's dataset."""
    starts = range(0, len(ids) - context_length, stride)
    return [(ids[i : i + context_length], ids[i + 1 : i + context_length + 1]) for i in starts]


resolve_config = NextToken.resolve_config

# --- packed examples --------------------------------------------------------------------------------------------------


@quick
@given(n=st.integers(2, 60), context_length=st.integers(1, 20), stride=st.integers(0, 30), data=st.data())
def test_packed_examples_match_brute_force(n, context_length, stride, data):
    tokens = data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=n, max_size=n))
    if n <= context_length:
        with pytest.raises(ValueError, match="too few for one example"):
            PackedExamples(tokens, context_length, stride)
        return
    examples = PackedExamples(np.array(tokens, np.uint16), context_length, stride)
    expected = book_examples(tokens, context_length, stride or context_length)
    assert len(examples) == len(expected)
    assert [(inputs.tolist(), targets.tolist()) for inputs, targets in examples] == expected
    indices = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=5))
    inputs, targets = examples.batch(indices)
    assert inputs.shape == targets.shape == (len(indices), context_length)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.tolist() == [expected[i][0] for i in indices]
    assert targets.tolist() == [expected[i][1] for i in indices]


@pytest.mark.parametrize("index", [-5, 4, 100])
def test_an_index_out_of_range_is_an_index_error(index):
    examples = PackedExamples(range(13), 3)
    assert len(examples) == 4
    with pytest.raises(IndexError):
        examples[index]


@pytest.mark.parametrize("n", [0, 1, 3, 4])
def test_too_few_tokens_for_one_example_are_refused(n):
    with pytest.raises(ValueError, match=f"{n} tokens are too few.*context_length 4 needs 5"):
        PackedExamples(list(range(n)), 4)
    assert len(PackedExamples(list(range(5)), 4)) == 1


def test_packed_examples_do_not_copy_a_memory_mapped_file(tmp_path):
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    file = np.memmap(tmp_path / "tokens.bin", np.uint16, mode="r")
    examples = PackedExamples(file, 10)
    assert np.shares_memory(examples.tokens, file)
    assert examples[8][0].tolist() == list(range(80, 90))


def test_token_ids_above_65535_are_kept():
    inputs, targets = PackedExamples(np.array([70_000, 2**31, 2**32 - 1], np.uint32), 2)[0]
    assert (inputs.tolist(), targets.tolist()) == ([70_000, 2**31], [2**31, 2**32 - 1])


@quick
@given(n=st.integers(2, 60), context_length=st.integers(1, 20), stride=st.integers(0, 20))
def test_packed_spans_predict_each_token_once(n, context_length, stride):
    stride = min(stride, context_length)
    spans = packed_spans(n, context_length, stride)
    assert spans.dtype == np.int64
    assert [token for _, end, first in spans.tolist() for token in range(first, end + 1)] == list(range(1, n))
    assert spans[:, 0].tolist() == [i * (stride or context_length) for i in range(len(spans))]
    assert all(end - start == context_length for start, end, _ in spans[:-1].tolist())
    assert all(1 <= end - start <= context_length for start, end, _ in spans.tolist())


def test_packed_spans_by_hand():
    assert packed_spans(10, 4).tolist() == [[0, 4, 1], [4, 8, 5], [8, 9, 9]]
    assert packed_spans(10, 4, 2).tolist() == [[0, 4, 1], [2, 6, 5], [4, 8, 7], [6, 9, 9]]
    assert packed_spans(2, 4).tolist() == [[0, 1, 1]]


# --- document examples ------------------------------------------------------------------------------------------------

EOT = 3  # ends a document; 0, 1 and 2 are its text
WITH_EOT = {"tokens": st.lists(st.integers(0, EOT), max_size=40), "context_length": st.integers(1, 12)}


STRIDE = {**WITH_EOT, "stride": st.integers(0, 15)}


def spans_by_hand(tokens, context_length, stride):
    """Each document, from the token before it to the token after it, in spans that start every `stride` tokens."""
    marks = [place for place, token in enumerate(tokens) if token == EOT]
    found = []
    for document, (before, after) in enumerate(pairwise(marks)):
        reached = before
        for start in range(before, after, stride or context_length):
            if reached < after:  # else the document has ended
                end = min(start + context_length, after)
                found.append([start, end, max(reached, start) + 1, document])
                reached = end
    return found


@quick
@given(**STRIDE)
def test_document_spans_match_brute_force(tokens, context_length, stride):
    examples = document_spans(np.array(tokens, np.uint16), EOT, context_length, stride)
    assert examples.dtype == np.int64
    assert examples.shape == (len(examples), 4)
    assert examples.tolist() == spans_by_hand(tokens, context_length, stride)


@quick
@given(**STRIDE)
def test_each_token_is_a_new_target_once_and_no_span_crosses_a_document(tokens, context_length, stride):
    stride = min(stride, context_length)
    examples = document_spans(np.array(tokens), EOT, context_length, stride).tolist()
    places = [place for _, end, first, _ in examples for place in range(first, end + 1)]
    marks = [place for place, token in enumerate(tokens) if token == EOT]
    assert places == (list(range(marks[0] + 1, marks[-1] + 1)) if marks else [])
    for start, end, _, _ in examples:
        assert 1 <= end - start <= context_length
        assert EOT not in tokens[start + 1 : end]
    for document, texts in enumerate(pairwise(marks)):
        parts = [(start, end) for start, end, _, number in examples if number == document]
        assert (parts[0][0], parts[-1][1]) == texts
        for (start, end), (after, _) in pairwise(parts):
            assert (end - start, after - start) == (context_length, stride or context_length)


def test_document_spans_by_hand():
    """An empty document has one target: its end."""
    tokens = np.array([0, EOT, 1, 2, EOT, EOT, 1, 1, 1, 2, 2, EOT, 0])
    assert document_spans(tokens, EOT, 4).tolist() == [[1, 4, 2, 0], [4, 5, 5, 1], [5, 9, 6, 2], [9, 11, 10, 2]]
    assert document_spans(tokens, EOT, 4, 2).tolist()[2:] == [[5, 9, 6, 2], [7, 11, 10, 2]]
    examples = DocumentExamples(tokens, 4, EOT)
    inputs, targets = examples.batch([3, 1, 2])
    assert inputs[0, :2].tolist() == [2, 2]
    assert inputs[1, :1].tolist() == [EOT]
    assert inputs[2].tolist() == [EOT, 1, 1, 1]
    assert targets.tolist() == [[2, EOT, -100, -100], [EOT, -100, -100, -100], [1, 1, 1, 2]]


def test_examples_of_documents_keep_two_numbers_each():
    """Not the four of a span, through a view."""
    examples = DocumentExamples(np.array([EOT, 1, 2, EOT, 3, EOT]), 4, EOT)
    assert (examples.starts.base, examples.ends.base) == (None, None)


@quick
@given(**STRIDE, data=st.data())
def test_a_batch_of_documents_is_padded_on_the_right(tokens, context_length, stride, data):
    expected = spans_by_hand(tokens, context_length, stride)
    if not expected:
        with pytest.raises(ValueError, match=f"^{len(tokens)} tokens hold no document"):
            DocumentExamples(np.array(tokens, np.uint16), context_length, EOT)
        return
    examples = DocumentExamples(np.array(tokens, np.uint16), context_length, EOT, stride)
    assert len(examples) == len(expected)
    assert [(inputs.tolist(), targets.tolist()) for inputs, targets in examples] == [
        (tokens[start:end], tokens[start + 1 : end + 1]) for start, end, _, _ in expected
    ]
    indices = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=5))
    inputs, targets = examples.batch(indices)
    longest = max(expected[i][1] - expected[i][0] for i in indices)
    assert inputs.shape == targets.shape == (len(indices), longest)
    assert inputs.dtype == targets.dtype == torch.int64
    assert set(inputs.flatten().tolist()) <= set(range(EOT + 1))  # padding is a valid token id
    for row, i in enumerate(indices):
        one_input, one_target = examples[i]
        n = len(one_input)
        assert torch.equal(inputs[row, :n], one_input)
        assert targets[row].tolist() == one_target.tolist() + [-100] * (longest - n)


@pytest.mark.parametrize("index", [-3, 2, 100])
def test_a_document_index_out_of_range_is_an_index_error(index):
    examples = DocumentExamples(np.array([EOT, 1, EOT, 2, EOT]), 4, EOT)
    assert len(examples) == 2
    with pytest.raises(IndexError):
        examples[index]


# --- the order of examples --------------------------------------------------------------------------------------------

SIZES = {"n": st.integers(1, 40), "batch": st.integers(1, 50), "seed": st.integers(0, 2**63 - 1)}


@quick
@given(**SIZES, shuffle=st.booleans())
def test_each_example_comes_once_per_epoch(n, batch, seed, shuffle):
    sampler = ExampleSampler(n, batch, shuffle, seed)
    steps = math.ceil(3 * n / batch)
    sequence = [i for k in range(steps) for i in sampler.step(k)]
    assert len(sequence) == steps * batch
    for epoch in range(3):
        in_epoch = sequence[epoch * n : (epoch + 1) * n]
        assert sorted(in_epoch) == list(range(n))
        assert shuffle or in_epoch == list(range(n))


@quick
@given(**SIZES, order=st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_a_step_does_not_depend_on_earlier_calls(n, batch, seed, order):
    """So a resumed run sees the same examples as an uninterrupted one."""
    asked, other = ExampleSampler(n, batch, seed=seed), ExampleSampler(n + 1, batch, seed=seed)
    before = {}
    for k in order:
        before[k] = asked.step(k)
        other.step(k)
    list(asked)
    assert {k: ExampleSampler(n, batch, seed=seed).step(k) for k in reversed(order)} == before
    assert {k: asked.step(k) for k in order} == before


@quick
@given(**SIZES, shuffle=st.booleans(), drop_last=st.booleans())
def test_iterating_gives_the_same_order_as_the_steps(n, batch, seed, shuffle, drop_last):
    sampler = ExampleSampler(n, batch, shuffle, seed, drop_last)
    sequence = [i for k in range(math.ceil(3 * n / batch)) for i in sampler.step(k)]
    for epoch in range(3):
        batches = list(sampler)
        kept = n - n % batch if drop_last else n
        assert len(batches) == len(sampler) == (n // batch if drop_last else -(-n // batch))
        assert [i for b in batches for i in b] == sequence[epoch * n : epoch * n + kept]
        assert all(len(b) == batch for b in (batches if drop_last else batches[:-1]))


@quick
@given(**SIZES, other_batch=st.integers(1, 50))
def test_the_order_does_not_depend_on_the_batch_size(n, batch, seed, other_batch):
    one, other = ExampleSampler(n, batch, seed=seed), ExampleSampler(n, other_batch, seed=seed)
    sequences = [[i for k in range(-(-100 // s.batch_size)) for i in s.step(k)][:100] for s in (one, other)]
    assert sequences[0] == sequences[1]


def test_epochs_and_seeds_have_different_orders():
    """Of 100! orders, no two of six should be equal."""
    orders = [tuple(ExampleSampler(100, 100, seed=seed).step(epoch)) for seed in (0, 1, 1337) for epoch in (0, 1)]
    assert len({*orders, tuple(range(100))}) == 7


def test_the_order_is_numpys():
    """All published figures were made with it."""
    first, second = (np.random.default_rng([7, epoch]).permutation(10).tolist() for epoch in (0, 1))
    sampler = ExampleSampler(10, 4, seed=7, shard_ends=[3, 10])
    assert [sampler.step(k) for k in range(4)] == [first[:4], first[4:8], [*first[8:], *second[:2]], second[2:6]]


def test_a_long_order_takes_shard_after_shard(monkeypatch):
    """Each example once per epoch, those of a shard in a row, and a step may straddle two epochs."""
    monkeypatch.setattr(permutation, "MAX_IN_MEMORY", 99)
    sampler, shards = (
        ExampleSampler(100, 7, seed=3, shard_ends=[30, 34, 100]),
        [range(30), range(30, 34), range(34, 100)],
    )
    sequence, orders = [i for k in range(100) for i in sampler.step(k)], set()
    for epoch in range(7):
        in_epoch = sequence[epoch * 100 : (epoch + 1) * 100]
        assert sorted(in_epoch) == list(range(100))
        shard_of = [next(n for n, shard in enumerate(shards) if i in shard) for i in in_epoch]
        assert len([*groupby(shard_of)]) == 3
        orders |= {tuple(dict.fromkeys(shard_of)), tuple(in_epoch)}
    assert len(orders) > 9, "the epochs have one order"
    assert sampler.step(5) == ExampleSampler(100, 7, seed=3, shard_ends=[30, 34, 100]).step(5)
    one = ExampleSampler(100, 100, seed=3)
    assert sorted(one.step(0)) == list(range(100))
    assert one.step(0) != one.step(1)


@pytest.mark.parametrize("stride", [0, 1, 3, 20])
def test_examples_know_where_their_shards_end(tmp_path, stride):
    """An example belongs to the file in which it starts."""
    tokens = sharded(tmp_path, np.arange(100), [10, 1, 50, 39])
    examples = PackedExamples(tokens, 8, stride)
    starts = [int(inputs[0]) for inputs, _ in examples]
    assert examples.shard_ends == [sum(start < end for start in starts) for end in (10, 11, 61, 100)]
    assert PackedExamples(np.arange(100), 8, stride).shard_ends == [len(starts)]
    assert [inputs.tolist() for inputs, _ in examples] == [list(range(start, start + 8)) for start in starts]


def sharded(folder, tokens, lengths):
    """Write tokens as files of these lengths."""
    shards, parts = [], np.split(tokens.astype(np.uint16), np.cumsum(lengths)[:-1])
    for n, part in enumerate(parts):
        part.tofile(folder / f"{n}.bin")
        shards.append(Shard(folder / f"{n}.bin", len(part), part.dtype))
    return ShardedArray(shards)


def test_shuffling_is_uniform():
    """Over 4,000 epochs example 0 of 4 comes 1,000 times at each position, within 6 standard deviations."""
    sampler = ExampleSampler(4, 4, seed=5)
    places = np.bincount([sampler.step(epoch).index(0) for epoch in range(4000)], minlength=4)
    assert np.abs(places - 1000).max() < 6 * math.sqrt(4000 * 0.25 * 0.75)


# --- create_dataloader ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2():
    return get_tokenizer("gpt2")


def listed(loader):
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in loader]


@pytest.mark.parametrize("convert", [list, np.array, lambda ids: np.array(ids, np.uint16), torch.tensor])
@pytest.mark.parametrize(("batch_size", "context_length", "stride"), [(1, 4, 1), (2, 4, 4), (8, 16, 5), (3, 7, 0)])
def test_batches_are_the_books_examples_in_order(gpt2, convert, batch_size, context_length, stride):
    ids = gpt2.encode(STORY[:1500])
    loader = create_dataloader(
        convert(ids), batch_size=batch_size, context_length=context_length, stride=stride, shuffle=False
    )
    examples = book_examples(ids, context_length, stride or context_length)
    for n, (inputs, targets) in enumerate(loader):
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape == (batch_size, context_length)
        assert inputs.tolist() == [w[0] for w in examples[n * batch_size : (n + 1) * batch_size]]
        assert targets.tolist() == [w[1] for w in examples[n * batch_size : (n + 1) * batch_size]]
    assert len(loader) == n + 1 == len(examples) // batch_size


@pytest.mark.parametrize("name", ["gpt2", "char", "bpe:300"])
def test_a_tokenizer_can_be_a_name_or_an_object(name):
    text = "Every effort moves you. " * 20
    tokenizer = get_tokenizer(name, [text])
    ids = tokenizer.encode(text)
    examples = book_examples(ids, 8, 8)
    for given_tokenizer in (name, tokenizer) if name == "gpt2" else (tokenizer,):
        loader = create_dataloader(text, given_tokenizer, batch_size=1, context_length=8, shuffle=False)
        assert listed(loader) == [([inputs], [targets]) for inputs, targets in examples]


def test_gpt2_is_the_default_tokenizer():
    ((inputs, targets),) = create_dataloader("Every effort moves you", batch_size=1, context_length=3)
    assert inputs.tolist() == [[6109, 3626, 6100]]
    assert targets.tolist() == [[3626, 6100, 345]]


def test_the_defaults_are_batches_of_4_by_256_without_overlap():
    loader = create_dataloader(range(256 * 9 + 1))
    batches = [(inputs, targets) for inputs, targets in loader]
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(4, 256), (4, 256)]
    assert len({t for _, targets in batches for t in targets.flatten().tolist()}) == 8 * 256


def test_drop_last():
    options = {"batch_size": 4, "context_length": 2, "shuffle": False}
    assert [len(x) for x, _ in create_dataloader(range(21), **options)] == [4, 4]
    assert [len(x) for x, _ in create_dataloader(range(21), **options, drop_last=False)] == [4, 4, 2]


def test_shuffled_epochs_differ_and_are_fixed_by_the_seed():
    def epochs(seed):
        loader = create_dataloader(range(101), batch_size=5, context_length=2, seed=seed)
        return [[row for inputs, _ in loader for row in inputs.tolist()] for _ in range(2)]

    ordered = [[i, i + 1] for i in range(0, 100, 2)]
    first, second = epochs(3)
    assert sorted(first) == sorted(second) == ordered
    assert first != second
    assert ordered not in (first, second)
    assert epochs(3) == [first, second]
    assert epochs(4) != [first, second]


def test_shuffling_does_not_touch_the_global_random_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(ExampleSampler(50, 5))
    PackedExamples(range(50), 4).batch([0, 3])
    assert torch.equal(torch.rand(3), expected)


def test_worker_processes_give_the_same_batches():
    loaders = [create_dataloader(range(41), batch_size=3, context_length=4, num_workers=n) for n in (0, 2)]
    for _ in range(2):
        assert listed(loaders[0]) == listed(loaders[1])


@pytest.mark.parametrize("text_or_tokens", ["", "one two three", [], [1, 2, 3]])
def test_a_text_too_short_is_refused(gpt2, text_or_tokens):
    with pytest.raises(ValueError, match="too few for one example"):
        create_dataloader(text_or_tokens, gpt2, context_length=3)


@pytest.mark.parametrize("wrong", [{"context_length": 0}, {"batch_size": 0}, {"stride": -1}], ids=str)
def test_a_size_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        create_dataloader(range(100), **({"batch_size": 2, "context_length": 4} | wrong))


# --- the examples of a run --------------------------------------------------------------------------------------------

TEXTS = [f"{n} geese\nflew {'on and ' * n}on, é😀 <|endoftext|>" for n in range(12)]


def test_encode_documents_gives_the_tokens_that_prepare_data_writes(tmp_path):
    data = prepare_data(corpus_of(tmp_path / "in", *TEXTS), "bpe:300", tmp_path / "out", 0.25)
    assert encode_documents(TEXTS[:9], data.tokenizer, True).tolist() == data.train.tokens.tolist()
    tokenizer = CharTokenizer("ab", end_of_text=True)
    assert encode_documents(iter(["ab", "", "b"]), tokenizer, True).tolist() == [2, 0, 1, 2, 2, 1, 2]
    assert encode_documents(iter(["ab", "", "b"]), tokenizer, False).tolist() == [0, 1, 1]
    assert encode_documents([], tokenizer, True).tolist() == [2]


@pytest.fixture
def documents(tmp_path):
    """Twelve documents, of which ten train."""
    return prepare_data(corpus_of(tmp_path / "in", *TEXTS), "char", tmp_path / "documents", 2 / 12)


def config_of(data, packing="packed", stride=0, context_length=8, **others):
    return TrainConfig(
        model=GPTConfig(vocab_size=0, context_length=context_length, emb_dim=8, n_heads=2),
        data=DataConfig(path=str(data.folder), packing=packing, stride=stride),
        sample_prompt="",
        **others,
    )


def test_create_examples_follows_the_config(documents):
    stream = create_examples(config_of(documents, stride=5), documents)
    ids = documents.train.tokens.tolist()
    assert [inputs.tolist() for inputs, _ in stream] == [inputs for inputs, _ in book_examples(ids, 8, 5)]
    whole = create_examples(config_of(documents, "document", context_length=1000), documents)
    eot_id, encode = documents.tokenizer.eot_id, documents.tokenizer.encode
    assert [inputs.tolist() for inputs, _ in whole] == [[eot_id, *encode(text)] for text in TEXTS[:10]]
    assert [targets.tolist() for _, targets in whole] == [[*encode(text), eot_id] for text in TEXTS[:10]]
    parts = create_examples(config_of(documents, "document"), documents)
    assert {len(inputs) for inputs, _ in parts} <= set(range(1, 9))
    assert [i for _, targets in parts for i in targets.tolist()] == ids[1:]
    overlapping = create_examples(config_of(documents, "document", stride=3), documents)
    starts = [start for start, *_ in document_spans(documents.train.tokens, eot_id, 8, 3).tolist()]
    assert [inputs.tolist() for inputs, _ in overlapping] == [
        ids[start : start + 8][: (ids[start + 1 :].index(eot_id) + 1)] for start in starts
    ]


def test_resolve_config_fills_in_vocab_size_and_decay_steps(documents):
    config = config_of(documents, "document", max_steps=70)
    assert documents.tokenizer.vocab_size == len(set("".join(TEXTS))) + 1
    model = dataclasses.replace(config.model, vocab_size=documents.tokenizer.vocab_size)
    fitted = dataclasses.replace(config, model=model, optim=dataclasses.replace(config.optim, decay_steps=70))
    assert resolve_config(config, documents) == fitted
    assert resolve_config(fitted, documents) == fitted
    given_steps = dataclasses.replace(config, optim=OptimConfig(decay_steps=30))
    assert resolve_config(given_steps, documents).optim.decay_steps == 30


def test_document_packing_needs_documents(documents, tmp_path):
    whole = prepare_data(corpus_of(tmp_path / "one", STORY[:3000]), "char", tmp_path / "out")
    assert resolve_config(config_of(whole), whole)
    with pytest.raises(ValueError, match=r"data\.packing is 'document', but the text of .*out is not divided"):
        resolve_config(config_of(whole, "document"), whole)
    assert resolve_config(config_of(documents, "document"), documents)
    assert resolve_config(config_of(documents), documents), "packed examples may cross document boundaries"


def test_a_context_longer_than_the_text_is_refused_only_when_packed(documents):
    n = len(documents.train.tokens)
    assert resolve_config(config_of(documents, context_length=n - 1), documents)
    with pytest.raises(ValueError, match=f"has {n} tokens, too few for one example of context_length {n}"):
        resolve_config(config_of(documents, context_length=n), documents)
    assert resolve_config(config_of(documents, "document", context_length=n), documents)


def test_another_vocabulary_or_an_unknown_prompt_character_is_refused(documents):
    config, n = config_of(documents), documents.tokenizer.vocab_size
    for wrong in (n - 1, n + 1):
        model = dataclasses.replace(config.model, vocab_size=wrong)
        with pytest.raises(ValueError, match=rf"model\.vocab_size is {wrong}, but .* char of {n} tokens"):
            resolve_config(dataclasses.replace(config, model=model), documents)
    with pytest.raises(ValueError, match=r"sample_prompt: .*U\+03A9"):
        resolve_config(dataclasses.replace(config, sample_prompt="Ω"), documents)
