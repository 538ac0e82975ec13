"""Baby Dragon Hatchling (BDH) for the transformers library: bytes in, bytes out, a memory that never grows.

A byte is heard in the same time and memory however many came before: what is handed from call to call as
`past_key_values` is one sum of outer products a head and layer, or in softmax attention a window of fixed length.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_bdh import BdhConfig, BdhFlatConfig, BdhHebbianConfig, BdhStackConfig, BdhTransformerConfig
from .layers_bdh import (
    Frequencies,
    HebbianBlock,
    Phases,
    Recall,
    TransformerBlock,
    bdh_layer,
    cos_sin,
    hebbian_attention,
    norm,
    radian_increments,
    taken,
    windowed_attention,
)
from .memory_bdh import BdhMemory

_CHUNK, _CHUNK_GRAD = 128, 512
"""Positions heard at once, without gradients and with them: scores cost its square."""


class BdhPreTrainedModel(PreTrainedModel, GenerationMixin):
    """What all kinds share: bytes are heard a chunk at a time, and the memory goes from chunk to chunk."""

    config_class: type[BdhConfig] = BdhConfig
    memory_class: type[BdhMemory] = BdhMemory
    base_model_prefix = ""
    main_input_name = "input_ids"
    _is_stateful = True
    _skip_keys_device_placement = "past_key_values"
    _no_split_modules = ["BdhBlock", "HebbianBlock", "TransformerBlock"]  # noqa: RUF012

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The memory is made by `forward`."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Frequencies):
            with torch.no_grad():
                module.freqs.copy_(module.released(module.freqs.numel()).view_as(module.freqs))
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("bias", "combine_weight"):
                nn.init.constant_(parameter, 0.0)
            elif isinstance(module, nn.LayerNorm):
                nn.init.constant_(parameter, 1.0)
            elif name == "eta":
                nn.init.constant_(parameter, 0.1)
            else:
                nn.init.normal_(parameter, std=0.02)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: BdhMemory | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What has not been heard yet of all that was given.

        After a memory, either all bytes are given or only the new ones; then the mask is as long as all together.
        """
        told: dict[str, Any] = {"past_key_values": past_key_values, "use_cache": kwargs.get("use_cache")}
        told |= {name: kwargs[name] for name in ("logits_to_keep", "output_hidden_states") if name in kwargs}
        if past_key_values is None and inputs_embeds is not None:
            return told | {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        if past_key_values is not None:
            heard, given = past_key_values.get_seq_length(), input_ids.shape[1]
            if "next_sequence_length" in kwargs:  # from transformers 5 on
                fresh = given if kwargs["next_sequence_length"] is None else kwargs["next_sequence_length"]
            else:
                fresh = (given if attention_mask is None else attention_mask.shape[1]) - heard
            if not 0 < fresh <= given:
                raise ValueError(
                    f"the memory has heard {heard} positions, and {given} were given in all: give input_ids from the "
                    "beginning, or an attention_mask for the old and the new ones together"
                )
            input_ids = input_ids[:, -fresh:]
        return told | {"input_ids": input_ids, "attention_mask": attention_mask}

    @staticmethod
    def _reorder_cache(past_key_values: BdhMemory, beam_idx: Tensor) -> BdhMemory:
        past_key_values.reorder_cache(beam_idx)
        return past_key_values

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: BdhMemory | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Hear bytes and predict the byte after each.

        Args:
            input_ids: (B, T) bytes.
            attention_mask: (B, T), or longer, of which the last T count; 0 is padding, anywhere, which is not heard.
            past_key_values: the memory before these bytes.
            labels: (B, T), -100 where there is no loss; the byte after position t is `labels[:, t + 1]`.
            logits_to_keep: for so many last positions; 0 is all.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if past_key_values is not None and type(past_key_values) is not self.memory_class:
            raise ValueError(f"past_key_values is a {type(past_key_values).__name__}; a BDH model remembers in its own")
        embedded = self._embed(input_ids, inputs_embeds)
        batch, length = embedded.shape[:2]
        heard = place = None
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < length:
                raise ValueError(
                    f"attention_mask is {tuple(attention_mask.shape)}; it must be ({batch}, {length}) or longer"
                )
            mask = attention_mask[:, -length:].to(embedded.device).bool()
            if not mask.all():
                # Padding goes behind what is heard, where nothing sees it.
                heard = mask.sum(1)
                order = (~mask).int().argsort(dim=1, stable=True)
                embedded = taken(embedded, order[:, : max(1, int(heard.max()))])
                place = (mask.cumsum(1) - 1).clamp(min=0)
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        memory = past_key_values
        if memory is None:
            memory = self._empty_memory(batch, embedded.device)
        if memory.position.shape[0] != batch:
            raise ValueError(f"{batch} streams were given with the memory of {memory.position.shape[0]}")
        if not use_cache:
            memory = copy.copy(memory)
        size = (_CHUNK_GRAD if torch.is_grad_enabled() else _CHUNK) * self._bytes_a_position()
        said = []
        for start in range(0, embedded.shape[1], size):
            part = None if heard is None else (heard - start).clamp(0, size)
            last = start + size >= embedded.shape[1]
            write = use_cache or not last
            # What was given to be read alone must not be written into.
            inplace = not torch.is_grad_enabled() and (use_cache or past_key_values is None)
            given = self._hear(embedded[:, start : start + size], part, memory, write=write, inplace=inplace)
            said.append(given if states else given[-1:])
        memory.length += length
        hidden = said[0] if len(said) == 1 else [torch.cat(parts, dim=1) for parts in zip(*said, strict=True)]
        if place is not None:
            hidden = [taken(one, place) for one in hidden]
        logits = self._read_out(hidden[-1][:, -logits_to_keep:] if logits_to_keep else hidden[-1])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=memory if use_cache else None,
            hidden_states=tuple(hidden) if states else None,
        )
        return output if return_dict is not False else output.to_tuple()

    def _bytes_a_position(self) -> int:
        """Bytes that one position of the longest attention stands for."""
        return 1

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """What `_hear` hears, (B, T, D)."""
        return self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds

    def _empty_memory(self, batch_size: int, device: torch.device) -> BdhMemory:
        """The memory of streams that have heard nothing."""
        return self.memory_class(self.config.n_layer, batch_size, device)

    def _hear(self, x: Tensor, heard: Tensor | None, memory: Any, *, write: bool, inplace: bool) -> list[Tensor]:
        """Hear a chunk (B, T, D) and write what is to be remembered into `memory`.

        Args:
            heard: (B,), how many bytes of the chunk are heard, which come first; None is all.
            write, inplace: as in `hebbian_attention`.

        Returns:
            What each layer is given, and last what is read out.
        """
        raise NotImplementedError

    def _read_out(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        raise NotImplementedError


class BdhStackModel(BdhPreTrainedModel):
    """A stack of equal layers over bytes, each with a memory of its own."""

    config_class: type[BdhConfig] = BdhStackConfig

    def _hear(self, x: Tensor, heard: Tensor | None, memory: Any, *, write: bool, inplace: bool) -> list[Tensor]:
        phases = cos_sin(memory.position, x.shape[1], self._increments(x.device))
        recall = self._recall(memory.position, heard, write, inplace)
        hidden = [self._begin(x)]
        for index, kept in enumerate(memory.layers):
            x, memory.layers[index] = self._layer(index, hidden[-1], phases, kept, recall)
            hidden.append(x)
        hidden[-1] = self._end(hidden[-1])
        memory.position = memory.position + (x.shape[1] if heard is None else heard)
        return hidden

    def _recall(self, position: Tensor, heard: Tensor | None, write: bool, inplace: bool) -> Recall:
        decay = torch.tensor(self.config.decay, device=position.device) if self.config.decay else None
        return partial(hebbian_attention, decay=decay, heard=heard, write=write, inplace=inplace)

    def _begin(self, x: Tensor) -> Tensor:
        return x

    def _end(self, x: Tensor) -> Tensor:
        return x

    def _increments(self, device: torch.device) -> Tensor:
        """Fixed-point turns of each pair a byte."""
        return radian_increments(self.config.n_embd // self.config.n_head, device)

    def _layer(
        self, index: int, x: Tensor, phases: Phases, memory: Tensor | None, recall: Recall
    ) -> tuple[Tensor, Tensor | None]:
        return self.blocks[index](x, phases, memory, recall)


class BdhFlatForCausalLM(BdhStackModel):
    """BDH as released: one layer of weights applied `n_layer` times, a Hebbian memory for each time."""

    config_class = BdhFlatConfig

    def __init__(self, config: BdhFlatConfig) -> None:
        super().__init__(config)
        heads, width, neurons = config.n_head, config.n_embd, config.n_neuron
        self.embed = nn.Embedding(config.vocab_size, width)
        self.encoder = nn.Parameter(torch.empty(heads, width, neurons))
        self.encoder_v = nn.Parameter(torch.empty(heads, width, neurons))
        self.decoder = nn.Parameter(torch.empty(heads * neurons, width))
        self.lm_head = nn.Parameter(torch.empty(width, config.vocab_size))
        self.attn = Frequencies(neurons)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The bytes' embedding."""
        return self.embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the bytes' embedding."""
        self.embed = value

    def get_output_embeddings(self) -> None:
        """`lm_head` is a matrix, no layer."""

    def _increments(self, device: torch.device) -> Tensor:
        return self.attn.increments()

    def _begin(self, x: Tensor) -> Tensor:
        return norm(x)

    def _layer(
        self, index: int, x: Tensor, phases: Phases, memory: Tensor | None, recall: Recall
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.config.dropout if self.training else 0.0
        return bdh_layer(x, self.encoder, self.encoder_v, self.decoder, phases, memory, recall, dropout)

    def _read_out(self, hidden: Tensor) -> Tensor:
        return hidden @ self.lm_head


class BdhTiedModel(BdhStackModel):
    """Blocks, each with weights of its own, between an embedding and the same embedding read backwards."""

    tok_emb: nn.Embedding

    def get_input_embeddings(self) -> nn.Embedding:
        """The bytes' embedding."""
        return self.tok_emb

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the bytes' embedding."""
        self.tok_emb = value

    def get_output_embeddings(self) -> None:
        """The embedding, read backwards."""

    def _read_out(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.tok_emb.weight)


class BdhHebbianForCausalLM(BdhTiedModel):
    """Blocks of Hebbian attention with untied q, k and v."""

    config_class = BdhHebbianConfig

    def __init__(self, config: BdhHebbianConfig) -> None:
        super().__init__(config)
        self.tok_emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(
            HebbianBlock(config.n_embd, config.n_head, config.dropout) for _ in range(config.n_layer)
        )
        self.post_init()

    def _end(self, x: Tensor) -> Tensor:
        return norm(x)


class BdhTransformerForCausalLM(BdhTiedModel):
    """Blocks of softmax attention with a window that slides along the text."""

    config_class = BdhTransformerConfig

    def __init__(self, config: BdhTransformerConfig) -> None:
        super().__init__(config)
        self.tok_emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.n_embd, config.n_head, config.dropout) for _ in range(config.n_layer)
        )
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.post_init()

    def _recall(self, position: Tensor, heard: Tensor | None, write: bool, inplace: bool) -> Recall:
        window = self.config.block_size
        return partial(windowed_attention, window=window, position=position, heard=heard, write=write)

    def _end(self, x: Tensor) -> Tensor:
        return self.ln_f(x)
