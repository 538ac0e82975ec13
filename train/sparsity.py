"""Steering a model to few active neurons: how many are, a penalty without a scale, and how hard to press."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

_EPSILON = 1e-12
_FIRST_WEIGHT, _LEAST_WEIGHT, _LARGEST_WEIGHT = 0.01, 1e-4, 10.0
_GAIN = 0.05
"""How much of a relative miss of the target the logarithm of the weight follows in one step."""


def hoyer(x: Tensor) -> Tensor:
    """How evenly activity is spread, mean over vectors: (Σx)² / (N Σx²), 1 if all are equal, 1 / N if one is alone.

    It does not change when x is scaled, so it cannot be lowered by shrinking the weights that make x.

    Args:
        x: (..., N), none below 0; a vector of zeros counts as 0.

    Returns:
        A number, float32.
    """
    x = x.float()
    return (x.sum(-1).square() / (x.shape[-1] * x.square().sum(-1) + _EPSILON)).mean()


@dataclass
class Activity:
    """What is active in one or more forward passes; an observer."""

    fractions: dict[str, list[Tensor]] = field(default_factory=dict)
    """Part of each layer's values that are above 0, by the activation's name, layer after layer."""
    penalties: list[Tensor] = field(default_factory=list)
    """Hoyer's measure of each layer's x_sparse, if it is to be pressed."""
    press: bool = False

    def __call__(self, name: str, activation: Tensor) -> None:
        """Take note of an activation; see `bdh.models.observe`."""
        if name not in ("x_sparse", "y_sparse"):
            return
        self.fractions.setdefault(name, []).append((activation.detach() > 0).float().mean())
        if self.press and name == "x_sparse":
            self.penalties.append(hoyer(activation))

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
