"""The Hebbian memory one byte at a time: slow, plain, and what every fast form is held against."""

from __future__ import annotations

import torch
from torch import Tensor


def hebbian_attention(
    query: Tensor, key: Tensor, value: Tensor, memory: Tensor | None, decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """read_t = q_t · S_t;  S_(t+1) = λ S_t + k_tᵀ ⊗ v_t.

    Reading comes before writing: a byte does not see itself.

    Args:
        query, key: (H, B, T, N).
        value: (H or 1, B, T, D).
        memory: S, (B, H, N, D) float32; None is an empty one.
        decay: λ, (H,) float32; None is 1.

    Returns:
        The reads (H, B, T, D) in the type of `value`, and the memory after the last byte.
    """
    heads, batch, length, neurons = key.shape
    width = value.shape[-1]
    q, k, v = query.float(), key.float(), value.float().expand(heads, batch, length, width)
    sums = key.new_zeros((heads, batch, neurons, width), dtype=torch.float32)
    if memory is not None:
        sums = sums + memory.transpose(0, 1)
    reads = []
    for t in range(length):
        reads.append(q[:, :, t, None, :] @ sums)
        if decay is not None:
            sums = sums * decay.view(-1, 1, 1, 1)
        sums = sums + k[:, :, t, :, None] * v[:, :, t, None, :]
    return torch.cat(reads, dim=2).to(value.dtype), sums.transpose(0, 1)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (2i, 2i + 1) of the last axis by its phase; shapes as in `rope.rotate_pairs`."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)
