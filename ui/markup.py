"""Small pieces of markup that several tabs show; what comes from elsewhere is escaped in them."""

from __future__ import annotations

import html
import re


def details_markup(title: str, details: dict[str, str]) -> str:
    """The facts about a model, everything escaped."""
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in details.items())
    return f'<div class="model-details"><h3>{html.escape(title)}</h3><dl>{rows}</dl></div>'


def quiet(card: str) -> str:
    """A card that fetches nothing: a stranger's pictures would tell them who looks; markup is shown, not obeyed."""
    without_pictures = card.replace("![", "[")
    return re.sub(r"<(?=[A-Za-z/!?])", "<\u200b", without_pictures)


def bar(part: float, note: str) -> str:
    """Markup of how far it is."""
    return (
        f'<div class="report runs-status"><progress max="1" value="{min(1.0, part):.3f}" aria-label="progress">'
        f"</progress><span>{html.escape(note)}</span></div>"
    )
