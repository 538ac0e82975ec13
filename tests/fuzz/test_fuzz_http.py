"""Whatever is sent to the page over the network, it answers, and goes on to answer others."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from hostile import JUNK, TEXTS, cases, everything, mutated
from hypothesis import given
from hypothesis import strategies as st

from bdh.config import FlatConfig
from bdh.models import build
from ui.limits import Limits
from ui.page import build_page, launch_options

FLAT = FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
API = "/gradio_api"
LIMITS = Limits.from_environment(
    {"BDH_PUBLIC": "1", "BDH_MAX_REQUEST_BYTES": "100000", "BDH_MAX_UPLOAD_BYTES": "50000", "BDH_MAX_WAITING_EACH": "3"}
    | {"BDH_MAX_REQUESTS_EACH": "30", "BDH_MAX_SERVED_BYTES": "50000000", "BDH_MAX_AT_ONCE": "4"}
)


class Served:
    """A page that is served, a client of it, and where it lies."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for seed, name in enumerate(("one", "two")):
            build(FLAT, seed=seed).save_pretrained(home / "checkpoints" / name)
        self.page = build_page(home / "checkpoints", home / "data", LIMITS, "cpu")
        self.page.launch(**launch_options(LIMITS, home / "data"), prevent_thread_lock=True, quiet=True)
        self.http = httpx.Client(base_url=self.page.local_url, timeout=120)
        self.ids = {one.api_name: one._id for one in self.page.fns.values()}

    def answers(self) -> bool:
        client = Client(self.page.local_url, verbose=False, analytics_enabled=False)
        return isinstance(client.predict("hello", max_bytes=5, seed=1, api_name="/generate"), str)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(home / "gradio"))
        made = Served(home)
        before = everything(home / "checkpoints")
        yield made
        made.http.close()
        made.page.close()
        assert everything(home / "checkpoints") == before


def body(served: Served, **changes: Any) -> dict[str, Any]:
    whole = ["hello", "one", 3, 0.5, 0, 1.0, 0.0, 0.0, 0.9, 1, "", True]
    return {"data": whole, "session_hash": "fuzz", "fn_index": served.ids["generate"], **changes}


PATHS = (
    "queue/join",
    "queue/join/",
    "call/generate",
    "call/x",
    "call/v2/chat",
    "cancel",
    "run/chat",
    "reset",
    "upload",
)
MORE = ("component_server", "stream/x", "process_recording", "vibe-edit", "upload_progress", "queue/data", "info")


@cases(200)
@given(st.data())
def test_no_request_breaks_the_page(served: Served, capfd: pytest.CaptureFixture[str], data: Any) -> None:
    sent = json.dumps(body(served)).encode()
    if data.draw(st.booleans()):
        keys = st.sampled_from(["data", "session_hash", "fn_index", "event_id", "event_data", "trigger_id", "x"])
        changes = data.draw(st.dictionaries(keys, JUNK, max_size=3))
        sent = json.dumps(body(served) | changes).encode()
    else:
        sent = data.draw(mutated(sent))
    kind = data.draw(st.sampled_from(["application/json", "multipart/form-data; boundary=x", "text/plain", ""]))
    path = f"{API}/{data.draw(st.sampled_from([*PATHS, *MORE]))}"
    answer = served.http.post(path, content=sent, headers={"content-type": kind})
    assert answer.status_code < 500, (path, sent)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err, printed.err[-3000:]


@cases(60)
@given(TEXTS)
def test_no_address_leads_to_a_file_of_this_machine(served: Served, text: str) -> None:
    for path in ("file=", "file/", "proxy=", "custom_component/", "stream/"):
        address = f"{API}/{path}" + "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "replace"))[:3000]
        assert 400 <= served.http.get(address).status_code < 500
    for path in (served.home / "data" / "browser-key", Path(__file__), "/etc/passwd"):
        assert served.http.get(f"{API}/file={path}").status_code == 403


def test_no_input_names_a_file_of_this_machine_or_lets_it_fetch_an_address(served: Served) -> None:
    asked: list[str] = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    inside = ThreadingHTTPServer(("127.0.0.1", 0), Inside)
    threading.Thread(target=inside.serve_forever, daemon=True).start()
    key = served.home / "data" / "browser-key"
    places = (str(key), "/etc/passwd", f"file://{key}", f"http://127.0.0.1:{inside.server_port}/metadata")
    takes_files = [
        one for one in served.page.fns.values()
        if one.fn is not None and any(isinstance(part, (gr.File, gr.UploadButton)) for part in one.inputs)
    ]  # fmt: skip
    assert len(takes_files) >= 4
    for function in takes_files:
        for place in places:
            file = {"path": place, "url": place, "orig_name": "x.txt", "meta": {"_type": "gradio.FileData"}}
            data = [_value(part, file) for part in function.inputs]
            sent = {"data": data, "fn_index": function._id, "session_hash": "files"}
            served.http.post(f"{API}/queue/join", json=sent).raise_for_status()
            with served.http.stream("GET", f"{API}/queue/data?session_hash=files") as stream:
                told = "".join(stream.iter_text())
            assert '"success":false' in told and "root:" not in told and key.read_text() not in told, function.api_name
    inside.shutdown()
    assert asked == []
    kept = [path for path in (served.home / "gradio").rglob("*") if path.is_file()]
    assert not any(key.read_bytes() in path.read_bytes() or b"root:" in path.read_bytes() for path in kept)


def _value(part: Any, file: dict[str, Any]) -> Any:
    """What a component's value is where all that takes a file gets this one."""
    if isinstance(part, (gr.File, gr.UploadButton)):
        return [file] if part.file_count != "single" else file
    return "A" * 40 if isinstance(part, gr.BrowserState) else getattr(part, "value", None)


def test_the_page_tells_nothing_of_the_machine_and_keeps_no_record_of_what_is_asked(served: Served) -> None:
    told = served.http.get("/config").text + served.http.get("/").text
    assert str(served.home) not in told and str(Path(__file__).parents[2]) not in told
    for closed in ("/monitoring", "/monitoring/summary", f"{API}/monitoring", "/runs"):
        assert served.http.get(closed).status_code in (403, 404), closed


@cases(60)
@given(TEXTS, st.binary(max_size=200))
def test_no_name_of_an_upload_leads_out_of_its_folder(served: Served, name: str, content: bytes) -> None:
    name = name.encode("utf-8", "replace").decode()
    answer = served.http.post(f"{API}/upload", files={"files": (name or "x", content)})
    assert answer.status_code < 500
    if answer.status_code == 200:
        (path,) = (Path(one).resolve() for one in answer.json())
        assert path.is_relative_to((served.home / "gradio").resolve()) and path.read_bytes() == content
    assert {path.name for path in served.home.iterdir()} == {"checkpoints", "data", "gradio"}


@pytest.mark.parametrize("size", [100_001, 5_000_000])
def test_a_request_that_is_too_large_is_refused_in_words(served: Served, size: int) -> None:
    answer = served.http.post(f"{API}/queue/join", json=body(served, event_data="a" * size))
    assert answer.status_code == 413 and "at most 100,000 bytes" in answer.json()["detail"]


def test_what_stands_beside_the_files_of_an_upload_is_short(served: Served) -> None:
    answer = served.http.post(f"{API}/upload", data={"x": "a" * 5_000}, files={"files": ("x", b"x")})
    assert answer.status_code == 400 and "beside the files" in answer.text


def test_one_visitor_does_not_fill_the_queue_for_others(served: Served) -> None:
    stranger = {"x-forwarded-for": "9.9.9.9"}
    long = body(served)
    long["data"] = [*long["data"][:2], 10_000, *long["data"][3:]]
    codes = [
        served.http.post(f"{API}/queue/join", json=long | {"session_hash": f"s{one}"}, headers=stranger).status_code
        for one in range(5)
    ]
    assert codes == [200, 503, 503, 503, 503]  # a quarter of what is written at once
    assert served.answers()


def test_requests_of_a_visitor_in_a_minute_are_counted(served: Served) -> None:
    stranger = {"x-forwarded-for": "9.9.9.8"}
    codes = [served.http.get(f"{API}/startup-events", headers=stranger).status_code for _ in range(40)]
    assert codes[:30] == [200] * 30 and 429 in codes[30:]


def test_an_answer_belongs_to_its_session(served: Served) -> None:
    """What others must not read or stop is reached by names that cannot be guessed, and not listed anywhere."""
    event = served.http.post(f"{API}/queue/join", json=body(served, session_hash="mine")).json()["event_id"]
    assert len(event) == 32
    stopped = {"session_hash": "other", "fn_index": served.ids["generate"], "event_id": "0" * 32}
    assert served.http.post(f"{API}/cancel", json=stopped).json() == {"success": True}
    with served.http.stream("GET", f"{API}/queue/data?session_hash=mine") as stream:
        told = "".join(stream.iter_text())
    assert "process_completed" in told and '"success":true' in told
    for listed in ("config", "info", "queue/status", "startup-events"):
        text = served.http.get(f"{API}/{listed}" if listed != "config" else "/config").text
        assert event not in text and '"mine"' not in text


def test_readers_that_never_read_leave_the_page_answering(served: Served) -> None:
    streams = [threading.Thread(target=unread, args=(served, f"reader-{one}"), daemon=True) for one in range(20)]
    for one in streams:
        one.start()
    begun = time.monotonic()
    assert served.answers() and time.monotonic() - begun < 60


def unread(served: Served, session: str) -> None:
    with httpx.Client(base_url=served.page.local_url, timeout=120) as http:
        http.post(f"{API}/queue/join", json=body(served, session_hash=session))
        with http.stream("GET", f"{API}/queue/data?session_hash={session}"):
            time.sleep(2)
