"""The real app is killed in the middle of all that it does, started again, and met by faults of its surroundings.

One life of the app ends in the `killed` fixture; the tests look, in their order, at what the next one finds.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from browsing import settle_in, started
from hub_server import Hub, serve
from visitor import Told, Visitor, until

from bdh.config import FlatConfig
from bdh.models import build

BROKEN = Path(__file__).parent / "broken"
TEXT = "Ana y Luis van al mercado. Compran pan, queso y vino. " * 400
YEARS = 5 * 365 * 86_400
HALF_AN_UPLOAD = (
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; name="files"; filename="half.txt"\r\n\r\n' + b"half" * 50_000
)
LONG_RUN = {"train_amount": 4_000, "train_budget": "steps", "Rows": 1, "Chunk": 32}
SLOWLY = "0.3"
WIDE = FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8)


@dataclass
class Machine:
    """Where the app lives, and what can be broken there."""

    home: Path
    hub: Hub
    told: dict[str, Any] = field(default_factory=dict)
    """What the app said and held before it was killed."""

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def temporary(self) -> list[Path]:
        return [path for path in (self.home / "tmp").rglob("*") if path.is_file()]

    @property
    def half_written(self) -> list[Path]:
        """What lies about that is nothing yet, or nothing any more."""
        marks = (".new", ".gone", ".incomplete", ".tmp", ".old")
        found = [path for path in self.data.rglob("*") if path.suffix in marks or ".checkpoint." in path.name]
        found += self.data.glob("runs/*/job.json.*")
        return found + [path for path in self.data.glob("uploads/*") if not (path / "upload.json").is_file()]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(BROKEN),
            "FAULTS": str(self.home / "faults"),
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN": "hf_writer",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "BDH_RUNS_HOURS": "48",
            "BDH_UPLOADS_HOURS": "48",
        }

    def breaks(self, what: str, how: str = "") -> None:
        (self.home / "faults" / what).write_text(how)

    def mend(self) -> None:
        for path in (self.home / "faults").iterdir():
            if path.name != "pace":
                path.unlink()

    def made(self, name: str) -> list[Path]:
        """A small model's files."""
        folder = self.home / "made" / name
        if not folder.exists():
            build(WIDE, seed=len(name)).save_pretrained(folder)
        return [folder / "model.safetensors", folder / "config.json"]

    def job(self) -> dict[str, Any]:
        (path,) = self.data.glob("runs/*/job.json")
        return dict(json.loads(path.read_text()))

    def run(self, name: str = "") -> Path:
        (path,) = self.data.glob("runs/*/job.json")
        return path.parent / "run" / name


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    home = tmp_path_factory.mktemp("killed")
    settle_in(home)
    (home / "faults").mkdir()
    with serve() as hub:
        machine = Machine(home, hub)
        yield machine
    for path in machine.data.glob("runs/*/job.json"):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(json.loads(path.read_text())["pid"]).kill()


def begun(work: Callable[..., Any], *given: Any, **named: Any) -> None:
    """Let a visitor ask for something whose answer never comes."""

    def ask() -> None:
        with suppress(Exception):
            work(*given, **named)

    threading.Thread(target=ask, daemon=True).start()


def waits_for_the_kill(machine: Machine) -> None:
    """Wait until everything is under way."""
    until(lambda: list(machine.data.glob("merges/*.new")), "no merge began")
    until(lambda: len(list(machine.data.glob("uploads/*"))) == 2, "no upload began")
    until(lambda: any(request.method == "POST" for request in machine.hub.requests), "no publishing began")
    until(lambda: any(path.stat().st_size > 100_000 for path in machine.temporary), "no file is on its way")


@pytest.fixture(scope="module")
def killed(machine: Machine) -> Iterator[str]:
    """The app after the one that was killed during chat, upload, training, merge and publishing."""
    with started(machine.home, leave_runs=True, **machine.environment) as url:
        mine, other = Visitor(url, "m" * 40), Visitor(url, "o" * 40)
        mine.press("models-add", models_files=mine.send(*machine.made("mine")))
        machine.told["upload"] = next(id for id in mine.models() if id.startswith("model-"))
        for text in ("hello", "and you?"):
            mine.say("beta", text)
        mine.press("merge-go", merge_parents=["beta", machine.told["upload"]])
        machine.told["merged"] = next(id for id in mine.models() if "beta" in id and id != "beta")
        mine.press("train-start", train_base="beta", train_pasted=TEXT, **LONG_RUN)
        until(lambda: machine.run("run.pt").is_file(), "the run saved nothing")
        machine.breaks("pace", SLOWLY)
        until(lambda: list(machine.data.glob("parked/*.json")), "the conversation was not noted")
        machine.told["conversation"] = mine.conversation("beta")[0]
        merging, publishing, adding = Visitor(url, mine.secret), Visitor(url, mine.secret), Visitor(url, "o" * 40)
        merging.models()
        sent = adding.send(*machine.made("theirs"))
        machine.breaks("slow")  # from here on nothing comes to its end
        machine.hub.delay_s = 1.0
        begun(other.say, "alpha", "endless")
        begun(adding.press, "models-add", models_files=sent)
        begun(merging.press, "merge-go", merge_parents=["beta", machine.told["upload"]])
        begun(publish_merge, publishing, machine)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as half_sent:
            half_sent.sendall(HALF_AN_UPLOAD)
            waits_for_the_kill(machine)
        machine.told["half written"] = machine.half_written
        machine.told["temporary"] = machine.temporary
    machine.mend()
    machine.hub.delay_s = 0.0
    with started(machine.home, **machine.environment) as url:
        yield url


def publish_merge(who: Visitor, machine: Machine) -> dict[str, Any]:
    (kept,) = machine.data.glob("merges/????????????????")
    return who.press("merge-push", merge_repo="me/mine", merge_chosen=kept.name)


@pytest.fixture
def me(killed: str) -> Visitor:
    return Visitor(killed, "m" * 40)


@pytest.fixture
def stranger(killed: str) -> Visitor:
    return Visitor(killed, "s" * 40)


def test_nothing_half_written_is_left_after_the_start(machine: Machine, me: Visitor) -> None:
    assert machine.told["half written"] and machine.told["temporary"]
    assert machine.half_written == [] and machine.temporary == []


def test_uploads_and_merged_models_are_found_again_by_their_owner_alone(
    machine: Machine, me: Visitor, stranger: Visitor
) -> None:
    assert {machine.told["upload"], machine.told["merged"]} <= set(me.models())
    assert stranger.models() == ["alpha", "beta"]
    me.say(machine.told["upload"], "hello")
    assert len(me.conversation(machine.told["upload"])[0]) == 1


def test_the_conversation_comes_back_and_goes_on(machine: Machine, me: Visitor, stranger: Visitor) -> None:
    before, status = me.conversation("beta")
    assert before == machine.told["conversation"] and len(before) == 2
    assert "was put aside" in status
    assert stranger.conversation("beta")[0] == []
    me.say("beta", "still there?")
    after, status = me.conversation("beta")
    assert after[:2] == before and after[2][0] == "still there?" and "bytes heard" in status


def test_the_run_went_on_without_the_app_and_killed_itself_it_goes_on_when_asked(machine: Machine, me: Visitor) -> None:
    me.run_says("Training: step")
    process = psutil.Process(machine.job()["pid"])
    process.kill()
    said = me.run_says("Interrupted")
    assert "its process ended without a word: the machine was restarted, or memory or disk ran out" in said
    id = machine.run().parent.name
    steps = len(machine.run("metrics.jsonl").read_text().splitlines())
    until(lambda: machine.half_written == [], "what the killed run left half written stays")
    machine.breaks("pace", "0.02")
    me.press("runs-resume", runs_run=id)
    until(lambda: len(machine.run("metrics.jsonl").read_text().splitlines()) > steps + 1, "it did not go on")
    machine.breaks("pace", SLOWLY)


def test_what_was_being_published_can_be_published_again_and_is_whole(machine: Machine, me: Visitor) -> None:
    told = publish_merge(me, machine)
    assert "Published: [me/mine]" in str(told)
    repo = machine.hub.repos["me/mine"]
    assert set(repo.commits[repo.refs["main"]]) >= {"config.json", "model.safetensors", "README.md"}


def test_a_second_app_on_the_folder_is_refused_in_words_and_touches_nothing(machine: Machine, me: Visitor) -> None:
    environment = os.environ | machine.environment | {"BDH_DATA": str(machine.data), "GRADIO_SERVER_PORT": "1"}
    second = subprocess.run(
        [sys.executable, "app.py"], cwd=machine.home, env=environment, capture_output=True, text=True, timeout=300
    )
    assert second.returncode == 1 and "Traceback" not in second.stderr
    assert "error: another app is using the data folder" in second.stderr
    assert "BDH_DATA=FOLDER python app.py" in second.stderr
    assert machine.told["upload"] in me.models()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"gone": True}, "the Hub cannot be reached"),
        ({"delay_s": 3.0}, "the Hub cannot be reached"),
        ({"status": 429}, "the Hub asks for patience after too many requests; try again in some minutes"),
        ({"status": 503}, "the Hub answers with error 503; try again later"),
        ({"cut_after": [0] * 50}, "the connection was cut after"),
        ({"corrupt": True}, "was damaged on its way from the Hub; try again"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_hub_that_fails_is_told_in_words_and_the_next_try_succeeds(
    machine: Machine, stranger: Visitor, fault: dict[str, Any], said: str
) -> None:
    name = f"user/repo-{len(machine.hub.repos)}"
    files = {path.name: path.read_bytes() for path in machine.made("a-longer-name")}
    machine.hub.add(name, files)
    usual = {switch: getattr(machine.hub, switch) for switch in fault}
    for switch, value in fault.items():
        setattr(machine.hub, switch, value)
    try:
        with pytest.raises(Told) as told:
            stranger.call("load", name)
    finally:
        for switch, value in usual.items():
            setattr(machine.hub, switch, type(value)() if switch == "cut_after" else value)
    assert said in str(told.value) and "Traceback" not in str(told.value)
    stranger.call("load", name)
    assert name in stranger.models()


@pytest.mark.parametrize("whose", ["gpu", "host"])
def test_memory_that_runs_out_is_told_in_words_and_tears_nothing(machine: Machine, me: Visitor, whose: str) -> None:
    before = me.conversation("beta")[0]
    if "It failed" in me.press("tab-train", "select")["runs-status"]:  # where memory ran out before
        me.press("runs-resume", runs_run=machine.run().parent.name)
    me.run_says("Training: step")
    machine.breaks("memory", whose)
    try:
        with pytest.raises(Told, match="the memory of this machine does not suffice"):
            me.say("beta", "too much")
        said = me.run_says("It failed")
        assert "memory ran out; what was saved last is kept" in said and "Error" not in said
        assert (machine.run("best") / "model.safetensors").is_file()
    finally:
        machine.mend()
    me.say("beta", "again")
    after = [message for message, _ in me.conversation("beta")[0]]
    assert after[: len(before)] == [message for message, _ in before] and after[-1] == "again"


@pytest.mark.parametrize("by", [YEARS, -YEARS])
def test_a_clock_that_is_set_by_years_deletes_and_delays_nothing(machine: Machine, me: Visitor, by: int) -> None:
    seen = machine.data / "layout"
    machine.breaks("clock", str(by))
    try:
        for _ in range(2):  # everything was looked at twice
            last = seen.stat().st_mtime_ns
            until(lambda last=last: seen.stat().st_mtime_ns != last, "nobody looks after the folder any more")
        begun_at = time.monotonic()
        assert {machine.told["upload"], machine.told["merged"]} <= set(me.models())
        assert len(me.conversation("beta")[0]) >= 3
        assert "step" in me.press("tab-train", "select")["runs-status"]
        assert time.monotonic() - begun_at < 120
    finally:
        machine.mend()
