"""Large files from servers that come and go: with progress, resumed, and recorded."""

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
# Seconds without a byte after which a server counts as gone.
TIMEOUT = 60.0


def default_cache_dir() -> Path:
    """`hf_mim` in the folder of the Hugging Face libraries (`HF_HOME`)."""
    return Path(constants.HF_HOME) / "hf_mim"


def download_file(url: str, path: Path | str, progress: bool = True) -> Path:
    """
    Fetch `url` to `path`, unless it is there already.

    What has arrived lies in `{path}.part` until all has; a later call goes on from there, if the server can and has
    the same file still. Beside the finished file, `{path}.json` records address, size, SHA-256 and date.

    Args:
        url (`str`): Address; http or https.
        path (`Path` or `str`): Where the file goes; its folder is made if need be.
        progress (`bool`, defaults to `True`): Show a progress bar.

    Returns:
        `path`.

    Raises:
        ValueError: If the address is none.
        OSError: If the server is not there or does not have the file, the connection ends too early, the disk is
            full, or a web page comes instead of a file.
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url} is no address of a file: it has to begin with https:// or http://")
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
            "a part of one. Removed, a downloaded file is fetched again"
        )


def recorded_address(path: Path | str) -> str:
    """Where a finished download came from, which another call may have fetched from another address."""
    return _record(Path(path))["url"]


def _record(path: Path) -> dict:
    """What is known of a finished download; empty if there is none."""
    with suppress(OSError, ValueError):
        record = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        if {"url", "size", "sha256"} <= record.keys():
            return record
    return {}


def _is_whole(path: Path) -> bool:
    """Whether a download is there, as it was when it was finished."""
    return path.is_file() and path.stat().st_size == _record(path).get("size")


def _fetch(url: str, path: Path, progress: bool):
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"{url} is not on this machine yet, and HF_HUB_OFFLINE forbids to fetch it")
    part, state = (path.with_name(path.name + suffix) for suffix in (".part", ".part.json"))
    digest, start = hashlib.sha256(), 0
    validator = _validator(url, part, state)
    if validator is not None:
        start = _hash(part, digest.update)
        record = _record(path)
        if (record.get("size"), record.get("sha256")) == (start, digest.hexdigest()):
            # Only the new name was missing.
            _finish(part, path, state)
            return
    with _answer(url, start, validator) as response:
        if start and response.status != 206:
            # The server has another file by now, or cannot resume.
            digest, start = hashlib.sha256(), 0
        size = _size(url, response, start)
        try:
            first = response.read1(CHUNK)
        except (OSError, HTTPException) as error:
            raise OSError(f"{url}: {_reason(error)} before the first byte{_elsewhere()}") from error
        if not start and not first:
            raise OSError(f"{url}: the server sends an empty file{_elsewhere()}")
        if not start and _is_page(response, first):
            raise OSError(
                f"{url} answers with a web page instead of a file: open it in a browser, fetch the file by hand, and "
                "give its path"
            )
        _check_space(url, path, size, start)
        if not start:
            # Before the version is noted, which is not that of these bytes.
            part.unlink(missing_ok=True)
        validator = _version(response)
        state.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        again = f"they stay in {part}, and the same command goes on from there"
        if validator is None:
            again = "the server does not tell its versions apart, so that the same command begins anew"
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
        raise OSError(f"{url}: the connection ended after {_amount(received, size)}; {again}")
    record = {
        "url": url,
        "size": received,
        "sha256": digest.hexdigest(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # What lies there is another file, which the record would take for this one if it had its size.
    path.unlink(missing_ok=True)
    with replaced_file(path.with_name(path.name + ".json")) as file:
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _finish(part, path, state)


def _finish(part: Path, path: Path, state: Path):
    os.replace(part, path)
    state.unlink(missing_ok=True)


def _validator(url: str, part: Path, state: Path) -> str | None:
    """What the server called the version of which `part` is the beginning; None if there is nothing to go on from."""
    with suppress(OSError, ValueError, KeyError):
        known = json.loads(state.read_text(encoding="utf-8"))
        if known["url"] == url and part.stat().st_size:
            return known["validator"]
    return None


def _version(response: HTTPResponse) -> str | None:
    """What the server calls the version of a file."""
    tag = response.headers.get("ETag", "")
    # A weak tag may stand for other bytes.
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _answer(url: str, start: int, validator: str | None) -> HTTPResponse:
    """The bytes from `start` on, if the server can tell that they are of this version, or else all of them."""
    headers = {"User-Agent": "hf_mim", "Accept-Encoding": "identity"}
    if start and validator is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            # What is there is no beginning of what the server has.
            return _answer(url, 0, None)
        raise OSError(f"{url}: the server answers {error.code} {error.reason}{_elsewhere()}") from error
    except (OSError, HTTPException) as error:
        raise OSError(f"{url}: no connection ({_reason(error)}){_elsewhere()}") from error
    if start and response.status == 206 and _version(response) != validator:
        # Not every server heeds If-Range.
        response.close()
        return _answer(url, 0, None)
    return response


def _size(url: str, response: HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file; None if the server does not tell."""
    if response.status == 206:
        described = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", described)
        if match is None or int(match[1]) != start:
            raise OSError(f"{url}: asked for the bytes from {start} on, the server sends '{described}'")
        return None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    if length is not None and not re.fullmatch(r"\d+", length):
        raise OSError(f"{url}: the server tells a size of {length!r} instead of a number of bytes")
    return None if length is None else int(length)


def _is_page(response: HTTPResponse, first: bytes) -> bool:
    return response.headers.get_content_type() == "text/html" or first.lstrip()[:1] == b"<"


def _check_space(url: str, path: Path, size: int | None, start: int):
    free = shutil.disk_usage(path.parent).free
    if size is not None and size - start > free:
        raise OSError(
            f"{url}: {_megabytes(size - start)} more are needed in {path.parent}, where {_megabytes(free)} are free "
            "(--cache_dir chooses another folder)"
        )


def _hash(file: Path, update: Callable[[bytes], None]) -> int:
    """Feed `update` with the content; gives its size."""
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
    return "; --mirror URL fetches the file of that name from another server, --file FILE takes one that is here"
