from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import listening, load, serve, start, train


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ],
)
def test_a_training_step_is_timed_in_a_process_of_its_own(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n-layer": 1, "n-embd": 8, "n-head": 2, "mult": 4, "rows": 2, "chunk-bytes": 16}
    how = {"device": device, "precisions": "float32", "modes": "eager", "rounds": 2, "steps": 1, "threads": 1}
    assert train.main(["--json", *(f"--{name}={value}" for name, value in (sizes | how).items())]) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = result["rows"]
    assert (row["precision"], row["what"]) == ("float32", "ours, eager")
    assert row["bytes_per_s"] > 0 and (50 if device == "cpu" else 0) <= row["peak_memory_mb"] < 4000
    assert ("device" in result) == (device == "cuda")
    # Weights that know nothing yet: eight bits a byte.
    assert row["first_bits_per_byte"] == pytest.approx(8.0, abs=0.1)


def test_single_bytes_are_timed_on_weights_that_fire_as_rarely_as_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = ["decode", "flat-1m", "--active", "0.05", "--contexts", "64", "--rounds", "1", "--threads", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *how])
    assert benchmarks.main() == 0
    result = json.loads(capsys.readouterr().out)
    assert result["x_active"] == pytest.approx(0.05, abs=0.01)
    (row,) = result["rows"]
    assert row["step_bytes_per_s"] > 0 and row["largest_difference"] < 1e-4


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """One app for both tests of listeners: to start it takes longer than what they do."""
    short = {"GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("served")), "BDH_SERVED_HOURS": "0.001"}
    with start.serving(listening.limits(3) | short) as app:
        yield app


def test_the_page_on_the_shipped_checkpoints_starts_and_is_timed(
    served: tuple[int, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "serving", lambda environment: nullcontext(served))
    assert start.main(["--rounds", "1", "--json"]) == 0
    imported, answered = json.loads(capsys.readouterr().out)["rows"]
    assert 0 < imported["seconds"] < 120 and answered["what"] == "page served" and answered["seconds"] >= 0
    assert 100 < answered["memory_mb"] < 4000


def test_listeners_get_their_own_bytes_from_a_server_that_serves_them_together_or_in_turn(
    served: tuple[int, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(serve, "serving", lambda limits: asked.append(limits["BDH_MAX_AT_ONCE"]) or nullcontext(served))
    assert serve.main(["--listeners", "1", "3", "--bytes", "12", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert asked == ["3", "1"]
    assert [(row["served"], row["listeners"]) for row in rows] == [
        ("together", 1),
        ("together", 3),
        ("one at a time", 1),
        ("one at a time", 3),
    ]
    assert all(row["bytes_per_s"] > 0 and 0 < row["first_byte_s"] <= row["worst_first_byte_s"] for row in rows)


def test_listeners_who_stop_leave_and_reload_hear_their_own_bytes_and_leave_no_files(
    served: tuple[int, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(load, "serving", lambda limits: asked.append(limits) or nullcontext(served))
    assert serve.main(["--listeners", "6", "--bytes", "12", "--minutes", "0.05", "--json"]) == 0
    last = json.loads(capsys.readouterr().out)["rows"][-1]
    assert float(asked[0]["BDH_SERVED_HOURS"]) == pytest.approx(0.05 / 60 / 4, rel=0.01)
    assert last["answers"] > 0 and last["bytes"] > 0
    assert last["files_sent"] > 0 and last["temporary_files"] == 0 and last["files_gone_after_s"] > 0
    assert 100 < last["memory_mb"] < 4000


def test_files_that_stay_end_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_SLACK_S", 0.0)
    (tmp_path / "left").touch()
    with pytest.raises(SystemExit, match=r"1 temporary files stay, such as .*left, though 0 s are over"):
        asyncio.run(load._gone(tmp_path, 0.0))


def test_a_listener_who_hears_what_another_should_ends_the_benchmark() -> None:
    expected = {("chat", 0): "a river", ("chat", 1): "a bank"}
    run = load.Load("", psutil.Process(), Path(), "", 9, expected, {}, 0.0)
    run.judge(listening.Heard("a river", whole=True), "chat", 0, "hears")
    run.judge(listening.Heard("a ri"), "chat", 0, "stops")
    for heard in (listening.Heard("a bank"), listening.Heard("a ri", whole=True)):
        with pytest.raises(SystemExit, match="listener 0 heard"):
            run.judge(heard, "chat", 0, "stops")
    with pytest.raises(SystemExit, match="the answer to listener 0 broke off after 'a ri'"):
        run.judge(listening.Heard("a ri"), "chat", 0, "hears")
    assert dict(run.count) == {"answers": 1, "left (stops)": 1, "bytes": 11}
