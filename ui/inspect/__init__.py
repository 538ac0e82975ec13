"""The Inspect tab: one model, and what can be seen in it, a view each."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ..limits import Limits
from ..registry import Registry
from . import baseline, claims, concept, features, memory, network, reader, reading
from .baseline import build_baseline
from .claims import build_claims
from .concept import build_concept
from .features import build_features
from .memory import build_memory
from .network import build_network
from .reading import build_reading

CSS = (
    "".join(part.CSS for part in (reader, reading, memory, concept, network, baseline, features, claims))
    + "@media (max-width: 500px) { #inspect-views .tab-container button { padding-inline: 9px !important; } }\n"
)


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
    with gr.Tabs(elem_id="inspect-views", overflow_behavior="wrap"):
        with gr.Tab("Reading", id="reading"):
            text = build_reading(registry, owner, limits, model)
        with gr.Tab("Memory", id="memory"):
            build_memory(registry, owner, limits, model)
        with gr.Tab("Concept", id="concept"):
            build_concept(registry, owner, limits, model)
        with gr.Tab("Network", id="network"):
            build_network(registry, owner, model)
        with gr.Tab("Baseline", id="baseline"):
            build_baseline(registry, owner, limits, model)
        with gr.Tab("Features", id="features"):
            build_features(registry, owner, limits, model)
        with gr.Tab("Claims", id="claims"):
            build_claims(registry, owner, limits, model)
    return InspectTab(model, text)
