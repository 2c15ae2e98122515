"""gpt/data.py: windows, their order, and prepared folders."""

import hashlib
import json
import math
import tempfile
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt.data
from gpt.corpus import Corpus, open_corpus
from gpt.data import TokenWindows, WindowSampler, create_dataloader, describe, load_data, prepare_data
from gpt.tokenizer import CharTokenizer, get_tokenizer

STORY = (Path(__file__).parent.parent / "data" / "story.txt").read_text(encoding="utf-8")
FILES = ["train.bin", "val.bin", "tokenizer.json", "meta.json"]
BYTES, EOT = "bpe:257", 256  # a tokenizer without merges: its ids are the UTF-8 bytes, and 256 ends a text
quick = settings(deadline=None, derandomize=True, max_examples=60)


def corpus_of(folder, *texts):
    """A corpus of one document per text."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{n:03}.txt" for n in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return Corpus("a corpus", paths)


def published_windows(ids, context_length, stride):
    """The windows of the published from-scratch GPT's dataset, in its words."""
    starts = range(0, len(ids) - context_length, stride)
    return [(ids[i : i + context_length], ids[i + 1 : i + context_length + 1]) for i in starts]


def snapshot(folder):
    """Every file below a folder with its content."""
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


# --- windows ----------------------------------------------------------------------------------------------------------


@quick
@given(n=st.integers(2, 60), context_length=st.integers(1, 20), stride=st.integers(0, 30), data=st.data())
def test_windows_are_those_of_brute_force(n, context_length, stride, data):
    tokens = data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=n, max_size=n))
    if n <= context_length:
        with pytest.raises(ValueError, match="too few for one window"):
            TokenWindows(tokens, context_length, stride)
        return
    windows = TokenWindows(np.array(tokens, np.uint16), context_length, stride)
    expected = published_windows(tokens, context_length, stride or context_length)
    assert len(windows) == len(expected)
    assert [(inputs.tolist(), targets.tolist()) for inputs, targets in windows] == expected
    indices = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=5))
    inputs, targets = windows.batch(indices)
    assert inputs.shape == targets.shape == (len(indices), context_length)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.tolist() == [expected[i][0] for i in indices]
    assert targets.tolist() == [expected[i][1] for i in indices]


@pytest.mark.parametrize("index", [-1, 4, 100])
def test_a_window_that_is_not_there_is_an_index_error(index):
    windows = TokenWindows(range(13), 3)
    assert len(windows) == 4
    with pytest.raises(IndexError):
        windows[index]


@pytest.mark.parametrize("n", [0, 1, 3, 4])
def test_too_few_tokens_for_a_window_are_refused(n):
    with pytest.raises(ValueError, match=f"{n} tokens are too few.*context_length 4 takes 5"):
        TokenWindows(list(range(n)), 4)
    assert len(TokenWindows(list(range(5)), 4)) == 1


def test_windows_of_a_memory_mapped_file_read_nothing_ahead(tmp_path):
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    file = np.memmap(tmp_path / "tokens.bin", np.uint16, mode="r")
    windows = TokenWindows(file, 10)
    assert np.shares_memory(windows.tokens, file)
    assert windows[8][0].tolist() == list(range(80, 90))


def test_ids_above_65535_stay_what_they_are():
    inputs, targets = TokenWindows(np.array([70_000, 2**31, 2**32 - 1], np.uint32), 2)[0]
    assert (inputs.tolist(), targets.tolist()) == ([70_000, 2**31], [2**31, 2**32 - 1])


# --- their order ------------------------------------------------------------------------------------------------------

SIZES = {"n": st.integers(1, 40), "batch": st.integers(1, 50), "seed": st.integers(0, 2**63 - 1)}


@quick
@given(**SIZES, shuffle=st.booleans())
def test_each_window_comes_once_per_epoch(n, batch, seed, shuffle):
    sampler = WindowSampler(n, batch, shuffle, seed)
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
    asked, other = WindowSampler(n, batch, seed=seed), WindowSampler(n + 1, batch, seed=seed)
    before = {}
    for k in order:
        before[k] = asked.step(k)
        other.step(k)
    list(asked)
    assert {k: WindowSampler(n, batch, seed=seed).step(k) for k in reversed(order)} == before
    assert {k: asked.step(k) for k in order} == before


@quick
@given(**SIZES, shuffle=st.booleans(), drop_last=st.booleans())
def test_an_epoch_of_batches_is_its_stretch_of_the_steps(n, batch, seed, shuffle, drop_last):
    sampler = WindowSampler(n, batch, shuffle, seed, drop_last)
    sequence = [i for k in range(math.ceil(3 * n / batch)) for i in sampler.step(k)]
    for epoch in range(3):
        batches = list(sampler)
        kept = n - n % batch if drop_last else n
        assert len(batches) == len(sampler) == (n // batch if drop_last else -(-n // batch))
        assert [i for b in batches for i in b] == sequence[epoch * n : epoch * n + kept]
        assert all(len(b) == batch for b in (batches if drop_last else batches[:-1]))


@quick
@given(**SIZES, other_batch=st.integers(1, 50))
def test_the_sequence_does_not_depend_on_the_batch_size(n, batch, seed, other_batch):
    one, other = WindowSampler(n, batch, seed=seed), WindowSampler(n, other_batch, seed=seed)
    sequences = [[i for k in range(-(-100 // s.batch_size)) for i in s.step(k)][:100] for s in (one, other)]
    assert sequences[0] == sequences[1]


def test_epochs_and_seeds_differ_in_order():
    """Of 100! orders, no two of six should be equal."""
    orders = [tuple(WindowSampler(100, 100, seed=seed).step(epoch)) for seed in (0, 1, 1337) for epoch in (0, 1)]
    assert len({*orders, tuple(range(100))}) == 7


def test_shuffling_favours_no_place():
    """Where window 0 of 4 comes, over 4,000 epochs: each place 1,000 times, give or take 6 standard deviations."""
    sampler = WindowSampler(4, 4, seed=5)
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
    windows = published_windows(ids, context_length, stride or context_length)
    for n, (inputs, targets) in enumerate(loader):
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape == (batch_size, context_length)
        assert inputs.tolist() == [w[0] for w in windows[n * batch_size : (n + 1) * batch_size]]
        assert targets.tolist() == [w[1] for w in windows[n * batch_size : (n + 1) * batch_size]]
    assert len(loader) == n + 1 == len(windows) // batch_size


@pytest.mark.parametrize("name", ["gpt2", "char", "bpe:300"])
def test_a_text_is_encoded_by_the_tokenizer_of_that_name_or_by_one_that_is_given(name):
    text = "Every effort moves you. " * 20
    tokenizer = get_tokenizer(name, [text])
    ids = tokenizer.encode(text)
    windows = published_windows(ids, 8, 8)
    for given_tokenizer in (name, tokenizer):
        loader = create_dataloader(text, given_tokenizer, batch_size=1, context_length=8, shuffle=False)
        assert listed(loader) == [([inputs], [targets]) for inputs, targets in windows]


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
    list(WindowSampler(50, 5))
    TokenWindows(range(50), 4).batch([0, 3])
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


# --- preparing: what the files hold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("val_fraction", [0.1, 0.05, 0.5])
def test_the_story_is_split_at_the_right_character(tmp_path, gpt2, val_fraction):
    """As by hand: encode text[:n] and text[n:]."""
    data = prepare_data(open_corpus("story"), "gpt2", tmp_path / "out", val_fraction)
    n = int(len(STORY) * (1 - Fraction(str(val_fraction))))
    assert data.train.tokens.tolist() == gpt2.encode(STORY[:n])
    assert data.val.tokens.tolist() == gpt2.encode(STORY[n:])
    assert (data.train.characters, data.val.characters) == (n, len(STORY) - n)
    assert (data.train.documents, data.val.documents) == (1, 1)
    assert data.tokenizer.name == "gpt2"


@pytest.mark.parametrize("name", ["gpt2", "char", "bpe:300"])
def test_a_file_that_is_read_in_many_pieces_gives_the_same_tokens(tmp_path, monkeypatch, name):
    monkeypatch.setattr(gpt.corpus, "PIECE", 700)
    data = prepare_data(open_corpus("story"), name, tmp_path / "out", 0.3)
    n = int(len(STORY) * Fraction("0.7"))
    tokenizer = get_tokenizer(name, [STORY])
    assert data.train.tokens.tolist() == tokenizer.encode(STORY[:n])
    assert data.val.tokens.tolist() == tokenizer.encode(STORY[n:])


@quick
@given(
    texts=st.lists(st.text("ab 1.\né中😀", min_size=1, max_size=12), min_size=1, max_size=9),
    percent=st.integers(1, 99),
    piece=st.sampled_from([1, 5, 1 << 20]),
)
def test_fewer_than_ten_documents_are_split_by_characters(texts, percent, piece):
    """The last percent, rounded up, validate. Each document, or part of one, ends with EOT."""
    total = sum(map(len, texts))
    n = total - -(-total * percent // 100)
    train, val, place = [], [], 0
    for text in texts:
        head, tail = text[: max(n - place, 0)], text[max(n - place, 0) :]
        train += [head] if head else []
        val += [tail] if tail else []
        place += len(text)
    end = [EOT] if len(texts) > 1 else []
    expected = [[i for part in parts for i in [*part.encode(), *end]] for parts in (train, val)]

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt.corpus, "PIECE", piece)
        corpus, out = corpus_of(Path(folder, "in"), *texts), Path(folder, "out")
        if min(map(len, expected)) < 2:
            with pytest.raises(ValueError, match=r"too short|no text to learn from"):
                prepare_data(corpus, BYTES, out, percent / 100)
            return
        data = prepare_data(corpus, BYTES, out, percent / 100)
        assert [data.train.tokens.tolist(), data.val.tokens.tolist()] == expected
        assert [data.train.documents, data.val.documents] == [len(train), len(val)]
        assert [data.train.characters, data.val.characters] == [n, total - n]


@pytest.mark.parametrize(("n", "val_fraction", "n_val"), [(50, 0.14, 7), (25, 0.28, 7), (100, 0.07, 7), (51, 0.14, 8)])
def test_the_split_is_that_of_exact_fractions(tmp_path, n, val_fraction, n_val):
    """In floating point 50 * 0.14 is a little more than 7, which must not round up to 8."""
    assert (n * val_fraction > n_val) == (n != 51)
    data = prepare_data(corpus_of(tmp_path / "in", "a" * n), "char", tmp_path / "out", val_fraction)
    assert (data.train.characters, data.val.characters) == (n - n_val, n_val)


@pytest.mark.parametrize(
    ("n", "val_fraction", "n_val"), [(10, 0.1, 1), (10, 0.01, 1), (12, 0.25, 3), (25, 0.2, 5), (10, 0.9, 9)]
)
def test_ten_or_more_documents_are_split_by_documents(tmp_path, n, val_fraction, n_val):
    texts = [f"text {i} " * (i + 1) for i in range(n)]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), BYTES, tmp_path / "out", val_fraction)
    for split, part in ((data.train, texts[:-n_val]), (data.val, texts[-n_val:])):
        assert split.tokens.tolist() == [i for text in part for i in [*text.encode(), EOT]]
        assert (split.documents, split.characters) == (len(part), sum(map(len, part)))


def test_a_split_that_leaves_no_document_to_train_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too short"):
        prepare_data(corpus_of(tmp_path / "in", *["a text"] * 10), BYTES, tmp_path / "out", 0.99)
    assert not (tmp_path / "out").exists()


def test_several_documents_of_characters_have_nothing_between_them(tmp_path):
    data = prepare_data(corpus_of(tmp_path / "in", "abab", "baba"), "char", tmp_path / "out", 0.25)
    assert data.tokenizer.decode(data.train.tokens) == "ababba"
    assert data.tokenizer.decode(data.val.tokens) == "ba"


def test_a_validation_corpus_validates_and_the_whole_corpus_trains(tmp_path):
    corpus, val_corpus = corpus_of(tmp_path / "in", "the training text"), corpus_of(tmp_path / "val", "Zoë")
    data = prepare_data(corpus, "char", tmp_path / "out", val_corpus=val_corpus)
    assert data.tokenizer.decode(data.train.tokens) == "the training text"
    assert data.tokenizer.decode(data.val.tokens) == "Zoë"
    assert data.tokenizer.characters == sorted({*"the training text", *"Zoë"})
    assert (data.val.characters, data.val.bytes) == (3, 4)


def test_each_of_several_validation_documents_ends_with_end_of_text(tmp_path):
    corpus, val_corpus = corpus_of(tmp_path / "in", "the training text"), corpus_of(tmp_path / "val", "ab", "cd")
    data = prepare_data(corpus, BYTES, tmp_path / "out", val_corpus=val_corpus)
    assert data.val.documents == 2
    assert data.val.tokens.tolist() == [*b"ab", EOT, *b"cd", EOT]


def test_learned_tokenizers_learn_from_both_splits(tmp_path):
    corpus = corpus_of(tmp_path / "in", "a" * 90 + "xy" * 5)
    assert prepare_data(corpus, "char", tmp_path / "char").tokenizer.characters == ["a", "x", "y"]
    merges = prepare_data(corpus, "bpe:1000", tmp_path / "bpe").tokenizer.merges
    assert (ord("x"), ord("y")) in merges


def test_a_saved_tokenizer_can_prepare_other_data(tmp_path):
    first = prepare_data(corpus_of(tmp_path / "1", STORY), "bpe:300", tmp_path / "first")
    again = prepare_data(corpus_of(tmp_path / "2", STORY[:500]), str(tmp_path / "first/tokenizer.json"), tmp_path / "b")
    assert again.tokenizer.merges == first.tokenizer.merges
    assert again.train.tokens.tolist() == first.tokenizer.encode(STORY[:450])


def test_a_text_of_one_repeated_character(tmp_path):
    data = prepare_data(corpus_of(tmp_path / "in", "a" * 40), "char", tmp_path / "out")
    assert data.tokenizer.vocab_size == 1
    assert (data.train.tokens.tolist(), data.val.tokens.tolist()) == ([0] * 36, [0] * 4)


def test_meta_json_counts_what_the_files_hold(tmp_path):
    texts = ["Ein Bär\r\nging. ", "中文 😀", "the end"]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), "bpe:260", tmp_path / "out", 0.4)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    whole = "".join(texts).replace("\r\n", "\n")
    assert meta["train"]["characters"] + meta["val"]["characters"] == len(whole)
    assert meta["train"]["bytes"] + meta["val"]["bytes"] == len(whole.encode())
    assert {key: meta[key] for key in ("source", "tokenizer", "vocab_size", "dtype")} == {
        "source": "a corpus",
        "tokenizer": data.tokenizer.name,
        "vocab_size": data.tokenizer.vocab_size,
        "dtype": "uint16",
    }
    for split in ("train", "val"):
        content = (tmp_path / "out" / f"{split}.bin").read_bytes()
        ids = np.frombuffer(content, np.uint16)
        text = data.tokenizer.decode(ids[ids != data.tokenizer.eot_id])
        counted = {
            "documents": int((ids == data.tokenizer.eot_id).sum()),
            "characters": len(text),
            "bytes": len(text.encode()),
            "tokens": len(ids),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        assert meta[split] == counted
        loaded = getattr(data, split)
        assert loaded.tokens.tolist() == ids.tolist()
        assert all(getattr(loaded, key) == counted[key] for key in ("documents", "characters", "bytes", "sha256"))


@pytest.mark.parametrize(("n_characters", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_take_two_bytes_up_to_65536_tokens_and_four_beyond(tmp_path, n_characters, dtype):
    text = "".join(map(chr, range(0x10000, 0x10000 + n_characters)))
    data = prepare_data(corpus_of(tmp_path / "in", text), "char", tmp_path / "out")
    assert (data.tokenizer.vocab_size, data.train.tokens.dtype, data.val.tokens.dtype) == (n_characters, dtype, dtype)
    assert [*data.train.tokens, *data.val.tokens] == list(range(n_characters))


def test_describe_names_the_counts(tmp_path):
    data = prepare_data(corpus_of(tmp_path / "in", "é" * 30), BYTES, tmp_path / "out")
    lines = describe(data).splitlines()
    assert "257 tokens" in lines[0]
    assert "54 tokens, 27 characters, 54 bytes (1.00 per token), documents: 1" in lines[1]
    assert "6 tokens, 3 characters, 6 bytes (1.00 per token), documents: 1" in lines[2]


def test_memory_stays_bounded(tmp_path, monkeypatch):
    """A file of 2 MB is prepared in a fraction of that: nothing holds the whole text or all of its ids."""
    monkeypatch.setattr(gpt.corpus, "PIECE", 10_000)
    corpus = corpus_of(tmp_path / "in", "some words " * 180_000)
    prepare_data(corpus_of(tmp_path / "warm-up", "some words "), "char", tmp_path / "out")
    tracemalloc.start()
    prepare_data(corpus, "char", tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


# --- preparing: all or nothing ----------------------------------------------------------------------------------------


def test_preparing_anew_replaces_what_was_there(tmp_path):
    out = tmp_path / "out"
    prepare_data(corpus_of(tmp_path / "in", STORY[:2000]), "char", out)
    data = prepare_data(corpus_of(tmp_path / "in", "another text"), BYTES, out)
    assert bytes(data.train.tokens.tolist()) + bytes(data.val.tokens.tolist()) == b"another text"
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json"])
def test_a_folder_that_lost_a_file_may_be_prepared_anew(tmp_path, name):
    """As the complaint about it advises."""
    corpus = corpus_of(tmp_path / "in", STORY[:100])
    prepare_data(corpus, "char", tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(ValueError):
        load_data(tmp_path / "out")
    assert prepare_data(corpus, "char", tmp_path / "out").train.characters == 90


def test_an_empty_folder_may_be_prepared_into(tmp_path):
    (tmp_path / "out").mkdir()
    assert prepare_data(corpus_of(tmp_path / "in", STORY[:100]), "char", tmp_path / "out").train.characters == 90


def test_missing_parents_are_made_and_permissions_are_the_usual_ones(tmp_path):
    prepare_data(corpus_of(tmp_path / "in", STORY[:100]), "char", tmp_path / "a" / "b" / "out")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "a" / "b" / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("names", [["thesis.txt"], ["thesis.txt", "train.bin"], ["thesis.txt", "meta.json"]], ids=str)
def test_a_folder_that_holds_other_things_is_refused_and_left_alone(tmp_path, names):
    """Even if one of them is called meta.json, as other programs' files are too."""
    out, corpus = tmp_path / "out", corpus_of(tmp_path / "in", STORY[:500])
    out.mkdir()
    for name in names:
        (out / name).write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="out exists and is not a folder of prepared data"):
        prepare_data(corpus, "char", out)
    assert snapshot(tmp_path) == before


def test_a_file_in_place_of_the_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(ValueError, match="out exists and is not a folder of prepared data"):
        prepare_data(corpus_of(tmp_path / "in", STORY[:500]), "char", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "years of work"


def test_a_link_to_a_folder_on_another_disk_may_be_prepared_into(tmp_path):
    (tmp_path / "disk").mkdir()
    try:
        (tmp_path / "out").symlink_to(tmp_path / "disk", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no symbolic links")
    assert prepare_data(corpus_of(tmp_path / "in", STORY[:100]), "char", tmp_path / "out").train.characters == 90
    assert (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == sorted(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "in", "out"]


@pytest.mark.parametrize(
    ("texts", "tokenizer", "val_fraction"),
    [
        ([""], "gpt2", 0.1),
        (["", "", ""], BYTES, 0.1),
        (["a"], "char", 0.5),
        (["ab"], "char", 0.5),  # one token each
        (["a" * 1000], "char", 0.001),  # one token to validate
        (["some text"], "bpe:9", 0.1),
        (["some text"], "unknown", 0.1),
        (["some text"] * 3, BYTES, 0.0),
        (["some text"] * 3, BYTES, 1.0),
        (["some text"] * 3, BYTES, -0.1),
        (["some text"] * 3, BYTES, math.nan),
        (["some text", "binary \0"], BYTES, 0.1),
    ],
)
def test_what_cannot_be_prepared_is_refused_and_nothing_left_behind(tmp_path, texts, tokenizer, val_fraction):
    corpus = corpus_of(tmp_path / "in", *texts)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError):
        prepare_data(corpus, tokenizer, tmp_path / "out", val_fraction)
    assert snapshot(tmp_path) == before


def test_a_character_outside_a_given_vocabulary_is_refused_and_nothing_left_behind(tmp_path):
    get_tokenizer("char", ["abc "]).save(tmp_path / "abc.json")
    corpus = corpus_of(tmp_path / "in", "abc cab bad")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="'d'"):
        prepare_data(corpus, str(tmp_path / "abc.json"), tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_an_interruption_leaves_the_old_data_as_it_was(tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare_data(corpus_of(tmp_path / "in", STORY[:2000]), "char", out)
    corpus = corpus_of(tmp_path / "new", *["another text"] * 3)
    before = snapshot(tmp_path)

    class Interrupted(CharTokenizer):
        calls = 0

        def encode(self, text, special=False):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().encode(text)

    monkeypatch.setattr(gpt.data, "get_tokenizer", lambda *args: Interrupted("another text"))
    with pytest.raises(KeyboardInterrupt):
        prepare_data(corpus, "char", out)
    assert snapshot(tmp_path) == before


def test_new_data_that_cannot_be_put_in_place_leaves_the_old_as_it_was(tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare_data(corpus_of(tmp_path / "in", STORY[:2000]), "char", out)
    corpus = corpus_of(tmp_path / "new", "another text")
    before, rename, refused = snapshot(tmp_path), Path.rename, []

    def refuse_once(self, target):
        if Path(target).name == "out" and not refused:
            refused.append(self)
            raise PermissionError("the file is open in another program")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_once)
    with pytest.raises(PermissionError):
        prepare_data(corpus, "char", out)
    assert refused
    assert snapshot(tmp_path) == before


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


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 1, "train": []}'])
def test_a_damaged_meta_json_is_refused(prepared, text):
    (prepared / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=r"meta\.json is damaged"):
        load_data(prepared)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 0},
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
    meta = json.loads((prepared / "meta.json").read_text())
    (prepared / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(ValueError):
        load_data(prepared)


@pytest.mark.parametrize("key", ["format", "source", "vocab_size", "dtype", "train", "val"])
def test_a_missing_value_in_meta_json_is_refused(prepared, key):
    meta = json.loads((prepared / "meta.json").read_text())
    del meta[key]
    (prepared / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"meta\.json is damaged"):
        load_data(prepared)
