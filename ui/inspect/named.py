"""What layers, heads and neurons are called on the page: layers and heads from 1, neurons by their numbers from 0.

Places in models, files and programs count all of them from 0, as the weights do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KINDS = {"x_sparse": "x", "y_sparse": "y", "gate": "x · y", "mlp": "MLP", "residual": "residual stream"}
COUNTING = (
    "In names and numbers of this file layers, heads and neurons are counted from 0, as in the weights; the page and "
    "its drawings count layers and heads from 1, and neurons from 0."
)
NEURONS = "Layers and heads are counted from 1; a neuron has the number of its row in its head's weights, from 0."


def one_line(text: str) -> str:
    """Text in which line ends and tabs are seen, and what cannot be printed is a dot."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(character if character.isprintable() else "·" for character in shown)


def layer_name(place: str) -> str:
    """A layer by its name as a place, such as `member.0.global.1`: member 1, global layer 2."""
    named = []
    for scale, index in re.findall(r"(member|layer|global|local)\.(\d+)", place):
        layer = scale if scale in ("member", "layer") else f"{scale} layer"
        named.append(f"{layer} {int(index) + 1}")
    return ", ".join(named) or place


def point_name(point: str) -> str:
    """A named point, such as `layer.0.x_sparse`: layer 1, x."""
    place, _, kind = point.rpartition(".")
    return f"{layer_name(place)}, {KINDS.get(kind, kind)}" if place else point


def neuron_name(point: str, head: int | None, number: int) -> str:
    """A neuron in words; its head is None where the point has none."""
    own = "" if head is None or point.endswith(".mlp") else f", head {head + 1}"
    return f"{point_name(point)}{own}, neuron {number}"


def find_name(what: Mapping[str, Any]) -> str:
    """A neuron or a synapse that was found, in words."""
    if "point" in what:
        return neuron_name(what["point"], what["head"], what["number"])
    return f"{layer_name(what['place'])}, head {what['head'] + 1}, x {what['x']} → y {what['y']}"


def graph_name(place: str) -> str:
    """A place of graphs, such as `global layer 0 to 1, head 0`, counted from 1."""
    return re.sub(r"\b(layer|to|head) (\d+)", lambda found: f"{found[1]} {int(found[2]) + 1}", place)


def of_model(title: str, paths: Sequence[Path]) -> list[str]:
    """Files renamed so that each begins with the name of the model that it is of."""
    name = re.sub(r"[^\w.-]+", "-", title)[:60].strip(".-") or "model"
    return [str(path.rename(path.with_name(f"{name}-{path.name}"))) for path in paths]
