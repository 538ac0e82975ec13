"""A BDH layer for one byte, in loops that touch only what fires; compiled by numba when first called.

A rotation couples neurons in pairs, so of a memory the rows of a pair are read and written if either of the two fires.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from .compiling import compiled

_EPSILON = np.float32(1e-5)
_ZERO, _ONE = np.float32(0), np.float32(1)
_LEAST = np.float32(2.0**-40)
"""Where a factor that a memory is owed gets smaller, it is paid: far from where float32 would lose digits."""


@compiled
def layer(x, encoder, encoder_v, decoder, cos, sin, memory, owed, decay):
    """Let each stream hear one byte in one layer; see `bdh.models.layer.bdh_layer` for what is computed.

    Args:
        x: (B, D), overwritten by the layer's output.
        encoder: (H, D, N).
        encoder_v, decoder: (H, N, D), a row a neuron.
        cos, sin: (B or 1, N / 2).
        memory: (B, H, N, D), written. What is remembered is this times `owed`.
        owed: (B, H) factors, written: damping shrinks them instead of every number of the memory.
        decay: λ, (H,).
    """
    streams, width = x.shape
    heads, _, neurons = encoder.shape
    latent, read, out = np.empty(neurons, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    unread = np.empty(width, np.float32)
    pairs, firing = np.empty(neurons // 2, np.int64), np.empty(neurons, np.int64)
    for b in range(streams):
        phase = b % len(cos)
        out[:] = _ZERO
        for h in range(heads):
            _excite(x[b], encoder[h], latent)
            pair_count, count = _fire(latent, pairs, firing)
            if owed[b, h] * decay[h] < _LEAST:
                _scale(memory[b, h], owed[b, h])
                owed[b, h] = _ONE
            before = owed[b, h]
            read[:] = _ZERO
            if decay[h] < _LEAST:  # so little is kept that it cannot be owed
                _recall(pairs[:pair_count], latent, cos[phase], sin[phase], memory[b, h], x[b], read, _ZERO)
                _scale(memory[b, h], decay[h])
                unread[:] = _ZERO
                _recall(pairs[:pair_count], latent, cos[phase], sin[phase], memory[b, h], x[b], unread, _ONE)
            else:
                owed[b, h] = before * decay[h]
                weight = _ONE / owed[b, h]
                _recall(pairs[:pair_count], latent, cos[phase], sin[phase], memory[b, h], x[b], read, weight)
            for d in range(width):
                read[d] *= before
            _norm(read)
            _gate(firing[:count], latent, encoder_v[h], decoder[h], read, out)
        _norm(out)
        for d in range(width):
            x[b, d] += out[d]
        _norm(x[b])


@compiled
def settle(memory, owed):
    """Give a memory the factors that it is owed."""
    for b in range(len(memory)):
        for h in range(memory.shape[1]):
            if owed[b, h] != _ONE:
                _scale(memory[b, h], owed[b, h])
                owed[b, h] = _ONE


@compiled
def _scale(rows, factor):
    for n in range(len(rows)):
        for d in range(rows.shape[1]):
            rows[n, d] *= factor


@compiled
def _excite(x, encoder, latent):
    """Latent = x · encoder, four rows at a time, so that sums are written and read a quarter as often."""
    width, neurons = encoder.shape
    latent[:] = _ZERO
    whole = width - width % 4
    for d in range(0, whole, 4):
        first, second, third, fourth = encoder[d], encoder[d + 1], encoder[d + 2], encoder[d + 3]
        for n in range(neurons):
            latent[n] += x[d] * first[n] + x[d + 1] * second[n] + x[d + 2] * third[n] + x[d + 3] * fourth[n]
    for d in range(whole, width):
        row = encoder[d]
        for n in range(neurons):
            latent[n] += x[d] * row[n]


@compiled
def _fire(latent, pairs, firing):
    """Relu in place; the pairs of which one fires, and the neurons that do. NaN fires, so that it shows."""
    pair_count = count = 0
    for i in range(len(latent) // 2):
        silent = latent[2 * i] <= _ZERO, latent[2 * i + 1] <= _ZERO
        if silent[0] and silent[1]:
            continue
        pairs[pair_count] = i
        pair_count += 1
        for k in range(2):
            if silent[k]:
                latent[2 * i + k] = _ZERO
            else:
                firing[count] = 2 * i + k
                count += 1
    return pair_count, count


@compiled
def _recall(pairs, active, cos, sin, memory, x, read, weight):
    """Read = r · S, and S += weight · r ⊗ x, for r the rotated activity of the pairs; one pass over their rows."""
    for i in pairs:
        first = active[2 * i] * cos[i] - active[2 * i + 1] * sin[i]
        second = active[2 * i + 1] * cos[i] + active[2 * i] * sin[i]
        first_row, second_row = memory[2 * i], memory[2 * i + 1]
        first_weight, second_weight = first * weight, second * weight
        for d in range(len(x)):
            read[d] += first * first_row[d] + second * second_row[d]
            first_row[d] += first_weight * x[d]
            second_row[d] += second_weight * x[d]


@compiled
def _gate(firing, active, encoder_v, decoder, read, out):
    """Out += Σ over firing neurons of relu(read · encoder_v) · active · decoder."""
    for n in firing:
        row = encoder_v[n]
        gain = _ZERO
        for d in range(len(read)):
            gain += read[d] * row[d]
        if gain <= _ZERO:
            continue
        gain *= active[n]
        row = decoder[n]
        for d in range(len(out)):
            out[d] += gain * row[d]


@compiled
def _norm(x):
    """Layer normalisation in place, without learned scale or shift."""
    mean = square = _ZERO
    for d in range(len(x)):
        mean += x[d]
    mean /= np.float32(len(x))
    for d in range(len(x)):
        x[d] -= mean
        square += x[d] * x[d]
    scale = _ONE / np.sqrt(square / np.float32(len(x)) + _EPSILON)
    for d in range(len(x)):
        x[d] *= scale
