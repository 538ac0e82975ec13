"""The Hebbian memory a chunk at a time: inside the chunk as masked scores, across chunks as one sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BLOCK = 128
"""Rows of scores computed at once where what stands right of them is left out."""
_LEAST = 512
"""Bytes from which that is done."""


def hebbian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Tensor | None,
    decay: Tensor | None = None,
    *,
    write: bool = True,
    inplace: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """read_t = λ^t q_t · S + Σ_(j<t) λ^(t-1-j) (q_t · k_j) v_j;  S' = λ^T S + Σ_j λ^(T-1-j) k_jᵀ ⊗ v_j.

    Costs T² for the chunk, so callers cut long inputs. Same function as `reference.hebbian_attention`.
    Sums are float32; under autocast only the products take its type.

    Args:
        query, key: (H, B, T, N).
        value: (H or 1, B, T, D).
        memory: S, (B, H, N, D) float32; None is an empty one, which is not even read.
        decay: λ, (H,) float32; None is 1.
        write: False leaves out S', for a last chunk whose memory nobody asked for.
        inplace: write S' over S.

    Returns:
        The reads (H, B, T, D) in the type of `value`, and S' (None if not written).
    """
    dtype = value.dtype
    alike = query is key
    if not torch.is_autocast_enabled(value.device.type):
        query, key, value = query.float(), key.float(), value.float()
    heads, batch, length, _ = key.shape
    value = value.expand(heads, batch, length, value.shape[-1])
    read = None
    if length > 1:
        scores = _Gram.apply(key) if alike else query @ key.mT
        if decay is None:
            scores = scores.tril(diagonal=-1)
        else:
            steps = torch.arange(length, device=key.device)
            age = (steps[:, None] - steps - 1).clamp(min=0)
            scores = scores * (decay[:, None, None] ** age).tril(diagonal=-1).to(scores.dtype)[:, None]
        read = scores @ value
    if memory is not None:
        if length < value.shape[-1]:
            # Whichever is smaller is moved to the other's order of axes; with one stream nothing is.
            recalled = (query.transpose(0, 1) @ memory.to(query.dtype)).transpose(0, 1)
        else:
            recalled = query @ memory.transpose(0, 1).to(query.dtype)
        if decay is not None and length > 1:
            steps = torch.arange(length, device=key.device)
            recalled = recalled * (decay[:, None] ** steps).to(recalled.dtype)[:, None, :, None]
        read = recalled if read is None else read + recalled
    if read is None:
        read = torch.zeros_like(value)
    return read.to(dtype), _write(key, value, memory, decay, inplace) if write else None


class _Gram(torch.autograd.Function):
    """x xᵀ, of which nothing but what is below the diagonal is sure to be computed and may be used.

    Its gradient takes one product, (g + gᵀ) x, where autograd takes two and adds them across their order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _lower(x) if _skips(x) else x @ x.mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (gradient + gradient.mT).to(x.dtype) @ x


def _skips(x: Tensor) -> bool:
    """Whether the scores above the diagonal are left out.

    On a GPU they are, unmeasured: of 512 bytes 5/8 of the work is left. On a CPU the product of that length is 1.2
    times as fast in float32, but a layer's training step no faster than noise shows; shorter ones, and bfloat16, lose.
    """
    return x.device.type == "cuda" and x.shape[-2] >= _LEAST


def _lower(x: Tensor) -> Tensor:
    """The product x xᵀ by blocks of rows, each up to its diagonal; 0 right of them."""
    length = x.shape[-2]
    scores = None
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        block = x[..., start:stop, :] @ x[..., :stop, :].mT
        if scores is None:  # autocast chooses the type of the product
            scores = block.new_zeros(*x.shape[:-1], length)
        scores[..., start:stop, :stop] = block
    assert scores is not None
    return scores


def _write(key: Tensor, value: Tensor, memory: Tensor | None, decay: Tensor | None, inplace: bool) -> Tensor:
    """S' of the chunk, (B, H, N, D)."""
    length = key.shape[2]
    if decay is not None and length > 1:
        left = torch.arange(length - 1, -1, -1, device=key.device)
        value = value * (decay[:, None] ** left).to(value.dtype)[:, None, :, None]
    if memory is not None and decay is not None:
        kept = (decay**length)[None, :, None, None]
        memory = memory.mul_(kept) if inplace else memory * kept
    if memory is None:
        return (key.mT @ value).float().transpose(0, 1)
    if not inplace:
        return memory + (key.mT @ value).transpose(0, 1)
    with torch.autocast(key.device.type, enabled=False):
        key, value = key.to(memory.dtype), value.to(memory.dtype)
        for stream in range(memory.shape[0]):
            memory[stream].baddbmm_(key[:, stream].mT, value[:, stream])
    return memory
