"""Does loss follow a law of size and bytes? Short trainings of a handful of sizes, and time and memory by length.

Flat models of several widths, and Transformers of as many parameters, hear the same bytes at a level learning rate; the
losses on their way and at their end are fitted by a law whose intervals come from a bootstrap. Time and memory against
length are those of the checkpoint, beside the released form and a cache that grows.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bdh.cli import guarded
from bdh.config import FlatConfig, config_to_dict
from bdh.errors import ConfigError
from bdh.models.base import skeleton
from bdh.models.flat import Flat
from train.data import Bytes, read_bytes
from train.plots import Panel, draw_panels, shrink

from . import cost, law, short_runs
from .claim import (
    Check,
    Claim,
    Table,
    Tell,
    Threshold,
    Work,
    add_common,
    command,
    digest,
    done,
    identities,
    opened,
    progress,
    short_name,
    unheard,
)
from .network_experiment import tables_of

NAME, DRAWING = "scaling", "scaling.png"

FITS = Threshold("loss follows a law of parameters and bytes", "mean error of the fitted law", 0.01, 0.03, form=".2%")
ALPHA = Threshold(
    "more parameters help, by a power", "lower end of the exponent by parameters, 95 %", 0.05, 0.0001, True, ".3f"
)
BETA = Threshold("more bytes help, by a power", "lower end of the exponent by bytes, 95 %", 0.05, 0.0001, True, ".3f")
FORETELLS = Threshold(
    "the law of the smaller sizes foretells the largest", "error at the largest size's end", 0.02, 0.05, form=".2%"
)
PEER = Threshold(
    "it is as good as a Transformer of equal size", "bits over the Transformer's at the largest size's end", 1.02, 1.1
)
TIME = Threshold("a byte takes as long at any length", "exponent of time by length", 0.05, 0.2)
MEMORY = Threshold("a stream takes as much memory at any length", "exponent of memory by length", 0.001, 0.01)
_FLAT, _TRANSFORMER = "flat", "Transformer"
RATES = {_FLAT: 4e-3, _TRANSFORMER: 1e-3}
"""Learning rates; at that of the flat models a Transformer diverged in a first try."""
_CACHE, _RELEASED = "Transformer, cache", "released form"


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options, command(NAME, arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m lab {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a flat model, for time and memory; its depth and heads are trained")
    add("--widths", metavar="D", type=int, nargs="+", default=[16, 24, 32, 48, 64], help="sizes that are trained")
    add("--data", metavar="TEXT", default="english", help="shipped corpus or file that is trained on")
    add("--steps", metavar="N", type=int, default=240, help="of each training (default: 240)")
    add("--rows", metavar="N", type=int, default=4, help="of each training (default: 4)")
    add("--chunk", metavar="N", type=int, default=128, help="bytes between two steps (default: 128)")
    add("--lengths", metavar="N", type=int, nargs="+", default=[1000, 4000, 16_000], help="for time and memory, bytes")
    add("--budget", metavar="S", type=float, default=10.0, help="seconds for the released form (default: 10)")
    add("--rounds", metavar="N", type=int, default=31, help="rounds of timing (default: 31)")
    add("--network", metavar="FOLDER", type=Path, help="of python -m lab network, whose tables are put in")
    add_common(parser, NAME)
    return parser


def _run(options: argparse.Namespace, repeat: str) -> int:
    cost.check_positions(options.lengths)
    if len(set(options.widths)) < 4 or not all(8 <= width <= 4096 for width in options.widths):
        raise ConfigError(f"widths are {options.widths}; a law needs at least four that differ, each 8 to 4,096")
    if not 32 <= options.steps <= 10_000_000 or not 1 <= options.rows <= 4096 or not 16 <= options.chunk <= 65_536:
        raise ConfigError("a training takes at least 32 steps of 1 to 4,096 rows of 16 to 65,536 bytes")
    model = cost.flat(opened(options.checkpoint), options.checkpoint)
    return done(experiment(model, options, repeat), options)


def experiment(model: Flat, options: argparse.Namespace, repeat: str) -> Claim:
    """Train what is not trained yet, fit, draw, and say what comes of it."""
    extra = [] if options.network is None else tables_of(options.network)
    name = short_name(options.checkpoint)
    lengths = sorted(set(options.lengths))
    text = unheard(options.data, max(lengths))
    configs = {width: sized(model.config, width) for width in sorted(set(options.widths))}
    parameters = {width: skeleton(config).parameter_count() for width, config in configs.items()}
    settings = {
        "widths": list(configs),
        "text": short_name(options.data),
        "steps": options.steps,
        "rows": options.rows,
        "chunk": options.chunk,
        "lengths": lengths,
        "budget_s": options.budget,
        "rounds": options.rounds,
    }
    heard = options.steps * options.rows * options.chunk
    expected = {
        f"{kind.lower()}-{width}": 4 + heard * (5e-5 + parameters[width] * 1.3e-10 * layers)
        for width in configs
        for kind, layers in ((_FLAT, model.config.n_layer), (_TRANSFORMER, 1))
    } | {"hear": max(lengths) / 2000, "cost": 6.0, "released": options.budget}
    checksums = {name: model.checksum()}
    known = {"checkpoints": identities({name: model}), "texts": {"text": digest(read_bytes(options.data))}, **settings}
    work = Work(options.out, known, expected, progress(options))
    curves: dict[str, dict[int, Any]] = {_FLAT: {}, _TRANSFORMER: {}}
    sizes: dict[str, dict[int, int]] = {_FLAT: parameters, _TRANSFORMER: {}}
    for width, config in configs.items():
        peer = cost.baseline(parameters[width], config.n_layer, config.n_head, 512)
        sizes[_TRANSFORMER][width] = peer.parameter_count()
        for kind, fields in ((_FLAT, config_to_dict(config)), (_TRANSFORMER, config_to_dict(peer.config))):
            part = f"{kind.lower()}-{width}"
            curves[kind][width] = work.part(
                part,
                partial(_trained, part, kind, fields, options),
            )
    memories = options.out / "memories"
    work.part("hear", partial(_reach, model, text, lengths, memories))
    cached = {_CACHE: cost.baseline(model.parameter_count(), model.config.n_layer, model.config.n_head, 512)}
    timed = work.part(
        "cost",
        lambda tell: [
            dataclasses.asdict(one)
            for one in cost.costs(
                {name: (model, memories)}, cached, lengths, text.tobytes(), rounds=options.rounds, tell=tell
            )
        ],
    ) + work.part(
        "released",
        lambda tell: [
            dataclasses.asdict(one)
            for one in cost.recomputing(_RELEASED, model, lengths, text, budget_s=options.budget, tell=tell)
        ],
    )
    points = {
        kind: {
            width: [law.Point(sizes[kind][width], one[0], one[1]) for one in found] for width, found in of_kind.items()
        }
        for kind, of_kind in curves.items()
    }
    # The first stretch is the warm-up of the rate and of the model, which no law is about.
    settled = {kind: {w: found[len(found) // 4 :] for w, found in of.items()} for kind, of in points.items()}
    laws = {kind: law.fit([one for found in of.values() for one in found]) for kind, of in settled.items()}
    widest = max(configs)
    smaller = law.fit([one for width, found in settled[_FLAT].items() if width != widest for one in found], draws=2)
    ends = {kind: of[widest][-1] for kind, of in points.items()}
    _draw(points, laws, timed, options.out / DRAWING)
    return Claim(
        name=NAME,
        title="Does the loss of flat models follow a law of size and bytes?",
        said="BDH follows scaling laws like a Transformer's and rivals it at equal parameters and training data, from "
        "10 M to 1 B parameters",
        source="arXiv 2509.26507, abstract and §4",
        checkpoints=checksums,
        command=repeat,
        settings=settings,
        checks=tuple(_checks(name, laws[_FLAT], smaller, ends, timed)),
        tables=(*_tables(points, laws, timed), *extra),
        drawings=(DRAWING,),
        notes=(
            f"Sizes are far below those of the paper ({min(parameters.values()):,} to {max(parameters.values()):,} "
            f"parameters) and so are the bytes ({heard:,} each): what is tested is whether the form of the law holds "
            "here, not its constants there.",
            f"All models of a kind differ in width alone. The learning rate is level ({RATES[_FLAT]:g} of flat models, "
            f"{RATES[_TRANSFORMER]:g} of Transformers), so that each validation on the way counts as a loss after so "
            "many bytes; neither rate was searched for, and a better one may be worth more to the Transformers. The "
            "first quarter of each training is not fitted.",
            f"Intervals: {law.DRAWS} fits to residuals drawn anew. Points of one training hang together, so that "
            "they are rather too narrow.",
            f"Time and memory are of {name} at positions that were heard, and of a cache that was filled with random "
            "keys and values; the released form is timed as far as the budget reaches.",
        ),
        numbers={
            "points": {kind: [dataclasses.asdict(p) for f in of.values() for p in f] for kind, of in points.items()},
            "laws": {kind: dataclasses.asdict(one) for kind, one in laws.items()},
            "cost": timed,
        },
        measured_s=work.elapsed_s(),
    )


def sized(like: FlatConfig, width: int) -> FlatConfig:
    """A configuration of another width, with the depth, heads, neurons a width and damping of one."""
    if width * like.mlp_internal_dim_multiplier % (2 * like.n_head):
        raise ConfigError(f"a width of {width} does not give {like.n_head} heads an even number of neurons")
    return dataclasses.replace(like, n_embd=width, dropout=0.0)


def _trained(
    name: str, kind: str, fields: Mapping[str, Any], options: argparse.Namespace, tell: Tell
) -> list[list[float]]:
    """Bytes heard and bits per byte of each validation."""
    asked = short_runs.recipe(
        name,
        fields,
        steps=options.steps,
        rows=options.rows,
        chunk_bytes=options.chunk,
        text=options.data,
        learning_rate=RATES[kind],
    )
    measures = short_runs.train(asked, options.out / "runs" / name, options.out / "texts", tell)
    return [
        [one["heard_bytes"], sum(one["validation"].values()) / len(one["validation"])]
        for one in measures
        if one["validation"] and one["heard_bytes"]
    ]


def _reach(model: Flat, text: Bytes, lengths: Sequence[int], folder: Path, tell: Tell) -> list[int]:
    cost.reach(model, text, lengths, folder, keep_bits=False, tell=tell)
    return list(lengths)


def _checks(
    name: str, found: law.Law, smaller: law.Law, ends: Mapping[str, law.Point], timed: Sequence[Mapping[str, Any]]
) -> list[Check]:
    end, peer = ends[_FLAT], ends[_TRANSFORMER]
    foretold = smaller.at(end.parameters, end.heard_bytes)
    mine = [(one["position_bytes"], one["ms_per_byte"]) for one in timed if one["name"] == name]
    memory = [(one["position_bytes"], one["memory_bytes"]) for one in timed if one["name"] == name]
    of_cache = law.exponent([(one["position_bytes"], one["memory_bytes"]) for one in timed if one["name"] == _CACHE])
    released = law.exponent(
        [
            (one["position_bytes"], one["ms_per_byte"])
            for one in timed
            if one["name"] == _RELEASED and one["ms_per_byte"]
        ]
    )
    return [
        FITS.judge(found.error),
        ALPHA.judge(found.low["alpha"], f"{found.alpha:.3f}, to {found.high['alpha']:.3f}"),
        BETA.judge(found.low["beta"], f"{found.beta:.3f}, to {found.high['beta']:.3f}"),
        FORETELLS.judge(abs(foretold / end.bits_per_byte - 1), f"{foretold:.3f} for {end.bits_per_byte:.3f} bits"),
        PEER.judge(
            end.bits_per_byte / peer.bits_per_byte, f"{end.bits_per_byte:.3f} and {peer.bits_per_byte:.3f} bits"
        ),
        TIME.judge(law.exponent(mine), f"released form: {released:.2f}" if released is not None else ""),
        MEMORY.judge(law.exponent(memory), f"cache: {of_cache:.2f}" if of_cache is not None else ""),
    ]


def _tables(
    points: Mapping[str, Mapping[int, Sequence[law.Point]]], laws: Mapping[str, law.Law], timed: Any
) -> list[Table]:
    times = sorted({one.heard_bytes for of in points.values() for found in of.values() for one in found})
    shown = times[:: max(1, len(times) // 4)]
    shown = shown if shown[-1] == times[-1] else [*shown, times[-1]]
    rows = [["kind", "width of the flat one", "parameters", *(f"{heard:,} bytes" for heard in shown)]]
    for kind, of_kind in points.items():
        for width, found in of_kind.items():
            by = {one.heard_bytes: f"{one.bits_per_byte:.3f}" for one in found}
            rows.append([kind, str(width), f"{found[0].parameters:,}", *(by.get(heard, "–") for heard in shown)])
    terms = ("floor", "by_parameters", "alpha", "by_bytes", "beta")
    fitted = [["law", "E, bits", "A", "α", "C", "β", "mean error"]]
    for kind, one in laws.items():
        cells = [f"{getattr(one, term):.3f} ({one.low[term]:.3f} to {one.high[term]:.3f})" for term in terms]
        fitted.append([kind, *cells, f"{one.error:.2%}"])
    lengths = [["form", "length, bytes", "reached", "memory, MB", "ms a byte"]]
    for one in timed:
        time = "–" if one["ms_per_byte"] is None else f"{one['ms_per_byte']:,.2f}"
        size = f"{one['memory_bytes'] / 1e6:,.1f}"
        lengths.append([one["name"], f"{one['position_bytes']:,}", one["reached"], size, time])
    note = "L = E + A (P₀ / P)^α + C (B₀ / B)^β bits per byte, with the least parameters P₀ and bytes B₀ of the fit."
    return [
        Table("Validation loss, bits per byte", rows),
        Table("The fitted law", fitted, note),
        Table("Time and memory against length", lengths),
    ]


def _draw(
    points: Mapping[str, Mapping[int, Sequence[law.Point]]], laws: Mapping[str, law.Law], timed: Any, path: Path
) -> None:
    ends: dict[str, list[tuple[float, float]]] = {
        f"{kind}, measured": [(found[-1].parameters, found[-1].bits_per_byte) for found in of.values()]
        for kind, of in points.items()
    }
    for kind, of in points.items():
        last = [found[-1] for found in of.values()]
        ends[f"{kind}, law"] = [(one.parameters, laws[kind].at(one.parameters, one.heard_bytes)) for one in last]
    course: dict[str, list[tuple[float, float]]] = {
        f"{found[0].parameters:,} parameters": [(one.heard_bytes, one.bits_per_byte) for one in found]
        for found in points[_FLAT].values()
    }
    names = list(dict.fromkeys(one["name"] for one in timed))
    draw_panels(
        [
            Panel("parameters", "bits per byte at the end", ends),
            Panel("bytes heard", "bits per byte, flat", course),
            Panel(
                "length, bytes",
                "one byte more, ms",
                {
                    n: [(o["position_bytes"], o["ms_per_byte"]) for o in timed if o["name"] == n and o["ms_per_byte"]]
                    for n in names
                },
                log_y=True,
            ),
            Panel(
                "length, bytes",
                "memory, MB",
                {n: [(o["position_bytes"], o["memory_bytes"] / 1e6) for o in timed if o["name"] == n] for n in names},
                log_y=True,
            ),
        ],
        path,
        dpi=80,
    )
    shrink(path)
