"""The data folder: one app's alone, of a known layout, and kept tidy; a clock that is set makes nothing old."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

import bdh
from bdh.config import FlatConfig
from bdh.errors import DataError
from train.clock import Clock
from ui import data_folder, served
from ui.data_folder import expire_temporary, last_seen, take
from ui.limits import Limits
from ui.registry import Registry
from ui.served import Served

YEARS = 5 * 365 * 86_400.0
ME, OTHER = "browser:me", "browser:other"


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    monkeypatch.setattr(data_folder, "_PATIENCE_S", 0.1)
    yield
    for lock in data_folder._held.values():
        lock.release()
    data_folder._held.clear()


class Set:
    """A machine's clock that can be set, and the time that passes."""

    def __init__(self) -> None:
        self.wall, self.passed = 1_800_000_000.0, 500.0

    def clock(self, last_seen: float | None = None) -> Clock:
        return Clock(last_seen, wall=lambda: self.wall, passed=lambda: self.passed)

    def go(self, seconds: float, *, set_by: float = 0.0) -> None:
        self.passed += seconds
        self.wall += seconds + set_by


def test_a_new_folder_gets_a_layout_and_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    take(tmp_path / "data")
    assert (tmp_path / "data" / "layout").read_text() == "1\n"
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    take(tmp_path / "data")  # again, by the same process


def test_a_folder_from_before_layouts_keeps_runs_and_merges_and_loses_what_nobody_could_claim(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("runs/0123456789abcdef", "merges/0123456789abcdef", "uploads/0123456789abcdef", "parked"):
        (data / name).mkdir(parents=True)
    (data / "browser-key").write_text("secret")
    take(data)
    assert sorted(path.name for path in data.iterdir()) == [".lock", "browser-key", "layout", "merges", "runs"]
    assert (data / "runs" / "0123456789abcdef").is_dir() and (data / "browser-key").read_text() == "secret"


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("2", "has layout 2, and this version knows layout 1: bring the hatchery up to date"),
        ("0", "says '0', which is no layout"),
        ("", "says '', which is no layout"),
        ("\u00b2", "which is no layout"),
    ],
)
def test_a_layout_that_is_not_known_is_refused_with_the_way_out_and_nothing_is_touched(
    tmp_path: Path, layout: str, said: str
) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "layout").write_text(layout)
    with pytest.raises(DataError, match=said) as refused:
        take(tmp_path)
    assert "BDH_DATA=FOLDER" in str(refused.value)
    assert (tmp_path / "uploads").is_dir() and (tmp_path / "layout").read_text() == layout


@pytest.mark.parametrize("names", [["uploads"], ["browser-key", "letters"], ["thesis.txt"]])
def test_a_folder_of_something_else_is_refused_before_anything_in_it_is_deleted(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "mine").touch()
    with pytest.raises(DataError, match=r"is no data folder of the hatchery.*BDH_DATA=FOLDER"):
        take(tmp_path / "home")
    assert all((tmp_path / "home" / name / "mine").is_file() for name in names)


def test_a_file_in_the_folders_place_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match=r"cannot be used .*File exists"):
        take(tmp_path / "data")


def test_a_second_app_is_refused_as_long_as_the_first_holds_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / ".lock"):  # as a first one does
        with pytest.raises(DataError, match=r"another app is using the data folder .*BDH_DATA=FOLDER python app.py"):
            take(tmp_path / "data")
        assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]
    take(tmp_path / "data")


def test_temporary_files_lie_in_a_folder_of_the_apps_own_which_is_emptied_at_the_start_and_by_age(
    tmp_path: Path,
) -> None:
    above = tmp_path / "tmp"
    (above / "anothers").mkdir(parents=True)
    take(tmp_path / "data")
    own = Path(os.environ["GRADIO_TEMP_DIR"]).parent
    assert own.parent == above and own.stat().st_mode & 0o777 == 0o700
    served = Path(tempfile.mkdtemp(prefix="specialist-")) / "model.zip"
    sent = own / "made" / "0abc" / "mine.txt"
    sent.parent.mkdir()
    for path in (served, sent):
        path.touch()
    for path in (sent, sent.parent):  # the folder goes when it was empty for as long
        os.utime(path, (time.time() - 7_200,) * 2)
        expire_temporary(3_600, Clock())
        assert served.is_file() and not path.exists() and own.is_dir()
    take(tmp_path / "data")
    assert served.is_file(), "taken twice by one process"
    tempfile.tempdir = None  # the app after this one, which may have the variable of this one
    take(tmp_path / "data")
    assert sorted(path.relative_to(above).as_posix() for path in above.rglob("*")) == [
        "anothers", own.name, f"{own.name}/gradio", f"{own.name}/made"
    ]  # fmt: skip


def test_a_temporary_folder_that_somebody_else_put_there_is_not_taken(tmp_path: Path) -> None:
    take(tmp_path / "data")
    own = Path(os.environ["GRADIO_TEMP_DIR"]).parent
    for left in own.iterdir():
        left.rmdir()
    own.rmdir()
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "mine").touch()
    own.symlink_to(tmp_path / "trap")
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path / "tmp")
    take(tmp_path / "data")
    assert (tmp_path / "trap" / "mine").is_file()
    assert Path(os.environ["GRADIO_TEMP_DIR"]).resolve().parent != (tmp_path / "trap")


def test_temporary_files_of_a_process_that_took_no_folder_are_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "tmp" / "kept"
    kept.parent.mkdir()
    kept.touch()
    os.utime(kept, (0, 0))
    expire_temporary(1, Clock())
    assert kept.is_file()


@pytest.mark.parametrize("set_by", [YEARS, -YEARS, 7_200.0, -7_200.0])
def test_a_clock_that_is_set_makes_nothing_old_and_time_that_passes_does(set_by: float) -> None:
    machine = Set()
    clock, before = machine.clock(), machine.wall
    machine.go(60)
    assert clock.age(before) == pytest.approx(60)
    machine.go(60, set_by=set_by)
    after = machine.wall
    assert clock.age(before) <= 120 and clock.age(after) == 0
    machine.go(86_400)
    assert clock.age(after) == pytest.approx(86_400)
    # What is older than the clock was set back by may be taken for younger, never for older.
    assert 86_400 - 7_200 <= clock.age(before) <= 86_520
    machine.go(0, set_by=-set_by)
    assert clock.age(before) <= 86_520 and clock.age(machine.wall) == 0


def test_a_clock_that_drifts_is_followed() -> None:
    machine = Set()
    clock, before = machine.clock(), machine.wall
    for _ in range(1_000):
        machine.go(60, set_by=0.5)
        clock.age(before)
    assert clock.age(before) == pytest.approx(60_500)


def test_a_start_after_years_counts_a_day_of_them() -> None:
    machine = Set()
    before = machine.wall
    machine.go(3_600)
    seen = machine.wall
    machine.go(10, set_by=YEARS)
    clock = machine.clock(seen)
    assert clock.age(before) == pytest.approx(90_000, abs=20)
    assert clock.age(machine.wall) == 0
    machine.go(3_600)
    assert clock.age(before) == pytest.approx(93_600, abs=20)
    assert machine.clock(machine.wall).age(machine.wall - 7_200) == 7_200


def test_a_file_from_the_future_is_old_when_its_time_is_over(tmp_path: Path) -> None:
    path, later = tmp_path / "note", time.time() + YEARS
    path.touch()
    os.utime(path, (later, later))
    assert Clock().file_age(path) == 0
    assert abs(path.stat().st_mtime - time.time()) < 60


def test_a_folder_says_when_it_was_looked_after(tmp_path: Path) -> None:
    assert last_seen(tmp_path / "data") is None
    take(tmp_path / "data")
    os.utime(tmp_path / "data" / "layout", (1.0, 1.0))
    assert last_seen(tmp_path / "data") == 1.0
    done: list[str] = []

    def fail() -> None:
        raise OSError(28, "No space left on device")

    data_folder.keep_tidy(tmp_path / "data", [fail, lambda: done.append("done")])
    deadline = time.monotonic() + 120
    while last_seen(tmp_path / "data") == 1.0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert done == ["done"]


def test_times_of_deletion_under_a_second_wear_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    class Over(BaseException):
        """Ends the looking after."""

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        raise Over

    looks: list[Callable[[], None]] = []
    started = SimpleNamespace(Thread=lambda target, **_: SimpleNamespace(start=lambda: looks.append(target)))
    take(tmp_path / "data")
    monkeypatch.setattr(data_folder, "threading", started)
    monkeypatch.setattr(data_folder, "time", SimpleNamespace(sleep=sleep))
    for within_s in (1e-9, 0.5, 3.0, 7_200.0, float("inf")):
        data_folder.keep_tidy(tmp_path / "data", [], within_s)
        with pytest.raises(Over):
            looks[-1]()
    assert slept == [1.0, 1.0, 3.0, 15.0, 15.0]

    passed = 500.0
    monkeypatch.setattr(served, "time", SimpleNamespace(monotonic=lambda: passed))
    for keep_s, pause_s in ((1e-9, 1.0), (5.0, 5.0), (7_200.0, 20.0)):
        kept = Served(tmp_path / "gradio", 10**6, keep_s)
        assert kept.due
        kept.tidy()
        passed += pause_s
        assert not kept.due
        passed += 0.001
        assert kept.due


def test_a_folder_that_is_away_for_a_while_is_looked_after_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_folder, "_TIDY_S", 0.01)
    data, away, looked = tmp_path / "data", tmp_path / "away", [0]

    def look() -> None:
        looked[0] += 1

    def until(held: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not held():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    take(data)
    data_folder.keep_tidy(data, [look])
    until(lambda: looked[0] > 0)
    data.rename(away)
    time.sleep(0.1)  # what was under way is done
    seen = looked[0]
    time.sleep(0.1)
    assert looked[0] == seen and not data.exists()
    away.rename(data)
    until(lambda: looked[0] > seen)


def test_an_upload_is_found_again_by_its_owner_and_deleted_when_its_time_is_over(tmp_path: Path) -> None:
    take(tmp_path / "data")
    config = FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
    folder = bdh.build(config, seed=3).save_pretrained(tmp_path / "made")
    files = [str(folder / name) for name in ("model.safetensors", "config.json")]

    def start(hours: int = 48) -> Registry:
        return Registry(tmp_path / "none", tmp_path / "data", Limits(uploads_hours=hours), "cpu")

    first = start()
    mine, theirs = first.load_files(files, ME), first.load_files(files, OTHER)
    (tmp_path / "data" / "uploads" / "half").mkdir()
    again = start()
    assert not (tmp_path / "data" / "uploads" / "half").exists()
    assert [entry.id for entry in again.entries(ME)] == [mine]
    with again.lease(mine, ME) as model:
        assert model.parameter_count() == first.entries(OTHER)[0].parameters
    assert [entry.source for entry in again.entries(OTHER)] == ["uploaded"]
    assert again.unload(theirs, OTHER) == f"{theirs} was deleted."
    assert again.entries(OTHER) == [] and len(list((tmp_path / "data" / "uploads").iterdir())) == 1

    (note,) = (tmp_path / "data" / "uploads").glob("*/upload.json")
    os.utime(note, (time.time() - 7_200,) * 2)
    later = start(hours=1)
    with later.lease(mine, ME):
        later.expire()
        assert note.is_file()  # somebody hears it
    later.expire()
    assert not note.parent.exists() and later.entries(ME) == []
    unclaimed = start(hours=1)
    assert unclaimed.entries(ME) == []
