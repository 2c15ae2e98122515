"""gpt/text/download.py: downloads and archives are complete or absent.

The servers are real ones on 127.0.0.1, which each test makes behave or misbehave.
"""

import contextlib
import gzip
import hashlib
import io
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import gpt.text.download
from gpt.system.files import FolderLock
from gpt.text.download import download, file_name, unpack
from gpt.text.sources import KNOWN, open_corpus

DATA = random.Random(1).randbytes(300_000)
SUM = hashlib.sha256(DATA).hexdigest()
OTHER = random.Random(2).randbytes(300_000)
WRONG = hashlib.sha256(OTHER).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.data` at any path, and keeps every request's path and headers in `server.seen`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        if server.answer and server.answer(self):  # a test's own answer
            return
        data, start = server.data, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(asked[1])
            if start >= len(data):
                self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self.reply(206, data[start:], headers)
        else:
            self.reply(200, data)

    def reply(self, status, body, headers=None, length=True):
        """Answer; of a body that is longer than `server.most`, only that much is sent before the connection drops."""
        self.send_response(status)
        headers = {"ETag": self.server.etag, "Content-Length": len(body) if length else None, **(headers or {})}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.close_connection = True
        self.wfile.write(body[: self.server.most])

    def log_message(self, *arguments):
        """Says nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag, self.ranges, self.most, self.answer, self.seen = DATA, '"one"', True, None, None, []
        self.url = f"http://127.0.0.1:{self.server_port}/folder/book.txt"

    def asked(self):
        """The Range of each request so far."""
        return [headers.get("Range") for _, headers in self.seen]

    def handle_error(self, request, client_address):
        """Says nothing: a client that leaves is part of the tests."""


@pytest.fixture
def server(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def names(folder):
    """Every path below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


KEPT = [".book.txt.from", ".book.txt.part"]  # of a download that broke off
WHOLE = [".book.txt.from", "book.txt"]


# --- downloading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", ["", SUM, SUM.upper()])
def test_a_file_is_downloaded_once(server, tmp_path, sha256):
    for _ in range(2):
        path = download(server.url, tmp_path / "new" / "mine.txt", sha256)
        assert path == tmp_path / "new" / "mine.txt"
        assert path.read_bytes() == DATA
    assert server.asked() == [None]
    assert names(tmp_path) == ["new", "new/.mine.txt.from", "new/mine.txt"]


def test_a_download_into_a_folder_keeps_its_name(server, tmp_path):
    assert download(f"{server.url}?download=1#top", tmp_path) == tmp_path / "book.txt"
    assert names(tmp_path) == WHOLE


@pytest.mark.parametrize("body", [b"", b"x", DATA])
def test_a_server_need_not_announce_the_length(server, tmp_path, body):
    server.answer = lambda handler: handler.reply(200, body, length=False) or True
    assert download(server.url, tmp_path).read_bytes() == body


def test_a_chunked_answer_is_complete_or_broken(server, tmp_path):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(DATA), 70_000):
            chunk = DATA[start : start + 70_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"" if whole is False else b"0\r\n\r\n")
        handler.close_connection = True
        return True

    server.answer, whole = answer, False
    with pytest.raises(ValueError, match="broke off after 300,000 bytes"):
        download(server.url, tmp_path)
    whole = True
    assert download(server.url, tmp_path, SUM).read_bytes() == DATA


def test_unusual_characters_of_a_url_are_encoded(server, tmp_path):
    path = download(server.url.replace("book", "à la carte%20b"), tmp_path)
    assert path.name == "à_la_carte_b.txt"
    assert server.seen[0][0] == "/folder/%C3%A0%20la%20carte%20b.txt"


def test_redirects_are_followed(server, tmp_path):
    def answer(handler):
        if handler.path != "/there":
            handler.reply(302, b"", {"Location": "/there"})
            return True

    server.answer = answer
    assert download(server.url, tmp_path).read_bytes() == DATA
    assert names(tmp_path) == WHOLE


def test_an_existing_file_of_another_url_is_refused(server, tmp_path):
    download(server.url, tmp_path)
    other = server.url.replace("folder", "another")
    with pytest.raises(ValueError, match=re.escape(f"book.txt was downloaded from {server.url}: move it away")):
        download(other, tmp_path)
    assert download(other, tmp_path, SUM).read_bytes() == DATA  # its content says that it is


def test_an_existing_file_with_another_checksum_is_kept(server, tmp_path):
    (tmp_path / "book.txt").write_bytes(OTHER)
    assert download(server.url, tmp_path).read_bytes() == OTHER  # put there by hand
    with pytest.raises(ValueError, match=rf"book\.txt has the SHA-256 {WRONG}, not {SUM}: move it away"):
        download(server.url, tmp_path, SUM)
    assert (tmp_path / "book.txt").read_bytes() == OTHER
    assert server.seen == []


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(server, tmp_path):
    with pytest.raises(ValueError, match=f"book.txt has the SHA-256 {SUM}, not {WRONG}: .*nothing was kept"):
        download(server.url, tmp_path / "new", WRONG)
    assert names(tmp_path) == []
    server.data = OTHER
    assert download(server.url, tmp_path, WRONG).read_bytes() == OTHER
    assert server.asked() == [None, None]


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(server, tmp_path):
    """A download that broke off after 100,000 bytes."""
    server.most = 100_000
    with pytest.raises(
        ValueError, match=r"book\.txt broke off after 100,000 of 300,000 bytes: run the same command again to resume"
    ):
        download(server.url, tmp_path)
    assert names(tmp_path) == KEPT
    assert (tmp_path / ".book.txt.part").read_bytes() == DATA[:100_000]
    server.most = None
    server.seen.clear()
    return tmp_path


def test_a_resumed_download_asks_for_the_rest_only(server, broken):
    server.most = 50_000
    with pytest.raises(ValueError, match="after 150,000 of 300,000"):
        download(server.url, broken)
    server.most = None
    assert download(server.url, broken, SUM).read_bytes() == DATA
    assert server.asked() == ["bytes=100000-", "bytes=150000-"]
    assert {headers["If-Range"] for _, headers in server.seen} == {'"one"'}
    assert names(broken) == WHOLE


def test_a_file_that_has_changed_on_the_server_is_downloaded_again(server, broken):
    server.data, server.etag = OTHER, '"two"'
    assert download(server.url, broken).read_bytes() == OTHER
    assert (broken / ".book.txt.from").read_text() == f'{server.url}\n"two"\n'


def test_a_server_without_ranges_sends_the_whole_file(server, broken):
    server.ranges = False
    assert download(server.url, broken).read_bytes() == DATA
    assert server.asked() == ["bytes=100000-"]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (206, {}),
        (206, {"Content-Range": "bytes 0-299999/300000"}),
        (206, {"Content-Range": "bytes 100000-299999/*"}),
        (416, {}),
    ],
)
def test_a_resumed_answer_that_does_not_fit_is_not_used(server, broken, status, headers):
    def answer(handler):
        if "Range" in handler.headers:
            handler.reply(status, OTHER[:200_000], headers)
            return True

    server.answer = answer
    assert download(server.url, broken).read_bytes() == DATA
    assert server.asked() == ["bytes=100000-", None]


def test_a_partial_rest_is_resumed_again(server, broken):
    """A server may send less than was asked for."""

    def answer(handler):
        if "Range" in handler.headers:
            handler.reply(206, DATA[100_000:200_000], {"Content-Range": "bytes 100000-199999/300000"})
            return True

    server.answer = answer
    with pytest.raises(ValueError, match="broke off after 200,000 of 300,000"):
        download(server.url, broken)
    server.answer = None
    assert download(server.url, broken).read_bytes() == DATA
    assert server.asked() == ["bytes=100000-", "bytes=200000-"]


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_a_part_that_is_already_complete_or_too_long_is_downloaded_again(server, broken, extra):
    (broken / ".book.txt.part").write_bytes(DATA + extra)
    assert download(server.url, broken).read_bytes() == DATA
    assert server.asked() == [f"bytes={300_000 + len(extra)}-", None]


def test_a_part_of_another_url_is_not_resumed(server, broken):
    server.data = OTHER
    assert download(server.url.replace("folder", "another"), broken).read_bytes() == OTHER
    assert server.asked() == [None]


@pytest.mark.parametrize(
    ("tag", "date", "sha256", "asked", "version"),
    [
        ('"a"', None, "", "bytes=100000-", '"a"'),
        ('W/"a"', None, "", None, None),  # a weak tag promises no equal bytes
        ('W/"a"', formatdate(1e9, usegmt=True), "", "bytes=100000-", formatdate(1e9, usegmt=True)),
        (None, None, "", None, None),  # nothing tells whether the file is still the same
        (None, None, SUM, "bytes=100000-", None),  # but the checksum will
    ],
)
def test_resuming_needs_a_strong_version_or_a_checksum(server, tmp_path, tag, date, sha256, asked, version):
    def answer(handler):
        if "Range" not in handler.headers:
            handler.reply(200, DATA, {"ETag": tag, "Last-Modified": date})
            return True

    server.answer, server.most = answer, 100_000
    with pytest.raises(ValueError, match="broke off"):
        download(server.url, tmp_path, sha256)
    server.most, server.etag = None, version
    assert download(server.url, tmp_path, sha256).read_bytes() == DATA
    assert server.asked() == [None, asked]
    assert server.seen[1][1].get("If-Range") == version


def test_the_checksum_finds_a_part_of_another_file(server, broken):
    (broken / ".book.txt.part").write_bytes(OTHER[:100_000])
    with pytest.raises(ValueError, match=f"not {SUM}"):
        download(server.url, broken, SUM)
    assert names(broken) == []
    assert download(server.url, broken, SUM).read_bytes() == DATA


def test_a_killed_program_resumes_when_run_again(server, tmp_path):
    def trickle(handler):
        handler.send_response(200)
        for name, value in (("Content-Length", len(DATA)), ("ETag", server.etag)):
            handler.send_header(name, str(value))
        handler.end_headers()
        for start in range(0, len(DATA), 10_000):
            handler.wfile.write(DATA[start : start + 10_000])
            time.sleep(0.1)
        return True

    server.answer = trickle
    program = (
        "import sys, pathlib, gpt.text.download as d; d.download(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])"
    )
    command = [sys.executable, "-c", program, server.url, str(tmp_path), SUM]
    process = subprocess.Popen(command)
    part, deadline = tmp_path / ".book.txt.part", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= 30_000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() != 0
    size = part.stat().st_size
    assert part.read_bytes() == DATA[:size]
    assert not (tmp_path / "book.txt").exists()
    assert 30_000 <= size < len(DATA)
    server.answer = None
    assert subprocess.run(command).returncode == 0
    assert (tmp_path / "book.txt").read_bytes() == DATA
    assert server.asked() == [None, f"bytes={size}-"]


def test_two_programs_do_not_download_the_same_file(server, tmp_path):
    lock = FolderLock(tmp_path)
    lock.acquire()
    with pytest.raises(ValueError, match="is being written by this process"):
        download(server.url, tmp_path)
    lock.release()
    assert (server.seen, names(tmp_path)) == ([], [])


# --- failures ---------------------------------------------------------------------------------------------------------


def refused_port():
    """A port of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def assert_refused(url, folder, words, **options):
    """One line that names the URL and a way out, nothing on disk."""
    with pytest.raises(ValueError, match=words) as error:
        download(url, folder / "new" / "book.txt", **options)
    assert len(str(error.value).splitlines()) == 1
    assert re.search("name the file|64 hexadecimal", str(error.value))
    assert names(folder) == []


def test_a_refused_connection_is_reported(server, tmp_path):
    url = f"http://127.0.0.1:{refused_port()}/book.txt"
    assert_refused(url, tmp_path, f"{url} cannot be downloaded .*refused.*without a network, download it by other")


def test_a_missing_network_is_reported(server, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert_refused("https://example.org/a.txt", tmp_path, "a.txt cannot be downloaded .*name resolution.*without a net")


@pytest.mark.parametrize("status", [304, 404, 416, 503])
def test_an_http_error_is_reported(server, tmp_path, status):
    server.answer = lambda handler: handler.reply(status, b"<html>sorry</html>") or True
    assert_refused(server.url, tmp_path, rf"book\.txt cannot be downloaded .*{status}")


@pytest.mark.parametrize("answer", [b"", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000])
def test_an_answer_that_is_not_http_is_reported(server, tmp_path, answer):
    def speak(handler):
        handler.wfile.write(answer)
        handler.close_connection = True
        return True

    server.answer = speak
    assert_refused(server.url, tmp_path, "cannot be downloaded")


@pytest.mark.parametrize("sent", [None, 0, 1000])
def test_a_silent_server_times_out(server, tmp_path, monkeypatch, sent):
    done = threading.Event()

    def answer(handler):
        if sent is not None:
            handler.send_response(200)
            handler.send_header("Content-Length", "300000")
            handler.end_headers()
            handler.wfile.write(DATA[:sent])
        done.wait(30)
        return True

    monkeypatch.setattr(gpt.text.download, "TIMEOUT", 0.3)
    server.answer = answer
    start = time.monotonic()
    if sent is None:
        assert_refused(server.url, tmp_path, "cannot be downloaded .timed out")
    else:
        with pytest.raises(ValueError, match=f"broke off after {sent:,} of 300,000 bytes"):
            download(server.url, tmp_path)
        assert (tmp_path / ".book.txt.part").read_bytes() == DATA[:sent]
    assert time.monotonic() - start < 15
    done.set()


@pytest.mark.parametrize("sha256", ["xyz", "0" * 63, "g" * 64, SUM + "\n"])
def test_a_checksum_must_be_64_hexadecimal_digits(server, tmp_path, sha256):
    assert_refused(server.url, tmp_path, "a SHA-256 is 64 hexadecimal digits, not '", sha256=sha256)
    assert server.seen == []


# --- file names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/books/my%20book.txt", "my_book.txt"),
        ("HTTP://example.org/a/b/c.tar.gz?x=/y/z.txt#/w", "c.tar.gz"),
        ("https://example.org/..%2Fpasswd", "_passwd"),
        ("https://example.org/..%5C..%5Cwin.ini", "_.._win.ini"),
        ("https://example.org/.hidden.txt", "hidden.txt"),
        ("https://example.org/a%00b:c.txt", "a_b_c.txt"),
        ("https://example.org/caf%C3%A9.txt", "café.txt"),
    ],
)
def test_the_file_name_of_a_url(url, name):
    assert file_name(url) == name


@pytest.mark.parametrize(
    "url",
    ["https://example.org", "https://example.org/", "https://example.org/a/", "https://example.org/..", "https:///a.txt",
     "https://example.org/?a.txt", "ftp://example.org/a.txt", "file:///a.txt", "a.txt", "", "http:/a.txt", "http://"],
)  # fmt: skip
def test_a_url_without_a_file_name_is_refused(url):
    with pytest.raises(ValueError, match="name the file"):
        file_name(url)


# --- archives ---------------------------------------------------------------------------------------------------------

BOOKS = {"a.txt": b"one\n", "deep/er/b.txt": DATA, "deep/c.md": b"", "à la carte.txt": "é".encode()}
TARS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def pack(path, members):
    """An archive of (name, content) pairs, or of TarInfo or ZipInfo in place of a name; None makes a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(f"{name}/" if content is None else name, content or b"")
    else:
        with tarfile.open(path, TARS["".join(path.suffixes)]) as archive:
            for name, content in members:
                member = tarfile.TarInfo(name) if isinstance(name, str) else name
                member.type = tarfile.DIRTYPE if content is None else member.type
                member.size = len(content or b"")
                archive.addfile(member, io.BytesIO(content or b""))
    return path


def assert_not_unpacked(archive, words):
    """One line that names the archive, and no trace of it on disk."""
    before = names(archive.parent)
    with pytest.raises(ValueError, match=words) as error:
        unpack(archive, archive.parent / "new" / "out")
    assert str(error.value).startswith(f"{archive} ")
    assert len(str(error.value).splitlines()) == 1
    assert names(archive.parent) == before


EVERY = pytest.mark.parametrize("suffix", [".zip", *TARS])
BOTH = pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])


@EVERY
def test_unpacking_gives_what_was_packed(tmp_path, suffix):
    archive = pack(tmp_path / f"books{suffix}", [("deep", None), ("./", None), *BOOKS.items(), ("empty", None)])
    out = tmp_path / "new" / "out"
    assert unpack(archive, out) == out
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == BOOKS
    assert (out / "empty").is_dir()
    assert names(tmp_path / "new") == sorted(["out", *(f"out/{name}" for name in [*BOOKS, "deep", "deep/er", "empty"])])


@BOTH
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt"])
def test_nothing_is_unpacked_outside_the_folder(tmp_path, suffix, name):
    archive = pack(tmp_path / f"books{suffix}", [("a.txt", b"one"), (name, b"evil")])
    with contextlib.suppress(ValueError):
        unpack(archive, tmp_path / "new" / "out")
    assert not Path("/evil.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {archive.name, "new"}
    assert not (tmp_path / "new").exists() or {path.name for path in (tmp_path / "new").iterdir()} == {"out"}


@pytest.mark.parametrize("kind", ["SYMTYPE", "CHRTYPE", "FIFOTYPE"])
def test_a_tar_with_devices_or_links_to_outside_is_refused(tmp_path, kind):
    member = tarfile.TarInfo("trap.txt")
    member.type, member.linkname = getattr(tarfile, kind), "/etc/passwd"
    assert_not_unpacked(pack(tmp_path / "books.tar.gz", [("a.txt", b"one"), (member, b"")]), "trap.txt.* is a")


@BOTH
def test_the_metadata_files_of_macos_are_not_texts(work, suffix):
    members = [("a.txt", b"one"), ("._a.txt", b"\0\5\x16\7"), ("__MACOSX/._a.txt", b"\0\5\x16\7")]
    pack(work / f"books{suffix}", members)
    assert text_of(open_corpus(f"books{suffix}")) == "one"


def test_an_encrypted_zip_is_refused(tmp_path):
    archive = pack(tmp_path / "books.zip", [("a.txt", b"one")])
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flags of the directory's entry, and of the member itself
    data[6] |= 1
    archive.write_bytes(data)
    assert_not_unpacked(archive, "cannot be unpacked .*encrypted.* name the folder")


@EVERY
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.8])
def test_an_archive_that_is_cut_short_is_refused(tmp_path, suffix, share):
    data = pack(tmp_path / f"whole{suffix}", [("a.txt", b"one" * 300), ("b.txt", DATA)]).read_bytes()
    archive = tmp_path / f"books{suffix}"
    archive.write_bytes(data[: int(share * len(data))])
    assert_not_unpacked(archive, "cannot be unpacked")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_damaged_archive_is_refused(tmp_path, suffix):
    data = bytearray(pack(tmp_path / f"whole{suffix}", [("a.txt", DATA)]).read_bytes())
    data[len(data) // 2] ^= 1
    archive = tmp_path / f"books{suffix}"
    archive.write_bytes(data)
    assert_not_unpacked(archive, "cannot be unpacked")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize(
    "data", [b"", b"a text\n", gzip.compress(b"a text\n"), DATA], ids=["empty", "text", "gz", "random"]
)
def test_a_file_that_is_no_archive_is_refused(tmp_path, suffix, data):
    archive = tmp_path / f"books{suffix}"
    archive.write_bytes(data)
    assert_not_unpacked(archive, "cannot be unpacked")


def test_a_full_disk_is_reported_as_such(tmp_path, monkeypatch):
    archive = pack(tmp_path / "books.zip", BOOKS.items())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path) == ["books.zip"]


# --- open_corpus ------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text_of(corpus):
    return "".join(corpus.chunks())


def test_a_url_can_be_the_input(server, work):
    server.data = b"Once upon a time"
    for _ in range(2):
        corpus = open_corpus(server.url, sha256=hashlib.sha256(server.data).hexdigest())
        assert (corpus.name, corpus.paths) == ("book.txt", [Path("data/downloads/book.txt")])
        assert text_of(corpus) == "Once upon a time"
    assert len(server.seen) == 1


@EVERY
def test_the_url_of_an_archive_is_unpacked_once(server, work, suffix):
    members = [("b/2.txt", b"two"), ("1.md", b"one "), ("no.jpg", b"\xff")]
    server.data = pack(work / f"made{suffix}", members).read_bytes()
    url = f"http://127.0.0.1:{server.server_port}/books{suffix.upper()}"
    for _ in range(2):
        corpus = open_corpus(url)
        assert (corpus.name, text_of(corpus)) == (f"books{suffix.upper()}", "one two")
        stamp = corpus.paths[0].stat().st_mtime_ns
        assert stamp == open_corpus(url).paths[0].stat().st_mtime_ns
    assert len(server.seen) == 1
    assert len(list(Path("data/downloads").iterdir())) == 3  # the archive, its note, its folder


def test_another_archive_of_the_same_name_is_unpacked_too(work):
    for text in (b"one", b"two", b"one"):
        pack(work / "books.zip", [("a.txt", text)])
        assert text_of(open_corpus("books.zip")) == text.decode()


def test_an_archive_without_texts_is_refused(work):
    pack(work / "books.zip", [("a.jpg", b"\xff")])
    with pytest.raises(ValueError, match=r"books\.zip.* holds no \.txt or \.md file"):
        open_corpus("books.zip")


@pytest.fixture
def shakespeare(server, work, monkeypatch):
    """The known text, served from 127.0.0.1."""
    server.data = b"First Citizen:\n"
    sha256 = hashlib.sha256(server.data).hexdigest()
    text = KNOWN["shakespeare"]._replace(url=server.url, sha256=sha256)
    monkeypatch.setitem(KNOWN, "shakespeare", text)
    return server


def test_shakespeare_is_downloaded_by_name(shakespeare, work):
    for _ in range(2):
        corpus = open_corpus("shakespeare")
        assert (corpus.name, corpus.paths) == ("shakespeare", [Path("data/downloads/shakespeare.txt")])
        assert text_of(corpus) == "First Citizen:\n"
    assert len(shakespeare.seen) == 1


def test_a_known_text_with_another_checksum_is_refused(shakespeare, work):
    shakespeare.data = b"Marlowe"
    with pytest.raises(ValueError, match="nothing was kept"):
        open_corpus("shakespeare")
    assert names(work) == ["data"] or names(work) == []
    Path("data/downloads").mkdir(parents=True)
    Path("data/downloads/shakespeare.txt").write_text("Marlowe")
    with pytest.raises(ValueError, match="move it away"):
        open_corpus("shakespeare")


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_or_folder_takes_precedence_over_a_known_name(shakespeare, work, folder):
    path = work / "shakespeare" / "mine.txt" if folder else work / "shakespeare"
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    assert text_of(open_corpus("shakespeare")) == "mine"
    assert shakespeare.seen == []


def test_the_checksum_of_a_local_file_is_checked(work):
    (work / "a.txt").write_text("a")
    right, wrong = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))
    assert text_of(open_corpus("a.txt", sha256=right.upper())) == "a"
    with pytest.raises(ValueError, match=f"a.txt has the SHA-256 {right}, not {wrong}"):
        open_corpus("a.txt", sha256=wrong)
    with pytest.raises(ValueError, match=f"not {wrong}"):
        open_corpus("story", sha256=wrong)
    for source in (".", "*.txt", "tales:3", "-", "none.txt"):
        with pytest.raises(ValueError, match=f"that of a file or a download, and {re.escape(repr(source))} is neither"):
            open_corpus(source, sha256=right)


@pytest.mark.parametrize("source", ["ftp://127.0.0.1/a.txt", "file:///etc/passwd", "s3://bucket/a.txt", "https://a"])
def test_other_urls_than_http_are_refused(work, source):
    with pytest.raises(ValueError, match=f"'{source}' .*name the file"):
        open_corpus(source)


def test_an_unknown_name_lists_the_known_texts(work):
    with pytest.raises(ValueError, match=r"no text of that name \(story, tales, .*shakespeare, tinystories"):
        open_corpus("shakespear")


def test_only_a_terminal_shows_a_progress_bar(server, tmp_path, monkeypatch, capsys):
    download(server.url, tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download(server.url, tmp_path / "again.txt")
    assert "300k/300k" in capsys.readouterr().err
