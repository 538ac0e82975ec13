"""A small server that speaks the Hub's HTTP protocol: listings, search, resolve with redirects and ranges, uploads.

Large files are redirected to another origin, as the Hub redirects to its content network. Every request is
noted with what was sent for it, and the server can be told to cut connections or to misbehave.

Accounts: `hf_writer` is of `me` and of the organisations `user` and `team`; `hf_reader` is of `reader`, and may only
read; `hf_visitor` is a sign-in of `visitor` with the scope contribute-repos, which sees and writes no repositories but
those that it made itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

MAIN = "a" * 40
OTHER = "b" * 40
ACCOUNTS = {
    "hf_writer": ("me", "user", "team"),
    "hf_reader": ("reader",),
    "hf_stranger": ("stranger",),
    "hf_visitor": ("visitor",),
}
"""The user of each token, and the organisations that it may write to."""
_KEPT_BYTES = 1 << 16


@dataclass
class Repo:
    """One repository: files by path of each commit, and who may read them."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str] = field(default_factory=lambda: {"main": MAIN})
    private: bool = False
    gated: bool = False
    readers: tuple[str, ...] = ("hf_reader",)
    made_by: str = ""
    """The token that made it."""
    downloads: int = 0

    def front(self) -> dict[str, Any]:
        """The front matter of the card on the main branch."""
        card = self.commits.get(self.refs["main"], {}).get("README.md", b"").decode()
        return yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}


@dataclass
class Request:
    """What was asked and what was sent for it."""

    method: str
    path: str
    range: str | None
    token: str | None
    body_bytes: int = 0


class Hub:
    """The server's contents and switches."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.cut_after: list[int] = []
        """For each body of a large file to come: send so many bytes, then hang up."""
        self.ignore_range = False
        self.corrupt = False
        self.status: int | None = None
        self.gone = False
        """Hang up on whoever asks."""
        self.delay_s = 0.0
        """Before each answer."""
        self.failures: dict[str, list[tuple[int, str, str]]] = {}
        """By part of a path: status, code and message of answers to what would change something; the last stays."""
        self.slow_s = 0.0
        """Waited for each piece of what is sent to it."""
        self.cut_uploads: list[int] = []
        """For each large file to come: take so many bytes, then hang up."""
        self.uploads: dict[str, bytes] = {}
        self.taken_bytes = 0
        """Of large files that were sent to it."""
        self.commit_files: list[str] = []
        self.endpoint = self.cdn = ""

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        self.repos[name] = Repo({MAIN: dict(files)}, **options)
        return self.repos[name]

    def weight_bytes(self) -> int:
        """Bytes sent of large files since the requests were last cleared."""
        return sum(r.body_bytes for r in self.requests if r.path.startswith("/cdn/") and r.method == "GET")

    def blob(self, digest: str) -> bytes | None:
        for repo in self.repos.values():
            for files in repo.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == digest:
                        return data
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def do_DELETE(self) -> None:
        self._write()

    def handle_one_request(self) -> None:
        if self.hub.gone:
            self.close_connection = True
            return
        super().handle_one_request()

    def _note(self) -> Request:
        time.sleep(self.hub.delay_s)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = Request(self.command, self.path.split("?")[0], self.headers.get("Range"), token)
        self.hub.requests.append(request)
        return request

    def _answer(self) -> None:
        request = self._note()
        if self.hub.status is not None:
            return self._fail(self.hub.status, "")
        if match := re.fullmatch(r"/cdn/([0-9a-f]{64})", request.path):
            return self._body(request, self.hub.blob(match[1]) or b"")
        if request.path == "/api/whoami-v2":
            names = ACCOUNTS.get(request.token or "")
            return self._json({"name": names[0], "type": "user"}) if names else self._refuse_token()
        if request.path == "/api/models":
            return self._search(request)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", request.path):
            return self._listing(request, match[1], unquote(match[2] or "main"))
        if match := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path):
            return self._resolve(request, *match.groups())
        return self._fail(404, "")

    def _repo(self, request: Request, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if request.token is not None and request.token not in ACCOUNTS:
            self._refuse_token()
            return None
        if repo is None or not self._sees(request, repo):
            self._fail(404 if request.token else 401, "RepoNotFound")
            return None
        return repo

    def _sees(self, request: Request, repo: Repo) -> bool:
        return not repo.private or request.token in repo.readers

    def _refuse_token(self) -> None:
        self._fail(401, "", "Invalid credentials in Authorization header")

    def _search(self, request: Request) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        text, tag = asked.get("search", [""])[0].lower(), asked.get("filter", [""])[0]
        author = asked.get("author", [""])[0]
        found = []
        for name, repo in self.hub.repos.items():
            front = repo.front()
            fits = text in name.lower() and (not author or name.startswith(f"{author}/"))
            if fits and tag in front.get("tags", []) and self._sees(request, repo):
                found.append(
                    {
                        "_id": "1", "id": name, "modelId": name, "private": repo.private, "tags": front["tags"],
                        "downloads": repo.downloads, "lastModified": "2026-11-20T10:00:00.000Z",
                        "safetensors": {"parameters": {"BF16": 4096}, "total": 4096},
                    }
                )  # fmt: skip
        found.sort(key=lambda one: -one["downloads"])
        return self._json(found[: int(asked.get("limit", ["1000"])[0])])

    def _listing(self, request: Request, name: str, revision: str) -> None:
        if (repo := self._repo(request, name)) is None:
            return
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self._fail(404, "RevisionNotFound")
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        self._json(
            {
                "id": name, "sha": commit, "private": repo.private, "gated": repo.gated, "siblings": siblings,
                "lastModified": "2026-11-20T10:00:00.000Z",
            }
        )  # fmt: skip

    def _resolve(self, request: Request, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(request, name)) is None:
            return
        if repo.gated and request.token not in repo.readers:
            return self._fail(403 if request.token else 401, "GatedRepo")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self._fail(404, "RevisionNotFound")
        data = repo.commits[commit].get(path)
        if data is None:
            return self._fail(404, "EntryNotFound")
        if path.endswith((".safetensors", ".bin", ".pt")):
            digest = hashlib.sha256(data).hexdigest()
            self.send_response(302)
            self.send_header("Location", f"{self.hub.cdn}/cdn/{digest}")
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self._body(request, data, {"ETag": f'W/"{_git_oid(data)}"', "X-Repo-Commit": commit})

    def _body(self, request: Request, data: bytes, headers: dict[str, str] | None = None) -> None:
        start, stop = 0, len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range or "")
        partial = match is not None and not self.hub.ignore_range
        if match is not None and partial:
            start, stop = int(match[1]), min(int(match[2] or stop) + 1, stop)
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        part = data[start:stop]
        if self.hub.corrupt:
            part = bytes(len(part))
        large = request.path.startswith("/cdn/") and stop - start > 4096
        if large and self.hub.cut_after:
            part = part[: self.hub.cut_after.pop(0)]
            self.close_connection = True
        request.body_bytes = len(part)
        self.wfile.write(part)

    def _write(self) -> None:
        request = self._note()
        if request.path.startswith("/lfs/"):
            return self._take(request.path.removeprefix("/lfs/"))
        data = self._read_body()
        for part, answers in self.hub.failures.items():
            if part in request.path and answers:
                return self._fail(*(answers.pop(0) if len(answers) > 1 else answers[0]))
        if request.token not in ACCOUNTS:
            return self._refuse_token()
        if request.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if request.path in ("/api/repos/create", "/api/repos/delete"):
            return self._make_or_delete(request, json.loads(data))
        match = re.match(
            r"/(?:api/models/|api/(?=spaces/))?((?:spaces/)?[^/]+/[^/.]+[^/]*?)(?:\.git)?"
            r"/(branch|preupload|info|commit)(?:/(.+))?",
            request.path,
        )
        if match is None:
            return self._fail(404, "")
        name, deed, rest = match.groups()
        if (repo := self._repo(request, name)) is None:
            return None
        if not self._may_write(request, name, repo):
            return self._fail(403, "", "Forbidden: you need write access to this repository")
        if deed == "branch":
            if unquote(rest) in repo.refs:
                return self._fail(409, "", "Reference already exists")
            repo.refs[unquote(rest)] = repo.refs["main"]
            return self._json({})
        if deed == "preupload":
            here = repo.commits[repo.refs[unquote(rest)]]
            return self._json({"files": [self._mode(entry["path"], here) for entry in json.loads(data)["files"]]})
        if deed == "info":
            return self._json(
                {"transfer": "basic", "objects": [self._action(one) for one in json.loads(data)["objects"]]}
            )
        return self._commit(name, unquote(rest), data)

    def _make_or_delete(self, request: Request, asked: dict[str, Any]) -> None:
        space = asked.get("organization") or ACCOUNTS[request.token or ""][0]
        kind = "spaces/" if asked.get("type") == "space" else ""
        name = f"{kind}{space}/{asked['name']}"
        if request.path.endswith("delete"):
            if name not in self.hub.repos:
                return self._fail(404, "RepoNotFound")
            del self.hub.repos[name]
            return self._json({})
        if request.token == "hf_reader" or space not in ACCOUNTS[request.token or ""]:
            return self._fail(403, "", f'You don\'t have the rights to create a model under the namespace "{space}"')
        if name in self.hub.repos:
            return self._fail(409, "", "You already created this model repo")
        private = asked.get("private") or asked.get("visibility") == "private"  # older clients, newer ones
        readers = ("hf_visitor",) if space == "visitor" else ("hf_writer", "hf_reader")
        files = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.hub.add(name, files, private=private, readers=readers, made_by=request.token or "")
        return self._json({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def _may_write(self, request: Request, name: str, repo: Repo) -> bool:
        if request.token == "hf_visitor":
            return repo.made_by == "hf_visitor"
        return request.token == "hf_writer" and name.split("/")[-2] in ACCOUNTS["hf_writer"]

    def _mode(self, path: str, here: dict[str, bytes]) -> dict[str, Any]:
        large = path.endswith(".safetensors")
        told: dict[str, Any] = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in here:
            data = here[path]
            told["oid"] = hashlib.sha256(data).hexdigest() if large else _git_oid(data)
        return told

    def _action(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["oid"] in self.hub.uploads or self.hub.blob(entry["oid"]) is not None:
            return entry  # it is there already
        return {**entry, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}"}}}

    def _take(self, oid: str) -> None:
        """A large file, as the content network takes it."""
        left, data = int(self.headers["Content-Length"]), b""
        most = self.hub.cut_uploads.pop(0) if self.hub.cut_uploads else None
        for part, answers in self.hub.failures.items():
            if part in self.path and answers:
                self.rfile.read(left)
                return self._fail(*(answers.pop(0) if len(answers) > 1 else answers[0]))
        while left and (most is None or len(data) < most):
            piece = self.rfile.read(min(left, _KEPT_BYTES))
            if not piece:
                break
            data, left = data + piece, left - len(piece)
            self.hub.taken_bytes += len(piece)
            time.sleep(self.hub.slow_s)
        if left:
            self.close_connection = True
            return None
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.uploads[oid] = data
        return self._json({})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _commit(self, name: str, revision: str, data: bytes) -> None:
        repo = self.hub.repos[name]
        files = dict(repo.commits[repo.refs[revision]])
        for line in data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header" and value.get("parentCommit") not in (None, repo.refs[revision]):
                return self._fail(412, "", "A commit has happened since. Please refresh and try again.")
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                found = self.hub.uploads.get(value["oid"])
                files[value["path"]] = found if found is not None else self.hub.blob(value["oid"]) or b""
        commit = OTHER if OTHER not in repo.commits else hashlib.sha1(data).hexdigest()
        repo.commits[commit] = files
        repo.refs[revision] = commit
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing: a client that hangs up is part of some tests."""


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub on two origins of this machine: `localhost` for the Hub, 127.0.0.1 for its content network."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://localhost:{server.server_port}"
    hub.cdn = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
