"""What an exported model remembers: of one size at any length, and handed from call to call as `past_key_values`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class BdhMemory:
    """What a model remembers of each stream of a batch; its size does not depend on how much was heard.

    It is handed to the model as `past_key_values`. Without gradients the model writes into it, as into any cache; to
    come back to a moment, keep a `copy.deepcopy`.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, n_layer: int, batch_size: int, device: torch.device | str = "cpu") -> None:
        self.position = torch.zeros(batch_size, dtype=torch.int64, device=device)
        """(B,) bytes heard, without padding."""
        self.layers: list[Tensor | None] = [None] * n_layer
        """What each layer remembers, float32; None before anything was heard.

        A Hebbian layer's sum of outer products is (B, H, N, D); the last keys and values that a layer of softmax
        attention looks back on are (B, 2, H, W, D / H), newest last.
        """
        self.length = 0
        """Positions of the batch that were given, padding included."""

    def __copy__(self) -> BdhMemory:
        """A memory of its own, with the same tensors."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__
        other.layers = list(self.layers)
        return other

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions that were given so far, padding included."""
        return self.length

    def get_max_cache_shape(self, layer_idx: int = 0) -> None:
        """There is no longest text."""

    def get_max_length(self) -> int:
        """There is no longest text."""
        return -1

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        self.position = function(self.position)
        self.layers = [None if layer is None else function(layer) for layer in self.layers]

    def detach_(self) -> None:
        """Cut the memory off from the autograd graph: truncated backpropagation through time."""
        self._map(Tensor.detach)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give each beam the memory of the one that it goes on from."""
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given streams."""
        self._map(lambda tensor: tensor[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each stream so many times."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Forget everything."""
        self.position = torch.zeros_like(self.position)
        self.layers = [None] * len(self.layers)
        self.length = 0

    def crop(self, *_: Any) -> None:
        """A sum cannot be taken apart, and what left a window is gone."""
        raise ValueError("this memory cannot forget its last bytes; keep a copy.deepcopy from before them")


class BdhPatchMemory(BdhMemory):
    """What a hierarchical model remembers: the layers over patches, then those over bytes, and the open patch."""

    patch: Tensor | None = None
    """(B, P, D) the bytes of the open patch, embedded, zeros behind them; None is no byte."""
    context: Tensor | None = None
    """(B, D) float32, what the global model says to the open patch; None is what it says to the first."""

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        super()._map(function)
        self.patch = None if self.patch is None else function(self.patch)
        self.context = None if self.context is None else function(self.context)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.patch = self.context = None


class BdhMembersMemory(BdhMemory):
    """What a composed model remembers: what each member does, and how far a mixture trusts them."""

    log_weights: Tensor | None = None
    """(B, K) float32: log of each member's posterior weight; None is as before the first byte."""
    predictions: Tensor | None = None
    """(B, K, V) float32: each member's log probabilities for the byte to come."""

    def __init__(self, members: Sequence[BdhMemory], batch_size: int, device: torch.device | str = "cpu") -> None:
        super().__init__(0, batch_size, device)
        self.members = list(members)

    def __copy__(self) -> BdhMembersMemory:
        other = super().__copy__()
        assert isinstance(other, BdhMembersMemory)
        other.members = [copy.copy(member) for member in self.members]
        return other

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        super()._map(function)
        for member in self.members:
            member._map(function)
        self.log_weights = None if self.log_weights is None else function(self.log_weights)
        self.predictions = None if self.predictions is None else function(self.predictions)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        for member in self.members:
            member.reset()
        self.log_weights = self.predictions = None
