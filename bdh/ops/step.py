"""One byte more for a few streams on a CPU: only the neurons that fire are read and written.

`step_kernels` has the loops. Where they cannot be used, the plain operations compute the same.
"""

from __future__ import annotations

import operator
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from threading import RLock, get_ident
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import loops

_Array: TypeAlias = NDArray[np.float32]

_PROBED = 128
"""Numbers of a matrix that are compared to see whether it changed."""
_STREAMS = 8
"""Where more streams are stepped together, whole products are taken, which read the weights once for all of them."""
_SCREENED_WIDTH = 1024
"""Widest x that is screened: sums of products of whole numbers up to 127 are exact in float32 up to here."""
_SLACK = 1e-5
"""Of the norms' product: more than float32 loses in the sums that a bound is compared with."""
_TABLE_ACTIVE = 0.25
"""Where bytes excite more than this part of the neurons, a table of them is larger than what it saves."""
_WORTH_SHARING = 4_000_000
"""Products of a layer from which on threads that share its heads win more than their meeting costs."""
_ALONE_S = 0.1
"""After so long without another stream's byte, a stream has the cores for itself."""


class Block:
    """The memories of a stack of layers as the loops take them, and the damping that they are owed."""

    def __init__(self, memories: Sequence[Tensor]) -> None:
        first = memories[0]
        self.memories = tuple(memories)
        """Held, so that nobody else gets their addresses."""
        size, storage = first.nbytes, first.untyped_storage().data_ptr()
        joined = all(
            memory.untyped_storage().data_ptr() == storage and memory.data_ptr() == first.data_ptr() + index * size
            for index, memory in enumerate(memories)
        )
        whole = first.as_strided((len(memories), *first.shape), (first.numel(), *first.stride())) if joined else None
        self.arrays = [memory[None].numpy() for memory in memories] if whole is None else [whole.numpy()]
        """(L, B, H, N, D) together: one array where they lie behind each other."""
        self.owed = np.ones((len(memories), *first.shape[:2]), np.float32)
        """(L, B, H): the memories times this are what is remembered."""

    def parts(self) -> Iterator[tuple[_Array, _Array]]:
        """The arrays, each with what it is owed."""
        at = 0
        for array in self.arrays:
            yield array, self.owed[at : at + len(array)]
            at += len(array)

    def settle(self) -> None:
        """Let the memories be what they stand for."""
        for array, owed in self.parts():
            loops.call("settle", array, owed)


class Debt:
    """Damping that memories are still owed: a factor for each stream and head, instead of a pass over every number.

    Whoever holds it is the only one to step these memories, and settles it before anybody else looks at them.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}

    def block(self, memories: Sequence[Tensor]) -> Block:
        """The memories of a stack (B, H, N, D), with what they are owed."""
        kept = self._blocks.get(id(memories[0]))
        same = kept is not None and len(kept.memories) == len(memories)
        if kept is None or not (same and all(map(operator.is_, kept.memories, memories))):
            for memory in memories:
                self.settle(memory)
            kept = Block(memories)
            self._blocks |= dict.fromkeys(map(id, memories), kept)
        return kept

    def settle(self, memory: Tensor | None = None) -> None:
        """Let memories be what they stand for: all, or those that are stepped together with this one."""
        for block in list(self._blocks.values()) if memory is None else [self._blocks.get(id(memory))]:
            if block is not None:
                block.settle()
                for one in block.memories:
                    self._blocks.pop(id(one), None)


_debt: ContextVar[Debt | None] = ContextVar("debt", default=None)


@contextmanager
def owing(debt: Debt | None) -> Iterator[None]:
    """Let single bytes that this thread hears inside the block leave damping in `debt`, and others settle it.

    It is for one stream; where several are heard, or with None, nothing is owed.
    """
    token = _debt.set(debt)
    try:
        yield
    finally:
        _debt.reset(token)


@contextmanager
def owing_here() -> Iterator[None]:
    """Let what one stream hears inside the block be owed until its end, if nobody holds it longer."""
    if _debt.get() is not None:
        yield
        return
    debt = Debt()
    try:
        with owing(debt):
            yield
    finally:
        debt.settle()


def settle(memory: Tensor | None) -> None:
    """Let a memory be what it stands for, before plain operations take it."""
    if torch.compiler.is_compiling():
        return
    debt = _debt.get()
    if debt is not None and memory is not None:
        debt.settle(memory)


def usable(x: Tensor, memory: Tensor) -> bool:
    """Whether few streams, (B, …), are heard on a CPU without gradients and in full precision."""
    if x.shape[0] > _STREAMS or torch.is_grad_enabled() or not loops.usable(x.device):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return memory.dtype == torch.float32 and memory.is_contiguous()


class Screen(NamedTuple):
    """An encoder in whole numbers, from which most of the neurons that do not fire are known.

    With e = s q + r for each neuron and x = t p + ρ, where q and p are whole, x · e is at most
    s t (p · q) + |ρ| |s q| + |x| |r|. What is not below zero by this is computed exactly.
    """

    rows: _Array
    """The encoder, (H, N, D), a row a neuron."""
    scan: NDArray[np.int8]
    """q, (H, D, N)."""
    bounds: _Array
    """s, |s q| and |r| with some slack, (H, 3, N)."""


class Table(NamedTuple):
    """What a byte excites where x depends on it alone."""

    embedded: _Array
    """x of each byte, (V, D)."""
    starts: NDArray[np.int64]
    """Where the neurons of each head and byte begin in the following, (H, V + 1)."""
    neurons: NDArray[np.int32]
    values: _Array


_NO_SCREEN = Screen(np.zeros((0, 1, 1), np.float32), np.zeros((0, 1, 1), np.int8), np.zeros((0, 3, 1), np.float32))
_NO_TABLE = Table(
    np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
)


class Weights:
    """A layer's weights as the loops read them: about as much again as the weights themselves."""

    def __init__(
        self, mark: tuple[int, ...], encoder: Tensor, encoder_v: Tensor, decoder: Tensor, *rest: Tensor
    ) -> None:
        """Copy what is read in another order; `mark` says what was copied, `rest` what the table is made of."""
        heads, width, neurons = encoder.shape
        self.mark = mark
        self.encoder: _Array = encoder.detach().numpy()
        screen = _screen(encoder.detach()) if width <= _SCREENED_WIDTH else _NO_SCREEN
        rows = encoder_v.detach().mT.contiguous().numpy()
        self.arrays = (self.encoder, *screen, rows, decoder.detach().view(heads, neurons, width).numpy())
        """The encoder (H, D, N), its screen, and encoder_v and decoder (H, N, D), a row a neuron."""
        self._table: Table | None = None
        # A few numbers of the originals, as they are and as they were: some writers leave no mark. They are compared
        # as whole numbers, so that NaN is itself, and lie an odd number apart, so that they are of many neurons.
        self._probes = [
            (some, some.copy())
            for one in (encoder, encoder_v, *rest)
            for whole in [one.detach().view(torch.int32).numpy().reshape(-1)]
            for some in [whole[:: whole.size // _PROBED | 1]]
        ]

    def stands(self, mark: tuple[int, ...]) -> bool:
        """Whether what was copied is what there is."""
        return self.mark == mark and all((now == then).all() for now, then in self._probes)

    def table(self, embedded: Callable[[], Tensor]) -> Table:
        """What bytes excite, x of which `embedded` gives, (V, D)."""
        if self._table is None:
            with _building:
                if self._table is None:
                    self._table = _table(embedded(), torch.from_numpy(self.encoder))
        return self._table


def _screen(encoder: Tensor) -> Screen:
    heads, _, neurons = encoder.shape
    scan, bounds = torch.empty(encoder.shape, dtype=torch.int8), torch.empty(heads, 3, neurons)
    for one, whole, bound in zip(encoder, scan, bounds, strict=True):  # by head, for less memory at once
        scale = one.abs().amax(0) / 127
        levels = (one / scale).nan_to_num().round().clamp(-127, 127)
        near = levels * scale
        lengths = [torch.linalg.vector_norm(t, dim=0, dtype=torch.float64) for t in (near, one - near, one)]
        whole.copy_(levels)
        bound.copy_(torch.stack((scale.double(), lengths[0], lengths[1] + _SLACK * lengths[2])))
    return Screen(encoder.mT.contiguous().numpy(), scan.numpy(), bounds.numpy())


def _table(embedded: Tensor, encoder: Tensor) -> Table:
    values, neurons, ends = [], [], []
    for head in encoder:
        latent = embedded @ head
        fires = ~(latent <= 0)
        values.append(latent[fires])
        neurons.append(fires.nonzero()[:, 1].to(torch.int32))
        ends.append(fires.sum(1))
    if sum(map(len, values)) > _TABLE_ACTIVE * len(embedded) * encoder.shape[0] * encoder.shape[2]:
        return _NO_TABLE._replace(embedded=embedded.numpy())
    count = torch.cat((torch.zeros(1, dtype=torch.int64), torch.cat(ends).cumsum(0)))
    starts = torch.stack([count[at : at + len(embedded) + 1] for at in range(0, len(count) - 1, len(embedded))])
    return Table(embedded.numpy(), starts.numpy(), torch.cat(neurons).numpy(), torch.cat(values).numpy())


_building = RLock()
"""Held while weights are copied: who comes second finds them."""
_prepared: dict[int, tuple[weakref.ref[Tensor], Weights]] = {}
"""By the identity of encoder_v."""


def prepared(encoder: Tensor, encoder_v: Tensor, decoder: Tensor, *rest: Tensor, build: bool = True) -> Weights | None:
    """The weights of a layer, made again only after they changed; None if they are not float32 parameters.

    Args:
        rest: what `Weights.table` is made of beside them.
        build: False gives None too where they would have to be made.
    """
    own = (encoder, encoder_v, decoder, *rest)
    if not all(isinstance(t, nn.Parameter) and t.dtype == torch.float32 and t.is_contiguous() for t in own):
        return None
    mark = tuple(t.data_ptr() for t in own) + tuple(0 if t.is_inference() else t._version for t in own)
    key = id(encoder_v)

    def known() -> Weights | None:
        kept = _prepared.get(key)
        return kept[1] if kept is not None and kept[0]() is encoder_v and kept[1].stands(mark) else None

    found = known()
    if found is None and build:
        with _building:
            found = known()
            if found is None:
                found = Weights(mark, *own)
                _prepared[key] = (weakref.ref(encoder_v, lambda _: _prepared.pop(key, None)), found)
    return found


def stack(
    x: _Array,
    weights: Weights,
    memories: Sequence[Tensor],
    position: Tensor,
    increments: Tensor,
    decay: Tensor | None,
    *,
    ids: NDArray[np.int64] | None = None,
    table: Table = _NO_TABLE,
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
    debt = _debt.get() if batch == 1 else None  # several streams may be taken apart
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


def warm_up() -> None:
    """Compile the loops, or fetch them where they were kept: seconds that the first byte need not wait for."""
    if not loops.available():
        return
    memory, decay, position = torch.zeros(1, 1, 4, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64)
    weights = prepared(*(nn.Parameter(torch.zeros(shape)) for shape in ((1, 4, 4), (1, 4, 4), (4, 4))))
    assert weights is not None
    x = np.zeros((1, 4), np.float32)
    stack(x, weights, [memory], position, position.repeat(2), decay)
    fixed = (*weights.arrays, *_NO_TABLE[1:], x[None])
    phases, owed = np.zeros((1, 2), np.float32), np.ones((1, 1), np.float32)
    _heads((x, np.full(1, -1), phases, phases, memory.numpy(), owed, decay.numpy(), *fixed), 0, 1)
    loops.call("add", x, x[None])
