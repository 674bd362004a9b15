"""
A Hub on 127.0.0.1 that answers what `huggingface_hub`, `transformers` and the `hf` command ask about model
repositories: who somebody is, creating, uploading (the LFS path included), listing and downloading.

    with LoopbackHub() as hub:
        subprocess.run([...], env=os.environ | hub.environment)
        hub.files("org/name")

By hand, `python -m tests.testing.loopback 8900` serves until it is interrupted, and prints the variables to export.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.testing.loopback_requests import Handler
from tests.testing.loopback_store import TOKEN, Commit, Repository, StoredFile


class LoopbackHub:
    """
    The server and what it stores; it runs from `with` on, in threads of this process.

    The token `TOKEN` belongs to `tester`, who may write to its own repositories and those of `org`; `READ_TOKEN` may
    only read; every other token is wrong. What goes wrong on purpose:

    - `cut_uploads`: numbers, from 1, of the uploads of LFS files during which the connection is lost halfway (the
      client tries those again by itself),
    - `refuse_uploads_from`: number of the first upload that is refused with a full disk (507), and all after it, until
      it is set to None again,
    - `refuse_commits`: whether commits are answered with 403.

    `requests` lists what was asked, as `"GET /api/models/org/name"`, and `uploads` counts LFS files that were sent.
    """

    def __init__(self, port: int = 0):
        self.cut_uploads: set[int] = set()
        self.refuse_uploads_from: int | None = None
        self.refuse_commits = False
        self.uploads = 0
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.repositories: dict[str, Repository] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="loopback-hub-"))
        self.blobs = self.folder / "blobs"
        self.blobs.mkdir()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> LoopbackHub:
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a child process takes this server for the Hub, and a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(self.folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Contents of the last commit, by path; without `.gitattributes`, which the Hub makes itself."""
        files = self.repositories[repo_id].commits[-1].files
        return {path: (self.blobs / file.oid).read_bytes() for path, file in files.items() if path != ".gitattributes"}

    def commits(self, repo_id: str) -> list[str]:
        """Titles of the commits, the oldest first; the first one is the Hub's own."""
        return [commit.title for commit in self.repositories[repo_id].commits]

    def is_private(self, repo_id: str) -> bool:
        return self.repositories[repo_id].private

    def store(self, content: bytes) -> StoredFile:
        """Keep the content of a regular file, under the hash that git gives it."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (self.blobs / oid).write_bytes(content)
        return StoredFile(oid, len(content), lfs=False)

    def commit(self, repository: Repository, title: str, author: str, files: dict[str, StoredFile]) -> Commit:
        parent = repository.commits[-1].oid if repository.commits else ""
        content = json.dumps([parent, title, sorted((path, file.oid) for path, file in files.items())])
        repository.commits.append(Commit(hashlib.sha1(content.encode()).hexdigest(), title, author, files))
        return repository.commits[-1]


if __name__ == "__main__":
    with LoopbackHub(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as loopback:
        for variable, setting in loopback.environment.items():
            print(f"export {variable}={setting}", flush=True)
        try:
            loopback.thread.join()
        except KeyboardInterrupt:
            pass
