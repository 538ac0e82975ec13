"""Short trainings that an experiment makes itself, resumable like all runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdh import checkpoint
from train.data import read_bytes
from train.loop import Run, fit
from train.recipe import Recipe
from train.strategy import plain_tensors

from .claim import Tell

TRAINED = "trained"


def text_sum(text: str) -> str:
    """SHA-256 of a text: what was measured on a file of the same name that held something else is not gone on with."""
    return hashlib.sha256(read_bytes(text).tobytes()).hexdigest()


def recipe(
    name: str,
    model: Mapping[str, Any],
    *,
    steps: int,
    rows: int,
    chunk_bytes: int,
    text: str = "english",
    learning_rate: float = 2e-3,
    validations: int = 8,
) -> Recipe:
    """Fresh weights on one text at a level learning rate, so that each validation stands for that many bytes.

    Args:
        model: its configuration, as `config_to_dict` gives it.
    """
    return Recipe(
        name=name,
        model={key: value for key, value in model.items() if key != "format"},
        texts={text: rows},
        steps=steps,
        warmup_steps=max(1, steps // 20),
        decay_steps=0,
        learning_rate=learning_rate,
        chunk_bytes=chunk_bytes,
        evaluate_every=max(1, steps // validations),
        validation_bytes=8192,
        sample_bytes=0,
    )


def train(asked: Recipe, folder: Path, cache: Path, tell: Tell) -> list[dict[str, Any]]:
    """Train to the last step, or on from where it was broken off; the weights of that step are kept.

    Returns:
        What the run noted on its way: step, heard_bytes, validation, active.
    """
    run = Run(asked, folder, cache=cache)
    if run.folder.exists():
        run.resume()
    else:
        run.begin()
    for told in fit(run):
        tell(told.step / max(1, told.steps))
    checkpoint.write(folder / TRAINED, run.model.config, plain_tensors(run.model))
    return run.folder.measures()
