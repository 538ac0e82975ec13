"""How few neurons are active? x and y of every layer on several kinds of input, trained and untrained.

Beside the checkpoint: the same shape with fresh weights, another checkpoint, a short training of its own whose activity
is followed step by step (or a run's folder), and a Transformer of the same size trained on the same bytes, of whose
GELU the exact zeros are counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bdh.cli import guarded
from bdh.config import config_to_dict
from bdh.errors import ConfigError, DataError
from bdh.load import load
from bdh.models import Model, build
from train.data import Bytes, read_bytes
from train.folder import Folder
from train.loop import LOOK_EVERY
from train.plots import Panel, draw_heat, draw_panels, shrink
from train.recipe import Recipe

from . import activity, cost, short_runs
from .claim import (
    Check,
    Claim,
    Table,
    Tell,
    Threshold,
    Work,
    add_common,
    by_name,
    command,
    digest,
    done,
    identities,
    opened,
    progress,
    short_name,
)

NAME = "sparsity"
DRAWINGS = DRAWING, LAYERS, TRAINING_DRAWING = "sparsity.png", "layers.png", "training.png"

X = Threshold("about 5 % of x is active", "x_sparse above 0, mean over layers and texts", 0.075, 0.15, form=".1%")
Y = Threshold("about 5 % of y is active", "y_sparse above 0, mean over layers and texts", 0.075, 0.15, form=".1%")
TRAINING = Threshold("training makes x sparse", "active x of the trained over that of the untrained", 0.5, 0.8)
GELU = Threshold(
    "far fewer are active than in a Transformer", "active x over the Transformer's values that are not 0", 0.2, 0.5
)
_TEXTS = ("prose", "code", "Spanish", "dialogue")
_TRANSFORMER = "Transformer, short training"


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options, command(NAME, arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m lab {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a flat or hierarchical model: a shipped name, a folder or user/repo")
    add("--beside", metavar="CHECKPOINT", nargs="*", default=[], help="others, in a column of their own")
    add("--bytes", metavar="N", type=int, default=4096, help="of each kind of input (default: 4,096)")
    add("--run", metavar="FOLDER", type=Path, help="follow this run's activity instead of a short one of its own")
    add("--data", metavar="TEXT", default="english", help="text of the short trainings (default: english)")
    add("--steps", metavar="N", type=int, default=240, help="of each short training (default: 240)")
    add("--rows", metavar="N", type=int, default=4, help="of each short training (default: 4)")
    add("--chunk", metavar="N", type=int, default=128, help="bytes between two of its steps (default: 128)")
    add_common(parser, NAME)
    return parser


def _run(options: argparse.Namespace, repeat: str) -> int:
    if not 8 <= options.steps <= 1_000_000 or not 1 <= options.rows <= 1024 or not 16 <= options.chunk <= 4096:
        raise ConfigError("short trainings take 8 to 1,000,000 steps of 1 to 1,024 rows of 16 to 4,096 bytes")
    models = {
        name: opened(given) for name, given in by_name((options.checkpoint, *options.beside), ("untrained",)).items()
    }
    for name, model in models.items():
        if not activity.has_neurons(model):
            raise ConfigError(
                f"{name} is a {model.config.kind} model without x_sparse of its own; this needs flat or hierarchical "
                "ones of BDH layers, such as base"
            )
    return done(experiment(models, options, repeat), options)


def experiment(models: Mapping[str, Model[Any]], options: argparse.Namespace, repeat: str) -> Claim:
    """Measure what is not measured yet, draw it, and say what comes of it.

    Args:
        models: the one that the claim is about first.
    """
    name, first = next(iter(models.items()))
    kinds = activity.inputs(options.bytes)
    checksums = {one: model.checksum() for one, model in models.items()}
    settings = {
        "bytes": options.bytes,
        "run": None if options.run is None else short_name(str(options.run)),
        "data": short_name(options.data),
        "steps": options.steps,
        "rows": options.rows,
        "chunk": options.chunk,
    }
    heard_s = options.steps * options.rows * options.chunk / 1200
    each_s = len(kinds) * options.bytes / 2500
    expected = {
        **{f"active-{one}": each_s for one in models},
        "active-untrained": 2 * each_s,
        **({} if options.run else {"training": heard_s}),
        "transformer": heard_s / 2,
    }
    texts = {**{kind: digest(one) for kind, one in kinds.items()}, "training": digest(read_bytes(options.data))}
    known = {"checkpoints": identities(models), "texts": texts, **settings}
    work = Work(options.out, known, expected, progress(options))
    columns = {one: work.part(f"active-{one}", partial(_active, model, kinds)) for one, model in models.items()}
    columns["untrained"] = work.part("active-untrained", partial(_active, build(first.config, seed=0).eval(), kinds))
    heads, layers = _shape(first)
    baseline = cost.baseline(first.parameter_count(), layers, heads, 512)
    columns[_TRANSFORMER] = work.part(
        "transformer", partial(_transformer, config_to_dict(baseline.config), options, kinds)
    )
    if options.run:
        course = _course(Folder(options.run, writes=False).measures(), str(options.run))
    else:
        course = work.part("training", partial(_trained, config_to_dict(first.config), options))
    _draw(name, columns, course, options.out)
    return Claim(
        name=NAME,
        title=f"{name}: how few neurons are active?",
        said="about 5 % of the neurons are active at a time (of x by §4.1, of y by Empirical Finding 1), while a "
        "Transformer's activations are dense",
        source="arXiv 2509.26507",
        checkpoints=checksums,
        command=repeat,
        settings=settings,
        checks=tuple(_checks(name, columns)),
        tables=tuple(_tables(columns, course)),
        drawings=DRAWINGS,
        notes=(
            f"{options.bytes:,} bytes of each kind, heard with the state carried; texts are held-out parts of the "
            "shipped corpora, random bytes are uniform, repeated text is one sentence over and over.",
            "Checks are of the mean over layers and the four texts; random bytes and repeated text stand beside.",
            *_steered(models),
            f"Short trainings: {options.steps} steps of {options.rows} × {options.chunk} bytes, without "
            f"any pressure on activity; the Transformer has {baseline.parameter_count():,} parameters, the checkpoint "
            f"{first.parameter_count():,}, and hears the same bytes.",
            "Activity against training steps is of training chunks, after so many steps"
            + (f" of the run {options.run.name}." if options.run else f", looked at every {LOOK_EVERY}."),
        ),
        numbers={"active": columns, "training": course},
        measured_s=work.elapsed_s(),
    )


def _active(model: Model[Any], kinds: Mapping[str, Bytes], tell: Tell) -> dict[str, Any]:
    found = {}
    for index, (kind, text) in enumerate(kinds.items(), 1):
        found[kind] = dataclasses.asdict(activity.active(model, text))
        tell(index / len(kinds))
    return found


def _transformer(
    config: Mapping[str, Any], options: argparse.Namespace, kinds: Mapping[str, Bytes], tell: Tell
) -> dict[str, Any]:
    folder = options.out / "transformer"
    asked = _recipe("transformer", config, options)
    short_runs.train(asked, folder, options.out / "texts", lambda done: tell(0.9 * done))
    trained = load(folder / short_runs.TRAINED, device="cpu").eval()
    return _active(trained, kinds, lambda done: tell(0.9 + 0.1 * done))


def _trained(config: Mapping[str, Any], options: argparse.Namespace, tell: Tell) -> list[list[float]]:
    asked = _recipe("short", config, options)
    return _course(short_runs.train(asked, options.out / "short", options.out / "texts", tell), "the short training")


def _recipe(name: str, config: Mapping[str, Any], options: argparse.Namespace) -> Recipe:
    return short_runs.recipe(
        name, config, steps=options.steps, rows=options.rows, chunk_bytes=options.chunk, text=options.data
    )


def _course(measures: Sequence[Mapping[str, Any]], where: str) -> list[list[float]]:
    """Steps taken, and what part of x and of y was active then, from what a run noted.

    A note tells of the last look before it: where nothing steers activity there is one every `LOOK_EVERY` steps.
    """
    found = {}
    for one in measures:
        if {"x_sparse", "y_sparse"} <= one.get("active", {}).keys():
            taken = max(0, one["step"] - 1)
            looked = taken if one.get("penalty_weight") else taken // LOOK_EVERY * LOOK_EVERY
            found[looked] = [looked, one["active"]["x_sparse"], one["active"]["y_sparse"]]
    if not found:
        raise DataError(
            f"{where:.200} holds no run that noted what is active; choose the folder of a run of BDH layers"
        )
    return [found[step] for step in sorted(found)]


def _shape(model: Model[Any]) -> tuple[int, int]:
    """Heads and layers of a Transformer beside a model."""
    config = model.config
    heads = getattr(config, "n_head", 0) or getattr(config, "global_n_head", 4)
    return heads, getattr(config, "n_layer", 0) or config.global_n_layer


def _steered(models: Mapping[str, Model[Any]]) -> list[str]:
    told = []
    for name, model in models.items():
        recipe = (model.origin.provenance if model.origin else {}).get("recipe", {})
        if isinstance(recipe, dict) and recipe.get("activity"):
            told.append(f"{name} was steered to {recipe['activity']:.0%} of x active by a penalty in training.")
    return told


def _mean(found: Mapping[str, Any], which: str, kinds: Sequence[str]) -> float:
    return statistics.fmean(value for kind in kinds for value in found[kind][which].values())


def _checks(name: str, columns: Mapping[str, Any]) -> list[Check]:
    x = {one: _mean(found, "x", _TEXTS) for one, found in columns.items()}
    y = {one: _mean(found, "y", _TEXTS) for one, found in columns.items() if found["prose"]["y"]}
    beside = [one for one in columns if one not in (name, "untrained", _TRANSFORMER)]

    def others(values: Mapping[str, float]) -> str:
        return "; ".join(f"{one}: {values[one]:.1%}" for one in (*beside, "untrained"))

    return [
        X.judge(x[name], others(x)),
        Y.judge(y[name], others(y)),
        TRAINING.judge(x[name] / x["untrained"], "; ".join(f"{one}: {x[one] / x['untrained']:.3f}" for one in beside)),
        GELU.judge(x[name] / x[_TRANSFORMER], f"of its values {x[_TRANSFORMER]:.1%} are not exactly 0"),
    ]


def _tables(columns: Mapping[str, Any], course: Sequence[Sequence[float]]) -> list[Table]:
    tables = []
    kinds = list(next(iter(columns.values())))
    for which, what in (("x", "x_sparse"), ("y", "y_sparse")):
        shown = {one: found for one, found in columns.items() if found[kinds[0]][which]}
        rows = [["input", *shown]]
        rows += [[kind, *(f"{_mean(found, which, [kind]):.1%}" for found in shown.values())] for kind in kinds]
        note = "Of the Transformer, the values behind its GELU that are not exactly 0." if which == "x" else ""
        tables.append(Table(f"Part of {what} that is active, mean over layers", rows, note))
    for one, found in columns.items():
        layers = list(found[kinds[0]]["x"])
        rows = [["x / y active", *layers]]
        for kind in kinds:
            cells = []
            for layer in layers:
                y = f" / {found[kind]['y'][layer]:.1%}" if found[kind]["y"] else ""
                cells.append(f"{found[kind]['x'][layer]:.1%}{y}")
            rows.append([kind, *cells])
        tables.append(Table(f"Layer by layer: {one}", rows))
    rows = [["step", "x active", "y active"], *([f"{step:,.0f}", f"{x:.1%}", f"{y:.1%}"] for step, x, y in course)]
    return [*tables, Table("Against training steps", rows)]


def _draw(name: str, columns: Mapping[str, Any], course: Sequence[Sequence[float]], folder: Path) -> None:
    kinds = list(columns[name])
    draw_heat(
        {
            f"{which} active, mean over layers, %": {
                one: {kind.replace(" ", "\n"): 100 * _mean(found, which, [kind]) for kind in kinds}
                for one, found in columns.items()
                if found[kinds[0]][which]
            }
            for which in ("x", "y")
        },
        "active, %",
        folder / DRAWING,
    )
    draw_heat(
        {
            f"{which} active in {name}, layer by layer, %": {
                kind: {layer: 100 * value for layer, value in found[which].items()}
                for kind, found in columns[name].items()
            }
            for which in ("x", "y")
        },
        "active, %",
        folder / LAYERS,
    )
    lines = {"x": [(step, 100 * x) for step, x, _ in course], "y": [(step, 100 * y) for step, _, y in course]}
    draw_panels([Panel("training steps", "active, mean over layers, %", lines, log_x=False)], folder / TRAINING_DRAWING)
    for drawing in DRAWINGS:
        shrink(folder / drawing)
