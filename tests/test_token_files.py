"""gpt/token_files.py: loading prepared data, its documents, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import corpus_of

from gpt.system.files import checksummed
from gpt.text.prepare import prepare_data
from gpt.text.tokenizers import get_tokenizer
from gpt.token_files import load_data

STORY = (Path(__file__).parent.parent / "data" / "story.txt").read_text(encoding="utf-8")
TEXTS = [f"{n} geese\nflew {'on and ' * n}on, é😀 <|endoftext|>" for n in range(12)]


@pytest.fixture
def folder(tmp_path):
    prepare_data(corpus_of(tmp_path / "in", STORY[:3000]), "char", tmp_path / "out")
    return tmp_path / "out"


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [False, True])
def test_loading_returns_what_was_prepared(folder, verify):
    data = load_data(str(folder), verify=verify)
    assert data.folder == folder
    assert data.tokenizer.decode(data.train.tokens) == STORY[:2700]
    assert data.tokenizer.decode(data.val.tokens) == STORY[2700:3000]
    assert isinstance(data.train.tokens, np.memmap)
    assert not data.train.tokens.flags.writeable


def test_preparing_text_does_not_import_torch():
    program = "import sys, gpt.text.prepare, gpt.token_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["char", "bpe:300", "gpt2"])
def test_documents_returns_the_prepared_texts(tmp_path, name):
    data = prepare_data(corpus_of(tmp_path / "in", *TEXTS), name, tmp_path / "out", 0.25)
    assert list(data.documents(data.train)) == TEXTS[:9]
    assert list(data.documents(data.val)) == TEXTS[9:]
    again = load_data(tmp_path / "out", verify=True)
    assert again.has_eot
    assert list(again.documents(again.val)) == TEXTS[9:]


@pytest.mark.parametrize("name", ["char", "bpe:300", "gpt2"])
def test_a_document_cut_by_the_split_is_one_document_in_each(tmp_path, name):
    texts = ["ten letter", "twenty more letters.", "end."]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), name, tmp_path / "out", 0.5)
    assert list(data.documents(data.train)) == ["ten letter", "twenty "]
    assert list(data.documents(data.val)) == ["more letters.", "end."]


@pytest.mark.parametrize("name", ["char", "bpe:300", "gpt2"])
def test_a_single_text_is_one_document(tmp_path, name):
    data = prepare_data(corpus_of(tmp_path / "in", STORY[:1000]), name, tmp_path / "out")
    assert list(data.documents(data.train)) == [STORY[:900]]
    assert list(data.documents(data.val)) == [STORY[900:1000]]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("place", [0, -1])
def test_verify_finds_one_flipped_bit(folder, name, place):
    content = bytearray((folder / name).read_bytes())
    content[place] ^= 1
    (folder / name).write_bytes(content)
    assert load_data(folder).tokenizer.vocab_size > 1
    with pytest.raises(ValueError, match=rf"{name} has changed since it was written"):
        load_data(folder, verify=True)


def test_a_changed_tokenizer_is_refused(folder):
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"characters": saved["characters"].replace("e", "Ω")}))
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing or has changed"):
        load_data(folder)
    get_tokenizer("char", ["abc"]).save(path)
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing or has changed"):
        load_data(folder)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[:-2], lambda b: b + b"\0\0", lambda b: b""])
def test_a_file_of_another_length_is_refused_without_verify(folder, name, change):
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=rf"{name} is missing or not \d+ bytes long"):
        load_data(folder)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json", "meta.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match="no prepared data" if name == "meta.json" else name):
        load_data(folder)


def test_a_missing_folder_or_a_file_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"python scripts/prepare_data\.py --input .* --out .*nowhere"):
        load_data(tmp_path / "nowhere")
    (tmp_path / "book.txt").write_text("words")
    with pytest.raises(ValueError, match=r"book\.txt is a file, not prepared data: python scripts/prepare_data\.py"):
        load_data(tmp_path / "book.txt")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 3}', "\xff"])
def test_a_damaged_meta_json_is_refused(folder, text):
    (folder / "meta.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"meta\.json is damaged: .*; prepare the data again"):
        load_data(folder)


def test_any_flipped_bit_of_meta_json_is_found(folder):
    """Including the count of bytes, which converts the loss, and the name of the text."""
    path = folder / "meta.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"meta\.json is damaged"):
            load_data(folder)


def test_a_folder_of_an_older_format_says_what_to_do(folder):
    meta = json.loads((folder / "meta.json").read_text()) | {"format": 2}
    (folder / "meta.json").write_text(checksummed(meta))
    with pytest.raises(ValueError, match="format 2, but this version reads format 3: prepare the data again"):
        load_data(folder)
