"""How the Hub of `loopback.py` answers one request."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import yaml

from tests.testing.loopback_store import (
    DATE,
    GIT_ATTRIBUTES,
    LARGEST_REGULAR_FILE,
    LFS_FILES,
    ORGANIZATIONS,
    READ_TOKEN,
    REPOSITORY,
    TOKEN,
    USER,
    Commit,
    Repository,
    StoredFile,
)


if TYPE_CHECKING:
    from tests.testing.loopback import LoopbackHub


class HubError(Exception):
    """An answer other than 2xx, with the headers by which the client tells one kind from another."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None, commit: str = ""):
        super().__init__(message)
        self.status, self.body = status, {"error": message} if body is None else body
        self.headers = {"X-Error-Message": message}
        if code is not None:
            self.headers["X-Error-Code"] = code
        if commit:
            self.headers["X-Repo-Commit"] = commit


class Handler(BaseHTTPRequestHandler):
    """One connection; a method per request, which gives the body of the answer or raises [`HubError`]."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    # The headers and the body of an answer are two packets, the second of which would wait for the other side.
    disable_nagle_algorithm = True

    def log_message(self, *message):
        pass

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_DELETE(self):
        self.answer()

    def do_PUT(self):
        self.answer()

    def answer(self):
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        try:
            if self.command == "PUT":
                self.put_blob(path.removeprefix("/lfs/"))
                return
            self.body = self.read_body()
            self.check_token()
            result = self.route(path)
        except HubError as error:
            self.send_json(error.status, error.body, error.headers)
            return
        if result is not None:
            self.send_json(200, result)

    def route(self, path: str):
        post = self.command == "POST"
        if path == "/api/whoami-v2":
            return self.who_am_i()
        if path == "/api/repos/create" and post:
            return self.create_repository(**self.json_body())
        if path == "/api/repos/delete" and self.command == "DELETE":
            return self.delete_repository(**self.json_body())
        if path == "/api/validate-yaml" and post:
            return self.validate_yaml(self.json_body()["content"])
        if match := re.fullmatch(rf"/{REPOSITORY}\.git/info/lfs/objects/batch", path):
            return self.lfs_batch(match["repo"])
        if match := re.fullmatch(rf"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path):
            return self.send_file(match["repo"], unquote(match["revision"]), unquote(match["file"]))
        match = re.fullmatch(
            rf"/api/models/{REPOSITORY}(?:/(?P<what>[^/]+)(?:/(?P<revision>[^/]+)(?:/(?P<file>.+))?)?)?", path
        )
        if match is None:
            raise HubError(404, f"{self.command} {path} is not known here")
        repo, what, revision = match["repo"], match["what"], unquote(match["revision"] or "main")
        if what == "preupload" and post:
            return self.preupload(repo, revision)
        if what == "commit" and post:
            return self.receive_commit(repo, revision)
        if what == "paths-info" and post:
            return self.paths_info(repo, revision)
        if what in (None, "revision"):
            return self.model_info(repo, revision)
        if what == "tree":
            return self.tree(repo, revision, unquote(match["file"] or ""))
        if what == "refs":
            commit = self.commit_of(repo, "main")
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit.oid}
            return {"branches": [main], "converts": [], "tags": [], "pullRequests": []}
        if what == "commits":
            return self.list_commits(repo, revision)
        raise HubError(404, f"{self.command} {path} is not known here")

    # Who is asking

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def check_token(self):
        if self.token not in (None, TOKEN, READ_TOKEN):
            raise HubError(401, "Invalid credentials in Authorization header")

    def who_am_i(self) -> dict:
        if self.token is None:
            raise HubError(401, "Invalid username or password.")
        role = "write" if self.token == TOKEN else "read"
        organizations = [{"type": "org", "name": name, "roleInOrg": role} for name in ORGANIZATIONS]
        auth = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": role}}
        return {"type": "user", "name": USER, "fullname": USER, "orgs": organizations, "auth": auth}

    def check_may_write(self, repo_id: str):
        if self.token is None:
            raise HubError(401, "Invalid username or password.")
        namespace = repo_id.split("/")[0]
        if self.token != TOKEN or namespace not in (USER, *ORGANIZATIONS):
            raise HubError(403, f'You don\'t have the rights to write to the namespace "{namespace}"')

    def repository(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self.token is None):
            raise HubError(401 if self.token is None else 404, "Repository not found", "RepoNotFound")
        return repository

    def commit_of(self, repo_id: str, revision: str) -> Commit:
        commit = self.repository(repo_id).at(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Writing

    def create_repository(self, name: str, organization: str | None = None, visibility: str = "public", **others):
        repo_id = f"{organization or USER}/{name}"
        self.check_may_write(repo_id)
        url = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        with self.hub.lock:
            if repo_id in self.hub.repositories:
                message = "You already created this model repo"
                raise HubError(409, message, body={"error": message, **url})
            repository = self.hub.repositories[repo_id] = Repository(visibility == "private")
            self.hub.commit(repository, "initial commit", USER, {".gitattributes": self.hub.store(GIT_ATTRIBUTES)})
        return url

    def delete_repository(self, name: str, organization: str | None = None, **others) -> dict:
        repo_id = f"{organization or USER}/{name}"
        self.check_may_write(repo_id)
        self.repository(repo_id)
        del self.hub.repositories[repo_id]
        return {}

    def validate_yaml(self, content: str) -> dict:
        problem, metadata = None, None
        match = re.match(r"---\n(.*?)\n---(\n|$)", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else {}
            if not isinstance(metadata, dict):
                problem = "the metadata are not a mapping"
            elif "license" in metadata and not isinstance(metadata["license"], str):
                problem = '"license" must be a string'
        except yaml.YAMLError as error:
            problem = str(error)
        if problem:
            body = {"errors": [{"message": problem}], "warnings": []}
            raise HubError(400, "Invalid metadata in README.md", body=body)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": warnings}

    def preupload(self, repo_id: str, revision: str) -> dict:
        self.check_may_write(repo_id)
        present, answers = self.commit_of(repo_id, revision).files, []
        for file in self.json_body()["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            is_lfs = path.endswith(LFS_FILES) or b"\0" in sample or file["size"] > LARGEST_REGULAR_FILE
            mode = "lfs" if is_lfs else "regular"
            oid = present[path].oid if path in present else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, repo_id: str) -> dict:
        self.check_may_write(repo_id)
        self.repository(repo_id)
        objects = []
        for wanted in self.json_body()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not (self.hub.blobs / wanted["oid"]).exists():
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def put_blob(self, oid: str):
        with self.hub.lock:
            self.hub.uploads += 1
            number = self.hub.uploads
        if self.hub.refuse_uploads_from is not None and number >= self.hub.refuse_uploads_from:
            self.read_body()
            raise HubError(507, "Insufficient Storage")
        limit = None
        if number in self.hub.cut_uploads:
            limit = int(self.headers.get("Content-Length", 0)) // 2
        digest, received = hashlib.sha256(), 0
        descriptor, temporary = tempfile.mkstemp(dir=self.hub.folder)
        with os.fdopen(descriptor, "wb") as file, closing(self.pieces()) as pieces:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                received += len(piece)
                if limit is not None and received >= limit:
                    self.close_connection = True
                    self.connection.close()
                    return
        if digest.hexdigest() != oid:
            raise HubError(400, f"sha256 is {digest.hexdigest()} and not {oid}")
        os.replace(temporary, self.hub.blobs / oid)
        self.send_json(200, {})

    def receive_commit(self, repo_id: str, revision: str) -> dict:
        self.check_may_write(repo_id)
        if self.hub.refuse_commits:
            raise HubError(403, "This repository takes no commits")
        if revision != "main":
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        with self.hub.lock:
            repository = self.repository(repo_id)
            files, title = dict(repository.commits[-1].files), ""
            for line in self.body.decode().splitlines():
                operation = json.loads(line)
                key, value = operation["key"], operation["value"]
                if key == "header":
                    title = value["summary"]
                    if value.get("parentCommit") not in (None, repository.commits[-1].oid):
                        raise HubError(412, "A commit has happened since. Please refresh and try again.")
                elif key == "file":
                    files[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
                elif key == "lfsFile":
                    blob = self.hub.blobs / value["oid"]
                    if not blob.exists():
                        raise HubError(400, f"{value['path']}: there is no LFS object {value['oid']}")
                    files[value["path"]] = StoredFile(value["oid"], blob.stat().st_size, lfs=True)
                elif key == "deletedFile":
                    del files[value["path"]]
                elif key == "deletedFolder":
                    files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
                else:
                    raise HubError(400, f"unknown operation {key}")
            commit = self.hub.commit(repository, title, USER, files)
        return {
            "success": True,
            "commitOid": commit.oid,
            "commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit.oid}",
            "hookOutput": "",
        }

    # Reading

    def model_info(self, repo_id: str, revision: str) -> dict:
        commit, metadata = self.commit_of(repo_id, revision), {}
        card = commit.files.get("README.md")
        if card is not None:
            match = re.match(r"---\n(.*?)\n---\n", (self.hub.blobs / card.oid).read_text(), re.DOTALL)
            metadata = yaml.safe_load(match[1]) if match else {}
        siblings = [
            {"rfilename": path, "size": file.size, "blobId": file.oid}
            | ({"lfs": {"sha256": file.oid, "size": file.size, "pointerSize": 134}} if file.lfs else {})
            for path, file in sorted(commit.files.items())
        ]
        return {
            "_id": repo_id,
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "sha": commit.oid,
            "private": self.repository(repo_id).private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": metadata.get("tags", []),
            "pipeline_tag": metadata.get("pipeline_tag"),
            "library_name": metadata.get("library_name"),
            "cardData": metadata,
            "siblings": siblings,
            "createdAt": DATE,
            "lastModified": DATE,
        }

    def tree(self, repo_id: str, revision: str, folder: str) -> list[dict]:
        commit = self.commit_of(repo_id, revision)
        prefix = f"{folder}/" if folder else ""
        below = {path: file for path, file in sorted(commit.files.items()) if path.startswith(prefix)}
        if not below:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound", commit=commit.oid)
        recursive = re.search(r"recursive=(true|1)", urlsplit(self.path).query, re.IGNORECASE)
        entries, folders = [], []
        for path, file in below.items():
            parts = path.removeprefix(prefix).split("/")
            parents = [prefix + "/".join(parts[: i + 1]) for i in range(len(parts) - 1)]
            folders += [parent for parent in parents[: None if recursive else 1] if parent not in folders]
            if recursive or len(parts) == 1:
                entries.append(file.entry(path))
        return [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders] + entries

    def paths_info(self, repo_id: str, revision: str) -> list[dict]:
        files = self.commit_of(repo_id, revision).files
        return [files[path].entry(path) for path in self.json_body()["paths"] if path in files]

    def list_commits(self, repo_id: str, revision: str) -> list[dict]:
        last, commits = self.commit_of(repo_id, revision), self.repository(repo_id).commits
        return [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": "",
                "date": DATE,
                "authors": [{"user": commit.author}],
            }
            for commit in reversed(commits[: commits.index(last) + 1])
        ]

    def send_file(self, repo_id: str, revision: str, path: str):
        commit = self.commit_of(repo_id, revision)
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", commit=commit.oid)
        start, end = 0, file.size - 1
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or end), end)
            if start > end:
                raise HubError(416, "Range Not Satisfiable")
        self.send_response(206 if match else 200)
        headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{file.oid}"',
            "Accept-Ranges": "bytes",
            "Content-Length": str(end - start + 1),
            "Content-Type": "application/octet-stream",
        }
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
        if match:
            headers["Content-Range"] = f"bytes {start}-{end}/{file.size}"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with open(self.hub.blobs / file.oid, "rb") as blob:
                blob.seek(start)
                left = end - start + 1
                while left:
                    piece = blob.read(min(left, 1 << 20))
                    self.wfile.write(piece)
                    left -= len(piece)

    # Bytes

    def pieces(self):
        """The body of the request, which comes with its length or in chunks."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length", 0))
            while left:
                piece = self.rfile.read(min(left, 1 << 16))
                if not piece:
                    return
                yield piece
                left -= len(piece)

    def read_body(self) -> bytes:
        return b"".join(self.pieces())

    def json_body(self) -> dict:
        if "form-urlencoded" in self.headers.get("Content-Type", ""):
            pairs = [pair.split("=", 1) for pair in self.body.decode().split("&")]
            return {"paths": [unquote(value.replace("+", " ")) for name, value in pairs if name == "paths"]}
        return json.loads(self.body)

    def send_json(self, status: int, body: dict | list, headers: dict[str, str] | None = None):
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
