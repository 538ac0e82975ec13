"""Several models that hear the same bytes, behind one front, for the transformers library."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_bdh import VOCAB_SIZE, BdhComposedConfig
from .memory_bdh import BdhMembersMemory
from .modeling_bdh import (
    BdhFlatForCausalLM,
    BdhHebbianForCausalLM,
    BdhPreTrainedModel,
    BdhTransformerForCausalLM,
)
from .modeling_bdh_hierarchical import BdhHierarchicalForCausalLM

_MEMBERS = (BdhFlatForCausalLM, BdhHebbianForCausalLM, BdhHierarchicalForCausalLM, BdhTransformerForCausalLM)
MEMBERS: dict[str, Any] = {member.config_class.kind: member for member in _MEMBERS}


class BdhComposedForCausalLM(BdhPreTrainedModel):
    """Members of any kinds and sizes behind a front that averages, mixes or combines.

    `average`: softmax(combine_weight) on the members' logits.
    `mixture`: p = Σ_k w_k p_k, with w_k ∝ the probability that member k gave to the bytes so far.
    `deep`: output_proj(combiner(concatenated last hidden states)), the members frozen.
    """

    config_class = BdhComposedConfig
    memory_class = BdhMembersMemory

    def __init__(self, config: BdhComposedConfig) -> None:
        super().__init__(config)
        configs = config.member_configs()
        self.members: Any = nn.ModuleList(MEMBERS[member.kind](member) for member in configs)
        if config.method == "average":
            self.combine_weight = nn.Parameter(torch.zeros(len(configs)))
        if config.method == "deep":
            self.members.requires_grad_(False)
            self.combiner = nn.Linear(sum(member.hidden_size for member in configs), config.n_embd)
            self.output_proj = nn.Linear(config.n_embd, VOCAB_SIZE)
        self.post_init()

    def train(self, mode: bool = True) -> BdhComposedForCausalLM:
        """See `nn.Module.train`; frozen members stay as they are used, and loading thaws them."""
        super().train(mode)
        if self.config.method == "deep":
            self.members.eval().requires_grad_(False)
        return self

    def get_input_embeddings(self) -> None:
        """Each member has its own."""

    def get_output_embeddings(self) -> None:
        """Each member has its own."""

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if input_ids is None:
            raise ValueError("give input_ids: each member embeds bytes in its own way")
        return input_ids[..., None]

    def _empty_memory(self, batch_size: int, device: torch.device) -> BdhMembersMemory:
        members = [member._empty_memory(batch_size, device) for member in self.members]
        return BdhMembersMemory(members, batch_size, device)

    def _hear(self, x: Tensor, heard: Tensor | None, memory: Any, *, write: bool, inplace: bool) -> list[Tensor]:
        hidden = []
        for member, kept in zip(self.members, memory.members, strict=True):
            embedded = member.get_input_embeddings()(x[..., 0])
            hidden.append(member._hear(embedded, heard, kept, write=write, inplace=inplace)[-1])
        memory.position = memory.position + (x.shape[1] if heard is None else heard)
        if self.config.method == "deep":
            return [torch.cat(hidden, dim=-1)]
        logits = [member._read_out(one).float() for member, one in zip(self.members, hidden, strict=True)]
        if self.config.method == "mixture":
            return [self._mix(x[..., 0], torch.stack(logits, dim=1).log_softmax(-1), heard, memory)]
        weights = torch.softmax(self.combine_weight.float(), 0)
        return [(weights[:, None, None] * torch.stack(logits, dim=1)).sum(1)]

    def _mix(self, ids: Tensor, predicted: Tensor, heard: Tensor | None, memory: BdhMembersMemory) -> Tensor:
        """One byte after another: w ← w · p(byte), normalised; then w ← (1 - α) w + α / K, after each byte.

        Args:
            ids: (B, T).
            predicted: each member's log probabilities for the byte after each, (B, K, T, V).

        Returns:
            Log probabilities of the mixture (B, T, V).
        """
        batch, count, length, _ = predicted.shape
        weights, earlier = memory.log_weights, memory.predictions
        if weights is None or earlier is None:
            weights = predicted.new_full((batch, count), -math.log(count))
            earlier = predicted.new_full((batch, count, VOCAB_SIZE), -math.log(VOCAB_SIZE))
        every = torch.cat((earlier[:, :, None], predicted), dim=2)
        given = every[:, :, :-1].gather(-1, ids[:, None, :, None].expand(-1, count, -1, 1)).squeeze(-1)
        total = torch.full((batch,), length, device=ids.device) if heard is None else heard
        counts = (torch.arange(length, device=ids.device) < total[:, None])[:, None]
        if self.config.share_rate == 0:
            history = (weights[..., None] + (given * counts).cumsum(-1)).log_softmax(1)
        else:
            steps, shared = [], weights.new_full((), math.log(self.config.share_rate / count))
            for t in range(length):
                after = (weights + given[:, :, t]).log_softmax(-1)
                after = torch.logaddexp(after + math.log1p(-self.config.share_rate), shared)
                weights = torch.where(counts[..., t], after, weights)
                steps.append(weights)
            history = torch.stack(steps, 2)
        memory.log_weights = history[..., -1].clone()
        memory.predictions = torch.take_along_dim(every, total[:, None, None, None], dim=2).squeeze(2)
        return torch.logsumexp(history[..., None] + predicted, dim=1)

    def _read_out(self, hidden: Tensor) -> Tensor:
        return self.output_proj(self.combiner(hidden)) if self.config.method == "deep" else hidden
