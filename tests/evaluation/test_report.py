"""gpt/evaluation/report.py: the tokens that a text is evaluated on. Its figures are tested where they are computed."""

import numpy as np
import pytest
from conftest import corpus_of, pairs_of
from families import SENTENCES, write_family

from gpt.evaluation.report import by_documents, encode_text, text_as_data
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
from gpt.text.tokenizer_files import load_any_tokenizer
from gpt.text.tokenizers import get_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

TEXT = SENTENCES["English"] + SENTENCES["German"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("English", "German"):
        (tmp_path / "in" / f"{name}.txt").write_text(SENTENCES[name], encoding="utf-8")
    return tmp_path / "in"


@pytest.mark.parametrize("name", ["llama3", "sentencepiece"])
def test_a_text_starts_as_transformers_lets_it(name, folder, tmp_path):
    """A token of its own starts a text: as one text, since no end-of-text token starts the second document."""
    model = write_family(name, tmp_path / "model")
    ours, theirs = load_any_tokenizer(model), transformers.AutoTokenizer.from_pretrained(model)
    text = encode_text(open_corpus(str(folder)), ours, prepend_eot=True)
    assert text.tokens.tolist() == theirs.encode(TEXT)
    assert text.bytes_per_token == len(TEXT.encode()) / (len(text.tokens) - 1)
    assert not by_documents(ours, True)


def test_documents_end_and_start_with_the_same_token(folder):
    gpt2 = get_tokenizer("gpt2")
    first, second = (gpt2.encode(SENTENCES[name]) for name in ("English", "German"))
    assert encode_text(open_corpus(str(folder)), gpt2, True).tokens.tolist() == [50256, *first, 50256, *second, 50256]
    assert encode_text(open_corpus(str(folder)), gpt2, False).tokens.tolist() == [50256, *first, 50256, *second, 50256]
    assert encode_text(open_corpus(str(folder / "German.txt")), gpt2, False).tokens.tolist() == second
    assert by_documents(gpt2, True)
    assert not by_documents(gpt2, False)


@pytest.mark.parametrize("special", [None, []])
@pytest.mark.parametrize("name", ["documents", "pairs"])
def test_a_text_is_read_as_if_it_had_been_prepared(tmp_path, name, special):
    """The validation split of a corpus, written to files of its own, gives the tokens that preparing gave."""
    texts = [SENTENCES[language] for language in ("English", "German", "English", "German")] * 3
    if name == "pairs":
        pairs = [(text[:9], text[9:]) for text in texts]
        corpus, held_out = pairs_of(tmp_path / "all", pairs), pairs_of(tmp_path / "val", pairs[9:])
    else:
        texts = [f"{text} <|user|>" for text in texts]
        corpus, held_out = corpus_of(tmp_path / "all", *texts), corpus_of(tmp_path / "val", *texts[9:])
    prepared = prepare_data(corpus, "gpt2", tmp_path / "out", 0.25, special_tokens=special)
    found = text_as_data(held_out, prepared.tokenizer, prepend_eot=True, special=special is not None)
    assert np.array_equal(found.val.tokens, prepared.val.tokens)
    assert (found.has_eot, found.paired) == (prepared.has_eot, prepared.paired)
    assert [*found.documents(found.val)] == [*prepared.documents(prepared.val)]
    assert found.bytes_per_token == prepared.bytes_per_token
    with pytest.raises(ValueError, match="the target of pair 2 is empty in pairs"):
        text_as_data(pairs_of(tmp_path / "empty", [("a", "b"), ("c", "")]), prepared.tokenizer, True)
    with pytest.raises(ValueError, match="holds 0 characters: no text"):
        text_as_data(corpus_of(tmp_path / "no", ""), prepared.tokenizer, True)
