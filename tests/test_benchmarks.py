from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import start, train


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


def test_the_page_on_the_shipped_checkpoints_starts_and_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--rounds", "1", "--json"]) == 0
    imported, served = json.loads(capsys.readouterr().out)["rows"]
    assert 0 < imported["seconds"] < served["seconds"] < 120
    assert 100 < served["memory_mb"] < 4000
