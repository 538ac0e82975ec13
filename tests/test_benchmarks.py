from __future__ import annotations

import json

import pytest

from benchmarks import train


def test_a_training_step_is_timed_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n-layer": 1, "n-embd": 8, "n-head": 2, "mult": 4, "rows": 2, "chunk-bytes": 16}
    how = {"device": "cpu", "precisions": "float32", "modes": "eager", "rounds": 2, "steps": 1, "threads": 1}
    assert train.main(["--json", *(f"--{name}={value}" for name, value in (sizes | how).items())]) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = result["rows"]
    assert (row["precision"], row["what"]) == ("float32", "ours, eager")
    assert row["bytes_per_s"] > 0 and 50 < row["peak_memory_mb"] < 4000
    # Weights that know nothing yet: eight bits a byte.
    assert row["first_bits_per_byte"] == pytest.approx(8.0, abs=0.1)
