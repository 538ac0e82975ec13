"""Rotary positions whose phase is exact at any position.

A phase is a fraction of a turn. Held as a 64-bit fixed-point fraction, `position × increment` wraps at whole
turns by itself, so nothing is lost however long the stream is, and no 64-bit floats are needed (MPS has none).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import reference

_TURN = 2.0**64
_CACHED = 2**18
"""Numbers that a rotation of a narrow type widens at once: measured best on a CPU."""


def frequencies(n: int, theta: float = 2.0**16) -> Tensor:
    """Turns a byte for each of `n` neurons, two neighbours sharing one: theta^(-2⌊j/2⌋/n) / 2π.

    Computed in float32, as the released code does: a trained model is defined by these roundings.

    Returns:
        (n,) float32.
    """
    pairs = (torch.arange(0, n, 1, dtype=torch.float32) / 2).floor() * 2
    return 1.0 / (theta ** (pairs / n)) / (2 * math.pi)


def increments(freqs: Tensor) -> Tensor:
    """Fixed-point turns a byte of each pair: exact, because a float32 times a power of two is.

    Args:
        freqs: (N,) float32, below half a turn, neighbours equal.

    Returns:
        (N / 2,) int64 in units of 2^-64 turns.
    """
    return (freqs.reshape(-1)[::2] * _TURN).to(torch.int64)


@lru_cache(maxsize=64)
def radian_increments(dim: int, theta: float, device: torch.device) -> Tensor:
    """Fixed-point turns a byte of the usual rotary embedding, theta^(-2i/dim) radians a byte.

    Returns:
        (dim / 2,) int64 in units of 2^-64 turns.
    """
    radians = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))
    return (radians / (2 * math.pi) * _TURN).to(torch.int64).to(device)


def cos_sin(position: Tensor, length: int, increment: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every pair's phase at `length` positions from `position` on.

    Args:
        position: (B,) int64.
        increment: (N / 2,) int64 from `increments`.

    Returns:
        Two tensors (B, length, N / 2), float32, within 3e-7 of exact.
    """
    positions = position[:, None] + torch.arange(length, device=position.device)
    turns = (positions[..., None] * increment).to(torch.float32) / _TURN
    radians = turns * (2 * math.pi)
    return radians.cos(), radians.sin()


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (2i, 2i + 1) of the last axis by its phase.

    Args:
        x: (..., T, N).
        cos, sin: broadcastable to (..., T, N / 2), float32; no gradient reaches them.

    Returns:
        (..., T, N) in the type of `x`.
    """
    if torch.compiler.is_compiling():
        return reference.rotate_pairs(x, cos, sin)
    return _Rotation.apply(x, cos, sin)


class _Rotation(torch.autograd.Function):
    """A rotation, whose gradient is turned back by the same phase."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient.contiguous(), cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As a product of complex numbers, which is one pass over memory where slices of pairs are many."""
    if x.dtype == torch.float32:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    turned = torch.empty_like(x)
    # There are no complex numbers of two bytes; a few rows at a time the wide ones stay in a CPU's cache.
    rows = max(1, _CACHED * x.shape[-2] // x.numel()) if x.device.type == "cpu" else x.shape[-2]
    for part, cos_, sin_, into in zip(*(t.split(rows, dim=-2) for t in (x, cos, sin, turned)), strict=True):
        pairs = torch.view_as_complex(part.float().unflatten(-1, (-1, 2)))
        into.copy_(torch.view_as_real(pairs.mul_(torch.complex(cos_, sin_))).flatten(-2))
    return turned


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + n / 2) of the last axis by its phase; shapes as `rotate_pairs`."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
