"""gpt/text/hf_tokenizer.py against the `tokenizers` library: it reads the files written here, and writes those read."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.text.hf_tokenizer import from_hf, load_any_tokenizer, starts_with_eot, to_hf
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import CharTokenizer, from_dict, with_special_tokens

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
    assert starts_with_eot(json.loads(theirs.to_str()))
    assert not starts_with_eot(json.loads(plain.to_str()))


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
    ({"normalizer": {"type": "NFC"}}, r"normalizes text before splitting it \(NFC\)"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "does not split text into GPT-2's words"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "does not split text"),
    ({"model": {"type": "Unigram", "vocab": []}}, "of type 'Unigram'"),
    ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "255 of the 256 bytes have no token"),
    ({"model": 7}, "TypeError"),
])  # fmt: skip
def test_unsupported_tokenizers(change, words, both, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**to_hf(both["bpe"][0], False), **change}))
    with pytest.raises(ValueError, match=words) as caught:
        load_any_tokenizer(tmp_path)
    assert str(file) in str(caught.value)
