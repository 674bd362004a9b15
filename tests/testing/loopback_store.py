"""What the Hub of `loopback.py` knows: two tokens, and repositories with their commits."""

from __future__ import annotations

from dataclasses import dataclass, field


TOKEN = "hf_loopback"
READ_TOKEN = "hf_loopback_read_only"
USER = "tester"
ORGANIZATIONS = ["org"]
LFS_FILES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".npz", ".gz")
LARGEST_REGULAR_FILE = 10 * 1024 * 1024
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_FILES).encode()
REPOSITORY = r"(?P<repo>[^/]+/[^/]+)"
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: the name of its content among the blobs, its size in bytes, and whether it came by LFS."""

    oid: str
    size: int
    lfs: bool

    def entry(self, path: str) -> dict:
        """What a listing says about it."""
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        return entry | ({"lfs": {"oid": self.oid, "size": self.size, "pointerSize": 134}} if self.lfs else {})


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    author: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch (there is only `main`) or with a hash."""
        if revision in ("main", "refs/heads/main"):
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == revision), None)
