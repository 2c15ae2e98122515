"""A file from the network, files out of an archive: whole or not at all, and never outside the folder they go to."""

import contextlib
import errno
import http.client
import re
import reprlib
import stat
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm import tqdm

from gpt.system import files

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SIZE_LIMIT = 20_000_000_000  # bytes that are downloaded, or unpacked from an archive, at most
MEMBERS_LIMIT = 1_000_000  # files and folders of an archive, at most
TIMEOUT = 30  # seconds that a server may be silent
PIECE = 1 << 16  # bytes read at once
BY_OTHER_MEANS = "download it by other means and name the file"


def file_name(url: str) -> str:
    """The name that a download is kept under: the last part of the URL's path, with _ for what some system would not
    take in the name of a file.

    ValueError where the URL is not one of http or https, or where its path ends in no name.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in ("http", "https"):
        raise ValueError(f"{url!r} is not downloaded, only http:// and https:// are: {BY_OTHER_MEANS}")
    host, _, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    name = re.sub(r"[^\w.()+-]+", "_", urllib.parse.unquote(path.rpartition("/")[2])).strip(".")
    name = re.sub(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", r"_\1", name)  # devices, on Windows
    if not host or not name or len(name.encode()) > 200:
        raise ValueError(f"{url!r} does not end in the name of a file: {BY_OTHER_MEANS}")
    return name


def check_form(sha256: str) -> str:
    """A SHA-256 in lower case; ValueError unless it is 64 hexadecimal digits, or empty where there is none to check."""
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"a SHA-256 is 64 hexadecimal digits, not {reprlib.repr(sha256)}")
    return sha256.lower()


def check_sum(path: Path, sha256: str, name: str, advice: str) -> None:
    """ValueError, with the name and the advice, unless a file has this SHA-256; an empty one says nothing."""
    if sha256 and (found := files.sha256(path)) != sha256:
        raise ValueError(f"{name} has the SHA-256 {found}, not {sha256}: {advice}")


def download(url: str, target: Path, sha256: str = "", size_limit: int = SIZE_LIMIT) -> Path:
    """Download a file to `target`, or into it where that is a folder, whole or not at all; its path.

    A file that is there is not downloaded again. When the connection or the program ends early, .NAME.part keeps what
    has come in, and the next call goes on from there, if .NAME.from says that it is of this URL, and the server that
    the file has not changed. Without `sha256`, one that the server cuts short passes for the whole where it has not
    announced the length.

    ValueError where the URL gives no file, or more than `size_limit` bytes, or not what `sha256` says.
    """
    name, sha256 = file_name(url), check_form(sha256)
    url = urllib.parse.quote(url, safe=":/?#[]@!$&'()*+,;=%", errors="replace")
    path = target / name if target.is_dir() else target
    part, note = (path.with_name(f".{path.name}.{ending}") for ending in ("part", "from"))
    if path.exists():
        check_sum(path, sha256, str(path), "move it away to have it downloaded, or correct the checksum")
        origin, _ = _read_note(note)
        if not sha256 and origin not in ("", url):
            raise ValueError(f"{path} was downloaded from {origin}: move it away to download {url}")
        return path
    with files.FolderLock(path.parent).held():
        _fetch(url, part, note, sha256, size_limit)
        part.replace(path)
        files.flush(path.parent)
    return path


def _fetch(url: str, part: Path, note: Path, sha256: str, size_limit: int) -> None:
    """Have `part`, which may hold its beginning, hold the whole file, and `note` say what it is of."""
    origin, version = _read_note(note)
    goes_on = part.exists() and origin == url and (version or sha256)  # or two files might become half of each
    response, size, total = _request(url, part.stat().st_size if goes_on else 0, version)
    bar = tqdm(total=total, initial=size, unit="B", unit_scale=True, disable=not sys.stderr.isatty())
    with response, bar:
        if total is not None and total > size_limit:
            raise ValueError(f"{url} is {total:,} bytes long, above the limit of {size_limit:,}: {BY_OTHER_MEANS}")
        if size == 0:
            part.unlink(missing_ok=True)  # before the note, which must not vouch for it
            tag = response.headers.get("ETag", "")  # a weak one, W/"...", may stand for several files
            version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
            files.write_text(note, f"{url}\n{version}\n")
        with part.open("ab") as file:
            for data in _incoming(response, url, size, total):
                size += len(data)
                if size > size_limit:
                    break
                file.write(data)
                bar.update(len(data))
    try:
        if size > size_limit:
            raise ValueError(f"{url} is longer than the limit of {size_limit:,} bytes: {BY_OTHER_MEANS}")
        files.flush(part)
        check_sum(part, sha256, url, "it has changed, or the checksum is mistyped; nothing was kept")
    except ValueError:
        part.unlink()
        note.unlink()
        raise


def _request(url: str, start: int, version: str) -> tuple[http.client.HTTPResponse, int, int | None]:
    """A response, the byte it begins at (`start`, or 0 where the server does not go on from there), and the bytes of
    the whole file, where they are announced."""
    response = _ask(url, start, version)
    if start:
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        if found and response.status in (206, 416) and int(found[1] or found[2]) == start:  # */N: all N are there
            return response, start, int(found[2])
        if response.status != 200:
            response.close()
            response = _ask(url, 0, "")
    if response.status != 200:
        response.close()
        raise ValueError(f"{url} cannot be downloaded (its server answers {response.status}): {BY_OTHER_MEANS}")
    return response, 0, response.length


def _ask(url: str, start: int, version: str) -> http.client.HTTPResponse:
    """The response to a request for a file, from byte `start` on if it still has that version. ValueError where there
    is none, or one of failure."""
    headers = {"User-Agent": "gpt-from-scratch"}  # some servers refuse Python's own
    if start:
        headers["Range"] = f"bytes={start}-"
        if version:
            headers["If-Range"] = version
    opener = urllib.request.OpenerDirector()  # that of build_opener would follow a redirect to ftp: as well
    for name in ("Proxy", "Unknown", "HTTP", "HTTPS", "HTTPDefaultError", "HTTPRedirect"):
        opener.add_handler(getattr(urllib.request, f"{name}Handler")())
    opener.add_handler(urllib.request.HTTPErrorProcessor())
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if start and isinstance(error, urllib.error.HTTPError) and error.code == 416:
            return error
        reason = _first_line(error.reason if type(error) is urllib.error.URLError else error)
        raise ValueError(f"{url} cannot be downloaded ({reason}); without a network, {BY_OTHER_MEANS}") from None


def _incoming(response: http.client.HTTPResponse, url: str, size: int, total: int | None) -> Iterator[bytes]:
    """What comes in after `size` bytes, to the end. ValueError where the connection ends before."""
    while size != total:
        try:
            data = response.read1(PIECE if total is None else min(PIECE, total - size))
        except (OSError, http.client.HTTPException):
            data = None
        if data == b"" and total is None:
            return
        if not data:
            came = f"{size:,}" if total is None else f"{size:,} of {total:,}"
            raise ValueError(f"{url} broke off after {came} bytes: the same command, run again, goes on from there")
        size += len(data)
        yield data


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(":.")


def _read_note(note: Path) -> tuple[str, str]:
    """The URL that a file is of, and what its server calls this version; empty where nothing is known."""
    lines = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
    url, version = [*lines, "", ""][:2]
    return url, version


# --- archives ---------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, size_limit: int = SIZE_LIMIT) -> Path:
    """Unpack a .zip, or a .tar that may be compressed, into a new folder, whole or not at all; that folder.

    ._NAME, which macOS packs beside NAME, is left out. ValueError for an archive that is damaged or encrypted, that
    holds links or devices or leads out of the folder, or that is more than `size_limit` bytes or MEMBERS_LIMIT members.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: name another folder for what {archive} holds")
    size = 0
    otherwise = "unpack it by other means and name the folder"
    with files.atomic_folder(folder) as temporary:
        for count, (name, kind, pieces) in enumerate(_members(archive), start=1):
            place = PurePosixPath(name.replace("\\", "/"))  # as Windows reads it
            if kind not in ("file", "folder"):
                raise ValueError(f"{archive} holds {kind}, {name!r}: {otherwise}")
            if place.is_absolute() or ".." in place.parts or re.match(r"[A-Za-z]:", name):
                raise ValueError(f"{archive} holds {name!r}, which leads out of a folder: do not trust it")
            if re.search(r"[\x00-\x1f]", name) or (kind == "file" and not place.name):
                raise ValueError(f"{archive} holds {name!r}, which is no name for a file: {otherwise}")
            if count > MEMBERS_LIMIT:
                raise ValueError(f"{archive} holds more than {MEMBERS_LIMIT:,} files and folders: {otherwise}")
            path = temporary / place
            if kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
            elif not place.name.startswith("._"):  # it might be called .txt, and is none
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    raise ValueError(f"{archive} holds {name!r} twice: {otherwise}")
                with path.open("wb") as file:
                    for piece in pieces:
                        size += len(piece)
                        if size > size_limit:  # of what has come out: what a header says may be a lie
                            raise ValueError(f"{archive} holds more than {size_limit:,} bytes: {otherwise}")
                        file.write(piece)
    return folder


def _members(archive: Path) -> Iterator[tuple[str, str, Iterator[bytes]]]:
    """The members of an archive, each with its name, what it is, and its content in pieces, to be read at once."""
    with _intact(archive):
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as opened:
                for member in opened.infolist():
                    mode = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was not packed on Unix
                    kind = "folder" if member.is_dir() else "file" if mode in (0, stat.S_IFREG) else "a link or device"
                    kind = "an encrypted file" if member.flag_bits & 1 else kind
                    yield member.filename, kind, _pieces(archive, lambda member=member: opened.open(member))
        else:
            with tarfile.open(archive, tarinfo=_TarMember) as opened:
                for member in opened:
                    kind = "folder" if member.isdir() else "file" if member.isreg() else "a link or device"
                    yield member.name, kind, _pieces(archive, lambda member=member: opened.extractfile(member))
                opened.fileobj.read(1 << 20)  # past its padding, where a compressed one has its checksum


def _pieces(archive: Path, open_member: Callable[[], BinaryIO]) -> Iterator[bytes]:
    with _intact(archive), open_member() as stream:
        while piece := stream.read(PIECE):
            yield piece


@contextlib.contextmanager
def _intact(archive: Path) -> Iterator[None]:
    """Whatever goes wrong while an archive is read, as a ValueError: zipfile and tarfile raise dozens of things."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: sent to a negative offset
            raise
        reason = _first_line(error)
        raise ValueError(
            f"{archive} is damaged, cut short, or not what its name says ({reason}): get it anew"
        ) from None


class _TarMember(tarfile.TarInfo):
    """A member whose damaged or missing header is an error: to tarfile it is the archive's end, as are two of zeros."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
