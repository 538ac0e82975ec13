"""Bytes one after another for a few streams on a CPU: only the neurons that fire are read and written.

`step_kernels` has the loops. Where they cannot be used, the plain operations compute the same.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from threading import get_ident
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import loops
from .debt import Block, Debt, current, owing
from .prepared import NO_TABLE, Table, Weights, prepared

_STREAMS = 8
"""Where more streams are stepped together, whole products are taken, which read the weights once for all of them."""
_WORTH_SHARING = 4_000_000
"""Products of a layer from which on threads that share its heads win more than their meeting costs."""
_NAP_S, _LONGEST_NAP_S = 5e-5, 1e-3
"""Between looks at threads that take long over a head: there is much of it, or somebody else has their core."""
_ALONE_S = 0.1
"""After so long without another stream's byte, a stream has the cores for itself."""


def usable(x: Tensor, memory: Tensor) -> bool:
    """Whether few streams, (B, …), are heard on a CPU without gradients and in full precision."""
    if x.shape[0] > _STREAMS or torch.is_grad_enabled() or not loops.usable(x.device):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return memory.dtype == torch.float32 and memory.is_contiguous()


def stack(
    x: NDArray[np.float32],
    weights: Weights,
    memories: Sequence[Tensor],
    position: Tensor,
    increments: Tensor,
    decay: Tensor | None,
    *,
    ids: NDArray[np.int64] | None = None,
    table: Table = NO_TABLE,
) -> Tensor:
    """`bdh.models.layer.bdh_layer` once for each memory, written into the memories.

    Args:
        x: (B, D), overwritten: a byte of each of B streams, or B bytes of one.
        memories: (B or 1, H, N, D) each.
        position: (B,) or (1,), of the first bytes, and `increments`, (N / 2,), as in `rope.cos_sin`.
        decay: λ, (H,), or None.
        ids: (B,), the bytes that x is of, where `table` has what they excite.

    Returns:
        (B, D).
    """
    streams, heads, size, _ = memories[0].shape
    debt = current() if streams == 1 else None  # several streams may be taken apart
    block = Block(memories) if debt is None else debt.block(memories)
    helpers = _helpers_for(weights, debt, len(x))
    rates = np.ones(heads, np.float32) if decay is None else decay.numpy()
    places = position.numpy() if streams > 1 else position.numpy() + np.arange(len(x))
    cos, sin = np.empty((2, len(places), size // 2), np.float32)
    loops.call("phases", places, increments.numpy(), cos, sin)
    fixed = (*weights.arrays, *table[1:], np.empty((len(x), heads, x.shape[1]), np.float32))
    if ids is None or not len(table.starts):
        ids = np.full(len(x), -1)
    for memory, owed in block.parts():
        _hear(helpers, len(memory), x, ids, cos, sin, memory, owed, rates, *fixed)
        ids = np.full(len(x), -1)
    if debt is None and decay is not None:
        block.settle()
    return torch.from_numpy(x)


def byte(
    id: int,
    weights: Weights,
    table: Table,
    head: Tensor,
    memories: Sequence[Tensor],
    position: Tensor,
    increments: Tensor,
    decay: Tensor | None,
) -> Tensor | None:
    """All that a byte does to the stream that this thread hears (see `owing`); its logits, (V,).

    Args:
        head: (D, V), and the others as in `stack`; `position`, (1,), grows.

    Returns:
        None where there is nobody to owe damping to, or the memories do not lie in one block.
    """
    debt = current()
    if debt is None or len(position) != 1:
        return None
    block = debt.block(memories)
    if len(block.arrays) != 1:
        return None
    _, heads, size, width = memories[0].shape
    x, logits = np.empty((1, width), np.float32), np.empty(head.shape[1], np.float32)
    turns, phases, out = (position.numpy(), increments.numpy()), np.empty((2, 1, size // 2), np.float32), head.detach()
    rates = np.ones(heads, np.float32) if decay is None else decay.numpy()
    memory = (block.arrays[0], block.owed, rates)
    rest = (*weights.arrays, *table[1:], np.empty((1, heads, width), np.float32))
    helpers = _helpers_for(weights, debt, 1)
    if helpers:
        loops.call("phases", *turns, *phases)
        turns[0][0] += 1
        x[0] = table.embedded[id]
        ids = np.full(1, id if len(table.starts) else -1)
        _hear(helpers, len(memories), x, ids, *phases, *memory, *rest)
        loops.call("product", x[0], out.numpy(), logits)
    else:
        loops.call("byte", id, *turns, table.embedded, out.numpy(), x, logits, *phases, *memory, *rest)
    return torch.from_numpy(logits)


def product(x: Tensor, matrix: Tensor, *, rows: bool = False) -> Tensor | None:
    """One x (…, D) times a matrix (D, V), or (V, D) if it has rows; None where that is not for the loops.

    Libraries call their threads even for so little, and these take longer to come than the product.
    """
    if x.shape[:-1].numel() != 1 or x.dtype != torch.float32 or not usable(x, matrix):
        return None
    out = np.empty(matrix.shape[0 if rows else 1], np.float32)
    loops.call("product_with_rows" if rows else "product", x.numpy().reshape(-1), matrix.detach().numpy(), out)
    return torch.from_numpy(out).view(*x.shape[:-1], -1)


def _helpers_for(weights: Weights, debt: Debt | None, count: int) -> int:
    """Threads beside this one that share the layers of the stream whose debt this is, for so many bytes."""
    alone = _alone(get_ident() if debt is None else id(debt))
    worth = weights.encoder.size * count >= _WORTH_SHARING
    return min(torch.get_num_threads(), len(weights.encoder)) - 1 if alone and worth else 0


_last = (0, -math.inf, -math.inf)
"""Who heard a byte last, when, and when somebody else had done so before."""


def _alone(who: int) -> bool:
    """Whether nobody else has heard a byte for some time: otherwise threads that share only crowd the cores."""
    global _last
    now = time.monotonic()
    last, at, other = _last
    _last = (who, now, other if last == who else at)
    return now - _last[2] > _ALONE_S


@lru_cache(maxsize=1)
def _helpers(process: int) -> ThreadPoolExecutor:
    """Threads of this process; those of the one that it was forked from are not here."""
    return ThreadPoolExecutor(thread_name_prefix="heads")


def _hear(helpers: int, layers: int, *arguments: Any) -> None:
    """Let x, the first of the arguments of `step_kernels.stack`, go through all layers, with so many helpers.

    Who comes late finds heads taken, and the last layer done: there is nothing to wait for.
    """
    arguments = (np.zeros(1 + 2 * layers, np.int64), *arguments)
    others: list[Future[None]] = []
    try:
        for _ in range(helpers):
            others.append(_helpers(os.getpid()).submit(_work, arguments))
    except RuntimeError:
        pass  # no thread can be started any more: this one does it all
    try:
        _work(arguments)
    except BaseException:  # interrupted, or out of memory: still, nobody may go on writing behind the caller's back
        for other in others:
            other.cancel()
        try:
            wait(others)
        except BaseException:
            wait(others)
            raise
        raise


def _work(arguments: tuple[Any, ...]) -> None:
    """Take part until the last layer is done."""
    nap = _NAP_S
    while not loops.call("stack", *arguments):
        time.sleep(nap)
        nap = min(2 * nap, _LONGEST_NAP_S)


@torch.no_grad()
def warm_up() -> None:
    """Compile the loops, or fetch them where they were kept: seconds that the first byte need not wait for."""
    if not loops.available():
        return
    memory, decay, position = torch.zeros(1, 1, 4, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64)
    weights = prepared(*(nn.Parameter(torch.zeros(shape)) for shape in ((1, 4, 4), (1, 4, 4), (4, 4))))
    assert weights is not None
    x = np.zeros((1, 4), np.float32)
    stack(x, weights, [memory], position, position.repeat(2), decay)
    with owing(Debt()):
        byte(
            0, weights, NO_TABLE._replace(embedded=x), torch.zeros(4, 4), [memory], position, position.repeat(2), decay
        )
    for rows in (False, True):
        product(torch.zeros(1, 1, 4), torch.zeros(4, 4), rows=rows)
