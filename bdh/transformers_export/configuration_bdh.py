"""What an exported Baby Dragon Hatchling model is built from, for the transformers library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

VOCAB_SIZE = 256
"""Every model here reads and writes bytes."""


def check_decay(name: str, decay: Sequence[float], n_head: int) -> None:
    """What a head's memory keeps from one position to the next is one number a head, or none for all of it."""
    if len(decay) not in (0, n_head) or not all(0 < kept <= 1 for kept in decay):
        raise ValueError(f"{name} must have a number above 0 and at most 1 for each of the {n_head} heads, or none")


def check_shared(what: str, count: int, n_head: int, parts: int = 2) -> None:
    """Heads have equal parts, by default of whole pairs."""
    if count % (parts * n_head):
        raise ValueError(f"{n_head} heads cannot share {count} {what}{' in whole pairs' if parts == 2 else ''}")


class BdhConfig(PretrainedConfig):
    """What all kinds share."""

    kind = ""
    vocab_size = VOCAB_SIZE
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(self, use_cache: bool = True, kind: str = "", **kwargs: Any) -> None:
        if kind not in ("", type(self).kind):
            raise ValueError(f"kind is {kind!r:.40}; it must be {type(self).kind}")
        self.kind, self.use_cache = type(self).kind, use_cache
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


class BdhMemberConfig(BdhConfig):
    """What all kinds share that are not composed."""

    def __init__(self, vocab_size: int = VOCAB_SIZE, dropout: float = 0.0, **kwargs: Any) -> None:
        if vocab_size != VOCAB_SIZE:
            raise ValueError(f"vocab_size is {vocab_size!r:.40}; models here speak bytes, so it must be {VOCAB_SIZE}")
        self.vocab_size, self.dropout = vocab_size, dropout
        super().__init__(**kwargs)


class BdhStackConfig(BdhMemberConfig):
    """A stack of equal layers over bytes."""

    attribute_map = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}  # noqa: RUF012

    def __init__(self, n_layer: int = 6, n_embd: int = 256, n_head: int = 4, **kwargs: Any) -> None:
        self.n_layer, self.n_embd, self.n_head = n_layer, n_embd, n_head
        super().__init__(**kwargs)


class BdhFlatConfig(BdhStackConfig):
    """BDH as released (arXiv 2509.26507, Appendix E): one layer of weights, applied `n_layer` times.

    Args:
        mlp_internal_dim_multiplier: neurons over all heads as a multiple of the width.
        decay: what a head's memory keeps from one byte to the next, one number a head; empty means all.
    """

    model_type = "bdh_hatchery_flat"
    kind = "flat"

    def __init__(self, mlp_internal_dim_multiplier: int = 128, decay: Sequence[float] = (), **kwargs: Any) -> None:
        self.mlp_internal_dim_multiplier, self.decay = mlp_internal_dim_multiplier, list(decay)
        super().__init__(**kwargs)
        check_shared("neurons", self.n_embd * mlp_internal_dim_multiplier, self.n_head)
        check_decay("decay", decay, self.n_head)

    @property
    def n_neuron(self) -> int:
        """Neurons of one head."""
        return self.n_embd * self.mlp_internal_dim_multiplier // self.n_head


class BdhHebbianConfig(BdhStackConfig):
    """Untied q, k, v with positive rotated queries and keys and a learned Hebbian rate a layer.

    Args:
        block_size: bytes of one training sequence; the model streams past it.
        decay: as for `BdhFlatConfig`.
    """

    model_type = "bdh_hatchery_hebbian"
    kind = "hebbian"

    def __init__(self, block_size: int = 256, decay: Sequence[float] = (), **kwargs: Any) -> None:
        self.block_size, self.decay = block_size, list(decay)
        super().__init__(**kwargs)
        check_shared("channels", self.n_embd, self.n_head)
        check_decay("decay", decay, self.n_head)


class BdhTransformerConfig(BdhStackConfig):
    """The baseline that comparisons need: a causal pre-norm GELU Transformer with rotary positions.

    Args:
        block_size: bytes that attention looks back, itself included: the window that slides along a text.
    """

    model_type = "bdh_hatchery_transformer"
    kind = "transformer"

    def __init__(self, block_size: int = 512, **kwargs: Any) -> None:
        self.block_size = block_size
        super().__init__(**kwargs)
        check_shared("channels", self.n_embd, self.n_head)


class BdhHierarchicalConfig(BdhMemberConfig):
    """Patches of bytes heard by a global model, the bytes within a patch by a local one.

    Args:
        patch_size: bytes a patch.
        max_seq_len: bytes of one training sequence; Transformer blocks look back so far, BDH blocks stream past it.
        global_n_layer, global_n_embd, global_n_head, global_mlp_mult: layers over patches, their width, heads, and
            neurons over all heads as a multiple of the width; `local_` ones are of the layers over bytes.
        use_bdh_attention: BDH blocks; False is Transformer blocks.
        global_decay: what a global head's memory keeps from one patch to the next; empty means all.
    """

    model_type = "bdh_hatchery_hierarchical"
    kind = "hierarchical"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "local_n_embd",
        "num_hidden_layers": "local_n_layer",
        "num_attention_heads": "local_n_head",
    }

    def __init__(
        self,
        patch_size: int = 8,
        max_seq_len: int = 1024,
        global_n_layer: int = 6,
        global_n_embd: int = 512,
        global_n_head: int = 8,
        global_mlp_mult: int = 128,
        local_n_layer: int = 4,
        local_n_embd: int = 256,
        local_n_head: int = 4,
        local_mlp_mult: int = 128,
        use_bdh_attention: bool = True,
        global_decay: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        self.patch_size, self.max_seq_len, self.use_bdh_attention = patch_size, max_seq_len, use_bdh_attention
        self.global_n_layer, self.global_n_embd = global_n_layer, global_n_embd
        self.global_n_head, self.global_mlp_mult = global_n_head, global_mlp_mult
        self.local_n_layer, self.local_n_embd = local_n_layer, local_n_embd
        self.local_n_head, self.local_mlp_mult = local_n_head, local_mlp_mult
        self.global_decay = list(global_decay)
        super().__init__(**kwargs)
        if patch_size < 1 or max_seq_len % patch_size:
            raise ValueError(f"max_seq_len is {max_seq_len}; it must be a multiple of patch_size {patch_size}")
        for scale in ("global", "local"):
            width, heads = getattr(self, f"{scale}_n_embd"), getattr(self, f"{scale}_n_head")
            if use_bdh_attention:
                check_shared(f"{scale} neurons", width * getattr(self, f"{scale}_mlp_mult"), heads)
            else:
                check_shared(f"{scale} channels", width, heads, parts=1)
        check_decay("global_decay", global_decay, global_n_head)
        if global_decay and not use_bdh_attention:
            raise ValueError("global_decay damps a Hebbian sum; Transformer blocks have none, so leave it empty")


class BdhComposedConfig(BdhConfig):
    """Several members that hear the same bytes, behind one front.

    Args:
        method: `average`, `mixture` or `deep`.
        members: the configuration of each, by the names that the classes above have, with its `kind`.
        share_rate: `mixture` only: the part of the weight that is shared out evenly after each byte.
        n_embd: `deep` only: width of the combined hidden state.
        sources: empty; a model that was exported holds its members.
    """

    model_type = "bdh_hatchery_composed"
    kind = "composed"
    attribute_map = {"hidden_size": "n_embd"}  # noqa: RUF012

    def __init__(
        self,
        method: str = "mixture",
        members: Sequence[dict[str, Any]] = (),
        share_rate: float = 0.0,
        n_embd: int = 256,
        sources: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        if method not in ("average", "mixture", "deep"):
            raise ValueError(f"method is {method!r:.40}; it must be average, mixture or deep")
        if sources:
            raise ValueError("sources must be empty: the weights hold the members")
        self.method, self.members = method, [dict(member) for member in members]
        self.share_rate, self.n_embd, self.sources = share_rate, n_embd, list(sources)
        super().__init__(**kwargs)

    def member_configs(self) -> list[BdhConfig]:
        """The members' configurations, checked."""
        kinds = (BdhFlatConfig, BdhHebbianConfig, BdhHierarchicalConfig, BdhTransformerConfig)
        known = {one.kind: one for one in kinds}
        for member in self.members:
            if member.get("kind") not in known:
                raise ValueError(f"a member's kind is {member.get('kind')!r:.40}; it must be one of {', '.join(known)}")
        return [known[member["kind"]](**member) for member in self.members]
