"""/v1 by itself: what it takes, refuses and gives, who may write when, and what is left when somebody goes."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import schemathesis
import schemathesis.specs.openapi.schemas  # as large as it is, it is not to be compiled while threads are at work
import uvicorn
import zoo
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from bdh.errors import DataError, HatcheryError
from bdh.sampling import Sampling
from bdh.stream import Stream
from ui.dialogue import transcript
from ui.door import Door, Refused
from ui.limits import Limits
from ui.openai import openai_api, serving
from ui.openai.serving import refusal_of
from ui.registry import Registry
from ui.served import Served

PROMPT = "In the beginning, "
SMALL = Limits(max_prompt_bytes=400, max_write_bytes=300, max_at_once=2, max_waiting=1)
WIDE = Limits(max_at_once=2, max_waiting=1)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("models")
    for name in ("flat", "hebbian"):
        zoo.fresh(name).save_pretrained(folder / "checkpoints" / name)
    return Registry(folder / "checkpoints", folder, Limits(), "cpu")


@pytest.fixture(scope="module")
def client(registry: Registry) -> TestClient:
    return TestClient(openai_api(registry, SMALL))


def alone(registry: Registry, prompt: bytes, **options: Any) -> list[Any]:
    with registry.lease("flat", "") as model:
        stream = Stream(model)
        stream.feed(prompt)
        return list(stream.generate(Sampling(valid_utf8=True, **options)))


def idle(registry: Registry) -> bool:
    return not registry._reserved and not any(entry.in_use for entry in registry.entries(""))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_completion_is_what_a_stream_writes_with_the_same_seed(client: TestClient, registry: Registry) -> None:
    asked = {"model": "flat", "prompt": PROMPT, "max_tokens": 60, "seed": 11}
    said = client.post("/completions", json=asked).json()
    written = bytes(part.byte for part in alone(registry, PROMPT.encode(), max_bytes=60, seed=11))
    assert said["choices"] == [{"text": written.decode(), "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert said["usage"] == {"prompt_tokens": 18, "completion_tokens": 60, "total_tokens": 78}
    with registry.lease("flat", "") as model:
        assert said["system_fingerprint"] == f"bdh-{model.checksum()[:16]}"
    streamed = events(
        client.post("/completions", json=asked | {"stream": True, "stream_options": {"include_usage": True}}).text
    )
    assert "".join(choice["text"] for chunk in streamed for choice in chunk["choices"]) == written.decode()
    assert [chunk["usage"] for chunk in streamed[:-1]] == [None] * (len(streamed) - 1)
    assert streamed[-1]["usage"] == said["usage"] and streamed[-2]["choices"][0]["finish_reason"] == "length"


def test_several_prompts_and_texts_each_are_what_each_is_alone(client: TestClient) -> None:
    asked = {"model": "hebbian", "max_tokens": 20, "temperature": 1.0}
    said = client.post("/completions", json=asked | {"prompt": ["a", "bc"], "n": 2, "seed": 5, "echo": True}).json()
    singles = [
        client.post("/completions", json=asked | {"prompt": prompt, "seed": seed}).json()["choices"][0]["text"]
        for prompt in ("a", "bc")
        for seed in (5, 6)
    ]
    assert [choice["text"] for choice in said["choices"]] == [
        prompt + text for prompt, text in zip(("a", "a", "bc", "bc"), singles, strict=True)
    ]
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2, 3]
    assert said["usage"]["prompt_tokens"] == 3
    bytes_as_numbers = client.post("/completions", json=asked | {"prompt": [98, 99], "seed": 5}).json()
    assert bytes_as_numbers["choices"][0]["text"] == singles[2]


def test_probabilities_are_those_of_the_model_for_the_prompt_too(client: TestClient, registry: Registry) -> None:
    text = "né"
    asked = {"model": "flat", "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 0}
    said = client.post("/completions", json=asked).json()["choices"][0]
    with registry.lease("flat", "") as model:
        costs = Stream(model).score(text.encode())
    assert said["text"] == text
    assert said["logprobs"]["tokens"] == ["n", "bytes:\\xc3", "bytes:\\xa9"]
    assert said["logprobs"]["text_offset"] == [0, 1, 1]
    assert said["logprobs"]["token_logprobs"] == [None, *(pytest.approx(-bits * math.log(2)) for bits in costs[1:])]
    written = alone(registry, b"a", max_bytes=9, seed=1)
    said = client.post(
        "/completions", json={"model": "flat", "prompt": "a", "max_tokens": 9, "seed": 1, "logprobs": 0}
    ).json()
    told = said["choices"][0]["logprobs"]["token_logprobs"]
    assert told == [pytest.approx(-part.surprise_bits * math.log(2)) for part in written]


def test_a_stop_string_ends_a_text_and_is_neither_shown_nor_counted(client: TestClient) -> None:
    asked = {"model": "flat", "prompt": "a", "max_tokens": 60, "temperature": 0}
    whole = client.post("/completions", json=asked).json()["choices"][0]["text"]
    for stop in (whole[10:12], [whole[10:12], "never this"]):
        said = client.post("/completions", json=asked | {"stop": stop}).json()
        assert (
            said["choices"][0] | {"text": whole.split(whole[10:12])[0], "finish_reason": "stop"} == said["choices"][0]
        )
        assert said["usage"]["completion_tokens"] == len(whole.split(whole[10:12])[0].encode())


def test_a_frequency_penalty_is_a_repetition_penalty_that_never_decays(client: TestClient) -> None:
    asked = {"model": "flat", "prompt": "a", "max_tokens": 50, "seed": 1}
    frequency = client.post("/completions", json=asked | {"frequency_penalty": 1.5}).json()
    repetition = client.post("/completions", json=asked | {"repetition_penalty": 1.5, "repetition_decay": 1}).json()
    assert frequency["choices"] == repetition["choices"]


def test_messages_are_heard_in_the_form_of_a_dialogue() -> None:
    asked = ("user", 'What  does\n"river" mean?')
    assert transcript([asked]) == b'\nUser: What does "river" mean?\nBot:'
    assert transcript([("system", "Be  brief."), asked]) == b'\nBe brief.\nUser: What does "river" mean?\nBot:'
    said = [asked, ("assistant", "Water.\n"), ("user", "And"), ("user", "sea?")]
    assert transcript(said) == b'\nUser: What does "river" mean?\nBot: Water.\nUser: And sea?\nBot:'
    assert transcript([("assistant", "Hi"), ("user", "a")]) == b"\nBot: Hi\nUser: a\nBot:"
    for wrong in ([], [("user", " ")], [asked, ("assistant", "Water.")]):
        with pytest.raises(DataError):
            transcript(wrong)


def test_an_answer_in_a_chat_is_trimmed_and_streams_as_it_is_given_whole(
    client: TestClient, registry: Registry
) -> None:
    asked = {
        "model": "flat",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "max_completion_tokens": 200,
        "temperature": 1.5,
        "seed": 3,
    }
    said = client.post("/chat/completions", json=asked | {"logprobs": True}).json()
    options = {"max_bytes": 200, "temperature": 1.5, "top_p": 0.95, "seed": 3, "stop": (b"\n",)}
    written = [part for part in alone(registry, b"\nUser: hello\nBot:", **options) if not part.is_stop]
    data = bytes(part.byte for part in written)
    (choice,) = said["choices"]
    assert choice["message"]["content"] == data.decode("utf-8", "replace").strip()
    assert [one["bytes"][0] for one in choice["logprobs"]["content"]] == list(data)
    streamed = events(client.post("/chat/completions", json=asked | {"stream": True}).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == choice["message"]["content"]
    assert streamed[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("completions", {"model": "nobody"}, 404, "no model 'nobody' here; there are: flat, hebbian"),
    ("completions", {"model": "\ud800" * 200}, 400, "model"),
    ("completions", {"prompt": None}, 400, "prompt"),
    ("completions", {"prompt": []}, 400, "prompt"),
    ("completions", {"prompt": [256]}, 400, "prompt"),
    ("completions", {"prompt": "x" * 401}, 400, "at most 400"),
    ("completions", {"prompt": ["x" * 201] * 2}, 400, "at most 400"),
    ("completions", {"prompt": ["x"] * 9, "n": 2}, 400, "too many texts"),
    ("completions", {"max_tokens": 301}, 400, "at most 300"),
    ("completions", {"max_tokens": 0}, 400, "max_tokens is 0"),
    ("completions", {"n": 2, "max_tokens": 151}, 400, "302 bytes in 2 texts"),
    ("completions", {"temperature": "hot"}, 400, "temperature"),
    ("completions", {"temperature": True}, 400, "temperature"),
    ("completions", {"logprobs": 5}, 400, "of the bytes that were written|for the bytes that were written"),
    ("completions", {"suffix": "end"}, 400, "suffix: is not offered here"),
    ("completions", {"colour": "red"}, 400, "colour: is not known here"),
    ("completions", {"presence_penalty": 1}, 400, "frequency_penalty and repetition_penalty are known"),
    ("completions", {"stop": ["x"] * 16}, 400, "stop"),
    ("completions", {"stop": ["é" * 200]}, 400, "256 bytes"),
    ("completions", {"stream_options": {"include_usage": True}}, 400, "set stream to true"),
    ("completions", {"frequency_penalty": 1, "repetition_penalty": 1}, 400, "not both"),
    ("chat/completions", {"messages": []}, 400, "messages"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role"),
    ("chat/completions", {"messages": [{"role": "user", "content": " "}]}, 400, "is empty"),
    ("chat/completions", {"tools": []}, 400, "tools: is not offered here"),
    ("chat/completions", {"max_tokens": 1, "max_completion_tokens": 1}, 400, "not both"),
    ("chat/completions", {"response_format": {"type": "json_object"}}, 400, "response_format"),
]


@pytest.mark.parametrize(("path", "changes", "status", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_met_is_refused_in_words(
    client: TestClient, path: str, changes: dict[str, Any], status: int, words: str
) -> None:
    usual: dict[str, Any] = (
        {"prompt": "a"} if path == "completions" else {"messages": [{"role": "user", "content": "a"}]}
    )
    answered = client.post(
        f"/{path}", content=json.dumps(usual | changes), headers={"Content-Type": "application/json"}
    )
    error = answered.json()["error"]
    assert answered.status_code == status and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 400
    assert any(word in error["message"] for word in words.split("|"))


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 413),
        (b"[" * 60_000, "application/json", 400),
        (b'{"prompt": NaN}', "application/json", 400),
        (b'{"prompt": "a", "temperature": 1e999}', "application/json", 400),
        (b'{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}", "application/json", 400),
        (b'{"prompt": "\xff"}', "application/json", 400),
        (b'{"prompt": "a"}', "text/plain", 415),
        (b'{"prompt": "a"}', "", 415),
        (b"", "application/json", 400),
    ],
    ids=range(10),
)
def test_a_body_that_is_none_is_refused_in_words(client: TestClient, body: bytes, kind: str, status: int) -> None:
    answered = client.post("/completions", content=body, headers={"Content-Type": kind} if kind else {})
    assert (answered.status_code, set(answered.json())) == (status, {"error"})


def test_models_are_listed_as_everybody_may_use_them(client: TestClient, registry: Registry) -> None:
    listed = client.get("/models").json()
    assert [card["id"] for card in listed["data"]] == ["flat", "hebbian"]
    assert client.get("/models/flat").json() == listed["data"][0]
    assert listed["data"][0]["parameters"] == registry.entries("")[0].parameters
    assert client.get("/models/../x").json()["error"]["message"].startswith("there is")
    assert (client.get("/nothing").status_code, client.get("/completions").status_code) == (404, 405)


def test_an_error_that_is_nobodys_fault_tells_a_client_nothing_but_that(caplog: pytest.LogCaptureFixture) -> None:
    told = refusal_of(KeyError("/home/somebody/secret"))
    assert told.status == 500 and "secret" not in str(told)
    assert "secret" in caplog.text
    assert refusal_of(HatcheryError("all are in use")).status == 503
    assert refusal_of(MemoryError()).response().headers["retry-after"] == "5"
    refused = refusal_of(Refused(429, "too many requests", 2.5))
    assert (refused.status, str(refused), refused.type) == (429, "too many requests", "rate_limit_error")
    assert refused.response().headers["retry-after"] == "3"


MANY = 184_000 - 100
"""Bytes of a body: about what a public page reads."""
FIELDS = {str(number): 0 for number in range(MANY // 12)}
SAID: dict[str, Any] = {"role": "user", "content": ""}
WRONG_OFTEN: list[tuple[dict[str, Any], str]] = [
    ({"prompt": [999] * (MANY // 5)}, "prompt: must be a text"),
    ({"prompt": [[]] * (MANY // 4)}, "prompt: must be a text"),
    ({"prompt": [""] * (MANY // 4)}, "prompt: must be a text"),
    ({"prompt": [*[7] * (MANY // 4), ""]}, "prompt: must be a text"),
    ({"prompt": "a", **FIELDS}, "fields; at most 100"),
    ({"messages": [0] * (MANY // 4)}, "messages.0: "),
    ({"messages": [SAID] * (MANY // 34)}, "at most 1000 items"),
    ({"messages": [SAID | {"content": [0] * (MANY // 4)}]}, "parts are too many; at most 1000"),
    ({"messages": [SAID | {"content": [{"type": "text", "text": ""}] * 65}]}, "List should have at most 64 items"),
    ({"messages": [FIELDS]}, "messages.0: an object has"),
]


@pytest.mark.parametrize(("asked", "words"), WRONG_OFTEN, ids=range(len(WRONG_OFTEN)))
def test_many_wrong_things_cost_no_more_time_than_one(registry: Registry, asked: dict[str, Any], words: str) -> None:
    client = TestClient(openai_api(registry, Limits(max_prompt_bytes=20_000)))
    path = "/completions" if "prompt" in asked else "/chat/completions"
    client.post(path, json={})  # what is made at the first request
    taken = []
    for _ in range(3):  # of which the machine may have been busy with something else in two
        begun = time.process_time()
        answered = client.post(path, json=asked)
        taken.append(time.process_time() - begun)
        if min(taken) < 0.5:
            break
    assert min(taken) < 1.5
    assert answered.status_code == 400 and words in answered.json()["error"]["message"]


class Visit:
    """One request straight to the app, whose reading and going are up to the test."""

    def __init__(
        self,
        app: Any,
        asked: dict[str, Any],
        *,
        path: str = "/completions",
        reads: float = math.inf,
        pause_s: float = 0.0,
        who: str = "127.0.0.1",
    ) -> None:
        self.app, self.body, self.path, self.reads = app, json.dumps(asked).encode(), path, reads
        self.pause_s, self.who = pause_s, who
        self.gone = anyio.Event()
        self.status, self.text, self.told = 0, "", False
        self.headers: dict[bytes, bytes] = {}

    async def receive(self) -> dict[str, Any]:
        if not self.told:
            self.told = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.reads <= 0:
            await anyio.sleep_forever()
        self.reads -= 1
        await anyio.sleep(self.pause_s)
        self.status = message.get("status", self.status)
        self.headers |= dict(message.get("headers", ()))
        self.text += message.get("body", b"").decode()

    async def run(self) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body)).encode())]
        scope = {"type": "http", "method": "POST", "path": self.path, "headers": headers, "query_string": b"",
                 "raw_path": self.path.encode(), "root_path": "", "scheme": "http", "http_version": "1.1",
                 "client": (self.who, 1), "server": ("127.0.0.1", 2), "asgi": {"version": "3.0"}}  # fmt: skip
        await self.app(scope, self.receive, self.send)


LONG = {"model": "flat", "prompt": "a", "max_tokens": 100_000, "seed": 1}


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_is_no_longer_written_for(registry: Registry, stream: bool) -> None:
    app = openai_api(registry, WIDE)

    async def go() -> None:
        visit = Visit(app, LONG | {"stream": stream})
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(visit.run)
                while idle(registry) or (stream and visit.text.count("data:") < 3):
                    await anyio.sleep(0.01)
                visit.gone.set()
        assert app.state.gate.writing == 0 and visit.text.count('"finish_reason":"') == 0

    anyio.run(go)
    assert idle(registry)


def test_who_does_not_read_is_left_in_time_and_holds_up_nobody(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "STALL_S", 3.0)
    app = openai_api(registry, WIDE)

    async def go() -> None:
        stuck = Visit(app, LONG | {"stream": True}, reads=4)
        other = Visit(app, {"model": "flat", "prompt": "a", "max_tokens": 20})
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stuck.run)
                while stuck.reads:
                    await anyio.sleep(0.01)
                await other.run()
                assert other.status == 200 and app.state.gate.writing == 1
        assert stuck.text.count("data:") == 3

    anyio.run(go)
    assert idle(registry)


def test_who_reads_each_piece_soon_is_not_left_however_many_there_are(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "STALL_S", 1.5)  # of which a sum of all pauses would leave nothing
    visit = Visit(openai_api(registry, WIDE), LONG | {"max_tokens": 20, "n": 4, "stream": True}, pause_s=0.3)
    anyio.run(visit.run)
    assert visit.text.count("data:") > 5 and visit.text.endswith("data: [DONE]\n\n")


def test_one_visitor_has_a_quarter_of_the_turns_and_this_machine_all(registry: Registry) -> None:
    app = openai_api(registry, Limits(max_at_once=8, max_waiting=1))

    async def go() -> None:
        writing = [Visit(app, LONG | {"stream": True}, who="9.9.9.9") for _ in range(2)]
        refused, other, own = (Visit(app, LONG | {"max_tokens": 5}, who=who) for who in ("9.9.9.9", "8.8.8.8", "::1"))
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for visit in writing:
                    tasks.start_soon(visit.run)
                while app.state.gate.writing < 2:
                    await anyio.sleep(0.01)
                for visit in (refused, other, own):
                    await visit.run()
                for visit in writing:
                    visit.gone.set()
            again = Visit(app, LONG | {"max_tokens": 5}, who="9.9.9.9")
            await again.run()
        assert (refused.status, other.status, own.status, again.status) == (429, 200, 200, 200)
        error = json.loads(refused.text)["error"]
        assert error["type"] == "rate_limit_error" and "2 requests of yours" in error["message"]
        assert refused.headers[b"retry-after"] == b"5"

    anyio.run(go)
    assert idle(registry)


def test_what_the_door_refuses_here_is_told_as_clients_read_it(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.door._PATIENCE_S", 0.2)
    limits = Limits(max_request_bytes=200)
    door = Door(openai_api(registry, limits), limits, Served(tmp_path, 10**9, 3600.0))
    large, slow = Visit(door, {"prompt": "a" * 300}), Visit(door, {})
    slow.told = True
    for visit, status, words in ((large, 413, "at most 200 bytes"), (slow, 408, "came too slowly")):
        anyio.run(visit.run)
        error = json.loads(visit.text)["error"]
        assert visit.status == status and error["type"] == "invalid_request_error" and words in error["message"]
        assert visit.headers[b"connection"] == b"close"
    assert len(caplog.records) <= 2 and not any(record.exc_info for record in caplog.records)


def test_a_few_write_some_wait_and_the_others_are_told_to_come_again(registry: Registry) -> None:
    app = openai_api(registry, WIDE)
    gate = app.state.gate

    async def go() -> None:
        writing = [Visit(app, LONG | {"stream": True}) for _ in range(2)]
        waiting, leaving = Visit(app, LONG | {"max_tokens": 5}), Visit(app, LONG)
        refused = Visit(app, LONG)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for visit in writing:
                    tasks.start_soon(visit.run)
                while gate.writing < 2:
                    await anyio.sleep(0.01)
                tasks.start_soon(leaving.run)
                while not gate.waiting:
                    await anyio.sleep(0.01)
                await refused.run()
                assert refused.status == 429 and json.loads(refused.text)["error"]["type"] == "rate_limit_error"
                leaving.gone.set()
                while gate.waiting:
                    await anyio.sleep(0.01)
                tasks.start_soon(waiting.run)
                while not gate.waiting:
                    await anyio.sleep(0.01)
                writing[0].gone.set()
                while not waiting.status:
                    await anyio.sleep(0.01)
                writing[1].gone.set()
        assert (waiting.status, leaving.status, gate.writing, gate.waiting) == (200, 0, 0, 0)

    anyio.run(go)
    assert idle(registry)


@pytest.fixture(scope="module")
def address(registry: Registry) -> Iterator[str]:
    """The API on a server of its own."""
    server = uvicorn.Server(uvicorn.Config(openai_api(registry, WIDE), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=120)


def test_a_connection_that_is_cut_frees_what_it_held(address: str, registry: Registry) -> None:
    with httpx.stream("POST", f"{address}/completions", json=LONG | {"stream": True}, timeout=60) as response:
        next(response.iter_text())
        assert not idle(registry)
    until(lambda: idle(registry))


@pytest.mark.parametrize("length", [b"Content-Length: 99999999", b"Transfer-Encoding: chunked"])
def test_a_body_that_is_too_large_is_refused_before_it_has_come(address: str, length: bytes) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(b"POST /completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n" + length)
        line.sendall(b"\r\n\r\n")
        if b"chunked" in length:  # a little more than is read
            piece = b" " * (6 * WIDE.max_prompt_bytes + 70_000)
            line.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        assert line.recv(15) == b"HTTP/1.1 413 Re"


def test_a_body_that_does_not_come_is_not_waited_for(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "READ_S", 0.2)
    visit = Visit(openai_api(registry, WIDE), {})
    visit.told = True
    anyio.run(visit.run)
    assert visit.status == 408


ROUTES = [
    ("/models", "GET", 1, GenerationMode.POSITIVE),
    ("/models/{id}", "GET", 4, GenerationMode.POSITIVE),
    *(
        (path, "POST", count, mode)
        for path in ("/completions", "/chat/completions")
        for count, mode in ((30, GenerationMode.POSITIVE), (15, GenerationMode.NEGATIVE))
    ),
]


@pytest.mark.parametrize(("path", "method", "count", "mode"), ROUTES)
def test_whatever_is_sent_is_answered_as_the_description_says(
    registry: Registry, path: str, method: str, count: int, mode: GenerationMode
) -> None:
    limits = Limits(max_prompt_bytes=200, max_write_bytes=16, max_at_once=2)
    described = schemathesis.openapi.from_asgi("/openapi.json", openai_api(registry, limits))
    answered = []

    @settings(max_examples=count, phases=(Phase.generate,), suppress_health_check=list(HealthCheck), database=None)
    @given(described[path][method].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answered.append(case.call_and_validate(checks=CHECKS).status_code)

    ask()
    assert set(answered) <= {200, 400, 404, 415}
    # What is described may still ask for too much; what is not described is never met.
    assert mode is GenerationMode.POSITIVE or 200 not in answered
