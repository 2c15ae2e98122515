"""gpt/token_files.py: loading prepared data, its documents, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import corpus_of

from gpt.system import shards
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


# --- several files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    """A folder whose training split is four files, large enough to be verified when they are read."""
    monkeypatch.setattr(shards, "VERIFIED_AT_ONCE", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare_data(corpus_of(tmp_path / "in", STORY[:3000]), "char", tmp_path / "out", shard_tokens=700)
    return tmp_path / "out"


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_folder_of_several_files_reads_as_one(sharded):
    data = load_data(sharded, verify=True)
    assert sorted(path.name for path in sharded.glob("*.bin")) == [*(f"train-{n:05}.bin" for n in range(4)), "val.bin"]
    assert data.tokenizer.decode(data.train.tokens) == STORY[:2700]
    assert list(data.documents(data.train)) == [STORY[:2700]]
    assert isinstance(data.val.tokens, np.memmap)


def test_a_damaged_file_is_refused_when_it_is_read(sharded):
    flip(sharded / "train-00002.bin")
    data = load_data(sharded, verify=True)
    assert data.tokenizer.decode(data.train.tokens[:1400]) == STORY[:1400]
    with pytest.raises(ValueError, match=r"train-00002\.bin has changed since it was written .*prepare the data again"):
        data.train.tokens[1390:1410]
    assert len(load_data(sharded).train.tokens[:]) == 2700


def test_small_files_are_all_verified_at_once(sharded, monkeypatch):
    monkeypatch.setattr(shards, "VERIFIED_AT_ONCE", 10**6)
    flip(sharded / "train-00003.bin")
    with pytest.raises(ValueError, match=r"train-00003\.bin has changed since it was written"):
        load_data(sharded, verify=True)


def test_a_single_large_file_is_verified_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "VERIFIED_AT_ONCE", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        assert isinstance(load_data(folder, verify=True).train.tokens, np.memmap)
    flip(folder / "train.bin")
    with pytest.raises(ValueError, match=r"train\.bin has changed since it was written"):
        load_data(folder, verify=True)


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[1:])])
def test_a_lost_or_shortened_file_is_refused_without_reading(sharded, change):
    change(sharded / "train-00001.bin")
    with pytest.raises(ValueError, match=r"train-00001\.bin is missing or not 1400 bytes long"):
        load_data(sharded)


def test_the_checksum_of_a_split_depends_on_each_file(sharded):
    def checksum(change):
        meta = json.loads((sharded / "meta.json").read_text())
        change(meta["train"]["shards"])
        (sharded / "meta.json").write_text(checksummed(meta))
        return load_data(sharded).checksums["train"]

    first = checksum(lambda files: None)
    digests = [file["sha256"] for file in json.loads((sharded / "meta.json").read_text())["train"]["shards"]]
    assert first == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert checksum(lambda files: files[3].update(sha256="0" * 64)) != first


OPEN = """
import re, sys, time
from pathlib import Path
import numpy as np
import gpt.data, gpt.token_files
def peak():  # ru_maxrss would include the parent's
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before, start = peak(), time.perf_counter()
data = gpt.token_files.load_data(sys.argv[1])
examples = gpt.data.PackedExamples(data.train.tokens, 1024)
sampler = gpt.data.ExampleSampler(len(examples), 512, seed=3, shard_ends=examples.shard_ends)
opened = time.perf_counter() - start
steps = np.random.default_rng(0).integers(0, 3 * len(sampler), 50).tolist()
found = [sampler.step(k) for k in steps]
inputs, targets = examples.batch(found[0][:64])
print(len(data.train.tokens), len(examples), opened, time.perf_counter() - start, peak() - before)
print(all(len({*step}) == 512 and 0 <= min(step) <= max(step) < len(examples) for step in found))
print(max(len({i * 1024 // 10**9 for i in step}) for step in found), int(inputs.sum() + targets.sum()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_trillion_tokens_open_within_a_second_and_100_mb(folder, tmp_path):
    """A thousand files of a billion tokens, 2 TB, without a block on the disk. One of them fills four steps' order."""
    meta = json.loads((folder / "meta.json").read_text())
    files = [{"file": f"train-{n:05}.bin", "tokens": 10**9, "sha256": f"{n:064x}"} for n in range(1000)]
    for file in files:
        (folder / file["file"]).touch()
        os.truncate(folder / file["file"], 2 * 10**9)
    meta["train"] |= {"tokens": 10**12, "sha256": "0" * 64, "shards": files}
    (folder / "meta.json").write_text(checksummed(meta | {"format": 4}))
    done = subprocess.run([sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True)
    counts, are_distinct, last = (line.split() for line in done.stdout.splitlines())
    n_tokens, n_examples, opened, seconds, peak = map(float, counts)
    assert (n_tokens, n_examples) == (10**12, 976562499)
    assert opened < 1, "seconds until the first step is known"
    assert seconds < 2
    assert peak < 100e6
    assert are_distinct == ["True"]
    assert int(last[0]) <= 3, "examples of a step lie in one file, or in two, and may reach into the next"
    assert int(last[1]) == 0


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
    with pytest.raises(ValueError, match="format 2, this version reads 3 and 4: prepare the data again"):
        load_data(folder)
