"""A checkpoint: a folder of a configuration, weights, a model card and where they came from.

Nothing in a folder is believed: sizes are bounded before a file is read, and names, types, shapes and extents
before a tensor is. A folder is replaced whole, so a kill leaves the old checkpoint or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import card as cards
from .config import Config, config_from_dict, config_to_dict
from .errors import CheckpointError, ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
CONFIG, WEIGHTS, CARD, PROVENANCE = "config.json", "model.safetensors", "README.md", "provenance.json"
FILES = (CONFIG, WEIGHTS, CARD, PROVENANCE)
"""What a checkpoint consists of; nothing else in its folder is ever read or sent."""

MAX_TEXT_BYTES = 1 << 20
"""Of a configuration, a card or a provenance."""
MAX_HEADER_BYTES = 2 << 20
"""Of a safetensors header: over ten thousand tensors."""

Shape: TypeAlias = tuple[int, ...]
Header: TypeAlias = dict[str, tuple[str, Shape]]
"""Type and shape of each tensor by its name."""

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_WEIGHT_TYPES = ("F32", "F16", "BF16", "F64")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}")
_STALE_S = 3600.0
_INDENTED_BYTES = 1 << 15
_NOT_WRITTEN = "{} could not be written ({}); what stood there before is untouched"


@dataclass(frozen=True)
class Origin:
    """Where a loaded model came from."""

    source: str
    """As it was asked for."""
    repo_id: str | None = None
    """`user/repo` on the Hub."""
    revision: str | None = None
    """Its commit, 40 hexadecimal digits."""
    folder: Path | None = None
    """The folder, or the file of foreign weights, that was read."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What the checkpoint says of its making."""


def is_checkpoint(folder: str | Path) -> bool:
    """Whether the folder holds a configuration of this format (which may still prove damaged)."""
    folder = recovered(folder)
    return (folder / CONFIG).is_file() and has_format(read_fields(folder))


def has_format(fields: Mapping[str, Any]) -> bool:
    """Whether the fields of a `config.json` are this project's and not another's."""
    return "format" in fields and "kind" in fields


def read_fields(folder: str | Path) -> dict[str, Any]:
    """The JSON object in a folder's `config.json`, whoever wrote it."""
    path = Path(folder) / CONFIG
    return parse_json(_read_text(path), str(path))


def read_config(folder: str | Path) -> Config:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged or asks for what is not allowed.
    """
    folder = recovered(folder)
    return config_from_fields(read_fields(folder), str(folder / CONFIG))


def config_from_fields(fields: Mapping[str, Any], where: str) -> Config:
    """The configuration in the fields of a `config.json`; `where` names it in errors."""
    if not has_format(fields):
        raise CheckpointError(
            f'{where} has no "format" and "kind": it is another project\'s. Load it with bdh.load, or make it a '
            "checkpoint with python -m bdh convert"
        )
    if type(fields["format"]) is not int or fields["format"] != FORMAT:
        raise CheckpointError(
            f"{where} is of format {cut(fields['format'])}; this version reads format {FORMAT}: bring it up to date"
        )
    try:
        return config_from_dict({name: value for name, value in fields.items() if name != "format"})
    except (ConfigError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{where}: {cut(error, 400)}") from None


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """What the checkpoint says of its making; empty if it says nothing."""
    path = Path(folder) / PROVENANCE
    return parse_json(_read_text(path), str(path)) if path.exists() else {}


def read_card(folder: str | Path) -> str:
    """The model card, or an empty text."""
    path = Path(folder) / CARD
    return _read_text(path).decode("utf-8", "replace") if path.exists() else ""


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object in which no key stands twice and every number is finite."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a key stands twice")
        return fields

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            refuse(cut(text, 20))
        return number

    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=refuse, parse_float=finite, object_pairs_hook=unique)
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{where} is not readable JSON: {cut(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a {type(value).__name__}; it must hold a JSON object")
    return value


def read_header(path: str | Path) -> Header:
    """Types and shapes of a safetensors file, its structure checked to the last byte.

    Raises:
        CheckpointError: the file is no safetensors file, damaged, or made to deceive.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = header_length(file.read(8), size, str(path))
        return parse_header(file.read(length), size, str(path))


def header_length(start: bytes, file_bytes: int, where: str) -> int:
    """Bytes of the JSON header, from the first 8 bytes of a file of `file_bytes`."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= file_bytes - 8:
        raise CheckpointError(f"{where} is {file_bytes:,} bytes and no whole safetensors file; fetch or write it again")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{where} claims a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
    return length


def parse_header(text: bytes, file_bytes: int, where: str) -> Header:
    """Types and shapes from the JSON header of a file of `file_bytes`, every extent checked."""
    header: Header = {}
    extents = []
    for name, entry in parse_json(text, f"the header of {where}").items():
        if name == "__metadata__":
            continue
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"{where} names a tensor {cut(name)}; letters, digits, _ . and - are allowed")
        header[name], extent = _parse_entry(entry, f"{name} in {where}")
        extents.append((*extent, name))
    place = 0
    for begin, end, name in sorted(extents):
        if begin != place:
            raise CheckpointError(f"{name} in {where} begins at byte {begin} where {place} is due: gap or overlap")
        place = end
    if 8 + len(text) + place != file_bytes:
        raise CheckpointError(
            f"{where} is {file_bytes:,} bytes, but its header describes {8 + len(text) + place:,}: "
            "it was cut off or added to; fetch or write it again"
        )
    return header


def _parse_entry(entry: Any, where: str) -> tuple[tuple[str, Shape], tuple[int, int]]:
    """Type, shape and extent of one tensor of a header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, extent = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{where} is of type {cut(dtype)}; it must be one of {', '.join(_ITEM_BYTES)}")
    if not _whole_numbers(shape) or len(shape) > 8:
        raise CheckpointError(f"{where} has shape {cut(shape)}; it must list at most 8 whole numbers")
    if not _whole_numbers(extent) or len(extent) != 2:
        raise CheckpointError(f"{where} has offsets {cut(extent)}; it must be two whole numbers")
    if extent[1] - extent[0] != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise CheckpointError(f"{where} is {dtype} {cut(shape)}, which does not take bytes {cut(extent)}")
    return (dtype, tuple(shape)), (extent[0], extent[1])


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def check_tensors(header: Header, expected: Mapping[str, Shape], where: str = WEIGHTS) -> None:
    """Hold a file's tensors against those that the model has, strictly both ways.

    Args:
        expected: shape of every tensor of the model by its name.

    Raises:
        CheckpointError: names the first tensor that is missing, unknown, or of another type or shape.
    """
    if missing := sorted(expected.keys() - header.keys()):
        raise CheckpointError(f"{where} lacks {missing[0]} ({len(missing)} missing); its configuration asks for it")
    if unknown := sorted(header.keys() - expected.keys()):
        raise CheckpointError(
            f"{where} holds {cut(unknown[0])} ({len(unknown)} unknown), which the model of its configuration has not"
        )
    for name, (dtype, shape) in header.items():
        if shape != tuple(expected[name]):
            raise CheckpointError(f"{name} in {where} is {shape}; its configuration asks for {tuple(expected[name])}")
        allowed = ("F32",) if is_frequency(name) else _WEIGHT_TYPES
        if dtype not in allowed:
            raise CheckpointError(f"{name} in {where} is of type {dtype}; it must be {' or '.join(allowed)}")


def read_tensors(
    path: str | Path,
    expected: Mapping[str, Shape] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, checked, each a copy that does not depend on the file any more.

    Args:
        expected: as in `check_tensors`; None takes whatever sound tensors there are.
        dtype: floating tensors are cast to it, rotary frequencies excepted; None keeps them.

    Raises:
        CheckpointError: as `read_header` and `check_tensors`; or a value is not finite.
    """
    path = _regular_file(path)
    header = read_header(path)
    if expected is not None:
        check_tensors(header, expected, str(path))
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in header:
                stored = file.get_tensor(name)
                cast = dtype if stored.is_floating_point() and not is_frequency(name) else None
                # A copy, for a view of the file would crash the process should the file be cut off.
                tensors[name] = stored.to(device, cast or stored.dtype, copy=True)
                check_values(name, tensors[name], str(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} could not be read: {cut(error)}") from None
    return tensors


def check_values(name: str, tensor: Tensor, where: str) -> None:
    """Refuse what is not finite, and rotary frequencies that no rotation has.

    Raises:
        CheckpointError: names the tensor.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    if not all(math.isfinite(bound) for bound in (bounds.item() for bounds in tensor.detach().aminmax())):
        raise CheckpointError(f"{name} in {where} holds values that are not finite: the weights are ruined")
    if is_frequency(name):
        turns = tensor.detach().flatten()
        if len(turns) % 2 or not torch.equal(turns[::2], turns[1::2]) or turns.abs().max().item() >= 0.5:
            raise CheckpointError(f"{name} in {where} must hold pairs of equal frequencies below half a turn a byte")


def is_frequency(name: str) -> bool:
    """Whether the tensor is rotary frequencies: a float32 definition of the model rather than a weight."""
    return name == "attn.freqs" or name.endswith(".attn.freqs")


def read(
    folder: str | Path,
    expected: Callable[[Config], Mapping[str, Shape]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Config, dict[str, Tensor], dict[str, Any]]:
    """Configuration, tensors and provenance of one and the same checkpoint, even if it is replaced meanwhile.

    Args:
        expected: the shapes that the model of a configuration has; it may refuse the configuration.

    Raises:
        CheckpointError: anything about the folder that is missing, damaged or not allowed.
    """
    failure = None
    for attempt in range(8):
        found = recovered(folder)
        with contextlib.ExitStack() as kept:
            if attempt >= 3 and found.exists():  # its writers are faster than reading is: let them wait
                kept.enter_context(_locked(Path(os.path.realpath(found)).parent, shared=True))
            before = kept.enter_context(_held(found))
            try:
                config = read_config(found)
                tensors = read_tensors(found / WEIGHTS, expected(config), device=device, dtype=dtype)
                whole = config, tensors, read_provenance(found)
            except CheckpointError as error:
                if before is not None and _identity(found) == before:
                    raise
                failure = error
                time.sleep(0.01)
                continue
            if _identity(found) == before:
                return whole
    raise failure or CheckpointError(f"{folder} is replaced faster than it can be read; wait for its writer")


def find_weights(names: Collection[str], where: str) -> str:
    """The one safetensors file to read among a folder's names.

    Raises:
        CheckpointError: there is none, or several of which none is `model.safetensors`.
    """
    if WEIGHTS in names:
        return WEIGHTS
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{where} holds {len(found)} safetensors files; name one, or join them into {WEIGHTS}")
    pickles = sorted(name for name in names if name.endswith((".pt", ".pth", ".bin", ".ckpt")))
    hint = f" It holds {cut(pickles[0])}: download that file and load it by its name" if pickles else ""
    raise CheckpointError(f"{where} holds no {WEIGHTS}.{hint}")


def _read_text(path: Path) -> bytes:
    """A small file's bytes."""
    with _opened(path) as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise CheckpointError(f"{path} is above {MAX_TEXT_BYTES:,} bytes, the most that is read")
    return data


def _opened(path: str | Path) -> BinaryIO:
    try:
        return _regular_file(path).open("rb")
    except OSError as error:
        raise CheckpointError(f"{path} could not be opened: {cut(error)}") from None


def _regular_file(path: str | Path) -> Path:
    """The path, if it is a file that stands in its own folder or in the blobs of the Hub cache around it."""
    path = Path(path)
    real = Path(os.path.realpath(path))
    try:
        kind = real.stat().st_mode
    except OSError:
        raise CheckpointError(f"{path} does not exist; a checkpoint has {CONFIG} and {WEIGHTS}") from None
    home = Path(os.path.realpath(path.parent))
    caches = [above.parent for above in (home, *home.parents) if above.name == "snapshots"]
    blobs = [folder / "blobs" for cache in caches for folder in (cache, cache.parent)]
    if real.parent != home and not any(real.is_relative_to(place) for place in blobs):
        raise CheckpointError(f"{path} is a link that leads out of its folder; only files inside are read")
    if not stat.S_ISREG(kind):
        raise CheckpointError(f"{path} is no regular file")
    return path


def _identity(folder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = folder.stat()
        return found.st_dev, found.st_ino
    return None


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[tuple[int, int] | None]:
    """The folder's identity, kept from being given to another folder should it be removed meanwhile."""
    handle = None
    with contextlib.suppress(OSError):  # it is gone, or this is Windows
        handle = os.open(folder, os.O_RDONLY)
    try:
        if handle is None:
            yield _identity(folder)
        else:
            # Of what is held: the folder of that name may be another one by now.
            found = os.fstat(handle)
            yield found.st_dev, found.st_ino
    finally:
        if handle is not None:
            os.close(handle)


def cut(value: object, limit: int = 100) -> str:
    """Foreign text as it may stand in a message, however long it is."""
    text = str(value) if isinstance(value, BaseException) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def weights_checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values as float32: the same for weights in bfloat16 and their float32 copy."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        for part in tensor.reshape(-1).split(1 << 22):
            digest.update(part.to("cpu", torch.float32).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def write(
    folder: str | Path,
    config: Config,
    tensors: Mapping[str, Tensor],
    *,
    card: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint, or replace one whole.

    A link is followed. Of two that write one folder at once, the later one's checkpoint stays.

    Args:
        card: Markdown; its front matter is completed by what is known. None writes a plain one.
        provenance: JSON values: recipe, checksums of data and parents.
        dtype: floating tensors are stored in it, rotary frequencies always in float32; None keeps them.

    Returns:
        The folder that was written.

    Raises:
        CheckpointError: the folder holds something else, a value is not finite, or the disk refuses.
    """
    folder = Path(os.path.realpath(folder))
    texts = {
        CONFIG: json.dumps({"format": FORMAT, **config_to_dict(config)}, indent=2) + "\n",
        CARD: _card(config, tensors, card, provenance or {}),
        PROVENANCE: _provenance_json(provenance or {}),
    }
    for name, text in texts.items():
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise CheckpointError(f"{name} would be above {MAX_TEXT_BYTES:,} bytes, the most that is read again")
    stored = {}
    for name, tensor in tensors.items():
        cast = dtype if tensor.is_floating_point() and not is_frequency(name) else None
        stored[name] = tensor.detach().to("cpu", cast or tensor.dtype).contiguous()
        check_values(name, stored[name], "the model")
    fresh = _beside(folder, "new")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent):
            _refuse_other_contents(recovered(folder))
        _sweep(folder)
        os.mkdir(fresh)
        for name, text in texts.items():
            (fresh / name).write_text(text, encoding="utf-8")
        save_file(stored, fresh / WEIGHTS, metadata={"format": "pt"})
        os.chmod(fresh / WEIGHTS, (fresh / CONFIG).stat().st_mode)  # it is made readable by its owner alone
        for name in (*FILES, "."):
            _sync(fresh / name)
        _exchange(fresh, folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(_NOT_WRITTEN.format(folder, "no space left" if full else cut(error))) from error
    except SafetensorError as error:
        raise CheckpointError(_NOT_WRITTEN.format(folder, cut(error))) from error
    finally:
        with contextlib.suppress(OSError):
            recovered(folder)
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _exchange(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`, and what stood there under the name of `fresh`, by renaming."""
    aside = _aside(folder)
    with _locked(folder.parent):
        if recovered(folder).exists() and aside.exists():  # its writer was killed before it could clear up
            os.rename(aside, gone := _beside(folder, "gone"))
            shutil.rmtree(gone, ignore_errors=True)
        for attempt in range(100):
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, aside)
            try:
                os.rename(fresh, folder)
                break
            except OSError:  # a reader that found nothing has put the old one back: once more
                if attempt == 99 or not folder.exists():
                    raise
        _sync(folder.parent)
        with contextlib.suppress(FileNotFoundError):
            os.rename(aside, fresh)


@contextlib.contextmanager
def _locked(parent: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep (other) writers below `parent` waiting; they hold this for the few milliseconds that renaming takes."""
    handle = None
    with contextlib.suppress(OSError):  # a folder one may not list; some network file systems lock no folders
        if fcntl is not None:
            handle = os.open(parent, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def recovered(folder: str | Path) -> Path:
    """The folder, put back if its writer was killed while nothing stood there."""
    folder = Path(folder)
    if not os.path.exists(folder):
        # Mostly nothing was put aside; or no folder can have that name; or the writer lives and was faster.
        with contextlib.suppress(OSError, ValueError):
            real = Path(os.path.realpath(folder))
            os.rename(_aside(real), real)
    return folder


def _sweep(folder: Path) -> None:
    """Remove what killed writers left beside the folder."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.checkpoint\.[0-9a-f]{{8}}\.(?:new|gone)")
    for name in os.listdir(folder.parent):
        left = folder.parent / name
        with contextlib.suppress(OSError):
            if pattern.fullmatch(name) and time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.checkpoint.old")


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}.checkpoint.{secrets.token_hex(4)}.{ending}")


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_other_contents(folder: Path) -> None:
    """Let only an absent or empty folder, or one with nothing but a checkpoint, be replaced."""
    if not folder.exists():
        return
    names = sorted(os.listdir(folder)) if folder.is_dir() else [folder.name]
    if not folder.is_dir() or (names and not is_checkpoint(folder)):
        raise CheckpointError(f"{folder} is there and is no checkpoint; choose a new or empty folder")
    if strange := [name for name in names if name not in FILES]:
        raise CheckpointError(
            f"{folder} also holds {cut(strange[0])}, which replacing the checkpoint would lose; choose a new folder"
        )


def _provenance_json(provenance: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(provenance), indent=2, allow_nan=False, ensure_ascii=False)
        if len(text) > _INDENTED_BYTES:  # to be read by programs alone
            text = json.dumps(dict(provenance), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return text + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the provenance must be JSON values: {cut(error)}") from None


def _card(config: Config, tensors: Mapping[str, Tensor], card: str | None, provenance: Mapping[str, Any]) -> str:
    """The model card with the Hub's front matter."""
    if not card:
        count = sum(tensor.numel() for name, tensor in tensors.items() if not is_frequency(name))
        rows = [[name, str(value)] for name, value in config_to_dict(config).items() if name not in ("kind", "members")]
        card = (
            "\n\n".join(
                [
                    f"# A {config.kind} byte-level BDH model",
                    f"{count:,} parameters. It reads and writes bytes.",
                    cards.table([["option", "value"], *rows]),
                    "## Use\n\n" + cards.fenced('import bdh\n\nmodel = bdh.load("path or user/repo")', "python"),
                    "## Limits\n\nNothing was measured for this card. `provenance.json` says how it was made.",
                ]
            )
            + "\n"
        )
    return cards.completed(card, config.kind, provenance)
