"""gpt/data.py: windows, their order, and prepared folders."""

import dataclasses
import json
import math
from itertools import pairwise
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
    create_examples,
    document_spans,
    encode_documents,
    fit_to_data,
)
from gpt.system.files import checksummed
from gpt.text.prepare import prepare_data
from gpt.token_files import load_data
from gpt.tokenizer import CharTokenizer, get_tokenizer

STORY = (Path(__file__).parent.parent / "data" / "story.txt").read_text(encoding="utf-8")
quick = settings(deadline=None, derandomize=True, max_examples=60)


def published_windows(ids, context_length, stride):
    """The windows of the published from-scratch GPT's dataset, in its words."""
    starts = range(0, len(ids) - context_length, stride)
    return [(ids[i : i + context_length], ids[i + 1 : i + context_length + 1]) for i in starts]


# --- windows ----------------------------------------------------------------------------------------------------------


@quick
@given(n=st.integers(2, 60), context_length=st.integers(1, 20), stride=st.integers(0, 30), data=st.data())
def test_windows_are_those_of_brute_force(n, context_length, stride, data):
    tokens = data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=n, max_size=n))
    if n <= context_length:
        with pytest.raises(ValueError, match="too few for one window"):
            PackedExamples(tokens, context_length, stride)
        return
    examples = PackedExamples(np.array(tokens, np.uint16), context_length, stride)
    expected = published_windows(tokens, context_length, stride or context_length)
    assert len(examples) == len(expected)
    assert [(inputs.tolist(), targets.tolist()) for inputs, targets in examples] == expected
    indices = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=5))
    inputs, targets = examples.batch(indices)
    assert inputs.shape == targets.shape == (len(indices), context_length)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.tolist() == [expected[i][0] for i in indices]
    assert targets.tolist() == [expected[i][1] for i in indices]


@pytest.mark.parametrize("index", [-1, 4, 100])
def test_a_window_that_is_not_there_is_an_index_error(index):
    examples = PackedExamples(range(13), 3)
    assert len(examples) == 4
    with pytest.raises(IndexError):
        examples[index]


@pytest.mark.parametrize("n", [0, 1, 3, 4])
def test_too_few_tokens_for_a_window_are_refused(n):
    with pytest.raises(ValueError, match=f"{n} tokens are too few.*context_length 4 takes 5"):
        PackedExamples(list(range(n)), 4)
    assert len(PackedExamples(list(range(5)), 4)) == 1


def test_windows_of_a_memory_mapped_file_read_nothing_ahead(tmp_path):
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    file = np.memmap(tmp_path / "tokens.bin", np.uint16, mode="r")
    examples = PackedExamples(file, 10)
    assert np.shares_memory(examples.tokens, file)
    assert examples[8][0].tolist() == list(range(80, 90))


def test_ids_above_65535_stay_what_they_are():
    inputs, targets = PackedExamples(np.array([70_000, 2**31, 2**32 - 1], np.uint32), 2)[0]
    assert (inputs.tolist(), targets.tolist()) == ([70_000, 2**31], [2**31, 2**32 - 1])


# --- windows of documents ---------------------------------------------------------------------------------------------

EOT = 3  # ends a document; 0, 1 and 2 are its text
SEPARATED = {"tokens": st.lists(st.integers(0, EOT), max_size=40), "context_length": st.integers(1, 12)}


def document_windows_by_hand(tokens, context_length):
    """Each document, from the mark before it to the mark after it, cut into windows of context_length targets."""
    marks = [place for place, token in enumerate(tokens) if token == EOT]
    return [
        [start, min(start + context_length, after), document]
        for document, (before, after) in enumerate(pairwise(marks))
        for start in range(before, after, context_length)
    ]


@quick
@given(**SEPARATED)
def test_windows_of_documents_are_those_of_brute_force(tokens, context_length):
    examples = document_spans(np.array(tokens, np.uint16), EOT, context_length)
    assert examples.dtype == np.int64
    assert examples.shape == (len(examples), 3)
    assert examples.tolist() == document_windows_by_hand(tokens, context_length)


@quick
@given(**SEPARATED)
def test_each_token_of_a_document_is_a_target_once_and_no_window_holds_two_documents(tokens, context_length):
    examples = document_spans(np.array(tokens), EOT, context_length).tolist()
    places = [place for start, end, _ in examples for place in range(start + 1, end + 1)]
    marks = [place for place, token in enumerate(tokens) if token == EOT]
    assert places == (list(range(marks[0] + 1, marks[-1] + 1)) if marks else [])
    for start, end, _ in examples:
        assert 1 <= end - start <= context_length
        assert EOT not in tokens[start + 1 : end]
    for document, texts in enumerate(pairwise(marks)):
        parts = [(start, end) for start, end, number in examples if number == document]
        assert (parts[0][0], parts[-1][1]) == texts
        assert all(end == start + context_length == after for (start, end), (after, _) in pairwise(parts))


def test_windows_of_documents_by_hand():
    """An empty document has one target: its end."""
    tokens = np.array([0, EOT, 1, 2, EOT, EOT, 1, 1, 1, 2, 2, EOT, 0])
    assert document_spans(tokens, EOT, 4).tolist() == [[1, 4, 0], [4, 5, 1], [5, 9, 2], [9, 11, 2]]
    examples = DocumentExamples(tokens, 4, EOT)
    inputs, targets = examples.batch([3, 1, 2])
    assert inputs[0, :2].tolist() == [2, 2]
    assert inputs[1, :1].tolist() == [EOT]
    assert inputs[2].tolist() == [EOT, 1, 1, 1]
    assert targets.tolist() == [[2, EOT, -100, -100], [EOT, -100, -100, -100], [1, 1, 1, 2]]


@quick
@given(**SEPARATED, data=st.data())
def test_a_batch_of_documents_holds_each_window_filled_up_on_the_right(tokens, context_length, data):
    expected = document_windows_by_hand(tokens, context_length)
    if not expected:
        with pytest.raises(ValueError, match=f"^{len(tokens)} tokens hold no document"):
            DocumentExamples(np.array(tokens, np.uint16), context_length, EOT)
        return
    examples = DocumentExamples(np.array(tokens, np.uint16), context_length, EOT)
    assert len(examples) == len(expected)
    assert [(inputs.tolist(), targets.tolist()) for inputs, targets in examples] == [
        (tokens[start:end], tokens[start + 1 : end + 1]) for start, end, _ in expected
    ]
    indices = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=5))
    inputs, targets = examples.batch(indices)
    longest = max(expected[i][1] - expected[i][0] for i in indices)
    assert inputs.shape == targets.shape == (len(indices), longest)
    assert inputs.dtype == targets.dtype == torch.int64
    assert set(inputs.flatten().tolist()) <= set(range(EOT + 1))  # what fills up is a token, too
    for row, i in enumerate(indices):
        one_input, one_target = examples[i]
        n = len(one_input)
        assert torch.equal(inputs[row, :n], one_input)
        assert targets[row].tolist() == one_target.tolist() + [-100] * (longest - n)


@pytest.mark.parametrize("index", [-1, 2, 100])
def test_a_window_of_a_document_that_is_not_there_is_an_index_error(index):
    examples = DocumentExamples(np.array([EOT, 1, EOT, 2, EOT]), 4, EOT)
    assert len(examples) == 2
    with pytest.raises(IndexError):
        examples[index]


# --- their order ------------------------------------------------------------------------------------------------------

SIZES = {"n": st.integers(1, 40), "batch": st.integers(1, 50), "seed": st.integers(0, 2**63 - 1)}


@quick
@given(**SIZES, shuffle=st.booleans())
def test_each_window_comes_once_per_epoch(n, batch, seed, shuffle):
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
def test_a_step_is_the_same_whatever_was_asked_before(n, batch, seed, order):
    """So that a resumed run goes on as the first one would have."""
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
def test_an_epoch_of_batches_is_its_stretch_of_the_steps(n, batch, seed, shuffle, drop_last):
    sampler = ExampleSampler(n, batch, shuffle, seed, drop_last)
    sequence = [i for k in range(math.ceil(3 * n / batch)) for i in sampler.step(k)]
    for epoch in range(3):
        batches = list(sampler)
        kept = n - n % batch if drop_last else n
        assert len(batches) == len(sampler) == (n // batch if drop_last else -(-n // batch))
        assert [i for b in batches for i in b] == sequence[epoch * n : epoch * n + kept]
        assert all(len(b) == batch for b in (batches if drop_last else batches[:-1]))


@quick
@given(**SIZES, world_size=st.integers(1, 9))
def test_processes_share_each_window_out_once(n, batch, seed, world_size):
    """Whatever the number of processes: together they read each step's windows, each epoch all windows once."""
    sampler, sequence = ExampleSampler(n, batch, seed=seed), []
    for k in range(math.ceil(2 * n / batch)):
        shares = [sampler.step(k, rank, world_size) for rank in range(world_size)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        step = [shares[i % world_size][i // world_size] for i in range(batch)]
        assert step == sampler.step(k)
        sequence += step
    for epoch in range(2):
        assert sorted(sequence[epoch * n : (epoch + 1) * n]) == list(range(n))


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0), (1, 1)])
def test_a_rank_lies_in_its_world(rank, world_size):
    with pytest.raises(ValueError, match=f"rank must be 0 to world_size - 1, {world_size - 1}, not {rank}"):
        ExampleSampler(5, 2).step(0, rank, world_size)


@quick
@given(**SIZES, other_batch=st.integers(1, 50))
def test_the_sequence_does_not_depend_on_the_batch_size(n, batch, seed, other_batch):
    one, other = ExampleSampler(n, batch, seed=seed), ExampleSampler(n, other_batch, seed=seed)
    sequences = [[i for k in range(-(-100 // s.batch_size)) for i in s.step(k)][:100] for s in (one, other)]
    assert sequences[0] == sequences[1]


def test_epochs_and_seeds_differ_in_order():
    """Of 100! orders, no two of six should be equal."""
    orders = [tuple(ExampleSampler(100, 100, seed=seed).step(epoch)) for seed in (0, 1, 1337) for epoch in (0, 1)]
    assert len({*orders, tuple(range(100))}) == 7


def test_shuffling_favours_no_place():
    """Where window 0 of 4 comes, over 4,000 epochs: each place 1,000 times, give or take 6 standard deviations."""
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
def test_batches_are_the_published_windows_in_order(gpt2, convert, batch_size, context_length, stride):
    ids = gpt2.encode(STORY[:1500])
    loader = create_dataloader(
        convert(ids), batch_size=batch_size, context_length=context_length, stride=stride, shuffle=False
    )
    examples = published_windows(ids, context_length, stride or context_length)
    for n, (inputs, targets) in enumerate(loader):
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape == (batch_size, context_length)
        assert inputs.tolist() == [w[0] for w in examples[n * batch_size : (n + 1) * batch_size]]
        assert targets.tolist() == [w[1] for w in examples[n * batch_size : (n + 1) * batch_size]]
    assert len(loader) == n + 1 == len(examples) // batch_size


@pytest.mark.parametrize("name", ["gpt2", "char", "bpe:300"])
def test_a_text_is_encoded_by_the_tokenizer_of_that_name_or_by_one_that_is_given(name):
    text = "Every effort moves you. " * 20
    tokenizer = get_tokenizer(name, [text])
    ids = tokenizer.encode(text)
    examples = published_windows(ids, 8, 8)
    for given_tokenizer in (name, tokenizer):
        loader = create_dataloader(text, given_tokenizer, batch_size=1, context_length=8, shuffle=False)
        assert listed(loader) == [([inputs], [targets]) for inputs, targets in examples]


def test_gpt2_is_the_default_tokenizer():
    ((inputs, targets),) = create_dataloader("Every effort moves you", batch_size=1, context_length=3)
    assert inputs.tolist() == [[6109, 3626, 6100]]
    assert targets.tolist() == [[3626, 6100, 345]]


def test_the_defaults_are_windows_of_256_tokens_four_at_a_time_each_token_a_target_once():
    loader = create_dataloader(range(256 * 9 + 1))
    batches = [(inputs, targets) for inputs, targets in loader]
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(4, 256), (4, 256)]
    assert len({t for _, targets in batches for t in targets.flatten().tolist()}) == 8 * 256


def test_a_last_batch_that_is_not_full_is_dropped_unless_asked_for():
    options = {"batch_size": 4, "context_length": 2, "shuffle": False}
    assert [len(x) for x, _ in create_dataloader(range(21), **options)] == [4, 4]
    assert [len(x) for x, _ in create_dataloader(range(21), **options, drop_last=False)] == [4, 4, 2]


def test_shuffled_epochs_hold_each_window_once_and_differ_and_a_seed_fixes_them():
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


def test_shuffling_leaves_the_global_random_state_alone():
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
def test_too_short_a_text_is_refused(gpt2, text_or_tokens):
    with pytest.raises(ValueError, match="too few for one window"):
        create_dataloader(text_or_tokens, gpt2, context_length=3)


@pytest.mark.parametrize("wrong", [{"context_length": 0}, {"batch_size": 0}, {"stride": -1}], ids=str)
def test_a_size_below_one_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        create_dataloader(range(100), **({"batch_size": 2, "context_length": 4} | wrong))


# --- documents --------------------------------------------------------------------------------------------------------

TEXTS = [f"{n} geese\nflew {'on and ' * n}on, é😀 <|endoftext|>" for n in range(12)]


@pytest.mark.parametrize("name", ["char", "bpe:300", "gpt2"])
def test_the_documents_of_a_split_are_the_texts_that_were_prepared(tmp_path, name):
    data = prepare_data(corpus_of(tmp_path / "in", *TEXTS), name, tmp_path / "out", 0.25)
    assert list(data.documents(data.train)) == TEXTS[:9]
    assert list(data.documents(data.val)) == TEXTS[9:]
    again = load_data(tmp_path / "out", verify=True)
    assert again.has_eot
    assert list(again.documents(again.val)) == TEXTS[9:]


@pytest.mark.parametrize("name", ["char", "bpe:300", "gpt2"])
def test_a_document_that_the_split_cuts_in_two_is_one_of_each(tmp_path, name):
    texts = ["ten letter", "twenty more letters.", "end."]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), name, tmp_path / "out", 0.5)
    assert list(data.documents(data.train)) == ["ten letter", "twenty "]
    assert list(data.documents(data.val)) == ["more letters.", "end."]


@pytest.mark.parametrize("name", ["char", "bpe:300", "gpt2"])
def test_a_text_that_is_not_separated_is_one_document(tmp_path, name):
    data = prepare_data(corpus_of(tmp_path / "in", STORY[:1000]), name, tmp_path / "out")
    assert list(data.documents(data.train)) == [STORY[:900]]
    assert list(data.documents(data.val)) == [STORY[900:1000]]


def test_encoded_documents_are_what_preparing_writes(tmp_path):
    data = prepare_data(corpus_of(tmp_path / "in", *TEXTS), "bpe:300", tmp_path / "out", 0.25)
    assert encode_documents(TEXTS[:9], data.tokenizer, True).tolist() == data.train.tokens.tolist()
    tokenizer = CharTokenizer("ab", end_of_text=True)
    assert encode_documents(iter(["ab", "", "b"]), tokenizer, True).tolist() == [2, 0, 1, 2, 2, 1, 2]
    assert encode_documents(iter(["ab", "", "b"]), tokenizer, False).tolist() == [0, 1, 1]
    assert encode_documents([], tokenizer, True).tolist() == [2]


# --- a config and its data --------------------------------------------------------------------------------------------


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


def test_training_windows_are_those_that_the_config_asks_for(documents):
    stream = create_examples(config_of(documents, stride=5), documents)
    ids = documents.train.tokens.tolist()
    assert [inputs.tolist() for inputs, _ in stream] == [inputs for inputs, _ in published_windows(ids, 8, 5)]
    whole = create_examples(config_of(documents, "document", context_length=1000), documents)
    eot_id, encode = documents.tokenizer.eot_id, documents.tokenizer.encode
    assert [inputs.tolist() for inputs, _ in whole] == [[eot_id, *encode(text)] for text in TEXTS[:10]]
    assert [targets.tolist() for _, targets in whole] == [[*encode(text), eot_id] for text in TEXTS[:10]]
    parts = create_examples(config_of(documents, "document"), documents)
    assert {len(inputs) for inputs, _ in parts} <= set(range(1, 9))
    assert [i for _, targets in parts for i in targets.tolist()] == ids[1:]


def test_a_config_gets_the_tokenizers_size_and_the_steps_to_decay_over(documents):
    config = config_of(documents, "document", max_steps=70)
    assert documents.tokenizer.vocab_size == len(set("".join(TEXTS))) + 1
    model = dataclasses.replace(config.model, vocab_size=documents.tokenizer.vocab_size)
    fitted = dataclasses.replace(config, model=model, optim=dataclasses.replace(config.optim, decay_steps=70))
    assert fit_to_data(config, documents) == fitted
    assert fit_to_data(fitted, documents) == fitted
    given_steps = dataclasses.replace(config, optim=OptimConfig(decay_steps=30))
    assert fit_to_data(given_steps, documents).optim.decay_steps == 30


def test_windows_of_documents_need_data_that_is_separated(documents, prepared):
    whole = load_data(prepared)
    assert fit_to_data(config_of(whole), whole)
    with pytest.raises(ValueError, match=r"data\.windows is 'document', but the text of .*out is not divided"):
        fit_to_data(config_of(whole, "document"), whole)
    assert fit_to_data(config_of(documents, "document"), documents)
    assert fit_to_data(config_of(documents), documents), "a stream may run over the ends of documents"


def test_a_context_longer_than_the_text_is_refused_but_holds_any_document(documents):
    n = len(documents.train.tokens)
    assert fit_to_data(config_of(documents, context_length=n - 1), documents)
    with pytest.raises(ValueError, match=f"has {n} tokens, too few for one window of context_length {n}"):
        fit_to_data(config_of(documents, context_length=n), documents)
    assert fit_to_data(config_of(documents, "document", context_length=n), documents)


def test_a_config_of_another_vocabulary_or_an_unknown_prompt_is_refused(documents):
    config, n = config_of(documents), documents.tokenizer.vocab_size
    for wrong in (n - 1, n + 1):
        model = dataclasses.replace(config.model, vocab_size=wrong)
        with pytest.raises(ValueError, match=rf"model\.vocab_size is {wrong}, but .* char of {n} tokens"):
            fit_to_data(dataclasses.replace(config, model=model), documents)
    with pytest.raises(ValueError, match=r"sample_prompt: .*U\+03A9"):
        fit_to_data(dataclasses.replace(config, sample_prompt="Ω"), documents)


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path):
    prepare_data(corpus_of(tmp_path / "in", STORY[:3000]), "char", tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("verify", [False, True])
def test_loading_gives_back_what_was_prepared(prepared, verify):
    data = load_data(str(prepared), verify=verify)
    assert data.folder == prepared
    assert data.tokenizer.decode(data.train.tokens) == STORY[:2700]
    assert data.tokenizer.decode(data.val.tokens) == STORY[2700:3000]
    assert isinstance(data.train.tokens, np.memmap)
    assert not data.train.tokens.flags.writeable


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("place", [0, -1])
def test_one_flipped_bit_is_found_by_verifying(prepared, name, place):
    content = bytearray((prepared / name).read_bytes())
    content[place] ^= 1
    (prepared / name).write_bytes(content)
    assert load_data(prepared).tokenizer.vocab_size > 1
    with pytest.raises(ValueError, match=name):
        load_data(prepared, verify=True)


def test_an_exchanged_character_of_the_tokenizer_is_found_by_verifying(prepared):
    path = prepared / "tokenizer.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"characters": saved["characters"].replace("e", "Ω")}))
    assert load_data(prepared).tokenizer.encode("Ω")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_data(prepared, verify=True)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[:-2], lambda b: b + b"\0\0", lambda b: b""])
def test_a_file_of_another_length_is_found_without_verifying(prepared, name, change):
    (prepared / name).write_bytes(change((prepared / name).read_bytes()))
    with pytest.raises(ValueError, match=name):
        load_data(prepared)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json", "meta.json"])
def test_a_missing_file_is_found(prepared, name):
    (prepared / name).unlink()
    with pytest.raises(ValueError, match="no prepared data" if name == "meta.json" else name):
        load_data(prepared)


def test_a_missing_folder_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"python scripts/prepare_data\.py --input .* --out .*nowhere"):
        load_data(tmp_path / "nowhere")


def test_a_tokenizer_of_another_size_is_found(prepared):
    get_tokenizer("char", ["abc"]).save(prepared / "tokenizer.json")
    with pytest.raises(ValueError, match="has 3 tokens"):
        load_data(prepared)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "NaN", "[" * 9999, '{"format": 3}', "\xff", "{}\0"])
def test_a_damaged_meta_json_is_refused(prepared, text):
    (prepared / "meta.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"meta\.json is damaged: its seal is not .*; prepare the data anew"):
        load_data(prepared)


def test_each_bit_of_meta_json_is_watched(prepared):
    """The count of bytes, too, by which losses are divided, and the name of the text."""
    path = prepared / "meta.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"meta\.json is damaged"):
            load_data(prepared)


def forge(prepared, change, drop=()):
    """A meta.json with other values, and the seal to match."""
    meta = json.loads((prepared / "meta.json").read_text()) | change
    (prepared / "meta.json").write_text(checksummed({name: value for name, value in meta.items() if name not in drop}))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"format": 4},
        {"format": None},
        {"dtype": "uint64"},
        {"dtype": "int16"},
        {"dtype": "(2,)u1"},
        {"dtype": "unknown"},
        {"dtype": {}},
        {"vocab_size": 7},
        {"train": None},
        {"train": {}},
        {"val": {"tokens": -1}},
        {"val": {"tokens": "300"}},
    ],
    ids=str,
)
def test_a_changed_value_in_meta_json_is_refused(prepared, change):
    forge(prepared, change)
    with pytest.raises(ValueError):
        load_data(prepared)


def test_a_folder_of_an_older_format_says_what_to_do(prepared):
    forge(prepared, {"format": 2})
    with pytest.raises(ValueError, match="out was prepared in format 2, this version reads 3: prepare the data anew"):
        load_data(prepared)


@pytest.mark.parametrize("key", ["format", "source", "vocab_size", "dtype", "has_eot", "train", "val"])
def test_a_missing_value_in_meta_json_is_refused(prepared, key):
    forge(prepared, {}, drop=[key])
    with pytest.raises(ValueError, match=r"meta\.json is damaged"):
        load_data(prepared)
