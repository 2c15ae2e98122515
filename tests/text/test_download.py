"""gpt/text/download.py: what a server sends is whole or not there, and what comes out of an archive stays in its folder.

The servers are true ones, on 127.0.0.1, that behave and misbehave as told.
"""

import contextlib
import gzip
import hashlib
import io
import os
import random
import re
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gpt.text.download
import gpt.text.sources
from gpt.system.files import FolderLock
from gpt.text.download import download, file_name, unpack
from gpt.text.sources import open_corpus

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


def test_into_a_folder_it_goes_under_its_own_name(server, tmp_path):
    assert download(f"{server.url}?download=1#top", tmp_path) == tmp_path / "book.txt"
    assert names(tmp_path) == WHOLE


@pytest.mark.parametrize("body", [b"", b"x", DATA])
def test_a_length_need_not_be_announced(server, tmp_path, body):
    server.answer = lambda handler: handler.reply(200, body, length=False) or True
    assert download(server.url, tmp_path).read_bytes() == body


def test_chunks_are_put_together(server, tmp_path):
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


def test_characters_that_a_url_does_not_hold_are_encoded(server, tmp_path):
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


def test_a_file_of_another_url_is_not_taken_for_it(server, tmp_path):
    download(server.url, tmp_path)
    other = server.url.replace("folder", "another")
    with pytest.raises(ValueError, match=re.escape(f"book.txt was downloaded from {server.url}: move it away")):
        download(other, tmp_path)
    assert download(other, tmp_path, SUM).read_bytes() == DATA  # its content says that it is


def test_a_file_that_is_there_with_another_checksum_is_kept(server, tmp_path):
    (tmp_path / "book.txt").write_bytes(OTHER)
    assert download(server.url, tmp_path).read_bytes() == OTHER  # put there by hand
    with pytest.raises(ValueError, match=rf"book\.txt has the SHA-256 {WRONG}, not {SUM}: move it away"):
        download(server.url, tmp_path, SUM)
    assert (tmp_path / "book.txt").read_bytes() == OTHER
    assert server.seen == []


def test_another_content_is_refused_and_the_next_try_begins_anew(server, tmp_path):
    with pytest.raises(ValueError, match=f"book.txt has the SHA-256 {SUM}, not {WRONG}: .*nothing was kept"):
        download(server.url, tmp_path / "new", WRONG)
    assert names(tmp_path) == []
    server.data = OTHER
    assert download(server.url, tmp_path, WRONG).read_bytes() == OTHER
    assert server.asked() == [None, None]


# --- breaking off, and going on ---------------------------------------------------------------------------------------


@pytest.fixture
def broken(server, tmp_path):
    """A download that broke off after 100,000 bytes."""
    server.most = 100_000
    with pytest.raises(ValueError, match=r"book\.txt broke off after 100,000 of 300,000 bytes: the same command, run"):
        download(server.url, tmp_path)
    assert names(tmp_path) == KEPT
    assert (tmp_path / ".book.txt.part").read_bytes() == DATA[:100_000]
    server.most = None
    server.seen.clear()
    return tmp_path


def test_only_the_rest_is_asked_for(server, broken):
    server.most = 50_000
    with pytest.raises(ValueError, match="after 150,000 of 300,000"):
        download(server.url, broken)
    server.most = None
    assert download(server.url, broken, SUM).read_bytes() == DATA
    assert server.asked() == ["bytes=100000-", "bytes=150000-"]
    assert {headers["If-Range"] for _, headers in server.seen} == {'"one"'}
    assert names(broken) == WHOLE


def test_a_file_that_has_changed_since_is_downloaded_anew(server, broken):
    server.data, server.etag = OTHER, '"two"'
    assert download(server.url, broken).read_bytes() == OTHER
    assert (broken / ".book.txt.from").read_text() == f'{server.url}\n"two"\n'


def test_a_server_without_ranges_sends_the_whole(server, broken):
    server.ranges = False
    assert download(server.url, broken).read_bytes() == DATA
    assert server.asked() == ["bytes=100000-"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Range": "bytes 99999-299999/300000"},
        {"Content-Range": "bytes 0-299999/300000"},
        {"Content-Range": "bytes 100000-299999/*"},
        {"Content-Range": "bytes */300000"},
        {"Content-Range": "100000"},
    ],
)
@pytest.mark.parametrize("status", [206, 416])
def test_a_rest_that_does_not_fit_is_not_taken(server, broken, status, headers):
    def answer(handler):
        if "Range" in handler.headers:
            handler.reply(status, OTHER[:200_000], headers)
            return True

    server.answer = answer
    assert download(server.url, broken).read_bytes() == DATA
    assert server.asked() == ["bytes=100000-", None]


def test_a_rest_in_two_halves_is_not_the_whole(server, broken):
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


def test_a_rest_that_is_too_long_is_read_to_the_end_of_the_file(server, broken):
    server.answer = lambda handler: handler.reply(
        206, DATA[100_000:] + b"more", {"Content-Range": "bytes 100000-299999/300000"}
    )
    assert download(server.url, broken).read_bytes() == DATA


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_a_part_that_holds_all_takes_its_place(server, broken, extra):
    (broken / ".book.txt.part").write_bytes(DATA + extra)
    assert download(server.url, broken).read_bytes() == DATA
    assert server.asked() == [f"bytes={300_000 + len(extra)}-", *([None] if extra else [])]


def test_a_part_of_another_url_is_not_gone_on_with(server, broken):
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
def test_what_a_rest_is_held_against(server, tmp_path, tag, date, sha256, asked, version):
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


def test_a_rest_of_another_file_is_found_out_by_the_checksum(server, broken):
    (broken / ".book.txt.part").write_bytes(OTHER[:100_000])
    with pytest.raises(ValueError, match=f"not {SUM}"):
        download(server.url, broken, SUM)
    assert names(broken) == []
    assert download(server.url, broken, SUM).read_bytes() == DATA


def test_a_program_that_is_killed_goes_on_when_it_is_run_again(server, tmp_path):
    def trickle(handler):
        handler.send_response(200)
        for name, value in (("Content-Length", len(DATA)), ("ETag", server.etag)):
            handler.send_header(name, str(value))
        handler.end_headers()
        for start in range(0, len(DATA), 1000):
            handler.wfile.write(DATA[start : start + 1000])
            time.sleep(0.02)
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


def test_two_programs_do_not_write_one_part(server, tmp_path):
    lock = FolderLock(tmp_path)
    lock.acquire()
    with pytest.raises(ValueError, match="is being written by this process"):
        download(server.url, tmp_path)
    lock.release()
    assert (server.seen, names(tmp_path)) == ([], [])


# --- what cannot be downloaded ----------------------------------------------------------------------------------------


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


def test_nobody_listens(server, tmp_path):
    url = f"http://127.0.0.1:{refused_port()}/book.txt"
    assert_refused(url, tmp_path, f"{url} cannot be downloaded .*refused.*without a network, download it by other")


def test_no_network(server, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert_refused("https://example.org/a.txt", tmp_path, "a.txt cannot be downloaded .*name resolution.*without a net")


@pytest.mark.parametrize("status", [204, 206, 304, 400, 403, 404, 416, 500, 503])
def test_an_answer_of_failure(server, tmp_path, status):
    server.answer = lambda handler: handler.reply(status, b"<html>sorry</html>") or True
    assert_refused(server.url, tmp_path, rf"book\.txt cannot be downloaded .*{status}")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file:///etc/passwd", "302.*file:///etc/passwd"),
        ("ftp://127.0.0.1/book.txt", "unknown url type: ftp"),
        ("data:text/plain,hello", "302"),
        ("/folder/book.txt", "infinite loop"),
        (None, "302"),
    ],
)
def test_a_redirect_that_leads_nowhere(server, tmp_path, place, words):
    server.answer = lambda handler: handler.reply(302, b"", {"Location": place}) or True
    assert_refused(server.url, tmp_path, words)


@pytest.mark.parametrize("answer", [b"", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000])
def test_what_is_no_answer(server, tmp_path, answer):
    def speak(handler):
        handler.wfile.write(answer)
        handler.close_connection = True
        return True

    server.answer = speak
    assert_refused(server.url, tmp_path, "cannot be downloaded")


@pytest.mark.parametrize("sent", [None, 0, 1000])
def test_a_server_that_falls_silent(server, tmp_path, monkeypatch, sent):
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


def test_what_goes_beyond_the_announced_length_is_not_read(server, tmp_path):
    server.answer = lambda handler: handler.reply(200, DATA, {"Content-Length": 1000}) or True
    assert download(server.url, tmp_path).read_bytes() == DATA[:1000]


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_above_the_limit(server, tmp_path, announced):
    server.answer = lambda handler: handler.reply(200, DATA, length=announced) or True
    words = "is 300,000 bytes long, above the limit of 299,999" if announced else "longer than the limit of 299,999"
    assert_refused(server.url, tmp_path, words, size_limit=299_999)
    assert download(server.url, tmp_path, size_limit=300_000).read_bytes() == DATA


def test_an_endless_file_is_stopped_at_the_limit(server, tmp_path):
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(DATA)
        return True

    server.answer = answer
    assert_refused(server.url, tmp_path, "longer than the limit of 5,000,000 bytes", size_limit=5_000_000)


@pytest.mark.parametrize("sha256", ["xyz", "0" * 63, "0" * 65, "g" * 64, SUM + "\n", "\N{FULLWIDTH DIGIT ONE}" * 64])
def test_the_form_of_a_checksum(server, tmp_path, sha256):
    assert_refused(server.url, tmp_path, "a SHA-256 is 64 hexadecimal digits, not '", sha256=sha256)
    assert server.seen == []


# --- names ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=500)
@given(
    path=st.text() | st.text(st.sampled_from("./\\%2eEfFcC05:~ -_aé\0\n?#|*")) | st.from_regex(r"(%[0-9a-fA-F]{2}|\.)+")
)
@example(path="..%2f..%2fetc%2fpasswd")
@example(path="%2e%2e")
@example(path="..%5c..%5cwin.ini")
@example(path="a%00.txt")
@example(path="c%3a.txt")
@example(path="COM1.txt")
@example(path="%6eul")
@example(path="x" * 300)
@example(path="\ud800")
def test_any_url_gives_a_plain_name_inside_the_folder_or_none(path):
    try:
        name = file_name(f"https://example.org/{path}")
    except ValueError as error:
        assert "name the file" in str(error)
        return
    folder = Path("/some/folder")
    assert Path(os.path.normpath(folder / name)).parent == folder
    windows = PureWindowsPath("C:/folder") / name
    assert (windows.parent, windows.name) == (PureWindowsPath("C:/folder"), name)
    assert not name.startswith(".") and not name.endswith((".", " "))
    assert not re.search(r'[\x00-\x1f\x7f<>:"/\\|?*]', name)
    assert name.split(".")[0].lower() not in {
        "con",
        "prn",
        "aux",
        "nul",
        *(f"{x}{n}" for x in ("com", "lpt") for n in "123456789"),
    }
    assert len(name.encode()) <= 200


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/books/my%20book.txt", "my_book.txt"),
        ("HTTP://example.org/a/b/c.tar.gz?x=/y/z.txt#/w", "c.tar.gz"),
        ("https://example.org/..%2Fpasswd", "_passwd"),
        ("https://example.org/.hidden.txt", "hidden.txt"),
        ("https://example.org/caf%C3%A9.txt", "café.txt"),
        ("https://example.org/NUL.txt", "_NUL.txt"),
    ],
)
def test_names_by_hand(url, name):
    assert file_name(url) == name


@pytest.mark.parametrize(
    "url",
    ["https://example.org", "https://example.org/", "https://example.org/a/", "https://example.org/..", "https:///a.txt",
     "https://example.org/?a.txt", "ftp://example.org/a.txt", "file:///a.txt", "a.txt", "", "http:/a.txt", "http://"],
)  # fmt: skip
def test_urls_without_a_name(url):
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


def assert_not_unpacked(archive, words, **options):
    """One line that names the archive, and no trace of it on disk."""
    before = names(archive.parent)
    with pytest.raises(ValueError, match=words) as error:
        unpack(archive, archive.parent / "new" / "out", **options)
    assert str(error.value).startswith(f"{archive} ")
    assert len(str(error.value).splitlines()) == 1
    assert names(archive.parent) == before


EVERY = pytest.mark.parametrize("suffix", [".zip", *TARS])
BOTH = pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])


@EVERY
def test_an_archive_is_unpacked_as_it_was_packed(tmp_path, suffix):
    archive = pack(tmp_path / f"books{suffix}", [("deep", None), ("./", None), *BOOKS.items(), ("empty", None)])
    out = tmp_path / "new" / "out"
    assert unpack(archive, out) == out
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == BOOKS
    assert (out / "empty").is_dir()
    assert names(tmp_path / "new") == sorted(["out", *(f"out/{name}" for name in [*BOOKS, "deep", "deep/er", "empty"])])


@BOTH
def test_a_folder_that_is_there_is_left_alone(tmp_path, suffix):
    archive = pack(tmp_path / f"books{suffix}", BOOKS.items())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="out exists: name another folder"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path / "out") == ["mine.txt"]


@BOTH
@pytest.mark.parametrize(
    "name",
    ["../evil.txt", "a/../../evil.txt", "..", "/evil.txt", "//host/evil.txt", "C:/evil.txt", "c:evil.txt",
     "..\\evil.txt", "a\\..\\..\\evil.txt", "\\evil.txt", "\\\\host\\share\\evil.txt", "C:\\evil.txt"],
)  # fmt: skip
def test_an_archive_that_leads_out_of_its_folder(tmp_path, suffix, name):
    archive = pack(tmp_path / f"books{suffix}", [("a.txt", b"one"), (name, b"evil")])
    assert_not_unpacked(archive, f"holds {re.escape(repr(name))}, which leads out of a folder")


@BOTH
@pytest.mark.parametrize("name", ["a\nb.txt", "\x1b[2J.txt"])
def test_a_name_of_control_characters(tmp_path, suffix, name):
    assert_not_unpacked(pack(tmp_path / f"books{suffix}", [(name, b"x")]), "which is no name for a file")


def test_a_name_with_backslashes_is_a_path_everywhere(tmp_path):
    out = unpack(pack(tmp_path / "books.zip", [("deep\\er\\b.txt", b"x")]), tmp_path / "out")
    assert names(out) == ["deep", "deep/er", "deep/er/b.txt"]


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE"])
def test_a_tar_of_links_or_devices(tmp_path, kind):
    member = tarfile.TarInfo("trap.txt")
    member.type, member.linkname = getattr(tarfile, kind), "/etc/passwd"
    archive = pack(tmp_path / "books.tar.gz", [("a.txt", b"one"), (member, b""), ("trap.txt", b"evil")])
    assert_not_unpacked(archive, "holds a link or device, 'trap.txt'")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_zip_of_links_or_devices(tmp_path, kind):
    member = zipfile.ZipInfo("trap.txt")
    member.external_attr = (kind | 0o777) << 16
    archive = pack(tmp_path / "books.zip", [("a.txt", b"one"), (member, b"/etc/passwd")])
    assert_not_unpacked(archive, "holds a link or device, 'trap.txt'")


def test_no_file_becomes_a_program(tmp_path):
    member = tarfile.TarInfo("run.txt")
    member.mode = 0o6777
    out = unpack(pack(tmp_path / "books.tar", [(member, b"x")]), tmp_path / "out")
    assert (out / "run.txt").stat().st_mode & 0o6111 == 0


@EVERY
def test_a_bomb_is_stopped_at_the_limit(tmp_path, suffix):
    archive = pack(tmp_path / f"bomb{suffix}", [(f"{n}.txt", bytes(1_000_000)) for n in range(5)])
    assert_not_unpacked(archive, "holds more than 4,999,999 bytes", size_limit=4_999_999)
    assert len(names(unpack(archive, tmp_path / "out", size_limit=5_000_000))) == 5


@pytest.mark.parametrize("says", [0, 10, 999_999])
def test_a_bomb_whose_header_lies(tmp_path, says):
    """Its directory says few bytes, and a million come out."""
    archive = pack(tmp_path / "bomb.zip", [("0.txt", bytes(1_000_000))])
    data = archive.read_bytes()
    true = (1_000_000).to_bytes(4, "little")
    assert data.count(true) == 2
    archive.write_bytes(data.replace(true, says.to_bytes(4, "little")))
    assert_not_unpacked(archive, "is damaged", size_limit=2_000_000)


def test_a_tar_that_is_larger_than_its_header_says_it_can_be(tmp_path):
    """A sparse file: 512 bytes of header that stand for a gigabyte."""
    member = tarfile.TarInfo("huge.txt")
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0",
                          "GNU.sparse.size": "1000000000", "GNU.sparse.name": "huge.txt"}  # fmt: skip
    archive = pack(tmp_path / "bomb.tar", [(member, b"")])
    assert archive.stat().st_size < 20_000
    assert_not_unpacked(archive, "holds more than 1,000,000 bytes", size_limit=1_000_000)


@BOTH
def test_an_archive_of_too_many_members(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(gpt.text.download, "MEMBERS_LIMIT", 20)
    archive = pack(tmp_path / f"books{suffix}", [(str(n), None if n % 2 else b"") for n in range(21)])
    assert_not_unpacked(archive, "holds more than 20 files and folders")
    monkeypatch.setattr(gpt.text.download, "MEMBERS_LIMIT", 21)
    assert len(names(unpack(archive, tmp_path / "out"))) == 21


@pytest.mark.filterwarnings("ignore:Duplicate name")
@BOTH
def test_a_name_that_comes_twice(tmp_path, suffix):
    assert_not_unpacked(
        pack(tmp_path / f"books{suffix}", [("a.txt", b"1"), ("./a.txt", b"2")]), "'./a.txt' twice|twice"
    )


@BOTH
def test_what_macos_packs_beside_a_file_is_left_out(tmp_path, suffix):
    members = [("a.txt", b"one"), ("._a.txt", b"\0\5\x16\7"), ("__MACOSX/._a.txt", b"\0\5\x16\7")]
    assert names(unpack(pack(tmp_path / f"books{suffix}", members), tmp_path / "out")) == ["a.txt"]


def test_an_encrypted_zip(tmp_path):
    archive = pack(tmp_path / "books.zip", [("a.txt", b"one")])
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flags of the directory's entry, and of the member itself
    data[6] |= 1
    archive.write_bytes(data)
    assert_not_unpacked(archive, "holds an encrypted file, 'a.txt': unpack it by other means")


@EVERY
def test_an_archive_that_is_cut_short_anywhere(tmp_path, suffix):
    """Even where a tar's member ends: its own end is marked."""
    whole = pack(tmp_path / f"whole{suffix}", [("a.txt", b"one" * 300), ("b.txt", DATA[:2000])])
    data, archive = whole.read_bytes(), tmp_path / f"books{suffix}"
    end = len(data) if suffix != ".tar" else data.index(DATA[1990:2000]) + 10
    for size in {*range(0, end, 37), *range(0, end, 512), end - 1}:
        archive.write_bytes(data[:size])
        assert_not_unpacked(archive, "is damaged, cut short, or not what its name says")


@EVERY
def test_a_damaged_archive_is_whole_or_refused(tmp_path, suffix):
    """As far as its format carries checksums: those of a zip are its files', which none in its directory completes,
    those of a plain tar its headers'."""
    contents = {"a.txt": b"one" * 300, "b.txt": DATA[:2000]}
    data = pack(tmp_path / f"whole{suffix}", contents.items()).read_bytes()
    draw, archive, refused = random.Random(3), tmp_path / f"books{suffix}", 0
    for n in range(300):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        archive.write_bytes(damaged)
        try:
            out = unpack(archive, tmp_path / str(n))
        except ValueError as error:
            assert str(error).startswith(f"{archive} ")
            refused += 1
            continue
        found = {p.read_bytes() for p in out.rglob("*") if p.is_file()}
        assert suffix == ".tar" or found <= {*contents.values()}
        assert suffix in (".tar", ".zip") or len(found) == 2
    assert refused > 20


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_what_is_no_archive(tmp_path, suffix):
    archive = tmp_path / f"books{suffix}"
    for data in (b"", b"a text\n", gzip.compress(b"a text\n"), bytes(100), DATA):
        archive.write_bytes(data)
        assert_not_unpacked(archive, "is damaged, cut short, or not what its name says")


def test_an_archive_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "books.zip", tmp_path / "out")
    assert names(tmp_path) == []


def test_a_full_disk_is_no_damaged_archive(tmp_path, monkeypatch):
    archive = pack(tmp_path / "books.zip", BOOKS.items())
    written = Path.open

    def full(path, mode="r", *arguments, **options):
        if mode == "wb":
            raise OSError(28, "No space left on device", str(path))
        return written(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path) == ["books.zip"]


# --- the doors --------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text_of(corpus):
    return "".join(corpus.pieces())


def test_a_url_is_a_corpus(server, work):
    server.data = b"Once upon a time"
    for _ in range(2):
        corpus = open_corpus(server.url, sha256=hashlib.sha256(server.data).hexdigest())
        assert (corpus.name, corpus.paths) == ("book.txt", [Path("data/downloads/book.txt")])
        assert text_of(corpus) == "Once upon a time"
    assert len(server.seen) == 1


@EVERY
def test_the_url_of_an_archive_is_a_folder_unpacked_once(server, work, suffix):
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


def test_another_archive_of_the_same_name_is_another_corpus(work):
    for text in (b"one", b"two", b"one"):
        pack(work / "books.zip", [("a.txt", text)])
        assert text_of(open_corpus("books.zip")) == text.decode()


def test_an_archive_without_texts(work):
    pack(work / "books.zip", [("a.jpg", b"\xff")])
    with pytest.raises(ValueError, match=r"books\.zip.* holds no \.txt or \.md file"):
        open_corpus("books.zip")


@pytest.fixture
def shakespeare(server, work, monkeypatch):
    """The table's entry, led to the server."""
    url, known, name = gpt.text.sources.DOWNLOADABLE["shakespeare"]
    assert (url, known, name) == (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "shakespeare.txt",
    )
    server.data = b"First Citizen:\n"
    known = hashlib.sha256(server.data).hexdigest()
    monkeypatch.setitem(gpt.text.sources.DOWNLOADABLE, "shakespeare", (server.url, known, name))
    return server


def test_shakespeare_is_downloaded_by_name(shakespeare, work):
    for _ in range(2):
        corpus = open_corpus("shakespeare")
        assert (corpus.name, corpus.paths) == ("shakespeare", [Path("data/downloads/shakespeare.txt")])
        assert text_of(corpus) == "First Citizen:\n"
    assert len(shakespeare.seen) == 1


def test_another_text_is_not_shakespeare(shakespeare, work):
    shakespeare.data = b"Marlowe"
    with pytest.raises(ValueError, match="nothing was kept"):
        open_corpus("shakespeare")
    assert names(work) == ["data"] or names(work) == []
    Path("data/downloads").mkdir(parents=True)
    Path("data/downloads/shakespeare.txt").write_text("Marlowe")
    with pytest.raises(ValueError, match="move it away"):
        open_corpus("shakespeare")


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_or_folder_of_that_name_is_read_in_its_place(shakespeare, work, folder):
    path = work / "shakespeare" / "mine.txt" if folder else work / "shakespeare"
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    assert text_of(open_corpus("shakespeare")) == "mine"
    assert shakespeare.seen == []


def test_the_checksum_of_a_file_that_is_not_downloaded(work):
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
def test_what_only_looks_like_a_download(work, source):
    with pytest.raises(ValueError, match=f"'{source}' .*name the file"):
        open_corpus(source)


def test_an_unknown_name_is_told_what_can_be_downloaded(work):
    with pytest.raises(ValueError, match=r"no text of that name \(story, tales, .*shakespeare, tinystories"):
        open_corpus("shakespear")


def test_the_terminal_alone_sees_a_bar(server, tmp_path, monkeypatch, capsys):
    download(server.url, tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download(server.url, tmp_path / "again.txt")
    assert "300k/300k" in capsys.readouterr().err
