"""What the Merge tab does, without components: from a filled form to a plan, a command, and a model that is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import lzma
import os
import re
import secrets
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bdh import checkpoint
from bdh.errors import HatcheryError, MergeError
from bdh.merge import METHODS, Plan, Recipe, make_plan, merge, write
from bdh.merge.plan import result_config
from bdh.merge.recipe import CALIBRATION_BYTES
from bdh.models import Model
from train.clock import Clock
from train.recipe import list_recipes, read_fields
from train.shipped import CORPORA, held_out_start

from .limits import Limits
from .registry import MERGED_HERE, Owner, Registry, compact, size_text
from .wishes import SHIPPED_TEXTS, is_number, run_name

CALIBRATION = "calibration.txt"
_NOTE, _MODEL = "merge.json", "checkpoint"
_ID = re.compile(r"[0-9a-f]{16}")
_HALF_MADE = ".new"
_LEAST_FREE_BYTES = 500_000_000
_NUMBERS: dict[str, tuple[str, type]] = {
    "t": ("t", float),
    "density": ("Density", float),
    "scale": ("Scale", float),
    "share_rate": ("Share rate", float),
    "width": ("Width", int),
    "neurons": ("Neurons a head", int),
    "seed": ("Seed", int),
}
"""Numbers of the form, and what the page calls each."""
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Recipe)}
DEMONSTRATION = ("english", "spanish", "python", "chat")
"""Shipped specialists that a newcomer finds chosen."""


@dataclass(frozen=True)
class Wanted:
    """A filled form; numbers as the page sends them."""

    parents: tuple[str, ...] = ()
    """Ids of models."""
    method: str = "concat"
    weights: str = ""
    """Numbers between commas or spaces; empty weighs all alike."""
    base: str = ""
    """Id of a model."""
    t: float | None = 0.5
    density: float | None = 0.5
    scale: float | None = 1.0
    share_rate: float | None = 0.005
    width: float | None = 256
    neurons: float | None = 0
    by: str = "activity"
    align: bool = False
    seed: float | None = 0
    name: str = ""


class Preview(NamedTuple):
    """What there is to say of a filled form before it is done."""

    fits: bool
    line: str
    """Whether and how the parents can be merged."""
    plan: str
    """Line by line; empty if they cannot."""
    command: str


@dataclass(frozen=True)
class Kept:
    """A merged model that was kept."""

    id: str
    title: str
    created: float
    """Seconds since the epoch."""
    method: str
    parents: tuple[str, ...]
    """Ids of the models that it was made of; some may be gone."""
    names: tuple[str, ...]
    """What these were called."""
    path: Path

    @property
    def checkpoint(self) -> Path:
        """The folder of its checkpoint."""
        return self.path / _MODEL


class Merger:
    """Merged models of the page's visitors; each lies in a folder of its own, so that it outlives the page."""

    def __init__(self, registry: Registry, data: Path, limits: Limits, clock: Clock | None = None) -> None:
        """Find what was merged before.

        Args:
            data: merged models are kept below it.
            clock: says how old they are; None is one of their own.
        """
        self.registry, self.limits, self._root = registry, limits, data / "merges"
        self._clock = clock or Clock()
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._merging = threading.Lock()
        # By the hash of their owner; whoever comes back finds theirs again.
        self._unclaimed: dict[str, list[Kept]] = {}
        self._sweep()
        for owner, kept in self._records():
            self._unclaimed.setdefault(owner, []).append(kept)
        registry.claim = self._claim

    def preview(self, wanted: Wanted, owner: Owner) -> Preview:
        """Whether the form can be done, what would come of it, and the same as a command."""
        if len(wanted.parents) < 2:
            return Preview(False, "Choose two models or more.", "", "# choose two models or more")
        names: dict[str, str] = {}
        try:
            names = self._names(wanted, owner)
            plan = self._plan(wanted, owner, names)
        except HatcheryError as error:
            others = [name for name in self._takers(wanted, names, owner) if name != wanted.method] if names else []
            line = f"Not yet: {error}."
            if others:
                line += f" With what is chosen now, these methods work: {', '.join(others)}."
            return Preview(False, line, "", f"# {error}")
        count = plan.parameter_count()
        line = (
            f"These {len(plan.parents)} can be merged by {wanted.method}: {compact(count)} parameters, "
            f"{size_text(plan.size_bytes())} on disk, {size_text(plan.peak_bytes())} of memory on the way."
        )
        return Preview(True, line, "\n".join(plan.lines()), self._command(plan.recipe, names, owner))

    def merge(self, wanted: Wanted, owner: Owner, tell: Callable[[int, int, str], None]) -> Kept:
        """Merge, and keep the result among the owner's models.

        Args:
            tell: called with steps done, steps in all, and what is done next.

        Raises:
            HatcheryError: what is asked for cannot be, or there is no room for it.
        """
        if len(wanted.parents) < 2:
            raise MergeError("choose two models or more")
        names = self._names(wanted, owner)
        plan = self._plan(wanted, owner, names)
        with self._alone():
            self._check_room(plan, owner)
            text = self._calibration(wanted, owner) if plan.recipe.text else None
            id = secrets.token_hex(8)
            making = self._root / f"{id}{_HALF_MADE}"
            making.mkdir(mode=0o700)
            try:
                merged = merge(plan, text=text, progress=tell)
                write(merged, making / _MODEL)
                told = {
                    "owner": _hashed(owner),
                    "title": plan.recipe.name,
                    "created": time.time(),
                    "method": plan.recipe.method,
                    "parents": list(wanted.parents),
                    "names": [parent.name for parent in plan.parents],
                }
                (making / _NOTE).write_text(json.dumps(told), encoding="utf-8")
                os.rename(making, self._root / id)
            except BaseException:
                shutil.rmtree(making, ignore_errors=True)
                raise
        kept = self.get(id, owner)
        self.model_id(kept, owner)
        return kept

    def average(self, parents: Sequence[str], owner: Owner) -> Model[Any]:
        """The weight average of models, in float32 on the CPU; it is not kept.

        Raises:
            HatcheryError: they differ in shape, or there is no room for it now.
        """
        wanted = Wanted(parents=tuple(parents), method="average")
        plan = self._plan(wanted, owner, self._names(wanted, owner))
        with self._alone():
            self._check_memory(plan)
            return merge(plan).model()

    def of(self, owner: Owner) -> list[Kept]:
        """An owner's merged models, the newest first."""
        hashed = _hashed(owner)
        self.expire()
        return sorted((kept for whose, kept in self._records() if whose == hashed), key=lambda kept: -kept.created)

    def get(self, id: str | None, owner: Owner) -> Kept:
        """An owner's merged model.

        Raises:
            MergeError: there is none, or it is another's.
        """
        if isinstance(id, str) and _ID.fullmatch(id):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                whose, kept = _read(self._root / id)
                if whose == _hashed(owner):
                    return kept
        raise MergeError("there is no such merged model of yours; it may have been deleted")

    def model_id(self, kept: Kept, owner: Owner) -> str:
        """What the registry knows a merged model by."""
        return self.registry.load_trained(kept.checkpoint, kept.title, owner, MERGED_HERE)

    def delete(self, id: str, owner: Owner) -> str:
        """Delete a merged model; returns what was done.

        Raises:
            HatcheryError: there is none, or it is in use.
        """
        kept = self.get(id, owner)
        self._remove(kept)
        return f"{kept.title} was deleted."

    def parents(self, kept: Kept, owner: Owner) -> list[tuple[str, str]]:
        """(name, id) of those parents of a merged model that are still there."""
        known = {entry.id for entry in self.registry.entries(owner)}
        return [(name, id) for name, id in zip(kept.names, kept.parents, strict=True) if id in known]

    def texts(self, parents: Sequence[str], owner: Owner) -> list[str]:
        """The shipped texts that models were trained on, as far as they say; all of them if none does."""
        found: set[str] = set()
        for id in parents:
            with contextlib.suppress(HatcheryError, OSError):
                told = checkpoint.read_provenance(self.registry.folder(id, owner)).get("texts")
                if isinstance(told, dict):  # a foreign checkpoint may say anything
                    found |= told.keys()
        return [name for name in SHIPPED_TEXTS if name in found] or SHIPPED_TEXTS

    def _plan(self, wanted: Wanted, owner: Owner, names: Mapping[str, str]) -> Plan:
        folders = {name: str(self.registry.folder(id, owner)) for id, name in names.items()}
        recipe = self._recipe(wanted, names)
        plan = make_plan(
            recipe, offline=True, resolve=lambda name: folders[name], max_parameters=self.limits.max_parameters
        )
        self.registry.check_state(plan.config)  # it could be made, but not used
        # What lies in a folder of this page's own is known to its owner by another name.
        parents = [
            self._told(parent, name, id, owner) for parent, (id, name) in zip(plan.parents, names.items(), strict=False)
        ]
        base = plan.base and self._told(plan.base, names[wanted.base], wanted.base, owner)
        return dataclasses.replace(plan, parents=tuple(parents), base=base)

    def _told(self, parent: Any, name: str, id: str, owner: Owner) -> Any:
        source = self.registry.source(id, owner)
        if source == "shipped":
            return dataclasses.replace(parent, name=name)
        place = source.removeprefix("Hub: ")
        if place == source:
            return dataclasses.replace(parent, name=name, source=name)
        pinned: dict[str, Any] = {}
        if parent.folder is not None and parent.folder.parent.name == "snapshots" and ":" not in place:
            pinned = {"repo_id": place.partition("@")[0], "revision": parent.folder.name}
        return dataclasses.replace(parent, name=name, source=place, **pinned)

    def _recipe(self, wanted: Wanted, names: Mapping[str, str]) -> Recipe:
        parents = tuple(names[id] for id in wanted.parents)
        fields: dict[str, Any] = {"parents": parents, "method": wanted.method}
        uses = METHODS[wanted.method].options if wanted.method in METHODS else ()
        for name in uses:
            if name in _NUMBERS:
                fields[name] = _number(name, getattr(wanted, name))
        if "weights" in uses:
            fields["weights"] = _weights(wanted.weights)
        if "base" in uses:
            if not wanted.base:
                raise MergeError("choose the base that these models were cloned from")
            fields["base"] = names[wanted.base]
        if "align" in uses:
            fields["align"] = bool(wanted.align)
        if fields.get("neurons"):
            fields |= {"by": wanted.by, "seed": _number("seed", wanted.seed)}
        if fields.get("align") or (fields.get("neurons") and wanted.by == "activity"):
            fields["text"] = CALIBRATION
        fields["name"] = run_name(wanted.name or "-".join(map(_last, parents)), "merged")
        return Recipe(**fields)

    def _names(self, wanted: Wanted, owner: Owner) -> dict[str, str]:
        """By id: what each model is called, as the command line finds it where it can; the parents first."""
        if len(set(wanted.parents)) < len(wanted.parents):
            raise MergeError("a model is chosen more than once; choose each once, and give one that counts more weight")
        names: dict[str, str] = {}
        for id in (*wanted.parents, *([wanted.base] if wanted.base else [])):
            if id in names:
                continue
            source = self.registry.source(id, owner)
            name = source.removeprefix("Hub: ")
            if name == source:
                name = id if source == "shipped" else run_name(self.registry.title(id, owner), "model")
            taken, count = name, 1
            while name in names.values():
                count += 1
                name = f"{taken}-{count}"
            names[id] = name
            self._check_own(self.registry.folder(id, owner), name)
        return names

    def _check_own(self, folder: Path, name: str) -> None:
        """Refuse what can only be looked at with all its weights in memory: a form is previewed at every change."""
        if not folder.is_dir() or not checkpoint.is_checkpoint(folder):
            raise MergeError(
                f"the weights of {name} are in another project's form; convert them with python -m bdh convert, load "
                "the result in Models, and choose that"
            )
        if getattr(checkpoint.read_config(folder), "sources", ()):
            raise MergeError(f"{name} only refers to its members on the Hub; choose these members instead")

    def _takers(self, wanted: Wanted, names: Mapping[str, str], owner: Owner) -> list[str]:
        """The methods that take these parents."""
        found = []
        configs = [self.registry.config(id, owner) for id in wanted.parents]
        base = self.registry.config(wanted.base, owner) if wanted.base else None
        for method in METHODS:
            with contextlib.suppress(HatcheryError):
                other = dataclasses.replace(wanted, method=method, neurons=0, align=False)
                recipe = self._recipe(other, names)
                self.registry.check_state(result_config(recipe, configs, base if recipe.uses("base") else None))
                found.append(method)
        return found

    def _command(self, recipe: Recipe, names: Mapping[str, str], owner: Owner) -> str:
        words = [*recipe.parents]
        for field in dataclasses.fields(Recipe):
            value = getattr(recipe, field.name)
            if field.name in ("parents", "name") or value == field.default:
                continue
            words.append(f"--{field.name.replace('_', '-')}")
            if isinstance(value, tuple):
                words[-1] += f"={','.join(f'{one:g}' for one in value)}"  # a first weight may be below 0
            elif not isinstance(value, bool):
                words.append(str(value))
        notes = [
            f"# {name}: the model, downloaded and unpacked"
            for id, name in names.items()
            if self.registry.source(id, owner) not in ("shipped",)
            and not self.registry.source(id, owner).startswith("Hub: ")
        ]
        if recipe.text:
            notes.append(
                f"# {CALIBRATION}: {CALIBRATION_BYTES:,} bytes, in equal parts of what the parents were trained on"
            )
        return "\n".join([*notes, shlex.join(["python", "-m", "bdh", "merge", *words, "--out", recipe.name])])

    def _calibration(self, wanted: Wanted, owner: Owner) -> bytes:
        """What alignment and activity are measured on: equal parts of texts that the parents were trained on.

        No more in all than is heard; else it would be the first text alone.
        """
        names = self.texts(wanted.parents, owner)
        return b"".join(shipped_text(name)[0][: CALIBRATION_BYTES // len(names)] for name in names)

    def _check_memory(self, plan: Plan) -> None:
        peak, free = plan.peak_bytes(), min(psutil.virtual_memory().available, self.limits.max_merge_bytes)
        if peak > free:
            raise MergeError(
                f"merging takes {size_text(peak)} of memory, and {size_text(free)} can be had here; take fewer or "
                "smaller parents"
            )

    def _check_room(self, plan: Plan, owner: Owner) -> None:
        self._check_memory(plan)
        self._sweep()
        limits, size = self.limits, plan.size_bytes()
        if len(self.of(owner)) >= limits.max_merges_kept:
            raise MergeError(
                f"you have {limits.max_merges_kept} merged models, which is all that is kept here; delete one first"
            )
        taken = sum(path.stat().st_size for path in self._root.glob(f"*/{_MODEL}/*"))
        if taken + size > limits.max_merges_bytes or shutil.disk_usage(self._root).free < 2 * size + _LEAST_FREE_BYTES:
            raise MergeError(f"there is no room on the disk for {size_text(size)} more; delete merged models first")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One merge at a time: each takes the memory of all its parents."""
        if not self._merging.acquire(blocking=False):
            raise MergeError("another merge is under way; try again in a few seconds")
        try:
            yield
        finally:
            self._merging.release()

    def _claim(self, owner: Owner) -> None:
        if not self._unclaimed:
            return
        for kept in self._unclaimed.pop(_hashed(owner), []):
            with contextlib.suppress(HatcheryError, OSError):  # deleted since, or damaged
                self.model_id(kept, owner)

    def _records(self) -> Iterator[tuple[str, Kept]]:
        for name in sorted(os.listdir(self._root)):
            if _ID.fullmatch(name):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # being deleted, or damaged
                    yield _read(self._root / name)

    def _sweep(self) -> None:
        """Delete what is too old, whosever it is, and what was left half made; for times when nothing is being made."""
        for path in self._root.glob(f"*{_HALF_MADE}"):
            shutil.rmtree(path, ignore_errors=True)
        self.expire()

    def expire(self) -> None:
        """Delete what is too old, whosever it is; one that is in use stays as long as it is."""
        for _, kept in list(self._records()):
            with contextlib.suppress(HatcheryError, OSError):
                if self._clock.file_age(kept.path / _NOTE) > self.limits.runs_hours * 3600:
                    self._remove(kept)

    def _remove(self, kept: Kept) -> None:
        """Delete a merged model; first under another name, so that half of one is never taken for one.

        Raises:
            HatcheryError: it is in use, or the disk does not let it go.
        """
        self.registry.drop_within(kept.path)
        gone = kept.path.with_name(f"{kept.id}{_HALF_MADE}")
        try:
            os.rename(kept.path, gone)
        except FileNotFoundError:  # somebody else deleted it
            return
        except OSError as error:
            raise MergeError(f"{kept.title} could not be deleted: {error.strerror}; try again later") from error
        shutil.rmtree(gone, ignore_errors=True)


def shipped_text(name: str) -> tuple[bytes, bytes]:
    """A shipped text: what recipes train on, and what they keep from training."""
    data = lzma.decompress((CORPORA / f"{name}.txt.xz").read_bytes())
    start = held_out_start(len(data))
    return data[:start], data[start:]


def healing(texts: Sequence[str]) -> dict[str, Any]:
    """What the recipe `heal` says of a run on such texts, as fields of a training form."""
    fields: Mapping[str, Any] = read_fields("heal", []) if "heal" in list_recipes() else {}
    rows = max(2 * len(texts), 8)
    return {"learning_rate": float(fields.get("learning_rate", 1e-3)), "rows": rows, "patience": 0}


def _read(path: Path) -> tuple[str, Kept]:
    told = json.loads((path / _NOTE).read_text(encoding="utf-8"))
    return str(told["owner"]), Kept(
        path.name,
        str(told["title"]),
        float(told["created"]),
        str(told["method"]),
        tuple(told["parents"]),
        tuple(told["names"]),
        path,
    )


def _number(name: str, value: float | None) -> float | int:
    label, kind = _NUMBERS[name]
    if value is None:
        raise MergeError(f"{label} is empty; give a number, such as {_DEFAULTS[name]}")
    if not is_number(value):
        raise MergeError(f"{label} is {value!r:.40}; it must be a number")
    if kind is int and value != int(value):
        raise MergeError(f"{label} is {value:g}; it must be a whole number")
    return int(value) if kind is int else float(value)


def _weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in re.split(r"[,;\s]+", text.strip()) if part)
    except ValueError:
        raise MergeError(f"the weights are {text[:60]!r}; give numbers between commas, such as 1, 0.5") from None


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _hashed(owner: Owner) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()
