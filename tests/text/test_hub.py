"""gpt/text/hub.py: which files of a data set are read, from a stand-in of the hub that huggingface_hub really asks."""

import json
import os
import subprocess
import sys
import threading
import types
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_server import COMMIT, HubHandler

from gpt.text import hub
from gpt.text.prepare import prepare_data
from gpt.text.sources import Corpus
from gpt.token_files import load_data

PROJECT = Path(__file__).parent.parent.parent
TEXTS = [f"web page {n}: geese flew on" for n in range(24)]
NAMES = [f"sample/10BT/{n:03}_00000.parquet" for n in range(3)] + [
    "sample/100BT/000_00000.parquet", "data/CC-MAIN-2024-10/train-00000-of-00001.parquet", "README.md", ".gitattributes"
]  # fmt: skip
CONFIGS = [
    {"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*"}]},
    {"config_name": "sample-10BT", "data_files": [{"split": "train", "path": "sample/10BT/*"}]},
    {"config_name": "sample-100BT", "data_files": [{"split": "train", "path": ["sample/100BT/*"]}]},
]  # as fineweb-edu declares them


def files_of(source, names=NAMES, configs=CONFIGS):
    """The files that `source` reads of a data set, by an API of our own."""
    siblings = [types.SimpleNamespace(rfilename=name, size=len(name)) for name in names]
    card = types.SimpleNamespace(to_dict=lambda: {"configs": configs})
    info = types.SimpleNamespace(siblings=siblings, card_data=card, sha=COMMIT)
    with pytest.MonkeyPatch.context() as patch:
        api = types.SimpleNamespace(HfApi=lambda: types.SimpleNamespace(dataset_info=lambda *_, **__: info))
        patch.setitem(sys.modules, "huggingface_hub", api)
        return hub.find_files(source)


def test_a_config_is_the_cards_or_a_folder():
    assert list(files_of("hub:o/n:sample-10BT").sizes) == NAMES[:3]
    assert list(files_of("hub:o/n:sample-10BT:text").sizes) == NAMES[:3]
    assert list(files_of("hub:o/n:sample-100BT").sizes) == NAMES[3:4]
    assert list(files_of("hub:o/n").sizes) == NAMES[4:5]
    assert list(files_of("hub:o/n::body").sizes) == NAMES[4:5]
    assert list(files_of("hub:o/n:sample").sizes) == [NAMES[3], *NAMES[:3]]  # by name
    assert list(files_of("hub:o/n:sample/10BT", configs=[]).sizes) == NAMES[:3]


@pytest.mark.parametrize(
    "names, configs, expected",
    [
        (["train.jsonl", "validation.jsonl", "README.md"], [], ["train.jsonl"]),
        (["a.jsonl", "b.jsonl.zst", "model.bin"], [], ["a.jsonl", "b.jsonl.zst"]),
        (["constraints.csv", "en/train-1.csv", "en/test.csv"], [], ["en/train-1.csv"]),
        (["book.txt", "README.md"], [], ["book.txt"]),
        (["training.jsonl", "test.jsonl"], [], ["training.jsonl"]),
        (["training/test.jsonl", "training/a.jsonl"], [], ["training/a.jsonl"]),
        (["a-dev.csv", "b.csv", "c_val.csv", "d.eval.csv"], [], ["b.csv"]),
        (["a.csv", "latest.csv", "contest.csv"], [], ["a.csv", "contest.csv", "latest.csv"]),
        (["long_train.csv", "train.parquet", "x/dataset_infos.json"], [], ["long_train.csv"]),
        (["a.csv", "dataset_infos.json", "x/dataset_info.json"], [], ["a.csv"]),
        (["a.txt", "LICENSE.txt", "requirements.txt", "notes/README.md", ".github/b.txt"], [], ["a.txt"]),
        (["a.csv", "b.csv"], [{"data_dir": None}], ["a.csv", "b.csv"]),
        (["a.csv", "x/b.csv"], [{"data_dir": "."}], ["a.csv", "x/b.csv"]),
        (["a.csv", "x/a.csv"], [{"data_dir": "./x/", "data_files": "*.csv"}], ["x/a.csv"]),
        (["a-0.csv", "a-10.csv", "a-b.csv"], [{"data_files": "a-[0-9]*.csv"}], ["a-0.csv", "a-10.csv"]),
        (["a-0.csv", "a-b.csv"], [{"data_files": "a-[!0-9].csv"}], ["a-b.csv"]),
        (
            ["a.csv", "b.csv"],
            [{"data_files": [{"split": "test_sft", "path": "a.csv"}, {"split": "train_sft", "path": "b.csv"}]}],
            ["b.csv"],
        ),
        (["a.json", "b.json"], [{"config_name": "only", "data_files": "b.json"}], ["b.json"]),
        (["a.json", "x/b.json"], [{"config_name": "only", "data_dir": "x"}], ["x/b.json"]),
        (["x/a.csv", "x/y/b.csv"], [{"data_files": "x/*.csv"}], ["x/a.csv"]),
        (["x/a.csv", "x/y/b.csv"], [{"data_files": ["./x/**/*.csv"]}], ["x/a.csv", "x/y/b.csv"]),
        (
            ["a.csv", "b.csv", "c.csv"],
            [{"data_files": [{"split": "test", "path": "a.csv"}, {"split": "train", "path": ["b.csv", "c.csv"]}]}],
            ["b.csv", "c.csv"],
        ),
        (["a.csv", "b.csv"], [{"data_files": [{"split": "all", "path": "b.csv"}]}], ["b.csv"]),
        (["a.csv", "b.csv"], [{"config_name": n, "data_files": f"{n}*", "default": n > "a"} for n in "ab"], ["b.csv"]),
    ],
    ids=str,
)  # fmt: skip
def test_the_training_files_without_a_config(names, configs, expected):
    assert list(files_of("hub:o/n", names, configs).sizes) == expected


@pytest.mark.parametrize(
    "source, configs, words",
    [
        ("hub:o", CONFIGS, "'hub:o' names no data set of the hub: its form is hub:OWNER/DATASET"),
        ("hub:o/n:sample-1T", CONFIGS, "no config or folder 'sample-1T', but: default, sample-100BT, sample-10BT"),
        ("hub:o/n:english", [], "no config or folder 'english', but: data, sample"),
        ("hub:o/n", CONFIGS[1:], "has several configs: name one, as in hub:o/n:sample-10BT"),
        ("hub:o/n", [{"data_files": "*.bin"}], "has no file that is read here .*parquet"),
        ("hub:o/n", [{"data_files": [{"split": "test", "path": "*"}]}], "has no file for training, but for: test;"),
        ("hub:o/n:en", [], "has no file for training, but for: test, validation;"),
    ],
)
def test_what_cannot_be_found_is_named(source, configs, words):
    names = ["en/test.parquet", "en/validation.parquet"] if source.endswith(":en") else NAMES
    with pytest.raises(ValueError, match=words):
        files_of(source, names, configs)


def test_a_revision_stays_with_the_repository():
    assert hub.parse_source("hub:o/n@v1.0:en:text") == ("o/n@v1.0", "en", "text")
    files = files_of("hub:o/n@refs/convert/parquet:sample-10BT")
    assert (files.repository, files.revision) == ("o/n", COMMIT)


def test_the_listing_has_the_bytes_in_all_and_few_names():
    lines = files_of("hub:o/n:sample-10BT").listing().splitlines()
    assert lines[0] == "hub:o/n:sample-10BT: 3 files of 87 bytes in all, each downloaded when it is first read"
    assert [line.split() for line in lines[1:]] == [["29", name] for name in NAMES[:3]]
    lines = files_of("hub:o/n", [f"{n:02}.csv" for n in range(30)], []).listing().splitlines()
    assert len(lines) == 1 + hub.MAX_LISTED
    assert lines[-2].split() == ["...", "23", "others"]
    assert [line.split()[-1] for line in (lines[1], lines[6], lines[8])] == ["00.csv", "05.csv", "29.csv"]


BY_HAND = "download its files from https://huggingface.co/datasets/o/n and name their folder"
AGAIN = f"run the same command again, which continues; without a network, {BY_HAND}"


def test_without_a_network(monkeypatch):
    library = pytest.importorskip("huggingface_hub")

    def fail(*arguments, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(library.HfApi, "dataset_info", fail)
    with pytest.raises(ValueError, match=f"hub:o/n cannot be downloaded .ConnectionError: no route to host.: {AGAIN}"):
        hub.find_files("hub:o/n")
    files = files_of("hub:o/n:sample-10BT")
    monkeypatch.setattr(library, "hf_hub_download", fail)
    with pytest.raises(ValueError, match=f"{NAMES[0]} of hub:o/n:sample-10BT cannot be downloaded .*: {AGAIN}"):
        files[0]


@pytest.mark.parametrize(
    "kind, words",
    [
        ("GatedRepoError", "accept its terms on its page of the hub, then `hf auth login`"),
        ("RepositoryNotFoundError", "check the spelling; if it is private, `hf auth login`"),
        ("RevisionNotFoundError", "check the spelling of the revision"),
        ("OSError", "free some space on that disk, and run the same command again"),
    ],
)
def test_each_failure_has_its_way_out(kind, words):
    errors = pytest.importorskip("huggingface_hub.errors")
    error = OSError(28, "disk full") if kind == "OSError" else getattr(errors, kind).__new__(getattr(errors, kind))
    with (
        pytest.raises(ValueError, match=f"hub:o/n cannot be downloaded .{kind}.*: {words}"),
        hub.hub_errors("hub:o/n", ""),
    ):
        raise error


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=f"hub:o/n needs huggingface_hub: pip install -e .*hub.*, or {BY_HAND}"):
        hub.find_files("hub:o/n")


# --- a hub on this machine --------------------------------------------------------------------------------------------


class Hub(HubHandler):
    """Answers huggingface_hub for the data set o/n, whose files are in `folder`, and notes what is downloaded."""

    folder, downloaded = None, []

    def answer(self, head=False):
        path = self.path.partition("?")[0]
        file = self.folder / path.removeprefix(f"/datasets/o/n/resolve/{COMMIT}/")
        if path == "/api/datasets/o/n" and "blobs=" in self.path:
            siblings = [{"rfilename": name, "size": (self.folder / name).stat().st_size} for name in NAMES]
            listed = {"id": "o/n", "sha": COMMIT, "siblings": siblings, "cardData": {"configs": CONFIGS}}
            self.send(json.dumps(listed).encode(), head, "application/json")
        elif path.startswith("/datasets/o/n/resolve/") and file.is_file():
            self.downloaded += [file.name] * (not head)
            self.send(file.read_bytes(), head)
        else:
            self.send(b"", head, error="RepoNotFound" if path.startswith("/api") else "EntryNotFound")


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_prepared_as_its_files_are(tmp_path):
    """In a process of its own, since huggingface_hub reads its environment once."""
    pytest.importorskip("huggingface_hub")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Hub.folder = tmp_path / "served"
    for i, name in enumerate(NAMES):
        (Hub.folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            table = pyarrow.table(
                {"text": TEXTS[8 * i : 8 * i + 8] or ["another"], "url": ["u"] * len(TEXTS[8 * i :][:8] or "1")}
            )
            parquet.write_table(table, Hub.folder / name)
        else:
            (Hub.folder / name).write_text("a card")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(PROJECT), "NO_PROXY": "*",
    }  # fmt: skip
    command = [sys.executable, PROJECT / "scripts" / "prepare_data.py", "--out", "out"]

    def run(*options):
        env = {**os.environ, **variables}
        return subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, env=env)

    done = run("--input", "hub:o/n:sample-10BT:text")
    assert done.returncode == 0, done.stderr
    total = sum((Hub.folder / name).stat().st_size for name in NAMES[:3])
    assert f"hub:o/n:sample-10BT:text: 3 files of {total:,} bytes in all" in done.stderr
    assert sorted(Hub.downloaded) == sorted(Path(name).name for name in NAMES[:3]), "each once, and no other"
    files = [Hub.folder / name for name in NAMES[:3]]
    expected = prepare_data(Corpus("files", files, fields=("text",)), "gpt2", tmp_path / "expected")
    data = load_data(tmp_path / "out", verify=True)
    assert data.checksums == expected.checksums
    assert data.source == f"hub:o/n:sample-10BT:text at {COMMIT[:12]}"
    assert list(data.documents(data.train)) == TEXTS[:22]
    for options, words in (
        (["--input", "hub:o/n:sample-10BT:body"], "has no field 'body', but"),
        (["--input", "hub:o/n:sample-10BT:text", "--field", "url"], "names the field 'text' itself"),
        (["--input", "hub:o/nothing"], "hub:o/nothing cannot be downloaded (RepositoryNotFoundError)"),
        (["--input", "hub:o/n", "--sha256", "0" * 64], "has many files"),
    ):
        done = run("--overwrite", *options)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    server.shutdown()
    server.server_close()
