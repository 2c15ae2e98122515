"""Download a file, or unpack an archive: whole or not at all, and resumed where it broke off."""

import http.client
import re
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

from tqdm import tqdm

from gpt.system import files

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TIMEOUT = 30  # seconds without an answer from the server
CHUNK_BYTES = 1 << 16
BY_OTHER_MEANS = "download it by other means and name the file"


def file_name(url: str) -> str:
    """Return the file name for a download: the last part of the URL's path, with _ for unusual characters.

    ValueError if the URL is not http or https, or does not end in a name.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in ("http", "https"):
        raise ValueError(f"{url!r} cannot be downloaded, only http:// and https:// can: {BY_OTHER_MEANS}")
    host, _, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    name = re.sub(r"[^\w.()+-]+", "_", urllib.parse.unquote(path.rpartition("/")[2])).strip(".")
    if not host or not name:
        raise ValueError(f"{url!r} does not end in the name of a file: {BY_OTHER_MEANS}")
    return name


def parse_sha256(sha256: str) -> str:
    """Return a SHA-256 in lower case. ValueError unless it is empty or 64 hexadecimal digits."""
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"a SHA-256 is 64 hexadecimal digits, not {sha256!r}")
    return sha256.lower()


def check_sha256(path: Path, sha256: str, name: str, advice: str) -> None:
    """Raise ValueError, with the name and the advice, if a file has another SHA-256. An empty one is not checked."""
    if sha256 and (found := files.sha256(path)) != sha256:
        raise ValueError(f"{name} has the SHA-256 {found}, not {sha256}: {advice}")


def download(url: str, target: Path, sha256: str = "") -> Path:
    """Download a file to the path `target`, or into the folder `target`, and return its path.

    An existing file is not downloaded again. If the connection or the program ends early, .NAME.part keeps the data
    received so far and .NAME.from its URL and version; the next call resumes there unless the file has changed on the
    server. ValueError if the download fails, is shorter than announced, or has another SHA-256.
    """
    name, sha256 = file_name(url), parse_sha256(sha256)
    url = urllib.parse.quote(url, safe=":/?#[]@!$&'()*+,;=%")
    path = target / name if target.is_dir() else target
    part, note = (path.with_name(f".{path.name}.{ending}") for ending in ("part", "from"))
    if path.exists():
        check_sha256(path, sha256, str(path), "move it away to download it again, or correct the checksum")
        origin, _ = _read_note(note)
        if not sha256 and origin not in ("", url):
            raise ValueError(f"{path} was downloaded from {origin}: move it away to download {url}")
        return path
    with files.FolderLock(path.parent).held():
        _fetch(url, part, note, bool(sha256))
        try:
            check_sha256(part, sha256, url, "it has changed, or the checksum is mistyped; nothing was kept")
        except ValueError:
            part.unlink()
            note.unlink()
            raise
        files.flush(part)
        part.replace(path)
        files.flush(path.parent)
    return path


def _fetch(url: str, part: Path, note: Path, has_checksum: bool) -> None:
    """Complete the file `part`: from its end if the note names the same URL and version, else from the start."""
    origin, version = _read_note(note)
    can_resume = part.exists() and origin == url and (version or has_checksum)
    response, size, total = _request(url, part.stat().st_size if can_resume else 0, version)
    bar = tqdm(total=total, initial=size, unit="B", unit_scale=True, disable=not sys.stderr.isatty())
    if size == 0:
        part.unlink(missing_ok=True)  # before the note, which must not describe old data
        tag = response.headers.get("ETag", "")  # a weak one, W/"...", may stand for several files
        version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
        files.write_text(note, f"{url}\n{version}\n")
    with response, bar, part.open("ab") as file:
        failed = False
        while size != total and not failed:
            try:
                data = response.read1(CHUNK_BYTES)
            except (OSError, http.client.HTTPException):
                failed = True
                continue
            if not data:
                break
            size += file.write(data)
            bar.update(len(data))
    if failed or total not in (None, size):
        received = f"{size:,}" if total is None else f"{size:,} of {total:,}"
        raise ValueError(f"{url} broke off after {received} bytes: run the same command again to resume")


def _request(url: str, start: int, version: str) -> tuple[http.client.HTTPResponse, int, int | None]:
    """Ask for a file from byte `start` if it still has that version; return the response, the byte at which it starts,
    and the size of the whole file, None if the server does not announce it."""
    headers = {"User-Agent": "gpt-from-scratch"}  # some servers refuse Python's own
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": version} if version else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if start and getattr(error, "code", None) == 416:  # the file ends at this byte, or before
            return _request(url, 0, "")
        reason = _first_line(error.reason if type(error) is urllib.error.URLError else error)
        raise ValueError(f"{url} cannot be downloaded ({reason}); without a network, {BY_OTHER_MEANS}") from None
    if start and response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if found and int(found[1]) == start:
            return response, start, int(found[2])
        response.close()
        return _request(url, 0, "")
    return response, 0, response.length


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(":.")


def _read_note(note: Path) -> tuple[str, str]:
    """Return the URL and the version of a download; empty strings if unknown."""
    lines = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
    url, version = [*lines, "", ""][:2]
    return url, version


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a .zip or .tar archive, compressed or not, into a new folder, whole or not at all; return the folder.

    zipfile and tarfile's "data" filter keep every member inside the folder. ValueError if the archive is damaged,
    encrypted, or holds devices or links to the outside.
    """
    with files.atomic_folder(folder) as temporary:
        try:
            if archive.suffix.lower() == ".zip":
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(temporary)
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(temporary, filter="data")
                    opened.fileobj.read()  # to the end of a compressed one, where its checksum is
        except Exception as error:  # zipfile and tarfile raise dozens of types
            if isinstance(error, OSError) and error.errno:  # such as a full disk
                raise
            raise ValueError(
                f"{archive} cannot be unpacked ({_first_line(error)}): get it again, or unpack it by other means and "
                f"name the folder"
            ) from None
    return folder
