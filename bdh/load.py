"""One call from a name to a model, wherever the name leads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, convert, hub
from .checkpoint import Origin
from .device import pick_device
from .errors import CheckpointError
from .models import MAX_PARAMETERS, Model
from .models.base import expected_shapes


def load(
    source: str | Path | hub.Source,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    token: hub.Token = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: hub.Progress | None = None,
    max_parameters: int = MAX_PARAMETERS,
    allow_pickle: bool = False,
) -> Model[Any]:
    """The model of a folder, a file, `user/repo`, `user/repo@revision` or `user/repo:subfolder`.

    Checkpoints of this project are loaded as they are; other layouts of BDH weights are converted. Of a folder
    or repository nothing but its configuration, safetensors, card and provenance is read.

    Args:
        source: as in `hub.parse_source`.
        device: `cuda`, `mps`, `cpu`, or None for the first of these that is there.
        dtype: of the weights.
        token, cache_dir, offline, progress: as in `hub.fetch`. Without a token it reads as a stranger.
        max_parameters: a larger model is refused before it is downloaded or allocated.
        allow_pickle: also read a .pt, .pth or .bin file that is named, with torch's reader for plain weights.

    Raises:
        CheckpointError: says what is wrong and what to do.
    """
    found = hub.parse_source(source)
    place, repo_id, revision = found.path, None, None
    weights: Path | None = None
    if place is None:
        fetched = hub.fetch(
            found,
            expected=lambda config: expected_shapes(config, max_parameters),
            token=token,
            cache_dir=cache_dir,
            offline=offline,
            progress=progress,
            max_bytes=min(hub.MAX_WEIGHT_BYTES, 8 * max_parameters + checkpoint.MAX_HEADER_BYTES),
        )
        place, weights, repo_id, revision = fetched.folder, fetched.weights, fetched.repo_id, fetched.revision
    place = checkpoint.recovered(place)
    if place.is_file() and place.name == checkpoint.WEIGHTS and (place.parent / checkpoint.CONFIG).is_file():
        place = place.parent
    if place.is_dir() and checkpoint.is_checkpoint(place):
        model: Model[Any] = Model.from_pretrained(
            place,
            device=device,
            dtype=dtype,
            token=token,  # members that a composed checkpoint refers to are fetched as it was
            cache_dir=cache_dir,
            offline=offline,
            progress=progress,
            max_parameters=max_parameters,
        )
        provenance = model.origin.provenance if model.origin else {}
        model.origin = Origin(found.text, repo_id, revision, place, provenance)
        return model
    if weights is None and place.is_dir():
        names = [entry.name for entry in place.iterdir() if entry.is_file()]
        weights = place / checkpoint.find_weights(names, str(place))
    path = weights or Path(os.path.abspath(place))
    _check_foreign_size(path, max_parameters)
    model = convert.read_file(path, allow_pickle=allow_pickle)
    model.to(pick_device(device), dtype).eval()
    known = model.origin or Origin(found.text)
    model.origin = replace(known, source=found.text, repo_id=repo_id, revision=revision, folder=path)
    return model


def save(
    model: Model[Any],
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    card: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint folder, or replace one whole: `Model.save_pretrained` under the name that goes with `load`."""
    return model.save_pretrained(folder, dtype=dtype, card=card, provenance=provenance)


def _check_foreign_size(path: Path, max_parameters: int) -> None:
    if path.suffix == ".safetensors":
        count = sum(torch.Size(shape).numel() for _, shape in checkpoint.read_header(path).values())
        if count > max_parameters:
            raise CheckpointError(f"{path} holds {count:,} numbers; at most {max_parameters:,} parameters are allowed")
    elif path.is_file() and path.stat().st_size > 8 * max_parameters + checkpoint.MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} is {path.stat().st_size:,} bytes, too many for {max_parameters:,} parameters")
