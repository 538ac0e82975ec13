"""What the views Memory and Baseline hand out as files, with layers and heads counted as on the page."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import baseline, memory
from lab.claim import write_json
from lab.memory import Growth, Place, Trace, Wiring
from train.plots import Panel, as_drawn, draw_bars, draw_panels, figure

from ..steps import Tell
from .compared import Comparison, memory_lines, memory_points
from .named import COUNTING, KINDS, layer_name
from .remembered import ordered_for_both

_STRONGEST = 12
"""Neurons that are named in a drawing."""


def memory_files(
    folder: Path,
    title: str,
    trace: Trace,
    wiring: Wiring,
    count: int,
    neurons: NDArray[np.int64],
    other: tuple[Trace, Wiring] | None = None,
    *,
    tell: Tell = lambda part, note: None,
) -> list[Path]:
    """Write a head's memory after `count` writes: as NPZ and CSV, and as PNG what the page shows of it.

    Args:
        title: of the model.
        neurons: those of the picture, in its order.
        other: another text's, held against this one after all that each has heard.
    """
    heard_bytes = count * trace.place.step_bytes
    # A line for the model and one for the rest: each may be as long as a drawing is wide.
    of = f"{title}\n{trace.place.title}, head {trace.head + 1}"
    after = f"{of}, after {heard_bytes:,} bytes"
    notes = {"model": title, "counting": COUNTING}
    tell(0.1, "writing the memory")
    rows, found, grown = memory.now(trace, wiring, count), memory.synapses(trace, wiring, count), memory.growth(trace)
    paths = [folder / name for name in ("memory.npz", "synapses.csv", "memory.png", "byte.png", "growth.png")]
    memory.save(paths[0], trace, wiring, count, notes, grown=grown, neurons=neurons)
    _synapses(paths[1], found, trace, title, heard_bytes)
    tell(0.3, "drawing the memory")
    memory.draw(paths[2], {after: rows}, neurons=neurons)
    tell(0.4, "drawing what was written and read")
    _exchange(paths[3], trace, count - 1, after)
    tell(0.5, "drawing its growth")
    _growth(paths[4], of, trace.place, grown)
    if found:
        tell(0.6, "drawing its synapses")
        paths.append(folder / "synapses.png")
        bars = {f"{one.x} \u2192 {one.y}": {after: (one.strength,) * 3} for one in found}
        what = "x neuron \u2192 y neuron" if wiring.excites is not None else "row \u2192 column"
        draw_bars(bars, f"strength of the strongest synapses, {what}", paths[-1])
    if other is not None:
        tell(0.7, "writing the memory of the other text")
        paths += [folder / name for name in ("memory-of-the-other-text.npz", "two-memories.json", "two-memories.png")]
        memory.save(paths[-3], *other, other[0].writes, notes)
        first, second = memory.now(trace, wiring, trace.writes), memory.now(*other, other[0].writes)
        alike = {
            "texts": [one.data.decode("utf-8", "replace") for one in (trace, other[0])],
            "layer": trace.place.name,
            "head": trace.head,
            **memory.likeness(first, second)._asdict(),
        }
        write_json(paths[-2], {**notes, **alike})
        memory.draw(
            paths[-1],
            {
                f"{of}, after the text": first,
                "after the other text": second,
                "the second less the first": second - first,
            },
            neurons=ordered_for_both(first, second),
        )
    return paths


def _synapses(path: Path, found: Sequence[memory.Synapse], trace: Trace, title: str, heard_bytes: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["model", "layer", "head", "heard_bytes", "x", "y", "strength", "written_most_after_bytes", "its_part"]
        )
        of = [title, trace.place.name, trace.head, heard_bytes]
        for one in found:
            after = one.writer * trace.place.step_bytes
            writer.writerow([*of, one.x, one.y, f"{one.strength:.6g}", after, f"{one.share:.6g}"])


def _exchange(path: Path, trace: Trace, write: int, title: str) -> None:
    """Draw what a write added to the memory, and what it read from it before."""
    weights, activity = trace.attention(write).numpy(), trace.activity[write].numpy()
    top = [int(one) for one in np.argsort(-activity, kind="stable")[:_STRONGEST] if activity[one] > 0]
    step = "byte" if trace.place.step_bytes == 1 else "patch"
    with figure(path, 2, 2) as panels:
        heard, fires, value, read = panels.flat
        heard.vlines(np.arange(len(weights)) + 1, 0, weights, color="C1", linewidth=1.2)
        heard.set_title(f"read at {step} {write + 1}: from where", loc="left")
        heard.set(xlabel=f"{step}, the first is 1", ylabel="weight")
        fires.barh([f"{one}" for one in top], activity[top], color="C0")
        fires.invert_yaxis()
        fires.set_title("what fires", loc="left")
        fires.set(xlabel="activity", ylabel="neuron" if trace.place.excites else "query dimension")
        for axes, name, values in (
            (value, "written: the value", trace.value[write].numpy()),
            (read, "what was read, before the norm", trace.read(write).numpy()),
        ):
            axes.vlines(np.arange(len(values)), 0, values, color="C2", linewidth=0.8)
            axes.set_title(name, loc="left")
            axes.set(xlabel="dimension")
        for axes in (heard, value, read):
            axes.axhline(0, color="0.6", linewidth=0.6)
        heard.figure.suptitle(as_drawn(title), fontsize=9.5)


def _growth(path: Path, of: str, place: Place, grown: Growth) -> None:
    draw_panels(
        [
            Panel(
                "bytes heard",
                label,
                {of: list(zip(grown.heard_bytes, values, strict=True))},
                log_x=False,
                from_zero=True,
            )
            for label, values in (
                ("norm", grown.norm),
                (f"effective rank, of {min(place.neurons, place.width)}", grown.rank),
                ("rows ever written, %", [100 * part for part in grown.written]),
            )
        ],
        path,
        dpi=160,
    )


def comparison_files(
    folder: Path,
    about: Mapping[str, Any],
    found: Comparison,
    readings: Mapping[str, baseline.Reading],
    *,
    tell: Tell = lambda part, note: None,
) -> list[Path]:
    """Write a comparison as JSON, where heads read from as NPZ, and all that the page draws of them as PNG.

    Args:
        about: what was compared, kept in the JSON.
        readings: by the models' names.
    """
    paths = [folder / name for name in ("baseline.json", "attention.npz", "zeros.png", "memory.png", "attention.png")]
    tell(0.1, "writing the comparison")
    fields = dataclasses.asdict(found)
    for side in ("bdh", "transformer"):
        fields[side]["held"] = [one._asdict() for one in getattr(found, side).held]
    read = [
        {"model": name, "head": one.title, "bytes_back": one.reach, "spread_over": one.spread}
        for name, one in readings.items()
    ]
    write_json(paths[0], {**about, "counting": COUNTING, **fields, "attention": read})
    np.savez_compressed(
        paths[1],
        names=np.array([f"{name}, {one.title}" for name, one in readings.items()]),
        **{f"shares_{index}": one.shares for index, one in enumerate(readings.values())},  # type: ignore[arg-type]
    )
    tell(0.4, "drawing what is exactly 0")
    draw_bars(
        {
            f"{which}, {layer_name(one.place)}, {KINDS.get(one.kind, one.kind)}": {
                "exactly 0": (100 * (1 - one.active),) * 3,
                f"under {baseline.SMALL:.0%} of the byte's largest": (100 * one.small,) * 3,
            }
            for which, side in (("BDH", found.bdh), ("Transformer", found.transformer))
            for one in side.activity
        },
        f"% of the numbers a byte\n{found.bdh.title}\nand {found.transformer.title}",
        paths[2],
    )
    tell(0.6, "drawing memory against length")
    _lengths(paths[3], found)
    tell(0.8, "drawing where heads read from")
    baseline.draw(paths[4], dict(readings))
    return paths


def _lengths(path: Path, found: Comparison) -> None:
    """Draw memory against length: lines as computed, points as measured."""
    measured = memory_points(found)
    with figure(path, 1, inches=(6.7, 4.0)) as panels:
        axes = panels[0, 0]
        for index, (name, points) in enumerate(memory_lines(found).items()):
            axes.plot(*zip(*points, strict=True), color=f"C{index}", linewidth=1.4, label=as_drawn(name))
            # A memory of zeros has no place on an axis of powers.
            if seen := [point for point in measured.get(name, ()) if point[1] > 0]:
                axes.plot(*zip(*seen, strict=True), "os^"[index], color=f"C{index}", markersize=5)
        axes.set(xlabel="bytes heard", ylabel="memory, bytes (points: what of it is not 0)", xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.grid(True, color="0.9", linewidth=0.6)
        axes.legend(frameon=False)
