"""A small server that speaks the Hub's HTTP protocol: listings, resolve with redirects and ranges, uploads.

Large files are redirected to another origin, as the Hub redirects to its content network. Every request is
noted with what was sent for it, and the server can be told to cut connections or to misbehave.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

MAIN = "a" * 40
OTHER = "b" * 40


@dataclass
class Repo:
    """One repository: files by path of each commit, and who may read them."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str] = field(default_factory=lambda: {"main": MAIN})
    private: bool = False
    gated: bool = False
    readers: tuple[str, ...] = ("hf_reader",)


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
        self.uploads: dict[str, bytes] = {}
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

    def _note(self) -> Request:
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
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", request.path):
            return self._listing(request, match[1], unquote(match[2] or "main"))
        if match := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path):
            return self._resolve(request, *match.groups())
        return self._fail(404, "")

    def _repo(self, request: Request, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and request.token not in repo.readers):
            self._fail(401, "RepoNotFound")
            return None
        return repo

    def _listing(self, request: Request, name: str, revision: str) -> None:
        if (repo := self._repo(request, name)) is None:
            return
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self._fail(404, "RevisionNotFound")
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        self._json({"id": name, "sha": commit, "private": repo.private, "gated": repo.gated, "siblings": siblings})

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
        digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return self._body(request, data, {"ETag": f'W/"{digest}"', "X-Repo-Commit": commit})

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
        data = self._read_body()
        if request.path.startswith("/lfs/"):
            self.hub.uploads[request.path.removeprefix("/lfs/")] = data
            return self._json({})
        if request.token != "hf_writer":
            return self._fail(401, "")
        if request.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if request.path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization'] if asked.get('organization') else 'me'}/{asked['name']}"
            private = asked.get("private") or asked.get("visibility") == "private"  # older clients, newer ones
            self.hub.add(name, {}, private=private, readers=("hf_writer", "hf_reader"))
            return self._json({"url": f"{self.hub.endpoint}/{name}", "name": name})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", request.path):
            self.hub.repos[match[1]].refs[match[2]] = MAIN
            return self._json({})
        if "/preupload/" in request.path:
            files = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for entry in json.loads(data)["files"]
            ]
            return self._json({"files": files})
        if request.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}"}}}
                for entry in json.loads(data)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", request.path):
            return self._commit(match[1], match[2], data)
        return self._fail(404, "")

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
        files: dict[str, bytes] = {}
        for line in data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        self.hub.repos[name].commits[OTHER] = files
        self.hub.repos[name].refs[revision] = OTHER
        url = f"{self.hub.endpoint}/{name}/commit/{OTHER}"
        self._json({"success": True, "commitOid": OTHER, "commitUrl": url, "hookOutput": ""})

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


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
