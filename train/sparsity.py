"""Steering a model to few active neurons: how many are, a penalty without a scale, and how hard to press."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

_EPSILON = 1e-12
_FIRST_WEIGHT, _LEAST_WEIGHT, _LARGEST_WEIGHT = 0.01, 1e-4, 10.0
_GAIN = 0.05
"""How much of a relative miss of the target the logarithm of the weight follows in one step."""


def hoyer(moments: Tensor) -> Tensor:
    """How evenly activity is spread, mean over vectors: (Σx)² / (N Σx²), 1 if all are equal, 1 / N if one is alone.

    It does not change when x is scaled, so it cannot be lowered by shrinking the weights that make x.

    Args:
        moments: the mean and the mean of squares of vectors with no value below 0, first on the last axis; a vector
            of zeros counts as 0.

    Returns:
        A number, float32.
    """
    return (moments[..., 0].square() / (moments[..., 1] + _EPSILON)).mean()


@dataclass
class Activity:
    """What is active in one or more forward passes; an observer."""

    fractions: dict[str, list[Tensor]] = field(default_factory=dict)
    """Part of each layer's values that are above 0, of x_sparse and of y_sparse, layer after layer."""
    penalties: list[Tensor] = field(default_factory=list)
    """Hoyer's measure of each layer's x_sparse, if it is to be pressed."""
    press: bool = False
    names: ClassVar[Mapping[str, str]] = {"x_moments": "x_sparse", "y_active": "y_sparse"}
    """What it looks at, and whose part that is above 0 is the last number there."""

    def __call__(self, name: str, activation: Tensor) -> None:
        """Take note of an activation; see `bdh.models.observe`."""
        if name in self.names:
            self.fractions.setdefault(self.names[name], []).append(activation.detach()[..., -1].mean())
        if self.press and name == "x_moments":
            self.penalties.append(hoyer(activation))

    def again(self) -> Activity:
        """Another that takes note of the same; see `bdh.models.observe.looking_again`."""
        return Activity(press=self.press)

    def add(self, other: Activity) -> None:
        """Take note of what another saw."""
        for name, seen in other.fractions.items():
            self.fractions.setdefault(name, []).extend(seen)

    def mean(self, name: str) -> float:
        """Part that is active, mean over layers and passes; 0 if nothing was seen."""
        seen = self.fractions.get(name, [])
        return float(torch.stack(seen).mean()) if seen else 0.0

    def penalty(self) -> Tensor:
        """Mean of the layers' measures."""
        return torch.stack(self.penalties).mean()


@dataclass
class Steering:
    """The weight of the penalty, so that activity follows its target.

    The target falls geometrically from what was active at first to `target` over `steps` steps and stays there.
    """

    target: float
    steps: int
    weight: float = _FIRST_WEIGHT
    first: float = 0.0
    taken: int = 0

    def aim(self) -> float:
        """What is to be active now."""
        done = min(1.0, self.taken / max(1, self.steps))
        return float(math.exp((1 - done) * math.log(max(self.first, self.target)) + done * math.log(self.target)))

    def follow(self, active: float) -> None:
        """Press harder if more is active than is to be, more softly if less is."""
        self.first = self.first or max(active, self.target)
        miss = max(-1.0, min(1.0, active / self.aim() - 1))
        self.weight = min(_LARGEST_WEIGHT, max(_LEAST_WEIGHT, self.weight * math.exp(_GAIN * miss)))
        self.taken += 1
