"""The passes of `kernels` for a GPU, compiled by Triton when first called; imported only where they are wanted.

One program works on one row of neurons, so that sums are always taken in the same order.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference

_BLOCK = 512
"""Pairs of neurons at once: with four warps, 16 bytes of bfloat16 for each thread."""
_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""By how much of its size a number may differ from that of plain operations."""


@triton.jit(do_not_specialize=["phases"])
def fire(latent, cos, sin, active, rotated, moments, neurons, phases, block: tl.constexpr):
    """As `kernels.fire`; the rows of `cos` and `sin` are `phases` in number."""
    row = tl.program_id(0).to(tl.int64)
    latent, active, rotated = latent + row * neurons, active + row * neurons, rotated + row * neurons
    phase = (row % phases) * (neurons // 2)
    total = tl.zeros((2 * block,), tl.float32)
    squares = tl.zeros((2 * block,), tl.float32)
    count = tl.zeros((2 * block,), tl.float32)
    for start in range(0, neurons, 2 * block):
        at = start + tl.arange(0, 2 * block)
        value = _relu(_wide(latent, at, neurons))
        tl.store(active + at, value, mask=at < neurons)
        turned = _turned(value, cos + phase, sin + phase, start // 2, neurons // 2, 1.0, block)
        tl.store(rotated + at, turned, mask=at < neurons)
        total += value
        squares += value * value
        count += tl.where(value > 0, 1.0, 0.0)
    tl.store(moments + 3 * row, tl.sum(total, 0) / neurons)
    tl.store(moments + 3 * row + 1, tl.sum(squares, 0) / neurons)
    tl.store(moments + 3 * row + 2, tl.sum(count, 0) / neurons)


@triton.jit(do_not_specialize=["phases"])
def fire_back(d_active, d_rotated, d_moments, active, cos, sin, d_latent, neurons, phases, block: tl.constexpr):
    """As `kernels.fire_back`."""
    row = tl.program_id(0).to(tl.int64)
    d_active, d_rotated = d_active + row * neurons, d_rotated + row * neurons
    active, d_latent = active + row * neurons, d_latent + row * neurons
    phase = (row % phases) * (neurons // 2)
    d_sum = tl.load(d_moments + 3 * row) / neurons
    d_squares = tl.load(d_moments + 3 * row + 1) / neurons
    for start in range(0, neurons, 2 * block):
        at = start + tl.arange(0, 2 * block)
        value = _wide(active, at, neurons)
        slope = _wide(d_rotated, at, neurons)
        slope = _turned(slope, cos + phase, sin + phase, start // 2, neurons // 2, -1.0, block)
        slope += _wide(d_active, at, neurons) + d_sum + 2 * d_squares * value
        tl.store(d_latent + at, tl.where(value > 0, slope, 0.0), mask=at < neurons)


@triton.jit
def gate(latent, active, gated, parts, neurons, block: tl.constexpr):
    """As `kernels.gate`."""
    row = tl.program_id(0).to(tl.int64)
    latent, active, gated = latent + row * neurons, active + row * neurons, gated + row * neurons
    count = tl.zeros((2 * block,), tl.float32)
    for start in range(0, neurons, 2 * block):
        at = start + tl.arange(0, 2 * block)
        value = _relu(_wide(latent, at, neurons))
        tl.store(gated + at, value * _wide(active, at, neurons), mask=at < neurons)
        count += tl.where(value > 0, 1.0, 0.0)
    tl.store(parts + row, tl.sum(count, 0) / neurons)


@triton.jit
def gate_back(d_gated, latent, active, d_latent, d_active, neurons, block: tl.constexpr):
    """As `kernels.gate_back`."""
    row = tl.program_id(0).to(tl.int64)
    d_gated, latent, active = d_gated + row * neurons, latent + row * neurons, active + row * neurons
    d_latent, d_active = d_latent + row * neurons, d_active + row * neurons
    for start in range(0, neurons, 2 * block):
        at = start + tl.arange(0, 2 * block)
        value, slope = _wide(latent, at, neurons), _wide(d_gated, at, neurons)
        tl.store(d_active + at, slope * _relu(value), mask=at < neurons)
        tl.store(d_latent + at, tl.where(value > 0, slope * _wide(active, at, neurons), 0.0), mask=at < neurons)


@triton.jit
def _wide(row, at, neurons):
    """Numbers of a row as float32, 0 beyond its end."""
    return tl.load(row + at, mask=at < neurons, other=0.0).to(tl.float32)


@triton.jit
def _relu(value):
    return tl.where(value < 0, 0.0, value)  # NaN is not below, and stays


@triton.jit
def _turned(value, cos, sin, start, pairs, sign, block: tl.constexpr):
    """Pairs of neighbours turned by their phases from `start` on, or turned back where `sign` is -1."""
    at = start + tl.arange(0, block)
    cosine = tl.load(cos + at, mask=at < pairs, other=0.0)
    sine = sign * tl.load(sin + at, mask=at < pairs, other=0.0)
    first, second = tl.split(tl.reshape(value, (block, 2)))
    return tl.reshape(tl.join(first * cosine - second * sine, second * cosine + first * sine), (2 * block,))


_KERNELS = {"fire": fire, "fire_back": fire_back, "gate": gate, "gate_back": gate_back}
_COSINE = {"fire": 1, "fire_back": 4}
"""Which of a kernel's tensors has the cosines, in as many rows as there are phases."""


def run(kernel: str, *tensors: Tensor) -> None:
    """Let a kernel work on all rows of the tensors; they are given, and written, as to the loop of its name."""
    rows = [tensor.detach().contiguous() for tensor in tensors]
    neurons = rows[0].shape[-1]
    count = rows[0].numel() // max(1, neurons)
    if not count:
        return
    sizes = [neurons]
    if kernel in _COSINE:
        sizes.append(rows[_COSINE[kernel]].numel() // (neurons // 2))
    block = max(16, min(_BLOCK, triton.next_power_of_2(neurons // 2)))
    with torch.cuda.device_of(rows[0]):
        _KERNELS[kernel][(count,)](*rows, *sizes, block=block, enable_fp_fusion=False)


@torch.no_grad()
def check(device: torch.device, dtype: torch.dtype) -> None:
    """Compile every kernel, and compare what it writes with plain operations.

    Nothing is drawn and nothing kept for the way back, so that it may stand in the midst of a forward pass.

    Raises:
        RuntimeError: they differ. Whatever Triton raises comes through.
    """
    shape = (2, 1, 2, 2 * _BLOCK + 32)
    latent, other, slope, slope2 = (_numbers(shape, step, device).to(dtype) for step in (37, 41, 43, 47))
    d_moments = _numbers((*shape[:-1], 3), 53, device)
    radians = _numbers((*shape[1:-1], shape[-1] // 2), 59, device)
    cos, sin = radians.cos(), radians.sin()
    active, rotated, d_latent, d_active = (torch.empty_like(latent) for _ in range(4))
    moments = torch.empty_like(d_moments)
    wide, positive = latent.float().relu(), latent > 0
    part = positive.float().mean(-1, keepdim=True)

    run("fire", latent, cos, sin, active, rotated, moments)
    _same("fire", active, wide)
    _same("fire", rotated, reference.rotate_pairs(wide, cos, sin))
    means = wide.mean(-1, keepdim=True), wide.square().mean(-1, keepdim=True), part
    _same("fire", moments, torch.cat(means, -1))

    run("fire_back", slope, slope2, d_moments, active, cos, sin, d_latent)
    back = slope.float() + reference.rotate_pairs(slope2.float(), cos, -sin)
    back += (d_moments[..., :1] + 2 * d_moments[..., 1:2] * wide) / shape[-1]
    _same("fire_back", d_latent, back * positive)

    parts = torch.empty_like(part)
    run("gate", latent, other, rotated, parts)
    _same("gate", rotated, wide * other.float())
    _same("gate", parts, part)

    run("gate_back", slope, latent, other, d_latent, d_active)
    _same("gate_back", d_active, slope.float() * wide)
    _same("gate_back", d_latent, slope.float() * other.float() * positive)


def _numbers(shape: tuple[int, ...], step: int, device: torch.device) -> Tensor:
    """Some of either sign and 0, up to 2."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count, device=device) * step % 101 - 50) / 25).view(shape)


def _same(kernel: str, ours: Tensor, theirs: Tensor) -> None:
    theirs = theirs.to(ours.dtype).float()
    near = (ours.float() - theirs).abs() <= _ROUNDING[ours.dtype] * (1 + theirs.abs())
    if not bool(near.all()):
        raise RuntimeError(f"the kernel {kernel} gives other numbers than plain operations")
