"""BDH layers for bytes one after another, in loops that touch only what fires; compiled by numba when first called.

A rotation couples neurons in pairs, so of a memory the rows of a pair are read and written if either of the two fires.
Heads are apart until their parts are added, so that threads can share them without a difference in the sums.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from .compiling import compiled
from .machine import fetch, look, pause, show, take

_EPSILON = np.float32(1e-5)
_ZERO, _ONE = np.float32(0), np.float32(1)
_LEAST = np.float32(2.0**-40)
"""Where a factor that a memory is owed gets smaller, it is paid: far from where float32 would lose digits."""
_TURN, _RADIANS = np.float32(2.0**64), np.float32(2 * np.pi)
_LEVELS = np.float32(127)
_LINE = 16
"""Numbers of a cache line."""
_AHEAD = 8
"""Pairs, or neurons, whose rows are asked for ahead of those in hand."""
_PATIENCE = 2_000
"""Times to look whether another thread is done, some tens of microseconds, before this one has better to do."""


@compiled
def tried(counters, row):
    """Whether what is asked of the processor can be compiled at all."""
    show(counters, 0, take(counters, 0) + look(counters, 0))
    fetch(row, 0)
    pause()


@compiled
def phases(position, increments, cos, sin):
    """Write cosine and sine of each pair's phase at each position, (B, N / 2); see `rope.cos_sin`."""
    for b in range(len(position)):
        for i in range(len(increments)):
            radians = np.float32(position[b] * increments[i]) / _TURN * _RADIANS
            cos[b, i], sin[b, i] = np.cos(radians), np.sin(radians)


@compiled
def byte(
    id, position, increments, embedded, head, x, logits, cos, sin, memory, owed, decay,
    encoder, rows, scan, bounds, encoder_v, decoder, starts, neurons, values, parts,
):  # fmt: skip
    """One byte of one stream from the embedding to the logits, (V,): as `phases` and `stack`, and `position` grows."""
    work = np.zeros(1 + 2 * len(memory), np.int64)
    ids = np.full(1, id if len(starts) else -1, np.int64)
    phases(position, increments, cos, sin)
    x[0] = embedded[id]
    stack(
        work, x, ids, cos, sin, memory, owed, decay,
        encoder, rows, scan, bounds, encoder_v, decoder, starts, neurons, values, parts,
    )  # fmt: skip
    position[0] += 1
    product(x[0], head, logits)


@compiled
def stack(
    work, x, ids, cos, sin, memory, owed, decay,
    encoder, rows, scan, bounds, encoder_v, decoder, starts, neurons, values, parts,
):  # fmt: skip
    """All layers, one after another, in place of x, with whatever other threads call this with the same arrays.

    A thread takes a head of the layer in hand, and another; who is done last adds them up and shows the next layer.
    Nobody is waited for to come.

    Args:
        work: (1 + 2 L,) int64 zeros at first: the layer in hand, and of each layer its heads that are taken and done.
        memory, owed: (L, …), and the others as in `_hear`.

    Returns:
        True after the last layer; False if others take long over the last heads of a layer: come again.
    """
    # What there may be no memory for comes before anything is taken: what is taken will be done.
    unknown = np.full_like(ids, -1)
    width, size = x.shape[1], memory.shape[-2]
    latent, rows_of_x = np.empty(size, np.float32), np.empty((3, width), np.float32)
    firing, active = np.empty(size + 1, np.int64), np.empty(size + 1, np.float32)
    pairs, turned = np.empty(size // 2 + 1, np.int64), np.empty((size // 2 + 1, 2), np.float32)
    while True:
        layer = look(work, 0)
        if layer == len(memory):
            return True
        head = take(work, 1 + 2 * layer)
        if head < len(decay):
            _hear(
                head, x, ids if layer == 0 else unknown, cos, sin, memory[layer], owed[layer], decay,
                encoder, rows, scan, bounds, encoder_v, decoder, starts, neurons, values, parts,
                latent, rows_of_x, firing, active, pairs, turned,
            )  # fmt: skip
            if take(work, 2 + 2 * layer) == len(decay) - 1:
                _add(x, parts, rows_of_x[0])
                show(work, 0, layer + 1)
            continue
        looks = 0
        while look(work, 0) == layer:
            looks += 1
            if looks > _PATIENCE:
                return False
            pause()


@compiled
def _hear(
    h, x, ids, cos, sin, memory, owed, decay,
    encoder, rows, scan, bounds, encoder_v, decoder, starts, neurons, values, parts,
    latent, rows_of_x, firing, active, pairs, turned,
):  # fmt: skip
    """Let a head of a layer hear a byte of each of several streams, or some bytes of one, one after another.

    See `bdh.models.layer.bdh_layer`. Of many bytes, the later find near what the earlier have read.

    Args:
        x: (B, D).
        ids: (B,), bytes whose firing neurons are in the table; -1 for an x that is none of a byte alone.
        cos, sin: (B or 1, N / 2).
        memory: (B or 1, H, N, D), written. What is remembered is this times `owed`.
        owed: (B or 1, H) factors, written: damping shrinks them instead of every number of the memory.
        decay: λ, (H,).
        encoder: (H, D, N).
        rows, encoder_v, decoder: (H, N, D), a row a neuron; `rows` are those of the encoder, or none.
        scan, bounds: the encoder to be screened, as `step.Screen` has it, or none.
        starts, neurons, values: the table, as `step.Table` has it, or none.
        parts: (B, H, D), of which those of this head become what it adds to the layer's output.
        latent, rows_of_x, firing, active, pairs, turned: to be written over: for N numbers, 3 rows of D, N + 1 neurons
            and what they say, N / 2 pairs and what both say.
    """
    rounded, read, unread = rows_of_x[0], rows_of_x[1], rows_of_x[2]
    for b in range(len(x)):
        phase, stream = b % len(cos), b % len(memory)
        remembered, due = memory[stream, h], owed[stream]
        if ids[b] >= 0:
            count = _look_up(starts[h, ids[b]], starts[h, ids[b] + 1], neurons, values, firing, active)
        elif len(scan):
            scale, lost, length = _round(x[b], rounded)
            _excite(rounded, scan[h], latent)
            count = _screen(latent, scale, lost, length, bounds[h], firing)
            count = _excite_some(x[b], rows[h], count, firing, active)
        else:
            _excite(x[b], encoder[h], latent)
            count = _select(latent, firing, active)
        pair_count = _turn(firing[:count], active, cos[phase], sin[phase], pairs, turned)
        if due[h] * decay[h] < _LEAST:
            _scale(remembered, due[h])
            due[h] = _ONE
        before = due[h]
        read[:] = _ZERO
        if decay[h] < _LEAST:  # so little is kept that it cannot be owed
            _recall(pairs[:pair_count], turned, remembered, x[b], read, _ZERO)
            _scale(remembered, decay[h])
            unread[:] = _ZERO
            _recall(pairs[:pair_count], turned, remembered, x[b], unread, _ONE)
        else:
            due[h] = before * decay[h]
            _recall(pairs[:pair_count], turned, remembered, x[b], read, _ONE / due[h])
        for d in range(len(read)):
            read[d] *= before
        _norm(read)
        parts[b, h] = _ZERO
        _gate(firing[:count], active, encoder_v[h], decoder[h], read, parts[b, h])


@compiled
def _add(x, parts, out):
    """Add what the heads give, (B, H, D), to x, (B, D), in place: x' = LN(x + LN(Σ parts)); `out` is written over."""
    for b in range(len(x)):
        out[:] = _ZERO
        for h in range(parts.shape[1]):
            for d in range(len(out)):
                out[d] += parts[b, h, d]
        _norm(out)
        for d in range(len(out)):
            x[b, d] += out[d]
        _norm(x[b])


@compiled
def product(x, matrix, out):
    """Out = x · matrix, (D,) by (D, V)."""
    _excite(x, matrix, out)


@compiled
def product_with_rows(x, rows, out):
    """Out = rows · x, (V, D) by (D,)."""
    for v in range(len(rows)):
        out[v] = _ZERO
        for d in range(len(x)):
            out[v] += rows[v, d] * x[d]


@compiled
def settle(memory, owed):
    """Give memories (L, B, H, N, D) the factors (L, B, H) that they are owed."""
    for layer in range(len(memory)):
        for b in range(memory.shape[1]):
            for h in range(memory.shape[2]):
                if owed[layer, b, h] != _ONE:
                    _scale(memory[layer, b, h], owed[layer, b, h])
                    owed[layer, b, h] = _ONE


@compiled
def _scale(rows, factor):
    for n in range(len(rows)):
        for d in range(rows.shape[1]):
            rows[n, d] *= factor


@compiled
def _round(x, rounded):
    """X in steps of its largest number, as whole numbers; the step, the norm of what is lost, and that of x."""
    largest = lost = length = _ZERO
    for d in range(len(x)):
        largest = max(largest, abs(x[d]))
    step = largest / _LEVELS
    for d in range(len(x)):
        levels = x[d] / step if step > _ZERO else _ZERO
        rounded[d] = np.rint(levels)
        lost += (levels - rounded[d]) ** 2
        length += levels**2
    return step, step * np.sqrt(lost), step * np.sqrt(length)


@compiled
def _excite(x, encoder, latent):
    """Latent = x · encoder, four rows at a time, so that sums are written and read a quarter as often."""
    width, neurons = encoder.shape
    latent[:] = _ZERO
    whole = width - width % 4
    for d in range(0, whole, 4):
        first, second, third, fourth = encoder[d], encoder[d + 1], encoder[d + 2], encoder[d + 3]
        a, b, c, e = x[d], x[d + 1], x[d + 2], x[d + 3]
        for n in range(neurons):
            latent[n] += (
                a * np.float32(first[n])
                + b * np.float32(second[n])
                + c * np.float32(third[n])
                + e * np.float32(fourth[n])
            )
    for d in range(whole, width):
        row = encoder[d]
        for n in range(neurons):
            latent[n] += x[d] * np.float32(row[n])


@compiled
def _screen(latent, scale, lost, length, bounds, firing):
    """Those that may be above zero, whatever rounding did to them; NaN may."""
    count = 0
    for n in range(len(latent)):
        firing[count] = n
        highest = scale * bounds[0, n] * latent[n] + lost * bounds[1, n] + length * bounds[2, n]
        count += not (highest <= _ZERO)
    return count


@compiled
def _excite_some(x, rows, candidates, firing, active):
    """The exact x · encoder of the first `candidates` of `firing`, and of these those that are above zero."""
    count = 0
    for k in range(candidates):
        if k + _AHEAD < candidates:
            _fetch(rows[firing[k + _AHEAD]])
        n = firing[k]
        row = rows[n]
        latent = _ZERO
        for d in range(len(x)):
            latent += x[d] * row[d]
        firing[count], active[count] = n, latent
        count += not (latent <= _ZERO)
    return count


@compiled
def _select(latent, firing, active):
    """Relu: those above zero. NaN fires, so that it shows."""
    count = 0
    for n in range(len(latent)):
        firing[count], active[count] = n, latent[n]
        count += not (latent[n] <= _ZERO)
    return count


@compiled
def _look_up(start, end, neurons, values, firing, active):
    for k in range(end - start):
        firing[k], active[k] = neurons[start + k], values[start + k]
    return end - start


@compiled
def _turn(firing, active, cos, sin, pairs, turned):
    """The pairs of which a neuron fires, and the rotated activity of both of its neurons."""
    count = k = 0
    while k < len(firing):
        i = firing[k] // 2
        first = second = _ZERO
        if firing[k] % 2 == 0:
            first = active[k]
            k += 1
        if k < len(firing) and firing[k] == 2 * i + 1:
            second = active[k]
            k += 1
        pairs[count] = i
        turned[count, 0] = first * cos[i] - second * sin[i]
        turned[count, 1] = second * cos[i] + first * sin[i]
        count += 1
    return count


@compiled
def _recall(pairs, turned, memory, x, read, weight):
    """Read = r · S, and S += weight · r ⊗ x, for r the rotated activity of the pairs; one pass over their rows."""
    for k in range(len(pairs)):
        if k + _AHEAD < len(pairs):
            _fetch(memory[2 * pairs[k + _AHEAD]])
            _fetch(memory[2 * pairs[k + _AHEAD] + 1])
        first, second = turned[k, 0], turned[k, 1]
        first_row, second_row = memory[2 * pairs[k]], memory[2 * pairs[k] + 1]
        first_weight, second_weight = first * weight, second * weight
        for d in range(len(x)):
            read[d] += first * first_row[d] + second * second_row[d]
            first_row[d] += first_weight * x[d]
            second_row[d] += second_weight * x[d]


@compiled
def _gate(firing, active, encoder_v, decoder, read, out):
    """Out += Σ over firing neurons of relu(read · encoder_v) · active · decoder; `firing` and `active` are used up."""
    count = 0
    for k in range(len(firing)):
        if k + _AHEAD < len(firing):
            _fetch(encoder_v[firing[k + _AHEAD]])
        row = encoder_v[firing[k]]
        gain = _ZERO
        for d in range(len(read)):
            gain += read[d] * row[d]
        firing[count], active[count] = firing[k], gain * active[k]
        count += not (gain <= _ZERO)
    for k in range(count):
        if k + _AHEAD < count:
            _fetch(decoder[firing[k + _AHEAD]])
        row = decoder[firing[k]]
        for d in range(len(out)):
            out[d] += active[k] * row[d]


@compiled
def _fetch(row):
    for d in range(0, len(row), _LINE):
        fetch(row, d)


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
