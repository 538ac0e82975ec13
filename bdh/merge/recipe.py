"""What is merged, and how: declared in TOML or on the command line, every field checked before a weight is read."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint import cut
from ..errors import MergeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]


class Method(NamedTuple):
    """What a method is and which options it reads."""

    summary: str
    options: tuple[str, ...]
    same_size: bool = False
    """Whether parents must agree in the shape of every tensor."""
    composed: bool = False
    """Whether the parents stay whole, as members behind one front."""


METHODS: dict[str, Method] = {
    "concat": Method("the neurons of each head side by side, the rest averaged", ("weights", "align", "neurons", "by")),
    "concat-heads": Method("the heads of all, the rest averaged", ("weights", "align")),
    "average": Method("the weighted mean of every weight", ("weights", "align"), same_size=True),
    "slerp": Method("two parents on the arc between them", ("t", "align"), same_size=True),
    "task-arithmetic": Method(
        "the base and the sum of what each parent learned", ("base", "weights", "scale"), same_size=True
    ),
    "ties": Method(
        "as task-arithmetic, with small changes trimmed and signs elected",
        ("base", "weights", "density", "scale"),
        same_size=True,
    ),
    "dare": Method(
        "as task-arithmetic, with changes dropped at random and the rest scaled up",
        ("base", "weights", "density", "scale", "seed"),
        same_size=True,
    ),
    "dare-ties": Method(
        "dare, then the signs elected as in ties", ("base", "weights", "density", "scale", "seed"), same_size=True
    ),
    "mixture": Method("each parent weighed by how well it predicted so far", ("share_rate",), composed=True),
    "average-logits": Method("fixed weights on the parents' logits", ("weights",), composed=True),
    "deep": Method("a combiner over hidden states, to be trained afterwards", ("width", "seed"), composed=True),
}
"""By name; the first is the default."""

PRUNED_BY = ("random", "activity")
_BOUNDS: dict[str, tuple[float, float]] = {
    "t": (0.0, 1.0),
    "density": (1e-4, 1.0),
    "scale": (-10.0, 10.0),
    "share_rate": (0.0, 0.5),
    "neurons": (0, 2**31 - 1),
    "width": (2, 16384),
    "seed": (0, 2**63 - 1),
}
"""Least and largest value; where the least is a whole number, so must the value be."""
MAX_PARENTS = 16
CALIBRATION_BYTES = 8192
"""First bytes of a text that alignment and activity are measured on."""
_TEXT_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a merge: the same recipe on the same parents gives the same bytes."""

    parents: tuple[str, ...]
    """Checkpoints, 1 to 16, as `bdh.load` takes them; or names of shipped ones."""
    method: str = "concat"
    """One of `METHODS`."""
    name: str = "merged"
    """What the card calls the result."""
    weights: tuple[float, ...] = ()
    """One a parent, 0 or above, not all 0; in averages only their ratios count. Empty weighs all alike."""
    base: str = ""
    """What the parents were cloned from, for methods that work on the difference."""
    t: float = 0.5
    """`slerp`: 0 is the first parent, 1 the second."""
    density: float = 0.5
    """`ties`, `dare`, `dare-ties`: the part of each parent's changes that is kept."""
    scale: float = 1.0
    """Of the summed changes, where a base is used."""
    share_rate: float = 0.005
    """`mixture`: the part of the trust that is shared out evenly after each byte, so that it can move on; 0 to 0.5."""
    width: int = 256
    """`deep`: of the combined hidden state."""
    align: bool = False
    """First bring each parent's space onto the first one's by an exact symmetry: for parents without a common base."""
    neurons: int = 0
    """`concat`: cut the result to so many neurons a head; 0 keeps all."""
    by: str = "activity"
    """How these are chosen: `random`, or by `activity` on the text."""
    text: str = ""
    """A file that alignment and activity are measured on; empty is what is used without one: embeddings and
    read-outs for alignment, and `by` must then be random."""
    dtype: str = "auto"
    """Of the stored weights: float32, bfloat16, or auto, the widest among the parents."""
    by_reference: bool = False
    """Of members of a composed model, store where on the Hub they lie instead of their weights."""
    seed: int = 0
    """Of `dare`'s draws, a random choice of neurons, and the weights of `deep`."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise MergeError(f"method is {cut(self.method)}; it must be one of {', '.join(METHODS)}")
        if not isinstance(self.parents, tuple) or not all(isinstance(one, str) and one for one in self.parents):
            raise MergeError("parents must be a list of checkpoints: names, folders or places on the Hub")
        least, most = self._parents_allowed()
        if not least <= len(self.parents) <= most:
            raise MergeError(f"{len(self.parents)} parents were given; {self.method} takes {least} to {most}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            usual = field.default
            if isinstance(usual, str) and (not isinstance(value, str) or len(value) > 4096 or not value.isprintable()):
                raise MergeError(f"{field.name} is {cut(value)}; it must be a text without control characters")
            if isinstance(usual, bool) and not isinstance(value, bool):
                raise MergeError(f"{field.name} is {cut(value)}; it must be true or false")
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            whole = isinstance(low, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise MergeError(f"{name} is {cut(value)}; it must be {'a whole number' if whole else 'a number'}")
            if not low <= value <= high:
                raise MergeError(f"{name} is {cut(value)}; it must be from {low} to {high}")
        self._check_weights()
        if (self.base != "") != self.uses("base"):
            need = "needs the base its parents were cloned from" if self.uses("base") else "uses no base; leave it out"
            raise MergeError(f"{self.method} {need}")
        if self.align and not self.uses("align"):
            raise MergeError(f"{self.method} aligns nothing: it keeps its parents whole or works on a common base")
        if self.neurons and not self.uses("neurons"):
            raise MergeError(f"{self.method} adds no neurons that could be cut; only concat is pruned")
        if self.neurons % 2:
            raise MergeError(f"neurons is {self.neurons}; neurons come in pairs, so it must be even")
        if self.by not in PRUNED_BY:
            raise MergeError(f"by is {cut(self.by)}; it must be {' or '.join(PRUNED_BY)}")
        if self.neurons and self.by == "activity" and not self.text:
            raise MergeError("to choose neurons by activity a text is needed; name one, or choose by random")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise MergeError(f"dtype is {cut(self.dtype)}; it must be auto, float32 or bfloat16")
        if self.by_reference and not METHODS[self.method].composed:
            raise MergeError(f"{self.method} makes new weights, which cannot be stored by reference")
        if self.by_reference and self.dtype != "auto":
            raise MergeError(f"dtype is {self.dtype}, but by reference no weights are stored; leave one of them out")

    @property
    def listens(self) -> bool:
        """Whether parents hear a text before they are merged."""
        return self.align or (self.neurons > 0 and self.by == "activity")

    def uses(self, option: str) -> bool:
        """Whether the method reads an option."""
        return option in METHODS[self.method].options

    def told(self) -> dict[str, Any]:
        """The fields that the result depends on, as JSON values, for the checkpoint and its card."""
        numbers = {"t", "density", "scale", "share_rate", "width", "seed"}
        fields = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = field.name in ("parents", "method", "name", "dtype") or (field.name == "by" and self.neurons > 0)
            if wanted or value != field.default or (field.name in numbers and self.uses(field.name)):
                fields[field.name] = list(value) if isinstance(value, tuple) else value
        return fields

    def weight_list(self) -> tuple[float, ...]:
        """The weights, 1 for each parent if none were given."""
        return self.weights or (1.0,) * len(self.parents)

    def _parents_allowed(self) -> tuple[int, int]:
        if self.method == "slerp":
            return 2, 2
        return (2 if METHODS[self.method].composed else 1), MAX_PARENTS

    def _check_weights(self) -> None:
        if not self.weights:
            return
        if not self.uses("weights"):
            raise MergeError(f"{self.method} takes no weights; leave them out")
        if not isinstance(self.weights, tuple) or len(self.weights) != len(self.parents):
            raise MergeError(f"{len(self.parents)} parents need as many weights, or none; given {cut(self.weights)}")
        low = -10.0 if self.uses("base") else 0.0
        for weight in self.weights:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise MergeError(f"a weight is {cut(weight)}; it must be a number")
            if not low <= weight <= 1e6:
                raise MergeError(f"a weight is {weight}; it must be from {low:g} to 1,000,000")
        if not self.uses("base") and sum(self.weights) <= 0:
            raise MergeError("the weights are all 0; at least one parent must count")


def recipe_from_fields(fields: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values.

    Raises:
        MergeError: an unknown field or a value that is not allowed.
    """
    known = [field.name for field in dataclasses.fields(Recipe)]
    if unknown := [name for name in fields if name not in known]:
        raise MergeError(f"a merge recipe does not know {cut(unknown[0])}; it knows {', '.join(known)}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    if "parents" not in values:
        raise MergeError("a merge recipe needs parents: a list of checkpoints")
    return Recipe(**values)


def read_recipe(path: str | Path, changes: Mapping[str, Any] | Sequence[tuple[str, Any]] = ()) -> Recipe:
    """A recipe from a TOML file, with some fields changed.

    Raises:
        MergeError: it cannot be read, or holds what is not allowed.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_TEXT_BYTES + 1)
        if len(data) > _TEXT_BYTES:
            raise MergeError(f"{path} is above {_TEXT_BYTES:,} bytes; a recipe is a small TOML file")
        fields = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise MergeError(f"{path} could not be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # whole numbers of thousands of digits among them
        raise MergeError(f"{path} is no TOML: {cut(error)}") from None
    return recipe_from_fields(fields | dict(changes))
