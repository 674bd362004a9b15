"""Downloads from a server on this machine that fails as servers do."""

import hashlib
import json
import shutil
import socket
import threading

import pytest

from hf_mim.hub import download
from hf_mim.hub.download import check_sha256, default_cache_dir, download_file, recorded_address
from tests.testing.file_server import FileServer


CONTENT = bytes(range(256)) * 12_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with FileServer({"/weights/checkpoint.pth": CONTENT}) as server:
        yield server


@pytest.fixture
def fetch(server, tmp_path):
    def fetch(name="weights/checkpoint.pth", sha256=None):
        path = download_file(f"{server.url}/{name}", tmp_path / "cache" / "checkpoint.pth", progress=False)
        if sha256 is not None:
            check_sha256(path, sha256)
        return path

    return fetch


def files(tmp_path) -> set[str]:
    return {file.name for file in (tmp_path / "cache").iterdir()} - {"checkpoint.pth.lock"}


def test_file_and_record(server, fetch, tmp_path):
    path = fetch(sha256=SHA256.upper())
    assert path.read_bytes() == CONTENT and files(tmp_path) == {"checkpoint.pth", "checkpoint.pth.json"}
    record = json.loads((tmp_path / "cache" / "checkpoint.pth.json").read_text())
    assert record.pop("date").endswith("+00:00")
    assert record == {"url": f"{server.url}/weights/checkpoint.pth", "size": len(CONTENT), "sha256": SHA256}
    # A second call asks nobody.
    assert fetch() == path and len(server.requests) == 1
    # A file that has changed since is fetched anew.
    path.write_bytes(b"short")
    assert fetch().read_bytes() == CONTENT and len(server.requests) == 2


def test_resumes_where_the_connection_ended(server, fetch, tmp_path):
    server.cut_after = 1_000_000
    with pytest.raises(OSError, match=r"1,000,000 of 3,072,000 bytes; they are kept in .*checkpoint.pth.part, and"):
        fetch()
    assert (tmp_path / "cache" / "checkpoint.pth.part").read_bytes() == CONTENT[:1_000_000]
    with pytest.raises(OSError, match="2,000,000 of 3,072,000"):
        fetch()
    server.cut_after = None
    assert fetch(sha256=SHA256).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000000-", "bytes=2000000-"]
    assert files(tmp_path) == {"checkpoint.pth", "checkpoint.pth.json"}


@pytest.mark.parametrize("change", ["content", "ranges", "tags"])
def test_starts_anew_where_it_cannot_resume(server, fetch, change):
    server.cut_after, server.tags = 1_000_000, change != "tags"
    with pytest.raises(OSError, match="1,000,000 of"):
        fetch()
    server.cut_after = None
    if change == "content":
        server.files["/weights/checkpoint.pth"] = CONTENT[::-1]
    server.ranges = change != "ranges"
    assert fetch().read_bytes() == server.files["/weights/checkpoint.pth"]


def test_parts_of_two_versions_are_never_joined(server, fetch):
    server.cut_after, server.heeds = 1_000_000, False
    with pytest.raises(OSError, match="1,000,000 of"):
        fetch()
    server.cut_after, server.files["/weights/checkpoint.pth"] = None, CONTENT[::-1]
    assert fetch().read_bytes() == CONTENT[::-1]
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000000-", None]


def test_a_beginning_is_gone_before_another_version_is_noted(server, fetch, monkeypatch):
    """A process that is killed between the two leaves nothing that the new version would be appended to."""
    server.cut_after = 1_000_000
    with pytest.raises(OSError):
        fetch()
    server.cut_after, server.files["/weights/checkpoint.pth"] = None, CONTENT[::-1]

    def killed(file, mode):
        if mode == "rb":
            return open(file, mode)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "open", killed, raising=False)
        fetch()
    assert fetch().read_bytes() == CONTENT[::-1]


def test_killed_before_the_last_step(server, fetch, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "_finish", killed)
        fetch()
    assert fetch(sha256=SHA256).read_bytes() == CONTENT and len(server.requests) == 1
    assert files(tmp_path) == {"checkpoint.pth", "checkpoint.pth.json"}


def test_a_server_without_versions_promises_nothing(server, fetch):
    server.cut_after, server.tags = 1_000_000, False
    with pytest.raises(OSError, match="so the same command starts over"):
        fetch()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "the server sent an empty file; use --mirror URL"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
            "reported a size of 'many' instead of a number of bytes",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk",
            r"IncompleteRead.* before the first byte; use --mi",
        ),
    ],
)
def test_answers_that_are_none(server, fetch, tmp_path, answer, message):
    server.answer = answer
    with pytest.raises(OSError, match=f"^{server.url}/weights/checkpoint.pth: .*{message}"):
        fetch()
    assert files(tmp_path) == set()


def test_a_server_that_stalls(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    connections = []

    def begin(listening: socket.socket):
        connections.append(listening.accept()[0])
        connections[0].sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=begin, args=(listening,), daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/file.pth"
        with pytest.raises(OSError, match=f"^{url}: timed out before the first byte"):
            download_file(url, tmp_path / "file.pth", progress=False)


def test_a_part_that_is_the_whole(server, fetch, tmp_path):
    """As after a crash between the last byte and the new name."""
    server.cut_after = 1_000_000
    with pytest.raises(OSError):
        fetch()
    server.cut_after = None
    (tmp_path / "cache" / "checkpoint.pth.part").write_bytes(CONTENT)
    assert fetch(sha256=SHA256).read_bytes() == CONTENT


def test_another_address_does_not_go_on_from_this_part(server, fetch):
    server.files["/mirror/checkpoint.pth"] = CONTENT
    server.cut_after = 1_000_000
    with pytest.raises(OSError):
        fetch()
    server.cut_after = None
    assert fetch("mirror/checkpoint.pth", sha256=SHA256).read_bytes() == CONTENT
    assert server.requests[-1] == ("/mirror/checkpoint.pth", None)


def test_the_address_of_a_file_that_was_there(server, fetch):
    server.files["/mirror/checkpoint.pth"] = CONTENT
    path = fetch("mirror/checkpoint.pth")
    assert fetch() == path and len(server.requests) == 1
    assert recorded_address(path) == f"{server.url}/mirror/checkpoint.pth"


def test_a_server_that_lies_about_the_size(server, fetch, tmp_path):
    server.length = len(CONTENT) + 10
    with pytest.raises(OSError, match="3,072,000 of 3,072,010 bytes"):
        fetch()
    assert not (tmp_path / "cache" / "checkpoint.pth").exists()


def test_unexpected_content(fetch):
    with pytest.raises(
        ValueError, match=f"checkpoint.pth has the SHA-256 {SHA256} instead of 00ff.* A downloaded file"
    ):
        fetch(sha256="00ff")


def test_missing_file_and_no_server(server, fetch, tmp_path):
    with pytest.raises(OSError, match=r"/nothing.pth: the server responded with 404 Not Found; use --mirror URL"):
        fetch("nothing.pth")
    with pytest.raises(OSError, match=r"no connection \(Connection refused\); use --mirror URL"):
        download_file("http://127.0.0.1:9/file.pth", tmp_path / "file.pth")
    with pytest.raises(ValueError, match="file:///etc/hosts is not the URL of a file"):
        download_file("file:///etc/hosts", tmp_path / "hosts")
    assert files(tmp_path) == set()


@pytest.mark.parametrize("typed", [True, False])
def test_a_web_page_is_no_file(server, fetch, tmp_path, typed):
    server.files["/weights/checkpoint.pth"] = b"\n<!DOCTYPE html><title>Sign in</title>"
    server.content_type = "text/html; charset=utf-8" if typed else "application/octet-stream"
    with pytest.raises(OSError, match="a web page instead of a file: open it in a browser"):
        fetch()
    assert files(tmp_path) == set()


def test_too_little_space_is_said_before(fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2 * 10**6))
    with pytest.raises(OSError, match=r"cache needs 3 MB more of disk space, but 2 MB are free"):
        fetch()
    assert files(tmp_path) == set()


def test_a_disk_that_is_full_keeps_the_part(server, fetch, tmp_path):
    """As good as full: files of more than 2 MB cannot be written."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large after .* they are kept in"):
            fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 0 < (tmp_path / "cache" / "checkpoint.pth.part").stat().st_size <= 2_000_000
    assert fetch(sha256=SHA256).read_bytes() == CONTENT
    assert server.requests[-1][1] is not None


def test_progress_is_shown(server, tmp_path, capsys):
    download_file(f"{server.url}/weights/checkpoint.pth", tmp_path / "checkpoint.pth")
    assert "checkpoint.pth: 100%" in capsys.readouterr().err


def test_offline_and_cache_folder(fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE prevents"):
        fetch()
    monkeypatch.setattr(download.constants, "HF_HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / "hf_mim"
