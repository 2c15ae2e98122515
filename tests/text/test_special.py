"""gpt/text/special.py: names of special tokens in a corpus, as these tokens or as ordinary text."""

import json
import re
from collections import Counter

import pytest
from conftest import corpus_of, pairs_of

import gpt.text.encode
import gpt.text.readers
from gpt.text.encode import encode_documents
from gpt.text.prepare import has_special_tokens, prepare_data
from gpt.text.special import describe_spelled, name_counter
from gpt.text.tokenizers import get_tokenizer
from gpt.token_files import load_data
from gpt.tokenizer import EOT, with_special_tokens

FLAGS = {  # name -> how it matches in a text, as Hugging Face's library has it
    "<|user|>": {},
    "<|left|>": {"lstrip": True},
    "<|right|>": {"rstrip": True},
    "wholly": {"single_word": True, "special": False},
    "<two words>": {"normalized": True, "special": False},
}
TURNS = "<|user|> hello there \n <|left|>\n\nwholly, unwholly <|right|>  \n <two words> 中文<|user|>a<|user|>"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with a published tokenizer that has added tokens of every kind."""
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("published")
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator([TURNS] * 3, trainer)
    added = {name: {"special": True, "normalized": False} | flags for name, flags in FLAGS.items()}
    engine.add_tokens([tokenizers.AddedToken(name, **flags) for name, flags in added.items()])
    transformers.PreTrainedTokenizerFast(tokenizer_object=engine, eos_token=EOT).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("piece", [5, 64, 1 << 20])
def test_special_tokens_of_a_corpus_are_those_of_transformers(tmp_path, monkeypatch, published, piece):
    """Wherever the chunks are cut: within a name, or within the white space around one."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(published)
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", piece)
    monkeypatch.setattr(gpt.text.encode, "BATCH_CHARACTERS", 2 * piece)
    texts = [TURNS * n for n in (1, 3, 9)] + ["no names, some words. " * 9]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), str(published), tmp_path / "out", 0.3, special_tokens=[])
    n = data.train.characters
    whole, cut = "".join(texts), []
    for text in texts:
        cut += [text[: max(n, 0)], text[max(n, 0) :]]
        n -= len(text)
    eot = theirs.eos_token_id
    for split, parts in ((data.train, cut[::2]), (data.val, cut[1::2])):
        expected = [[eot, *theirs.encode(part, add_special_tokens=False)] for part in parts if part]
        assert split.tokens.tolist() == [*(i for ids in expected for i in ids), eot]
    assert data.train.characters + data.val.characters == len(whole)
    assert has_special_tokens(data.folder)
    encoded = encode_documents(texts, data.tokenizer, True, special=True).tolist()
    assert encoded == [eot, *(i for text in texts for i in [*theirs.encode(text, add_special_tokens=False), eot])]


def test_new_names_are_added_and_stored(tmp_path):
    corpus = corpus_of(tmp_path / "in", "<|user|>ab" * 20, "<|demo|>ba" * 20)
    data = prepare_data(corpus, "bpe:257", tmp_path / "out", 0.5, special_tokens=["<|user|>", "<|demo|>", EOT])
    assert data.tokenizer.special_tokens == {EOT: 256, "<|user|>": 257, "<|demo|>": 258}
    assert data.train.tokens.tolist() == [256, *[257, 97, 98] * 20, 256]
    assert [*data.documents(data.val)] == ["<|demo|>ba" * 20]
    again = prepare_data(corpus, str(tmp_path / "out" / "tokenizer.json"), tmp_path / "2", 0.5, special_tokens=())
    assert again.checksums == data.checksums
    plain = prepare_data(corpus, "bpe:257", tmp_path / "plain", 0.5)
    assert bytes(plain.train.tokens[1:-1].tolist()).decode() == "<|user|>ab" * 20
    assert "special_tokens" not in json.loads((tmp_path / "plain" / "meta.json").read_text())
    assert not has_special_tokens(plain.folder)
    assert not has_special_tokens(tmp_path / "nowhere")


@pytest.mark.parametrize("batch", [1, 1 << 19])
def test_end_of_text_in_a_text_ends_a_document(tmp_path, monkeypatch, batch):
    """Once, where the text ends with it, also if the separator comes in another batch."""
    monkeypatch.setattr(gpt.text.encode, "BATCH_CHARACTERS", batch)
    files = [f"hello{EOT}there{EOT}", "one", f"{EOT}{EOT}two"]
    data = prepare_data(corpus_of(tmp_path / "in", *files * 4), "bpe:257", tmp_path / "out", 0.25, special_tokens=[])
    texts = ["hello", "there", "one", "two"]
    assert [*data.documents(data.train)] == texts * 3
    assert [*data.documents(data.val)] == texts
    assert (data.train.documents, data.val.documents) == (12, 4)
    assert load_data(data.folder, verify=True).train.tokens[0] == data.tokenizer.eot_id


def test_end_of_text_in_a_pair_is_refused(tmp_path):
    corpus = pairs_of(tmp_path / "in", [("q", "a"), (f"q{EOT}", "a")])
    with pytest.raises(ValueError, match="a prompt or a target holds the end-of-text token"):
        prepare_data(corpus, "bpe:257", tmp_path / "out", 0.5, special_tokens=[])
    assert prepare_data(corpus, "bpe:257", tmp_path / "out", 0.5).paired


# --- names that stay ordinary text ------------------------------------------------------------------------------------


def test_spelled_names_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.text.encode, "BATCH_CHARACTERS", 100)
    tokenizer = with_special_tokens(get_tokenizer("gpt2"), ["[MASK]", "<|reserved_7|>"])
    text = f"{EOT} a [MASK] <|user|> b <|not a name|> <|reserved_7|> [mask] <|user|>"
    assert name_counter(tokenizer, False)(text) == Counter({EOT: 1, "[MASK]": 1, "<|user|>": 2})
    assert name_counter(tokenizer, True)(text) == Counter({"<|user|>": 2})
    assert name_counter(tokenizer, False)("prose <s> [INST] <unknown> [sep]") == Counter()
    assert name_counter(tokenizer, False)("one </s> two <unk> [SEP] </s>") == Counter(
        {"</s>": 2, "<unk>": 1, "[SEP]": 1}
    )
    said = []
    files = [f"<|user|>hello <|x|>{EOT}" * 30, "<|user|>there" * 30]
    prepare_data(corpus_of(tmp_path / "in", *files), "gpt2", tmp_path / "out", 0.25, log=said.append)
    (line,) = [line for line in said if "ordinary text" in line]
    assert re.match(
        r"<\|user\|> \(\d\d times\), <\|endoftext\|> \(30 times\), <\|x\|> \(30 times\) in the text stay", line
    )
    assert "--special_tokens '<|user|>' '<|x|>' makes" in line
    assert f"--separator '{EOT}'" in line


@pytest.mark.parametrize(
    ("spelled", "paired", "words"),
    [
        ({}, False, ""),
        ({"<|user|>": 4}, False, ""),  # mentioned, not used
        ({"<|user|>": 5}, False, "in the text stays ordinary text: --special_tokens '<|user|>' makes it a token"),
        ({EOT: 1}, True, "--special_tokens makes it a token of its own"),
        (dict.fromkeys(["<|a|>", "<|b|>", "<|c|>", "<|d|>"], 9), False, "and 1 more"),
    ],
)
def test_the_line_about_spelled_names(spelled, paired, words):
    line = describe_spelled(Counter(spelled), get_tokenizer("gpt2"), paired)
    assert words in line
    assert bool(words) == bool(line)
    assert "--separator" not in line


@pytest.mark.parametrize("name", [EOT, "</s>", "<eos>"])
def test_a_name_that_ends_texts_may_divide_them(name):
    line = describe_spelled(Counter({"<|user|>": 9, name: 8}), get_tokenizer("gpt2"), False)
    assert f"; if {name} ends documents, --separator '{name}' divides them there" in line


def test_an_empty_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--special_tokens '' names no token"):
        prepare_data(corpus_of(tmp_path / "in", "text"), "gpt2", tmp_path / "out", special_tokens=[""])


def test_end_of_text_tokens_in_a_single_file_divide_it(tmp_path):
    """Also where the file is one document to everything else; without the option the names are ordinary text."""
    text = EOT.join(f"text {n}" for n in range(9)) + EOT
    data = prepare_data(corpus_of(tmp_path / "in", text), "gpt2", tmp_path / "out", 0.3, special_tokens=[])
    assert data.has_eot
    for split in (data.train, data.val):
        ids = split.tokens.tolist()
        eot = data.tokenizer.eot_id
        assert ids[0] == ids[-1] == eot
        assert split.documents == ids.count(eot) - 1
    assert not prepare_data(corpus_of(tmp_path / "in", text), "gpt2", tmp_path / "plain").has_eot
