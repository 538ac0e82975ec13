"""What an exported Baby Dragon Hatchling model is built from, for the transformers library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

VOCAB_SIZE = 256
"""Every model here reads and writes bytes."""


class BdhConfig(PretrainedConfig):
    """What both kinds share.

    Args:
        decay: what a head's memory keeps from one byte to the next, one number a head; empty means all.
    """

    kind = ""
    attribute_map = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}  # noqa: RUF012
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        n_layer: int = 6,
        n_embd: int = 256,
        n_head: int = 4,
        vocab_size: int = VOCAB_SIZE,
        dropout: float = 0.0,
        decay: Sequence[float] = (),
        use_cache: bool = True,
        kind: str = "",
        **kwargs: Any,
    ) -> None:
        if kind not in ("", type(self).kind):
            raise ValueError(f"kind is {kind!r:.40}; it must be {type(self).kind}")
        if vocab_size != VOCAB_SIZE:
            raise ValueError(f"vocab_size is {vocab_size!r:.40}; models here speak bytes, so it must be {VOCAB_SIZE}")
        if len(decay) not in (0, n_head) or not all(0 < kept <= 1 for kept in decay):
            raise ValueError(f"decay must have a number above 0 and at most 1 for each of the {n_head} heads, or none")
        self.kind = type(self).kind
        self.n_layer, self.n_embd, self.n_head = n_layer, n_embd, n_head
        self.vocab_size, self.dropout, self.decay = vocab_size, dropout, list(decay)
        self.use_cache = use_cache
        if self._shared() % (2 * n_head):
            raise ValueError(f"{n_head} heads cannot share {self._shared()} neurons in whole pairs")
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    def _shared(self) -> int:
        """Rows of the memories of all heads."""
        return self.n_embd

    @property
    def n_neuron(self) -> int:
        """Rows of one head's memory."""
        return self._shared() // self.n_head


class BdhFlatConfig(BdhConfig):
    """BDH as released (arXiv 2509.26507, Appendix E): one layer of weights, applied `n_layer` times.

    Args:
        mlp_internal_dim_multiplier: neurons over all heads as a multiple of the width.
    """

    model_type = "bdh_hatchery_flat"
    kind = "flat"

    def __init__(self, mlp_internal_dim_multiplier: int = 128, **kwargs: Any) -> None:
        self.mlp_internal_dim_multiplier = mlp_internal_dim_multiplier
        super().__init__(**kwargs)

    def _shared(self) -> int:
        return self.n_embd * self.mlp_internal_dim_multiplier


class BdhHebbianConfig(BdhConfig):
    """Untied q, k, v with positive rotated queries and keys and a learned Hebbian rate a layer.

    Args:
        block_size: bytes of one training sequence; the model streams past it.
    """

    model_type = "bdh_hatchery_hebbian"
    kind = "hebbian"

    def __init__(self, block_size: int = 256, **kwargs: Any) -> None:
        self.block_size = block_size
        super().__init__(**kwargs)
