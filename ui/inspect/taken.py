"""What the views Memory and Baseline hand out as files, with layers and heads counted as on the page."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import baseline, memory
from lab.memory import Trace, Wiring
from train.plots import Panel, draw_bars, draw_panels, figure

from .compared import Comparison, memory_lines, memory_points
from .named import COUNTING, KINDS, layer_name
from .remembered import ALL, BY_STRENGTH, ordered

_DRAWN_LENGTHS = 13
"""Points of a computed line."""
_STRONGEST = 12
"""Neurons and writes that are named in a drawing."""


def memory_files(
    folder: Path,
    title: str,
    trace: Trace,
    wiring: Wiring,
    count: int,
    neurons: NDArray[np.int64],
    other: tuple[Trace, Wiring] | None = None,
) -> list[Path]:
    """Write a head's memory after `count` writes: as NPZ and CSV, and as PNG what the page shows of it.

    Args:
        title: of the model.
        neurons: those of the picture, in its order.
        other: another text's, held against this one after all that each has heard.
    """
    place = f"{trace.place.title}, head {trace.head + 1}"
    after = f"{title}, {place}, after {count * trace.place.step_bytes:,} bytes"
    notes = {"model": title, "counting": COUNTING}
    rows = memory.now(trace, wiring, count)
    paths = [folder / "memory.npz", folder / "synapses.csv", folder / "memory.png", folder / "byte.png"]
    memory.save(paths[0], trace, wiring, count, notes)
    found = memory.synapses(trace, wiring, count)
    _synapses(paths[1], found, trace)
    memory.draw(paths[2], {after: rows}, neurons=neurons)
    _exchange(paths[3], trace, count - 1, after)
    if found:
        paths.append(folder / "synapses.png")
        bars = {f"{one.x} → {one.y}": {after: (one.strength,) * 3} for one in found}
        what = "x neuron → y neuron" if wiring.excites is not None else "row → column"
        draw_bars(bars, f"strength of the strongest synapses, {what}", paths[-1])
    paths.append(folder / "growth.png")
    _growth(paths[-1], trace)
    if other is not None:
        paths += [folder / "memory-of-the-other-text.npz", folder / "two-memories.png"]
        memory.save(paths[-2], *other, other[0].writes, notes)
        first, second = memory.now(trace, wiring, trace.writes), memory.now(*other, other[0].writes)
        memory.draw(
            paths[-1],
            {
                f"{title}, {place}, after the text": first,
                "after the other text": second,
                "the second less the first": second - first,
            },
            neurons=ordered(first.norm(dim=1).maximum(second.norm(dim=1))[:, None], BY_STRENGTH, 0, ALL),
        )
    return paths


def _synapses(path: Path, found: Sequence[memory.Synapse], trace: Trace) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "strength", "written_most_by_byte", "its_part"])
        for one in found:
            writer.writerow([one.x, one.y, f"{one.strength:.6g}", one.writer * trace.place.step_bytes, one.share])


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
        for axes in panels.flat:
            axes.axhline(0, color="0.6", linewidth=0.6) if axes is not fires else None
        heard.figure.suptitle(title, fontsize=9.5)


def _growth(path: Path, trace: Trace) -> None:
    grown = memory.growth(trace)
    name = f"head {trace.head + 1} of {trace.place.title}"
    draw_panels(
        [
            Panel("bytes heard", label, {name: list(zip(grown.heard_bytes, values, strict=True))}, log_x=False)
            for label, values in (
                ("norm", grown.norm),
                (f"effective rank, of {min(trace.place.neurons, trace.place.width)}", grown.rank),
                ("rows ever written, %", [100 * part for part in grown.written]),
            )
        ],
        path,
        dpi=160,
    )


def comparison_files(
    folder: Path, about: Mapping[str, Any], found: Comparison, readings: Mapping[str, baseline.Reading]
) -> list[Path]:
    """Write a comparison as JSON, where heads read from as NPZ, and all that the page draws of them as PNG.

    Args:
        about: what was compared, kept in the JSON.
        readings: by the models' names.
    """
    paths = [folder / name for name in ("baseline.json", "attention.npz", "zeros.png", "memory.png", "attention.png")]
    fields = dataclasses.asdict(found)
    for side in ("bdh", "transformer"):
        fields[side]["held"] = [one._asdict() for one in getattr(found, side).held]
    told = {**about, "counting": COUNTING, **fields}
    paths[0].write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    np.savez_compressed(
        paths[1],
        names=np.array([f"{name}, {one.title}" for name, one in readings.items()]),
        **{f"shares_{index}": one.shares for index, one in enumerate(readings.values())},  # type: ignore[arg-type]
    )
    draw_bars(
        {
            f"{which}, {layer_name(one.place)}, {KINDS.get(one.kind, one.kind)}": {
                "exactly 0": (100 * (1 - one.active),) * 3,
                f"under {baseline.SMALL:.0%} of the byte's largest": (100 * one.small,) * 3,
            }
            for which, side in (("BDH", found.bdh), ("Transformer", found.transformer))
            for one in side.activity
        },
        f"% of the numbers a byte: {found.bdh.title} and {found.transformer.title}",
        paths[2],
    )
    lines = memory_lines(found, _DRAWN_LENGTHS)
    measured = {f"{name}, measured": points for name, points in memory_points(found).items()}
    draw_panels([Panel("bytes heard", "memory, bytes", {**lines, **measured}, log_y=True)], paths[3], dpi=160)
    baseline.draw(paths[4], dict(readings))
    return paths
