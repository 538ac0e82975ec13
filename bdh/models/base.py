"""What every kind of model shares: one forward for any number of bytes, the state going in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .. import state as states
from ..config import VOCAB_SIZE, Config
from ..errors import DataError

C = TypeVar("C", bound=Config)

CHUNK = 128
"""Positions heard at once without gradients: measured best on CPUs, where scores cost its square."""
CHUNK_GRAD = 512
"""Positions heard at once with gradients: below about 600 the square is cheaper than the memory's reads."""


class Output(NamedTuple):
    """What a forward pass gives back."""

    logits: Tensor
    """(B, T, V), or (B, 1, V) if only the last byte's were asked for."""
    state: Any
    """What the model remembers after the last byte; None if it was not asked for."""


class Model(nn.Module, ABC, Generic[C]):
    """A byte-level language model whose memory belongs to the caller.

    A subclass says how a chunk of bytes turns into hidden states (`_hear`) and what its memory looks like
    (`empty_state`); cutting long inputs, in-place and functional calls are the same for all.
    """

    kind: ClassVar[str]
    KINDS: ClassVar[dict[str, type[Model[Any]]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            Model.KINDS[cls.kind] = cls

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    def chunk_bytes(self, inplace: bool) -> int:
        """Bytes that one pass over the layers hears: under autograd each chunk's memory is kept for the way back."""
        return CHUNK if inplace else CHUNK_GRAD

    @abstractmethod
    def empty_state(self, batch_size: int = 1) -> Any:
        """The memory of `batch_size` streams that have heard nothing."""

    @abstractmethod
    def _hear(self, ids: Tensor, state: Any, *, keep: bool, inplace: bool) -> tuple[Tensor, Any]:
        """Hear one chunk.

        Args:
            ids: (B, T) int64, T at most a chunk.
            state: the memory before the chunk; None is an empty one, which need not be read.
            keep: whether the memory after the chunk is wanted.
            inplace: the memory may be overwritten.

        Returns:
            Hidden states (B, T, D) that `read_out` takes, and the memory after the chunk.
        """

    @abstractmethod
    def read_out(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""

    def forward(self, ids: Tensor, state: Any = None, *, last_only: bool = False, keep_state: bool = True) -> Output:
        """Hear bytes and predict the byte after each; `state` is left as it was.

        Time is linear in T; without gradients, memory beyond the logits does not depend on T.

        Args:
            ids: (B, T) bytes, any integer type, T at least 1.
            state: memory of B streams; None is an empty one.
            last_only: give logits for the last byte only.
            keep_state: False saves the last write to memory; the returned state is None.

        Raises:
            DataError: ids that are no bytes, or a batch other than the state's.
        """
        grad = torch.is_grad_enabled()
        if state is not None and not grad:
            state = states.clone(state)
        return self._listen(ids, state, last_only=last_only, keep=keep_state, inplace=not grad)

    @torch.no_grad()
    def step_(self, ids: Tensor, state: Any, *, last_only: bool = True) -> Output:
        """As `forward`, but overwriting `state`, which the caller alone must hold."""
        return self._listen(ids, state, last_only=last_only, keep=True, inplace=True)

    def _listen(self, ids: Tensor, state: Any, *, last_only: bool, keep: bool, inplace: bool) -> Output:
        ids = self._checked_ids(ids)
        if state is not None and state.position.shape[0] != ids.shape[0]:
            raise DataError(f"{ids.shape[0]} streams of bytes were given with the memory of {state.position.shape[0]}")
        chunks = ids.split(self.chunk_bytes(inplace), dim=1)
        logits = []
        for index, chunk in enumerate(chunks):
            last = index == len(chunks) - 1
            hidden, state = self._hear(chunk, state, keep=keep or not last, inplace=inplace)
            if last and last_only:
                hidden = hidden[:, -1:]
            if last or not last_only:
                logits.append(self.read_out(hidden))
        return Output(logits[0] if len(logits) == 1 else torch.cat(logits, dim=1), state if keep else None)

    def listen_hidden(self, ids: Tensor, state: Any, *, keep: bool, inplace: bool) -> tuple[Tensor, Any]:
        """Hidden states (B, T, D) instead of logits, and the memory: what a composed model asks its members."""
        chunks = ids.split(self.chunk_bytes(inplace), dim=1)
        hidden = []
        for index, chunk in enumerate(chunks):
            said, state = self._hear(chunk, state, keep=keep or index < len(chunks) - 1, inplace=inplace)
            hidden.append(said)
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=1), state

    def _checked_ids(self, ids: Tensor) -> Tensor:
        if ids.dim() != 2 or ids.shape[1] == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise DataError(f"bytes must be whole numbers of shape (streams, at least 1); given {ids.dtype} {tuple(ids.shape)}")
        if ids.device.type == "cpu" and ids.dtype != torch.uint8 and not 0 <= int(ids.min()) <= int(ids.max()) < VOCAB_SIZE:
            raise DataError(f"bytes must be from 0 to 255; given {int(ids.min())} to {int(ids.max())}")
        return ids.to(self.device, torch.int64)

    def position(self, ids: Tensor, state: Any) -> Tensor:
        """Bytes heard before `ids`: (B,), or (1,) for all streams of an empty memory."""
        return torch.zeros(1, dtype=torch.int64, device=ids.device) if state is None else state.position

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    def parameter_count(self) -> int:
        """Numbers that training changes."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state_bytes(self, batch_size: int = 1) -> int:
        """Bytes that the memory of `batch_size` streams takes, without allocating it."""
        with torch.device("meta"):
            return states.state_bytes(type(self)(self.config).empty_state(batch_size))


def advanced(position: Tensor, length: int, batch_size: int, inplace: bool) -> Tensor:
    """The position (B,) after `length` more bytes, written over the old one if it is the caller's own."""
    if position.shape[0] != batch_size:
        return (position + length).expand(batch_size).clone()
    return position.add_(length) if inplace else position + length


def init_weights(module: nn.Module) -> None:
    """Normal with deviation 0.02 for matrices and embeddings, as in the released code."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
