"""From a configuration to a model, with its size known before anything is allocated."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import torch

from ..config import Config
from ..errors import ConfigError
from .base import MAX_PARAMETERS, Model, skeleton

_SEEDING = threading.Lock()


@lru_cache(maxsize=256)
def parameter_count(config: Config) -> int:
    """Numbers in the weights, counted on a model without storage."""
    return skeleton(config).parameter_count()


def build(config: Config, *, seed: int | None = None, max_parameters: int = MAX_PARAMETERS) -> Model[Any]:
    """A model with fresh random weights.

    Args:
        seed: makes the weights reproducible; the CPU's global generator is left as it was.

    Raises:
        ConfigError: the model would have more than `max_parameters`.
    """
    check_size(config, max_parameters)
    if seed is None:
        return Model.KINDS[config.kind](config)
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Model.KINDS[config.kind](config)


def check_size(config: Config, max_parameters: int = MAX_PARAMETERS) -> int:
    """The model's parameter count.

    Raises:
        ConfigError: it is above `max_parameters`.
    """
    count = parameter_count(config)
    if count > max_parameters:
        raise ConfigError(
            f"this {config.kind} model would have {count:,} parameters; at most {max_parameters:,} are allowed"
        )
    return count
