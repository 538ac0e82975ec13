"""The memories of streams that loops or kernels step, and the damping that these are still owed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import loops

_Array: TypeAlias = NDArray[np.float32]


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


class Addressed:
    """The memories of one stream as kernels take them, which write what is owed on their own device."""

    def __init__(self, memories: Sequence[Tensor], damped: bool) -> None:
        first = memories[0]
        self.memories = tuple(memories)
        alike = all(
            memory.shape == first.shape
            and memory.device == first.device
            and memory.dtype == torch.float32
            and memory.is_contiguous()
            for memory in memories
        )
        self.form = (tuple(first.shape), first.device) if alike else None
        """Shape and device; None if they are not all contiguous float32 of one shape on one device."""
        self.owed = torch.ones(len(memories), first.shape[1], device=first.device) if damped else None
        """(L, H): the memories times this are what is remembered."""
        self.addresses = tuple(0 if t is None else t.data_ptr() for t in (self.owed, *memories))

    @torch.inference_mode()  # where any memory may be written, one made in that mode too
    def settle(self) -> None:
        """Let the memories be what they stand for."""
        if self.owed is not None:
            for memory, owed in zip(self.memories, self.owed, strict=True):
                memory.mul_(owed[:, None, None])
            self.owed.fill_(1)


_Held = TypeVar("_Held", Block, Addressed)


class Debt:
    """Damping that memories are still owed: a factor for each stream and head, instead of a pass over every number.

    Whoever holds it is the only one to step these memories, and settles it before anybody else looks at them.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Block | Addressed] = {}

    def block(self, memories: Sequence[Tensor]) -> Block:
        """The memories of a stack (B, H, N, D), for loops, with what they are owed."""
        return self._held(Block, memories, lambda: Block(memories))

    def addressed(self, memories: Sequence[Tensor], *, damped: bool) -> Addressed:
        """The memories of a stack (1, H, N, D), for kernels; what they are owed is kept if they are damped."""
        return self._held(Addressed, memories, lambda: Addressed(memories, damped))

    def _held(self, kind: type[_Held], memories: Sequence[Tensor], make: Callable[[], _Held]) -> _Held:
        kept = self._blocks.get(id(memories[0]))
        same = isinstance(kept, kind) and len(kept.memories) == len(memories)
        if isinstance(kept, kind) and same and all(map(operator.is_, kept.memories, memories)):
            return kept
        for memory in memories:
            self.settle(memory)
        made = make()
        self._blocks |= dict.fromkeys(map(id, memories), made)
        return made

    def settle(self, memory: Tensor | None = None) -> None:
        """Let memories be what they stand for: all, or those that are stepped together with this one."""
        for block in list(self._blocks.values()) if memory is None else [self._blocks.get(id(memory))]:
            if block is not None:
                block.settle()
                for one in block.memories:
                    self._blocks.pop(id(one), None)


_debt: ContextVar[Debt | None] = ContextVar("debt", default=None)


def current() -> Debt | None:
    """Where this thread leaves damping, if anywhere."""
    return _debt.get()


@contextmanager
def owing(debt: Debt | None) -> Iterator[None]:
    """Let bytes that this thread hears inside the block leave damping in `debt`, and others settle it.

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
