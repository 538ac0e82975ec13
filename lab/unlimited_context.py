"""Is the context unlimited? Memory and time against position, bits per byte, needles, and how many facts are held.

A flat and a hierarchical model hear a text that neither was trained on, byte after byte from an empty memory to each
position: nothing is set. Beside them a Transformer of the same size with a sliding window hears the same; one whose
cache grows is set to each position by filling its cache with random keys and values; and the released form, which
hears everything again for every byte, is timed as far as a budget reaches.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bdh import probe
from bdh.cli import guarded
from bdh.errors import ConfigError
from bdh.models import Model
from train.data import Bytes
from train.evaluate.needle import check_grid, needle_grid
from train.evaluate.position import against_position, long_range
from train.plots import Panel, draw_panels, shrink

from . import capacity, cost
from .claim import (
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
    unheard,
)

NAME, DRAWING = "unlimited-context", "unlimited-context.png"
FAR_BYTES = 1_000_000

MEMORY = Threshold(
    "the memory of a stream does not grow", "memory at the last position over that at the first", 1.0, 1.0
)
TIME = Threshold(
    "a byte takes as long late as early",
    "time of a byte at the last position over that at the first, median of paired rounds",
    1.1,
    1.5,
)
BITS = Threshold(
    "a long past does no harm",
    "bits of the last 8,192 bytes over those of the same bytes after a short past",
    1.01,
    1.05,
)
NEEDLE = Threshold(
    "one sentence is found again in the longest haystack",
    "part of all depths where the hidden word is the likeliest",
    0.9,
    0.5,
    at_least=True,
)
FACTS = Threshold(
    "eight facts told are known when asked", "part of the questions answered right", 0.9, 0.5, at_least=True
)
GROWS = Threshold(
    "a larger state holds more pairs",
    "exponent of the pairs that a memory holds, by its neurons",
    0.8,
    0.4,
    at_least=True,
)
_TOLD_FACTS = 8
_TOLD_COUNTS = (1, 2, 4, _TOLD_FACTS, 16, 32)
_CACHE, _WINDOW, _RELEASED = "Transformer, cache", "Transformer, window", "released form"
_CODES = ("own x_sparse", "own, asked without their mean", "random, as sparse", "random, dense, signed")


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options, command(NAME, arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m lab {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a flat model: a shipped name, a folder or user/repo")
    add("--beside", metavar="CHECKPOINT", default="fledgling", help="a hierarchical one (default: fledgling)")
    add("--positions", metavar="N", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="in bytes")
    add("--far", action="store_true", help=f"hear on to {FAR_BYTES:,} bytes as well (some minutes a model)")
    add("--data", metavar="TEXT", default="english", help="shipped corpus, its held-out part, or file")
    add("--budget", metavar="S", type=float, default=20.0, help="seconds for the released form (default: 20)")
    add("--rounds", metavar="N", type=int, default=31, help="rounds of timing (default: 31)")
    add("--haystacks", metavar="N", type=int, nargs="+", default=[250, 1000, 4000], help="bytes, for needles")
    add("--trials", metavar="N", type=int, default=4, help="needles at each place, four times as many questions")
    add("--pairs", metavar="N", type=int, default=2048, help="most pairs written into a head (default: 2048)")
    add_common(parser, NAME)
    return parser


def _run(options: argparse.Namespace, repeat: str) -> int:
    positions = sorted({*options.positions, *([FAR_BYTES] if options.far else [])})
    cost.check_positions(positions)
    if options.trials < 1 or options.rounds < 3 or options.budget <= 0 or not 16 <= options.pairs <= 16_384:
        raise ConfigError("trials must be at least 1, rounds 3, the budget above 0, and pairs from 16 to 16,384")
    text = unheard(options.data, max(positions))
    check_grid(text, options.haystacks, (0.0, 1.0), options.trials, 8)
    models = {name: opened(given) for name, given in by_name((options.checkpoint, options.beside), ("window",)).items()}
    return done(experiment(models, text, positions, options, repeat), options)


def experiment(
    models: Mapping[str, Model[Any]],
    text: Bytes,
    positions: Sequence[int],
    options: argparse.Namespace,
    repeat: str,
) -> Claim:
    """Measure what is not measured yet, draw it, and say what comes of it.

    Args:
        models: the flat one first, then the one beside it.
    """
    name, other = models
    flat = cost.flat(models[name], name)
    heads = flat.config.n_head
    windowed = cost.baseline(flat.parameter_count(), flat.config.n_layer, heads, 512)
    checksums = {one: model.checksum() for one, model in models.items()}
    settings = {
        "positions": list(positions),
        "text": short_name(options.data),
        "heard_bytes": len(text),
        "budget_s": options.budget,
        "rounds": options.rounds,
        "haystacks": options.haystacks,
        "trials": options.trials,
        "pairs": options.pairs,
    }
    furthest = max(positions)
    expected = {
        **{f"hear-{one}": furthest / 2000 for one in models},
        "hear-window": furthest / 4000,
        "cost": 15.0,
        "released": options.budget,
        **{f"needles-{one}": 5 * options.trials * sum(options.haystacks) / 2500 for one in models},
        **{f"facts-{one}": 20.0 for one in models},
        "pairs": 20.0,
    }
    known = {"checkpoints": identities(models), "texts": {"text": digest(text)}, **settings}
    work = Work(options.out, known, expected, progress(options))
    folders = {one: options.out / "memories" / one for one in (*models, "window")}
    heard = {
        one: work.part(f"hear-{one}", partial(_hear, model, text, positions, folders[one]))
        for one, model in models.items()
    }
    work.part("hear-window", partial(_reach_only, windowed, text, positions, folders["window"]))
    streams = {one: (models[one], folders[one]) for one in models} | {_WINDOW: (windowed, folders["window"])}
    cached = {_CACHE: windowed}
    timed = work.part(
        "cost",
        lambda tell: [
            dataclasses.asdict(one)
            for one in cost.costs(streams, cached, positions, text.tobytes(), rounds=options.rounds, tell=tell)
        ],
    )
    timed += work.part(
        "released",
        lambda tell: [
            dataclasses.asdict(one)
            for one in cost.recomputing(_RELEASED, flat, positions, text, budget_s=options.budget, tell=tell)
        ],
    )
    needles = {
        one: work.part(f"needles-{one}", partial(_needles, model, text, options)) for one, model in models.items()
    }
    facts = {one: work.part(f"facts-{one}", partial(_facts, model, options.trials)) for one, model in models.items()}
    pairs = work.part("pairs", partial(_pairs, flat, text, options.pairs))
    _draw(timed, heard, needles, facts, pairs, options.out / DRAWING)
    return Claim(
        name=NAME,
        title=f"{name}: is its context unlimited?",
        said="BDH has no context window: what it remembers is a state of constant size in its synapses, so that a "
        "stream may go on without bound at a constant cost a byte",
        source="arXiv 2509.26507, §6.1 for long contexts; the released code hears everything again for each byte",
        checkpoints=checksums,
        command=repeat,
        settings=settings,
        checks=tuple(_checks(name, other, timed, heard, needles, facts, pairs)),
        tables=tuple(_tables(timed, heard, needles, facts, pairs)),
        drawings=(DRAWING,),
        notes=(
            "“Heard” means that every byte before the position was heard, one stream from an empty memory; “set”, that "
            "a cache was filled with random keys and values of that many bytes, whose time and size are the same; "
            "“not run”, that the memory is what the shapes say and nothing was timed.",
            f"The text has {len(text):,} bytes that the models did not train on; a stream that goes further hears it "
            "again, and bits per byte are of the first time only.",
            f"Times are of single bytes, medians of {options.rounds} rounds in which all take turns; the released form "
            "is timed once a length, because it takes so long, and its memory is that of its scores and activations.",
            f"The Transformers have fresh weights of about as many parameters ({windowed.parameter_count():,}); the "
            "window sees 512 bytes.",
            "Pairs: a random value is written under each key into one memory as a sum of outer products without "
            f"damping or rotation, and asked for by the same key; from {capacity.LEAST_PAIRS} pairs on, since of two a "
            "guess finds half. A memory holds as many pairs as half are found of. Keys are the model's own x_sparse at "
            "places of the text, or random. What a model can be told in words is the row on facts, not this.",
            "Facts: as many sentences with invented names and words as are told, then a question about one of them; "
            f"right is the likeliest of eight words, seven of them told too where there are so many "
            f"({100 * capacity.CHANCE:.3g} % by guessing).",
        ),
        numbers={"cost": timed, "heard": heard, "needles": needles, "facts": facts, "pairs": pairs},
        measured_s=work.elapsed_s(),
    )


def _hear(model: Model[Any], text: Bytes, positions: Sequence[int], folder: Path, tell: Tell) -> dict[str, Any]:
    bits = cost.reach(model, text, positions, folder, tell=lambda done: tell(0.9 * done))
    heard = text[: len(bits) + 1]
    far = long_range(model, heard, bits)
    return {
        "stretches": [dataclasses.asdict(one) for one in against_position(bits)],
        "far": None if far is None else dataclasses.asdict(far),
    }


def _reach_only(model: Model[Any], text: Bytes, positions: Sequence[int], folder: Path, tell: Tell) -> list[int]:
    cost.reach(model, text, positions, folder, keep_bits=False, tell=tell)
    return list(positions)


def _needles(model: Model[Any], text: Bytes, options: argparse.Namespace, tell: Tell) -> Any:
    return dataclasses.asdict(
        needle_grid(
            model,
            text,
            lengths_bytes=options.haystacks,
            trials=options.trials,
            progress=lambda done, total: tell(done / total),
        )
    )


def _facts(model: Model[Any], trials: int, tell: Tell) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in capacity.told_and_asked(model, _TOLD_COUNTS, 4 * trials, tell=tell)]


def _pairs(model: Model[Any], text: Bytes, most: int, tell: Tell) -> dict[str, Any]:
    """Curves of the model's own keys and of random ones, for memories of several numbers of neurons and widths."""
    layer = model.config.n_layer // 2
    own = capacity.own_keys(model, text[: max(2 * most, 1024)], layer)
    most = min(most, *map(len, own))
    counts = sorted({*(2**power for power in range(2, 15) if 2**power < most), most})
    neurons, width = own[0].shape[1], model.config.n_embd
    active = statistics.fmean(float(probe.active(one).float().mean()) for one in own)
    curves = []
    sizes = capacity.memories(own)
    shapes = [(count, width) for count in sizes] + [(neurons, width // part) for part in (8, 4, 2) if width // part]
    for index, (count, wide) in enumerate(shapes):
        sets = sizes[count]
        keys = {
            _CODES[0]: sets,
            _CODES[1]: sets,
            _CODES[2]: [capacity.sparse_keys(most, count, active, seed) for seed in range(len(sets))],
            _CODES[3]: [capacity.signed_keys(most, count, seed) for seed in range(len(sets))],
        }
        for code, one in keys.items():
            # As many draws of every size, however few sets of keys there are.
            draws = -(-4 * len(own) // len(sets))
            curves.append(capacity.curve(code, one, wide, counts, centred=code == _CODES[1], draws=draws))
        tell((index + 1) / len(shapes))
    by_code = {code: [one for one in curves if one.code == code] for code in _CODES}
    return {
        "layer": layer,
        "active": active,
        "head": [neurons, width],
        "counts": counts,
        "curves": [dataclasses.asdict(one) | {"at_edge": one.at_edge} for one in curves],
        "by_neurons": {code: capacity.slope([c for c in of if c.width == width]) for code, of in by_code.items()},
        "by_width": {
            code: capacity.slope([c for c in of if c.neurons == neurons], "width") for code, of in by_code.items()
        },
    }


def _checks(name: str, other: str, timed: Any, heard: Any, needles: Any, facts: Any, pairs: Any) -> list[Any]:
    mine = [one for one in timed if one["name"] == name]
    first, last = mine[0], mine[-1]
    beside = [one for one in timed if one["name"] == other]
    ratios = [cost.ratio(one[-1]["rounds_ms"], one[0]["rounds_ms"]) for one in (mine, beside)]
    far = heard[name]["far"]
    longest = max(cell["length_bytes"] for cell in needles[name]["cells"])
    rates = {one: _found([c for c in needles[one]["cells"] if c["length_bytes"] == longest]) for one in (name, other)}
    told = {one: _found([t for t in facts[one] if t["facts"] == _TOLD_FACTS]) for one in (name, other)}
    span = f"{first['position_bytes']:,} to {last['position_bytes']:,} bytes"
    own = [one for one in pairs["curves"] if one["code"] == _CODES[0] and one["width"] == pairs["head"][1]]
    fitted = [f"{one['neurons']:,}" for one in own if not one["at_edge"]]
    (head,) = [one for one in own if _shape(one) == pairs["head"]]
    away = heard[other]["far"]
    return [
        MEMORY.judge(last["memory_bytes"] / first["memory_bytes"], f"{last['memory_bytes'] / 1e6:.1f} MB, {span}"),
        TIME.judge(
            ratios[0],
            f"{first['ms_per_byte']:.2f} and {last['ms_per_byte']:.2f} ms, {span}; {other}: {ratios[1]:.3f}",
        ),
        BITS.judge(far and far["ratio"], f"± {far['standard_error']:.4f}; {other}: {away['ratio']:.3f}" if far else ""),
        NEEDLE.judge(
            rates[name], f"{longest:,} bytes; guessing {needles[name]['chance']:.3f}; {other}: {rates[other]:.3f}"
        ),
        FACTS.judge(told[name], f"guessing {capacity.CHANCE:.3f}; {other}: {told[other]:.3f}"),
        GROWS.judge(
            pairs["by_neurons"][_CODES[0]],
            f"its own x_sparse as keys, {', '.join(fitted) or 'no number of'} neurons; a head of {head['neurons']:,} "
            f"holds {_pairs_held(head, pairs)} pairs",
        ),
    ]


def _found(cells: Sequence[Mapping[str, Any]]) -> float:
    return sum(cell["found"] for cell in cells) / sum(cell["trials"] for cell in cells)


def _tables(timed: Any, heard: Any, needles: Any, facts: Any, pairs: Any) -> list[Table]:
    rows = [["form", "position, bytes", "reached", "memory, MB", "ms a byte", "half of the rounds"]]
    for one in timed:
        time = "–" if one["ms_per_byte"] is None else f"{one['ms_per_byte']:,.2f}"
        spread = "" if one["low_ms"] is None else f"{one['low_ms']:,.2f} to {one['high_ms']:,.2f}"
        position = f"{one['position_bytes']:,}"
        rows.append([one["name"], position, one["reached"], f"{one['memory_bytes'] / 1e6:,.1f}", time, spread])
    tables = [Table("Memory and time of one byte more", rows)]
    stretches: dict[int, dict[str, str]] = {}
    for name, found in heard.items():
        for one in found["stretches"]:
            if one["start_bytes"] >= 100 or len(found["stretches"]) == 1:
                stretches.setdefault(one["end_bytes"], {})[name] = f"{one['bits_per_byte']:.3f}"
    rows = [["up to byte", *heard]]
    rows += [[f"{end:,}", *(of.get(name, "") for name in heard)] for end, of in sorted(stretches.items())]
    tables.append(Table("Bits per byte against position", rows))
    cells = {name: {(c["depth"], c["length_bytes"]): c for c in grid["cells"]} for name, grid in needles.items()}
    lengths = sorted({length for of in cells.values() for _, length in of})
    depths = sorted({depth for of in cells.values() for depth, _ in of})
    rows = [["depth", *(f"{name}, {length:,} bytes" for name in cells for length in lengths)]]
    for depth in depths:
        found = [of[depth, length] for of in cells.values() for length in lengths]
        rows.append([f"{depth:.0%}", *(f"{one['found']} of {one['trials']}" for one in found)])
    tables.append(Table("Needles found", rows, "The hidden word is the likeliest of eight."))
    rows = [["facts told", *facts]]
    for index, one in enumerate(next(iter(facts.values()))):
        told = [of[index] for of in facts.values()]
        rows.append([str(one["facts"]), *(f"{t['found']} of {t['trials']}" for t in told)])
    tables.append(Table("Facts told and asked", rows))
    rows = [["neurons", "width", "numbers of state", *_CODES]]
    for shape in dict.fromkeys(tuple(_shape(one)) for one in pairs["curves"]):
        by_code = {one["code"]: one for one in pairs["curves"] if tuple(_shape(one)) == shape}
        sizes = [f"{number:,}" for number in (*shape, shape[0] * shape[1])]
        rows.append([*sizes, *(_pairs_held(by_code[code], pairs) for code in _CODES)])
    for size, exponents in (("neurons", pairs["by_neurons"]), ("width", pairs["by_width"])):
        fitted = [f"{exponents[code]:.2f}" if exponents[code] is not None else "–" for code in _CODES]
        rows.append([f"exponent by {size}", "", "", *fitted])
    neurons, width = pairs["head"]
    note = (
        f"Pairs of which half are found; layer {pairs['layer']}, {pairs['active']:.1%} of its x_sparse active. A head "
        f"has {neurons:,} neurons and a width of {width:,}: smaller memories are drawn from its neurons, larger ones "
        "are two or more heads as one. What is under or over all that was tried is not fitted, nor are fewer than "
        f"{capacity.LEAST_SIZES} sizes."
    )
    return [*tables, Table("Pairs that a memory holds", rows, note)]


def _shape(curve: Mapping[str, Any]) -> list[int]:
    return [curve["neurons"], curve["width"]]


def _pairs_held(curve: Mapping[str, Any], pairs: Any) -> str:
    """A number of pairs; at the edge of what was tried, that it is less or more than that."""
    held = curve["held"]
    if curve["at_edge"]:
        return f"over {max(pairs['counts']):,}" if held >= max(pairs["counts"]) else f"under {min(pairs['counts'])}"
    return f"{held:,.1f}" if held < 10 else f"{held:,.0f}"


def _draw(timed: Any, heard: Any, needles: Any, facts: Any, pairs: Any, path: Path) -> None:
    names = list(dict.fromkeys(one["name"] for one in timed))
    memory = {n: [(o["position_bytes"], o["memory_bytes"] / 1e6) for o in timed if o["name"] == n] for n in names}
    time = {
        n: [(o["position_bytes"], o["ms_per_byte"]) for o in timed if o["name"] == n and o["ms_per_byte"] is not None]
        for n in names
    }
    bits = {
        name: [
            ((one["start_bytes"] * one["end_bytes"]) ** 0.5, one["bits_per_byte"])
            for one in found["stretches"]
            if one["start_bytes"] >= 100 or len(found["stretches"]) == 1
        ]
        for name, found in heard.items()
    }
    needle = {
        name: [
            (length, 100 * _found([cell for cell in grid["cells"] if cell["length_bytes"] == length]))
            for length in sorted({cell["length_bytes"] for cell in grid["cells"]})
        ]
        for name, grid in needles.items()
    }
    told = {name: [(o["facts"], 100 * o["found"] / o["trials"]) for o in found] for name, found in facts.items()}
    held = {
        one["code"]: [(int(count), 100 * rate) for count, rate in one["found"].items()]
        for one in pairs["curves"]
        if _shape(one) == pairs["head"]
    }
    draw_panels(
        [
            Panel("position, bytes", "memory of a stream, MB", memory, log_y=True),
            Panel("position, bytes", "one byte more, ms", time, log_y=True),
            Panel("position, bytes", "bits per byte", bits),
            Panel("haystack, bytes", "needles found at all depths, %", needle),
            Panel("facts told", "asked and known, %", told),
            Panel("pairs written into a head's memory", "found again, %", held),
        ],
        path,
        dpi=80,
    )
    shrink(path)
