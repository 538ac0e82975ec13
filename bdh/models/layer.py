"""The BDH layer and its rotary frequencies, shared by the flat and the hierarchical model."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..ops import debt, fused, rope, step
from ..ops.chunked import hebbian_attention
from ..ops.pages import zeros
from ..ops.prepared import prepared
from .observe import edited, looking_again, observe, observed, scalings, show, wanted

_NORM_EPSILON = 1e-5
"""What `norm` adds to the variance."""


def norm(x: Tensor) -> Tensor:
    """Layer normalisation without learned scale or shift, over the last axis."""
    return F.layer_norm(x, x.shape[-1:])


class Frequencies(nn.Module):
    """Turns a byte of each neuron of a head: a definition, stored with the weights and never cast."""

    freqs: Tensor
    _increments: tuple[tuple[int, int], Tensor] | None = None
    """What the frequencies were when fixed-point turns were last made of them, and these."""

    def __init__(self, n_neuron: int) -> None:
        super().__init__()
        # A model without storage has no values; to compute them there takes torch seconds of imports.
        shapes_only = torch.get_default_device().type == "meta"
        freqs = torch.empty(n_neuron) if shapes_only else rope.frequencies(n_neuron)
        self.register_buffer("freqs", freqs.view(1, 1, 1, n_neuron))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frequencies:
        kept = self.freqs
        super()._apply(fn, recurse)
        if self.freqs.dtype != kept.dtype:
            self.freqs = kept.to(self.freqs.device)
        return self

    def cos_sin(self, position: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Phases of `length` positions from `position` (B,) on, (B, length, N / 2) each."""
        if torch.compiler.is_compiling():
            return rope.cos_sin(position, length, rope.increments(self.freqs))
        return rope.cos_sin(position, length, self.increments())

    def increments(self) -> Tensor:
        """`rope.increments`, made again only after the frequencies changed."""
        mark = (self.freqs.data_ptr(), 0 if self.freqs.is_inference() else self.freqs._version)
        if self._increments is None or self._increments[0] != mark:
            self._increments = (mark, rope.increments(self.freqs))
        return self._increments[1]


@lru_cache(maxsize=64)
def decay_rates(decay: tuple[float, ...], device: torch.device) -> Tensor | None:
    """The damping of each head, (H,) float32, or None if there is none."""
    return torch.tensor(decay, dtype=torch.float32, device=device) if decay else None


def bdh_layer(
    x: Tensor,
    encoder: Tensor,
    encoder_v: Tensor,
    decoder: Tensor,
    phases: tuple[Tensor, Tensor],
    memory: Tensor | None,
    *,
    decay: Tensor | None = None,
    dropout: float = 0.0,
    keep: bool = True,
    inplace: bool = False,
    place: str = "",
) -> tuple[Tensor, Tensor | None]:
    """One layer: fire, recall, gate, add.

    x_sparse = relu(x · encoder);  y_sparse = relu(LN(recall(rope(x_sparse), x)) · encoder_v)
    x' = LN(x + LN((x_sparse · y_sparse) · decoder))

    Heads stand first, so that each product is one batched multiplication of whole matrices. The activations
    `x_sparse` and `y_sparse`, (H, B, T, N), and x' as `residual` can be observed; `x_moments`, (H, B, T, 3), are the
    mean, the mean of squares and the part above 0 of each row of x_sparse, and `y_active`, (H, B, T, 1), is that part
    of y_sparse; both only by an observer that asks for them in `names`. Probes see, in this order, `value` (x),
    `x_sparse`, `key` (x_sparse rotated, which is the query too), `attention` (what is read, (H, B, T, D), before LN),
    `y_sparse`, `gate` (x_sparse · y_sparse) and `residual`.

    Args:
        x: (B, T, D).
        encoder, encoder_v: (H, D, N).
        decoder: (H·N, D), rows head by head.
        phases: cosine and sine, (B or 1, T, N / 2).
        memory: (B, H, N, D) float32, or None for an empty one.
        dropout: probability, 0 outside training.
        keep, inplace: as in `hebbian_attention`.
        place: what probes call this layer, such as `layer.0.`.

    Returns:
        x' (B, T, D) and the memory after the chunk.
    """
    batch, length, width = x.shape
    heads, _, neurons = encoder.shape
    if inplace:
        debt.settle(memory)
    rows = x.reshape(1, batch * length, width).expand(heads, -1, -1)
    latent = torch.bmm(rows, encoder).view(heads, batch, length, neurons)
    fuses = fused.usable(latent) and not edited()
    if fuses:
        x_sparse, rotated, told = fused.fire(latent, *phases)
        del latent  # as large as what came of it, and not needed any more
        if wanted("x_moments", unasked=False):
            observe("x_moments", told)
        observe("x_sparse", x_sparse, place)
    else:
        x_sparse = observe("x_sparse", F.relu_(latent), place)
        rotated = rope.rotate_pairs(x_sparse, *phases)
        if wanted("x_moments", unasked=False):
            observe("x_moments", moments(x_sparse))
    rotated = show("key", rotated, place)
    value = show("value", x, place).unsqueeze(0)
    scaled = [
        (_recall_of(one.sending, rotated, value, memory, decay), one) for one in scalings(place, encoder_v)
    ]  # before the memory is written over
    read, memory = hebbian_attention(rotated, rotated, value, memory, decay, write=keep, inplace=inplace)
    read = show("attention", read, place)
    latent = torch.bmm(norm(read).view(heads, batch * length, width), encoder_v).view_as(x_sparse)
    for part, one in scaled:
        latent = latent + (one.factor - 1) * _excitement(part, read, encoder_v) * one.receiving[:, None, None]
    if fuses:
        gated, active = fused.gate(latent, x_sparse)
        if wanted("y_active", unasked=False):
            observe("y_active", active)
        if wanted("y_sparse", place):
            observe("y_sparse", F.relu(latent), place)
    else:
        y_sparse = observe("y_sparse", F.relu_(latent), place)
        if wanted("y_active", unasked=False):
            observe("y_active", moments(y_sparse)[..., 2:])
        gated = x_sparse * y_sparse
    gated = show("gate", gated, place)
    if dropout:
        gated = F.dropout(gated, dropout)
    out = torch.bmm(gated.view(heads, batch * length, neurons), decoder.view(heads, neurons, width)).sum(0)
    return observe("residual", norm(x + norm(out.view(batch, length, width))), place), memory


def _recall_of(sending: Tensor, rotated: Tensor, value: Tensor, memory: Tensor | None, decay: Tensor | None) -> Tensor:
    """What is read by some of the neurons alone, (H, B, T, D)."""
    return hebbian_attention(rotated * sending[:, None, None], rotated, value, memory, decay, write=False)[0]


def _excitement(part: Tensor, read: Tensor, encoder_v: Tensor) -> Tensor:
    """What a part of the read excites, (H, B, T, N), normalised as the whole read is."""
    heads, batch, length, width = read.shape
    deviation = (read.var(-1, unbiased=False, keepdim=True) + _NORM_EPSILON).sqrt()
    normed = (part - part.mean(-1, keepdim=True)) / deviation
    return torch.bmm(normed.view(heads, batch * length, width), encoder_v).view(heads, batch, length, -1)


def moments(x: Tensor) -> Tensor:
    """Of each row its mean, the mean of its squares and the part of it that is above 0, (..., 3) float32."""
    wide = x.float()
    return torch.stack((wide.mean(-1), wide.square().mean(-1), (x > 0).float().mean(-1)), dim=-1)


def recomputed(layer: Callable[..., Any], recompute: bool) -> Callable[..., Any]:
    """The layer as it is, or one that keeps nothing of its inside for the way back but computes it again."""
    if not (recompute and torch.is_grad_enabled()):
        return layer
    if observed():
        return partial(checkpoint, layer, use_reentrant=False, context_fn=looking_again)
    return partial(checkpoint, layer, use_reentrant=False)


class BDHBlock(nn.Module):
    """A BDH layer with weights of its own."""

    recompute = False
    """Trade time for memory in training; see `recomputed`."""

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        mlp_mult: int,
        dropout: float,
        decay: tuple[float, ...] = (),
        *,
        place: str = "",
    ) -> None:
        super().__init__()
        self.place = place
        n_neuron = n_embd * mlp_mult // n_head
        self.dropout, self.decay = dropout, decay
        self.encoder = nn.Parameter(torch.empty(n_head, n_embd, n_neuron).normal_(std=0.02))
        self.encoder_v = nn.Parameter(torch.empty(n_head, n_embd, n_neuron).normal_(std=0.02))
        self.decoder = nn.Parameter(torch.empty(n_head * n_neuron, n_embd).normal_(std=0.02))
        self.attn = Frequencies(n_neuron)

    def empty_memory(self, batch_size: int) -> Tensor:
        """(B, H, N, D) float32 zeros."""
        heads, width, neurons = self.encoder.shape
        return zeros(batch_size, heads, neurons, width, device=self.encoder.device)

    def forward(
        self, x: Tensor, position: Tensor, memory: Any, *, keep: bool = True, inplace: bool = False
    ) -> tuple[Tensor, Any]:
        """Hear (B, T, D) from `position` (B,) on; returns (B, T, D) and the memory after it."""
        draws = bool(self.dropout) and self.training
        single = inplace and x.shape[1] == 1 and not (draws or observed())
        if single and memory is not None and step.usable(x, memory):
            weights = prepared(self.encoder, self.encoder_v, self.decoder)
            if weights is not None and x.dtype == torch.float32:
                heard = x[:, 0].numpy().copy()
                decay = decay_rates(self.decay, x.device)
                said = step.stack(heard, weights, [memory], position, self.attn.increments(), decay)
                return said[:, None], memory
        return recomputed(bdh_layer, self.recompute)(
            x,
            self.encoder,
            self.encoder_v,
            self.decoder,
            self.attn.cos_sin(position, x.shape[1]),
            memory,
            decay=decay_rates(self.decay, x.device),
            dropout=self.dropout if self.training else 0.0,
            keep=keep,
            inplace=inplace,
            place=self.place,
        )
