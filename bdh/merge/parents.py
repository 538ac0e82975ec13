"""Parents as they are looked at before their weights are read, and then read one by one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint, hub
from ..config import Config
from ..errors import CheckpointError
from ..load import load
from ..models import MAX_PARAMETERS, build
from ..models.base import Model, expected_shapes


@dataclass(frozen=True)
class Parent:
    """A checkpoint to be merged: what it is, without its weights."""

    name: str
    """Short, for tables: the folder's or repository's name."""
    source: str
    """As it may be told to others: no path above the checkpoint's own folder, unless it stands in a clone."""
    config: Config
    shapes: dict[str, checkpoint.Shape]
    dtype: torch.dtype
    """The widest of the stored weights."""
    folder: Path | None
    """None if the weights are foreign and held in memory already, or still on the Hub."""
    repo_id: str | None = None
    revision: str | None = None
    """Commit on the Hub."""
    subfolder: str = ""
    foreign: dict[str, Tensor] | None = None
    download: Callable[[], Path] | None = None
    """Brings weights that are still on the Hub."""

    @property
    def place(self) -> str | None:
        """`user/repo@commit` or `user/repo@commit:subfolder`, if it is on the Hub."""
        below = f":{self.subfolder}" if self.subfolder else ""
        return f"{self.repo_id}@{self.revision}{below}" if self.repo_id and self.revision else None

    def parameter_count(self) -> int:
        """Numbers in the weights."""
        return sum(
            torch.Size(shape).numel() for name, shape in self.shapes.items() if not checkpoint.is_frequency(name)
        )

    def size_bytes(self) -> int:
        """What the weights take in memory."""
        return self.parameter_count() * self.dtype.itemsize

    def read(self) -> dict[str, Tensor]:
        """The weights, in the types in which they are stored.

        Raises:
            CheckpointError: they are damaged, or were replaced by others since they were looked at.
        """
        if self.foreign is not None:
            return dict(self.foreign)
        folder = self.download() if self.download is not None else self.folder
        assert folder is not None
        config, tensors, _ = checkpoint.read(folder, expected_shapes)
        if config != self.config:
            raise CheckpointError(f"{folder} was replaced by another model meanwhile; merge again")
        return tensors


def model_of(config: Config, tensors: dict[str, Tensor]) -> Model[Any]:
    """A model in float32 of given tensors, ready to listen."""
    model = build(config, seed=0)
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def look(
    source: str,
    *,
    token: hub.Token = None,
    offline: bool | None = None,
    progress: hub.Progress | None = None,
    max_parameters: int = MAX_PARAMETERS,
) -> Parent:
    """What a checkpoint is. Only configuration and header are read, of what is on the Hub too, as far as they tell.

    Raises:
        CheckpointError: as `bdh.load`.
    """
    found = hub.parse_source(source)
    folder, repo_id, revision = found.path, None, None
    if folder is None:
        bounded = partial(expected_shapes, max_parameters=max_parameters)
        fetch = partial(hub.fetch, expected=bounded, token=token, offline=offline, progress=progress)
        peeked = hub.peek(found, expected=bounded, token=token, offline=offline)
        if peeked is not None and not getattr(peeked.config, "sources", ()):
            return _parent(
                (found.subfolder or peeked.repo_id).split("/")[-1],
                found.text,
                peeked.config,
                peeked.header,
                repo_id=peeked.repo_id,
                revision=peeked.revision,
                subfolder=found.subfolder,
                download=lambda: fetch(found, commit=peeked.revision).folder,
            )
        fetched = fetch(found)
        folder, repo_id, revision = fetched.folder, fetched.repo_id, fetched.revision
    folder = checkpoint.recovered(folder)
    name = (found.subfolder or repo_id or os.path.basename(os.path.abspath(folder))).split("/")[-1]
    told = found.text if repo_id else place_told(folder)
    ours = folder.is_dir() and checkpoint.is_checkpoint(folder)
    config = checkpoint.read_config(folder) if ours else None
    if config is not None and not getattr(config, "sources", ()):
        weights = folder / checkpoint.WEIGHTS
        header = checkpoint.read_header(weights)
        checkpoint.check_tensors(header, expected_shapes(config, max_parameters), str(weights))
        return _parent(
            name, told, config, header, folder, repo_id=repo_id, revision=revision, subfolder=found.subfolder
        )
    model = load(source, device="cpu", token=token, offline=offline, max_parameters=max_parameters)
    tensors = model.state_dict()
    shapes = {one: tuple(tensor.shape) for one, tensor in tensors.items()}
    return Parent(
        name, told, model.config, shapes, torch.float32, None, repo_id, revision, found.subfolder, dict(tensors)
    )


def _parent(
    name: str, told: str, config: Config, header: checkpoint.Header, folder: Path | None = None, **rest: Any
) -> Parent:
    """A parent of this project's format, by a header that was held against its configuration."""
    stored = [kind for tensor, (kind, _) in header.items() if not checkpoint.is_frequency(tensor)]
    shapes = {tensor: shape for tensor, (_, shape) in header.items()}
    return Parent(name, told, config, shapes, _widest(stored), folder, **rest)


def renamed(parents: list[Parent]) -> list[Parent]:
    """The parents with names that differ."""
    seen: dict[str, int] = {}
    result = []
    for parent in parents:
        seen[parent.name] = seen.get(parent.name, 0) + 1
        count = seen[parent.name]
        result.append(replace(parent, name=f"{parent.name} ({count})") if count > 1 else parent)
    return result


def place_told(folder: Path) -> str:
    """A path within a clone as a reader of the card finds it; else the folder's name alone."""
    parts = Path(os.path.abspath(folder)).parts
    return "/".join(parts[-2:]) if len(parts) > 1 and parts[-2] == "checkpoints" else parts[-1]


def _widest(stored: list[str]) -> torch.dtype:
    for kind, dtype in (("F64", torch.float32), ("F32", torch.float32), ("F16", torch.float32)):
        if kind in stored:
            return dtype
    return torch.bfloat16
