"""One listener: a model, the state it hears into, and what it says next."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import state as states
from .config import config_to_dict
from .errors import DataError, StateError
from .models import Model
from .ops.debt import Debt, owing
from .sampling import MAX_STOP_BYTES, Sampler, Sampling, surprise_bits

_FORMAT = "bdh-memory/1"
_MOST_PRODUCTS = 2_000_000_000
"""Of a piece of text that is heard at once, some tenths of a second of one core: progress is told after each, and
others' bytes come between."""


class Written(NamedTuple):
    """One byte that the model wrote, and heard."""

    byte: int
    surprise_bits: float
    """-log2 of the probability that the model itself gave it, before temperature and cuts."""
    is_stop: bool
    """It belongs to a stop string, which a reader need not see."""


class Snapshot(NamedTuple):
    """All that a stream knows at one moment; it never changes afterwards."""

    state: Any
    logits: Tensor | None
    position_bytes: int
    recent: bytes

    @property
    def size_bytes(self) -> int:
        """Bytes that the snapshot takes."""
        return states.state_bytes(self.state)


class Stream:
    """Hears bytes and writes bytes; its memory has the same size after a billion bytes as after one.

    A stream belongs to one thread at a time; any number of streams may share a model.
    """

    def __init__(self, model: Model[Any]) -> None:
        self.model = model
        self._state = model.empty_state(1)
        self._debt = Debt()
        self._logits: Tensor | None = None
        self._position = 0
        self._recent = b""
        self._torn = False
        self.piece_bytes = _piece_bytes(model)
        """Of a text, bytes that are heard at once; whoever else is there, so that sums are the same."""

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: a memory that nothing is owed to."""
        self._debt.settle()
        return dict(self.__dict__)

    @property
    def position_bytes(self) -> int:
        """Bytes heard, its own included."""
        return self._position

    @property
    def state_bytes(self) -> int:
        """Bytes that the memory takes, at any position."""
        return states.state_bytes(self._state)

    @property
    def recent(self) -> bytes:
        """The last bytes heard, up to 256."""
        return self._recent

    @property
    def torn(self) -> bool:
        """Whether hearing was broken off in the middle of a byte: the memory must be cleared or restored."""
        return self._torn

    def feed(self, data: bytes, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Hear bytes; `progress(done, total)` is called after each piece."""
        for done in self.feeding(data):
            if progress is not None:
                progress(done, len(data))

    def feeding(self, data: bytes) -> Iterator[int]:
        """As `feed`, but a generator of how many bytes were heard so far, which may be dropped at any of them."""
        for start in range(0, len(data), self.piece_bytes):
            self._hear(data[start : start + self.piece_bytes])
            yield min(start + self.piece_bytes, len(data))

    def score(self, data: bytes) -> NDArray[np.float64]:
        """Hear bytes, and say what each cost in bits, (len(data),); a first byte, which nothing predicts, costs 8."""
        costs = [np.zeros(0)]
        for start in range(0, len(data), self.piece_bytes):
            piece = data[start : start + self.piece_bytes]
            first = self._logits
            logits = self._hear(piece, last_only=False)
            before = torch.zeros(1, logits.shape[1]) if first is None else first[None]
            predicted = torch.cat((before, logits[:-1])).double().numpy()
            _check_finite(predicted)
            costs.append(surprise_bits(predicted)[np.arange(len(piece)), np.frombuffer(piece, np.uint8)])
        return np.concatenate(costs)

    def generate(self, options: Sampling | None = None) -> Writing:
        """Write bytes, hearing each before it is given out, so that the stream can be dropped at any of them.

        Bytes that may turn out to begin a stop string are held back until that is known.

        Raises:
            DataError: when the first is asked for: the stream has heard nothing yet; at any: the model's prediction is
                not finite.
        """
        return Writing(self, options or Sampling())

    def prediction(self) -> NDArray[np.float64]:
        """Logits of the byte to come, (256,)."""
        if self._logits is None:
            raise DataError("the stream has heard nothing, so there is nothing to go on; feed it at least one byte")
        self._check_whole()
        logits = self._logits.double().numpy()
        _check_finite(logits)
        return logits

    def snapshot(self) -> Snapshot:
        """A copy of all that the stream knows."""
        self._check_whole()
        self._debt.settle()
        return Snapshot(states.clone(self._state), self._logits, self._position, self._recent)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this stream or of another on the same model."""
        self._debt.settle()
        states.copy_(self._state, snapshot.state)
        self._logits, self._position, self._recent = snapshot.logits, snapshot.position_bytes, snapshot.recent
        self._torn = False

    def fork(self) -> Stream:
        """Another stream that knows the same and goes its own way."""
        other = Stream(self.model)
        other.restore(self.snapshot())
        return other

    def clear(self) -> None:
        """Forget everything."""
        self._debt.settle()
        states.copy_(self._state, self.model.empty_state(1))
        self._logits, self._position, self._recent = None, 0, b""
        self._torn = False

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a safetensors file that carries the checksum of the model's weights.

        Raises:
            StateError: the disk refuses; what stood there before is untouched.
        """
        self._check_whole()
        self._debt.settle()
        tensors = {f"state.{name}": tensor.cpu() for name, tensor in states.named_tensors(self._state).items()}
        tensors["recent"] = torch.tensor(list(self._recent), dtype=torch.uint8)
        tensors["logits"] = torch.empty(0) if self._logits is None else self._logits
        metadata = {
            "format": _FORMAT,
            "kind": self.model.config.kind,
            "weights": self.model.checksum(),
            "config": function_of(self.model),
            "position_bytes": str(self._position),
        }
        written = Path(f"{path}.new")
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, written, metadata)
            os.replace(written, path)
        except (OSError, SafetensorError) as error:
            written.unlink(missing_ok=True)
            raise StateError(f"the memory could not be written to {str(path)[:200]}: {str(error)[:200]}") from error

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over a memory that `save` wrote; the stream is unchanged if that fails.

        Raises:
            StateError: no memory, a damaged one, or one of another model.
        """
        mine = self.model.checksum()
        size = self.state_bytes + 1_000_000
        try:
            if Path(path).stat().st_size > size:
                raise StateError(f"the file is larger than this model's memory of {self.state_bytes:,} bytes can be")
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except FileNotFoundError as error:
            raise StateError(f"there is no file {str(path)[:200]}") from error
        except (OSError, SafetensorError) as error:
            raise StateError(
                f"the file is no saved memory ({str(error)[:200]}); choose one that was saved from a chat or a stream"
            ) from error
        if metadata.get("format") != _FORMAT:
            raise StateError("the file is a safetensors file, but no saved memory; save one from the chat or a stream")
        if metadata.get("weights") != mine:
            raise StateError(
                f"the memory belongs to a {metadata.get('kind', '')[:20]} model with weights "
                f"{metadata.get('weights', '')[:12]}; this model's are {mine[:12]}. Load that model first"
            )
        if metadata.get("config") != function_of(self.model):
            raise StateError(
                "the memory belongs to a model with these weights but another configuration (layers, damping); "
                "load the model that it was saved with"
            )
        recent, logits = tensors.pop("recent", torch.empty(0)), tensors.pop("logits", torch.empty(0))
        state = states.from_named_tensors(
            self._state, {name.removeprefix("state."): tensor for name, tensor in tensors.items()}
        )
        position = int(state.position[0])
        fits = recent.dtype == torch.uint8 and recent.dim() == 1 and len(recent) <= MAX_STOP_BYTES
        fits = fits and (logits.shape == (256,) if position else logits.numel() == 0)
        # Members of a composed model each have a position, and a hierarchical one an open patch of bytes.
        fits = fits and all(int(t[0]) == position for name, t in tensors.items() if name.endswith("position"))
        fits = fits and all(0 <= int(t.min()) <= int(t.max()) < 256 for n, t in tensors.items() if n.endswith(".patch"))
        finite = all(t.isfinite().all() for t in (*tensors.values(), logits))
        if not (fits and finite and position >= 0 and metadata.get("position_bytes") == str(position)):
            raise StateError("the memory is damaged: its numbers do not fit each other or are not finite")
        self.restore(Snapshot(state, logits if position else None, position, bytes(recent.tolist())))

    def _check_whole(self) -> None:
        """Refuse a memory in which hearing was broken off: some layers have heard what others have not."""
        if self._torn:
            raise StateError("hearing was broken off in the middle of a byte; clear the memory, or restore a snapshot")

    def _hear(self, data: bytes, *, last_only: bool = True) -> Tensor:
        """Hear at least one byte; returns logits (T or 1, 256) in float32 on the CPU."""
        self._check_whole()
        self._torn = True
        with owing(self._debt):
            said = self.model.step_byte_(data[0], self._state) if len(data) == 1 else None
            if said is None:
                ids = torch.frombuffer(bytearray(data), dtype=torch.uint8)[None]
                output = self.model.step_(ids, self._state, last_only=last_only)
                self._state = output.state
                logits = output.logits[0].float().cpu()
            else:
                logits = said[None]
        self._heard(data, logits[-1].clone())
        return logits

    def _heard(self, data: bytes, logits: Tensor) -> None:
        """Note that all layers have heard `data`; `logits` (256,) are of the byte to come."""
        self._torn = False
        self._logits = logits
        self._position += len(data)
        self._recent = (self._recent + data)[-MAX_STOP_BYTES:]


class Writing(Iterator[Written]):
    """What a stream writes, byte by byte; who steps several streams together asks each to choose and tells it."""

    def __init__(self, stream: Stream, options: Sampling) -> None:
        self.stream, self._options = stream, options
        self._sampler: Sampler | None = None
        self._count = 0
        self._held: list[Written] = []
        self._ready: deque[Written] = deque()
        self._ended = False

    def __next__(self) -> Written:
        while not self._ready:
            byte = self.choose()
            if byte is None:
                raise StopIteration
            self.hear(byte)
        return self._ready.popleft()

    def hear(self, byte: int) -> None:
        """Let the stream hear what was chosen."""
        try:
            self.stream._hear(bytes([byte]))
        except BaseException:
            self.close()
            raise
        self.heard()

    def close(self) -> None:
        """Write no more."""
        self._ended = True
        self._ready.clear()
        self._held = []

    def choose(self) -> int | None:
        """The byte that the stream is to hear next; None if there is none, or if some are still to be taken."""
        options = self._options
        if self._ended or self._ready:
            return None
        if options.max_bytes is not None and self._count >= options.max_bytes:
            self._end()
            return None
        if self._sampler is None:
            self._sampler = Sampler(options, self.stream._recent)
        try:
            logits = self.stream.prediction()
        except BaseException:
            self.close()
            raise
        byte = self._sampler.choose(logits, None if options.max_bytes is None else options.max_bytes - self._count)
        self._held.append(Written(byte, float(surprise_bits(logits)[byte]), False))
        return byte

    def heard(self) -> None:
        """The stream has heard what was chosen: give out what no longer can begin a stop string."""
        self._count += 1
        stops, held = self._options.stop, self._held
        tail = bytes(written.byte for written in held)
        stopped = max((stop for stop in stops if tail.endswith(stop)), key=len, default=None)
        if stopped is not None:
            shown = len(held) - len(stopped)
            self._held = held[:shown] + [written._replace(is_stop=True) for written in held[shown:]]
            self._end()
            return
        given = len(held) - _longest_beginning(tail, stops)
        self._ready.extend(held[:given])
        self._held = held[given:]
        if self._options.max_bytes is not None and self._count >= self._options.max_bytes:
            self._end()

    def taken(self) -> list[Written]:
        """What is ready to be given out."""
        ready = list(self._ready)
        self._ready.clear()
        return ready

    @property
    def ended(self) -> bool:
        """Whether nothing more will be chosen."""
        return self._ended

    def _end(self) -> None:
        self._ended = True
        self._ready.extend(self._held)
        self._held = []


def hear_together(streams: Sequence[Stream], data: Sequence[int]) -> bool:
    """Let each of several streams of one model hear one byte in one step; False if that is not sooner, and not done.

    Raises:
        StateError: a stream is torn; then none has heard anything.
    """
    for stream in streams:
        stream._check_whole()
    for stream in streams:
        stream._torn = True
    model = streams[0].model
    said = model.step_streams_(data, [stream._state for stream in streams], [stream._debt for stream in streams])
    for stream in streams:
        stream._torn = said is not None
    if said is None:
        return False
    for stream, byte, logits in zip(streams, data, said.float().cpu(), strict=True):
        stream._heard(bytes([byte]), logits.clone())
    return True


def _piece_bytes(model: Model[Any]) -> int:
    """A power of two from 32 to 256, two of a flat model's chunks: smaller pieces would be heard more slowly."""
    pieces = 256
    while pieces > 32 and pieces * model.products_per_byte() > _MOST_PRODUCTS:
        pieces //= 2
    return pieces


def _check_finite(logits: NDArray[np.float64]) -> None:
    if not np.isfinite(logits).all():
        raise DataError("the model's prediction is not finite; clear the memory, or check the checkpoint")


def function_of(model: Model[Any]) -> str:
    """The configuration as far as it decides what the model computes."""
    fields = config_to_dict(model.config)
    return json.dumps({name: value for name, value in fields.items() if name != "dropout"}, sort_keys=True)


def _longest_beginning(tail: bytes, stops: tuple[bytes, ...]) -> int:
    """How many of the last bytes may still grow into a stop string."""
    for size in range(min(len(tail), max(map(len, stops), default=1) - 1), 0, -1):
        if any(stop.startswith(tail[-size:]) for stop in stops):
            return size
    return 0
