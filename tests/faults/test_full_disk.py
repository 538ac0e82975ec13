"""The real app on a disk that fills up: it says so in words, leaves nothing half written, and goes on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from browsing import FLAT, settle_in, started
from visitor import Told, Visitor, until

from bdh.models import build

BROKEN = Path(__file__).parent / "broken"
TEXT = "Ana y Luis van al mercado. Compran pan, queso y vino. " * 400
LONG_RUN = {"train_amount": 4_000, "train_budget": "steps", "Rows": 1, "Chunk": 32}
BYTES = 16_000_000


class Disk:
    """A small disk of the app's own, or a pretended one where none may be mounted."""

    def __init__(self, home: Path) -> None:
        self.home, self.place = home, home / "disk"
        self._pid = 0
        self.place.mkdir()
        self.within: list[str] = []
        mounting = f'mount -t tmpfs -o size={BYTES} tmpfs "{self.place}" && exec "$0" "$@"'
        for how in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
            command = [*how, "sh", "-c", mounting]
            try:
                if subprocess.run([*command, "true"], capture_output=True, timeout=20).returncode == 0:
                    self.within = command
                    break
            except OSError:
                continue

    @property
    def seen(self) -> Path:
        """The disk as the app sees it."""
        if not self.within:
            return self.place
        if not self._pid:
            found = psutil.process_iter(["cmdline", "cwd"])
            mine = [one for one in found if one.info["cwd"] == str(self.home)]
            (self._pid,) = (one.pid for one in mine if "app.py" in (one.info["cmdline"] or ()))
        return Path(f"/proc/{self._pid}/root{self.place}")

    def fill(self) -> None:
        if not self.within:
            (self.home / "faults" / "full").write_text(str(self.place))
            return
        with (self.seen / "fill").open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        (self.home / "faults" / "full" if not self.within else self.seen / "fill").unlink(missing_ok=True)

    def files(self) -> set[str]:
        """What lies on it, but for what changes by itself."""
        data = self.seen / "data"
        found = {path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()}
        return {name for name in found if not name.startswith("parked/")}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    home = tmp_path_factory.mktemp("full")
    settle_in(home)
    (home / "faults").mkdir()
    (home / "faults" / "roomy").touch()  # there is room whenever it is asked for, and none when it is written
    yield Disk(home)


@pytest.fixture(scope="module")
def me(disk: Disk) -> Iterator[Visitor]:
    environment = {
        "PYTHONPATH": str(BROKEN),
        "FAULTS": str(disk.home / "faults"),
        "FAULTS_PATCH_FILES": "" if disk.within else "yes",
        "BDH_DATA": str(disk.place / "data"),
        "GRADIO_TEMP_DIR": str(disk.place / "tmp"),
    }
    with started(disk.home, within=disk.within, **environment) as url:
        try:
            yield Visitor(url, "m" * 40)
        finally:
            for path in (disk.seen / "data" / "runs").glob("*/job.json"):
                pid = json.loads(path.read_text())["pid"]
                if pid and psutil.pid_exists(pid):
                    psutil.Process(pid).kill()


def test_what_a_full_disk_refuses_is_said_in_words_leaves_nothing_and_works_when_there_is_room(
    disk: Disk, me: Visitor, record_property: pytest.RecordProperty
) -> None:
    record_property("disk", "mounted" if disk.within else "pretended: no small disk may be mounted here")
    folder = build(FLAT, seed=5).save_pretrained(disk.home / "made")
    files = me.send(folder / "model.safetensors", folder / "config.json")
    me.say("beta", "hello")
    me.press("train-start", train_base="beta", train_pasted=TEXT, **LONG_RUN)
    (run,) = until(lambda: list((disk.seen / "data" / "runs").glob("*/run")), "no run began")
    until(lambda: (run / "run.pt").is_file(), "the run saved nothing")
    before = disk.files()
    asked = {
        "models-add": {"models_files": files},
        "merge-go": {"merge_parents": ["alpha", "beta"], "merge_method": "average-logits"},
        "memory-save": {"chat_model": "beta"},
        "train-start": {"train_base": "beta", "train_pasted": TEXT, **LONG_RUN},
    }
    disk.fill()
    failures = {}
    for what, values in asked.items():
        with pytest.raises(Told) as told:
            me.press(what, **values)
        failures[what] = str(told.value)
    # Where not even its log takes a word, there is no more to say of the run than that it ended.
    said = me.run_says("It failed", "Interrupted")
    assert "what was saved before is kept: make room and go on" in said or "or disk ran out" in said, said
    me.say("beta", "still there?")  # what needs no disk goes on
    assert [text for text, _ in me.conversation("beta")[0]] == ["hello", "still there?"]
    full = ("the disk of this machine is full; delete what you do not need", "no space left", "could not be written")
    assert all(any(one in said for one in full) for said in failures.values()), failures
    changed = disk.files() ^ before
    assert {name for name in changed if not name.startswith(f"runs/{run.parent.name}/")} <= {"fill"}
    assert not [name for name in disk.files() if name.endswith(".new") or ".checkpoint." in name]
    disk.free()

    me.press("runs-resume", runs_run=run.parent.name)
    me.run_says("Training: step")
    me.press("runs-stop", runs_run=run.parent.name)
    me.run_says("Stopped after")
    for what in ("models-add", "merge-go", "memory-save"):
        me.press(what, **asked[what])
    assert len([id for id in me.models() if id not in ("alpha", "beta")]) == 2
    noted = until(lambda: list((disk.seen / "data" / "parked").glob("*.json")), "the conversation is not noted")
    until(lambda: any("still there?" in path.read_text() for path in noted), "the last turn is not noted")
    assert os.stat(disk.seen / "data").st_mode & 0o777 == 0o700
