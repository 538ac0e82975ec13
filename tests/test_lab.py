"""Experiments, on models too small to find anything out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zoo
from test_train import text as text

import bdh
from bdh.models.observe import observing
from lab import activity_price
from lab.__main__ import main
from train.sparsity import Activity


@pytest.fixture
def arguments(text: Path, tmp_path: Path) -> list[str]:
    base = zoo.fresh("flat-damped").save_pretrained(tmp_path / "base")
    given = [
        "activity-price",
        str(base),
        "--texts",
        str(text),
        "--steps",
        "10",
        "--rows",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    return [*given, "--targets", "0.2", "0.1"]


def test_contenders_hear_the_same_and_are_measured_at_their_last_step(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    told, out = capsys.readouterr(), tmp_path / "out"
    result = json.loads((out / activity_price.RESULT).read_text())
    found = result["contenders"]
    assert [one["target"] for one in found] == [0, 0.1, 0.2]
    assert found[0]["price_bits"] == 0
    assert found[1]["price_bits"] == found[1]["bits_per_byte"] - found[0]["bits_per_byte"] != 0
    assert 0 < found[2]["lower_bytes_per_s"] <= found[2]["bytes_per_s"] <= found[2]["upper_bytes_per_s"]
    first = [json.loads((out / one["name"] / "metrics.jsonl").read_text().splitlines()[1]) for one in found]
    assert len({(one["step"], one["heard_bytes"]) for one in first}) == 1
    recipes = [json.loads((out / one["name"] / "recipe.json").read_text()) for one in found]
    differ = {key for key in recipes[0] if recipes[0][key] != recipes[1][key]}
    assert differ == {"name", "activity", "activity_steps"}
    model = bdh.load(out / "0.1" / "trained", device="cpu")
    assert model.origin is not None and model.origin.provenance["steps"] == 10
    held_out = (tmp_path / "rhyme.txt").read_bytes()[-120:]
    pieces = [held_out[start : start + 15] for start in range(0, 120, 15)]
    bits = [bdh.Stream(model).score(piece)[1:].mean() for piece in pieces]
    assert found[1]["texts"] == {"rhyme": pytest.approx(sum(bits) / 8)}
    activity = Activity()
    with observing(activity):
        for piece in pieces:
            bdh.Stream(model).feed(piece[:-1])
    assert (found[1]["x_active"], found[1]["y_active"]) == (
        pytest.approx(activity.mean("x_sparse")),
        pytest.approx(activity.mean("y_sparse")),
    )
    assert "price" in told.out and f"{found[1]['bits_per_byte']:.4f}" in told.out
    assert "0.2: step 10/10" in told.err
    assert (out / activity_price.PLOT).read_bytes().startswith(b"\x89PNG")


def test_what_is_trained_is_not_trained_again_and_targets_can_be_added(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments[:-1], "--quiet"]) == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/trained/model.safetensors")}
    assert len(before) == 2
    assert main([*arguments, "--quiet"]) == 0
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/trained/model.safetensors")}
    assert len(after) == 3 and before.items() <= after.items()


def test_a_contender_that_was_stopped_goes_on_to_the_same_weights(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--quiet"]) == 0
    whole = bdh.load(tmp_path / "out" / "0.1" / "trained", device="cpu").checksum()

    def stop(line: str) -> None:
        if line.startswith("0.1: step 6/"):
            raise KeyboardInterrupt

    again = tmp_path / "again"
    free = activity_price.unsteered(str(tmp_path / "base"), [str(tmp_path / "rhyme.txt")], 10, 2, 1e-3, 0)
    with pytest.raises(KeyboardInterrupt):
        activity_price.experiment(free, [0.1], again, say=stop)
    assert not (again / "0.1" / "trained").exists()
    lines: list[str] = []
    activity_price.experiment(free, [0.1], again, say=lines.append)
    assert lines[0] == "unsteered: trained before" and lines[1].startswith("0.1: step 8/")
    assert bdh.load(again / "0.1" / "trained", device="cpu").checksum() == whole


def test_another_experiment_in_the_same_folder_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--targets", "0.1", "--quiet"]) == 0
    assert main([*arguments, "--steps", "12"]) == 2
    assert "holds an experiment with other checkpoints, texts or options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--targets", "1.5"], "targets are [1.5]"),
        (["--bytes", "3"], "--bytes is 3"),
        (["--steps", "0"], "steps is 0"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    arguments: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_base_without_sparse_activations_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.fresh("transformer").save_pretrained(tmp_path / "base")
    assert main(arguments) == 2
    assert "transformer model without x_sparse" in capsys.readouterr().err


def test_experiments_are_listed_and_others_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "activity-price     What do few active neurons cost?" in capsys.readouterr().out
    assert main(["nothing"]) == 2
    assert "no experiment 'nothing'; there is composability, unlimited-context" in capsys.readouterr().err
