"""Models trained on the same bytes, side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_train import SMALL

import bdh
from train.__main__ import main

COMPARISON = """
description = "Two small ones."
steps = 8
warmup_steps = 2
decay_steps = 3
evaluate_every = 4
chunk_bytes = 32
validation_bytes = 256
sample_bytes = 0
prompt = "The "

[texts.rhyme]
rows = 2
source = "{text}"
"""


def toml(tmp_path: Path, kinds: tuple[str, ...] = ("flat", "hierarchical")) -> Path:
    text = tmp_path / "rhyme.txt"
    text.write_text("The cat sat on the mat. " * 200)
    lines = [COMPARISON.format(text=text)]
    for kind in kinds:
        fields = {"kind": kind, **SMALL[kind]} | (
            {"max_seq_len": 64, "patch_size": 4} if kind == "hierarchical" else {}
        )
        lines += [f"[models.{kind}]", *(f"{name} = {json.dumps(value)}" for name, value in fields.items())]
    path = tmp_path / "both.toml"
    path.write_text("\n".join(lines))
    return path


def test_both_hear_the_same_bytes_and_the_better_one_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(toml(tmp_path)), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    result = json.loads((out / "comparison.json").read_text())
    first, second = result["contenders"]
    assert first["bits_per_byte"] <= second["bits_per_byte"] and result["winner"] == first["name"]
    assert {first["kind"], second["kind"]} == {"flat", "hierarchical"}
    assert first["heard_bytes"] == second["heard_bytes"] == 8 * 2 * 32
    assert f"winner: {result['winner']}" in told and f"{first['bits_per_byte']:.3f}" in told
    for one in (first, second):
        model = bdh.load(out / one["name"] / "checkpoint", device="cpu")
        assert (one["parameters"], one["state_bytes"]) == (model.parameter_count(), model.state_bytes())
        assert one["perplexity"] == pytest.approx(2 ** one["bits_per_byte"])
        assert one["sample"].startswith("The ")
        assert [m["step"] for m in result["measures"][one["name"]]] == [4, 8]
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_that_is_resumed_trains_nobody_twice(tmp_path: Path) -> None:
    path, out = toml(tmp_path), tmp_path / "out"
    assert main([str(path), "--out", str(out), "--quiet"]) == 0
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/run.pt")}
    assert len(before) == 2
    assert main([str(path), "--out", str(out), "--quiet"]) == 2
    assert main([str(path), "--out", str(out), "--quiet", "--resume"]) == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/run.pt")} == before


def test_one_model_is_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(toml(tmp_path, ("flat",))), "--out", str(tmp_path / "out")]) == 2
    assert "compares at least two models" in capsys.readouterr().err
