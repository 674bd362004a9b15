"""Download large files with a progress bar, resume interrupted downloads, and record where each file came from."""

import hashlib
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from tqdm import tqdm

from ..utils.files import replaced_file


CHUNK = 2**20
# Seconds without a byte after which the connection counts as lost.
TIMEOUT = 60.0


def default_cache_dir() -> Path:
    """Return the folder `hf_mim` in the cache of the Hugging Face libraries (`HF_HOME`)."""
    return Path(constants.HF_HOME) / "hf_mim"


def download_file(url: str, path: Path | str, progress: bool = True) -> Path:
    """
    Download `url` to `path`, unless the file already exists.

    A partial download is kept in `{path}.part`. A later call resumes it if the server supports this and still has the
    same file. Next to the finished file, `{path}.json` records URL, size, SHA-256 and date.

    Args:
        url (`str`): An http or https URL.
        path (`Path` or `str`): Destination file. Its folder is created if necessary.
        progress (`bool`, defaults to `True`): Whether to show a progress bar.

    Returns:
        `Path`: The destination file.

    Raises:
        ValueError: If `url` is not an http or https URL.
        OSError: If the server cannot be reached or does not have the file, the connection is lost, the disk is full,
            or the server sends a web page instead of the file.
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url} is not the URL of a file: it must begin with https:// or http://")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name(path.name + ".lock")):
        if not _is_whole(path):
            _fetch(url, path, progress)
    return path


def check_sha256(path: Path | str, expected: str):
    """Raise a `ValueError` unless the file has this SHA-256 (hexadecimal)."""
    digest = hashlib.sha256()
    _hash(Path(path), digest.update)
    if digest.hexdigest() != expected.lower():
        raise ValueError(
            f"{path} has the SHA-256 {digest.hexdigest()} instead of {expected}: it is another file, or "
            "incomplete. A downloaded file is downloaded again once you delete it"
        )


def recorded_address(path: Path | str) -> str:
    """Return the URL of a finished download, which may differ from the URL of the current call."""
    return _record(Path(path))["url"]


def _record(path: Path) -> dict:
    """Return the record of a finished download; empty if there is none."""
    with suppress(OSError, ValueError):
        record = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        if {"url", "size", "sha256"} <= record.keys():
            return record
    return {}


def _is_whole(path: Path) -> bool:
    """Return whether a download is finished and its size unchanged since."""
    return path.is_file() and path.stat().st_size == _record(path).get("size")


def _fetch(url: str, path: Path, progress: bool):
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"{url} is not on this machine yet, and HF_HUB_OFFLINE prevents the download")
    part, state = (path.with_name(path.name + suffix) for suffix in (".part", ".part.json"))
    digest, start = hashlib.sha256(), 0
    validator = _validator(url, part, state)
    if validator is not None:
        start = _hash(part, digest.update)
        record = _record(path)
        if (record.get("size"), record.get("sha256")) == (start, digest.hexdigest()):
            # The download was complete, only the final rename was missing.
            _finish(part, path, state)
            return
    with _answer(url, start, validator) as response:
        if start and response.status != 206:
            # The file on the server has changed, or the server cannot resume.
            digest, start = hashlib.sha256(), 0
        size = _size(url, response, start)
        try:
            first = response.read1(CHUNK)
        except (OSError, HTTPException) as error:
            raise OSError(f"{url}: {_reason(error)} before the first byte{_elsewhere()}") from error
        if not start and not first:
            raise OSError(f"{url}: the server sent an empty file{_elsewhere()}")
        if not start and _is_page(response, first):
            raise OSError(
                f"{url} returned a web page instead of a file: open it in a browser, download the file by hand, and "
                "pass its path"
            )
        _check_space(url, path, size, start)
        if not start:
            # Delete the old bytes before recording the new version, which is not theirs.
            part.unlink(missing_ok=True)
        validator = _version(response)
        state.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        again = f"they are kept in {part}, and the same command resumes from there"
        if validator is None:
            again = "the server does not identify the version of the file, so the same command starts over"
        received = start
        try:
            with (
                open(part, "ab") as file,
                tqdm(
                    total=size, initial=start, unit="B", unit_scale=True, desc=path.name, disable=not progress
                ) as bar,
            ):
                chunk = first
                while chunk:
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
                    chunk = response.read1(CHUNK)
        except (OSError, HTTPException) as error:
            raise OSError(f"{url}: {_reason(error)} after {_amount(received, size)}; {again}") from error
    if size is not None and received != size:
        raise OSError(f"{url}: the connection was closed after {_amount(received, size)}; {again}")
    record = {
        "url": url,
        "size": received,
        "sha256": digest.hexdigest(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # An old file of the same size would match the new record.
    path.unlink(missing_ok=True)
    with replaced_file(path.with_name(path.name + ".json")) as file:
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _finish(part, path, state)


def _finish(part: Path, path: Path, state: Path):
    os.replace(part, path)
    state.unlink(missing_ok=True)


def _validator(url: str, part: Path, state: Path) -> str | None:
    """Return the server's version identifier of the partial download, or None if there is nothing to resume."""
    with suppress(OSError, ValueError, KeyError):
        known = json.loads(state.read_text(encoding="utf-8"))
        if known["url"] == url and part.stat().st_size:
            return known["validator"]
    return None


def _version(response: HTTPResponse) -> str | None:
    """Return the server's version identifier of a file."""
    tag = response.headers.get("ETag", "")
    # A weak tag does not guarantee identical bytes.
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _answer(url: str, start: int, validator: str | None) -> HTTPResponse:
    """Request the bytes from `start` on if the server still has this version, and the whole file otherwise."""
    headers = {"User-Agent": "hf_mim", "Accept-Encoding": "identity"}
    if start and validator is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            # The partial download is longer than the file on the server.
            return _answer(url, 0, None)
        raise OSError(f"{url}: the server responded with {error.code} {error.reason}{_elsewhere()}") from error
    except (OSError, HTTPException) as error:
        raise OSError(f"{url}: no connection ({_reason(error)}){_elsewhere()}") from error
    if start and response.status == 206 and _version(response) != validator:
        # Not every server supports If-Range.
        response.close()
        return _answer(url, 0, None)
    return response


def _size(url: str, response: HTTPResponse, start: int) -> int | None:
    """Return the size of the whole file in bytes, or None if the server does not report it."""
    if response.status == 206:
        described = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", described)
        if match is None or int(match[1]) != start:
            raise OSError(f"{url}: requested the bytes from {start} on, but the server sent '{described}'")
        return None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    if length is not None and not re.fullmatch(r"\d+", length):
        raise OSError(f"{url}: the server reported a size of {length!r} instead of a number of bytes")
    return None if length is None else int(length)


def _is_page(response: HTTPResponse, first: bytes) -> bool:
    return response.headers.get_content_type() == "text/html" or first.lstrip()[:1] == b"<"


def _check_space(url: str, path: Path, size: int | None, start: int):
    free = shutil.disk_usage(path.parent).free
    if size is not None and size - start > free:
        raise OSError(
            f"{url}: {path.parent} needs {_megabytes(size - start)} more of disk space, but {_megabytes(free)} are "
            "free (choose another folder with --cache_dir)"
        )


def _hash(file: Path, update: Callable[[bytes], None]) -> int:
    """Pass the content of a file to `update` and return its size."""
    size = 0
    with open(file, "rb") as content:
        while chunk := content.read(CHUNK):
            update(chunk)
            size += len(chunk)
    return size


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason) or type(error).__name__


def _amount(received: int, size: int | None) -> str:
    return f"{received:,} bytes" if size is None else f"{received:,} of {size:,} bytes"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _elsewhere() -> str:
    return "; use --mirror URL to download from another server, or --file FILE for a file that you already have"
