"""Foreign and older checkpoints: every container and naming seen in public, read strictly into our models.

The only reader of `.pt` files. Nothing in a file is trusted: it is looked at before it is opened, opened by
PyTorch's restricted reader only, and each tensor is measured before it is copied.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import checkpoint
from .checkpoint import cut, is_frequency
from .config import CONFIGS, VOCAB_SIZE, ComposedConfig, Config, config_from_dict
from .errors import CheckpointError, ConfigError
from .models import Model, skeleton
from .models.base import expected_shapes
from .ops import rope

MAX_FILE_BYTES = 16 * 2**30
"""The largest file that is opened: the largest model in float32 with room for its optimizer."""

_MAX_PICKLE_BYTES = 16 << 20
_MAX_DIRECTORY_BYTES = 8 << 20
_MAX_TENSORS = 20_000

_PICKLED_SUFFIXES = (".pt", ".pth", ".bin")
_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.")
_WEIGHTS_KEYS = ("model_state_dict", "model_state", "state_dict", "model")
_CONFIG_KEYS = ("model_config", "config", "cfg")

_KINDS = {
    "flat": "flat",
    "bdh": "flat",
    "bdh-linear": "flat",
    "hierarchical": "hierarchical",
    "bdh-hierarchical": "hierarchical",
    "hierarchical-bdh": "hierarchical",
    "hebbian": "hebbian",
    "hebbian-qkv": "hebbian",
    "transformer": "transformer",
    "composed": "composed",
    **{f"composed-{method}": "composed" for method in ComposedConfig.METHODS},
}
"""Every name of a kind that files use."""

_HF_NAMES = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head"}

_FLAT_NAMES = {
    **{name: name for name in ("embed.weight", "encoder", "encoder_v", "decoder", "lm_head", "attn.freqs")},
    "embedding.weight": "embed.weight",
    "wte.weight": "embed.weight",
    "decoder_x": "encoder",
    "decoder_y": "encoder_v",
    "lm_head.weight": "lm_head",
    "readout": "lm_head",
    "readout.weight": "lm_head",
}
"""Names of a flat model's tensors, the released code's and the paper's (Appendix E), and ours."""

_HARMLESS_KEYS = {
    "_name_or_path", "architectures", "attn_implementation", "attn_window", "auto_map", "baseline_n_layer",
    "batch_size", "beta1", "beta2", "bos_token_id", "carry_state", "chunk_size", "compile", "data_dir", "dataset",
    "device", "dtype", "eos_token_id", "europarl_lang_mb", "europarl_langs", "eval_interval", "eval_iters",
    "freeze_attn", "gate_alpha", "gate_from", "grad_clip", "grow_mult", "init_from", "is_decoder", "learning_rate",
    "log_interval", "lr_decay_iters", "max_iters", "max_new_tokens", "max_position_embeddings", "min_lr", "no_bptt",
    "num_samples", "out_dir", "output_attentions", "output_hidden_states", "pad_token_id", "return_dict",
    "route_alpha", "route_aware", "run_name", "seed", "sequential_batches", "stateful_eval", "tag", "tbptt_horizon",
    "text_mix", "text_mix_mb", "tie_word_embeddings", "torch_dtype", "train_slice", "transformers_version",
    "use_cache", "warmup_iters", "weight_decay",
}  # fmt: skip
"""Keys that say how a model was trained or stored, and nothing about what it computes."""

_NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {"k_sparse_ratio": (0, None), "sliding_window": (0, None)}
"""Keys that change what a model computes, unless they have one of these values."""

_EXPORTED = "bdh_hatchery_"
"""What the model_type of an export to transformers begins with; its kind comes after."""

_LISTS = ("decay", "global_decay", "members", "sources")

_REQUIRED = {
    "flat": ("n_layer",),
    "hebbian": ("n_head",),
    "transformer": ("n_head", "block_size"),
    "hierarchical": ("global_n_head", "local_n_head", "max_seq_len"),
}
"""Fields that a forward pass needs and that shapes may not tell."""

_PICKLE_OPCODES = {
    "PROTO", "STOP", "GLOBAL", "BINUNICODE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MARK", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_LIST", "SETITEM", "SETITEMS", "APPEND",
    "APPENDS", "REDUCE", "BUILD", "BINPERSID", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE",
    "NEWTRUE", "NEWFALSE",
}  # fmt: skip
_PICKLE_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch (Size|device)"
    r"|torch (Half|BFloat16|Float|Double|Byte|Char|Short|Int|Long|Bool)Storage"
    r"|torch (float16|bfloat16|float32|float64|uint8|int8|int16|int32|int64|bool)"
)
"""What a pickle of tensors and plain values names. PyTorch's own list is longer: it lets a file ask for a
`bytearray` or a `Tensor` of any size."""

_RE_EXPORT = (
    "Re-export it where it was made: "
    'torch.save({"model": model.state_dict(), "config": dataclasses.asdict(config)}, "model.pt")'
)


class _Found(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    layout: str
    """How it was held, for the record."""
    owned: bool
    """The tensors are copies already, not views of the file."""


def from_upstream(kind: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Model[Any]:
    """A model of ours, float32, with the weights of a released or foreign one.

    Every tensor must be used and every weight be given. What shapes tell may be left out of the configuration.

    Args:
        kind: a kind, or a name that files use for it, such as `hebbian-qkv` or `composed-average`.
        config: upstream's own keys, or transformers' names for them, or ours; keys of training are ignored.
        state_dict: upstream's names, Appendix E's, or ours, under any of the usual prefixes.

    Raises:
        ConfigError: an unknown kind, key or value.
        CheckpointError: tensors that are missing, superfluous, of another shape, hostile or not finite.
    """
    ours, tensors = _translate(kind, config, _measured(state_dict))
    return _assembled(ours, tensors)


def infer_config(
    state_dict: Mapping[str, Tensor],
    *,
    n_layer: int | None = None,
    n_head: int | None = None,
    block_size: int | None = None,
    max_seq_len: int | None = None,
) -> Config:
    """The configuration of a bare state dict, from its shapes and what they do not tell.

    Raises:
        CheckpointError: something is needed that shapes do not tell; the message says how to give it.
    """
    given = {"n_layer": n_layer, "n_head": n_head, "block_size": block_size, "max_seq_len": max_seq_len}
    named = _measured(state_dict)
    return _translate(_kind_of(named), {name: value for name, value in given.items() if value is not None}, named)[0]


def read_file(
    path: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    max_bytes: int = MAX_FILE_BYTES,
) -> Model[Any]:
    """The model, float32, in a file or folder of any known layout.

    Args:
        config: keys laid over the configuration that the file brings, or in place of one.
        allow_pickle: whether `.pt`, `.pth` and `.bin` files may be opened, by PyTorch's restricted reader.
        max_bytes: the largest file that is opened.

    Raises:
        CheckpointError, ConfigError: as `from_upstream`; and a file that is missing, too large or wants code.
    """
    path = Path(path)
    if path.is_dir() and not config and checkpoint.is_checkpoint(path):
        return Model.from_pretrained(path, device="cpu")
    file = _weights_file(path, allow_pickle)
    found = _open(file, config, allow_pickle, max_bytes)
    ours, tensors = _translate(_kind_of(found.tensors, found.config), found.config, _measured(found.tensors))
    model = _assembled(ours, tensors, found.owned)
    provenance = {"source": file.name, "layout": found.layout}
    model.origin = checkpoint.Origin(str(path), folder=file, provenance=provenance)
    return model


def convert(
    path: str | Path,
    out: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    max_bytes: int = MAX_FILE_BYTES,
) -> Path:
    """Write the model in a file or folder of any known layout as a folder of ours; arguments as `read_file`.

    Weights that are all bfloat16 stay so; others become float32. A folder of ours is copied as it is.
    """
    path = Path(path)
    if path.is_dir() and not config and checkpoint.is_checkpoint(path):
        ours, tensors, provenance = checkpoint.read(path, expected_shapes)
        return checkpoint.write(out, ours, tensors, card=checkpoint.read_card(path), provenance=provenance)
    file = _weights_file(path, allow_pickle)
    found = _open(file, config, allow_pickle, max_bytes)
    ours, tensors = _translate(_kind_of(found.tensors, found.config), found.config, _measured(found.tensors))
    short = all(tensor.dtype == torch.bfloat16 for name, tensor in tensors.items() if not is_frequency(name))
    return checkpoint.write(
        out,
        ours,
        _assembled(ours, tensors, found.owned).state_dict(),
        provenance={"source": file.name, "sha256": _sha256(file), "layout": found.layout},
        dtype=torch.bfloat16 if short else None,
    )


# Files


def _weights_file(path: Path, allow_pickle: bool) -> Path:
    """The file that holds the tensors: `path`, or the one in that folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"there is no file or folder {cut(str(path))}")
    names = [entry.name for entry in path.iterdir()]
    pickles = [name for name in names if name.endswith(_PICKLED_SUFFIXES)]
    if allow_pickle and len(pickles) == 1 and not any(name.endswith(".safetensors") for name in names):
        return path / pickles[0]
    return path / checkpoint.find_weights(names, str(path))


def _open(path: Path, config: Mapping[str, Any] | None, allow_pickle: bool, max_bytes: int) -> _Found:
    size = path.stat().st_size
    if size > max_bytes:
        raise CheckpointError(f"{cut(path.name)} has {size:,} bytes; at most {max_bytes:,} are read")
    if path.suffix == ".safetensors":
        found = _open_safetensors(path)
    elif path.suffix not in _PICKLED_SUFFIXES:
        raise CheckpointError(f"{cut(path.name)} is none of .safetensors, {', '.join(_PICKLED_SUFFIXES)}")
    elif not allow_pickle:
        raise CheckpointError(
            f"{cut(path.name)} is a pickle, which is opened only on request; convert it first: "
            "python -m bdh convert FILE FOLDER"
        )
    else:
        found = _open_pickle(path)
    beside = _config_beside(path) if not found.config else {}
    return found._replace(config={**beside, **found.config, **(config or {})})


def _open_safetensors(path: Path) -> _Found:
    tensors = checkpoint.read_tensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be read: {cut(error)}") from None
    config: dict[str, Any] = {}
    if "config" in metadata:
        config = checkpoint.parse_json(metadata["config"].encode(), f"the configuration in the header of {path.name}")
        if "kind" in metadata:
            config.setdefault("kind", metadata["kind"])
    return _Found(tensors, config, "safetensors", owned=True)


def _config_beside(path: Path) -> dict[str, Any]:
    """The configuration in the `config.json` of a file's folder, or nothing if there is none."""
    if not path.with_name(checkpoint.CONFIG).is_file():
        return {}
    fields = checkpoint.read_fields(path.parent)
    inner = next((fields[key] for key in _CONFIG_KEYS if isinstance(fields.get(key), dict)), fields)
    return {key: value for key, value in inner.items() if not (key == "format" and checkpoint.has_format(fields))}


def _open_pickle(path: Path) -> _Found:
    name = cut(path.name)
    _look_at_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile file can make the reader fail in any way
        raise CheckpointError(f"{name} cannot be read: {cut(error, 200)}. {_RE_EXPORT}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{name} holds a {type(loaded).__name__}; it must hold a dictionary. {_RE_EXPORT}")
    # The file can shadow a dictionary's methods, so they are taken from the class.
    top = {key: value for key, value in dict.items(loaded) if isinstance(key, str)}
    config_key = next((key for key in _CONFIG_KEYS if key in top), None)
    config = top[config_key] if config_key else {}
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_key!r} is a {type(config).__name__}; it must be a dictionary. {_RE_EXPORT}")
    config = dict(dict.items(config))
    if isinstance(top.get("arch"), str):
        config.setdefault("arch", top["arch"])
    for key in _WEIGHTS_KEYS:
        if isinstance(top.get(key), dict):
            keys = ", ".join(other[:30] for other in list(top)[:12])
            return _Found(dict(dict.items(top[key])), config, f"{{{keys}}}", owned=False)
    if any(isinstance(value, Tensor) for value in top.values()):
        return _Found(dict(dict.items(loaded)), {}, "a bare state dict", owned=False)
    raise CheckpointError(f"{name} holds none of {', '.join(_WEIGHTS_KEYS)} and is no state dict itself. {_RE_EXPORT}")


def _look_at_archive(path: Path) -> None:
    """Check that the file is what `torch.save` writes, without running or unpacking any of it."""
    name = cut(path.name)
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointError(
                f"{name} is not the archive that torch.save has written since PyTorch 1.6; load and save it again there"
            )
        if _directory_bytes(path) > _MAX_DIRECTORY_BYTES:
            raise CheckpointError(f"{name} is an archive of too many entries; at most {_MAX_TENSORS:,} are read")
        try:
            with zipfile.ZipFile(file) as archive:
                pickled = _checked_entries(archive, name, path.stat().st_size)
                _look_at_pickle(archive.read(pickled), name)
        except CheckpointError:
            raise
        except Exception as error:  # a hostile archive can make the reader fail in any way
            raise CheckpointError(f"{name} is damaged or cut off: {cut(error, 200)}") from error


def _directory_bytes(path: Path) -> int:
    """Size of the archive's list of entries, as its last record states it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 22 - 20 - 56))
        tail = file.read()
    end = tail[-22:]
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise CheckpointError(f"{cut(path.name)} is damaged or cut off: its list of entries is not at its end")
    size: int = struct.unpack("<I", end[12:16])[0]
    if size == 0xFFFFFFFF and tail[-98:-94] == b"PK\x06\x06":
        size = struct.unpack("<Q", tail[-58:-50])[0]
    return size


def _checked_entries(archive: zipfile.ZipFile, name: str, file_bytes: int) -> zipfile.ZipInfo:
    """The entry that is the pickle, once all entries are found to be plain."""
    entries = archive.infolist()
    if len(entries) > _MAX_TENSORS:
        raise CheckpointError(f"{name} has {len(entries):,} entries; at most {_MAX_TENSORS:,} are read")
    if len({entry.filename for entry in entries}) != len(entries):
        raise CheckpointError(f"{name} has two entries of one name, which torch.save never writes")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(f"{name} has compressed entries, which torch.save never writes; save it again")
        if entry.filename.endswith("/constants.pkl"):
            raise CheckpointError(f"{name} is a TorchScript program, which is code. {_RE_EXPORT}")
    if sum(entry.file_size for entry in entries) > file_bytes:
        raise CheckpointError(f"the entries of {name} claim more bytes than the file has")
    pickles = [entry for entry in entries if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
    if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
        raise CheckpointError(f"{name} must have one data.pkl of at most {_MAX_PICKLE_BYTES:,} bytes")
    return pickles[0]


def _look_at_pickle(data: bytes, name: str) -> None:
    """Check that the pickle builds dictionaries of tensors and plain values and calls nothing else."""
    try:
        opcodes = [(opcode.name, str(argument)) for opcode, argument, _ in pickletools.genops(data)]
    except Exception as error:  # damage can make the parser fail in any way
        raise CheckpointError(f"the pickle in {name} is damaged: {cut(error, 200)}") from error
    for opcode, argument in opcodes:
        if opcode == "GLOBAL" and not _PICKLE_GLOBALS.fullmatch(argument):
            raise CheckpointError(
                f"{name} wants to run code: it asks for {cut(argument.replace(' ', '.'))}. A pickled object, such as a "
                f"configuration that is no dictionary, is never loaded. {_RE_EXPORT}"
            )
        if opcode not in _PICKLE_OPCODES:
            raise CheckpointError(f"{name} uses the pickle opcode {opcode}, as no state dict does. {_RE_EXPORT}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# Tensors


def _measured(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without prefixes, each checked to be a plain array of the numbers it claims."""
    if len(state_dict) > _MAX_TENSORS:
        raise CheckpointError(f"the state dict has {len(state_dict):,} entries; at most {_MAX_TENSORS:,} are read")
    named: dict[str, Tensor] = {}
    for full, tensor in state_dict.items():
        if not isinstance(full, str):
            raise CheckpointError(f"the state dict has a key that is a {type(full).__name__}; keys must be names")
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{cut(full)} is a {type(tensor).__name__}; it must be a tensor")
        _measure(cut(full), tensor)
        name = _bare(full)
        if name in named:
            raise CheckpointError(f"the state dict holds {cut(name)} twice, under two prefixes")
        named[name] = tensor.detach()
    claimed = sum(tensor.nbytes for tensor in named.values())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in named.values()}
    if claimed > 2 * sum(storages.values()):  # two names may share one tensor
        raise CheckpointError(f"the tensors claim {claimed:,} bytes together and store {sum(storages.values()):,}")
    return named


def _bare(name: str) -> str:
    """The name without the prefixes that wrappers put before it."""
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _measure(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        raise CheckpointError(f"{name} is sparse, quantized or without storage; save it as a plain tensor")
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise CheckpointError(f"{name} is {tensor.dtype}; weights must be float32, bfloat16, float16 or float64")
    claimed, stored = tensor.nbytes, tensor.untyped_storage().nbytes()
    if claimed > stored:
        raise CheckpointError(f"{name} claims {claimed:,} bytes and stores {stored:,}; a weight must store its numbers")


def _assembled(config: Config, tensors: dict[str, Tensor], owned: bool = False) -> Model[Any]:
    """The model of `config` with exactly these tensors; copies of them, unless they are `owned`."""
    expected = expected_shapes(config)
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(f"the weights lack {_listed(missing)}, which this {config.kind} model has")
    if extra := [name for name in tensors if name not in expected]:
        raise CheckpointError(f"the weights hold {_listed(extra)}, which this {config.kind} model has not")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"{name!r} is {tuple(tensors[name].shape)}; by the configuration it must be {shape}")
    copies = {}
    for name in expected:
        copies[name] = tensors[name].to("cpu", torch.float32, copy=not owned).contiguous()
        checkpoint.check_values(name, copies[name], "the checkpoint")
    model = skeleton(config)
    model.load_state_dict(copies, strict=True, assign=True)
    return model.eval()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(cut, names[:5])) + more


# Kinds and configurations


def _kind_of(names: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> str:
    """The kind that the configuration names, or else that the tensors' names tell."""
    if config and isinstance(config.get("kind"), str):
        return str(config["kind"])
    bare = {_bare(name) for name in names if isinstance(name, str)}
    if any(name.startswith(("model_a.", "members.0.")) for name in bare):
        return _composed_kind(bare)
    if any(name.startswith("global_model.") for name in bare):
        return "hierarchical"
    if any(name.endswith(".attn.eta") for name in bare):
        return "hebbian"
    if bare & {"encoder_v", "decoder_y"}:
        return "flat"
    if "tok_emb.weight" in bare and any(re.fullmatch(r"blocks\.0\.qkv\.weight", name) for name in bare):
        return "transformer"
    raise CheckpointError(f"the tensors belong to no kind of model known here: {_listed(sorted(bare))}")


def _composed_kind(names: set[str]) -> str:
    if "combine_weight" in names:
        return "composed-average"
    return "composed-deep" if "combiner.weight" in names else "composed-mixture"


def _our_kind(kind: str) -> str:
    known = _KINDS.get(kind.lower().replace("_", "-")) if isinstance(kind, str) else None
    if known is None:
        raise ConfigError(f"kind is {cut(kind)}; it must be one of {', '.join(_KINDS)}")
    return known


def _translate(kind: str, config: Mapping[str, Any], named: dict[str, Tensor]) -> tuple[Config, dict[str, Tensor]]:
    """Our configuration and the tensors under our names; shapes are checked by `_assembled`."""
    ours = _our_kind(kind)
    fields = _our_fields(ours, config)
    if ours == "composed":
        return _translate_composed(kind.lower().replace("_", "-"), fields, named)
    tensors, told = _TRANSLATORS[ours](named)
    for name, value in told.items():
        if name in fields and fields[name] != value:
            raise CheckpointError(f"{name} is {cut(fields[name])} in the configuration, but the tensors have {value}")
    fields = {**told, **fields}
    if ours == "hierarchical" and told.get("use_bdh_attention"):
        # Without Transformer blocks nothing computed depends on it.
        fields.setdefault("max_seq_len", 128 * int(told["patch_size"]))
    for name in _REQUIRED[ours]:
        if name not in fields:
            flag = name.replace("_", "-")
            raise CheckpointError(
                f"{name} of this {ours} model is in no configuration and cannot be told from its tensors; give it: "
                f"python -m bdh convert FILE OUT --{flag} NUMBER makes a checkpoint, or in Python {name}=NUMBER."
            )
    slope = fields.pop("alibi_slope", 0)
    result = config_from_dict({"kind": ours, **fields})
    if slope:
        # ALiBi on scores without softmax: each byte back counts exp(-slope) less, in every head.
        # Upstream damps the newest byte too; the norm behind the read takes that common factor out.
        result = config_from_dict({"kind": ours, **fields, "decay": [math.exp(-slope)] * result.n_head})  # type: ignore[union-attr]
    return result, _with_frequencies(result, tensors)


def _our_fields(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our configuration, with foreign names translated and keys that mean nothing to it left out."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"the configuration is a {type(config).__name__}; it must be a dictionary")
    known = [field.name for field in dataclasses.fields(CONFIGS[kind])]
    fields: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in dict(config).items():
        name = _HF_NAMES.get(key, key) if isinstance(key, str) else str(key)
        if name in known:
            if name not in _LISTS and not isinstance(value, (bool, int, float, str, type(None))):
                raise ConfigError(f"{name} is a {type(value).__name__}; it must be a plain value")
            if name in fields and fields[name] != value:
                raise ConfigError(f"the configuration gives {name} twice: {cut(fields[name])} and {cut(value)}")
            fields[name] = value
        elif name in ("kind", "model", "model_type", "arch"):
            if not isinstance(value, str) or _KINDS.get(_plain(value)) != kind:
                raise ConfigError(f"{name} is {cut(value)}, but the model is read as {kind}")
        elif name == "alibi_slope" and kind == "flat":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 10:
                raise ConfigError(f"alibi_slope is {cut(value)}; it must be a number from 0 to 10")
            fields[name] = value
        elif name in _NEUTRAL_VALUES:
            if not isinstance(value, (int, float, type(None))) or value not in _NEUTRAL_VALUES[name]:
                raise ConfigError(f"{name} is {cut(value)}; models here compute what it changes only without it")
        elif name not in _HARMLESS_KEYS and name != "block_size":
            unknown.append(name)
    if unknown:
        raise ConfigError(
            f"the configuration has unknown keys, which may change what the model computes: {_listed(unknown)}; "
            f"a {kind} model has {', '.join(known)}"
        )
    return fields


def _plain(kind: str) -> str:
    """The name of a kind as `_KINDS` has it."""
    return kind.lower().removeprefix(_EXPORTED).replace("_", "-")


# Kinds, one by one: tensors under our names, and the fields that shapes tell


def _translate_flat(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    head = ""
    for name, tensor in named.items():
        ours = _FLAT_NAMES.get(name, name)
        if name == "encoder" and tensor.dim() == 2:
            # Appendix E calls by this name the matrix that leads back from the neurons.
            ours = "decoder"
        if ours in tensors:
            raise CheckpointError(f"the weights hold {ours!r} twice, once as {name!r}")
        if ours == "lm_head":
            head = name
        tensors[ours] = tensor
    told: dict[str, Any] = {}
    encoder = tensors.get("encoder")
    if encoder is not None and encoder.dim() == 3:
        told = _neuron_fields(encoder, "n_head", "n_embd", "mlp_internal_dim_multiplier")
    if head and "n_embd" in told and tensors["lm_head"].dim() == 2:
        rows, columns = tensors["lm_head"].shape
        # A module's weight is (bytes, width), a bare parameter (width, bytes); shapes decide where they can.
        turned = head.endswith(".weight") if rows == columns else (rows, columns) == (VOCAB_SIZE, told["n_embd"])
        if turned:
            tensors["lm_head"] = tensors["lm_head"].mT
    return tensors, told


def _neuron_fields(encoder: Tensor, n_head: str, n_embd: str, multiplier: str) -> dict[str, Any]:
    heads, width, neurons = encoder.shape
    if not width or heads * neurons % width:
        raise CheckpointError(
            f"{heads} heads of {neurons} neurons are no whole multiple of the width {width}, as {multiplier} needs"
        )
    return {n_head: heads, n_embd: width, multiplier: heads * neurons // width}


def _translate_hierarchical(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = _untied(named, "patch_embedder.byte_embed.weight", "local_model.byte_embed.weight")
    told: dict[str, Any] = {}
    places = tensors.get("local_model.pos_embed.weight")
    if places is not None and places.dim() == 2:
        told["patch_size"] = places.shape[0]
    for scale in ("global", "local"):
        layers = f"{scale}_model.layers"
        told[f"{scale}_n_layer"] = _count_layers(tensors, layers)
        encoder = tensors.get(f"{layers}.0.encoder")
        told["use_bdh_attention"] = encoder is not None
        if encoder is not None and encoder.dim() == 3:
            told |= _neuron_fields(encoder, f"{scale}_n_head", f"{scale}_n_embd", f"{scale}_mlp_mult")
        norm = tensors.get(f"{scale}_model.ln_out.weight")
        if norm is not None and norm.dim() == 1:
            told[f"{scale}_n_embd"] = norm.shape[0]
    return tensors, told


def _translate_hebbian(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = _untied(named, "tok_emb.weight", "lm_head.weight")
    told = _stack_fields(tensors)
    for name in [name for name in tensors if name.endswith(".attn.rope.inv_freq")]:
        stored = tensors.pop(name)
        if stored.dim() != 1 or not len(stored):
            raise CheckpointError(f"{name!r} is {tuple(stored.shape)}; it must be one number a rotated pair")
        usual = 10_000.0 ** (-torch.arange(len(stored), dtype=torch.float64) / len(stored))
        if not ((stored.double() - usual).abs() <= 1e-6).all():
            raise CheckpointError(f"{name!r} are not the usual rotary frequencies (theta 10000)")
        if "n_embd" in told and told["n_embd"] % (2 * len(stored)) == 0:
            told["n_head"] = told["n_embd"] // (2 * len(stored))
    return tensors, told


def _translate_transformer(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = _untied(named, "tok_emb.weight", "lm_head.weight")
    return tensors, _stack_fields(tensors)


_TRANSLATORS: dict[str, Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Any]]]] = {
    "flat": _translate_flat,
    "hierarchical": _translate_hierarchical,
    "hebbian": _translate_hebbian,
    "transformer": _translate_transformer,
}


def _stack_fields(tensors: dict[str, Tensor]) -> dict[str, Any]:
    embedding = tensors.get("tok_emb.weight")
    told: dict[str, Any] = {"n_layer": _count_layers(tensors, "blocks")}
    if embedding is not None and embedding.dim() == 2:
        told["n_embd"] = embedding.shape[1]
    return told


def _count_layers(tensors: dict[str, Tensor], prefix: str) -> int:
    found = {match[1] for name in tensors if (match := re.match(rf"{re.escape(prefix)}\.(\d{{1,4}})\.", name))}
    return len(found)


def _untied(named: dict[str, Tensor], kept: str, tied: str) -> dict[str, Tensor]:
    """The tensors with the second name of a shared one gone; files may hold it under either or both."""
    tensors = dict(named)
    second = tensors.pop(tied, None)
    if second is None:
        return tensors
    first = tensors.setdefault(kept, second)
    if first.shape != second.shape or not torch.equal(first.float(), second.float()):
        raise CheckpointError(f"{tied!r} differs from {kept!r}; models here have one embedding for both")
    return tensors


def _translate_composed(
    kind: str, fields: dict[str, Any], named: dict[str, Tensor]
) -> tuple[Config, dict[str, Tensor]]:
    groups: dict[int, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if match := re.match(r"(?:model_([a-p])|members\.(\d{1,2}))\.", name):
            index = int(match[2]) if match[2] else ord(match[1]) - ord("a")
            inner = _bare(name[match.end() :])
            if inner in groups.setdefault(index, {}):
                raise CheckpointError(f"member {index} holds {cut(inner)} twice")
            groups[index][inner] = tensor
        else:
            tensors[name] = tensor
    if sorted(groups) != list(range(len(groups))) or len(groups) < 2:
        raise CheckpointError(f"a composed model needs members model_a, model_b, … without a gap; found {len(groups)}")
    given = fields.pop("members", None) or [{}] * len(groups)
    if not isinstance(given, (list, tuple)) or len(given) != len(groups):
        raise ConfigError(f"the configuration must list {len(groups)} members, as many as the tensors have")
    fields.pop("sources", None)  # its members are at hand
    members = []
    for index, member in enumerate(given):
        config = member if isinstance(member, Mapping) else {}
        ours, translated = _translate(_kind_of(groups[index], config), config, groups[index])
        members.append(ours)
        tensors |= {f"members.{index}.{name}": tensor for name, tensor in translated.items()}
    method = kind.removeprefix("composed-")
    if method != "composed" and fields.setdefault("method", method) != method:
        raise ConfigError(f"method is {cut(fields['method'])} in the configuration, but the model is read as {kind}")
    if "method" not in fields:
        fields["method"] = _composed_kind(set(tensors)).removeprefix("composed-")
    weight = tensors.get("combine_weight")
    if weight is not None and weight.numel() == 1 and len(groups) == 2:
        # Upstream weighs the first member by a sigmoid; ours is a softmax over all of them.
        tensors["combine_weight"] = torch.cat((weight.reshape(1), torch.zeros(1, dtype=weight.dtype)))
    combiner = tensors.get("combiner.weight")
    if combiner is not None and combiner.dim() == 2:
        fields.setdefault("n_embd", combiner.shape[0])
    return ComposedConfig(**{**fields, "members": tuple(members)}), tensors


# Rotary frequencies


def _with_frequencies(config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the rotary frequencies of every encoder that is there: as stored, or else made anew."""
    tensors = dict(tensors)
    for name, expected in skeleton(config).state_dict().items():
        encoder = tensors.get(name.removesuffix("attn.freqs") + "encoder") if is_frequency(name) else None
        # Neurons that a configuration only claims are not worth a frequency: there could be 10^9 of them.
        if encoder is not None and encoder.dim() == 3 and encoder.shape[-1] == expected.numel():
            tensors[name] = _frequencies(name, tensors.get(name), expected.numel()).view(expected.shape)
    return tensors


def _frequencies(name: str, stored: Tensor | None, n: int) -> Tensor:
    usual = rope.frequencies(n)
    if stored is None:
        return usual
    if stored.numel() != n:
        raise CheckpointError(f"{name!r} has {stored.numel()} frequencies; by the configuration it must have {n}")
    stored = stored.reshape(n)
    if stored.dtype in (torch.bfloat16, torch.float16):
        if not torch.equal(stored, usual.to(stored.dtype)):
            raise CheckpointError(
                f"{name!r} was rounded to {stored.dtype} and is not of the usual formula, so it cannot be restored; "
                "save the checkpoint again with its frequencies in float32"
            )
        warnings.warn(f"{name} was rounded to {stored.dtype}, which breaks positions; it is made anew", stacklevel=2)
        return usual
    return stored.float()
