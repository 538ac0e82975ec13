"""Drawings of what was measured, for a file: legible at the width of a phone, told apart without colour."""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdh.errors import DataError

from .evaluate import NeedleGrid, Position

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

# Okabe and Ito's colours, which the colour-blind tell apart; markers say the same again.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_HATCHES = ("", "///", "...", "xxx", "---", "\\\\\\", "++")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH_INCHES, _PANEL_INCHES = 4.8, 3.1
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
}
_FIRST_SHOWN_BYTES = 100
_DPI, _MOST_PIXELS = 200, 20_000
"""Dots an inch, and the most that a drawing with many rows is high."""
_LOOKS = threading.RLock()
_FULL = 0.995
"""Part of the numbers that are not beyond the fullest colour."""
_NEAREST = 1_000
"""Columns up to which fields keep their edges."""


def check_file(path: Path) -> None:
    """Refuse a file that `draw` could not write, before anything is measured.

    Raises:
        DataError: says what to change.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"a plot goes to a file that ends in {' or '.join(SUFFIXES)}; given {path.name[:100]!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise DataError("plots need matplotlib, which is not installed; pip install matplotlib, or leave the plot out")


@contextmanager
def _drawing(**more: Any) -> Iterator[type[Figure]]:
    """Figures in the looks of this file; one thread after another, for matplotlib keeps looks for the whole process."""
    with _LOOKS:
        # These take a second to import, and only drawing needs them.
        from matplotlib import rc_context  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415

        looks: Any = {**_STYLE, **more}
        with rc_context(looks):
            yield Figure


def as_drawn(name: str) -> str:
    """A name from outside as it can stand in a drawing: no formula, and not left out of a legend."""
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


@contextmanager
def figure(path: Path, rows: int, columns: int = 1, *, inches: tuple[float, float] = (4.8, 3.1)) -> Iterator[Any]:
    """Panels in the looks of this file, (rows, columns) of axes, written to a file at the end.

    Colours are "C0" to "C6".

    Args:
        inches: width and height of a panel.

    Raises:
        DataError: the file cannot be written.
    """
    check_file(path)
    with _drawing(**{"axes.prop_cycle": f"cycler(color={list(_COLOURS)})"}) as made:
        drawn = made(figsize=(inches[0] * columns, inches[1] * rows), layout="constrained")
        yield drawn.subplots(rows, columns, squeeze=False)
        _save(drawn, path)


def draw(positions: Mapping[str, Sequence[Position]], needles: Mapping[str, NeedleGrid], path: Path) -> None:
    """Write one figure: bits per byte against position for all names, and a grid of needles for each.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not positions and not needles:
        raise DataError("there is nothing to draw: neither bits per byte against position nor needles were measured")
    panels = bool(positions) + len(needles)
    with _drawing() as made:
        figure = made(figsize=(_WIDTH_INCHES, _PANEL_INCHES * panels), layout="constrained")
        axes = iter(figure.subplots(panels, squeeze=False)[:, 0])
        if positions:
            _draw_positions(next(axes), positions)
        for name, grid in needles.items():
            _draw_needles(figure, next(axes), name, grid)
        _save(figure, path)


def draw_learning(measures: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Write four panels against the bytes heard: validation loss, perplexity, bits per byte, and the gap to training.

    Args:
        measures: by name, validations in order, each with `heard_bytes`, and in bits per byte `train` and `validation`.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not any(measures.values()):
        raise DataError("there is nothing to draw yet: no validation was made")
    panels: Sequence[tuple[str, Callable[[Mapping[str, Any]], float]]] = (
        ("validation loss, nats a byte", lambda one: one["validation"] * math.log(2)),
        ("validation perplexity of a byte", lambda one: 2 ** one["validation"]),
        ("validation, bits per byte", lambda one: one["validation"]),
        ("validation above training, bits per byte", lambda one: one["validation"] - one["train"]),
    )
    with _drawing() as made:
        figure = made(figsize=(2 * _WIDTH_INCHES, 2 * _PANEL_INCHES), layout="constrained")
        for axes, (label, value) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for index, (name, found) in enumerate(measures.items()):
                colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
                heard = [one["heard_bytes"] / 1e6 for one in found]
                values = [value(one) for one in found]
                axes.plot(heard, values, color=colour, marker=marker, markersize=4, linewidth=1.4, label=as_drawn(name))
            axes.set_xlabel("bytes heard, millions")
            axes.set_ylabel(label)
            axes.grid(True, color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.legend(frameon=False)
        _save(figure, path, dpi=160)


def draw_points(points: Mapping[str, Mapping[str, float]], x: str, ys: Sequence[str], path: Path) -> None:
    """Write one panel for each of `ys` against `x`, in which every point carries its name.

    Args:
        points: by name, values by the label of their axis.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not points:
        raise DataError("there is nothing to draw: nothing was measured")
    with _drawing() as made:
        figure = made(figsize=(_WIDTH_INCHES, _PANEL_INCHES * len(ys)), layout="constrained")
        for axes, y in zip(figure.subplots(len(ys), squeeze=False)[:, 0], ys, strict=True):
            for index, (name, values) in enumerate(points.items()):
                colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
                axes.plot(values[x], values[y], color=colour, marker=marker, markersize=6)
                axes.annotate(name, (values[x], values[y]), xytext=(6, 4), textcoords="offset points")
            axes.margins(0.15)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.grid(True, color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
        _save(figure, path)


@dataclass(frozen=True)
class Panel:
    """Lines against one axis."""

    x: str
    """Label of the axis."""
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """Points by name; what has one name has one colour in every panel."""
    log_x: bool = True
    log_y: bool = False
    from_zero: bool = False


def draw_panels(panels: Sequence[Panel], path: Path, *, dpi: int = 100) -> None:
    """Write panels of lines, two in a row; every line carries a marker of its own.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not panels or not all(any(panel.lines.values()) for panel in panels):
        raise DataError("there is nothing to draw: nothing was measured")
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    rows = (len(panels) + 1) // 2
    with _drawing() as made:
        size = (2 * _WIDTH_INCHES if len(panels) > 1 else 1.4 * _WIDTH_INCHES, _PANEL_INCHES * rows)
        figure = made(figsize=size, layout="constrained")
        places = list(figure.subplots(rows, 2 if len(panels) > 1 else 1, squeeze=False).flat)
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(places, panels, strict=False):
            for name, points in panel.lines.items():
                index = names.index(name)
                colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
                across, up = zip(*points, strict=True) if points else ((), ())
                axes.plot(across, up, color=colour, marker=marker, markersize=4, linewidth=1.4, label=as_drawn(name))
            if panel.log_x:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
                axes.xaxis.set_minor_formatter("")
            if panel.log_y:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
                axes.yaxis.set_minor_formatter("")
            if panel.from_zero:
                axes.set_ylim(bottom=0)
            axes.set_xlabel(panel.x)
            axes.set_ylabel(panel.y)
            axes.grid(True, which="major", color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.legend(frameon=False, fontsize=7.5)
        _save(figure, path, dpi=dpi)


def draw_bars(rows: Mapping[str, Mapping[str, tuple[float, float, float]]], label: str, path: Path) -> None:
    """Write one panel of lying bars: a group for each row, in it a bar for each series.

    Args:
        rows: by the group's and the series' name, a value and the ends of its interval.
        label: of the values.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not rows or not all(rows.values()):
        raise DataError("there is nothing to draw: nothing was measured")
    series = list(next(iter(rows.values())))
    thick = 0.8 / len(series)
    with _drawing() as made:
        height = 0.9 + len(rows) * (0.12 + 0.16 * len(series))
        figure = made(figsize=(1.4 * _WIDTH_INCHES, height), layout="constrained")
        axes = figure.subplots()
        for index, name in enumerate(series):
            places = [place + (index - (len(series) - 1) / 2) * thick for place in range(len(rows))]
            values = [row[name] for row in rows.values()]
            means = [mean for mean, _, _ in values]
            reach = [[mean - low for mean, low, _ in values], [high - mean for mean, _, high in values]]
            axes.barh(
                places,
                means,
                thick,
                xerr=reach,
                label=as_drawn(name),
                color=_COLOURS[index % len(_COLOURS)],
                hatch=_HATCHES[index % len(_HATCHES)],
                edgecolor="white",
                linewidth=0.4,
                error_kw={"elinewidth": 0.8},
            )
        axes.set_yticks(range(len(rows)), [as_drawn(row) for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(True, axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=min(4, len(series)), frameon=False)
        _save(figure, path, dpi=int(min(_DPI, _MOST_PIXELS / height)))


def draw_heat(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    label: str,
    path: Path,
    *,
    span: tuple[float, float] | None = None,
) -> None:
    """Write a panel for each table of values, in which every field says its value and has its colour.

    Args:
        panels: by title, row and column; all columns of a panel's rows are the same.
        label: of the values.
        span: what the darkest and the lightest colour stand for; None is the least and the largest value.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not panels or not all(rows and all(rows.values()) for rows in panels.values()):
        raise DataError("there is nothing to draw: nothing was measured")
    heights = [0.9 + 0.28 * len(rows) for rows in panels.values()]
    everything = [value for rows in panels.values() for row in rows.values() for value in row.values()]
    low, high = span or (min(everything), max(everything))
    with _drawing() as made:
        figure = made(figsize=(1.4 * _WIDTH_INCHES, sum(heights)), layout="constrained")
        places = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, rows) in zip(places, panels.items(), strict=True):
            columns = list(next(iter(rows.values())))
            values: Any = [[row[column] for column in columns] for row in rows.values()]
            image = axes.pcolormesh(values, cmap="cividis", vmin=low, vmax=high, edgecolors="white", linewidth=1.5)
            axes.invert_yaxis()
            for y, row in enumerate(values):
                for x, value in enumerate(row):
                    shade = "white" if value - low < 0.55 * (high - low) else "black"
                    axes.text(x + 0.5, y + 0.5, f"{value:#.3g}", ha="center", va="center", color=shade)
            axes.set_xticks([x + 0.5 for x in range(len(columns))], columns)
            axes.set_yticks([y + 0.5 for y in range(len(rows))], list(rows))
            axes.set_title(as_drawn(title), loc="left")
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
        figure.colorbar(image, ax=list(places), label=label).outline.set_visible(False)
        _save(figure, path)


def draw_squares(panels: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str], label: str, path: Path) -> None:
    """Write a square of colours for each table, without numbers in its fields; rows and columns have the same names.

    Args:
        panels: by title, rows of values from 0 up.
        label: of the values.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not panels or not names:
        raise DataError("there is nothing to draw: nothing was measured")
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    most = max(value for rows in panels.values() for row in rows for value in row)
    with _drawing() as made:
        size = 1.2 + 0.16 * len(names)
        figure = made(figsize=(columns * size, lines * size), layout="constrained")
        places = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for axes in places.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, rows) in zip(places.flat, panels.items(), strict=False):
            image = axes.pcolormesh(rows, cmap="cividis", vmin=0, vmax=most or 1)
            axes.set_title(as_drawn(title), loc="left")
            axes.set_xticks([place + 0.5 for place in range(len(names))], names, rotation=90, fontsize=6)
            axes.set_yticks([place + 0.5 for place in range(len(names))], names, fontsize=6)
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
        places[0, 0].invert_yaxis()
        bar = figure.colorbar(image, ax=list(places.flat), label=label, shrink=0.5)
        bar.outline.set_visible(False)
        _save(figure, path, dpi=160)


def draw_counts(counts: Mapping[str, Sequence[int]], x: str, y: str, path: Path, *, most: int = 20) -> None:
    """Write one panel of steps: for each name, which part of its counts is 0, 1, 2 and so on, in per cent.

    Args:
        most: what is larger is counted with it.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not any(counts.values()):
        raise DataError("there is nothing to draw: nothing was counted")
    with _drawing() as made:
        figure = made(figsize=(_WIDTH_INCHES, _PANEL_INCHES), layout="constrained")
        axes = figure.subplots()
        for index, (name, values) in enumerate(counts.items()):
            parts = [0.0] * (most + 1)
            for value in values:
                parts[min(value, most)] += 100 / len(values)
            colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
            steps = range(most + 1)
            axes.plot(steps, parts, color=colour, marker=marker, markersize=4, linewidth=1.4, label=as_drawn(name))
        ticks = list(range(0, most + 1, max(1, most // 5)))
        axes.set_xticks(ticks, [f"{tick} or more" if tick == most else str(tick) for tick in ticks])
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(True, color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
        _save(figure, path)


class Map(NamedTuple):
    """A matrix to draw, with what its columns and rows are."""

    values: NDArray[Any]
    x: str
    y: str
    columns: Sequence[str] = ()
    """Names of the columns, where they are few."""


def reach_of(*matrices: NDArray[Any]) -> float:
    """What the fullest colour stands for: nearly the largest number, so that one alone does not hide the rest."""
    sizes = np.concatenate([np.abs(one).ravel() for one in matrices])
    sizes = sizes[sizes > 0]
    return float(np.quantile(sizes, _FULL)) if len(sizes) else 1.0


def draw_maps(panels: Mapping[str, Map], path: Path, *, label: str, apart: bool = False) -> None:
    """Write matrices below each other as fields of colour: below and above 0 in two, white between.

    Args:
        panels: by title.
        label: of the values.
        apart: each in a scale of its own; else all in one.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not panels or not all(panel.values.size for panel in panels.values()):
        raise DataError("there is nothing to draw: nothing was measured")
    together = reach_of(*(panel.values for panel in panels.values()))
    with _drawing() as made:
        figure = made(figsize=(1.4 * _WIDTH_INCHES, _PANEL_INCHES * len(panels)), layout="constrained")
        places = figure.subplots(len(panels), squeeze=False)[:, 0]
        for axes, (title, panel) in zip(places, panels.items(), strict=True):
            reach = reach_of(panel.values) if apart else together
            image = axes.imshow(
                panel.values,
                cmap="PuOr_r",
                vmin=-reach,
                vmax=reach,
                aspect="auto",
                interpolation="nearest" if panel.values.shape[1] <= _NEAREST else "antialiased",
            )
            if panel.columns:
                axes.set_xticks(range(len(panel.columns)), panel.columns)
            axes.set_xlabel(panel.x)
            axes.set_ylabel(panel.y)
            axes.set_title(as_drawn(title), loc="left")
            if apart or axes is places[-1]:
                beside = axes if apart else list(places)
                figure.colorbar(image, ax=beside, label=label, extend="both").outline.set_visible(False)
        _save(figure, path)


def shrink(path: Path, colours: int = 128) -> None:
    """Write a PNG again with few colours, which for lines and fields are enough, in a third of the bytes."""
    from PIL import Image  # noqa: PLC0415 - comes with matplotlib, and only drawing needs it

    with Image.open(path) as image:
        few = image.convert("RGB").quantize(colours)
    few.save(path, optimize=True)


def _save(figure: Figure, path: Path, dpi: int = _DPI) -> None:
    try:
        figure.savefig(path, dpi=dpi)
    except OSError as error:
        raise DataError(f"the plot cannot be written to {str(path)[:200]}: {error.strerror}") from error


def _draw_positions(axes: Axes, positions: Mapping[str, Sequence[Position]]) -> None:
    """One line a name, at the geometric middle of each stretch, with a band of two standard errors."""
    for index, (name, stretches) in enumerate(positions.items()):
        # Of the first bytes of one stream there are too few for a mean: they would only stretch the scale.
        shown = [s for s in stretches if s.start_bytes >= _FIRST_SHOWN_BYTES] or list(stretches)
        middles = [(s.start_bytes * s.end_bytes) ** 0.5 for s in shown]
        means = [s.bits_per_byte for s in shown]
        errors = [2 * (s.standard_error or 0.0) for s in shown]
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        axes.plot(middles, means, color=colour, marker=marker, markersize=4, linewidth=1.4, label=as_drawn(name))
        low = [mean - error for mean, error in zip(means, errors, strict=True)]
        high = [mean + error for mean, error in zip(means, errors, strict=True)]
        axes.fill_between(middles, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("position in the stream, bytes")
    axes.set_ylabel("bits per byte")
    of = f" in {next(iter(positions))}" if len(positions) == 1 else ""
    axes.set_title(f"Bits per byte against position{of}\n(band: two standard errors)", loc="left")
    axes.grid(True, which="major", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(positions) > 1:
        axes.legend(frameon=False)


def _draw_needles(figure: Figure, axes: Axes, name: str, grid: NeedleGrid) -> None:
    """Rows are depths, columns lengths; each field says its rate in per cent."""
    lengths = sorted({cell.length_bytes for cell in grid.cells})
    depths = sorted({cell.depth for cell in grid.cells})
    rates: Any = [[float("nan")] * len(lengths) for _ in depths]
    for cell in grid.cells:
        rates[depths.index(cell.depth)][lengths.index(cell.length_bytes)] = 100 * cell.found / cell.trials
    image = axes.pcolormesh(rates, cmap="cividis", vmin=0, vmax=100, edgecolors="white", linewidth=1.5)
    axes.invert_yaxis()
    for row, of_depth in enumerate(rates):
        for column, rate in enumerate(of_depth):
            shade = "white" if rate < 55 else "black"
            axes.text(column + 0.5, row + 0.5, f"{rate:.0f}", ha="center", va="center", color=shade)
    axes.set_xticks([column + 0.5 for column in range(len(lengths))], [f"{length:,}" for length in lengths])
    axes.set_yticks([row + 0.5 for row in range(len(depths))], [f"{100 * depth:.4g}" for depth in depths])
    axes.set_xlabel("bytes of haystack")
    axes.set_ylabel("depth of the needle, %")
    trials = grid.cells[0].trials
    axes.set_title(
        f"Needle in {name}: likeliest of {grid.candidates} words, %\n"
        f"(guessing {100 * grid.chance:.3g} %, {trials} trials a field)",
        loc="left",
    )
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 25, 50, 75, 100])
    bar.ax.axhline(100 * grid.chance, color="white", linewidth=1.5)
    bar.outline.set_visible(False)


def draw_raster(rows: Any, costs: Any, title: str, path: Path) -> None:
    """Write what neurons do at each byte, a line each, above what the bytes cost.

    Args:
        rows: (neurons, bytes), none below 0.
        costs: (bytes,), bits.

    Raises:
        DataError: there is nothing to draw, or the file cannot be written.
    """
    check_file(path)
    if not len(costs):
        raise DataError("there is nothing to draw: no byte was read")
    with _drawing() as made:
        figure = made(figsize=(2 * _WIDTH_INCHES, 1.5 * _PANEL_INCHES), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        if len(rows):
            image = above.imshow(
                rows, aspect="auto", cmap="Greys", vmin=0, interpolation="nearest", extent=(0, len(costs), len(rows), 0)
            )
            figure.colorbar(image, ax=above, label="activation", pad=0.01)
        above.set_ylabel("neurons, most active")
        above.set_title(as_drawn(title), loc="left")
        below.bar(range(len(costs)), costs, width=1.0, align="edge", color=_COLOURS[1])
        below.set_ylabel("bits")
        below.set_xlabel("bytes read")
        _save(figure, path, dpi=160)
