"""What BDH checkpoints there are on the Hugging Face Hub, and what one is before its weights are downloaded.

Only listings, headers and small texts are read; nothing of it is kept on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from . import card as cards
from . import checkpoint, hub
from .config import Config
from .errors import CheckpointError
from .hub import Repo, Token
from .waiting import waiting

KINDS = ("flat", "hierarchical", "hebbian", "transformer", "composed")
MOST = 50
"""The most that one search gives."""
_SEARCH_S = 20.0
_EXPANDED = ["downloads", "lastModified", "private", "safetensors", "tags"]
_MAX_TEXT = 100
_MAX_CARD_BYTES = 50_000


@dataclass(frozen=True)
class Found:
    """A repository as a listing of the Hub shows it: what its owner says, not what was checked."""

    repo_id: str
    kind: str
    """Empty if its tags name none."""
    parameters: int
    """As the Hub counted them; 0 if it has not."""
    downloads: int
    """In the last month."""
    updated: str
    """Day of the last change, such as 2026-11-23."""
    private: bool


@dataclass(frozen=True)
class Seen:
    """A checkpoint on the Hub whose weights were not downloaded."""

    place: str
    """As it is loaded."""
    commit: str
    config: Config | None
    """None if it is of another project's form."""
    parameters: int
    weight_bytes: int
    license: str
    card: str
    """Without its front matter; from a stranger."""


def search(text: str = "", *, author: str = "", limit: int = 20, token: Token = None) -> list[Found]:
    """BDH checkpoints on the Hub, the most downloaded first.

    Args:
        text: part of the name; empty lists all.
        author: a user or an organisation.
        limit: 1 to `MOST`.
        token: as in `hub.fetch`: None searches as a stranger.

    Raises:
        CheckpointError: what is asked for cannot be, or the Hub does not answer.
    """
    text, author = (text or "").strip(), (author or "").strip()
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise CheckpointError(f"search for at most {_MAX_TEXT} plain characters; given were {len(text):,}")
    if author and not re.fullmatch(r"[\w.\-]{1,96}", author, re.ASCII):
        raise CheckpointError(f"{author!r:.60} is no user or organisation on the Hub; give one name, such as user")
    if not 1 <= limit <= MOST:
        raise CheckpointError(f"the number of results is {limit}; allowed are 1 to {MOST}")
    token = hub.checked_token(token) or False
    asked: dict[str, Any] = {"filter": cards.TAG, "sort": "downloads", "limit": limit, "expand": _EXPANDED}
    asked |= {name: value for name, value in (("search", text), ("author", author)) if value}
    with hub.explained("the search", token):
        response = get_session().get(  # the client's own listing has no time-out, and tries again for half a minute
            f"{hub.endpoint() or constants.ENDPOINT}/api/models",
            params=asked,
            headers=build_hf_headers(token=token, library_name=cards.LIBRARY),
            timeout=_SEARCH_S,
        )
        hf_raise_for_status(response)
        found = response.json()
    if not isinstance(found, list):
        raise CheckpointError("the search: the server does not answer as the Hub does; check HF_ENDPOINT and proxy")
    return [one for one in map(_found, found[:limit]) if one is not None]


def look(source: str, *, token: Token = None, max_parameters: int = 0) -> Seen:
    """What a checkpoint on the Hub is: its configuration and header are read and checked, and its card is read.

    Args:
        max_parameters: refuse a larger one; 0 takes any.

    Raises:
        CheckpointError: says what is wrong and what to do.
    """
    place = hub.parse_source(source, local=False)
    repo = Repo(place, hub.checked_token(token) or False, Path(constants.HF_HUB_CACHE))
    with hub.explained(place, token):
        return waiting(lambda: _look(repo, max_parameters), _SEARCH_S)


def _look(repo: Repo, max_parameters: int) -> Seen:
    pinned, names = repo.listing()
    commit, where = str(pinned.source.revision), f"{pinned.source.name}/"
    fields: Mapping[str, Any] = {}
    if checkpoint.CONFIG in names:
        fields = checkpoint.parse_json(_text(pinned, checkpoint.CONFIG), where + checkpoint.CONFIG)
    config = checkpoint.config_from_fields(fields, where + checkpoint.CONFIG) if checkpoint.has_format(fields) else None
    weights = pinned.look(checkpoint.find_weights(names, where.rstrip("/")))
    header = pinned.header(weights, where + weights.name)
    count = sum(torch.Size(shape).numel() for name, (_, shape) in header.items() if not checkpoint.is_frequency(name))
    if max_parameters and count > max_parameters:
        raise CheckpointError(f"{where} has {count:,} parameters; up to {max_parameters:,} are allowed here")
    text = ""
    if checkpoint.CARD in names:
        text = _text(pinned, checkpoint.CARD, _MAX_CARD_BYTES).decode("utf-8", "replace")
    return Seen(repo.source.name, commit, config, count, weights.size, cards.license_of(text), cards.split(text)[1])


def _text(repo: Repo, name: str, most: int = checkpoint.MAX_TEXT_BYTES) -> bytes:
    """The beginning of a small file, not kept."""
    remote = repo.look(name)
    return repo.part(remote, 0, min(remote.size, most)) if remote.size else b""


def _found(info: Any) -> Found | None:
    """A row of a listing, as far as it is well formed."""
    if not isinstance(info, dict) or not cards.is_hub_id(info.get("id")):
        return None
    tags, counted = info.get("tags"), info.get("safetensors")
    tags = tags if isinstance(tags, list) else []
    return Found(
        info["id"],
        next((kind for kind in KINDS if kind in tags), ""),
        _count(counted.get("total") if isinstance(counted, dict) else 0),
        _count(info.get("downloads")),
        found[0] if (found := re.match(r"\d{4}-\d\d-\d\d(?=T)", str(info.get("lastModified")))) else "",
        bool(info.get("private")),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
