"""The layers of exported models, each a function of what it is given and what it remembers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Phases: TypeAlias = tuple[Tensor, Tensor]
"""Cosine and sine of each pair's phase, (B or 1, 1, T, N / 2)."""
Recall: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""`hebbian_attention` or `windowed_attention` for a chunk: query, key, value and memory to reads and memory."""

TURN = 2.0**64
"""Fixed-point units of a phase in a whole turn."""


def norm(x: Tensor) -> Tensor:
    """Layer normalisation without learned scale or shift, over the last axis."""
    return F.layer_norm(x, x.shape[-1:])


def taken(x: Tensor, index: Tensor) -> Tensor:
    """Rows (B, I, D) of (B, T, D), those that `index` (B, I) names."""
    return torch.take_along_dim(x, index[..., None], dim=1)


def cos_sin(position: Tensor, length: int, increments: Tensor) -> Phases:
    """Phases of `length` positions from `position` on.

    A phase is a 64-bit fixed-point fraction of a turn, which wraps by itself: it is exact at any position.

    Args:
        position: (B or 1,) int64.
        increments: (N / 2,) int64, in units of 2^-64 turns a position.
    """
    positions = position[:, None] + torch.arange(length, device=position.device)
    turns = (positions[:, None, :, None] * increments).to(torch.float32) / TURN
    return (turns * (2 * math.pi)).cos(), (turns * (2 * math.pi)).sin()


def radian_increments(size: int, device: torch.device) -> Tensor:
    """Turns of the usual rotary embedding, 10000^(-2i / size) radians a position, (size / 2,) int64."""
    radians = 1.0 / (10_000.0 ** (torch.arange(0, size, 2, dtype=torch.float64) / size))
    return (radians / (2 * math.pi) * TURN).to(torch.int64).to(device)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (2i, 2i + 1) of the last axis by its phase."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + N / 2) of the last axis by its phase."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def hebbian_attention(query: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """See `_hebbian_attention`; sums are float32 under any autocast."""
    with torch.autocast(query.device.type, enabled=False):
        return _hebbian_attention(query, *arguments, **options)


def _hebbian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Tensor | None,
    *,
    decay: Tensor | None,
    heard: Tensor | None,
    write: bool,
    inplace: bool,
) -> tuple[Tensor, Tensor | None]:
    """read_t = q_t · S_t;  S_(t+1) = λ S_t + k_tᵀ ⊗ v_t.

    Reading comes before writing: a position does not see itself. All is computed in float32.

    Args:
        query, key: (B, H, T, N).
        value: (B, H or 1, T, D).
        memory: S, (B, H, N, D) float32; None is an empty one.
        decay: λ, (H,), or None for 1.
        heard: (B,), how many positions of the chunk are heard, which come first; None is all.
        write: whether S after what is heard is wanted, and `inplace` whether it may be written over S.

    Returns:
        The reads (B, H, T, D), and S after what is heard.
    """
    dtype = value.dtype
    query, key, value = query.float(), key.float(), value.float()
    length = key.shape[2]
    before = torch.arange(length, device=key.device)
    read = None
    if length > 1:
        scores = (query @ key.mT).tril(-1)
        if decay is not None:
            scores = scores * decay[:, None, None] ** (before[:, None] - before - 1).clamp(min=0)
        read = scores @ value
    if memory is not None:
        recalled = query @ memory
        if decay is not None:
            recalled = recalled * (decay[:, None] ** before)[..., None]
        read = recalled if read is None else read + recalled
    if read is None:
        read = torch.zeros_like(value).expand(*query.shape[:3], -1)
    if not write:
        return read.to(dtype), None
    total = before.new_full((1,), length) if heard is None else heard
    if heard is not None:
        key = key * (before < heard[:, None])[:, None, :, None]
    if decay is not None:
        left = (total[:, None] - before - 1).clamp(min=0)
        value = value * (decay[:, None] ** left[:, None])[..., None]
    written = key.mT @ value
    if memory is not None:
        kept = 1.0 if decay is None else (decay ** total[:, None])[..., None, None]
        written = memory.mul_(kept).add_(written) if inplace else memory * kept + written
    return read.to(dtype), written


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Tensor | None,
    *,
    window: int,
    position: Tensor,
    heard: Tensor | None,
    write: bool,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention in which a position sees itself and the `window - 1` before it.

    Args:
        query, key, value: (B, H, T, D / H).
        memory: the last `window` keys and values, (B, 2, H, W, D / H) float32; None is an empty one.
        position: (B or 1,) how many positions came before the chunk.
        heard, write: as in `hebbian_attention`.

    Returns:
        The reads (B, H, T, D / H), and the window after what is heard.
    """
    length, past = key.shape[2], 0 if memory is None else window
    both = torch.stack((key, value), dim=1)
    if memory is not None:
        both = torch.cat((memory.to(both.dtype), both), dim=3)
    keys, values = both.unbind(1)
    if memory is None and length <= window:
        read = F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    else:
        here = torch.arange(past, past + length, device=key.device)[:, None]
        there = torch.arange(past + length, device=key.device)
        seen = (there <= here) & (there > here - window) & (there >= (past - position)[:, None, None])
        read = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen[:, None])
    if not write:
        return read, None
    both = F.pad(both.float(), (0, 0, window - past, 0))
    total = position.new_full((1,), length) if heard is None else heard
    last = total[:, None] + torch.arange(window, device=key.device)
    return read, torch.take_along_dim(both, last[:, None, None, :, None], dim=3)


class Frequencies(nn.Module):
    """Turns a position of each neuron of a head: stored with the weights, and float32 whatever these are."""

    freqs: Tensor

    def __init__(self, n_neuron: int) -> None:
        super().__init__()
        self.register_buffer("freqs", self.released(n_neuron).view(1, 1, 1, n_neuron))

    @staticmethod
    def released(n_neuron: int) -> Tensor:
        """65536^(-2⌊j/2⌋/n) / 2π, computed in float32 as in the released code."""
        pairs = (torch.arange(0, n_neuron, 1, dtype=torch.float32) / 2).floor() * 2
        return 1.0 / (65536.0 ** (pairs / n_neuron)) / (2 * math.pi)

    def _apply(self, fn: Any, recurse: bool = True) -> Frequencies:
        kept = self.freqs
        super()._apply(fn, recurse)
        if self.freqs.dtype != kept.dtype:
            self.freqs = kept.to(self.freqs.device)
        return self

    def increments(self) -> Tensor:
        """Fixed-point turns of each pair, (N / 2,) int64: exact, because a float32 times a power of two is."""
        return (self.freqs.float().reshape(-1)[::2] * TURN).to(torch.int64)


def by_head(x: Tensor, weight: Tensor) -> Tensor:
    """(B, H or 1, T, D) · (H, D, N) as one product of whole matrices a head, however many rows are short."""
    batch, _, length, width = x.shape
    rows = x.transpose(0, 1).reshape(-1, batch * length, width)
    return (rows @ weight).view(-1, batch, length, weight.shape[-1]).transpose(0, 1)


def bdh_layer(
    x: Tensor,
    encoder: Tensor,
    encoder_v: Tensor,
    decoder: Tensor,
    phases: Phases,
    memory: Tensor | None,
    recall: Recall,
    dropout: float,
) -> tuple[Tensor, Tensor | None]:
    """Fire, recall, gate, add.

    x_sparse = relu(x · encoder);  y_sparse = relu(LN(recall(rope(x_sparse), x)) · encoder_v)
    x' = LN(x + LN((x_sparse · y_sparse) · decoder))

    Args:
        x: (B, T, D).
        encoder, encoder_v: (H, D, N).
        decoder: (H·N, D).
        memory: (B, H, N, D).
        dropout: probability, 0 outside training.
    """
    x_sparse = F.relu(by_head(x[:, None], encoder))
    rotated = rotate_pairs(x_sparse, *phases)
    read, memory = recall(rotated, rotated, x[:, None], memory)
    y_sparse = F.relu(by_head(norm(read), encoder_v))
    gated = F.dropout(x_sparse * y_sparse, dropout, dropout > 0)
    return norm(x + norm(gated.transpose(1, 2).flatten(2) @ decoder)), memory


class BdhBlock(nn.Module):
    """A `bdh_layer` with weights of its own."""

    def __init__(self, width: int, heads: int, mlp_mult: int, dropout: float) -> None:
        super().__init__()
        neurons = width * mlp_mult // heads
        self.dropout = dropout
        self.encoder = nn.Parameter(torch.empty(heads, width, neurons))
        self.encoder_v = nn.Parameter(torch.empty(heads, width, neurons))
        self.decoder = nn.Parameter(torch.empty(heads * neurons, width))
        self.attn = Frequencies(neurons)

    def forward(
        self, x: Tensor, position: Tensor, memory: Tensor | None, recall: Recall
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) from `position` (B or 1,) on, with the memory before and after."""
        phases = cos_sin(position, x.shape[1], self.attn.increments())
        dropout = self.dropout if self.training else 0.0
        return bdh_layer(x, self.encoder, self.encoder_v, self.decoder, phases, memory, recall, dropout)


class HebbianAttention(nn.Module):
    """out_t = q_t · σ_t;  σ_(t+1) = λ σ_t + η k_tᵀ ⊗ v_t, with q and k rotated, then cut at zero."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.n_head = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.eta = nn.Parameter(torch.full((1,), 0.1))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, phases: Phases, memory: Tensor | None, recall: Recall) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) to (B, T, D), with the memory (B, H, D / H, D / H) before and after."""
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        query, key = (F.relu(rotate_halves(t, *phases)) for t in (query, key))
        read, memory = recall(query, self.eta * key, value, memory)
        return self.drop(self.proj(read.transpose(1, 2).reshape(batch, length, width))), memory


class HebbianBlock(nn.Module):
    """x + attention(LN x), then x + W2 relu(W1 LN x)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attn = HebbianAttention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.ReLU(),
            nn.Linear(4 * width, width, bias=False),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        """As `HebbianAttention.forward`."""
        attended, memory = self.attn(norm(x), *arguments)
        x = x + attended
        return x + self.mlp(norm(x)), memory


class TransformerBlock(nn.Module):
    """x + proj(attention(LN x)), then x + W2 gelu(W1 LN x); the norms have learned scales and shifts."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.n_head = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
            nn.Dropout(dropout),
        )
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, phases: Phases | None, memory: Tensor | None, recall: Recall
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) to (B, T, D), with the window before and after; without phases positions are not told apart."""
        batch, length, width = x.shape
        query, key, value = self.qkv(self.ln1(x)).view(batch, length, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        if phases is not None:
            query, key = (rotate_halves(t, *phases) for t in (query, key))
        read, memory = recall(query, key, value, memory)
        x = x + self.drop(self.proj(read.transpose(1, 2).reshape(batch, length, width)))
        return x + self.mlp(self.ln2(x)), memory
