"""What of a model learns: all of it, a part, or low-rank additions to its matrices."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bdh.errors import ConfigError
from bdh.models import Model, skeleton

_LORA_MATRICES = ("encoder", "encoder_v", "decoder")
_ENDS = ("embed.", "tok_emb.", "patch_embedder.byte_embed.", "lm_head")
_PARTS = {
    "local": ("local_model.",),
    "global": ("global_model.", "patch_embedder."),
    "head": ("lm_head",),
    "ends": _ENDS,
}
"""Beginnings of the names of what learns."""


class LowRank(nn.Module):
    """W + scale · A B, as a parametrization of a matrix or of a stack of matrices."""

    def __init__(self, matrix: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        *stack, rows, columns = matrix.shape
        if rank > min(rows, columns):
            raise ConfigError(
                f"lora_rank is {rank}; for a matrix of {rows} × {columns} it is at most {min(rows, columns)}"
            )
        self.scale = alpha / rank
        down = torch.randn(*stack, rows, rank, generator=generator) / math.sqrt(rows)
        self.down = nn.Parameter(down.to(matrix))
        self.up = nn.Parameter(torch.zeros(*stack, rank, columns).to(matrix))

    def forward(self, matrix: Tensor) -> Tensor:
        """The matrix with its addition."""
        return matrix + self.scale * (self.down @ self.up)


def choose_trained(model: Model[Any], trained: str, *, rank: int = 8, alpha: float = 16.0, seed: int = 0) -> None:
    """Let only what `trained` names learn; see `Recipe.trained`. `seed` is of the low-rank additions.

    Raises:
        ConfigError: the model has no such part.
    """
    if trained == "full":
        return
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if trained == "lora":
        matrices = [
            (module, name)
            for module in list(model.modules())
            for name, _ in list(module.named_parameters(recurse=False))
            if name in _LORA_MATRICES
        ]
        if not matrices:
            raise ConfigError(f"a {model.config.kind} model has no encoder, encoder_v and decoder for lora to add to")
        generator = torch.Generator().manual_seed(seed)
        for module, name in matrices:
            addition = LowRank(getattr(module, name), rank, alpha, generator)
            parametrize.register_parametrization(module, name, addition)
        return
    chosen = [parameter for name, parameter in model.named_parameters() if name.startswith(_PARTS[trained])]
    if not chosen:
        raise ConfigError(
            f"a {model.config.kind} model has no part of its own called {trained}; choose full, lora"
            + (", local, global, head or ends" if model.config.kind == "hierarchical" else ", head or ends")
        )
    for parameter in chosen:
        parameter.requires_grad_(True)


def plain_tensors(model: Model[Any]) -> dict[str, Tensor]:
    """The weights by the names that a checkpoint has them under, low-rank additions added."""
    with torch.no_grad():
        return {name: attrgetter(name)(model).detach() for name in skeleton(model.config).state_dict()}
