"""Does loss follow a law of size and bytes? Short trainings of a handful of sizes, and time and memory by length.

Flat models of several widths, and Transformers of as many parameters within 2 %, hear the same bytes at level learning
rates, of which the best is taken for each; the losses on their way and at their end are fitted by a law whose intervals
come from a bootstrap. A width without such a Transformer gives way to the nearest that has one. Time and memory against
length are those of the checkpoint, beside the released form and a cache that grows.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bdh.cli import guarded
from bdh.config import FlatConfig, TransformerConfig, config_to_dict
from bdh.errors import ConfigError
from bdh.models import parameter_count
from bdh.models.flat import Flat
from train.data import Bytes, read_bytes
from train.plots import Panel, draw_panels, shrink

from . import cost, law, short_runs
from .baseline import transformer_of
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
FALLS = Threshold(
    "losses at the end fall with size, or the fit is not about it",
    "flat models that end no lower than the next smaller one",
    0,
    0,
    form=".0f",
    control=True,
)
EQUAL = 0.02
"""Parts of a flat model's parameters by which a Transformer beside it may differ."""
SIZES = Threshold(
    "the Transformers beside are of equal size",
    "largest difference in parameters",
    EQUAL,
    EQUAL,
    form=".2%",
    control=True,
)
_FLAT, _TRANSFORMER = "flat", "Transformer"
RATES = {_FLAT: (2e-3, 4e-3), _TRANSFORMER: (1e-3, 2e-3)}
"""Learning rates that are tried for every model; at 4e-3 Transformers diverged in a first try."""
_REACH = 1.5
"""How many times as wide, or as narrow, as was asked a width may become to have a Transformer of equal size."""
_CACHE, _RELEASED = "Transformer, cache", "released form"
_WINDOW = 512


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
    told = "sizes that are trained, or the nearest with a Transformer of equal size (default: %(default)s)"
    add("--widths", metavar="D", type=int, nargs="+", default=[22, 33, 45, 56, 73], help=told)
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
    pairs = equals(model.config, options.widths)
    parameters = {width: parameter_count(config) for width, (config, _) in pairs.items()}
    settings = {
        "widths asked": sorted(set(options.widths)),
        "widths": list(pairs),
        "rates": [rate for rates in RATES.values() for rate in rates],
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
        _part(kind, width, rate): 4 + heard * (5e-5 + parameters[width] * 1.3e-10 * layers)
        for width in pairs
        for kind, layers in ((_FLAT, model.config.n_layer), (_TRANSFORMER, 1))
        for rate in RATES[kind]
    } | {"hear": max(lengths) / 2000, "cost": 6.0, "released": options.budget}
    checksums = {name: model.checksum()}
    known = {"checkpoints": identities({name: model}), "texts": {"text": digest(read_bytes(options.data))}, **settings}
    work = Work(options.out, known, expected, progress(options))
    curves: dict[str, dict[int, Any]] = {_FLAT: {}, _TRANSFORMER: {}}
    best: dict[str, dict[int, float]] = {_FLAT: {}, _TRANSFORMER: {}}
    sizes: dict[str, dict[int, int]] = {_FLAT: parameters, _TRANSFORMER: {}}
    for width, (config, peer) in pairs.items():
        sizes[_TRANSFORMER][width] = parameter_count(peer)
        for kind, one in ((_FLAT, config), (_TRANSFORMER, peer)):
            found = {}
            for rate in RATES[kind]:
                part = _part(kind, width, rate)
                found[rate] = work.part(part, partial(_trained, part, rate, config_to_dict(one), options))
            best[kind][width] = min(found, key=lambda rate: float(found[rate][-1][1]))
            curves[kind][width] = found[best[kind][width]]
    memories = options.out / "memories"
    work.part("hear", partial(_reach, model, text, lengths, memories))
    cached = {_CACHE: cost.baseline(model.parameter_count(), model.config.n_layer, model.config.n_head, _WINDOW)}
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
    widest = max(pairs)
    smaller = law.fit([one for width, found in settled[_FLAT].items() if width != widest for one in found], draws=2)
    ends = {kind: [of[width][-1] for width in pairs] for kind, of in points.items()}
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
        tables=(*_tables(points, best, laws, timed), *extra),
        drawings=(DRAWING,),
        notes=(
            f"Sizes are far below those of the paper ({min(parameters.values()):,} to {max(parameters.values()):,} "
            f"parameters) and so are the bytes ({heard:,} each): what is tested is whether the form of the law holds "
            "here, not its constants there.",
            "All models of a kind differ in width alone, and each Transformer has as many parameters as the flat model "
            f"beside it within {EQUAL:.0%}{_moved(settings)}. Learning rates are level, so that each validation on the "
            f"way counts as a loss after so many bytes; every model is trained at {_either(_FLAT)} (Transformers at "
            f"{_either(_TRANSFORMER)}), and the rate that ends lowest is taken: a wider search may be worth more to "
            "either kind. One seed. The first quarter of each training is not fitted.",
            f"Intervals: {law.DRAWS} fits, in each of which every size has the residuals of a size drawn anew; "
            f"{len(pairs)} sizes are few to draw from.",
            f"Time and memory are of {name} at positions that were heard, and of the cache of a Transformer of "
            f"{cached[_CACHE].parameter_count():,} parameters ({name}: {model.parameter_count():,}) that was filled "
            "with random keys and values; the released form is timed as far as the budget reaches.",
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


def equals(like: FlatConfig, widths: Sequence[int]) -> dict[int, tuple[FlatConfig, TransformerConfig]]:
    """Flat models of some widths, each with a Transformer of as many layers and heads and of equal size.

    Returns:
        By width, ascending. Where a width has no such Transformer, the nearest that has one, and that no other width
        asked for takes, stands for it.

    Raises:
        ConfigError: none is near.
    """
    found: dict[int, tuple[FlatConfig, TransformerConfig]] = {}
    for asked in sorted(set(widths)):
        near = range(math.ceil(max(2, asked / _REACH)), int(asked * _REACH) + 1)
        for width in sorted(near, key=lambda one: (abs(one - asked), one)):
            if width not in found and (pair := _equal(like, width)) is not None:
                found[width] = pair
                break
        else:
            raise ConfigError(
                f"no width from {near[0]} to {near[-1]} that is still free gives {like.n_head} heads an even number of "
                f"neurons and has a Transformer of {like.n_layer} layers within {EQUAL:.0%} of its size, for the width "
                f"of {asked} that was asked for; give a larger --widths"
            )
    return dict(sorted(found.items()))


def _equal(like: FlatConfig, width: int) -> tuple[FlatConfig, TransformerConfig] | None:
    if width * like.mlp_internal_dim_multiplier % (2 * like.n_head):
        return None
    config = sized(like, width)
    peer = transformer_of(parameter_count(config), like.n_layer, like.n_head, _WINDOW)
    return (config, peer) if _apart(config, peer) <= EQUAL else None


def _apart(config: FlatConfig, peer: TransformerConfig) -> float:
    """Parts of its parameters by which a Transformer is larger or smaller."""
    return abs(parameter_count(peer) / parameter_count(config) - 1)


def _moved(settings: Mapping[str, Any]) -> str:
    """Which widths were not as asked, in words."""
    if settings["widths asked"] == settings["widths"]:
        return ""
    asked, taken = (", ".join(map(str, settings[key])) for key in ("widths asked", "widths"))
    return f": widths {taken}, the nearest that have one, in place of {asked}"


def _either(kind: str) -> str:
    return " and at ".join(f"{rate:g}" for rate in RATES[kind])


def _part(kind: str, width: int, rate: float) -> str:
    return f"{kind.lower()}-{width}-{rate:g}"


def _trained(
    name: str, rate: float, fields: Mapping[str, Any], options: argparse.Namespace, tell: Tell
) -> list[list[float]]:
    """Bytes heard and bits per byte of each validation."""
    asked = short_runs.recipe(
        name,
        fields,
        steps=options.steps,
        rows=options.rows,
        chunk_bytes=options.chunk,
        text=options.data,
        learning_rate=rate,
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
    name: str,
    found: law.Law,
    smaller: law.Law,
    ends: Mapping[str, Sequence[law.Point]],
    timed: Sequence[Mapping[str, Any]],
) -> list[Check]:
    end, peer = ends[_FLAT][-1], ends[_TRANSFORMER][-1]
    foretold = smaller.at(end.parameters, end.heard_bytes)
    rising = {kind: _rising(of) for kind, of in ends.items()}
    apart = max(abs(b.parameters / a.parameters - 1) for a, b in zip(ends[_FLAT], ends[_TRANSFORMER], strict=True))
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

    def by_size(threshold: Threshold, value: float, note: str) -> Check:
        """Nothing is said of size where more of it did not help."""
        if not rising[_FLAT]:
            return threshold.judge(value, note)
        shown = format(value, threshold.form)
        return threshold.judge(None, f"{shown} ({note}), but losses at the end do not all fall with size")

    return [
        by_size(FITS, found.error, "of all validations but the first quarter's"),
        by_size(ALPHA, found.low["alpha"], f"{found.alpha:.3f}, to {found.high['alpha']:.3f}"),
        BETA.judge(found.low["beta"], f"{found.beta:.3f}, to {found.high['beta']:.3f}"),
        by_size(FORETELLS, abs(foretold / end.bits_per_byte - 1), f"{foretold:.3f} for {end.bits_per_byte:.3f} bits"),
        PEER.judge(
            end.bits_per_byte / peer.bits_per_byte, f"{end.bits_per_byte:.3f} and {peer.bits_per_byte:.3f} bits"
        ),
        TIME.judge(law.exponent(mine), f"released form: {released:.2f}" if released is not None else ""),
        MEMORY.judge(law.exponent(memory), f"cache: {of_cache:.2f}" if of_cache is not None else ""),
        FALLS.judge(rising[_FLAT], f"of {len(ends[_FLAT]) - 1}; Transformers: {rising[_TRANSFORMER]}"),
        SIZES.judge(apart),
    ]


def _rising(ends: Sequence[law.Point]) -> int:
    """How many end no lower than the next smaller one."""
    return sum(later.bits_per_byte >= one.bits_per_byte for one, later in itertools.pairwise(ends))


def _tables(
    points: Mapping[str, Mapping[int, Sequence[law.Point]]],
    best: Mapping[str, Mapping[int, float]],
    laws: Mapping[str, law.Law],
    timed: Any,
) -> list[Table]:
    times = sorted({one.heard_bytes for of in points.values() for found in of.values() for one in found})
    shown = times[:: max(1, len(times) // 4)]
    shown = shown if shown[-1] == times[-1] else [*shown, times[-1]]
    rows = [["kind", "width of the flat one", "parameters", "rate", *(f"{heard:,} bytes" for heard in shown)]]
    for kind, of_kind in points.items():
        for width, found in of_kind.items():
            by = {one.heard_bytes: f"{one.bits_per_byte:.3f}" for one in found}
            told = [kind, str(width), f"{found[0].parameters:,}", f"{best[kind][width]:g}"]
            rows.append([*told, *(by.get(heard, "–") for heard in shown)])
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
    note = (
        "L = E + A (P₀ / P)^α + C (B₀ / B)^β bits per byte, with the least parameters P₀ and bytes B₀ of the fit. In "
        f"brackets 95 %; terms are at most {law.MOST:g} and exponents {law.MOST_EXPONENT:g}, none below 0: an end "
        "there is none."
    )
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
