"""The kinds of model and how to build them."""

from .base import MAX_PARAMETERS, Model, Output, skeleton, state_bytes
from .build import build, check_size, parameter_count
from .composed import Composed
from .flat import Flat
from .hebbian import Hebbian
from .hierarchical import Hierarchical
from .transformer import Transformer

__all__ = [
    "MAX_PARAMETERS",
    "Composed",
    "Flat",
    "Hebbian",
    "Hierarchical",
    "Model",
    "Output",
    "Transformer",
    "build",
    "check_size",
    "parameter_count",
    "skeleton",
    "state_bytes",
]
