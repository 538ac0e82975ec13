"""One byte more for a few streams on a CPU: only the neurons that fire are read and written.

`step_kernels` has the loops. Where they cannot be used, the plain operations compute the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial
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
    """`bdh.models.layer.bdh_layer` once for each memory, for one byte of each stream, written into the memories.

    Args:
        x: (B, D), overwritten.
        memories: (B, H, N, D) each.
        position: (B,) or (1,), and `increments`, (N / 2,), as in `rope.cos_sin`.
        decay: λ, (H,), or None.
        ids: (B,), the bytes that x is of, where `table` has what they excite.

    Returns:
        (B, 1, D).
    """
    batch, heads, size, width = memories[0].shape
    debt = current() if batch == 1 else None  # several streams may be taken apart
    block = Block(memories) if debt is None else debt.block(memories)
    threads = min(torch.get_num_threads(), heads) if weights.encoder.size >= _WORTH_SHARING else 1
    shares = threads > 1 and _alone(id(debt) if debt else get_ident())
    rates = np.ones(heads, np.float32) if decay is None else decay.numpy()
    cos, sin = np.empty((2, len(position), size // 2), np.float32)
    loops.call("phases", position.numpy(), increments.numpy(), cos, sin)
    parts = np.empty((batch, heads, width), np.float32)
    fixed = (*weights.arrays, table.starts, table.neurons, table.values, parts)
    for memory, owed in block.parts():
        if ids is None or not len(table.starts):
            ids = np.full(batch, -1)
        if not shares:
            loops.call("stack", x, ids, cos, sin, memory, owed, rates, *fixed)
            ids = None
            continue
        for layer, factors in zip(memory, owed, strict=True):
            _share(partial(_heads, (x, ids, cos, sin, layer, factors, rates, *fixed)), heads, threads)
            loops.call("add", x, parts)
            ids = np.full(batch, -1)
    if debt is None and decay is not None:
        block.settle()
    return torch.from_numpy(x)[:, None]


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
    """All that a byte does to the stream that this thread hears (see `owing`), in one call; its logits, (V,).

    Args:
        head: (D, V), and the others as in `stack`; `position`, (1,), grows.

    Returns:
        None where that is not for one call: nobody to owe damping to, memories that do not lie in one block, or layers
        that threads may share.
    """
    debt = current()
    if debt is None or len(position) != 1 or weights.encoder.size >= _WORTH_SHARING:
        return None
    block = debt.block(memories)
    if len(block.arrays) != 1:
        return None
    _, heads, size, width = memories[0].shape
    logits = np.empty(head.shape[1], np.float32)
    rates = np.ones(heads, np.float32) if decay is None else decay.numpy()
    loops.call(
        "byte", id, position.numpy(), increments.numpy(), table.embedded, head.detach().numpy(),
        np.empty((1, width), np.float32), logits, *np.empty((2, 1, size // 2), np.float32), block.arrays[0], block.owed,
        rates, *weights.arrays, *table[1:], np.empty((1, heads, width), np.float32),
    )  # fmt: skip
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


def _heads(arguments: tuple[Any, ...], first: int, last: int) -> None:
    loops.call("heads", first, last, *arguments)


_last = (0, 0.0)
"""Who heard a byte last, and when somebody else had done so before."""


def _alone(who: int) -> bool:
    """Whether nobody else has heard a byte for some time: otherwise threads that share only crowd the cores."""
    global _last
    now = time.monotonic()
    if _last[0] != who:
        _last = (who, now)
    return now - _last[1] > _ALONE_S


@lru_cache(maxsize=1)
def _helpers(process: int) -> ThreadPoolExecutor:
    """Threads of this process; those of the one that it was forked from are not here."""
    return ThreadPoolExecutor(thread_name_prefix="heads")


def _share(work: Callable[[int, int], None], heads: int, count: int) -> None:
    """Do the heads from the first to the last of each of `count` ranges, together."""
    places = [index * heads // count for index in range(count + 1)]
    others = [_helpers(os.getpid()).submit(work, *places[index : index + 2]) for index in range(1, count)]
    try:
        work(*places[:2])
    finally:
        try:
            wait(others)
        except BaseException:
            wait(others)  # interrupted: still, nobody may go on writing behind the caller's back
            raise
    for other in others:
        other.result()


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
    fixed = (*weights.arrays, *NO_TABLE[1:], x[None])
    phases, owed = np.zeros((1, 2), np.float32), np.ones((1, 1), np.float32)
    _heads((x, np.full(1, -1), phases, phases, memory.numpy(), owed, decay.numpy(), *fixed), 0, 1)
    loops.call("add", x, x[None])
    with owing(Debt()):
        byte(
            0, weights, NO_TABLE._replace(embedded=x), torch.zeros(4, 4), [memory], position, position.repeat(2), decay
        )
    for rows in (False, True):
        product(torch.zeros(1, 1, 4), torch.zeros(4, 4), rows=rows)
