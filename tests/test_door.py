"""What stands between the network and the page lets through what it may, and nothing grows without bound."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from bdh.errors import HatcheryError, one_line
from train.clock import Clock
from ui import door as doors
from ui.door import CLOSED, Door
from ui.limits import Limits
from ui.served import Served
from ui.visitors import Allowance, visitor

PUBLIC = Limits.from_environment({"BDH_PUBLIC": "true"})
STRANGER = [(b"x-forwarded-for", b"9.9.9.9")]


def served(tmp_path: Path, most: int = 10**9) -> Served:
    return Served(tmp_path / "served", most, 3600.0)


async def swallow(scope: Any, receive: Any, send: Any) -> None:
    """An app that reads a body and says how long it is."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def asked(
    door: Door,
    path: str,
    pieces: list[bytes] | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
    pause_s: float = 0.0,
    send: Callable[[Any], Awaitable[None]] | None = None,
    **changes: Any,
) -> tuple[int, bytes]:
    """Status and body of the answer to a request."""
    waiting, sent = list(pieces or [b""]), []

    async def receive() -> Any:
        await asyncio.sleep(pause_s)
        if not waiting:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def keep(message: Any) -> None:
        sent.append(message)
        if send is not None:
            await send(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "headers": headers or [], "client": ("127.0.0.1", 1),
        "root_path": "", **changes,
    }  # fmt: skip
    asyncio.run(door(scope, receive, keep))
    status = next((one["status"] for one in sent if one["type"] == "http.response.start"), 0)
    return status, b"".join(one.get("body", b"") for one in sent)


def limits(**changes: int) -> Limits:
    return Limits(public=True, **changes)


def test_a_body_passes_whole_up_to_its_bound_and_not_a_byte_beyond(tmp_path: Path) -> None:
    door = Door(swallow, limits(max_request_bytes=100), served(tmp_path))
    assert asked(door, "/gradio_api/queue/join", [b"a" * 60, b"b" * 40]) == (200, b"100")
    assert asked(door, "/gradio_api/queue/join", [b"a" * 60, b"b" * 41])[0] == 413
    announced = [(b"content-length", b"101")]
    assert asked(door, "/gradio_api/queue/join", [b"a"], announced)[0] == 413
    assert door._held_bytes == 0 and not door._open


@pytest.mark.parametrize("length", [b"-1", b"1e9", b"9" * 30, b"\xff", b""])
def test_a_length_that_is_none_does_not_help_a_body_through(tmp_path: Path, length: bytes) -> None:
    door = Door(swallow, limits(max_request_bytes=100), served(tmp_path))
    assert asked(door, "/x", [b"a" * 101], [(b"content-length", length)])[0] == 413


def test_a_body_that_comes_too_slowly_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(swallow, limits(), served(tmp_path))
    monkeypatch.setattr(doors, "_PATIENCE_S", 0.05)
    assert asked(door, "/x", [b"a", b"b"], pause_s=1.0)[0] == 408
    monkeypatch.setattr(doors, "_SLOWEST_RATE", 1_000_000)
    assert asked(door, "/x", [b"a"] * 20, pause_s=0.01)[0] == 408  # none of its pauses is long


def test_large_bodies_at_once_take_no_more_memory_than_stated(tmp_path: Path) -> None:
    door = Door(swallow, limits(max_request_bytes=100), served(tmp_path))
    door._held_bytes = 750
    assert asked(door, "/x", [b"a" * 90])[0] == 503
    assert asked(door, "/x", [b"a" * 50]) == (200, b"50")
    assert door._held_bytes == 750


def test_uploads_are_taken_while_there_is_room_for_them(tmp_path: Path) -> None:
    place = served(tmp_path, most=1000)
    door = Door(swallow, limits(max_upload_bytes=10**9, max_served_bytes=1000), place)
    assert asked(door, "/gradio_api/upload", [b"a" * 600]) == (200, b"600")
    assert asked(door, "/gradio_api/upload", [b"a" * 600])[0] == 413
    assert asked(door, "/gradio_api/upload", [b"a"], [(b"content-length", b"600")])[0] == 507


def test_a_visitor_may_upload_a_part_of_what_there_is_room_for(tmp_path: Path) -> None:
    door = Door(swallow, limits(max_served_bytes=1000), served(tmp_path))
    assert asked(door, "/gradio_api/upload", [b"a" * 200], STRANGER)[0] == 200
    assert asked(door, "/gradio_api/upload", [b"a" * 200], STRANGER)[0] == 429
    assert asked(door, "/gradio_api/upload", [b"a" * 200], [(b"x-forwarded-for", b"9.9.9.8")])[0] == 200


def test_a_file_of_an_upload_is_no_larger_than_stated(tmp_path: Path) -> None:
    door = Door(swallow, limits(max_upload_bytes=10), served(tmp_path))
    assert asked(door, "/gradio_api/upload", [b"a" * 1_000_011])[0] == 413


def test_requests_of_one_visitor_are_counted_and_others_are_not_held_back(tmp_path: Path) -> None:
    door = Door(swallow, limits(max_requests_each=3), served(tmp_path))
    assert [asked(door, "/", headers=STRANGER)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert asked(door, "/", headers=[(b"x-forwarded-for", b"9.9.9.8")])[0] == 200
    assert [asked(door, "/")[0] for _ in range(5)] == [200] * 5  # this machine is no stranger


@pytest.mark.parametrize(("bound", "status"), [("max_connections", 503), ("max_connections_each", 429)])
def test_requests_that_are_open_are_counted(tmp_path: Path, bound: str, status: int) -> None:
    async def both() -> list[int]:
        ready, free, found = asyncio.Event(), asyncio.Event(), []

        async def endless(scope: Any, receive: Any, send: Any) -> None:
            ready.set()
            await free.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def nothing() -> Any:
            await asyncio.sleep(3600)

        async def note(message: Any) -> None:
            if "status" in message:
                found.append(message["status"])

        door = Door(endless, limits(**{bound: 1}), served(tmp_path))
        scope = {"type": "http", "method": "GET", "path": "/", "headers": STRANGER, "client": ("10.0.0.1", 1)}
        first = asyncio.ensure_future(door(scope, nothing, note))
        await ready.wait()
        await door(scope, nothing, note)
        free.set()
        await first
        await door(scope, nothing, note)
        return found

    assert asyncio.run(both()) == [status, 200, 200]


def test_the_files_of_a_page_that_is_opened_are_not_held_against_its_visitor(tmp_path: Path) -> None:
    door = Door(swallow, limits(max_requests_each=3, max_connections_each=2), served(tmp_path))
    door._open["9.9.9.9"] = 2  # its streams
    files = ["/assets/index.js", "/static/fonts/a.woff2", "/theme.css", "/gradio_api/theme.css", "/svelte/svelte.js"]
    assert [asked(door, path, headers=STRANGER, method="GET")[0] for path in files] == [200] * 5
    assert [asked(door, path, headers=STRANGER, method=how)[0] for path, how in (("/", "GET"), (files[0], "POST"))] == [
        429
    ] * 2
    assert door._requests.take("9.9.9.9", 3) == 0 and door._open == {"9.9.9.9": 2}


def test_files_alone_do_not_take_all_places(tmp_path: Path) -> None:
    door = Door(swallow, limits(max_connections=10, max_connections_each=2), served(tmp_path))
    door._open["files of 9.9.9.9"] = 4
    assert asked(door, "/assets/a.js", headers=STRANGER, method="GET")[0] == 200
    door._open["files of 9.9.9.9"] = 5
    assert asked(door, "/assets/a.js", headers=STRANGER, method="GET")[0] == 429


@pytest.mark.parametrize(
    "told",
    [
        {"headers": STRANGER},
        {"headers": [(b"x-forwarded-for", b"192.168.1.5")]},
        {"headers": [(b"forwarded", b"for=9.9.9.9")]},
        {"headers": [(b"x-real-ip", b"9.9.9.9")]},
        {"client": ("9.9.9.9", 1)},
        {"client": ("2a00:1450:4001:81b::200e", 1)},
    ],
    ids=str,
)
def test_a_page_for_one_does_not_answer_to_others(tmp_path: Path, told: dict[str, Any]) -> None:
    at_home = Door(swallow, Limits(), served(tmp_path))
    status, body = asked(at_home, "/", **told)
    assert status == 403 and b"others reach this page: start it with BDH_PUBLIC=true" in body
    assert asked(Door(swallow, PUBLIC, served(tmp_path)), "/", **told)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost:7860", 200),
        ("LOCALHOST", 200),
        ("[::1]:7860", 200),
        ("127.0.1.1", 200),
        ("my-machine:7860", 200),
        ("evil.example:7860", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:7860", 403),
        ("192.168.1.5", 403),
        ("", 403),
    ],
)
def test_a_page_for_one_is_reached_by_names_of_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, status: int
) -> None:
    monkeypatch.setenv("GRADIO_SERVER_NAME", "my-machine")
    told = {"headers": [(b"host", host.encode())]}
    at_home = Door(swallow, Limits(), served(tmp_path))
    assert asked(at_home, "/", **told)[0] == status
    assert asked(at_home, "/", **told, client=("testclient", 1))[0] == 200
    assert asked(Door(swallow, PUBLIC, served(tmp_path)), "/", **told)[0] == 200


@pytest.mark.parametrize(
    ("root", "path", "upload"),
    [
        ("", "/gradio_api/upload", True),
        ("", "/gradio_api/upload/", True),
        ("/here", "/here/gradio_api/upload", True),
        ("/here/", "/gradio_api/upload", True),
        ("", "/v1/gradio_api/upload", False),
        ("/here", "/herein/gradio_api/upload", False),
    ],
)
def test_what_is_an_upload_goes_by_the_whole_path(tmp_path: Path, root: str, path: str, upload: bool) -> None:
    door = Door(swallow, limits(max_request_bytes=100), served(tmp_path))
    assert asked(door, path, [b"a" * 200], root_path=root)[0] == (200 if upload else 413)
    assert asked(door, path, [b"a" * 60], root_path=root)[0] == 200


def test_what_is_closed_stays_so_below_another_path(tmp_path: Path) -> None:
    door = Door(swallow, PUBLIC, served(tmp_path))
    assert asked(door, "/here/monitoring", root_path="/here")[0] == 404
    assert asked(door, "/gradio_api/dev/reload", root_path="/gradio")[0] == 404


def test_who_asks_whether_the_reader_has_gone_is_told(tmp_path: Path) -> None:
    async def told() -> list[bool]:
        left, found = asyncio.Event(), []
        body = [{"type": "http.request", "body": b"a", "more_body": False}]

        async def receive() -> Any:
            if not body:
                await left.wait()
                return {"type": "http.disconnect"}
            return body.pop()

        async def polling(scope: Any, receive: Any, send: Any) -> None:
            request = Request(scope, receive)
            assert await request.body() == b"a"
            await asyncio.sleep(0)
            found.append(await request.is_disconnected())
            left.set()
            await asyncio.sleep(0.01)
            found.append(await request.is_disconnected())
            found.append((await receive())["type"] == "http.disconnect")

        async def send(message: Any) -> None:
            pass

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": ("127.0.0.1", 1)}
        await Door(polling, PUBLIC, served(tmp_path))(scope, receive, send)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        return found

    assert asyncio.run(told()) == [False, True, True]


@pytest.mark.parametrize("path", [*CLOSED, "/gradio_api/component_server/", "/gradio_api/vibe-code/"])
def test_what_the_page_has_no_use_for_is_closed(tmp_path: Path, path: str) -> None:
    assert asked(Door(swallow, PUBLIC, served(tmp_path)), path)[0] == 404


def test_a_reader_that_takes_nothing_is_gone_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "_STALLED_S", 0.05)
    told: list[str] = []

    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        leaving = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        told.append((await leaving)["type"])
        told.append((await receive())["type"])

    async def blocked(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    begun = time.monotonic()
    asked(Door(streaming, PUBLIC, served(tmp_path)), "/", send=blocked)
    assert told == ["http.disconnect"] * 2 and time.monotonic() - begun < 600


def test_a_request_that_breaks_is_one_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a\n\x1b[31m" + "b" * 5000)

    assert asked(Door(broken, PUBLIC, served(tmp_path)), "/\nforged: line")[0] == 400
    (record,) = caplog.records
    assert record.getMessage().isprintable() and len(record.getMessage()) < 600


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 507, "disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 507, "disk"),
        (PermissionError(errno.EACCES, "/secret/place"), 500, "went wrong here"),
        (RuntimeError("a bug"), 500, "went wrong here"),
        (MemoryError(), 500, "went wrong here"),
        (OSError(errno.ENAMETOOLONG, "a" * 999), 400, "cannot be answered"),
        (RecursionError(), 400, "cannot be answered"),
        (KeyError("x"), 400, "cannot be answered"),
    ],
    ids=repr,
)
def test_whose_fault_it_is_that_a_request_breaks_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, status: int, words: str
) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise error

    with caplog.at_level(logging.DEBUG, logger="ui.door"):
        found, body = asked(Door(broken, PUBLIC, served(tmp_path)), "/")
    assert found == status and words in body.decode() and b"secret" not in body
    assert [(one.levelname, bool(one.exc_info)) for one in caplog.records] == [("ERROR", False), ("DEBUG", True)]


def test_a_line_is_one_and_printable() -> None:
    assert one_line("a\nb\x1b[2J\u202e\ud800é", 100) == "a\\nb\\x1b[2J\\u202e\\ud800é"
    assert len(one_line("\n" * 1000, 50)) == 50
    assert str(HatcheryError("a\nforged line\x1b[2J")) == "a\\nforged line\\x1b[2J"
    assert len(str(HatcheryError("a" * 10**6))) == 2000


@pytest.mark.parametrize(
    ("peer", "told", "found"),
    [
        ("127.0.0.1", "", ""),
        ("127.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("10.0.0.7", "1.1.1.1, 9.9.9.9, 10.0.0.1", "9.9.9.9"),
        ("10.0.0.7", "nonsense", "10.0.0.7"),
        ("127.0.0.1", "nonsense", ""),
        ("10.0.0.7", "8.8.8.8:443", "8.8.8.8"),
        ("10.0.0.7", "[2a00:1450:4001:81b::200e]:443", "2a00:1450:4001:81b::/64"),
        ("10.0.0.7", "9.9.9.9, [2a00:1450:4001:81b::200e]", "2a00:1450:4001:81b::/64"),
        ("::ffff:10.0.0.7", "9.9.9.9", "9.9.9.9"),
        ("::ffff:8.8.8.8", "9.9.9.9", "8.8.8.8"),
        ("::1", "", ""),
        ("::ffff:127.0.0.1", "", ""),
        ("2a00:1450:4001:81b::200e", "", "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81b::200e", "9.9.9.9", "2a00:1450:4001:81b::/64"),
        ("192.168.1.5", "", "192.168.1.5"),
        ("8.8.8.8", "9.9.9.9", "8.8.8.8"),  # who is here directly names nobody else
        ("127.0.0.1", "2a00:1450:4001:81b::200e", "2a00:1450:4001:81b::/64"),
        ("not an address", "9.9.9.9", ""),
    ],
)
def test_a_visitor_is_who_the_nearest_proxy_says(peer: str, told: str, found: str) -> None:
    headers = [(b"x-forwarded-for", told.encode())] if told else []
    assert visitor({"client": (peer, 1), "headers": headers}) == found


def test_an_allowance_grows_back() -> None:
    now = [0.0]
    allowance = Allowance(2, 60.0, clock=lambda: now[0])
    assert [allowance.take("a") for _ in range(3)] == [0, 0, 30.0]
    now[0] = 30.0
    assert allowance.take("a") == 0 and allowance.take("a") == 30.0
    assert allowance.take("") == allowance.take("b") == 0
    for name in range(20_000):
        allowance.take(str(name))
    assert len(allowance._left) == 10_000


def test_old_and_torn_files_go_and_others_folders_stay(tmp_path: Path) -> None:
    now, root = time.time(), tmp_path / "served"
    place = Served(root, 10**6, keep_s=3600.0, clock=Clock(wall=lambda: now, passed=lambda: now))
    files = {"old": root / ("a" * 64) / "x", "young": root / ("b" * 64) / "x"}
    files |= {"torn": root / "tmpabcd1234", "coming": root / "tmpabcd1235", "other": root / "else" / "x"}
    for name, path in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        if name in ("old", "torn", "other"):
            os.utime(path, (0, 0))
    now = time.time() + 3000
    place.tidy()
    assert {name for name, path in files.items() if path.exists()} == {"old", "young", "other"}  # born a moment ago
    now = time.time() + 4000
    place.tidy()
    assert {name for name, path in files.items() if path.exists()} == {"other"} and not files["old"].parent.exists()


def test_beyond_its_size_the_oldest_files_go(tmp_path: Path) -> None:
    now, root = 0.0, tmp_path / "served"
    place = Served(root, 60_000, keep_s=10**9, clock=Clock(wall=lambda: now, passed=lambda: now))
    for index in range(5):
        path = root / (f"{index}" * 64) / "x"
        path.parent.mkdir()
        path.write_bytes(bytes(10_000))
        time.sleep(0.01)
    now = time.time()
    place.tidy()
    assert len(list(root.rglob("x"))) == 5 and place.room() == 0  # they are young: somebody waits for them
    now = time.time() + 700
    place.tidy()
    assert sorted(path.parent.name[0] for path in root.rglob("x")) == ["2", "3", "4"]


def test_public_limits_are_for_two_cores_and_sixteen_gigabytes() -> None:
    home = Limits()
    weights = PUBLIC.max_models * PUBLIC.max_parameters * 4 * 2  # and a copy for fast single bytes
    disk = PUBLIC.max_uploads_bytes + PUBLIC.max_served_bytes + PUBLIC.max_parked_bytes + PUBLIC.max_runs_bytes
    disk += PUBLIC.max_merges_bytes + PUBLIC.max_fetched_bytes
    said = PUBLIC.max_conversations * PUBLIC.max_said_bytes
    assert weights + PUBLIC.max_state_bytes * 2 + PUBLIC.max_merge_bytes + said + 3e9 < 13e9 and disk < 30e9
    assert PUBLIC.max_prompt_bytes < home.max_prompt_bytes and not PUBLIC.allow_pickle
