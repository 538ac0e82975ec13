"""What do few active neurons cost? Equal short runs from one base, each steered to another activity of x_sparse.

One more run is not steered. All hear the same bytes by the same schedule, and what is measured are the weights of the
last step, on the held-out part of each text. A contender that is trained is not trained again: the same command goes
on where it was stopped, and with more targets it trains those alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bdh import checkpoint
from bdh.cli import guarded, resolved
from bdh.errors import ConfigError
from bdh.load import load
from bdh.models import Model
from bdh.models.observe import observing
from bdh.stream import Stream
from train.data import Bytes, split
from train.evaluate import bits_per_byte
from train.evaluate.report import table
from train.export import held_out_bytes
from train.folder import environment
from train.loop import Run, fit
from train.plots import draw_points
from train.recipe import Recipe
from train.sources import prepare
from train.sparsity import Activity
from train.strategy import plain_tensors

from .claim import identity, progress, settle, write_json

RESULT, PLOT = "activity-price.json", "activity-price.png"
UNSTEERED = "unsteered"

_TRAINED = "trained"
_STREAMS = 8
_HEARD_BYTES, _ROUND_BYTES, _ROUNDS = 256, 8, 51
_LABELS = ("x_sparse active, %", "bits per byte, held out", "heard byte by byte, bytes/s")


@dataclass(frozen=True)
class Contender:
    """One run of the experiment, measured; a row of the table."""

    name: str
    target: float
    """Part of x_sparse that was to be active; 0 is not steered."""
    x_active: float
    """Part of x_sparse above 0, mean over layers, on the held-out texts."""
    y_active: float
    """Part of y_sparse above 0, likewise."""
    bits_per_byte: float
    """Mean over the held-out texts."""
    price_bits: float
    """What that is more than without steering."""
    texts: dict[str, float]
    """Bits per byte of each text."""
    bytes_per_s: float
    """Of one stream on the CPU, byte by byte; median of short rounds that all contenders take in turn."""
    lower_bytes_per_s: float
    """Lower quartile of these rounds."""
    upper_bytes_per_s: float
    """Upper quartile."""


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab activity-price", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("base", metavar="BASE", help="checkpoint to go on from: a shipped name, a folder or user/repo")
    add("--targets", metavar="P", type=float, nargs="+", default=[0.05, 0.1, 0.2], help="parts of x_sparse, 0 to 1")
    add("--texts", metavar="TEXT", nargs="+", default=["chat", "english"], help="shipped corpora or files")
    add("--steps", metavar="N", type=int, default=300, help="steps of each run (default: 300)")
    add("--rows", metavar="N", type=int, default=4, help="rows of the batch that read each text (default: 4)")
    add("--learning-rate", metavar="X", type=float, default=1e-3, help="highest of each run (default: 0.001)")
    add("--seed", metavar="N", type=int, default=0, help="of places in the texts and resets (default: 0)")
    add("--bytes", metavar="N", type=int, default=65_536, help="hear at most so many held-out ones of each text")
    add("--out", type=Path, default=Path("runs/activity-price"), help="folder of it all (default: runs/activity-price)")
    add("--quiet", action="store_true", help="show no progress")
    return parser


def _run(options: argparse.Namespace) -> int:
    free = unsteered(
        resolved(options.base), options.texts, options.steps, options.rows, options.learning_rate, options.seed
    )
    if options.bytes < 2 * _STREAMS:
        raise ConfigError(f"--bytes is {options.bytes}; it must be at least {2 * _STREAMS}")
    found = experiment(free, options.targets, options.out, heard_bytes=options.bytes, say=progress(options))
    print(f"{report(found)}\n\n{options.out / RESULT}, {options.out / PLOT}")
    return 0


def unsteered(base: str, texts: Sequence[str], steps: int, rows: int, learning_rate: float, seed: int) -> Recipe:
    """The recipe that all runs share, without steering."""
    return Recipe(
        name=UNSTEERED,
        base=base,
        texts=dict.fromkeys(texts, rows),
        steps=steps,
        warmup_steps=steps // 20,
        decay_steps=steps // 3,
        learning_rate=learning_rate,
        evaluate_every=max(1, steps // 5),
        sample_bytes=0,
        seed=seed,
    )


def experiment(
    free: Recipe,
    targets: Sequence[float],
    folder: Path,
    *,
    heard_bytes: int = 65_536,
    say: Callable[[str], None] = print,
) -> list[Contender]:
    """Train what is not trained yet, measure all, and write table and plot to the folder.

    Args:
        free: of the run without steering; the others differ from it in name and activity.
        targets: parts of x_sparse; half of the steps approach them.
        heard_bytes: hear at most so many held-out bytes of each text.
        say: takes lines on how it goes.

    Raises:
        ConfigError: a target is no part, the base has no x_sparse, or the folder holds another experiment.
    """
    if not targets or not all(0 < target < 1 for target in targets):
        raise ConfigError(f"targets are {list(targets)}; each must be a part above 0 and below 1, such as 0.1")
    _settle(free, folder)
    steering = {f"{target:.6g}": target for target in sorted(targets)}
    recipes = {UNSTEERED: free} | {
        name: dataclasses.replace(free, name=name, activity=target, activity_steps=free.steps // 2)
        for name, target in steering.items()
    }
    for name, recipe in recipes.items():
        _train(recipe, folder / name, folder / "texts", say)
    say(f"measuring {len(recipes)} contenders")
    found = _measured(recipes, folder, heard_bytes)
    result = {
        "base": free.base,
        "steps": free.steps,
        "texts": list(free.texts),
        "heard_bytes": heard_bytes,
        "threads": torch.get_num_threads(),
        **environment(),
        "contenders": [dataclasses.asdict(one) for one in found],
    }
    write_json(folder / RESULT, result)
    draw_points(
        {
            f"{one.target:.4g}" if one.target else one.name: dict(
                zip(_LABELS, (100 * one.x_active, one.bits_per_byte, one.bytes_per_s), strict=True)
            )
            for one in found
        },
        _LABELS[0],
        _LABELS[1:],
        folder / PLOT,
    )
    return found


def report(found: Sequence[Contender]) -> str:
    """The contenders in aligned columns."""
    rows = [["target", "x active", "y active", "bits/byte", "price", *found[0].texts, "bytes/s", "half of the rounds"]]
    for one in found:
        rows.append(
            [
                f"{one.target:.4g}" if one.target else one.name,
                f"{one.x_active:.2%}",
                f"{one.y_active:.2%}",
                f"{one.bits_per_byte:.4f}",
                f"{one.price_bits:+.4f}",
                *(f"{bits:.4f}" for bits in one.texts.values()),
                f"{one.bytes_per_s:,.1f}",
                f"{one.lower_bytes_per_s:,.1f} to {one.upper_bytes_per_s:,.1f}",
            ]
        )
    return table(rows)


def _settle(free: Recipe, folder: Path) -> None:
    """Note what all runs share, or hold it against what was noted before."""
    base = load(free.base, device="cpu")
    activity = Activity()
    with torch.no_grad(), observing(activity):
        base(torch.zeros(1, 8, dtype=torch.uint8), keep_state=False)
    if "x_sparse" not in activity.fractions:
        raise ConfigError(f"{free.base} is a {base.config.kind} model without x_sparse; take one of BDH layers")
    settle(folder, {"base": identity(base), "recipe": dataclasses.asdict(free)})


def _train(recipe: Recipe, folder: Path, cache: Path, say: Callable[[str], None]) -> None:
    """Train a contender to its last step, and keep the weights of that step; nothing if they are there."""
    if (folder / _TRAINED).is_dir():
        say(f"{recipe.name}: trained before")
        return
    run = Run(recipe, folder, cache=cache)
    if run.folder.exists():
        run.resume()
    else:
        run.begin()
    for told in fit(run):
        active = "".join(f"  {name} {part:.1%} active" for name, part in told.active.items())
        say(
            f"{recipe.name}: step {told.step}/{told.steps}  {told.bits_per_byte:.3f} bits/byte{active}  "
            f"{told.remaining_s / 60:.1f} min left"
        )
    provenance = {"recipe": dataclasses.asdict(recipe), "steps": run.step}
    checkpoint.write(folder / _TRAINED, run.model.config, plain_tensors(run.model), provenance=provenance)


def _measured(recipes: Mapping[str, Recipe], folder: Path, heard_bytes: int) -> list[Contender]:
    free = recipes[UNSTEERED]
    prepared = [prepare(text, folder / "texts") for text in free.sources(free.parts()[0])]
    cut = [split(one, validation=free.validation, test=free.test) for one in prepared]
    held_out = {one.name: held_out_bytes(one)[:heard_bytes] for one in cut}
    models = {name: load(folder / name / _TRAINED, device="cpu").eval() for name in recipes}
    rates = _rates(models, next(iter(held_out.values())))
    found: list[Contender] = []
    for name, model in models.items():
        activity = Activity()
        with observing(activity):
            bits = {text: bits_per_byte(model, data, streams=_STREAMS) for text, data in held_out.items()}
        mean = statistics.fmean(bits.values())
        lower, middle, upper = statistics.quantiles(rates[name], n=4)
        found.append(
            Contender(
                name,
                recipes[name].activity,
                activity.mean("x_sparse"),
                activity.mean("y_sparse"),
                mean,
                mean - found[0].bits_per_byte if found else 0.0,
                bits,
                middle,
                lower,
                upper,
            )
        )
    return found


def _rates(models: Mapping[str, Model[Any]], text: Bytes) -> dict[str, list[float]]:
    """Bytes a second at which each hears the same bytes one by one, in rounds, so that load on the machine hits all."""
    data = text.tobytes()
    streams = {name: Stream(model) for name, model in models.items()}
    for stream in streams.values():
        stream.feed(data[:_HEARD_BYTES])
    rates: dict[str, list[float]] = {name: [] for name in models}
    for number in range(_ROUNDS):
        start = _HEARD_BYTES + number * _ROUND_BYTES
        piece = [data[i % len(data) : i % len(data) + 1] for i in range(start, start + _ROUND_BYTES)]
        for name, stream in streams.items():
            begun = time.perf_counter()
            for byte in piece:
                stream.feed(byte)
            rates[name].append(_ROUND_BYTES / (time.perf_counter() - begun))
    return rates
