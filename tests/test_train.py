"""Recipes, the loop and what a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bdh
from bdh.errors import ConfigError, DataError
from train.__main__ import main
from train.loop import Run, fit
from train.recipe import Recipe, list_recipes, load_recipe

MODEL = {"kind": "flat", "n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 4, "dropout": 0.1}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("The cat sat on the mat. " * 200)
    return path


def recipe(text: Path, **changes: object) -> Recipe:
    fields: dict[str, object] = {
        "name": "tiny",
        "model": MODEL,
        "texts": {str(text): 2},
        "chunk_bytes": 32,
        "steps": 12,
        "warmup_steps": 2,
        "decay_steps": 4,
        "evaluate_every": 6,
        "reset": 0.2,
    }
    return Recipe(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_is_whole(name: str) -> None:
    shipped = load_recipe(name, [])
    assert shipped.name == name
    assert shipped.config().kind in ("flat", "hierarchical")


def test_a_run_that_is_resumed_is_the_run(text: Path, tmp_path: Path) -> None:
    whole = Run(recipe(text), tmp_path / "whole")
    list(fit(whole))
    first = Run(recipe(text), tmp_path / "parts")
    for report in fit(first, report_every=1):
        if report.step == 6:
            break
    second = Run(recipe(text), tmp_path / "parts")
    second.resume()
    assert second.step == 6
    list(fit(second))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_training_learns_a_text_that_repeats(text: Path, tmp_path: Path) -> None:
    run = Run(recipe(text, steps=150, evaluate_every=150, learning_rate=0.01), tmp_path / "run")
    reports = list(fit(run))
    assert reports[-1].held_out["rhyme"] < 1.0 < reports[0].bits_per_byte


def test_resuming_with_another_recipe_is_refused(text: Path, tmp_path: Path) -> None:
    list(fit(Run(recipe(text), tmp_path / "run")))
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.002"):
        Run(recipe(text, learning_rate=0.5), tmp_path / "run").resume()


def test_the_command_trains_and_writes_a_checkpoint_that_loads(text: Path, tmp_path: Path) -> None:
    lines = [
        f"{key} = {json.dumps(value)}" for key, value in {"steps": 4, "evaluate_every": 2, "chunk_bytes": 32}.items()
    ]
    lines += [
        "[texts]",
        f"{json.dumps(str(text))} = 2",
        "[model]",
        *(f"{k} = {json.dumps(v)}" for k, v in MODEL.items()),
    ]
    path = tmp_path / "tiny.toml"
    path.write_text("\n".join(lines))
    assert main([str(path), "--out", str(tmp_path / "run"), "decay_steps=2"]) == 0
    model = bdh.load(tmp_path / "run" / "checkpoint")
    assert model.origin is not None
    assert model.origin.provenance["bytes_heard"] == 4 * 32 * 2
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    assert "license:" not in card
    assert f"{model.origin.provenance['held_out_bits_per_byte']['rhyme']:.3f}" in card


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=5.5", "steps is 5.5"),
        ("learning_rate=x", "learning_rate is 'x'"),
        ("nonsense=1", "does not know 'nonsense'"),
        ("warmup_steps=-1", "warmup_steps is -1"),
        ("texts=3", "texts must be a table"),
    ],
)
def test_a_value_that_does_not_fit_is_named(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hatchling", override]) == 2
    assert message in capsys.readouterr().err


def test_a_text_too_short_to_evaluate_on_is_refused_before_training(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("x" * 300)
    with pytest.raises(DataError, match="keeps 15 bytes"):
        Run(recipe(text), tmp_path / "run")
