"""The baseline: a causal GELU Transformer with rotary positions and a window that slides along the stream."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from ..state import WindowMemory
from .attention import TransformerBlock
from .base import Model, advanced, init_weights

_ROPE_THETA = 10_000.0


class Transformer(Model[TransformerConfig]):
    """Pre-norm blocks between an embedding and the same embedding read backwards."""

    kind = "transformer"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.tok_emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks: Any = nn.ModuleList(
            TransformerBlock(
                config.n_embd, config.n_head, config.block_size, config.dropout, _ROPE_THETA, place=f"layer.{index}."
            )
            for index in range(config.n_layer)
        )
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.apply(init_weights)

    def empty_state(self, batch_size: int = 1) -> WindowMemory:
        """See `Model.empty_state`."""
        position = torch.zeros(batch_size, dtype=torch.int64, device=self.tok_emb.weight.device)
        return WindowMemory(position, tuple(block.empty_memory(batch_size) for block in self.blocks))

    def _hear(
        self, ids: Tensor, state: WindowMemory | None, *, keep: bool, inplace: bool
    ) -> tuple[Tensor, WindowMemory]:
        position = self.position(ids, state)
        x = self.tok_emb(ids)
        layers = []
        for index, block in enumerate(self.blocks):
            window = None if state is None else state.layers[index]
            x, window = block(x, position, window, keep=keep, inplace=inplace)
            layers.append(window)
        return self.ln_f(x), WindowMemory(advanced(position, ids.shape[1], ids.shape[0], inplace), tuple(layers))

    def read_out(self, hidden: Tensor) -> Tensor:
        """See `Model.read_out`."""
        return F.linear(hidden, self.tok_emb.weight)
