"""Causal softmax attention over a window that slides along the stream, and the Transformer block on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import rope
from ..state import Window
from .observe import observed, show


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, past: Window | None, position: Tensor, window: int, keep: bool
) -> tuple[Tensor, Window | None]:
    """Softmax attention in which a position sees itself and the `window - 1` before it.

    Args:
        query, key, value: (B, H, T, D / H).
        past: the last `window` keys and values before the chunk; None is none.
        position: (B,) int64, how many positions came before the chunk.
        window: W.
        keep: whether the window after the chunk is wanted.

    Returns:
        (B, H, T, D / H) and the window after the chunk.
    """
    length = key.shape[2]
    if past is None:
        keys, values, before = key, value, 0
    else:
        keys, values = torch.cat((past.keys.to(key.dtype), key), 2), torch.cat((past.values.to(key.dtype), value), 2)
        before = window
    if past is None and length <= window:
        attended = F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    else:
        here = torch.arange(before, before + length, device=key.device)[:, None]
        there = torch.arange(before + length, device=key.device)[None, :]
        seen = (there <= here) & (there > here - window)
        heard = there[None] >= (before - position.clamp(max=before))[:, None, None]
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=(seen & heard)[:, None])
    if not keep:
        return attended, None
    missing = max(0, window - keys.shape[2])
    return attended, Window(*(F.pad(t[:, :, -window:].float(), (0, 0, missing, 0)) for t in (keys, values)))


class TransformerBlock(nn.Module):
    """x + proj(attention(LN x)), then x + W2 gelu(W1 LN x); rotary positions if `rope_theta` is given."""

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        window: int,
        dropout: float,
        rope_theta: float | None = None,
        *,
        place: str = "",
    ) -> None:
        super().__init__()
        self.place = place
        self.n_head, self.window, self.rope_theta = n_head, window, rope_theta
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd, bias=False),
            nn.GELU(),
            nn.Linear(4 * n_embd, n_embd, bias=False),
            nn.Dropout(dropout),
        )
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)
        self.drop = nn.Dropout(dropout)

    def empty_memory(self, batch_size: int) -> Window:
        """A window of zeros, (B, H, W, D / H) float32 each."""
        width = self.qkv.in_features // self.n_head
        shape = (batch_size, self.n_head, self.window, width)
        return Window(*(torch.zeros(shape, device=self.qkv.weight.device) for _ in range(2)))

    def forward(
        self, x: Tensor, position: Tensor, memory: Window | None, *, keep: bool = True, inplace: bool = False
    ) -> tuple[Tensor, Window | None]:
        """Hear (B, T, D) from `position` (B,) on; returns (B, T, D) and the memory after it."""
        batch, length, width = x.shape
        qkv = self.qkv(self.ln1(x)).view(batch, length, 3, self.n_head, width // self.n_head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if self.rope_theta is not None:
            increment = rope.radian_increments(width // self.n_head, self.rope_theta, x.device)
            cos, sin = rope.cos_sin(position, length, increment)
            query, key = (rope.rotate_halves(t, cos[:, None], sin[:, None]) for t in (query, key))
        query, key, value = (self._show(name, t) for name, t in (("query", query), ("key", key), ("value", value)))
        attended, written = windowed_attention(query, key, value, memory, position, self.window, keep)
        if inplace and memory is not None and written is not None:
            memory.keys.copy_(written.keys)
            memory.values.copy_(written.values)
            written = memory
        attended = self._show("attention", attended)
        x = x + self.drop(self.proj(attended.transpose(1, 2).reshape(batch, length, width)))
        return show("residual", x + shown_mlp(self.mlp, self.ln2(x), self.place), self.place), written

    def _show(self, name: str, heads: Tensor) -> Tensor:
        """Show (B, H, T, D / H) as it is in all kinds of block, heads first."""
        return show(name, heads.transpose(0, 1), self.place).transpose(0, 1) if observed() else heads


def shown_mlp(mlp: nn.Sequential, x: Tensor, place: str) -> Tensor:
    """A block's two layers, between which probes see the activations as `mlp`, (B, T, 4 D)."""
    widen, bend, narrow, drop = mlp
    return drop(narrow(show("mlp", bend(widen(x)), place)))
