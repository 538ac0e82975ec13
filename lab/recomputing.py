"""Forms that the constant memory is held against: hearing everything again for each byte, and a cache that grows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bdh.errors import DataError
from bdh.models.flat import Flat
from bdh.models.layer import decay_rates, norm
from bdh.models.transformer import Transformer
from bdh.ops import reference, rope

_NARROW = 4
"""Bytes of a float32."""


@torch.no_grad()
def last_logits(model: Flat, ids: Tensor) -> Tensor:
    """Logits (V,) of the byte after `ids` (T,), by the released form: all scores of all pairs of bytes, again.

    read_t = Σ_(s<t) λ^(t-1-s) (q_t · k_s) x_s, the same sums that the memory holds, in T² products instead of T.
    """
    length = len(ids)
    heads, _, neurons = model.encoder.shape
    cos, sin = model.attn.cos_sin(torch.zeros(1, dtype=torch.int64), length)
    decay = decay_rates(model.config.decay, ids.device)
    x = norm(model.embed(ids.long()))
    for _ in range(model.config.n_layer):
        x_sparse = F.relu(x @ model.encoder)
        rotated = reference.rotate_pairs(x_sparse, cos, sin)
        scores = (rotated @ rotated.mT).tril_(-1)
        if decay is not None:
            place = torch.arange(length)
            distance = (place[:, None] - place - 1).clamp_(min=0).float()
            for head, rate in enumerate(decay.tolist()):
                scores[head] *= rate**distance
        y_sparse = F.relu(norm(scores @ x) @ model.encoder_v)
        gated = (x_sparse * y_sparse).transpose(0, 1).reshape(length, heads * neurons)
        x = norm(x + norm(gated @ model.decoder))
    return x[-1] @ model.lm_head


def recomputing_bytes(model: Flat, length: int) -> int:
    """Bytes of the largest tensors that `last_logits` holds at once: scores and three activations of all neurons."""
    heads, _, neurons = model.encoder.shape
    return _NARROW * heads * length * (length + 3 * neurons)


class GrowingCache:
    """A Transformer that keeps the keys and values of everything it heard."""

    def __init__(self, model: Transformer, capacity: int) -> None:
        """Make room for `capacity` bytes, so that growing costs no copies."""
        self.model, self.length = model, 0
        config = model.config
        shape = (config.n_layer, 2, 1, config.n_head, capacity, config.n_embd // config.n_head)
        self._cache = torch.empty(shape)

    @staticmethod
    def bytes_at(model: Transformer, length: int) -> int:
        """Bytes that the cache takes after `length` bytes."""
        return _NARROW * 2 * model.config.n_layer * model.config.n_embd * length

    def fill(self, length: int, seed: int = 0) -> None:
        """Set the position: random keys and values in place of what so many bytes would leave."""
        if length >= self._cache.shape[4]:
            raise DataError(f"the cache has room for {self._cache.shape[4]:,} bytes; {length:,} leave none to go on")
        self._cache[..., :length, :].normal_(generator=torch.Generator().manual_seed(seed))
        self.length = length

    @torch.no_grad()
    def step(self, byte: int) -> Tensor:
        """Hear one byte; logits (V,) of the next."""
        config, here = self.model.config, self.length
        x = self.model.tok_emb(torch.tensor([[byte]]))
        place = torch.full((1,), here, dtype=torch.int64)
        for block, cache in zip(self.model.blocks, self._cache, strict=True):
            qkv = block.qkv(block.ln1(x)).view(1, 1, 3, config.n_head, -1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            cos, sin = rope.cos_sin(place, 1, rope.radian_increments(query.shape[-1], block.rope_theta, x.device))
            query, key = (rope.rotate_halves(t, cos[:, None], sin[:, None]) for t in (query, key))
            cache[0, :, :, here : here + 1], cache[1, :, :, here : here + 1] = key, value
            seen = cache[:, :, :, : here + 1]
            attended = F.scaled_dot_product_attention(query, seen[0], seen[1])
            x = x + block.proj(attended.transpose(1, 2).reshape(1, 1, config.n_embd))
            x = x + block.mlp(block.ln2(x))
        self.length += 1
        return self.model.read_out(self.model.ln_f(x))[0, 0]
