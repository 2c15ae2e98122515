"""gpt/text/hf_tokenizer.py against the `tokenizers` library: it reads the files written here, and writes those read."""

import json
import sys

import pytest
from conftest import corpus_of
from families import FAMILIES, mixed_texts, write_family
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt.text.hf_tokenizer import first_token, from_hf, to_hf, token_names
from gpt.text.prepare import prepare_data
from gpt.text.streams import decode_stream
from gpt.text.tokenizer_files import load_any_tokenizer
from gpt.text.tokenizers import get_tokenizer
from gpt.token_files import load_data
from gpt.tokenizer import (
    BytePairTokenizer,
    CharTokenizer,
    HuggingFaceTokenizer,
    from_dict,
    load_tokenizer,
    with_special_tokens,
)

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers comes with transformers, a development dependency")

TEXTS = {
    "English": "It's a café, isn't it? They've 12,345 of them...  and\tmore\n\n\n  than   that.\n",
    "German": "Größe, Übermut und Straßenbahn: »Äh«, sagte Jörg.",
    "Chinese": "从前有一个勇敢的孩子，名叫小明。他丢了铃铛！",
    "Arabic": "كان يا ما كان، في قديم الزمان، طفلٌ شجاع.",
    "code": "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # ok\r\n\tif x<=0: pass\n",
    "emoji": "👩🏽‍🚀 and 👨‍👩‍👧‍👦, e\u0301 and \u00e9; 🇩🇪 \u200b\u2028\u00a0x",
}
TOKENIZERS = {
    "gpt2": lambda: get_tokenizer("gpt2"),
    "bpe": lambda: get_tokenizer("bpe:400", [*TEXTS.values()] * 3),
    "char": lambda: CharTokenizer("".join(TEXTS.values())),
    "char with end": lambda: CharTokenizer("".join(TEXTS.values()), end_of_text=True),
    "with a mask": lambda: with_special_tokens(get_tokenizer("bpe:300", [*TEXTS.values()]), ["[MASK]"]),
}
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)


def theirs_of(tokenizer, prepend_eot=False):
    return tokenizers.Tokenizer.from_str(json.dumps(to_hf(tokenizer, prepend_eot)))


@pytest.fixture(scope="module")
def both():
    """Tokenizers by name: ours, and what the library makes of our file."""
    return {kind: (ours := make(), theirs_of(ours)) for kind, make in TOKENIZERS.items()}


# --- writing ----------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_tokens_of_many_languages(both, kind, text):
    ours, theirs = both[kind]
    assert theirs.encode(text).ids == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text


@settings(max_examples=50, deadline=None, derandomize=True)
@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t'aZ0é中😀-")), max_size=40))
@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
def test_tokens_of_arbitrary_text(both, kind, text):
    ours, theirs = both[kind]
    assert theirs.encode(text).ids == ours.encode(text)


def test_special_tokens(both):
    ours, theirs = both["with a mask"]
    text = "a [MASK] b<|endoftext|>"
    assert theirs.encode(text).ids == ours.encode(text, special=True)
    assert theirs.token_to_id("<|endoftext|>") == ours.eot_id


def test_unknown_characters_are_an_error_in_both(both):
    ours, theirs = both["char"]
    with pytest.raises(ValueError, match="is not among"):
        ours.encode("Q")
    with pytest.raises(Exception, match="UNK"):
        theirs.encode("Q")


@pytest.mark.parametrize("kind", ["bpe", "char with end"])
def test_the_end_of_text_token_comes_first_if_asked(both, kind):
    ours, plain = both[kind]
    theirs = theirs_of(ours, prepend_eot=True)
    assert theirs.encode(TEXTS["German"]).ids == [ours.eot_id, *ours.encode(TEXTS["German"])]
    assert theirs.encode("").ids == [ours.eot_id]
    assert first_token(json.loads(theirs.to_str()))
    assert not first_token(json.loads(plain.to_str()))


@KINDS
def test_a_file_that_the_library_wrote_is_read_back(both, kind, tmp_path):
    ours, theirs = both[kind]
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert load_any_tokenizer(tmp_path).to_dict() == ours.to_dict()


# --- other models' tokenizers -----------------------------------------------------------------------------------------


def test_a_tokenizer_of_another_model(tmp_path):
    """Byte pairs with ids in another order after several special tokens, as models in other languages have."""
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator([*TEXTS.values()] * 3, vocab_size=350, special_tokens=["<s>", "<pad>", "<|endoftext|>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    theirs.save_model(str(tmp_path))
    ours = load_any_tokenizer(tmp_path)
    assert (ours.vocab_size, ours.eot_id) == (theirs.get_vocab_size(), 2)
    for text in TEXTS.values():
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("<s>") == theirs.encode("<").ids + theirs.encode("s").ids + theirs.encode(">").ids
    ours.save(tmp_path / "ours.json")
    assert load_any_tokenizer(tmp_path / "ours.json").to_dict() == ours.to_dict()
    assert theirs_of(ours).encode(TEXTS["Arabic"]).ids == ours.encode(TEXTS["Arabic"])
    (tmp_path / "tokenizer.json").unlink()
    pair = load_any_tokenizer(tmp_path)  # vocab.json and merges.txt
    assert pair.encode(TEXTS["German"]) == ours.encode(TEXTS["German"])


def test_ids_that_no_token_has_are_unused():
    """A vocabulary with a gap between its byte pairs and its end-of-text token."""
    saved = to_hf(get_tokenizer("bpe:257", [""]), False)
    saved["model"]["vocab"]["<|endoftext|>"] = saved["added_tokens"][0]["id"] = 258
    ours = from_dict(from_hf(saved))
    assert (ours.vocab_size, ours.eot_id) == (259, 258)
    assert ours.decode([256, 257]) == "<|unused 256|><|unused 257|>"
    assert from_dict(ours.to_dict()).to_dict() == ours.to_dict()


@pytest.mark.parametrize(("change", "words"), [
    ({"model": {"type": "Unigram", "vocab": []}}, "of type 'Unigram'"),
    ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "94 of the printable characters of ASCII have no"),
    ({"model": {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "</w>"}}, "end_of_word_suffix '</w>'"),
    ({"pre_tokenizer": {"type": "Whitespace"}, "decoder": None}, "neither of bytes, as GPT-2's, nor of characters"),
    ({"pre_tokenizer": {"type": "Backwards"}}, "can be read here: data did not match"),
    ({"model": 7}, "can be read here: it is JSON, but no tokenizer"),
])  # fmt: skip
def test_unsupported_tokenizers(change, words, both, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**to_hf(both["bpe"][0], False), **change}))
    with pytest.raises(ValueError, match=words) as caught:
        load_any_tokenizer(tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["llama3", "sentencepiece"])
def test_a_damaged_file_is_one_sentence(name, tmp_path):
    """Cut short, or with a part that has another type."""
    path = write_family(name, tmp_path) / "tokenizer.json"
    whole = path.read_text(encoding="utf-8")
    file = json.loads(whole)
    damaged = [whole[: len(whole) * n // 7] for n in range(7)]
    damaged += [json.dumps(file | {key: value}) for key in ("model", "added_tokens") for value in ("x", [1], {"a": 1})]
    damaged += [json.dumps(file | {"model": file["model"] | {key: "x"}}) for key in ("type", "vocab", "merges")]
    for content in damaged:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer that can be read here: ") as caught:
            load_any_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)


# --- today's families -------------------------------------------------------------------------------------------------

MIXED = mixed_texts(2000)
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Tokenizers of all families by name: ours, and transformers'."""
    folders = {name: write_family(name, tmp_path_factory.mktemp("family")) for name in FAMILIES}
    load = transformers.AutoTokenizer.from_pretrained
    return {name: (load_any_tokenizer(folder), load(folder)) for name, folder in folders.items()}


@EVERY_FAMILY
def test_a_family_has_the_ids_and_texts_of_transformers(families, name):
    ours, theirs = families[name]
    for text in MIXED:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t\r'aZ0é中😀-./\u0301")), max_size=40))
@EVERY_FAMILY
def test_a_family_on_any_text(families, name, text):
    ours, theirs = families[name]
    # Hypothesis tries strings of the source code too: a special token in a text is text to us, but not to transformers
    assume(not any(token in text for token in theirs.get_added_vocab()))
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids)


@EVERY_FAMILY
def test_what_ends_and_starts_a_text(families, name):
    ours, theirs = families[name]
    _, end, start = FAMILIES[name]
    assert ours.eot_id == theirs.convert_tokens_to_ids(end)
    assert ours.bos_id == theirs.convert_tokens_to_ids(start or end)
    assert [ours.bos_id] * (start is not None) + ours.encode("Hello") == theirs.encode("Hello")
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("name", ["llama3", "sentencepiece"])
def test_a_run_starts_documents_as_its_data_do(families, name, tmp_path):
    """With the end-of-text token, which separates them; what its tokenizer's model had is kept for its own file."""
    ours, _ = families[name]
    ours.save(tmp_path / "tokenizer.json")
    of_a_run, of_the_model = load_tokenizer(tmp_path / "tokenizer.json"), load_any_tokenizer(tmp_path)
    assert of_a_run.bos_id == of_a_run.eot_id == ours.eot_id
    assert of_the_model.bos_id == ours.bos_id != ours.eot_id
    for tokenizer, prepend_eot, start in ((of_a_run, True, ours.eot_id), (of_a_run, False, ours.bos_id)):
        exported = tokenizers.Tokenizer.from_str(json.dumps(to_hf(tokenizer, prepend_eot)))
        assert exported.encode("Hi").ids == [start, *ours.encode("Hi")]
        assert token_names(tokenizer) == {"bos_token": FAMILIES[name][2], "eos_token": FAMILIES[name][1]}


@EVERY_FAMILY
def test_special_tokens_of_a_family(families, name):
    """A special token only where asked; its letters are text otherwise."""
    ours, theirs = families[name]
    texts = [f"{special}Hello {special}{special} x\n{special}" for special in ours.special_tokens]
    texts += [name.join(MIXED[30:34]) for name in ours.special_tokens]
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, special=True) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        plain = ours.encode(text)
        assert not set(ours.special_tokens.values()) & set(plain)
        assert ours.decode(plain) == text


@EVERY_FAMILY
def test_a_family_is_saved_and_exported(families, name, tmp_path):
    ours, theirs = families[name]
    ours.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    exported = tokenizers.Tokenizer.from_str(json.dumps(to_hf(again, False)))
    for text in [*MIXED[:200], "a<think>b</think> <s>c</s><|im_end|>"]:
        ids = theirs.encode(text)
        assert exported.encode(text).ids == ids
        assert exported.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    for tokenizer in (again, load_any_tokenizer(tmp_path)):
        assert tokenizer.to_dict() == ours.to_dict()
        assert tokenizer.eot_id == ours.eot_id
        assert tokenizer.encode(MIXED[0]) == ours.encode(MIXED[0])


@pytest.mark.parametrize("name", ["smollm2", "sentencepiece"])
def test_data_are_prepared_with_a_family(name, tmp_path):
    folder = write_family(name, tmp_path / "model", chat_template="{{ messages }}")
    texts = [text.replace("\r", "").lstrip(" ") for text in MIXED[:20]]  # SentencePiece forgets a leading space
    corpus = corpus_of(tmp_path / "in", *texts)
    data = prepare_data(corpus, str(folder), tmp_path / "out", 0.2)
    again = load_data(tmp_path / "out", verify=True)
    assert again.tokenizer.to_dict() == load_any_tokenizer(folder).to_dict()
    assert [*again.documents(again.train), *again.documents(again.val)] == texts
    assert data.train.tokens[0] == again.tokenizer.eot_id == 2


@pytest.mark.parametrize("name", ["smollm2", "sentencepiece"])
def test_special_tokens_are_added_to_a_family(families, name, tmp_path):
    ours, _ = families[name]
    more = with_special_tokens(ours, ["[MASK]"])
    more.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.encode("a[MASK]", special=True) == [*ours.encode("a"), ours.vocab_size]
    assert again.vocab_size == ours.vocab_size + 1
    exported = tokenizers.Tokenizer.from_str(json.dumps(to_hf(again, False)))
    assert exported.token_to_id("[MASK]") == ours.vocab_size


@EVERY_FAMILY
def test_a_long_text_of_a_family(families, name):
    """Longer than the pieces in which it is encoded, if it is."""
    ours, theirs = families[name]
    text = "".join(MIXED)[:40_000] * (3 if isinstance(ours, BytePairTokenizer) else 1)
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_bytes_without_a_token_are_dropped(families):
    ours, theirs = families["smollm2"]
    assert ours.encode("a\x04b\x13 c") == theirs.encode("a\x04b\x13 c") == ours.encode("ab c")


@pytest.mark.parametrize("change", [
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "[a-z]"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}},
    {"normalizer": {"type": "Lowercase"}},
    {"normalizer": {"type": "NFC"}},
])  # fmt: skip
def test_other_rules_are_left_to_the_library(families, change, tmp_path):
    file = to_hf(families["gpt2"][0], False) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    ours, theirs = load_any_tokenizer(tmp_path), tokenizers.Tokenizer.from_str(json.dumps(file))
    for text in MIXED[:300]:
        assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_special_tokens_that_change_the_text_around_them(families, flag, tmp_path):
    file = to_hf(families["gpt2"][0], False)
    file["added_tokens"][0][flag] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    ours, theirs = load_any_tokenizer(tmp_path), tokenizers.Tokenizer.from_str(json.dumps(file))
    text = "a <|endoftext|> b<|endoftext|>c"
    assert ours.encode(text, special=True) == theirs.encode(text).ids != families["gpt2"][0].encode(text, special=True)


@pytest.mark.parametrize(("word", "kind"), [("QxzW", BytePairTokenizer), ("Qx", HuggingFaceTokenizer)])
def test_a_word_that_no_merges_make(families, word, kind, tmp_path):
    """tiktoken's engine would merge Q and x within other words too."""
    file = to_hf(families["gpt2"][0], False)
    model, eot = file["model"], file["added_tokens"][0]
    model["ignore_merges"], model["vocab"][word] = True, eot["id"]
    eot["id"] += 1
    del model["vocab"]["<|endoftext|>"]  # where words need no merges, a word that is its name would become this token
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    ours, theirs = load_any_tokenizer(tmp_path), tokenizers.Tokenizer.from_str(json.dumps(file))
    assert isinstance(ours, kind)
    for text in (f"{word} {word}", f"a{word} {word}a", word[:-1], *MIXED[:100]):
        assert ours.encode(text) == theirs.encode(text).ids
    assert to_hf(ours, False) == file


def test_merges_in_another_order_than_their_ids(families, tmp_path):
    """As the first ids of two merges swapped: the merge comes first that is listed first."""
    file = to_hf(families["gpt2"][0], False)
    vocab, merges = file["model"]["vocab"], file["model"]["merges"]
    first, last = "".join(merges[0]), "".join(merges[-1])
    vocab[first], vocab[last] = vocab[last], vocab[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    ours, theirs = load_any_tokenizer(tmp_path), tokenizers.Tokenizer.from_str(json.dumps(file))
    assert isinstance(ours, HuggingFaceTokenizer)
    for text in MIXED[:300]:
        assert ours.encode(text) == theirs.encode(text).ids


def test_without_the_library_it_is_named(families, tmp_path, monkeypatch):
    families["sentencepiece"][0].save(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for load in (load_tokenizer, load_any_tokenizer):
        with pytest.raises(ValueError, match=r'pip install -e "\.\[tokenizers\]"'):
            load(tmp_path / "tokenizer.json")
    assert get_tokenizer("gpt2").encode("a") == [64]


@pytest.mark.parametrize("name", ["qwen", "sentencepiece"])
def test_streamed_tokens_join_to_the_text(families, name):
    ours, _ = families[name]
    for text in MIXED[:40]:
        assert "".join(decode_stream(ours, ours.encode(text))).strip(" ") == ours.decode(ours.encode(text)).strip(" ")
