"""The flat model: BDH as released (arXiv 2509.26507, Appendix E)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import FlatConfig
from ..ops import step
from ..state import HebbianMemory
from .base import Model, advanced, init_weights
from .layer import Frequencies, bdh_layer, decay_rates, norm, recomputed
from .observe import observed

_FEW = 12
"""Bytes that are heard sooner one after another by loops that touch what fires than at once by whole products."""


class Flat(Model[FlatConfig]):
    """BDH: one layer of weights applied `n_layer` times, a Hebbian memory for each time."""

    kind = "flat"
    recompute = False
    """Trade time for memory in training; see `recomputed`."""

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

    def empty_state(self, batch_size: int = 1) -> HebbianMemory:
        """See `Model.empty_state`."""
        heads, width, neurons = self.encoder.shape
        device = self.encoder.device
        # In one block, which the loops for single bytes take at once.
        block = torch.zeros(self.config.n_layer, batch_size, heads, neurons, width, device=device)
        return HebbianMemory(torch.zeros(batch_size, dtype=torch.int64, device=device), block.unbind(0))

    def _hear(
        self, ids: Tensor, state: HebbianMemory | None, *, keep: bool, inplace: bool
    ) -> tuple[Tensor, HebbianMemory]:
        position = self.position(ids, state)
        few = inplace and ids.shape[1] <= _FEW and not observed()
        if few and state is not None and step.usable(ids, state.memory[0]):
            weights = step.prepared(self.encoder, self.encoder_v, self.decoder, self.embed.weight)
            if weights is not None:
                said = [self._step(one, state, weights) for one in ids.split(1, dim=1)]
                return said[0] if len(said) == 1 else torch.cat(said, dim=1), state
        phases = self.attn.cos_sin(position, ids.shape[1])
        decay = decay_rates(self.config.decay, ids.device)
        dropout = self.config.dropout if self.training else 0.0
        x = norm(self.embed(ids))
        memories: list[Any] = []
        layer = recomputed(bdh_layer, self.recompute)
        for memory in (None,) * self.config.n_layer if state is None else state.memory:
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
            )
            memories.append(written)
        return x, HebbianMemory(advanced(position, ids.shape[1], ids.shape[0], inplace), tuple(memories))

    def _step(self, ids: Tensor, state: HebbianMemory, weights: step.Weights) -> Tensor:
        """One byte of each stream, (B, 1), written into the state; hidden states (B, 1, D)."""
        table, heard = weights.table(lambda: norm(self.embed.weight.detach())), ids[:, 0].numpy()
        decay = decay_rates(self.config.decay, ids.device)
        x = step.stack(
            table.embedded[heard],
            weights,
            state.memory,
            state.position,
            self.attn.increments(),
            decay,
            ids=heard,
            table=table,
        )
        state.position.add_(1)
        return x

    def read_out(self, hidden: Tensor) -> Tensor:
        """See `Model.read_out`."""
        return hidden @ self.lm_head
