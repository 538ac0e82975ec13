"""The Inspect tab: one model, and what can be seen in it, a view each."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ..limits import Limits
from ..registry import Registry
from . import claims, reader, reading
from .claims import build_claims
from .reading import build_reading

CSS = "".join(part.CSS for part in (reader, reading, claims))


@dataclass
class InspectTab:
    """The components that other parts of the page need."""

    model: gr.Dropdown
    text: gr.Textbox


def build_inspect(registry: Registry, owner: gr.BrowserState, limits: Limits) -> InspectTab:
    """Lay out the tab and its views."""
    model = gr.Dropdown(
        choices=registry.choices(""),
        value=registry.default() or None,
        label="Model to look into",
        min_width=280,
        elem_id="inspect-model",
    )
    with gr.Tabs(elem_id="inspect-views"):
        with gr.Tab("Reading", id="reading"):
            text = build_reading(registry, owner, limits, model)
        with gr.Tab("Claims", id="claims"):
            build_claims(registry, owner, limits, model)
    return InspectTab(model, text)
