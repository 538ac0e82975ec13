"""Is a hierarchical model worth its patches? Bits per byte, time, memory and the long run beside a flat one.

Both hear the same held-out bytes of every shipped text in the same blocks. Two models that were trained alike, by
`python -m train compare`, can be named by their folders: RUN/flat/checkpoint RUN/hierarchical/checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from bdh.cli import guarded
from bdh.errors import ConfigError
from bdh.models import Model
from bdh.models.hierarchical import Hierarchical
from train.data import Bytes
from train.evaluate.position import against_position, long_range
from train.plots import Panel, draw_panels, shrink

from . import cost
from .causality import moved
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
from .crossed import Costs, Estimate, Hearing, compare, listen

NAME, DRAWING = "hierarchy", "hierarchy.png"

BITS = Threshold(
    "it predicts at least as well", "mean over texts of the hierarchical model's bits over the flat one's", 1.0, 1.1
)
TIME = Threshold(
    "a byte takes less time", "time of one byte more over the flat one's, median of paired rounds", 0.67, 1.0
)
MEMORY = Threshold("a stream takes no more memory", "memory of a stream over the flat one's", 1.0, 1.5)
LONG = Threshold(
    "a long past does it no harm",
    "bits of the last 8,192 bytes over those of the same bytes after a short past",
    1.01,
    1.05,
)
CAUSAL = Threshold(
    "it sees no byte before it has predicted it", "earlier logits that moved", 0, 0, form=".0f", control=True
)


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options, command(NAME, arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m lab {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("flat", metavar="FLAT", help="a flat model: a shipped name, a folder or user/repo")
    add("hierarchical", metavar="HIERARCHICAL", help="a hierarchical one")
    add("--texts", metavar="TEXT", nargs="+", default=["chat", "english"], help="shipped corpora or files")
    add("--bytes", metavar="N", type=int, default=16_384, help="of each text (default: 16,384)")
    add("--positions", metavar="N", type=int, nargs="+", default=[1000, 20_000], help="time a byte here, in bytes")
    add("--rounds", metavar="N", type=int, default=31, help="rounds of timing (default: 31)")
    add_common(parser, NAME)
    return parser


def _run(options: argparse.Namespace, repeat: str) -> int:
    cost.check_positions(options.positions)
    if options.bytes < 1024 or options.rounds < 3:
        raise ConfigError(f"--bytes is {options.bytes} and --rounds {options.rounds}; they are at least 1,024 and 3")
    flat, other = opened(options.flat), opened(options.hierarchical)
    cost.flat(flat, options.flat)
    if not isinstance(other, Hierarchical):
        raise ConfigError(f"{options.hierarchical} is a {other.config.kind} model; name a hierarchical one second")
    names = [short_name(options.flat), short_name(options.hierarchical)]
    if names[0] == names[1]:  # such as two folders called checkpoint
        names = ["flat", "hierarchical"]
    return done(experiment(dict(zip(names, (flat, other), strict=True)), options, repeat), options)


def experiment(models: Mapping[str, Model[Any]], options: argparse.Namespace, repeat: str) -> Claim:
    """Measure what is not measured yet, draw it, and say what comes of it.

    Args:
        models: the flat one first, then the hierarchical one.
    """
    flat, other = models
    positions = sorted(set(options.positions))
    texts = {name: unheard(text, options.bytes) for name, text in by_name(options.texts).items()}
    longest = unheard(options.texts[-1], max(positions))
    checksums = {name: model.checksum() for name, model in models.items()}
    settings = {
        "texts": list(texts),
        "bytes": options.bytes,
        "positions": positions,
        "rounds": options.rounds,
        "long_bytes": len(longest),
    }
    size = sum(map(len, texts.values()))
    expected = {
        **{f"texts-{name}": size / 5000 for name in models},
        **{f"hear-{name}": max(positions) / 2000 for name in models},
        "cost": 8.0,
    }
    known = {
        "checkpoints": identities(models),
        "texts": {**{name: digest(one) for name, one in texts.items()}, "longest": digest(longest)},
        **settings,
    }
    work = Work(options.out, known, expected, progress(options))
    bits = {name: work.part(f"texts-{name}", partial(_bits, model, texts)) for name, model in models.items()}
    folders = {name: options.out / "memories" / name for name in models}
    heard = {
        name: work.part(f"hear-{name}", partial(_hear, model, longest, positions, folders[name]))
        for name, model in models.items()
    }
    timed, ratios = work.part("cost", partial(_timed, models, folders, positions, longest, options.rounds))
    hearings = {
        name: Hearing(
            {text: Costs(np.array(one["bits"]), np.array(one["bytes"])) for text, one in bits[name].items()},
            models[name].parameter_count(),
            0.0,
        )
        for name in models
    }
    rows = compare(hearings, specialists=dict.fromkeys(texts, flat))
    ratio = rows.row(other).ratio
    size_ratio = models[other].state_bytes() / models[flat].state_bytes()
    leaks = moved(lambda ids: models[other](ids, keep_state=False).logits, 256)
    far = heard[other]["far"]
    _draw(timed, heard, {name: rows.row(name).texts for name in models}, options)
    return Claim(
        name=NAME,
        title=f"{other}: is a hierarchical model worth its patches, beside {flat}?",
        said="a global model over patches of bytes and a local one within a patch reach 0.24 bits per byte (see "
        "causality); that patches are better and cheaper than single bytes is what would make them worth having",
        source="README of newsbubbles/bdh; the second half is ours",
        checkpoints=checksums,
        command=repeat,
        settings=settings,
        checks=(
            BITS.judge(ratio.mean, f"95 %: {ratio.low:.3f} to {ratio.high:.3f}"),
            TIME.judge(ratios[-1], f"at byte {positions[-1]:,}; at byte {positions[0]:,}: {ratios[0]:.3f}"),
            MEMORY.judge(size_ratio, " and ".join(f"{model.state_bytes() / 1e6:.1f} MB" for model in models.values())),
            LONG.judge(far and far["ratio"], _beside(flat, heard[flat]["far"])),
            CAUSAL.judge(float(leaks.before), f"{leaks.tried} bytes changed"),
        ),
        tables=tuple(_tables(models, rows.rows, timed, heard)),
        drawings=(DRAWING,),
        notes=(
            "Shipped models were not trained alike: "
            + "; ".join(
                f"{name} has {model.parameter_count():,} parameters{_trained(model)}" for name, model in models.items()
            )
            + ". The ratio is of these two checkpoints, not of the two architectures at equal cost.",
            "Bits per byte: eight streams a text with their state carried, the same blocks for both; intervals of 95 % "
            "by t over blocks of about 512 bytes, paired for the ratio.",
            f"Time: single bytes after every byte before was heard, {options.rounds} rounds in which all take turns, "
            "each with the mean of 8 or 16 bytes in a row: a patch's last byte costs the hierarchical model more than "
            "its others.",
        ),
        numbers={"bits": {name: _means(rows.row(name).texts) for name in models}, "cost": timed, "heard": heard},
        measured_s=work.elapsed_s(),
    )


def _bits(model: Model[Any], texts: Mapping[str, Bytes], tell: Tell) -> dict[str, Any]:
    heard = listen(model, texts, progress=lambda done, total: tell(done / total))
    return {
        text: {"bits": [round(float(bits), 3) for bits in costs.bits], "bytes": costs.bytes.tolist()}
        for text, costs in heard.costs.items()
    }


def _hear(model: Model[Any], text: Bytes, positions: Sequence[int], folder: Any, tell: Tell) -> dict[str, Any]:
    bits = cost.reach(model, text, positions, folder, tell=lambda done: tell(0.8 * done))
    far = long_range(model, text[: len(bits) + 1], bits)
    return {
        "stretches": [dataclasses.asdict(one) for one in against_position(bits)],
        "far": None if far is None else dataclasses.asdict(far),
    }


def _timed(
    models: Mapping[str, Model[Any]],
    folders: Mapping[str, Any],
    positions: Sequence[int],
    text: Bytes,
    rounds: int,
    tell: Tell,
) -> tuple[list[dict[str, Any]], list[float]]:
    """What a byte costs, and by position how much of the first model's time the second takes."""
    streams = {name: (model, folders[name]) for name, model in models.items()}
    found = cost.costs(streams, {}, positions, text.tobytes(), rounds=rounds, tell=tell)
    flat, other = ([one for one in found if one.name == name] for name in models)
    ratios = [cost.ratio(mine.rounds_ms, theirs.rounds_ms) for theirs, mine in zip(flat, other, strict=True)]
    return [dataclasses.asdict(one) for one in found], ratios


def _beside(name: str, far: Mapping[str, Any] | None) -> str:
    return f"{name}: {far['ratio']:.3f}" if far else "the text is too short"


def _trained(model: Model[Any]) -> str:
    heard = (model.origin.provenance if model.origin else {}).get("bytes_heard")
    return f" and heard {heard:,} bytes in its last run" if isinstance(heard, int) else ""


def _means(texts: Mapping[str, Estimate]) -> dict[str, float]:
    return {text: one.mean for text, one in texts.items()}


def _tables(models: Mapping[str, Model[Any]], rows: Any, timed: Any, heard: Any) -> list[Table]:
    texts = list(rows[0].texts)
    cells = [["bits per byte", *texts, "parameters", "memory of a stream, MB"]]
    for row, model in zip(rows, models.values(), strict=True):
        bits = [
            f"{row.texts[text].mean:.3f} ({row.texts[text].low:.3f} to {row.texts[text].high:.3f})" for text in texts
        ]
        cells.append([row.name, *bits, f"{row.parameters:,}", f"{model.state_bytes() / 1e6:.1f}"])
    first = {one["name"]: one for one in reversed(timed)}
    times = [["one byte more", "position, bytes", "ms", "half of the rounds", "over the first position"]]
    for one in timed:
        times.append(
            [
                one["name"],
                f"{one['position_bytes']:,}",
                f"{one['ms_per_byte']:.2f}",
                f"{one['low_ms']:.2f} to {one['high_ms']:.2f}",
                f"{cost.ratio(one['rounds_ms'], first[one['name']]['rounds_ms']):.3f}",
            ]
        )
    by_end: dict[int, dict[str, str]] = {}
    for name, found in heard.items():
        for one in found["stretches"]:
            if one["start_bytes"] >= 100 or len(found["stretches"]) == 1:
                by_end.setdefault(one["end_bytes"], {})[name] = f"{one['bits_per_byte']:.3f}"
    along = [
        ["up to byte", *heard],
        *([f"{end:,}", *(of.get(n, "") for n in heard)] for end, of in sorted(by_end.items())),
    ]
    return [
        Table("The same held-out bytes", cells),
        Table("Time", times),
        Table("Bits per byte against position", along),
    ]


def _draw(timed: Any, heard: Any, texts: Mapping[str, Mapping[str, Estimate]], options: argparse.Namespace) -> None:
    names = list(heard)
    draw_panels(
        [
            Panel(
                "position, bytes",
                "bits per byte",
                {
                    name: [
                        ((one["start_bytes"] * one["end_bytes"]) ** 0.5, one["bits_per_byte"])
                        for one in found["stretches"]
                        if one["start_bytes"] >= 100 or len(found["stretches"]) == 1
                    ]
                    for name, found in heard.items()
                },
            ),
            Panel(
                "position, bytes",
                "one byte more, ms",
                {n: [(one["position_bytes"], one["ms_per_byte"]) for one in timed if one["name"] == n] for n in names},
            ),
        ],
        options.out / DRAWING,
        dpi=80,
    )
    shrink(options.out / DRAWING)
