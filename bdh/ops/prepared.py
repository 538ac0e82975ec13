"""A layer's weights as the loops read them, copied when they are needed and after they changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import RLock
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_Array: TypeAlias = NDArray[np.float32]

_PROBED = 128
"""Numbers of a matrix that are compared to see whether it changed."""
_SCREENED_WIDTH = 1024
"""Widest x that is screened: sums of products of whole numbers up to 127 are exact in float32 up to here."""
_SLACK = 1e-5
"""Of the norms' product: more than float32 loses in the sums that a bound is compared with."""
_TABLE_ACTIVE = 0.25
"""Where bytes excite more than this part of the neurons, a table of them is larger than what it saves."""


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
NO_TABLE = Table(
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
        # as bytes, so that NaN is itself, and lie an odd number apart, so that they are of many neurons.
        self._probes = [
            (some, some.tobytes())
            for one in (encoder, encoder_v, *rest)
            for whole in [one.detach().numpy().reshape(-1)]
            for some in [whole[:: whole.size // _PROBED | 1]]
        ]

    def stands(self, mark: tuple[int, ...]) -> bool:
        """Whether what was copied is what there is."""
        return self.mark == mark and all(now.tobytes() == then for now, then in self._probes)

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
        return NO_TABLE._replace(embedded=embedded.numpy())
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
