"""The places of a model whose activations can be recorded and changed, and what they are called."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from ..config import ComposedConfig, Config, FlatConfig, HierarchicalConfig
from ..errors import DataError
from ..models import Model

KINDS = ("value", "x_sparse", "query", "key", "attention", "y_sparse", "gate", "mlp", "residual")
"""Last parts of names."""
NEURONS = ("x_sparse", "y_sparse", "gate", "mlp")
"""Those whose numbers are of neurons, each 0 when its neuron is silent (but for the baseline's GELU)."""
_NAMED = 5
"""Points that an error gives as examples."""


@dataclass(frozen=True)
class Point:
    """A place in a model where an activation is."""

    name: str
    """Such as `layer.0.x_sparse`, `global.1.gate`, `local.0.residual` or `member.0.layer.2.mlp`."""
    heads: int
    """Heads, which stand first; 0 where there are none."""
    width: int
    """Numbers of a head, or of the whole where there are no heads."""
    bytes_per_row: int = 1
    """Bytes of a row: a patch's at the global points of a hierarchical model, whose rows stand at the patch's last."""

    @property
    def place(self) -> str:
        """The layer, such as `layer.0` or `member.0.global.1`."""
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """What it is there: one of `KINDS`."""
        return self.name.rpartition(".")[2]

    @property
    def is_neurons(self) -> bool:
        """Whether each number of the last axis is a neuron's."""
        return self.kind in NEURONS

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row: (heads, width), or (width,) without heads."""
        return (self.heads, self.width) if self.heads else (self.width,)


def is_index(value: Any, size: int) -> bool:
    """Whether it is a whole number, of Python or numpy, from 0 to below a size."""
    return not isinstance(value, bool) and hasattr(value, "__index__") and 0 <= operator.index(value) < size


def active(values: Tensor) -> Tensor:
    """Which neurons are active: those whose activation is not exactly 0.

    Behind a ReLU these are the ones above 0; behind the baseline's GELU nearly all are, many of them below 0.
    """
    return values != 0


def points(model: Model[Any]) -> tuple[Point, ...]:
    """All places of the model, layer by layer, in the order in which they are computed.

    In a BDH layer: `value`, x as it is written (what the layer adds to is not changed with it); `x_sparse`; `key`,
    x_sparse rotated (the query too); `attention`, what is read, before its norm; `y_sparse`; `gate`, their product;
    `residual`, what the layer says. A Transformer's or a Hebbian block has `query`, `key`, `value` and `attention` by
    heads, `mlp` and `residual`.
    """
    return tuple(_points(model.config, ""))


def selected(model: Model[Any], names: str | Iterable[str]) -> tuple[Point, ...]:
    """The points that names, or patterns such as `layer.*.x_sparse`, stand for, in the order of `points`.

    Raises:
        DataError: a name that stands for none.
    """
    known = points(model)
    wishes = (names,) if isinstance(names, str) else tuple(names)
    for wish in wishes:
        if not isinstance(wish, str) or not any(fnmatchcase(point.name, wish) for point in known):
            examples = ", ".join(point.name for point in known[:_NAMED])
            raise DataError(
                f"this {model.config.kind} model has no point {wish!r:.100}; it has {len(known)}, such as {examples}"
            )
    if not wishes:
        raise DataError("no point was asked for; name at least one of probe.points(model)")
    return tuple(point for point in known if any(fnmatchcase(point.name, wish) for wish in wishes))


def _points(config: Config, prefix: str) -> Iterator[Point]:
    if isinstance(config, ComposedConfig):
        for index, member in enumerate(config.members):
            yield from _points(member, f"{prefix}member.{index}.")
    elif isinstance(config, HierarchicalConfig):
        for scale, patch in (("global", config.patch_size), ("local", 1)):
            width, heads = getattr(config, f"{scale}_n_embd"), getattr(config, f"{scale}_n_head")
            neurons = width * getattr(config, f"{scale}_mlp_mult") // heads
            for index in range(getattr(config, f"{scale}_n_layer")):
                place = f"{prefix}{scale}.{index}."
                layer = _bdh(place, heads, neurons, width, patch)
                yield from layer if config.use_bdh_attention else _block(place, heads, width, patch)
    else:
        for index in range(config.n_layer):
            place = f"{prefix}layer.{index}."
            if isinstance(config, FlatConfig):
                yield from _bdh(place, config.n_head, config.n_neuron, config.n_embd, 1)
            else:
                yield from _block(place, config.n_head, config.n_embd, 1)


def _bdh(place: str, heads: int, neurons: int, width: int, patch: int) -> Iterator[Point]:
    yield Point(f"{place}value", 0, width, patch)
    yield Point(f"{place}x_sparse", heads, neurons, patch)
    yield Point(f"{place}key", heads, neurons, patch)
    yield Point(f"{place}attention", heads, width, patch)
    yield Point(f"{place}y_sparse", heads, neurons, patch)
    yield Point(f"{place}gate", heads, neurons, patch)
    yield Point(f"{place}residual", 0, width, patch)


def _block(place: str, heads: int, width: int, patch: int) -> Iterator[Point]:
    for name in ("query", "key", "value", "attention"):
        yield Point(f"{place}{name}", heads, width // heads, patch)
    yield Point(f"{place}mlp", 0, 4 * width, patch)
    yield Point(f"{place}residual", 0, width, patch)
