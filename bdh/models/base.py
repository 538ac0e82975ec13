"""What every kind of model shares: one forward for any number of bytes, the state going in and out."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import checkpoint, hub, publish
from .. import state as states
from ..checkpoint import Origin
from ..config import VOCAB_SIZE, ComposedConfig, Config, HierarchicalConfig
from ..device import pick_device
from ..errors import CheckpointError, DataError
from ..ops.debt import Debt

C = TypeVar("C", bound=Config)
M = TypeVar("M", bound="Model[Any]")

MAX_PARAMETERS = 4_000_000_000
"""The largest model that is built; far above anything published, far below an accident."""
MAX_STATE_BYTES = 16 << 30
"""The largest memory of one stream that a configuration from outside may ask for."""
MAX_LAYERS = 1024
"""Of a configuration from outside: even without storage, a layer takes some milliseconds to lay out."""

CHUNK = 128
"""Positions heard at once without gradients: measured best on CPUs, where scores cost its square."""
CHUNK_GRAD = 512
"""Positions heard at once with gradients: below about 600 the square is cheaper than the memory's reads."""


class Output(NamedTuple):
    """What a forward pass gives back."""

    logits: Tensor
    """(B, T, V), or (B, 1, V) if only the last byte's were asked for."""
    state: Any
    """What the model remembers after the last byte; None if it was not asked for."""


class Model(nn.Module, ABC, Generic[C]):
    """A byte-level language model whose memory belongs to the caller.

    A subclass says how a chunk of bytes turns into hidden states (`_hear`) and what its memory looks like
    (`empty_state`); cutting long inputs, in-place and functional calls are the same for all.
    """

    kind: ClassVar[str]
    KINDS: ClassVar[dict[str, type[Model[Any]]]] = {}

    _checksum: tuple[Any, str] | None = None
    origin: Origin | None = None
    """Where the weights were loaded from; None if they were not."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            Model.KINDS[cls.kind] = cls

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    def chunk_bytes(self, inplace: bool) -> int:
        """Bytes that one pass over the layers hears: under autograd each chunk's memory is kept for the way back."""
        return CHUNK if inplace else CHUNK_GRAD

    @abstractmethod
    def empty_state(self, batch_size: int = 1) -> Any:
        """The memory of `batch_size` streams that have heard nothing."""

    @abstractmethod
    def _hear(self, ids: Tensor, state: Any, *, keep: bool, inplace: bool) -> tuple[Tensor, Any]:
        """Hear one chunk.

        Args:
            ids: (B, T) int64, T at most a chunk.
            state: the memory before the chunk; None is an empty one, which need not be read.
            keep: whether the memory after the chunk is wanted.
            inplace: the memory may be overwritten.

        Returns:
            Hidden states (B, T, D) that `read_out` takes, and the memory after the chunk.
        """

    @abstractmethod
    def read_out(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""

    def forward(self, ids: Tensor, state: Any = None, *, last_only: bool = False, keep_state: bool = True) -> Output:
        """Hear bytes and predict the byte after each; `state` is left as it was.

        Time is linear in T; without gradients, memory beyond the logits does not depend on T.

        Args:
            ids: (B, T) bytes, any integer type, T at least 1; their values are checked where that is free, on the CPU.
            state: memory of B streams; None is an empty one.
            last_only: give logits for the last byte only.
            keep_state: False saves the last write to memory; the returned state is None.

        Raises:
            DataError: ids that are no bytes, or a batch other than the state's.
        """
        if not torch.is_grad_enabled():
            state = None if state is None else states.clone(state)
            return self._listen(ids, state, last_only=last_only, keep=keep_state, inplace=True)
        output = self._listen(ids, state, last_only=last_only, keep=keep_state, inplace=False)
        return output if state is None or not keep_state else output._replace(state=states.apart(output.state, state))

    @torch.no_grad()
    def step_(self, ids: Tensor, state: Any, *, last_only: bool = True) -> Output:
        """As `forward`, but overwriting `state`, which the caller alone must hold."""
        return self._listen(ids, state, last_only=last_only, keep=True, inplace=True)

    def step_byte_(self, byte: int, state: Any) -> Tensor | None:
        """As `step_` for one byte of one stream, the sooner way where there is one: logits (V,), float32 on the CPU."""
        return None

    def step_streams_(self, data: Sequence[int], states: Sequence[Any], debts: Sequence[Debt]) -> Tensor | None:
        """One byte of each of several streams, each with its own memory (batch 1) and its own debt, overwritten.

        Returns:
            Logits (B, V) on the model's device, or None where there is no way sooner than one after another.
        """
        return None

    def single_bytes(self) -> str:
        """What hears single bytes: "compiled loops", a GPU's "kernels" or a "graph of kernels", or "PyTorch"."""
        return "PyTorch"

    def _listen(self, ids: Tensor, state: Any, *, last_only: bool, keep: bool, inplace: bool) -> Output:
        ids = self._checked_ids(ids)
        if state is not None and state.position.shape[0] != ids.shape[0]:
            raise DataError(f"{ids.shape[0]} streams of bytes were given with the memory of {state.position.shape[0]}")
        size = self.chunk_bytes(inplace)
        if ids.shape[1] <= size:
            hidden, state = self._hear(ids, state, keep=keep, inplace=inplace)
            return Output(self.read_out(hidden[:, -1:] if last_only else hidden), state if keep else None)
        chunks = ids.split(size, dim=1)
        logits: list[Tensor] = []
        whole: Tensor | None = None
        done = 0
        for index, chunk in enumerate(chunks):
            last = index == len(chunks) - 1
            hidden, state = self._hear(chunk, state, keep=keep or not last, inplace=inplace)
            if last_only and not last:
                continue
            said = self.read_out(hidden[:, -1:] if last_only else hidden)
            if not inplace or last_only:
                logits.append(said)
                continue
            # Joining the chunks at the end would hold the logits of a long text twice.
            whole = said.new_empty(*ids.shape, said.shape[-1]) if whole is None else whole
            whole[:, done : done + chunk.shape[1]] = said
            done += chunk.shape[1]
        if whole is None:
            whole = logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)
        return Output(whole, state if keep else None)

    def listen_hidden(self, ids: Tensor, state: Any, *, keep: bool, inplace: bool) -> tuple[Tensor, Any]:
        """Hidden states (B, T, D) instead of logits, and the memory: what a composed model asks its members."""
        chunks = ids.split(self.chunk_bytes(inplace), dim=1)
        hidden = []
        for index, chunk in enumerate(chunks):
            said, state = self._hear(chunk, state, keep=keep or index < len(chunks) - 1, inplace=inplace)
            hidden.append(said)
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=1), state

    def _checked_ids(self, ids: Tensor) -> Tensor:
        whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        if ids.dim() != 2 or ids.numel() == 0 or not whole:
            raise DataError(
                f"bytes must be whole numbers of shape (at least 1 stream, at least 1 byte); "
                f"given {ids.dtype} {tuple(ids.shape)}"
            )
        known = ids.dtype == torch.uint8 or ids.device.type != "cpu" or torch.compiler.is_compiling()
        ids = ids.long()
        if not known and not 0 <= int(ids.min()) <= int(ids.max()) < VOCAB_SIZE:
            raise DataError(f"bytes must be from 0 to 255; given {int(ids.min())} to {int(ids.max())}")
        return ids.to(self.device)

    def position(self, ids: Tensor, state: Any) -> Tensor:
        """Bytes heard before `ids`: (B,), or (1,) for all streams of an empty memory."""
        return torch.zeros(1, dtype=torch.int64, device=ids.device) if state is None else state.position

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    def parameter_count(self) -> int:
        """Numbers in the weights, those of frozen members included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def products_per_byte(self) -> int:
        """About how many products hearing a byte takes, beside those with the memory."""
        return self.parameter_count()

    def checksum(self) -> str:
        """Checksum of the weights as in `checkpoint.weights_checksum`, computed again only after they changed."""
        tensors = self.state_dict()
        marks = None
        if not any(tensor.is_inference() for tensor in tensors.values()):
            marks = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors.values())
        if self._checksum is None or marks is None or self._checksum[0] != marks:
            self._checksum = (marks, checkpoint.weights_checksum(tensors))
        return self._checksum[1]

    def state_bytes(self, batch_size: int = 1) -> int:
        """Bytes that the memory of `batch_size` streams takes, without allocating it."""
        return state_bytes(self.config, batch_size)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        card: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub_options: Any,
    ) -> Path:
        """Write a checkpoint folder; one that stands there is replaced whole.

        Args:
            dtype: weights are stored in it (bfloat16 halves the file); None keeps theirs.
            card, provenance: as in `checkpoint.write`.
            push_to_hub: publish it too, as `repo_id` or else the folder's name, with `push_to_hub`'s options.

        Raises:
            CheckpointError: as `checkpoint.write` and `push_to_hub`.
        """
        if hub_options and not push_to_hub:
            raise TypeError(f"{', '.join(hub_options)} is for the Hub; push_to_hub=True goes with it")
        written = checkpoint.write(
            folder, self.config, self.state_dict(), card=card, provenance=provenance, dtype=dtype
        )
        if push_to_hub:
            message = hub_options.pop("commit_message", None)
            publish.upload(written, repo_id or written.name, message=message, **hub_options)
        return written

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: hub.Token = None,
        commit_message: str | None = None,
        revision: str | None = None,
        license: str = "",
        replace: bool = False,
        progress: hub.Progress | None = None,
        dtype: torch.dtype | None = None,
        card: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> str:
        """Publish the model as a checkpoint, and nothing beside it; see `publish.upload` and `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: says what is wrong and what to do.
        """
        with tempfile.TemporaryDirectory() as folder:
            written = self.save_pretrained(Path(folder, "checkpoint"), dtype=dtype, card=card, provenance=provenance)
            return publish.upload(
                written,
                repo_id,
                private=private,
                token=token,
                message=commit_message,
                revision=revision,
                license=license,
                replace=replace,
                progress=progress,
            )

    @classmethod
    def from_pretrained(
        cls: type[M],
        source: str | Path | hub.Source,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: hub.Token = None,
        cache_dir: str | Path | None = None,
        offline: bool | None = None,
        progress: hub.Progress | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        max_parameters: int = MAX_PARAMETERS,
    ) -> M:
        """The model of a checkpoint folder or a Hub repository, ready to listen (in eval mode).

        `Model.from_pretrained` gives a model of any kind; `Flat.from_pretrained` refuses another kind.

        Args:
            source: as in `hub.parse_source`; `revision` and `subfolder` may also be given apart.
            token, cache_dir, offline, progress: as in `hub.fetch`. Without a token it reads as a stranger.
            device: as in `pick_device`.
            dtype: of the weights.

        Raises:
            CheckpointError: it is missing, damaged, of another kind or too large.
        """

        def expected(config: Config) -> dict[str, checkpoint.Shape]:
            if getattr(cls, "kind", config.kind) != config.kind:
                raise CheckpointError(
                    f"{source} is a {config.kind} model and no {cls.kind} one; "
                    f"use {cls.KINDS[config.kind].__name__}.from_pretrained or Model.from_pretrained"
                )
            return expected_shapes(config, max_parameters)

        if not dtype.is_floating_point:
            raise CheckpointError(f"dtype is {dtype}; weights are torch.float32, bfloat16, float16 or float64")
        place = hub.parse_source(source).within(revision, subfolder)
        folder, where = place.path, {}
        if folder is None:
            fetched = hub.fetch(
                place,
                expected=expected,
                token=token,
                cache_dir=cache_dir,
                offline=offline,
                progress=progress,
                foreign=False,
            )
            folder, where = fetched.folder, {"repo_id": fetched.repo_id, "revision": fetched.revision}
        elif folder.is_file():
            raise CheckpointError(f"{folder} is a file; a checkpoint is a folder, and bdh.load takes files too")
        config, tensors, provenance = checkpoint.read(folder, expected, device=pick_device(device), dtype=dtype)
        if isinstance(config, ComposedConfig) and config.sources:
            for index, (source, member) in enumerate(zip(config.sources, config.members, strict=True)):
                # Of its kind, so that nothing composed is loaded, which could refer to itself; and never from a path.
                own: Model[Any] = cls.KINDS[member.kind].from_pretrained(
                    hub.parse_source(source, local=False),
                    token=token,
                    cache_dir=cache_dir,
                    offline=offline,
                    progress=progress,
                    device=device,
                    dtype=dtype,
                    max_parameters=max_parameters,
                )
                if own.config != member:
                    raise CheckpointError(f"{source} is not the model that {folder} was made of")
                tensors |= {f"members.{index}.{name}": tensor for name, tensor in own.state_dict().items()}
            config = replace(config, sources=())
        model = skeleton(config)
        model.load_state_dict(tensors, strict=True, assign=True)
        model.origin = Origin(place.text, folder=folder, provenance=provenance, **where)
        model.eval()
        return model  # type: ignore[return-value]


@lru_cache(maxsize=256)
def state_bytes(config: Config, batch_size: int = 1) -> int:
    """Bytes that the memory of `batch_size` streams of a model takes, from its configuration alone."""
    return states.state_bytes(skeleton(config).empty_state(batch_size))


def skeleton(config: Config) -> Model[Any]:
    """The model with shapes and no storage."""
    with torch.device("meta"), _Unfilled():
        return Model.KINDS[config.kind](config)


class _Unfilled(TorchFunctionMode):
    """Leaves out random initial values, which without storage are nothing but seconds of torch's imports."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def expected_shapes(config: Config, max_parameters: int = MAX_PARAMETERS) -> dict[str, checkpoint.Shape]:
    """Shape of every tensor that a checkpoint of the configuration holds, by name; nothing is allocated.

    Raises:
        CheckpointError: the model would be too large.
    """
    if (layers := _layers(config)) > MAX_LAYERS:
        raise CheckpointError(f"the configuration asks for {layers:,} layers; at most {MAX_LAYERS:,} are loaded")
    model = skeleton(config)
    if (count := model.parameter_count()) > max_parameters:
        raise CheckpointError(
            f"the configuration asks for {count:,} parameters; at most {max_parameters:,} are allowed"
        )
    if (size := model.state_bytes()) > MAX_STATE_BYTES:
        raise CheckpointError(
            f"the memory of one stream would take {size:,} bytes; at most {MAX_STATE_BYTES:,} are allowed"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    referred = isinstance(config, ComposedConfig) and config.sources
    return {name: shape for name, shape in shapes.items() if not (referred and name.startswith("members."))}


def _layers(config: Config) -> int:
    if isinstance(config, ComposedConfig):
        return sum(_layers(member) for member in config.members)
    if isinstance(config, HierarchicalConfig):
        return config.global_n_layer + config.local_n_layer
    return config.n_layer


def advanced(position: Tensor, length: int, batch_size: int, inplace: bool) -> Tensor:
    """The position (B,) after `length` more bytes, written over the old one if it is the caller's own."""
    if position.shape[0] != batch_size:
        return (position + length).expand(batch_size).clone()
    return position.add_(length) if inplace else position + length


def init_weights(module: nn.Module) -> None:
    """Normal with deviation 0.02 for matrices and embeddings, as in the released code."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
