"""What a layer does to its neurons, in one pass over memory each; compiled by numba when first called.

Arrays are float32, or bfloat16 seen as uint16; rows are vectors of neurons, of which those from `start` to `stop` are
worked on.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .compiling import compiled

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@compiled
def fire(start, stop, latent, cos, sin, active, rotated, moments):
    """Write relu(latent), the same with each pair turned by its phase, and mean, mean square, part above 0 of rows.

    Args:
        latent, active, rotated: (R, N); active is relu(latent), and the last two are written.
        cos, sin: (P, N / 2) float32; row j has the phase of j modulo P.
        moments: (R, 3) float32, written.
    """
    for j in range(start, stop):
        _fire_row(latent[j], cos[j % len(cos)], sin[j % len(cos)], active[j], rotated[j])
        _moments_row(active[j], moments[j])


@compiled
def fire_back(start, stop, d_active, d_rotated, d_moments, active, cos, sin, d_latent):
    """Write the gradient of `fire` by its latents, from those by what it wrote."""
    share = _ONE / np.float32(d_latent.shape[1])
    for j in range(start, stop):
        _fire_back_row(
            d_active[j],
            d_rotated[j],
            d_moments[j, 0] * share,
            d_moments[j, 1] * share,
            active[j],
            cos[j % len(cos)],
            sin[j % len(cos)],
            d_latent[j],
        )


@compiled
def gate(start, stop, latent, active, gated, parts):
    """Write relu(latent) · active, and the part of each row's latents that is above 0.

    Args:
        latent, active, gated: (R, N); the last is written.
        parts: (R, 1) float32, written.
    """
    for j in range(start, stop):
        parts[j, 0] = _gate_row(latent[j], active[j], gated[j])


@compiled
def gate_back(start, stop, d_gated, latent, active, d_latent, d_active):
    """Write the gradients of `gate`, from that by what is gated."""
    for j in range(start, stop):
        _gate_back_row(d_gated[j], latent[j], active[j], d_latent[j], d_active[j])


@compiled
def _fire_row(latent, cos, sin, active, rotated):
    for i in range(len(latent) // 2):
        first, second = _relu(_wide(latent[2 * i])), _relu(_wide(latent[2 * i + 1]))
        _put(active, 2 * i, first)
        _put(active, 2 * i + 1, second)
        _put(rotated, 2 * i, first * cos[i] - second * sin[i])
        _put(rotated, 2 * i + 1, second * cos[i] + first * sin[i])


@compiled
def _moments_row(active, moments):
    total, squares, count = _ZERO, _ZERO, _ZERO
    for i in range(len(active)):
        value = _wide(active[i])
        total += value
        squares += value * value
        count += _ONE if value > _ZERO else _ZERO
    width = np.float32(len(active))
    moments[0], moments[1], moments[2] = total / width, squares / width, count / width


@compiled
def _fire_back_row(d_active, d_rotated, d_sum, d_squares, active, cos, sin, d_latent):
    for i in range(len(d_latent) // 2):
        first, second = _wide(active[2 * i]), _wide(active[2 * i + 1])
        by_first, by_second = _wide(d_rotated[2 * i]), _wide(d_rotated[2 * i + 1])
        by_first, by_second = by_first * cos[i] + by_second * sin[i], by_second * cos[i] - by_first * sin[i]
        by_first += _wide(d_active[2 * i]) + d_sum + _TWO * d_squares * first
        by_second += _wide(d_active[2 * i + 1]) + d_sum + _TWO * d_squares * second
        _put(d_latent, 2 * i, by_first if first > _ZERO else _ZERO)
        _put(d_latent, 2 * i + 1, by_second if second > _ZERO else _ZERO)


@compiled
def _gate_row(latent, active, gated):
    count = _ZERO
    for i in range(len(latent)):
        value = _relu(_wide(latent[i]))
        count += _ONE if value > _ZERO else _ZERO
        _put(gated, i, value * _wide(active[i]))
    return count / np.float32(len(latent))


@compiled
def _gate_back_row(d_gated, latent, active, d_latent, d_active):
    for i in range(len(latent)):
        value, by_gated = _wide(latent[i]), _wide(d_gated[i])
        _put(d_active, i, by_gated * _relu(value))
        _put(d_latent, i, by_gated * _wide(active[i]) if value > _ZERO else _ZERO)


@compiled
def _relu(value):
    return _ZERO if value < _ZERO else value  # NaN is not below, and stays


@intrinsic
def _float_of(_context, _bits):
    """The float32 of 32 bits."""
    return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def _bits_of(_context, _value):
    """The 32 bits of a float32."""
    return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


def _wide(value):
    """A number as float32."""


@overload(_wide)
def _(value):
    if value == types.uint16:
        return lambda value: _float_of(np.uint32(value) << np.uint32(16))
    return lambda value: value


def _put(array, index, value):
    """Write a float32, rounded to the nearest number of the array's type, of two as near to the even one."""


@overload(_put)
def _(array, index, value):
    if array.dtype != types.uint16:

        def put(array, index, value):
            array[index] = value

        return put

    def put_rounded(array, index, value):
        bits = _bits_of(np.float32(value))
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        array[index] = np.uint16(rounded) if value == value else np.uint16(0x7FC0)

    return put_rounded
