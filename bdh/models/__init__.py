"""The kinds of model and how to build them."""

from .base import Model, Output
from .build import MAX_PARAMETERS, build, check_size, parameter_count, skeleton
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
]
