"""One byte more for a few streams on a CPU: only the neurons that fire are read and written.

`step_kernels` has the loops. Where they cannot be used, the plain operations compute the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import loops

_Array: TypeAlias = NDArray[np.float32]

_PROBED = 64
"""Numbers of a matrix that are compared to see whether it changed."""
_STREAMS = 8
"""Where more streams are stepped together, whole products are taken, which read the weights once for all of them."""


class Debt:
    """Damping that memories are still owed: a factor for each stream and head, instead of a pass over every number.

    Whoever holds it is the only one to step these memories, and settles it before anybody else looks at them.
    """

    def __init__(self) -> None:
        self._owed: dict[int, tuple[Tensor, _Array]] = {}

    def owed(self, memory: Tensor) -> _Array:
        """What a memory (B, H, N, D) times this, (B, H), is."""
        kept = self._owed.get(id(memory))
        if kept is None:
            kept = self._owed[id(memory)] = (memory, np.ones(memory.shape[:2], np.float32))
        return kept[1]

    def settle(self, memory: Tensor | None = None) -> None:
        """Let memories, or this one alone, be what they stand for."""
        for key in list(self._owed) if memory is None else [id(memory)]:
            if key in self._owed:
                held, owed = self._owed.pop(key)
                loops.call("settle", held.numpy(), owed)


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


def settle(memory: Tensor | None) -> None:
    """Let a memory be what it stands for, before plain operations take it."""
    if torch.compiler.is_compiling():
        return
    debt = _debt.get()
    if debt is not None and memory is not None:
        debt.settle(memory)


def usable(x: Tensor, memory: Tensor) -> bool:
    """Whether one byte for each of few streams is heard without gradients on a CPU, where `prepared` has weights."""
    if x.shape[1] != 1 or x.shape[0] > _STREAMS or torch.is_grad_enabled() or not loops.usable(x.device):
        return False
    return x.dtype == memory.dtype == torch.float32 and memory.is_contiguous()


class Weights(NamedTuple):
    """A layer's weights as the loops read them."""

    encoder: _Array
    """(H, D, N)."""
    encoder_v: _Array
    """(H, N, D), a row a neuron: a copy."""
    decoder: _Array
    """(H, N, D)."""
    mark: tuple[int, ...]
    """Addresses and versions of what they were made of; the views keep these addresses from being used again."""
    probe: tuple[_Array, _Array]
    """A few numbers of the original of `encoder_v`, as they are and as they were copied: some writers leave no mark."""


_prepared: dict[int, tuple[weakref.ref[Tensor], Weights]] = {}
"""By the identity of encoder_v."""


def prepared(encoder: Tensor, encoder_v: Tensor, decoder: Tensor) -> Weights | None:
    """The weights of a layer, made again only after they changed; None if they are not float32 parameters."""
    own = (encoder, encoder_v, decoder)
    if not all(isinstance(t, nn.Parameter) and t.dtype == torch.float32 and t.is_contiguous() for t in own):
        return None
    mark = tuple(t.data_ptr() for t in own) + tuple(0 if t.is_inference() else t._version for t in own)
    key = id(encoder_v)
    kept = _prepared.get(key)
    if kept is not None and kept[0]() is encoder_v and kept[1].mark == mark:
        now, then = kept[1].probe
        if np.array_equal(now, then):
            return kept[1]
    heads, width, neurons = encoder.shape
    rows = encoder_v.detach().mT.contiguous().numpy()
    some = encoder_v.detach().numpy().reshape(-1)[:: max(1, encoder_v.numel() // _PROBED)]
    weights = Weights(
        encoder.detach().numpy(),
        rows,
        decoder.detach().view(heads, neurons, width).numpy(),
        mark,
        (some, some.copy()),
    )
    _prepared[key] = (weakref.ref(encoder_v, lambda _: _prepared.pop(key, None)), weights)
    return weights


def layer(x: Tensor, weights: Weights, phases: tuple[Tensor, Tensor], memory: Tensor, decay: Tensor | None) -> Tensor:
    """`bdh.models.layer.bdh_layer` for one byte of each stream, written into `memory`.

    Args:
        x: (B, 1, D).
        phases: cosine and sine, (B or 1, 1, N / 2).
        memory: (B, H, N, D).
        decay: λ, (H,), or None.

    Returns:
        (B, 1, D).
    """
    batch, heads, neurons, _ = memory.shape
    debt = _debt.get() if decay is not None and batch == 1 else None  # several streams may be taken apart
    owed = np.ones((batch, heads), np.float32) if debt is None else debt.owed(memory)
    rates = np.ones(heads, np.float32) if decay is None else decay.numpy()
    heard, written = x[:, 0].numpy().copy(), memory.numpy()
    cos, sin = (phase.numpy().reshape(-1, neurons // 2) for phase in phases)
    loops.call("layer", heard, weights.encoder, weights.encoder_v, weights.decoder, cos, sin, written, owed, rates)
    if debt is None and decay is not None:
        loops.call("settle", written, owed)
    return torch.from_numpy(heard)[:, None]


def warm_up() -> None:
    """Compile the loops, or fetch them where they were kept: seconds that the first byte need not wait for."""
    if not loops.available():
        return
    x, memory, decay = torch.zeros(1, 1, 4), torch.zeros(1, 1, 4, 4), torch.ones(1)
    weights = prepared(*(nn.Parameter(torch.zeros(shape)) for shape in ((1, 4, 4), (1, 4, 4), (4, 4))))
    assert weights is not None
    layer(x, weights, (torch.ones(1, 1, 2), torch.zeros(1, 1, 2)), memory, decay)
