"""A visitor's browser without a browser: presses what the page has, through HTTP, and reads what it is told."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

PATIENCE_S = 120.0


class Told(Exception):
    """What the page says above itself when something did not work."""


class Visitor:
    """One who comes with the secret that their browser keeps, and asks for one thing after another."""

    def __init__(self, url: str, secret: str) -> None:
        self.url, self.secret, self._session = url, secret, secrets.token_hex(8)
        self._http = httpx.Client(base_url=f"{url}/gradio_api/", timeout=PATIENCE_S)
        self._config = httpx.get(f"{url}/config", timeout=PATIENCE_S).raise_for_status().json()
        self._components = {one["id"]: one for one in self._config["components"]}
        self._ids = {
            one["props"]["elem_id"]: one["id"] for one in self._config["components"] if one["props"].get("elem_id")
        } | {
            f"tab-{one['props']['id']}": one["id"]
            for one in self._config["components"]
            if one["type"] == "tabitem" and "id" in one["props"]
        }

    def send(self, *files: Path | tuple[str, bytes]) -> list[dict[str, Any]]:
        """Upload files as a browser does; what a component's value is then."""
        pairs = [(one.name, one.read_bytes()) if isinstance(one, Path) else one for one in files]
        sent = self._http.post("upload", files=[("files", pair) for pair in pairs]).raise_for_status().json()
        return [
            {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            for path, (name, _) in zip(sent, pairs, strict=True)
        ]

    def press(self, what: str, event: str = "click", **values: Any) -> dict[str, Any]:
        """Let something happen, and wait for its end; the outputs by their names.

        Args:
            values: of components, by their elem_id with _ for -, or their label; all others are as the page begins.

        Raises:
            Told: it did not work.
        """
        target = [self._ids[what], event]
        found = [one for one in self._config["dependencies"] if target in one["targets"] and one["backend_fn"]]
        dependency = max(found, key=lambda one: len(one["outputs"]))  # others only set a component beside
        return self._ask(dependency, [self._value(id, values) for id in dependency["inputs"]], target[0])

    def call(self, endpoint: str, *values: Any) -> Any:
        """Ask a public endpoint.

        Raises:
            Told: it did not work.
        """
        dependency = next(one for one in self._config["dependencies"] if one["api_name"] == endpoint)
        return self._ask(dependency, list(values), None)

    def _ask(self, dependency: dict[str, Any], values: list[Any], trigger: int | None) -> dict[str, Any]:
        asked = {
            "data": values,
            "fn_index": dependency["id"],
            "session_hash": self._session,
            "trigger_id": trigger,
        }
        event_id = self._http.post("queue/join", json=asked).raise_for_status().json()["event_id"]
        with self._http.stream("GET", "queue/data", params={"session_hash": self._session}) as stream:
            for line in lines(stream):
                message = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
                if message.get("msg") != "process_completed" or message.get("event_id") != event_id:
                    continue
                if not message["success"]:
                    raise Told(message["output"].get("error") or message["output"])
                outputs = message["output"].get("data") or []
                names = [self._components[id]["props"].get("elem_id") or str(id) for id in dependency["outputs"]]
                return {name: _shown(value) for name, value in zip(names, outputs, strict=False)}
        raise AssertionError("the connection ended before the answer")

    def conversation(self, model: str) -> tuple[list[tuple[str, str]], str]:
        """Messages and status line of the chat with a model."""
        found = self.press("chat-model", "change", chat_model=model)
        said = [one["content"] for one in found["chat-log"]]
        texts = ["".join(part["text"] for part in one) if isinstance(one, list) else str(one) for one in said]
        return list(zip(texts[::2], texts[1::2], strict=True)), found["chat-status"]

    def say(self, model: str, text: str) -> None:
        """Send a message, and await the answer."""
        self.press("chat-send", chat_model=model, chat_message=text)

    def models(self) -> list[str]:
        """What there is to choose from."""
        return [row[0] for row in self.press("tab-models", "select")["models-table"]["data"]]

    def run_says(self, *what: str) -> str:
        """Wait until the newest run's status says one of these; all that it says then."""
        status = ""

        def said() -> bool:
            nonlocal status
            status = self.press("tab-train", "select")["runs-status"]
            return any(one in status for one in what)

        until(said, f"the page never said {' or '.join(what)} of the run", every_s=1.0)
        return status

    def _value(self, id: int, values: dict[str, Any]) -> Any:
        component = self._components[id]
        if component["type"] == "browserstate":
            return self.secret
        name = (component["props"].get("elem_id") or component["props"].get("label") or "").replace("-", "_")
        return values[name] if name in values else component["props"].get("value")


def lines(stream: httpx.Response) -> Iterator[bytes]:
    """Lines as they are sent; httpx would also part them at signs that a model may write, such as U+0085."""
    left = b""
    for piece in stream.iter_bytes():
        *whole, left = (left + piece).split(b"\n")
        yield from whole


def _shown(value: Any) -> Any:
    """Of an update, what matters here."""
    if not isinstance(value, dict) or value.get("__type__") != "update":
        return value
    return value.get("value")


def until(holds: Callable[[], Any], what: str, *, every_s: float = 0.1) -> Any:
    """Wait for something; what it is when it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(every_s)
    return found
