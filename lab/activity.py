"""How much of a model is active, layer by layer, on inputs of several kinds."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdh import probe
from bdh.errors import DataError
from bdh.models import Model
from bdh.models.flat import Flat
from bdh.models.hierarchical import Hierarchical
from bdh.models.observe import observing
from bdh.models.transformer import Transformer
from train.data import Bytes
from train.sparsity import Activity

from .claim import unheard

_PIECE_BYTES = 256
_REPEATED = b"The quick brown fox jumps over the lazy dog and runs away home. "
_TEXTS = {"prose": "english", "code": "python", "Spanish": "spanish", "dialogue": "chat"}


@dataclass(frozen=True)
class Active:
    """Parts that are active, by layer; of a Transformer, x are the values behind its GELU that are not exactly 0."""

    x: dict[str, float]
    y: dict[str, float]

    def mean(self, which: str) -> float:
        """Mean over layers."""
        return statistics.fmean(getattr(self, which).values())


def has_neurons(model: Model[Any]) -> bool:
    """Whether all layers of a model are of BDH, so that `active` tells of x and of y."""
    return isinstance(model, Flat) or (isinstance(model, Hierarchical) and model.config.use_bdh_attention)


def inputs(length: int) -> dict[str, Bytes]:
    """Bytes of every kind, none of which the shipped models trained on, but for the repeated sentence, perhaps."""
    if not 2 * _PIECE_BYTES <= length <= 65_536:
        raise DataError(f"{length:,} bytes of each kind were asked for; from {2 * _PIECE_BYTES} to 65,536 can be had")
    kinds = {kind: unheard(text, length) for kind, text in _TEXTS.items()}
    kinds["random bytes"] = np.random.default_rng(0).integers(0, 256, length, dtype=np.uint8)
    kinds["repeated text"] = np.resize(np.frombuffer(_REPEATED, np.uint8), length)
    return kinds


@torch.no_grad()
def active(model: Model[Any], text: Bytes) -> Active:
    """Hear a text with the state carried, and see what is active.

    Raises:
        DataError: the model has neither x_sparse nor a GELU.
    """
    activity, gelu = Activity(), list[list[Tensor]]()
    looking = _gelus(model, gelu) if isinstance(model, Transformer) else observing(activity)
    with looking:
        state = model.empty_state(1)
        ids = torch.from_numpy(text.astype(np.int64))[None]
        for piece in ids[:, : len(text) // _PIECE_BYTES * _PIECE_BYTES].split(_PIECE_BYTES, dim=1):
            state = model(piece, state).state
    if isinstance(model, Transformer):
        return Active({f"layer {index}": float(torch.stack(seen).mean()) for index, seen in enumerate(gelu)}, {})
    names = _layers(model)
    if not has_neurons(model):
        raise DataError(f"the {model.config.kind} model has no x_sparse; take a flat or hierarchical one of BDH layers")
    x, y = (
        dict(zip(names, torch.stack(activity.fractions[name]).view(-1, len(names)).mean(0).tolist(), strict=True))
        for name in ("x_sparse", "y_sparse")
    )
    return Active(x, y)


def _layers(model: Model[Any]) -> list[str]:
    """Names of the layers in the order in which they are heard."""
    if isinstance(model, Hierarchical):
        config = model.config
        return [
            *(f"global {index}" for index in range(config.global_n_layer)),
            *(f"local {index}" for index in range(config.local_n_layer)),
        ]
    return [f"layer {index}" for index in range(getattr(model.config, "n_layer", 0))]


@contextlib.contextmanager
def _gelus(model: Transformer, seen: list[list[Tensor]]) -> Iterator[None]:
    """Note of each block's GELU what part of its values is not exactly 0."""
    handles = []
    for block in model.blocks:
        of_block: list[Tensor] = []
        seen.append(of_block)
        gelu = next(one for one in block.mlp if isinstance(one, torch.nn.GELU))
        handles.append(
            gelu.register_forward_hook(
                lambda _, __, values, of_block=of_block: of_block.append(probe.active(values).float().mean())
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
