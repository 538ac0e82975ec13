"""One byte of each of several streams on a CUDA GPU, in kernels that touch only what fires; compiled by Triton.

Each stream has a row of the table, (B, 3 + L) int64: its byte and the addresses of its position, of what its memories
are owed and of the memory of each layer. A row of zeros is nobody's, and nothing is written for it.

Sums are float32 and taken in an order that the source alone decides: parts are written side by side and added by the
next kernel, and a program that serves several streams serves them in turn. So neither the company that a stream has
nor the run changes a bit.

Where a tile has fewer numbers than a program has threads, several warps read the same and one of them writes. So what
a program reads and writes over has a barrier in between: no warp may come late and read what was just written.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

_POSITION, _OWED, _MEMORY = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""Columns of the table; the byte is in the first."""
_LEAST = tl.constexpr(2.0**-40)
"""Where a factor that a memory is owed gets smaller, it is paid, as on a CPU."""
_TURN, _RADIANS = tl.constexpr(2.0**-64), tl.constexpr(6.283185307179586)
_EPSILON = tl.constexpr(1e-5)
_HEADS = tl.constexpr(32)
"""What heads are owed is taken so many at once, so that the same code serves any number of them."""

_plain = triton.jit(do_not_specialize=["batch", "columns", "layer", "heads", "tiles", "parts_count"])
"""Compile once for all numbers of streams, layers and heads: code made for one of them could round otherwise."""


@triton.jit
def _norm(x, inside, D: tl.constexpr):
    """Layer normalisation of x, which is zero outside, without learned scale or shift."""
    x = tl.where(inside, x - tl.sum(x, 0) / D, 0.0)
    return x / tl.sqrt_rn(tl.sum(x * x, 0) / D + _EPSILON)


@triton.jit
def _added(rows, count, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr):
    """Sum of the first `count` of rows (…, D)."""
    d, t = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for first in range(0, count, BLOCK_T):
        mask = (first + t < count)[:, None] & (d < D)[None, :]
        total += tl.load(rows + (first + t)[:, None] * D + d[None, :], mask=mask, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _starts(counts, tile, tiles, TILES: tl.constexpr):
    """How many pairs of neurons are listed by each of the tiles that a program takes, and before it."""
    own = tile * TILES + tl.arange(0, TILES)
    count = tl.load(counts + own, mask=own < tiles, other=0)
    return count, tl.cumsum(count, 0) - count


@triton.jit
def _listed(pairs, at, count, starts, total, tile, TILES: tl.constexpr, BLOCK_P: tl.constexpr):
    """Of the pairs that a program's tiles list, those at the places `at`."""
    inner = tl.sum((at[:, None] >= (starts + count)[None, :]).to(tl.int32), 1)
    before = tl.sum(tl.where(tl.arange(0, TILES)[None, :] == inner[:, None], starts[None, :], 0), 1)
    return tl.load(pairs + (tile * TILES + inner) * BLOCK_P + at - before, mask=at < total, other=0)


@triton.jit
def refresh(encoder_v, rows, N, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):
    """Let rows (H, N, D) be encoder_v (H, D, N), a tile at a time, where a number of each neuron differs.

    An optimizer may change weights and leave no mark that the host could see.
    """
    tile, h = tl.program_id(0), tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    own = h.to(tl.int64) * N * D
    probe = tile % D
    theirs = tl.load(encoder_v + own + probe.to(tl.int64) * N + n, mask=n < N, other=0.0).to(tl.int32, bitcast=True)
    ours = tl.load(rows + own + n.to(tl.int64) * D + probe, mask=n < N, other=0.0).to(tl.int32, bitcast=True)
    differ = tl.sum((theirs != ours).to(tl.int32), 0)
    tl.debug_barrier()
    if differ > 0:
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            mask = (n < N)[:, None] & (d < D)[None, :]
            some = tl.load(encoder_v + own + d[None, :].to(tl.int64) * N + n[:, None], mask=mask, other=0.0)
            tl.store(rows + own + n[:, None].to(tl.int64) * D + d[None, :], some, mask=mask)


@_plain
def embed(table, embedding, x, columns, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """X = LN(the embedding of each stream's byte), (B, D)."""
    b, d = tl.program_id(0), tl.arange(0, BLOCK_D)
    byte = tl.load(table + b * columns)
    value = tl.load(embedding + byte * D + d, mask=d < D, other=0.0)
    tl.store(x + b * D + d, _norm(value, d < D, D), mask=d < D)


@_plain
def fire(
    table, x, encoder, increments, active, turned, pairs, counts, batch, columns, heads, tiles, N,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Relu(x · encoder), its rotation, and the list of the pairs of neurons of which one fires.

    A program holds a tile of the encoder and takes the streams in turn. NaN fires, so that it shows.

    Args:
        increments: as in `rope.cos_sin`.
        active, turned: (B, H, N), written.
        pairs: (B, H, tiles, BLOCK_N / 2), of which the first `counts`, (B, H, tiles), are written.
    """
    BLOCK_P: tl.constexpr = BLOCK_N // 2
    tile, h = tl.program_id(0), tl.program_id(1)
    n, d = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    pair = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (d < D)[:, None] & (n < N)[None, :]
    held = tl.load(encoder + h.to(tl.int64) * D * N + d[:, None].to(tl.int64) * N + n[None, :], mask=inside, other=0.0)
    increment = tl.load(increments + pair, mask=pair < N // 2, other=0)
    for b in range(tl.program_id(2), batch, tl.num_programs(2)):
        address = tl.load(table + b * columns + _POSITION)
        if address != 0:
            said = tl.load(x + b * D + d, mask=d < D, other=0.0)
            latent = tl.sum(held * said[:, None], 0)
            latent = tl.where((n < N) & ~(latent <= 0), latent, 0.0)
            first, second = tl.split(tl.reshape(latent, (BLOCK_P, 2)))
            position = tl.load(address.to(tl.pointer_type(tl.int64)))
            radians = (position * increment).to(tl.float32) * _TURN * _RADIANS  # whole turns are lost by overflow
            cos, sin = tl.cos(radians), tl.sin(radians)
            place = h.to(tl.int64) + b * heads
            tl.store(active + place * N + n, latent, mask=n < N)
            into = turned + place * N + 2 * pair
            tl.store(into, first * cos - second * sin, mask=pair < N // 2)
            tl.store(into + 1, second * cos + first * sin, mask=pair < N // 2)
            fires = (first != 0) | (second != 0)
            place = place * tiles + tile
            order = tl.cumsum(fires.to(tl.int32), 0) - 1
            tl.store(pairs + place * BLOCK_P + order, pair, mask=fires)
            tl.store(counts + place, tl.sum(fires.to(tl.int32), 0))


@_plain
def recall(
    table, x, decay, turned, pairs, counts, reads, layer, columns, heads, tiles, N,
    DAMPED: tl.constexpr, ALIGNED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    TILES: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Read r · S and write S += r ⊗ x, for r the rotated activity; one pass over the rows of the pairs that fire.

    Damping is owed as a factor. Where that gets small, the program passes over all of its rows once.

    Args:
        reads: (B, H, programs, D), written: what each program read of S as it is stored.
    """
    tile, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = table + b * columns
    address = tl.load(row + _MEMORY + layer)
    if address != 0:
        memory = address.to(tl.pointer_type(tl.float32))
        if ALIGNED:
            memory = tl.multiple_of(memory, 16)
        memory += h.to(tl.int64) * N * D
        k, d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
        said = tl.load(x + b * D + d, mask=d < D, other=0.0)
        place = b.to(tl.int64) * heads + h
        rotated = turned + place * N
        count, starts = _starts(counts + place * tiles, tile, tiles, TILES)
        total = tl.sum(count, 0)
        keep, weight, pays = 1.0, 1.0, False
        if DAMPED:
            owed = tl.load(tl.load(row + _OWED).to(tl.pointer_type(tl.float32)) + layer * heads + h)
            factor = owed * tl.load(decay + h)
            pays = factor < _LEAST
            keep = tl.where(pays, factor, 1.0)
            weight = 1.0 / tl.where(pays, 1.0, factor)
        listed = total
        if pays:
            total = tl.minimum(TILES * BLOCK_P, N // 2 - tile * TILES * BLOCK_P)
            listed = 0
        read = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        for first in range(0, total, BLOCK_K):
            at = first + k
            pair = _listed(pairs + place * tiles * BLOCK_P, at, count, starts, listed, tile, TILES, BLOCK_P)
            if DAMPED:
                pair = tl.where(pays, tile * TILES * BLOCK_P + at, pair)
            one = tl.load(rotated + 2 * pair, mask=at < total, other=0.0)[:, None]
            other = tl.load(rotated + 2 * pair + 1, mask=at < total, other=0.0)[:, None]
            rows = memory + pair[:, None].to(tl.int64) * (2 * D) + d[None, :]
            mask = (at < total)[:, None] & (d < D)[None, :]
            one_row = tl.load(rows, mask=mask, other=0.0)
            other_row = tl.load(rows + D, mask=mask, other=0.0)
            tl.debug_barrier()
            read += one * one_row + other * other_row
            tl.store(rows, one_row * keep + one * weight * said[None, :], mask=mask)
            tl.store(rows + D, other_row * keep + other * weight * said[None, :], mask=mask)
        into = reads + (place * tl.num_programs(0) + tile) * D + d
        tl.store(into, tl.sum(read, 0), mask=d < D)


@_plain
def gate(
    table, reads, encoder_v, decoder, active, pairs, counts, parts, layer, columns, heads, tiles, N,
    DAMPED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, TILES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Σ over firing neurons of relu(LN(read) · encoder_v) · active · decoder, a part from each program.

    Args:
        encoder_v, decoder: (H, N, D), a row a neuron; only those of firing neurons are read.
        parts: (B, H, programs, D), written.
    """
    tile, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = table + b * columns
    if tl.load(row + _POSITION) != 0:
        k, d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
        place = b.to(tl.int64) * heads + h
        read = _added(reads + place * tl.num_programs(0) * D, tl.num_programs(0), D, BLOCK_D, BLOCK_T)
        if DAMPED:
            read *= tl.load(tl.load(row + _OWED).to(tl.pointer_type(tl.float32)) + layer * heads + h)
        read = _norm(read, d < D, D)[None, :]
        count, starts = _starts(counts + place * tiles, tile, tiles, TILES)
        total = tl.sum(count, 0)
        out = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        for first in range(0, total, BLOCK_K):
            at = first + k
            pair = _listed(pairs + place * tiles * BLOCK_P, at, count, starts, total, tile, TILES, BLOCK_P)
            for side in tl.static_range(2):
                x = tl.load(active + place * N + 2 * pair + side, mask=at < total, other=0.0)
                rows = (h.to(tl.int64) * N + 2 * pair + side)[:, None] * D + d[None, :]
                values = tl.load(encoder_v + rows, mask=(x != 0)[:, None] & (d < D)[None, :], other=0.0)
                gain = tl.sum(values * read, 1)
                gain = tl.where(x != 0, tl.where(gain <= 0, 0.0, gain) * x, 0.0)
                values = tl.load(decoder + rows, mask=(gain != 0)[:, None] & (d < D)[None, :], other=0.0)
                out += gain[:, None] * values
        into = parts + (place * tl.num_programs(0) + tile) * D + d
        tl.store(into, tl.sum(out, 0), mask=d < D)


@_plain
def add(
    table, x, parts, decay, layer, columns, heads, parts_count,
    DAMPED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """X' = LN(x + LN(Σ parts)), in place, and what the layer's memory is owed from now on."""
    b, d = tl.program_id(0), tl.arange(0, BLOCK_D)
    row = table + b * columns
    if tl.load(row + _POSITION) != 0:
        out = _added(parts + b.to(tl.int64) * parts_count * D, parts_count, D, BLOCK_D, BLOCK_T)
        before = tl.load(x + b * D + d, mask=d < D, other=0.0)
        tl.debug_barrier()
        tl.store(x + b * D + d, _norm(before + _norm(out, d < D, D), d < D, D), mask=d < D)
        if DAMPED:
            owed = tl.load(row + _OWED).to(tl.pointer_type(tl.float32)) + layer * heads
            for first in range(0, heads, _HEADS):
                h = first + tl.arange(0, _HEADS)
                factor = tl.load(owed + h, mask=h < heads, other=1.0) * tl.load(decay + h, mask=h < heads, other=1.0)
                tl.debug_barrier()
                tl.store(owed + h, tl.where(factor < _LEAST, 1.0, factor), mask=h < heads)


@_plain
def read_out(
    table, x, head, logits, batch, columns, V, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """Logits = x · head, (B, V), a tile of the head held while the streams are taken in turn; positions grow."""
    v, d = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D)
    held = tl.load(head + d[:, None] * V + v[None, :], mask=(d < D)[:, None] & (v < V)[None, :], other=0.0)
    for b in range(tl.program_id(1), batch, tl.num_programs(1)):
        address = tl.load(table + b * columns + _POSITION)
        if address != 0:
            said = tl.load(x + b * D + d, mask=d < D, other=0.0)
            tl.store(logits + b * V + v, tl.sum(held * said[:, None], 0), mask=v < V)
            if tl.program_id(0) == 0:
                position = address.to(tl.pointer_type(tl.int64))
                tl.store(position, tl.load(position) + 1)


interpreted = not isinstance(embed, triton.JITFunction)
"""Whether Triton runs kernels on the CPU, which cannot follow a GPU's addresses."""
