"""gpt/evaluation/report.py: the tokens that a text is evaluated on. Its figures are tested where they are computed."""

import pytest
from families import SENTENCES, write_family

from gpt.evaluation.report import by_documents, encode_text
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
    assert encode_text(open_corpus(str(folder)), gpt2, False).tokens.tolist() == gpt2.encode(TEXT)
    assert by_documents(gpt2, True)
    assert not by_documents(gpt2, False)
