"""What a model is built from: one frozen dataclass a kind, checked before anything is allocated.

Field names are upstream's, so that a configuration reads against the paper and the released code.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from .errors import ConfigError

VOCAB_SIZE = 256
"""Every model here reads and writes bytes."""

_PINNED = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}@[0-9a-f]{40}(:[\w.-]{1,96}(/[\w.-]{1,96}){0,8})?", re.ASCII)
_BOUNDS: dict[str, tuple[float, float]] = {
    "n_layer": (1, 256),
    "n_embd": (2, 16384),
    "n_head": (1, 256),
    "mlp_internal_dim_multiplier": (1, 65536),
    "mlp_mult": (1, 65536),
    "patch_size": (1, 256),
    "max_seq_len": (1, 2**24),
    "block_size": (1, 2**20),
    "dropout": (0.0, 0.95),
    "share_rate": (0.0, 0.5),
}


def _check(config: Any, *fields: str) -> None:
    """Check the named fields of `config` for type and bound; a scale prefix is ignored for the bound."""
    for field in fields:
        value = getattr(config, field)
        low, high = _BOUNDS[field.removeprefix("global_").removeprefix("local_")]
        whole = isinstance(low, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"{field} is {_short(value)}; it must be {kind} from {low} to {high}")
        if not low <= value <= high:
            raise ConfigError(f"{field} is {_short(value)}; it must be from {low} to {high}")


def _check_vocab(config: Any) -> None:
    given = config.vocab_size
    if not isinstance(given, int) or given != VOCAB_SIZE:
        raise ConfigError(f"vocab_size is {_short(given)}; models here speak bytes, so it must be {VOCAB_SIZE}")


def _check_neurons(field: str, n_embd: int, multiplier: int, n_head: int) -> None:
    """Check that the neurons divide into heads of whole rotation pairs."""
    total = n_embd * multiplier
    if total % n_head or (total // n_head) % 2:
        raise ConfigError(
            f"{field} {multiplier} × width {n_embd} gives {total} neurons, which {n_head} heads cannot share in "
            f"whole pairs; make {field} × width divisible by {2 * n_head}"
        )


def _check_decay(field: str, decay: tuple[float, ...], n_head: int) -> None:
    if not isinstance(decay, tuple):
        raise ConfigError(f"{field} is {_short(decay)}; it must be a list of {n_head} numbers, one a head, or empty")
    if decay and len(decay) != n_head:
        raise ConfigError(f"{field} has {len(decay)} numbers; it must have one for each of the {n_head} heads, or none")
    for value in decay:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value <= 1.0:
            raise ConfigError(f"{field} holds {_short(value)}; each must be above 0 and at most 1 (1 means no damping)")


@dataclass(frozen=True, kw_only=True)
class FlatConfig:
    """BDH as released (arXiv 2509.26507, Appendix E): one set of weights, used by every layer."""

    kind: ClassVar[str] = "flat"

    n_layer: int = 6
    """How often the shared layer is applied; 1 to 256."""
    n_embd: int = 256
    """Width D of the space between layers; 2 to 16,384."""
    n_head: int = 4
    """Heads; each has `n_neuron` neurons of its own."""
    mlp_internal_dim_multiplier: int = 128
    """Neurons over all heads, as a multiple of the width."""
    vocab_size: int = VOCAB_SIZE
    """Always 256."""
    dropout: float = 0.1
    """Probability that training drops a gated neuron; 0 to 0.95."""
    decay: tuple[float, ...] = ()
    """Damping of the Hebbian sum: what a head's memory keeps from one byte to the next, above 0 and at
    most 1, one number a head. Empty means none: upstream's function."""

    def __post_init__(self) -> None:
        _check(self, "n_layer", "n_embd", "n_head", "mlp_internal_dim_multiplier", "dropout")
        _check_vocab(self)
        _check_neurons("mlp_internal_dim_multiplier", self.n_embd, self.mlp_internal_dim_multiplier, self.n_head)
        _check_decay("decay", self.decay, self.n_head)

    @property
    def n_neuron(self) -> int:
        """Neurons N of one head."""
        return self.mlp_internal_dim_multiplier * self.n_embd // self.n_head


@dataclass(frozen=True, kw_only=True)
class HierarchicalConfig:
    """Patches of bytes read by a global model, bytes within a patch by a local one (newsbubbles/bdh)."""

    kind: ClassVar[str] = "hierarchical"

    patch_size: int = 8
    """Bytes a patch; 1 to 256."""
    max_seq_len: int = 1024
    """Bytes of one training sequence, a multiple of `patch_size`. BDH blocks stream past it;
    Transformer blocks attend to this many bytes back."""
    global_n_layer: int = 6
    """Layers over patches, each with its own weights."""
    global_n_embd: int = 512
    """Width of the global model."""
    global_n_head: int = 8
    """Heads of the global model."""
    global_mlp_mult: int = 128
    """Global neurons over all heads, as a multiple of the global width."""
    local_n_layer: int = 4
    """Layers over the bytes of one patch, each with its own weights."""
    local_n_embd: int = 256
    """Width of the local model."""
    local_n_head: int = 4
    """Heads of the local model."""
    local_mlp_mult: int = 128
    """Local neurons over all heads, as a multiple of the local width."""
    vocab_size: int = VOCAB_SIZE
    """Always 256."""
    dropout: float = 0.1
    """Probability that training drops a gated neuron; 0 to 0.95."""
    use_bdh_attention: bool = True
    """BDH blocks; False gives ordinary pre-norm Transformer blocks."""
    global_decay: tuple[float, ...] = ()
    """Damping of the global Hebbian sum a patch, one number a global head; empty means none."""

    def __post_init__(self) -> None:
        _check(self, "patch_size", "max_seq_len", "dropout")
        for scale in ("global", "local"):
            _check(self, f"{scale}_n_layer", f"{scale}_n_embd", f"{scale}_n_head", f"{scale}_mlp_mult")
            width, heads = getattr(self, f"{scale}_n_embd"), getattr(self, f"{scale}_n_head")
            if self.use_bdh_attention:
                _check_neurons(f"{scale}_mlp_mult", width, getattr(self, f"{scale}_mlp_mult"), heads)
            elif width % heads:
                raise ConfigError(f"{scale}_n_embd is {width}; Transformer blocks need a multiple of {heads} heads")
        _check_vocab(self)
        if not isinstance(self.use_bdh_attention, bool):
            raise ConfigError(f"use_bdh_attention is {_short(self.use_bdh_attention)}; it must be true or false")
        if self.max_seq_len % self.patch_size:
            raise ConfigError(
                f"max_seq_len is {self.max_seq_len}; it must be a multiple of patch_size {self.patch_size}"
            )
        _check_decay("global_decay", self.global_decay, self.global_n_head)
        if self.global_decay and not self.use_bdh_attention:
            raise ConfigError("global_decay damps a Hebbian sum; Transformer blocks have none, so leave it empty")


@dataclass(frozen=True, kw_only=True)
class HebbianConfig:
    """Untied q, k, v with positive rotated queries and keys and a learned Hebbian rate a layer."""

    kind: ClassVar[str] = "hebbian"

    n_layer: int = 6
    """Blocks, each with its own weights."""
    n_head: int = 4
    """Heads; each has a memory of (n_embd / n_head) squared numbers."""
    n_embd: int = 256
    """Width; an even multiple of `n_head`."""
    block_size: int = 256
    """Bytes of one training sequence; the model streams past it."""
    vocab_size: int = VOCAB_SIZE
    """Always 256."""
    dropout: float = 0.0
    """Probability that training drops a value; 0 to 0.95."""
    decay: tuple[float, ...] = ()
    """Damping of the Hebbian sum a byte, one number a head; empty means none."""

    def __post_init__(self) -> None:
        _check(self, "n_layer", "n_head", "n_embd", "block_size", "dropout")
        _check_vocab(self)
        if self.n_embd % (2 * self.n_head):
            raise ConfigError(f"n_embd is {self.n_embd}; it must be a multiple of {2 * self.n_head} (two a head)")
        _check_decay("decay", self.decay, self.n_head)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A causal pre-norm GELU Transformer with rotary positions: the baseline of comparisons."""

    kind: ClassVar[str] = "transformer"

    n_layer: int = 6
    """Blocks, each with its own weights."""
    n_head: int = 4
    """Attention heads."""
    n_embd: int = 256
    """Width; an even multiple of `n_head`."""
    block_size: int = 512
    """Bytes that attention looks back, itself included: the window that slides along a stream."""
    vocab_size: int = VOCAB_SIZE
    """Always 256."""
    dropout: float = 0.0
    """Probability that training drops a value; 0 to 0.95."""

    def __post_init__(self) -> None:
        _check(self, "n_layer", "n_head", "n_embd", "block_size", "dropout")
        _check_vocab(self)
        if self.n_embd % (2 * self.n_head):
            raise ConfigError(f"n_embd is {self.n_embd}; it must be a multiple of {2 * self.n_head} (two a head)")


@dataclass(frozen=True, kw_only=True)
class ComposedConfig:
    """Several members that hear the same bytes, behind one front."""

    kind: ClassVar[str] = "composed"
    METHODS: ClassVar[tuple[str, ...]] = ("average", "mixture", "deep")

    method: str = "mixture"
    """`average`: learned weights on the logits. `mixture`: Bayesian weights from the bytes so far, no
    training. `deep`: a trained combiner over the members' last hidden states."""
    members: tuple[MemberConfig, ...] = ()
    """Two to 16 members of any other kind."""
    share_rate: float = 0.0
    """`mixture` only: the part of the weight that is shared out evenly after each byte (fixed share,
    Herbster and Warmuth 1998); 0 is plain Bayes, 0 to 0.5."""
    n_embd: int = 256
    """`deep` only: width of the combined hidden state."""
    sources: tuple[str, ...] = ()
    """In a checkpoint that refers to its members instead of holding them: where each lies on the Hub, as
    `user/repo@commit` or `user/repo@commit:subfolder`. A loaded model holds them, so there it is empty."""

    def __post_init__(self) -> None:
        if self.method not in self.METHODS:
            raise ConfigError(f"method is {_short(self.method)}; it must be one of {', '.join(self.METHODS)}")
        if not isinstance(self.members, tuple) or not 2 <= len(self.members) <= 16:
            raise ConfigError("members must list 2 to 16 model configurations")
        for member in self.members:
            if not isinstance(member, MEMBER_CONFIGS):
                raise ConfigError(
                    f"a member is {_short(getattr(member, 'kind', member))}; it must be one of "
                    f"{', '.join(c.kind for c in MEMBER_CONFIGS)}"
                )
        _check(self, "share_rate", "n_embd")
        if not isinstance(self.sources, tuple) or len(self.sources) not in (0, len(self.members)):
            raise ConfigError(
                f"sources must name a place on the Hub for each of the {len(self.members)} members, or none"
            )
        for source in self.sources:
            if not isinstance(source, str) or not _PINNED.fullmatch(source):
                raise ConfigError(f"a source is {_short(source)}; it must be user/repo@commit, the commit in full")


MemberConfig: TypeAlias = FlatConfig | HierarchicalConfig | HebbianConfig | TransformerConfig
Config: TypeAlias = MemberConfig | ComposedConfig

MEMBER_CONFIGS = (FlatConfig, HierarchicalConfig, HebbianConfig, TransformerConfig)
CONFIGS: dict[str, type[Config]] = {c.kind: c for c in (*MEMBER_CONFIGS, ComposedConfig)}


def config_to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values, `kind` first."""
    fields: dict[str, Any] = {"kind": config.kind}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "members":
            value = [config_to_dict(member) for member in value]
        fields[field.name] = list(value) if isinstance(value, tuple) else value
    return fields


def config_from_dict(fields: dict[str, Any], *, nested: bool = False) -> Config:
    """Read what `config_to_dict` wrote.

    Raises:
        ConfigError: an unknown kind or key, or a value of the wrong type or outside its bound.
    """
    if not isinstance(fields, dict):
        raise ConfigError(f"a configuration is {type(fields).__name__}; it must be a JSON object")
    fields = dict(fields)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in CONFIGS or (nested and kind == ComposedConfig.kind):
        allowed = [name for name in CONFIGS if not (nested and name == ComposedConfig.kind)]
        raise ConfigError(f"kind is {_short(kind)}; it must be one of {', '.join(allowed)}")
    cls = CONFIGS[kind]
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := [name for name in fields if name not in known]:
        raise ConfigError(f"a {kind} configuration does not know {_short(unknown[0])}; it knows {', '.join(known)}")
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}; it must be finite")
        if isinstance(value, list):
            if len(value) > 256:
                raise ConfigError(f"{name} has {len(value)} entries; at most 256 are allowed")
            fields[name] = tuple(config_from_dict(m, nested=True) for m in value) if name == "members" else tuple(value)
    return cls(**fields)


def _short(value: object, limit: int = 80) -> str:
    """The value as it may stand in a message, however long it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of over 4300 digits; lists within lists without end
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= limit else text[: limit - 1] + "…"
