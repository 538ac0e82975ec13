"""A matrix as a picture in the page: a field of colour on whatever ground the page has, light or dark."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

POSITIVE, NEGATIVE = (217, 98, 8), (37, 99, 235)
"""Orange and blue, which the colour-blind tell apart; how opaque a field is says how large its number is."""
INK = "#5b6b82"
"""Of what stands around a chart; dark pages lighten charts, so that it is read on either ground."""


def picture(values: NDArray[Any], reach: float, label: str, *, height_rem: float, crisp: bool = True) -> str:
    """Markup of a field for each number, rows from top to bottom, as wide as the page lets it be.

    Args:
        reach: numbers of this size and beyond have the fullest colour.
        label: read to those who do not see it.
        crisp: keep the edges of fields; else a picture that is made smaller is smoothed.
    """
    parts = np.clip(np.abs(values) / reach, 0, 1)
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where(values[..., None] < 0, NEGATIVE, POSITIVE)
    pixels[..., 3] = np.round(255 * parts)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    edges = "pixelated" if crisp else "auto"
    return (
        f'<img class="field" alt="{html.escape(label)}" src="data:image/png;base64,{data}" '
        f'style="height:{height_rem:.4g}rem;image-rendering:{edges}">'
    )


def fitted(drawn: Any, height: int) -> Any:
    """A chart in the looks of the tab, as wide as the page lets it be, with all that stands around it inside."""
    import altair as alt  # noqa: PLC0415 - the page starts without it

    plain = {"labelColor": INK, "titleColor": INK}
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    return (
        drawn.properties(width="container", height=height, autosize=fit)
        .configure(background="transparent")
        .configure_axis(**plain, gridColor=INK, gridOpacity=0.25, domainColor=INK, tickColor=INK)
        .configure_legend(**plain)
        .configure_view(stroke=None)
    )


def shade(part: float) -> str:
    """The ground of a word, whose part is from -1 to 1, as a style."""
    red, green, blue = NEGATIVE if part < 0 else POSITIVE
    return f"background:rgba({red},{green},{blue},{min(1.0, abs(part)) * 0.75:.2f})"


def number(value: float) -> str:
    """A number with three digits that count, as a person reads it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def scale(reach: float) -> str:
    """Markup that says what the colours stand for."""
    shown = number(reach)
    return f'<span class="scale"><span>-{shown}</span><i aria-hidden="true"></i><span>{shown}</span></span>'


CSS = f"""
.inside img.field {{ display: block; width: 100%; margin: 0; border: 1px solid var(--border-color-primary);
  border-radius: 4px; }}
.dark #inspect-views canvas {{ filter: brightness(1.5); }}
.inside .scale {{ display: inline-flex; align-items: center; gap: 6px; font-variant-numeric: tabular-nums;
  white-space: nowrap; }}
.inside .scale i {{ width: 7rem; height: 0.7rem; border: 1px solid var(--border-color-primary); border-radius: 3px;
  background: linear-gradient(to right, rgb{NEGATIVE}, transparent, rgb{POSITIVE}); }}
"""
"""The looks, for the page's style sheet."""
