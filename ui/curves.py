"""The curves of a run: bits per byte as it learns, and where it was best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

_TRAINING = "training text"
_MOST_POINTS = 600
_INK = "#78879f"
_COLOURS = ["#94a3b8", "#059669", "#d97706", "#0284c7", "#be185d", "#7c3aed", "#475569"]


def rows(measures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The points of all curves, each with `step`, `bits` and `text`; of very many, evenly spread ones."""
    trained = [one for one in measures if one["step"]]
    thin = max(1, len(trained) // _MOST_POINTS)
    points = [{"step": one["step"], "bits": one["bits_per_byte"], "text": _TRAINING} for one in trained[::thin]]
    for one in measures:
        points += [
            {"step": one["step"], "bits": bits, "text": held_out(name)} for name, bits in one["validation"].items()
        ]
    return points


def held_out(name: str) -> str:
    """What the curve of a text's validation part is called."""
    return f"{name}, held out"


def best_step(measures: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of the best validation of the last phase; None before the first one."""
    looked = [one for one in measures if one["validation"]]
    return int(looked[-1]["best_step"]) if looked else None


def chart(measures: Sequence[Mapping[str, Any]]) -> alt.LayerChart | None:
    """The curves, or None as long as there is no line to draw."""
    import altair as alt  # noqa: PLC0415 - the page starts without it

    points = rows(measures)
    if len({point["step"] for point in points}) < 2:
        return None
    names = list(dict.fromkeys(point["text"] for point in points))
    names.sort(key=lambda name: name != _TRAINING)
    colour = alt.Color(
        "text:N",
        title=None,
        scale=alt.Scale(domain=names, range=[_COLOURS[place % len(_COLOURS)] for place in range(len(names))]),
        legend=alt.Legend(orient="bottom", labelLimit=300),
    )
    last = max(point["step"] for point in points)
    ticks: dict[str, Any] = {"values": list(range(last + 1))} if last <= 12 else {}
    x = alt.X("step:Q", title="step", axis=alt.Axis(format=",d", **ticks))
    y = alt.Y("bits:Q", title="bits per byte", scale=alt.Scale(zero=False))
    tooltip = [alt.Tooltip("text:N"), alt.Tooltip("step:Q", format=","), alt.Tooltip("bits:Q", format=".3f")]
    lines = alt.Chart(alt.InlineData(points)).mark_line().encode(x=x, y=y, color=colour, tooltip=tooltip)
    looks = alt.InlineData([point for point in points if point["text"] != _TRAINING])
    dots = alt.Chart(looks).mark_point(filled=True, size=45).encode(x=x, y=y, color=colour, tooltip=tooltip)
    layers = [lines, dots]
    if (best := best_step(measures)) is not None:
        mark = alt.Chart(alt.InlineData([{"step": best, "label": f"best at step {best:,}"}]))
        layers.append(mark.mark_rule(strokeDash=[4, 4], color="#059669").encode(x=x))
        late = best > 0.6 * last
        text = mark.mark_text(align="right" if late else "left", dx=-5 if late else 5, baseline="top", color="#059669")
        layers.append(text.encode(x=x, y=alt.value(0), text="label:N"))
    drawn = alt.layer(*layers).properties(width="container", height=260)
    # The page is light or dark; these are legible on both.
    plain = {"labelColor": _INK, "titleColor": _INK}
    return (
        drawn.configure(background="transparent")
        .configure_axis(**plain, gridColor=_INK, gridOpacity=0.25, domainColor=_INK, tickColor=_INK)
        .configure_legend(**plain)
        .configure_view(stroke=None)
    )
