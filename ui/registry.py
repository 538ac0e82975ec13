"""The models that the page knows: shipped, from the Hub, uploaded; which are in memory, and who uses them."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import bdh
from bdh import checkpoint, hub
from bdh.device import pick_device
from bdh.errors import CheckpointError, HatcheryError
from bdh.models import Model, parameter_count, state_bytes
from bdh.models.base import expected_shapes
from train.clock import Clock

from .fetched import expired, make_room
from .limits import Limits
from .uploads import Uploads

TRAINED_HERE, MERGED_HERE = "trained here", "merged here"
_MET_FIRST = "chat"
"""What a newcomer talks to, if it is there."""
LOADS_AT_ONCE = 2
"""Models fetched or taken in at the same time, for all visitors together."""
Owner = str
"""A secret that a browser or an API client's session is known by."""


class Entry(NamedTuple):
    """One model as a list shows it."""

    id: str
    title: str
    kind: str
    parameters: int
    state_bytes: int
    source: str
    loaded: bool
    in_use: int
    private: bool


@dataclass
class _Slot:
    """One model: where it comes from, and the weights if they are in memory."""

    id: str
    title: str
    folder: Path
    config: Any
    source: str
    owner: Owner | None = None
    model: Model[Any] | None = None
    users: int = 0
    last_used: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)


class Registry:
    """Models by id. A model that a stream uses stays; one that nobody uses makes room for another."""

    def __init__(
        self,
        shipped: Path,
        data: Path,
        limits: Limits,
        device: str | None = None,
        *,
        cache: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Know what is shipped and cached, and what was uploaded before.

        Args:
            shipped: holds a checkpoint folder each.
            data: uploads are kept below it.
            cache: the Hub client's cache, whose checkpoints are listed for everybody; None is the usual place, of
                which nothing is listed.
            clock: says how old uploads are; None is one of their own.
        """
        self.limits, self.device = limits, pick_device(device)
        # A public page deletes what it fetched when it is too much; what lies in the usual place is not its own.
        self._cache = data / "hub" if cache is None and limits.public else cache
        self.clock = clock or Clock()
        """Says how old what is kept is."""
        self._uploads = Uploads(data / "uploads", limits.uploads_hours * 3600.0, self.clock)
        self._arriving = 0
        self._reserved = 0
        self.park_idle: Callable[[str], None] = lambda id: None
        """Called before a model is dropped: whoever holds idle streams of it puts them aside."""
        self.forget: Callable[[str], None] = lambda id: None
        """Called when a model is gone for good."""
        self.claim: Callable[[Owner], None] = lambda owner: None
        """Called before an owner's models are looked at: what was kept for them from an earlier start comes in."""
        self._lock = threading.RLock()
        self._slots: dict[str, _Slot] = {}
        self._clock = 0
        folders = list(shipped.iterdir()) if shipped.is_dir() else []
        for folder in sorted(folders, key=lambda folder: (folder.name != _MET_FIRST, folder.name)):
            if (folder / "config.json").is_file():
                config = checkpoint.read_config(folder)
                self._slots[folder.name] = _Slot(folder.name, folder.name, folder, config, "shipped")
        most = len(self._slots) + _MAX_SHARED
        for found in hub.cached_checkpoints(cache) if cache is not None else []:
            if len(self._slots) >= most:
                break
            with suppress(HatcheryError):  # one that cannot be loaded is no choice
                config, id = checkpoint.read_config(found.folder), found.source.name
                expected_shapes(config, limits.max_parameters)
                if state_bytes(config) <= limits.max_state_bytes:
                    self._slots[id] = _Slot(id, id, found.folder, config, f"Hub: {id}")

    def entries(self, owner: Owner) -> list[Entry]:
        """All that this owner may use: what is shipped, what anybody loaded from the Hub, and what is their own."""
        self._claim(owner)
        with self._lock:
            return [
                Entry(
                    slot.id,
                    slot.title,
                    _kind(slot.config),
                    parameter_count(slot.config),
                    state_bytes(slot.config),
                    slot.source,
                    slot.model is not None,
                    slot.users,
                    slot.owner is not None,
                )
                for slot in self._slots.values()
                if slot.owner in (None, owner)
            ]

    def choices(self, owner: Owner) -> list[tuple[str, str]]:
        """(label, id) of each model, for a list to choose from."""
        return [
            (f"{entry.title} · {entry.kind} · {compact(entry.parameters)} parameters", entry.id)
            for entry in self.entries(owner)
        ]

    def default(self) -> str:
        """The id of the model that a newcomer meets first, or an empty text if there is none."""
        with self._lock:
            return next((s.id for s in self._slots.values() if s.owner is None), "")

    def card(self, id: str, owner: Owner) -> str:
        """The model card in Markdown, without its front matter."""
        folder = self._slot(id, owner).folder
        text = checkpoint.read_card(folder)[:50_000] if folder.is_dir() else ""
        if not text.strip():
            return "This checkpoint has no card."
        return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)

    def details(self, id: str, owner: Owner) -> dict[str, str]:
        """What there is to know about a model, as labelled texts."""
        slot = self._slot(id, owner)
        file = slot.folder / checkpoint.WEIGHTS if slot.folder.is_dir() else slot.folder
        rows = {
            "Kind": f"{_kind(slot.config)}: {_KINDS[slot.config.kind]}",
            "Parameters": f"{parameter_count(slot.config):,}",
            "State": f"{size_text(state_bytes(slot.config))} for one conversation, however long",
            "Checkpoint": size_text(file.stat().st_size) if file.is_file() else "not on this disk any more",
            "From": slot.source,
        }
        if slot.model is not None:
            rows["Runs on"] = f"{slot.model.device.type}, {str(slot.model.dtype).removeprefix('torch.')}"
            by = slot.model.single_bytes()
            copied = " with a copy of the weights of their own" if by == "compiled loops" else ""
            rows["Runs on"] += f", single bytes by {by}{copied}"
            rows["In use by"] = (
                "nobody" if not slot.users else f"conversations and texts, of all visitors: {slot.users}"
            )
        return rows

    def config(self, id: str, owner: Owner) -> Any:
        """The configuration of a model."""
        return self._slot(id, owner).config

    def folder(self, id: str, owner: Owner) -> Path:
        """Where a model lies: its checkpoint's folder, or a file of foreign weights."""
        return self._slot(id, owner).folder

    def source(self, id: str, owner: Owner) -> str:
        """Where a model came from: `shipped`, `Hub: user/repo`, `uploaded`, `trained here` or `merged here`."""
        return self._slot(id, owner).source

    def title(self, id: str, owner: Owner) -> str:
        """What a model is called."""
        return self._slot(id, owner).title

    @contextmanager
    def lease(self, id: str, owner: Owner) -> Iterator[Model[Any]]:
        """The model, loaded if need be, and kept in memory until the block ends."""
        model = self.acquire(id, owner)
        try:
            yield model
        finally:
            self.release(id)

    def acquire(self, id: str, owner: Owner) -> Model[Any]:
        """As `lease`, for a use that outlasts a block; each call asks for one `release`."""
        with self._lock:  # a slot with users is neither replaced nor struck off
            slot = self._slot(id, owner)
            slot.users += 1
            self._clock += 1
            slot.last_used = self._clock
        try:
            with slot.loading:
                if slot.model is None:
                    self._make_room(slot)
                    model = bdh.load(
                        str(slot.folder), device=str(self.device), max_parameters=self.limits.max_parameters
                    )
                    slot.model = model
                return slot.model
        except BaseException:
            self.release(id)
            raise

    def release(self, id: str) -> None:
        """Give back what `acquire` gave."""
        with self._lock:
            if (slot := self._slots.get(id)) is not None:
                slot.users -= 1

    @contextmanager
    def reserve(self, state_bytes: int) -> Iterator[None]:
        """Room for the memory of streams that live for one request only.

        Raises:
            HatcheryError: there is none.
        """
        with self._lock:
            if self._reserved + state_bytes > self.limits.max_state_bytes:
                raise HatcheryError(
                    f"the memory for this takes {size_text(state_bytes)}, and of "
                    f"{size_text(self.limits.max_state_bytes)} allowed here {size_text(self._reserved)} are in use; "
                    "choose a smaller model, or try again in a while"
                )
            self._reserved += state_bytes
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= state_bytes

    @contextmanager
    def _one_of_few(self) -> Iterator[None]:
        """At most two models are fetched or taken in at once, also when their requests were given up."""
        with self._lock:
            if self._arriving >= LOADS_AT_ONCE:
                raise HatcheryError("two models are being loaded right now; try again when they are done")
            self._arriving += 1
        try:
            yield
        finally:
            with self._lock:
                self._arriving -= 1

    def load_hub(
        self,
        source: str,
        owner: Owner,
        *,
        token: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> str:
        """Fetch a checkpoint from the Hub; returns its id. What a token opened is its owner's alone."""
        with self._one_of_few():
            self._make_room()
            self._make_room_on_disk()
            place = hub.parse_source(source, local=False)
            model = bdh.load(
                place,
                # Asked each time: what the cache holds may be private to whoever loaded it.
                offline=False,
                cache_dir=self._cache,
                device=str(self.device),
                token=token,
                progress=progress,
                max_parameters=self.limits.max_parameters,
            )
        origin = model.origin
        assert origin is not None and origin.folder is not None
        pinned = place.at(str(origin.revision)[:7])
        title = _of_its_own(place.name) if token else place.name
        return self._adopt(model, title, f"Hub: {place.name}", origin.folder, owner if token else None, pinned)

    def _make_room_on_disk(self) -> None:
        """Delete models from the Hub that nobody uses, where the page is public and they take too much."""
        if self._cache is None or not self.limits.public:
            return
        self._strike(make_room(self._cache, self.limits.max_fetched_bytes, self._in_use()))

    def _in_use(self) -> Callable[[Path], bool]:
        """Whether something below a folder is loaded, or about to be."""
        with self._lock:
            slots = list(self._slots.values())
            used = [slot.folder for slot in slots if slot.users or slot.loading.locked() or slot.model is not None]
            coming = self._arriving > 0
        return lambda folder: coming or any(one.is_relative_to(folder) for one in used)

    def _strike(self, gone: list[Path]) -> None:
        """Strike the models of folders that were deleted off the list."""
        with self._lock:
            for slot in list(self._slots.values()):
                if any(slot.folder.is_relative_to(folder) for folder in gone):
                    del self._slots[slot.id]

    def load_files(self, paths: list[str], owner: Owner) -> str:
        """Take in uploaded files, which together are one checkpoint; returns its id."""
        files = [Path(path) for path in paths]
        self._check_upload(files, owner)
        with self._one_of_few():
            root = self._uploads.room()
            try:
                self._make_room()
                model, folder = self._read_upload(files, root)
                title = re.sub(r"[^\w. -]", "_", next(file.stem for file in files if file.suffix in _WEIGHTS))[:60]
                title = _of_its_own(title)
                self._uploads.keep(root, title, title, folder, owner)
                return self._adopt(model, title, "uploaded", folder, owner)
            except BaseException:
                shutil.rmtree(root, ignore_errors=True)
                raise

    def load_trained(self, folder: Path, title: str, owner: Owner, source: str = TRAINED_HERE) -> str:
        """Take a checkpoint that was made here into its owner's list; returns its id.

        The same checkpoint keeps its id; one that was trained on since gets another.
        """
        written = (folder / checkpoint.WEIGHTS).stat().st_mtime_ns
        id = f"{title}-{hashlib.sha256(f'{folder} {written}'.encode()).hexdigest()[:12]}"
        config = checkpoint.read_config(folder)
        self.check_state(config)
        with self._lock:
            old = [
                slot.id for slot in self._slots.values() if slot.folder == folder and slot.id != id and not slot.users
            ]
            for other in old:
                del self._slots[other]
            if id not in self._slots:
                self._slots[id] = _Slot(id, title, folder, config, source, owner)
        for other in old:
            self.forget(other)
        return id

    def drop_within(self, folder: Path) -> None:
        """Strike what lies in a folder that is about to go.

        Raises:
            HatcheryError: somebody is using it.
        """
        with self._lock:
            slots = [slot for slot in self._slots.values() if slot.folder.is_relative_to(folder)]
        for slot in slots:
            self.park_idle(slot.id)
            with self._lock:
                if slot.users:
                    raise HatcheryError(f"{slot.title} is being used in another tab; end what is done with it first")
                self._slots.pop(slot.id, None)
            self.forget(slot.id)

    def _read_upload(self, files: list[Path], root: Path) -> tuple[Model[Any], Path]:
        """The model of uploaded files, and the folder below `root` that it is kept in."""
        for file in files:
            kept = checkpoint.WEIGHTS if file.suffix == ".safetensors" else file.name
            kept = checkpoint.CONFIG if file.suffix == ".json" and len(files) == 2 else kept
            shutil.copyfile(file, root / re.sub(r"[^\w.-]", "_", kept))
        if (root / checkpoint.CONFIG).is_file() and (root / checkpoint.WEIGHTS).is_file():
            return bdh.load(root, device=str(self.device), max_parameters=self.limits.max_parameters), root
        raw = next(path for path in root.iterdir() if path.suffix in _WEIGHTS)
        try:
            model = bdh.convert.read_file(raw, allow_pickle=self.limits.allow_pickle).to(self.device)
        except CheckpointError as error:
            if any(file.suffix == ".json" for file in files):
                raise
            raise CheckpointError(f"{error} Or choose its config.json together with it.") from error
        model.save_pretrained(root / "converted")
        raw.unlink()
        return model, root / "converted"

    def unload(self, id: str, owner: Owner) -> str:
        """Drop a model's weights from memory, and an upload from disk too; returns what was done.

        Raises:
            HatcheryError: somebody is using it.
        """
        slot = self._slot(id, owner)
        self.park_idle(id)
        with self._lock:
            if slot.users:
                who = "a conversation or text is" if slot.users == 1 else f"{slot.users} conversations or texts are"
                raise HatcheryError(f"{slot.title} stays loaded: {who} being written with it; try again later")
            freed, slot.model = slot.model is not None, None
            if slot.owner is not None:
                del self._slots[id]
        if slot.owner is not None:  # without the lock: whoever forgets a conversation may wait for it
            # What a token opened lies in the Hub's cache, which is not this page's to empty.
            if slot.folder.is_relative_to(self._uploads.root):
                self._uploads.remove(slot.folder)
            self.forget(id)
            if slot.source == TRAINED_HERE:
                return f"{slot.title} left the list; its run keeps it."
            if slot.source == MERGED_HERE:
                return f"{slot.title} left the list; the Merge tab keeps it."
            return f"{slot.title} was deleted."
        return (
            f"{slot.title} was unloaded; it comes back when it is used." if freed else f"{slot.title} was not loaded."
        )

    def expire(self) -> None:
        """Delete the uploads whose time is over, and on a public page models of the Hub; what is in use stays."""
        if self.limits.public and self._cache is not None:
            self._strike(expired(self._cache, self.limits.uploads_hours * 3600.0, self.clock, self._in_use()))
        for folder in self._uploads.old():
            with suppress(HatcheryError):
                self.drop_within(folder)
                self._uploads.remove(folder)

    def _claim(self, owner: Owner) -> None:
        """Let an owner's things of earlier come in, before they are looked at."""
        with self._lock:
            for upload in self._uploads.claimed(owner):
                with suppress(HatcheryError, OSError):  # deleted since, or damaged
                    config = checkpoint.read_config(upload.folder)
                    self.check_state(config)
                    self._slots[upload.id] = _Slot(upload.id, upload.title, upload.folder, config, "uploaded", owner)
        self.claim(owner)

    def _slot(self, id: str, owner: Owner) -> _Slot:
        self._claim(owner)
        with self._lock:
            slot = self._slots.get(id) if isinstance(id, str) else None
        if slot is None or slot.owner not in (None, owner):
            raise HatcheryError(f"there is no model {id!r:.80} here; choose one from the list, or load it in Models")
        return slot

    def _adopt(
        self, model: Model[Any], title: str, source: str, folder: Path, owner: Owner | None, pinned: str = ""
    ) -> str:
        """Take a loaded model into the list; `pinned` is its name if another commit under its title is in use."""
        self.check_state(model.config)
        with self._lock:
            id = title
            known = self._slots.get(id)
            if known is not None and known.folder != folder and known.users:
                id = title = pinned
                known = self._slots.get(id)
            self._clock += 1
            if known is None or known.folder != folder:
                known = self._slots[id] = _Slot(id, title, folder, model.config, source, owner)
            known.model, known.last_used = known.model or model, self._clock
            self._forget_oldest()
            return id

    def check_state(self, config: Any) -> None:
        """Refuse a model of which the memory of one stream alone would be too large.

        Raises:
            HatcheryError: it would.
        """
        if (size := state_bytes(config)) > self.limits.max_state_bytes:
            raise HatcheryError(
                f"a memory of this model takes {size_text(size)}; at most "
                f"{size_text(self.limits.max_state_bytes)} are allowed here"
            )

    def _forget_oldest(self) -> None:
        """Strike the models from the Hub that nobody used for longest off a list that has grown too long."""
        shared = [slot for slot in self._slots.values() if slot.owner is None and slot.source != "shipped"]
        idle = sorted((slot for slot in shared if not slot.users), key=lambda slot: slot.last_used)
        for slot in idle[: max(0, len(shared) - _MAX_SHARED)]:
            del self._slots[slot.id]

    def _make_room(self, wanted: _Slot | None = None) -> None:
        """Drop the model unused longest if the next one, with those on their way, would be too many.

        The next one is `wanted`, or one that arrives from the Hub or from files.
        """
        with self._lock:
            slots = sorted(self._slots.values(), key=lambda slot: slot.last_used)
            loaded = [slot for slot in slots if slot.model is not None]
            coming = sum(slot is not wanted and slot.model is None and slot.loading.locked() for slot in slots)
            coming += self._arriving - (wanted is None)
        if len(loaded) + coming < self.limits.max_models:
            return
        for slot in loaded:
            self.park_idle(slot.id)
            with self._lock:
                if not slot.users:
                    slot.model = None
                    return
        raise HatcheryError(f"there is room for {self.limits.max_models} models, and all are in use; try again later")

    def _check_upload(self, files: list[Path], owner: Owner) -> None:
        with self._lock:
            own = sum(slot.owner == owner and slot.source == "uploaded" for slot in self._slots.values())
        if own >= self.limits.max_uploads_each:
            raise CheckpointError(f"you have {own} uploaded models, which is all there can be; delete one first")
        allowed = (".safetensors", ".json", ".md", *(_PICKLES if self.limits.allow_pickle else ()))
        for file in files:
            if file.suffix not in allowed:
                raise CheckpointError(
                    f"{file.name[:80]!r} cannot be read here; choose files that end in {', '.join(allowed)}"
                )
            if file.stat().st_size > self.limits.max_upload_bytes:
                raise CheckpointError(
                    f"{file.name[:80]!r} has {file.stat().st_size:,} bytes; "
                    f"at most {self.limits.max_upload_bytes:,} are allowed"
                )
        size = sum(file.stat().st_size for file in files)
        kept, free = self._uploads.bytes(), shutil.disk_usage(self._uploads.root.parent).free
        if kept + 2 * size > self.limits.max_uploads_bytes or 4 * size > free:
            raise CheckpointError("there is no room for more uploaded models; delete one of yours, or try again later")
        if sum(file.suffix in _WEIGHTS for file in files) != 1 or len(files) > 4:
            raise CheckpointError(
                "choose one file of weights (.safetensors) and, beside it, its config.json and README.md"
            )


_KINDS = {
    "flat": "BDH as released; one set of weights is used by every layer",
    "hierarchical": "one part hears patches of some bytes, another the bytes within them",
    "hebbian": "linear attention with a learned Hebbian rate",
    "transformer": "an ordinary Transformer, to compare with",
    "composed": "several models behind one front",
}
_MAX_SHARED = 64
"""Models from the Hub that everybody sees; beyond it, those unused longest leave the list."""
_PICKLES = (".pt", ".pth", ".bin")
_WEIGHTS = (".safetensors", *_PICKLES)


def size_text(count: int) -> str:
    """A number of bytes as a person reads it, such as 8.4 MB."""
    for scale, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"


def compact(count: int) -> str:
    """A count as a person reads it, such as 1.6 M."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _of_its_own(title: str) -> str:
    """A name that others' models of that title have not."""
    return f"{title}-{secrets.token_hex(2)}"


def _kind(config: Any) -> str:
    return f"composed ({config.method})" if config.kind == "composed" else config.kind
