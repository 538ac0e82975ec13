"""Models trained on the same bytes in the same order, side by side: what each made of them, and at what cost."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from bdh.errors import ConfigError
from bdh.load import load
from bdh.models import Model
from bdh.sampling import Sampling
from bdh.stream import Stream

from .export import export
from .loop import Run
from .plots import draw_learning
from .recipe import Recipe, recipe_from_fields

RESULT, PLOT = "comparison.json", "comparison.png"
_SAMPLE_BYTES = 240


@dataclass(frozen=True)
class Contender:
    """One model of a comparison, measured on the test part of the texts; one row of the table."""

    name: str
    kind: str
    parameters: int
    state_bytes: int
    """Memory of one stream, at any length."""
    heard_bytes: int
    best_step: int
    train_bits_per_byte: float
    """Of the last training chunks."""
    bits_per_byte: float
    """Mean over the texts' test parts, of the best weights."""
    loss_nats: float
    perplexity: float
    """Of a byte."""
    trained_bytes_per_s: float
    written_bytes_per_s: float
    """One stream, byte by byte, on this machine."""
    step_memory_bytes: int
    """What a training step takes beside the weights, as planned."""
    sample: str


def contenders(fields: Mapping[str, Any], path: Path | str) -> dict[str, Recipe]:
    """The recipe of each model of a comparison: all but the model is common to them.

    Raises:
        ConfigError: fewer than two models, or a recipe that does not fit.
    """
    models = fields.get("models")
    if not isinstance(models, Mapping) or len(models) < 2 or not all(isinstance(m, Mapping) for m in models.values()):
        raise ConfigError(f"{path} compares at least two models, each a table: [models.flat], [models.other]")
    if "model" in fields or "base" in fields:
        raise ConfigError(f"{path} names models to compare; leave model and base out")
    common = {name: value for name, value in fields.items() if name not in ("models", "name")}
    return {
        name: recipe_from_fields({**common, "name": f"{fields['name']}-{name}", "model": dict(model)}, path)
        for name, model in models.items()
    }


def compare(
    recipes: Mapping[str, Recipe],
    folder: Path,
    *,
    resume: bool = False,
    accelerator: Callable[[], Accelerator] = Accelerator,
) -> Iterator[Run]:
    """The run of each contender, in a folder of its own, to be trained by `fit` before the next is asked for.

    With `resume` each goes on where it was; the weights of one that was trained to its end are exported.
    """
    for name, recipe in recipes.items():
        run = Run(recipe, folder / name, accelerator=accelerator(), cache=folder / "texts")
        if resume and run.folder.exists():
            run.resume()
        else:
            run.begin()
        before = run.step
        yield run
        if run.asked_to_stop:
            return
        if run.step > before or not (folder / name / "checkpoint").is_dir():
            export(run, folder / name / "checkpoint")


def judge(recipes: Mapping[str, Recipe], folder: Path) -> list[Contender]:
    """Measure what `compare` trained, and write it to the folder as JSON, the best first."""
    found = sorted((_measured(name, recipe, folder) for name, recipe in recipes.items()), key=lambda c: c.bits_per_byte)
    learning = {name: measures(folder / name) for name in recipes}
    result = {
        "winner": found[0].name,
        "contenders": [dataclasses.asdict(one) for one in found],
        "measures": learning,
    }
    (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw_learning(learning, folder / PLOT)
    return found


def measures(folder: Path) -> list[dict[str, Any]]:
    """A run's validations: bytes heard, bits per byte in training and in validation."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {
            "step": line["step"],
            "heard_bytes": line["heard_bytes"],
            "train": line["bits_per_byte"],
            "validation": sum(line["validation"].values()) / len(line["validation"]),
        }
        for line in map(json.loads, lines)
        if line["validation"]
    ]


def table(found: list[Contender]) -> str:
    """The comparison in aligned columns."""
    rows = {
        "kind": [one.kind for one in found],
        "parameters": [f"{one.parameters:,}" for one in found],
        "memory of a stream": [f"{one.state_bytes / 1e6:.1f} MB" for one in found],
        "bytes heard": [f"{one.heard_bytes:,}" for one in found],
        "best step": [f"{one.best_step:,}" for one in found],
        "bits per byte, test": [f"{one.bits_per_byte:.3f}" for one in found],
        "loss, nats a byte": [f"{one.loss_nats:.3f}" for one in found],
        "perplexity of a byte": [f"{one.perplexity:.3f}" for one in found],
        "bits per byte, training": [f"{one.train_bits_per_byte:.3f}" for one in found],
        "trained, bytes/s": [f"{one.trained_bytes_per_s:,.0f}" for one in found],
        "written, bytes/s": [f"{one.written_bytes_per_s:,.0f}" for one in found],
        "memory of a step": [f"{one.step_memory_bytes / 1e9:.2f} GB" for one in found],
    }
    lines = [["", *(one.name for one in found)], *([name, *cells] for name, cells in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return "\n".join([*text, "", f"winner: {found[0].name}, by bits per byte on what none of them was trained on"])


def _measured(name: str, recipe: Recipe, folder: Path) -> Contender:
    run = Run(recipe, folder / name, cache=folder / "texts")
    run.resume()
    model = load(folder / name / "checkpoint")
    assert model.origin is not None
    bits = model.origin.provenance["held_out_bits_per_byte"].values()
    mean = sum(bits) / len(bits)
    last = run.folder.measures()[-1]
    sample, rate = _written(model, recipe.prompt)
    return Contender(
        name,
        model.config.kind,
        model.parameter_count(),
        model.state_bytes(),
        last["heard_bytes"],
        int(run.best["step"]),
        last["bits_per_byte"],
        mean,
        mean * math.log(2),
        2**mean,
        last["bytes_per_s"],
        rate,
        run.planned().step_bytes,
        sample,
    )


def _written(model: Model[Any], prompt: str) -> tuple[str, float]:
    """A sample, and the rate at which its bytes were written."""
    stream = Stream(model)
    stream.feed(prompt.encode() or b"\n")
    options = Sampling(temperature=0.7, seed=0, max_bytes=_SAMPLE_BYTES, valid_utf8=True)
    with torch.no_grad():
        begun = time.monotonic()
        written = bytes(one.byte for one in stream.generate(options))
    return prompt + written.decode("utf-8", errors="replace"), len(written) / (time.monotonic() - begun)
