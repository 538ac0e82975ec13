"""The Hebbian q/k/v model: linear attention on positive rotated queries and keys, with a learned rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import HebbianConfig
from ..ops import rope
from ..ops.chunked import hebbian_attention
from ..state import HebbianMemory
from .attention import shown_mlp
from .base import Model, advanced, init_weights
from .layer import decay_rates, norm
from .observe import show

_ROPE_THETA = 10_000.0


class HebbianAttention(nn.Module):
    """out_t = q_t · σ_t;  σ_(t+1) = λ σ_t + η k_tᵀ ⊗ v_t, with q and k rotated, then cut at zero."""

    def __init__(self, config: HebbianConfig, place: str) -> None:
        super().__init__()
        self.n_head, self.decay, self.place = config.n_head, config.decay, place
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.eta = nn.Parameter(torch.full((1,), 0.1))
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, position: Tensor, memory: Tensor | None, *, keep: bool, inplace: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) to (B, T, D), with the memory (B, H, D / H, D / H) before and after."""
        batch, length, width = x.shape
        size = width // self.n_head
        query, key, value = self.qkv(x).view(batch, length, 3, self.n_head, size).permute(2, 3, 0, 1, 4)
        cos, sin = rope.cos_sin(position, length, rope.radian_increments(size, _ROPE_THETA, x.device))
        query, key = (F.relu(rope.rotate_halves(t, cos, sin)) for t in (query, key))
        query, key, value = (
            show(name, t, self.place) for name, t in (("query", query), ("key", key), ("value", value))
        )
        read, memory = hebbian_attention(
            query, self.eta * key, value, memory, decay_rates(self.decay, x.device), write=keep, inplace=inplace
        )
        read = show("attention", read, self.place)
        return self.drop(self.proj(read.permute(1, 2, 0, 3).reshape(batch, length, width))), memory


class HebbianBlock(nn.Module):
    """x + attention(LN x), then x + W2 relu(W1 LN x)."""

    def __init__(self, config: HebbianConfig, place: str) -> None:
        super().__init__()
        self.place = place
        width = config.n_embd
        self.attn = HebbianAttention(config, place)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.ReLU(),
            nn.Linear(4 * width, width, bias=False),
            nn.Dropout(config.dropout),
        )

    def forward(
        self, x: Tensor, position: Tensor, memory: Tensor | None, *, keep: bool, inplace: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) to (B, T, D), with the attention's memory before and after."""
        heard, memory = self.attn(norm(x), position, memory, keep=keep, inplace=inplace)
        x = x + heard
        return show("residual", x + shown_mlp(self.mlp, norm(x), self.place), self.place), memory


class Hebbian(Model[HebbianConfig]):
    """A stack of blocks between an embedding and the same embedding read backwards."""

    kind = "hebbian"

    def __init__(self, config: HebbianConfig) -> None:
        super().__init__(config)
        self.tok_emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(HebbianBlock(config, f"layer.{index}.") for index in range(config.n_layer))
        self.apply(init_weights)

    def empty_state(self, batch_size: int = 1) -> HebbianMemory:
        """See `Model.empty_state`."""
        heads = self.config.n_head
        size, device = self.config.n_embd // heads, self.tok_emb.weight.device
        return HebbianMemory(
            torch.zeros(batch_size, dtype=torch.int64, device=device),
            tuple(torch.zeros(batch_size, heads, size, size, device=device) for _ in self.blocks),
        )

    def _hear(
        self, ids: Tensor, state: HebbianMemory | None, *, keep: bool, inplace: bool
    ) -> tuple[Tensor, HebbianMemory]:
        position = self.position(ids, state)
        x = self.tok_emb(ids)
        memories = []
        for index, block in enumerate(self.blocks):
            memory = None if state is None else state.memory[index]
            x, memory = block(x, position, memory, keep=keep, inplace=inplace)
            memories.append(memory)
        return norm(x), HebbianMemory(advanced(position, ids.shape[1], ids.shape[0], inplace), tuple(memories))

    def read_out(self, hidden: Tensor) -> Tensor:
        """See `Model.read_out`."""
        return F.linear(hidden, self.tok_emb.weight)
