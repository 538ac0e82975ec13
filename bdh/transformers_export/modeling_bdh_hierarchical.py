"""The hierarchical model for the transformers library: a global model over patches, a local one over their bytes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_bdh import BdhHierarchicalConfig
from .layers_bdh import BdhBlock, Recall, TransformerBlock, hebbian_attention, taken, windowed_attention
from .memory_bdh import BdhPatchMemory
from .modeling_bdh import BdhPreTrainedModel


class PatchEmbedder(nn.Module):
    """The bytes of a patch, embedded and projected to the global width."""

    def __init__(self, config: BdhHierarchicalConfig) -> None:
        super().__init__()
        self.byte_embed = nn.Embedding(config.vocab_size, config.local_n_embd)
        self.patch_proj = nn.Linear(config.patch_size * config.local_n_embd, config.global_n_embd, bias=False)
        self.ln = nn.LayerNorm(config.global_n_embd)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, patches, P, local D), bytes that are embedded already, to (B, patches, global D)."""
        return self.ln(self.patch_proj(patches.flatten(2)))


class Scale(nn.Module):
    """A stack of blocks, each with its own weights, and a norm behind it."""

    def __init__(self, config: BdhHierarchicalConfig, scale: str) -> None:
        super().__init__()
        width, heads, mlp_mult = (getattr(config, f"{scale}_{name}") for name in ("n_embd", "n_head", "mlp_mult"))
        self.hebbian = config.use_bdh_attention
        self.window = config.patch_size if scale == "local" else config.max_seq_len // config.patch_size
        self.decay = () if scale == "local" else config.global_decay
        self.layers = nn.ModuleList(
            BdhBlock(width, heads, mlp_mult, config.dropout)
            if self.hebbian
            else TransformerBlock(width, heads, config.dropout)
            for _ in range(getattr(config, f"{scale}_n_layer"))
        )
        self.ln_out = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        memories: list[Tensor | None],
        *,
        heard: Tensor | None = None,
        write: bool = False,
        inplace: bool = False,
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Hear (B, T, D) from `position` (B or 1,) on; what each layer is given, last what comes out, and memories."""
        recall: Recall
        if self.hebbian:
            decay = torch.tensor(self.decay, device=x.device) if self.decay else None
            recall = partial(hebbian_attention, decay=decay, heard=heard, write=write, inplace=inplace)
        else:
            recall = partial(windowed_attention, window=self.window, position=position, heard=heard, write=write)
        hidden, written = [x], []
        for layer, memory in zip(self.layers, memories, strict=True):
            # Transformer blocks are told no positions.
            x, memory = layer(x, position if self.hebbian else None, memory, recall)
            hidden.append(x)
            written.append(memory)
        hidden[-1] = self.ln_out(x)
        return hidden, written


class LocalModel(Scale):
    """The local scale, with what it adds to the byte embeddings."""

    def __init__(self, config: BdhHierarchicalConfig) -> None:
        super().__init__(config, "local")
        self.global_proj = nn.Linear(config.global_n_embd, config.local_n_embd, bias=False)
        self.start_embed = nn.Parameter(torch.empty(1, 1, config.local_n_embd))
        self.pos_embed = nn.Embedding(config.patch_size, config.local_n_embd)

    def hear(
        self, embedded: Tensor, context: Tensor, position: Tensor, memories: list[Tensor | None], **options: Any
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Hear embedded bytes of one patch each, (B, T, D), from its byte `position` (B or 1,) on, as `forward`.

        Args:
            context: (B, D), what the global model says to the patch.
        """
        places = position[:, None] + torch.arange(embedded.shape[1], device=embedded.device)
        # Padding may stand behind the patch.
        placed = self.pos_embed(places.clamp(max=self.pos_embed.num_embeddings - 1))
        return self(embedded + context[:, None].to(embedded.dtype) + placed, position, memories, **options)


class BdhHierarchicalForCausalLM(BdhPreTrainedModel):
    """A byte is predicted from its patch so far and from what the patches before it left behind.

    Streams of a batch may stand at different places in their patches: a chunk is cut into the rest of each stream's
    open patch and the patches after it.
    """

    config_class = BdhHierarchicalConfig
    memory_class = BdhPatchMemory

    def __init__(self, config: BdhHierarchicalConfig) -> None:
        super().__init__(config)
        self.patch_embedder = PatchEmbedder(config)
        self.global_model = Scale(config, "global")
        self.local_model = LocalModel(config)
        self.lm_head = nn.Linear(config.local_n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The bytes' embedding."""
        return self.patch_embedder.byte_embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the bytes' embedding."""
        self.patch_embedder.byte_embed = value

    def get_output_embeddings(self) -> nn.Linear:
        """The read-out."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the read-out."""
        self.lm_head = value

    def _bytes_a_position(self) -> int:
        return self.config.patch_size

    def _empty_memory(self, batch_size: int, device: torch.device) -> BdhPatchMemory:
        return BdhPatchMemory(self.config.global_n_layer + self.config.local_n_layer, batch_size, device)

    def _read_out(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def _hear(self, x: Tensor, heard: Tensor | None, memory: Any, *, write: bool, inplace: bool) -> list[Tensor]:
        size, (batch, length, width) = self.config.patch_size, x.shape
        if heard is None:
            heard = memory.position.new_full((batch,), length)
        # Divided on the CPU, because MPS divides large integers as floats.
        before = (memory.position.cpu() // size).to(x.device)
        offset = memory.position - before * size
        room = size - offset
        # Without writing, a patch that the last byte completes need not be heard as a whole.
        closed = (offset + heard - int(not write)).clamp(min=0) // size
        count = int(closed.max())

        # The open patch and what is new, as patches (B, count + 1, P, D) in a row.
        slot = torch.arange((count + 1) * size, device=x.device)
        source = torch.where(slot < offset[:, None], slot, slot - offset[:, None] + size)
        old = x.new_zeros(batch, size, width) if memory.patch is None else memory.patch
        patches = taken(torch.cat((old, x), dim=1), source.clamp(max=size + length - 1))

        contexts = self._contexts(patches[:, : count * size], before, closed, memory, write=write, inplace=inplace)
        layers, local = self.config.global_n_layer, self.local_model

        # What is left of each stream's open patch.
        stays = closed == 0
        rest = torch.minimum(room, heard)
        first = max(1, int(rest.max()))
        hidden, kept = local.hear(
            x[:, :first],
            contexts[:, 0],
            offset,
            memory.layers[layers:],
            heard=rest,
            write=write and bool(stays.any()),
            inplace=inplace,
        )
        # The patches after it, up to the last byte.
        if further := max(0, int(((offset + heard - 1) // size).max())):
            whole = patches[:, size : (further + 1) * size].reshape(batch * further, size, width)
            nothing: list[Tensor | None] = [None] * self.config.local_n_layer
            said, _ = local.hear(whole, contexts[:, 1 : further + 1].flatten(0, 1), closed.new_zeros(1), nothing)
            index = torch.arange(length, device=x.device)
            index = torch.where(index < room[:, None], index, index - room[:, None] + first)
            index = index.clamp(max=first + further * size - 1)
            hidden = [
                taken(torch.cat((one, other.view(batch, -1, width)), dim=1), index)
                for one, other in zip(hidden, said, strict=True)
            ]
        if write:
            opened = offset + heard - closed * size
            patch = taken(patches, closed[:, None] * size + slot[:size])
            context = taken(contexts, closed[:, None])[:, 0]
            if count:
                kept = self._reopened(kept, patch, context, opened, stays)
            memory.layers[layers:] = kept
            memory.patch = torch.where((slot[:size] < opened[:, None])[..., None], patch, 0)
            memory.context = context
        memory.position = memory.position + heard
        return hidden

    def _contexts(
        self, patches: Tensor, before: Tensor, closed: Tensor, memory: BdhPatchMemory, *, write: bool, inplace: bool
    ) -> Tensor:
        """Let the global model hear full patches; what it says to each of them and to the one after them.

        Args:
            patches: (B, patches · P, local D).
            before: (B,), patches that were full before.
            closed: (B,), how many of them are full, which come first.

        Returns:
            (B, patches + 1, local D) float32.
        """
        layers = self.config.global_n_layer
        context = self.local_model.start_embed[:, 0].float().expand(len(closed), -1)
        if memory.context is not None:
            context = torch.where((before == 0)[:, None], context, memory.context)
        if not patches.shape[1]:
            return context[:, None]
        hidden, memory.layers[:layers] = self.global_model(
            self.patch_embedder(patches.unflatten(1, (-1, self.config.patch_size))),
            before,
            memory.layers[:layers],
            heard=closed,
            write=write,
            inplace=inplace,
        )
        return torch.cat((context[:, None], self.local_model.global_proj(hidden[-1]).float()), dim=1)

    def _reopened(
        self, kept: list[Tensor | None], patch: Tensor, context: Tensor, opened: Tensor, stays: Tensor
    ) -> list[Tensor | None]:
        """Memories of the open patch, where some streams opened a new one and some stay in theirs.

        Args:
            kept: memories of those that stay.
            patch: (B, P, D) the open patches, and `context` (B, D) what the global model says to them.
            opened: (B,) bytes in them.
        """
        fresh: list[Tensor | None] = [None] * len(kept)
        if begun := int(opened.masked_fill(stays, 0).max()):
            begin = opened.new_zeros(1)
            _, fresh = self.local_model.hear(
                patch[:, :begun], context, begin, fresh, heard=opened.clamp(max=begun), write=True
            )
        if not stays.any():
            return fresh
        merged: list[Tensor | None] = []
        for old, new in zip(kept, fresh, strict=True):
            assert old is not None
            which = stays.view(-1, *[1] * (old.dim() - 1))
            merged.append(torch.where(which, old, 0 if new is None else new))
        return merged
