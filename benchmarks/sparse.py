"""Random weights that fire as rarely as trained ones do."""

from __future__ import annotations

import torch

from bdh.models import Flat
from bdh.models.observe import observing


@torch.no_grad()
def thin_out(model: Flat, active: float, ids: torch.Tensor) -> None:
    """Change a fresh model's weights so that this part of x_sparse is above 0, mean over the layers.

    All embeddings get a direction in common, which what is decoded keeps up, and neurons are set against it.

    Args:
        ids: (B, T), bytes to measure with.
    """
    direction = torch.ones(model.config.n_embd)
    direction[::2] = -1  # normalisation takes away a mean
    model.embed.weight += 0.02 * direction
    model.decoder += 0.02 * direction
    encoder, low, high = model.encoder.clone(), 0.0, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        model.encoder.copy_(encoder - middle * direction[:, None])
        low, high = (middle, high) if x_active(model, ids) > active else (low, middle)


@torch.no_grad()
def x_active(model: Flat, ids: torch.Tensor) -> float:
    """Part of x_sparse that is above 0, mean over layers and bytes."""
    parts: list[float] = []
    with observing(lambda name, x: parts.append((x > 0).float().mean().item()) if name == "x_sparse" else None):
        model(ids, last_only=True, keep_state=False)
    return sum(parts) / len(parts)
