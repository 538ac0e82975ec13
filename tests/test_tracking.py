"""Runs shown in trackio, whose place is taken by a module that notes what it is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import LoggerType
from test_train import fields, toml
from test_train import text as text

from train.__main__ import main

TRACKIO = """
import json, types

config = {}

def note(*told):
    if told[0] != "log":
        print("trackio says something")
    with open(FILE, "a") as file:
        file.write(json.dumps(told) + "\\n")

def init(project, **options):
    if "/" in project:
        raise ValueError("project names have no slashes")
    note("init", project, options)
    return types.SimpleNamespace(log=lambda values, step: note("log", step, values))

def finish():
    note("finish", config.pop("steps"))
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the calls are noted."""
    file = tmp_path / "told.jsonl"
    (tmp_path / "trackio.py").write_text(f"FILE = {str(file)!r}\n{TRACKIO}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TRACKIO])
    yield file
    sys.modules.pop("trackio", None)


def test_reports_go_to_the_project_and_a_resumed_run_goes_on(
    text: Path, tmp_path: Path, told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = toml(tmp_path / "tiny.toml", fields(text, activity=0.2)), tmp_path / "out"
    arguments = [str(recipe), "--out", str(out), "--track", "mine", "--json"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    *reports, _ = [json.loads(line) for line in printed.out.splitlines()]
    assert "trackio says something" in printed.err
    calls: list[Any] = [json.loads(line) for line in told.read_text().splitlines()]
    assert calls[0] == ["init", "mine", {"name": out.as_posix(), "resume": "never"}]
    assert [call[:2] for call in calls[1:-1]] == [["log", 6], ["log", 12]]
    assert calls[-1] == ["finish", 12]
    values = calls[2][2]
    assert values["validation/rhyme"] == reports[1]["validation"]["rhyme"]
    assert values["active/x_sparse"] == reports[1]["active"]["x_sparse"]
    for name in ("bits_per_byte", "learning_rate", "bytes_per_s", "penalty_weight", "heard_bytes"):
        assert values[name] == reports[1][name]
    told.unlink()
    assert main([*arguments, "steps=18", "--resume"]) == 0
    calls = [json.loads(line) for line in told.read_text().splitlines()]
    assert calls[0] == ["init", "mine", {"name": out.as_posix(), "resume": "allow"}]
    assert [call[:2] for call in calls[1:-1]] == [["log", 18]]


def test_what_trackio_refuses_is_said_in_words(
    text: Path, tmp_path: Path, told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toml(tmp_path / "tiny.toml", fields(text))
    assert main([str(recipe), "--out", str(tmp_path / "out"), "--track", "a/b", "--quiet"]) == 2
    assert "project 'a/b': project names have no slashes" in capsys.readouterr().err


def test_without_trackio_the_run_is_refused_before_anything_is_written(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = toml(tmp_path / "tiny.toml", fields(text))
    assert main([str(recipe), "--out", str(tmp_path / "out"), "--track", "mine"]) == 2
    assert "pip install trackio" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_project_trackio_is_not_even_imported(text: Path, tmp_path: Path, told: Path) -> None:
    recipe = toml(tmp_path / "tiny.toml", fields(text))
    assert main([str(recipe), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "trackio" not in sys.modules and not told.exists()
