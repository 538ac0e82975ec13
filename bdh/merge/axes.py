"""Which axes of a model's tensors are neurons and which are heads: all that merging has to know of a model's kind.

Neurons live in groups. Those of a group share their rotary frequencies' tensor and are cut, joined and matched
together: a flat model is one group, a hierarchical one has a group for each block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config, FlatConfig, HierarchicalConfig
from ..errors import MergeError

ENCODER, ENCODER_V, DECODER, FREQUENCIES = "encoder", "encoder_v", "decoder", "attn.freqs"


@dataclass(frozen=True)
class Group:
    """The tensors that share neurons, and how many of these there are."""

    prefix: str
    """What stands before `encoder` in the names of its tensors: empty for a flat model."""
    n_head: int
    n_embd: int
    n_neuron: int
    """Of one head; an even number."""

    @property
    def encoders(self) -> tuple[str, str]:
        """Names of the tensors (H, D, N)."""
        return self.prefix + ENCODER, self.prefix + ENCODER_V

    @property
    def decoder(self) -> str:
        """Name of the tensor (H·N, D), rows head by head."""
        return self.prefix + DECODER

    @property
    def frequencies(self) -> str:
        """Name of the tensor (1, 1, 1, N): the same for all heads, in pairs."""
        return self.prefix + FREQUENCIES

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all four."""
        return (*self.encoders, self.decoder, self.frequencies)

    def by_head(self, decoder: Tensor) -> Tensor:
        """A decoder of this group as (H, N, D)."""
        return decoder.view(self.n_head, self.n_neuron, self.n_embd)


def groups(config: Config) -> tuple[Group, ...]:
    """The groups of neurons of a model, from input to output.

    Raises:
        MergeError: the kind has none.
    """
    if isinstance(config, FlatConfig):
        return (Group("", config.n_head, config.n_embd, config.n_neuron),)
    if isinstance(config, HierarchicalConfig) and config.use_bdh_attention:
        found = []
        for scale in ("global", "local"):
            width: int = getattr(config, f"{scale}_n_embd")
            heads: int = getattr(config, f"{scale}_n_head")
            neurons = width * getattr(config, f"{scale}_mlp_mult") // heads
            for layer in range(getattr(config, f"{scale}_n_layer")):
                found.append(Group(f"{scale}_model.layers.{layer}.", heads, width, neurons))
        return tuple(found)
    blocks = " of Transformer blocks" if isinstance(config, HierarchicalConfig) else ""
    raise MergeError(
        f"a {config.kind} model{blocks} has no neurons of the BDH kind that could be joined, cut or matched; average, "
        "slerp, task-arithmetic, ties and dare take such models of one shape, mixture, average-logits and deep any"
    )


def others(config: Config, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the tensors without an axis of neurons: what joined parents must share, in the order they stand."""
    own = {name for group in groups(config) for name in group.names}
    return tuple(name for name in tensors if name not in own)


def select_pairs(tensors: Mapping[str, Tensor], group: Group, pairs: Tensor) -> dict[str, Tensor]:
    """The tensors of a group with those of its neuron pairs that are named, in that order.

    Args:
        pairs: (H, K) int64, each head's own; their frequencies must be the same in all heads.

    Raises:
        MergeError: they are not.
    """
    frequencies = tensors[group.frequencies].flatten()[::2][pairs.to(tensors[group.frequencies].device)]
    if not bool((frequencies == frequencies[0]).all()):
        raise MergeError(
            f"the neuron pairs at one place have other frequencies in one head than in the next, and all heads share "
            f"{group.frequencies}; take the same pairs in all heads, or exchange only pairs of equal frequency"
        )
    neurons = (2 * pairs[:, :, None] + torch.tensor([0, 1], device=pairs.device)).flatten(1)
    by_head = neurons.to(tensors[group.decoder].device)
    decoder = group.by_head(tensors[group.decoder])
    selected = {
        name: torch.stack([head[:, own] for head, own in zip(tensors[name], by_head, strict=True)])
        for name in group.encoders
    }
    selected[group.decoder] = torch.cat([head[own] for head, own in zip(decoder, by_head, strict=True)])
    selected[group.frequencies] = frequencies[0].repeat_interleave(2).view(1, 1, 1, -1)
    return selected
