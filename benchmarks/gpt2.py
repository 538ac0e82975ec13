"""A GPT-2 of the same size with its cache of keys and values, from transformers, to be timed beside ours."""

from __future__ import annotations

from typing import Any

import torch

from .report import seconds

_HEAD = 64
"""Numbers of a head, as GPT-2 has them."""


class Peer:
    """Random weights over bytes; a byte costs what it costs with trained ones."""

    def __init__(self, parameters: int, layers: int, positions: int, device: torch.device) -> None:
        """Choose the width so that the blocks have about so many parameters; raises SystemExit without the library."""
        try:
            import transformers  # noqa: PLC0415 - it is no dependency
        except ImportError:
            raise SystemExit("--gpt2 needs the package transformers: pip install transformers") from None
        self._cache: Any = transformers.DynamicCache
        width = max(1, round((parameters / (12 * layers)) ** 0.5 / _HEAD)) * _HEAD
        config = transformers.GPT2Config(
            vocab_size=256, n_positions=positions, n_embd=width, n_layer=layers, n_head=width // _HEAD
        )
        self.model: Any = transformers.GPT2LMHeadModel(config).eval().to(device)
        self.parameters = sum(weight.numel() for weight in self.model.transformer.h.parameters())

    def cache(self, context: int) -> Any:
        """What it keeps of so many bytes, here random numbers."""
        kept, config = self._cache(), self.model.config
        for layer in range(config.n_layer):
            kept.update(*torch.randn(2, 1, config.n_head, context, _HEAD, device=self.model.device), layer)
        return kept

    def cache_mb(self, context: int) -> float:
        """What that takes, in MB."""
        config = self.model.config
        return 2 * 4 * config.n_layer * config.n_embd * context / 1e6

    @torch.no_grad()
    def step_seconds(self, context: int, ids: torch.Tensor, repeats: int) -> float:
        """Seconds a byte of the last bytes of `ids` after `context` others."""
        kept = self.cache(context)
        heard = [ids[:, index % ids.shape[1], None].to(self.model.device) for index in range(-repeats, 0)]
        self.model(heard[0], past_key_values=kept, use_cache=True)
        return seconds(lambda: [self.model(byte, past_key_values=kept, use_cache=True) for byte in heard]) / repeats
