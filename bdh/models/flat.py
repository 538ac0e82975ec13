"""The flat model: BDH as released (arXiv 2509.26507, Appendix E)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import FlatConfig
from ..ops import debt, gpu_step, loops, step
from ..ops.pages import zeros
from ..ops.prepared import Table, Weights, prepared
from ..state import HebbianMemory
from .base import Model, advanced, init_weights
from .layer import Frequencies, bdh_layer, decay_rates, norm, recomputed
from .observe import observed, observing

_FEW = 6
"""Bytes that are heard sooner by loops that touch what fires than by whole products, however many neurons fire."""
_SPARSE, _SPARSE_IF_SMALL = 0.2, 0.3
"""Where fewer neurons fire, loops hear any number of bytes sooner: in large layers, and in those that stay near."""
_SMALL = 2_000_000
"""Numbers of an encoder up to which a layer is small."""
_PROBE = b"The hatchling opened its eyes: 3 small, wet things. \n def f(x): return x"
"""Bytes by which it is measured how many do."""


class Flat(Model[FlatConfig]):
    """BDH: one layer of weights applied `n_layer` times, a Hebbian memory for each time."""

    kind = "flat"
    recompute = False
    """Trade time for memory in training; see `recomputed`."""
    _measured: tuple[tuple[tuple[int, int], ...], float] | None = None
    """Of which weights it was measured how many neurons fire, and how many do."""

    def __init__(self, config: FlatConfig) -> None:
        super().__init__(config)
        heads, width, neurons = config.n_head, config.n_embd, config.n_neuron
        self.embed = nn.Embedding(config.vocab_size, width)
        self.encoder = nn.Parameter(torch.empty(heads, width, neurons).normal_(std=0.02))
        self.encoder_v = nn.Parameter(torch.empty(heads, width, neurons).normal_(std=0.02))
        self.decoder = nn.Parameter(torch.empty(heads * neurons, width).normal_(std=0.02))
        self.lm_head = nn.Parameter(torch.empty(width, config.vocab_size).normal_(std=0.02))
        self.attn = Frequencies(neurons)
        self.apply(init_weights)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Flat:
        """Move or cast; what kernels keep on a GPU does not stay when the weights leave it."""
        super()._apply(fn, recurse)
        gpu_step.let_go(self.encoder_v)
        return self

    def empty_state(self, batch_size: int = 1) -> HebbianMemory:
        """See `Model.empty_state`."""
        heads, width, neurons = self.encoder.shape
        device = self.encoder.device
        # In one block, which the loops for single bytes take at once.
        block = zeros(self.config.n_layer, batch_size, heads, neurons, width, device=device)
        return HebbianMemory(torch.zeros(batch_size, dtype=torch.int64, device=device), block.unbind(0))

    def _hear(
        self, ids: Tensor, state: HebbianMemory | None, *, keep: bool, inplace: bool
    ) -> tuple[Tensor, HebbianMemory]:
        position = self.position(ids, state)
        dropout = self.config.dropout if self.training else 0.0
        if inplace and (keep or state is not None) and 1 in ids.shape and not (dropout or observed()):
            heard = self._step(ids, state)
            if heard is not None:
                return heard
        phases = self.attn.cos_sin(position, ids.shape[1])
        decay = decay_rates(self.config.decay, ids.device)
        x = norm(self.embed(ids))
        memories: list[Any] = []
        layer = recomputed(bdh_layer, self.recompute)
        for index, memory in enumerate((None,) * self.config.n_layer if state is None else state.memory):
            x, written = layer(
                x,
                self.encoder,
                self.encoder_v,
                self.decoder,
                phases,
                memory,
                decay=decay,
                dropout=dropout,
                keep=keep,
                inplace=inplace,
                place=f"layer.{index}.",
            )
            memories.append(written)
        return x, HebbianMemory(advanced(position, ids.shape[1], ids.shape[0], inplace), tuple(memories))

    def step_byte_(self, byte: int, state: HebbianMemory) -> Tensor | None:
        """See `Model.step_byte_`."""
        memory = state.memory[0]
        if gpu_step.serves(memory.device):
            return self._step_byte_on_gpu(byte, state)
        with torch.no_grad():
            if (self.training and self.config.dropout) or observed() or not step.usable(memory, self.lm_head):
                return None
        weights = prepared(*self._own())
        if weights is None or memory.dtype != torch.float32:
            return None
        decay = decay_rates(self.config.decay, memory.device)
        table, increments = self._table(weights), self.attn.increments()
        return step.byte(byte, weights, table, self.lm_head, state.memory, state.position, increments, decay)

    def _step_byte_on_gpu(self, byte: int, state: HebbianMemory) -> Tensor | None:
        holder = debt.current()
        owed = holder or debt.Debt()
        said = self.step_streams_((byte,), (state,), (owed,))
        if holder is None:
            owed.settle()
        return None if said is None else said[0].cpu()

    def step_streams_(
        self, data: Sequence[int], states: Sequence[HebbianMemory], debts: Sequence[debt.Debt]
    ) -> Tensor | None:
        """See `Model.step_streams_`."""
        if (self.training and self.config.dropout) or observed():
            return None
        weights = gpu_step.Weights(
            self.embed.weight,
            self.encoder,
            self.encoder_v,
            self.decoder,
            self.lm_head,
            self.attn.increments(),
            decay_rates(self.config.decay, self.encoder.device),
        )
        positions, memories = [state.position for state in states], [state.memory for state in states]
        return gpu_step.step(weights, data, positions, memories, debts)

    def products_per_byte(self) -> int:
        """See `Model.products_per_byte`: every layer has the same weights."""
        return self.config.n_layer * self.parameter_count()

    def single_bytes(self) -> str:
        """See `Model.single_bytes`; on a GPU the kernels are tried first."""
        config, device = self.config, self.device
        if self.dtype == torch.float32 and gpu_step.serves(device):
            shape = (config.n_embd, config.n_neuron, config.vocab_size, bool(config.decay))
            return {"graph": "graph of kernels", "launches": "kernels", None: "PyTorch"}[
                gpu_step.usable(device, *shape)
            ]
        return "compiled loops" if self.dtype == torch.float32 and loops.usable(device) else "PyTorch"

    def _table(self, weights: Weights) -> Table:
        """What bytes excite in the first layer."""
        return weights.table(lambda: norm(self.embed.weight.detach()))

    def _step(self, ids: Tensor, state: HebbianMemory | None) -> tuple[Tensor, HebbianMemory] | None:
        """A byte of each of some streams, or bytes of one, written into the state by loops that touch only what fires.

        Args:
            ids: (B, 1) or (1, T).

        Returns:
            Hidden states (B, T, D) and the state, or None where the loops cannot be used or whole products are sooner.
        """
        if not step.usable(ids, self.encoder if state is None else state.memory[0]):
            return None
        if not (ids.shape[1] <= _FEW or self._few_fire()):
            return None
        weights = prepared(*self._own())
        if weights is None:
            return None
        state = self.empty_state(len(ids)) if state is None else state
        table, heard = self._table(weights), np.ascontiguousarray(ids.numpy().reshape(-1))
        decay, increments = decay_rates(self.config.decay, ids.device), self.attn.increments()
        said = step.stack(
            table.embedded[heard], weights, state.memory, state.position, increments, decay, ids=heard, table=table
        )
        position = state.position.numpy()
        position += ids.shape[1]
        return said.view(*ids.shape, -1), state

    def _own(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.encoder, self.encoder_v, self.decoder, self.embed.weight

    def _few_fire(self) -> bool:
        """Whether so few neurons do that loops hear any text sooner; measured again after the weights changed."""
        own = self._own()
        mark = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in own)
        if self._measured is None or self._measured[0] != mark:
            self._measured = mark, self.active()
        return self._measured[1] < (_SPARSE_IF_SMALL if self.encoder.numel() <= _SMALL else _SPARSE)

    def active(self) -> float:
        """The part of x_sparse that fires, mean over the layers and some bytes."""
        parts: list[Tensor] = []

        def look(name: str, activation: Tensor) -> None:
            if name == "x_sparse":
                parts.append((activation > 0).float().mean())

        ids = torch.frombuffer(bytearray(_PROBE), dtype=torch.uint8).long()[None]
        with torch.no_grad(), observing(look):
            self._hear(ids, None, keep=False, inplace=True)
        return float(torch.stack(parts).mean())

    def read_out(self, hidden: Tensor) -> Tensor:
        """See `Model.read_out`."""
        said = step.product(hidden, self.lm_head)
        return hidden @ self.lm_head if said is None else said
