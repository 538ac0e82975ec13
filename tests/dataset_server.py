"""A small server that speaks as much of the Hub's protocol as streaming a dataset takes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

COMMIT = "c" * 40


@dataclass
class Hub:
    """Files by path of each dataset, and the tokens that were shown."""

    datasets: dict[str, dict[str, bytes]]
    gated: tuple[str, ...] = ()
    endpoint: str = ""
    tokens: list[str | None] = field(default_factory=list)


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
        self._answer()

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.tokens.append(self.headers.get("Authorization"))
        path = unquote(self.path.split("?")[0])
        match = re.fullmatch(r"/(?:api/)?datasets/([^/]+/[^/]+)(?:/([\w-]+))?(?:/([^/]+))?(?:/(.*))?", path)
        if match is None:
            return self._fail(404, "")
        name, verb, revision, rest = match.groups(default="")
        files = self.hub.datasets.get(name)
        if files is None:
            return self._fail(401, "RepoNotFound")
        if revision not in ("", "main", COMMIT):
            return self._fail(404, "RevisionNotFound")
        if name in self.hub.gated and verb in ("auth-check", "resolve"):
            return self._fail(403, "GatedRepo")
        if verb == "resolve":
            return self._file(files[rest]) if rest in files else self._fail(404, "EntryNotFound")
        if verb == "tree":
            entries = self._entries(files, rest)
            return self._json(entries) if entries else self._fail(404, "EntryNotFound")
        if verb == "paths-info":
            asked = json.loads(sent)["paths"] if sent.startswith(b"{") else parse_qs(sent.decode())["paths"]
            return self._json([self._entry(path, files) for path in asked if path in files])
        gated = "auto" if name in self.hub.gated else False
        return self._json({"id": name, "sha": COMMIT, "private": False, "gated": gated, "siblings": []})

    def _entry(self, path: str, files: dict[str, bytes]) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(files[path]), "oid": _oid(files[path])}

    def _entries(self, files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
        within = f"{folder}/" if folder else ""
        inside = [path for path in files if path.startswith(within)]
        folders = {within + path[len(within) :].split("/")[0] for path in inside if "/" in path[len(within) :]}
        return [self._entry(path, files) for path in inside if "/" not in path[len(within) :]] + [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)
        ]

    def _file(self, data: bytes) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, stop = (int(match[1]), min(int(match[2] or len(data)) + 1, len(data))) if match else (0, len(data))
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("ETag", f'"{_oid(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self._body(data[start:stop])

    def _json(self, value: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._body(json.dumps(value).encode())

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self._body(b"")

    def _body(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(datasets: dict[str, dict[str, bytes]], gated: tuple[str, ...] = ()) -> Iterator[Hub]:
    """A Hub of these datasets on this machine."""
    hub = Hub(datasets, gated)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
