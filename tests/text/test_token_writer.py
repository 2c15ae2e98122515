"""gpt/text/token_writer.py: splits of several files, and preparations that continue after a kill."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import corpus_of

import gpt.text.encode
from gpt.system import files, shards
from gpt.system.files import sha256
from gpt.system.shards import ShardedArray
from gpt.text import token_writer
from gpt.text.prepare import prepare_data
from gpt.text.sources import Corpus
from gpt.token_files import load_data

TEXTS = [f"document {n}: " + "geese flew on and on. é " * (n % 9) for n in range(60)]
TALK = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well, thank you."}]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def joined(folder, split, part=slice(None)):
    """The bytes of a split's files, one after the other."""
    meta = json.loads((folder / "meta.json").read_text())
    return b"".join((folder / shard["file"]).read_bytes()[part] for shard in meta[split]["shards"])


@pytest.fixture
def small_batches(monkeypatch):
    """Encode about 100 characters at once, so that a small text makes many batches."""
    monkeypatch.setattr(gpt.text.encode, "BATCH_CHARACTERS", 100)


@pytest.mark.parametrize(
    "name, special, shard_tokens",
    [("gpt2", None, 29), ("gpt2", None, 1000), ("char", None, 200), ("bpe:300", ["geese"], 60)],
)
def test_several_files_hold_what_one_would(tmp_path, small_batches, name, special, shard_tokens):
    corpus = corpus_of(tmp_path / "in", *TEXTS)
    one = prepare_data(corpus, name, tmp_path / "one", special_tokens=special)
    several = prepare_data(corpus, name, tmp_path / "several", special_tokens=special, shard_tokens=shard_tokens)
    assert joined(several.folder, "train") == (one.folder / "train.bin").read_bytes()
    assert not (several.folder / "train.bin").exists()
    assert np.asarray(several.train.tokens).tolist() == one.train.tokens.tolist()
    meta, expected = (json.loads((data.folder / "meta.json").read_text()) for data in (several, one))
    for split in ("train", "val"):
        shards = meta[split].pop("shards", [{"file": f"{split}.bin", **meta[split]}])
        assert [shard["tokens"] for shard in shards[:-1]] == [shard_tokens] * (len(shards) - 1)
        assert 0 < shards[-1]["tokens"] <= shard_tokens
        assert all(sha256(several.folder / shard["file"]) == shard["sha256"] for shard in shards)
        assert {**meta[split], "sha256": ""} == {**expected[split], "sha256": ""}
    assert (meta["format"], expected["format"]) == (4, 3)
    assert list(several.documents(several.train)) == list(one.documents(one.train))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_conversations_keep_their_flags(tmp_path, monkeypatch):
    (tmp_path / "talks.jsonl").write_text("\n".join(json.dumps({"messages": TALK * (1 + n % 3)}) for n in range(30)))
    corpus = Corpus("talks", [tmp_path / "talks.jsonl"], format="messages")
    one = prepare_data(corpus, "gpt2", tmp_path / "one")
    several = prepare_data(corpus, "gpt2", tmp_path / "several", shard_tokens=100)
    for a, b in ((one.train, several.train), (one.val, several.val)):
        assert np.asarray(b.tokens).tolist() == a.tokens.tolist()
        assert np.asarray(b.flags).tolist() == a.flags.tolist()
        assert list(several.documents(b)) == list(one.documents(a))
    assert isinstance(several.train.flags, ShardedArray)
    assert several.bytes_per_token == one.bytes_per_token
    monkeypatch.setattr(shards, "VERIFIED_AT_ONCE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    last = sorted(several.folder.glob("train-*.bin"))[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"\7")  # a flag
    flags = load_data(several.folder, verify=True).train.flags
    assert len(flags[:100]) == 100
    with pytest.raises(ValueError, match="has changed since it was written"):
        flags[-1]


@pytest.mark.parametrize("n_tokens", [99, 100, 101])
def test_a_split_that_fits_is_one_file(tmp_path, n_tokens):
    corpus, val = corpus_of(tmp_path / "in", "x" * n_tokens), corpus_of(tmp_path / "val", "xy")
    data = prepare_data(corpus, "char", tmp_path / "out", val_corpus=val, shard_tokens=100)
    assert (data.folder / "train.bin").exists() == (n_tokens <= 100)
    assert (data.folder / "train-00001.bin").exists() == (n_tokens > 100)
    assert sorted(files_of(data.folder)) == sorted(
        ["meta.json", "tokenizer.json", "val.bin"]
        + (["train.bin"] if n_tokens <= 100 else ["train-00000.bin", "train-00001.bin"])
    )


def test_several_files_are_replaced_by_one_and_back(tmp_path):
    corpus = corpus_of(tmp_path / "in", *TEXTS)
    for shard_tokens in (50, 10**6, 40):
        prepare_data(corpus, "gpt2", tmp_path / "out", shard_tokens=shard_tokens)
        assert len(load_data(tmp_path / "out", verify=True).train.tokens) > 100


def test_a_number_of_tokens_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="shard_tokens must be at least 1, not 0"):
        prepare_data(corpus_of(tmp_path / "in", *TEXTS), "gpt2", tmp_path / "out", shard_tokens=0)


# --- continuing -------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from pathlib import Path
import gpt.text.encode as encode
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
encode.BATCH_CHARACTERS = 100
corpus = open_corpus(sys.argv[1], separator="\\n")
log = lambda line: print(line, flush=True)
prepare_data(corpus, "gpt2", Path(sys.argv[2]), special_tokens=["geese"], shard_tokens=900, log=log)
"""


class Stop(BaseException):
    """As a kill, but in this process."""


@pytest.mark.parametrize("special", [None, ["geese"]])
@pytest.mark.parametrize("stop_after", [1, 2, 7])
def test_an_interrupted_preparation_continues_after_its_files(
    tmp_path, small_batches, monkeypatch, special, stop_after
):
    corpus, out, stopped, lines = corpus_of(tmp_path / "in", *TEXTS), tmp_path / "out", [], []
    expected = files_of(
        prepare_data(corpus, "gpt2", tmp_path / "whole", special_tokens=special, shard_tokens=60).folder
    )
    finish, encoded = token_writer.SplitWriter._finish, []

    def finish_and_stop(writer):
        finish(writer)
        encoded.append(1)
        if len(encoded) == stop_after:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(token_writer.SplitWriter, "_finish", finish_and_stop)
        with pytest.raises(Stop):
            prepare_data(corpus, "gpt2", out, special_tokens=special, shard_tokens=60, log=stopped.append)
    assert not out.exists()
    kept = (tmp_path / ".out.partial").exists()
    assert kept == (stop_after > 1), "the file that was being finished does not count"
    names = sorted(path.name for path in (tmp_path / ".out.partial").glob("train-*"))[: stop_after - 1]
    for name in names:
        os.utime(tmp_path / ".out.partial" / name, ns=(1, 1))
    prepare_data(corpus, "gpt2", out, special_tokens=special, shard_tokens=60, log=lines.append)
    assert files_of(out) == expected
    n_kept = f"{60 * (stop_after - 1)} tokens"
    assert (
        any(f"{n_kept} are kept in {out.with_name('.out.partial')}: run the same" in line for line in stopped) == kept
    )
    assert any(f"continuing after the {n_kept}" in line for line in lines) == kept
    for name in names:
        assert (out / name).stat().st_mtime_ns == 1, "it was written again"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("shard_tokens", [100, 300])  # one file of validation: exactly of that length, or shorter
def test_all_is_kept_until_the_folder_is_in_its_place(tmp_path, monkeypatch, shard_tokens):
    """A kill while the files go to the disk loses nothing, and no other process may begin before the end."""
    corpus, val, out, lines = (
        corpus_of(tmp_path / "in", "xy" * 400),
        corpus_of(tmp_path / "val", "xy" * 50),
        tmp_path / "out",
        [],
    )
    flush = files.flush

    def stop(path):
        if path.name == "meta.json":
            with pytest.raises(ValueError, match="is preparing"), token_writer.prepared_folder(out, "x", is_long=True):
                pass
            raise Stop
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush", stop)
        with pytest.raises(Stop):
            prepare_data(corpus, "char", out, val_corpus=val, shard_tokens=shard_tokens)
    data = prepare_data(corpus, "char", out, val_corpus=val, shard_tokens=shard_tokens, log=lines.append)
    assert any("continuing after the 900 tokens" in line for line in lines)
    fresh = prepare_data(corpus, "char", tmp_path / "fresh", val_corpus=val, shard_tokens=shard_tokens)
    assert files_of(data.folder) == files_of(fresh.folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_short_preparation_removes_what_is_left_of_a_long_one(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "train-00000.bin").write_text("xy")
    prepare_data(corpus_of(tmp_path / "in", "xy" * 50), "char", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("change", ["a changed file", "a lost file", "another batch", "other options"])
def test_what_does_not_fit_starts_again_and_is_named(tmp_path, monkeypatch, change):
    corpus, out, lines = corpus_of(tmp_path / "in", "xy" * 400), tmp_path / "out", []

    def stop(path):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(gpt.text.encode, "sha256", stop)  # of the tokenizer, at the end
        with pytest.raises(Stop):
            prepare_data(corpus, "char", out, shard_tokens=100)
    kept = tmp_path / ".out.partial" / "train-00003.bin"
    if change == "a changed file":
        kept.write_bytes(kept.read_bytes()[:-1] + b"\7")
    elif change == "a lost file":
        kept.unlink()
    elif change == "another batch":
        monkeypatch.setattr(gpt.text.encode, "BATCH_CHARACTERS", 90)
    options = {"shard_tokens": 101 if change == "other options" else 100}
    data = prepare_data(corpus, "char", out, log=lines.append, **options)
    assert any(
        re.match(r"starting again: the 800 tokens that .*\.out\.partial held were made of", line) for line in lines
    )
    assert files_of(data.folder) == files_of(prepare_data(corpus, "char", tmp_path / "fresh", **options).folder)


@pytest.mark.slow
def test_another_text_another_tokenizer_or_a_lost_file_starts_again(tmp_path, small_batches, monkeypatch):
    def interrupted():
        with monkeypatch.context() as patch:

            def stop(path):
                raise Stop

            patch.setattr(gpt.text.encode, "sha256", stop)  # of the tokenizer, at the end
            with pytest.raises(Stop):
                prepare_data(
                    corpus_of(tmp_path / "in", *TEXTS), "gpt2", tmp_path / "out", shard_tokens=200, overwrite=True
                )

    def continues(texts=TEXTS, name="gpt2", shard_tokens=200):
        lines, corpus = [], Corpus("a corpus", sorted((tmp_path / "in").iterdir()))
        if texts is not TEXTS:
            corpus = corpus_of(tmp_path / "in", *texts)
        data = prepare_data(corpus, name, tmp_path / "out", shard_tokens=shard_tokens, log=lines.append, overwrite=True)
        fresh = prepare_data(corpus, name, tmp_path / "fresh", shard_tokens=shard_tokens, overwrite=True)
        assert files_of(data.folder) == files_of(fresh.folder)
        return any("continuing" in line for line in lines)

    interrupted()
    assert continues()
    for change in ({"texts": [*TEXTS[:-1], TEXTS[-1].upper()]}, {"name": "bpe:300"}, {"shard_tokens": 201}):
        interrupted()
        assert not continues(**change)
    interrupted()
    (tmp_path / ".out.partial" / "train-00002.bin").unlink()
    assert not continues()


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.slow
def test_kills_at_random_points_change_nothing(tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS * 40))
    run, dice, continued = [sys.executable, "-c", PROGRAM, str(tmp_path / "in.txt")], random.Random(5), 0
    subprocess.run([*run, str(tmp_path / "whole")], check=True)
    for _ in range(6):  # killed when some files more are there, and a moment later
        process = subprocess.Popen([*run, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
        partial, seconds = tmp_path / ".out.partial", dice.uniform(0, 0.05)
        n_files = len([*partial.glob("*.bin")]) + dice.randint(1, 12)
        while process.poll() is None and len([*partial.glob("*.bin")]) < n_files:
            time.sleep(0.001)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        continued += "continuing" in process.communicate()[0]
        assert process.returncode == -signal.SIGKILL
    done = subprocess.run([*run, str(tmp_path / "out")], check=True, capture_output=True, text=True)
    assert "continuing" in done.stdout
    assert continued > 3
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_two_preparations_of_one_folder_do_not_mix(tmp_path):
    one, other = (token_writer.prepared_folder(tmp_path / "out", "one", is_long=True) for _ in range(2))
    with one, pytest.raises(ValueError, match=r"another process is preparing .*out: wait until it ends"), other:
        pass
