"""Where texts come from, and how each becomes one file of bytes on disk that training reads by memory map."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gzip
import hashlib
import itertools
import json
import lzma
import os
import re
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from huggingface_hub import HfApi, constants, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import WeakFileLock, validate_repo_id  # type: ignore[attr-defined]

from bdh.checkpoint import cut
from bdh.errors import ConfigError, DataError
from bdh.hub import Progress, Token

from . import generated
from .dialogues import dialogue_of_row
from .shipped import CORPORA as CORPORA

FORMS = ("plain", "tool-calling")
MAX_ROWS = 4096

_GENERATED = "generated:"
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
_ROW_FILES = (".jsonl", ".ndjson")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\-/]{0,199}")
_CHUNK_BYTES = 1 << 20
_LINE_BYTES = 64 << 20
_HEAD_BYTES = 8192
_REPORT_BYTES = 1 << 20
_REPORT_S = 0.2
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base of what the Hub client's HTTP library raises, whichever library that is."""
_LAYOUT = 1
"""Of the prepared files: raised when the same text would be laid out otherwise."""

Document: TypeAlias = Iterable[bytes] | None
"""The bytes of a document in pieces; None is a row whose contents are broken, which is left out."""


class _Unavailable(DataError):
    """A dataset that cannot be had here and now, for a reason that is not a mistake in the recipe."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Where one text of a recipe comes from and how it is cut."""

    name: str
    """How it is called in scores: letters, digits, dots, dashes and underscores, at most 100."""
    rows: int = 1
    """Rows of the batch that read it; 1 to 4096."""
    source: str = ""
    """A shipped corpus by name; `generated:` and a kind; a file by path: text, also compressed (.xz, .gz), or rows
    (.jsonl, .ndjson, also compressed) of which `column` is read; or a folder: every text file below it in the order of
    their paths, without hidden and binary ones and without following links. Empty takes `name`."""
    dataset: str = ""
    """A dataset on the Hub instead: user/name or user/name@revision. Never a path: name a local file as `source`."""
    config: str = ""
    """The dataset's configuration; empty takes its only or default one."""
    split: str = "train"
    """The dataset's split."""
    column: str = "text"
    """The column of rows that holds the text; a.b is the field b of the column a."""
    form: str = "plain"
    """`plain` reads `column`; `tool-calling` makes dialogues of rows with tools and calls (train/dialogues.py)."""
    separator: str = "\n\n"
    """What stands between two documents: rows, or files of a folder. Empty documents are left out."""
    max_bytes: int = 0
    """Read so many bytes at most, of each split that is named; 0 is all there is. Datasets are streamed, so this bounds
    the download. For what is generated, 0 is 4 MiB."""
    validation: str = ""
    """The dataset's split to validate on, or beside a `source` another source; empty cuts it from the text."""
    test: str = ""
    """Likewise for the test."""
    fallback: str = ""
    """A source that is read instead where the dataset cannot be had: offline, gated, `datasets` not installed.
    Validation and test are then cut from it."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("rows", "max_bytes"):
                low, high = (1, MAX_ROWS) if field.name == "rows" else (0, 1 << 50)
                if type(value) is not int or not low <= value <= high:
                    raise ConfigError(f"{self._field(field.name)}; it must be a whole number from {low} to {high:,}")
            elif not isinstance(value, str) or len(value) > 4096:
                raise ConfigError(f"{self._field(field.name)}; it must be a text of at most 4096 characters")
            elif field.name != "separator" and not value.isprintable():
                raise ConfigError(f"{self._field(field.name)}; it must have no control characters")
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"{self._field('name')}; it must be letters, digits, dots, dashes and underscores")
        if self.form not in FORMS:
            raise ConfigError(f"{self._field('form')}; it must be one of {', '.join(FORMS)}")
        if not self.column or not self.split:
            raise ConfigError(f"text {self.name!r}: column and split must not be empty")
        own = self.split if self.dataset else self.source or self.name
        named = [place for place in (own, self.validation, self.test) if place]
        if len(set(named)) < len(named):
            raise ConfigError(f"text {self.name!r}: what is trained, validated and tested on must not be the same")
        if self.dataset:
            self._check_dataset()
        elif self.config or self.split != "train" or self.fallback:
            raise ConfigError(f"text {self.name!r}: config, split and fallback belong to a dataset, and none is named")
        elif self.form != "plain" and not _has_rows(self.source or self.name):
            raise ConfigError(f"{self._field('form')}; it reads rows: name a dataset, or a .jsonl file as source")

    def _field(self, name: str) -> str:
        """The head of a message about a field."""
        return f"text {cut(self.name)}: {name} is {cut(getattr(self, name))}"

    def _check_dataset(self) -> None:
        if self.source:
            raise ConfigError(
                f"text {self.name!r}: name a source or a dataset, not both; a fallback may stand beside it"
            )
        repo_id, _, revision = self.dataset.partition("@")
        try:
            validate_repo_id(repo_id)
        except HFValidationError:
            repo_id = ""
        plain = not revision or (_REVISION.fullmatch(revision) and ".." not in revision)
        if repo_id.count("/") != 1 or not plain or self.dataset.endswith("@"):
            raise ConfigError(
                f"{self._field('dataset')}; it must be user/name or user/name@revision of a dataset on the Hub "
                "(name a local file or folder as source)"
            )

    @classmethod
    def parse(cls, name: str, value: int | Mapping[str, Any]) -> Text:
        """A text of a recipe: its name, or its path, and its rows alone or all of its fields.

        Raises:
            ConfigError: an unknown field, or a value that does not fit.
        """
        fields: Any = {"rows": value} if isinstance(value, int) else value
        if not isinstance(fields, Mapping):
            raise ConfigError(f"text {cut(name)} is {cut(value)}; it must be its rows, or a table of its fields")
        known = [field.name for field in dataclasses.fields(cls) if field.name != "name"]
        if unknown := [key for key in fields if key not in known]:
            raise ConfigError(f"text {cut(name)} does not know {cut(unknown[0])}; it knows {', '.join(known)}")
        if re.search(r"[/\\ ]", name) and not (fields.get("source") or fields.get("dataset")):
            stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(name).stem).strip(".-")
            return cls(**{**fields, "name": stem[:100] or "text", "source": name})
        return cls(name=name, **fields)

    def fields(self) -> dict[str, Any]:
        """What `parse` reads beside the name: every field that is not at its default, and the rows."""
        values = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)[1:]}
        return {name: value for name, (value, default) in values.items() if value != default or name == "rows"}


@dataclass(frozen=True)
class Prepared:
    """Bytes of one text on disk, read by memory map."""

    text: Text
    path: Path
    """The text; behind it what was named to validate on, then what was named to test on."""
    sha256: str
    size_bytes: int
    documents: int
    """Documents of all parts; 0 if it is one run of text."""
    skipped: int = 0
    """Rows that were left out because their contents are broken."""
    validation_bytes: int = 0
    """Bytes that were named to validate on; 0 cuts it from the text."""
    test_bytes: int = 0
    """Likewise for the test."""
    origin: str = ""
    """What was read, in words: a dataset with its commit, a file without its folder."""


def prepare(
    text: Text,
    folder: Path,
    *,
    progress: Progress | None = None,
    offline: bool | None = None,
    token: Token = None,
) -> Prepared:
    """Bring a text into `folder` as bytes, once: a later call finds what an earlier one left there.

    What a dataset gave is found again only by who reads with the same token, so that a folder may be shared. A file
    that has changed since is read anew; a dataset whose branch has moved is not.

    Args:
        progress: called with bytes written and bytes in all (0 while unknown); what it raises stops the work, and
            leaves nothing behind that a later call would take for the text.
        offline: True asks nothing of the Hub; None does as the Hub client does (HF_HUB_OFFLINE).
        token: for datasets: None reads as a stranger, True with this machine's login, a text is a token itself.

    Raises:
        DataError: says what is missing or cannot be read, and what there is.
    """
    try:
        return _prepare(text, folder, progress, offline, token)
    except _Unavailable:
        if not text.fallback:
            raise
    form = text.form if _has_rows(text.fallback) else "plain"
    kept = {name: getattr(text, name) for name in ("name", "rows", "column", "separator", "max_bytes")}
    prepared = _prepare(Text(source=text.fallback, form=form, **kept), folder, progress, offline, token)
    return replace(prepared, text=text)


def is_shipped(source: str) -> bool:
    """Whether a source names a corpus that comes with the repository."""
    return bool(re.fullmatch(r"[\w-]+", source)) and os.path.isfile(CORPORA / f"{source}.txt.xz")


def find_source(source: str) -> Path:
    """The file or folder that a source names: a shipped corpus before a path.

    Raises:
        DataError: there is neither.
    """
    if is_shipped(source):
        return CORPORA / f"{source}.txt.xz"
    path = Path(os.path.expanduser(source))
    if os.path.isfile(path) or os.path.isdir(path):  # pathlib's own raise where a name is too long
        return path
    corpora = ", ".join(sorted(p.name.removesuffix(".txt.xz") for p in CORPORA.glob("*.txt.xz")))
    kinds = ", ".join(_GENERATED + kind for kind in generated.KINDS)
    raise DataError(
        f"{cut(source)} is neither a shipped corpus ({corpora}), nor a file or folder, nor generated ({kinds})"
    )


def read_file(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces, unpacked if its name ends in .xz or .gz.

    Raises:
        DataError: it cannot be read or unpacked.
    """
    with _reading(path), _OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
        while data := file.read(_CHUNK_BYTES):
            yield data


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong while a file is read into a message about that file."""
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        name = cut(path.name)
        raise DataError(f"{name} is damaged or not what its ending says ({cut(error)}); unpack it") from error
    except OSError as error:
        raise DataError(f"{cut(str(path))} cannot be read: {error.strerror or cut(error)}") from error


@dataclass(frozen=True)
class _Part:
    """One thing to read: the text itself, or what was named to validate or test on."""

    origin: str
    identity: list[Any]
    """Decides the bytes, together with how the text is cut."""
    documents: Callable[[], Iterator[Document]]
    joined: bool
    """Whether these are documents with separators between, not one run of text."""
    total: int = 0
    """Bytes, where they are known before they are read."""
    revision: Callable[[], str] = str
    """Which state of it was read, once it has been."""


def _has_rows(source: str) -> bool:
    """Whether a source is a file of rows, by its ending."""
    name = source.lower()
    for ending in _OPENERS:
        name = name.removesuffix(ending)
    return name.endswith(_ROW_FILES)


def _prepare(text: Text, folder: Path, progress: Progress | None, offline: bool | None, token: Token) -> Prepared:
    named = [place for place in (text.validation, text.test) if place]
    if text.dataset:
        dataset = _Dataset(text, offline, token)
        parts = [dataset.part(split) for split in (text.split, *named)]
    else:
        parts = [_local_part(source, text) for source in (text.source or text.name, *named)]
    how: list[Any] = [_LAYOUT, text.column, text.form, text.separator, text.max_bytes, bool(text.validation)]
    key = hashlib.sha256(json.dumps([how, [part.identity for part in parts]]).encode()).hexdigest()[:16]
    path = folder / f"{text.name}-{key}.bin"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Several processes of one run may come here together: one writes, the others find it.
            stack.enter_context(WeakFileLock(path.with_suffix(".lock")))
        except OSError as error:
            raise _unwritable(text, folder, error) from error
        if (found := _found(text, path)) is None:
            _write(text, parts, path, progress)
            found = _found(text, path)
    if found is None:
        raise DataError(f"{cut(str(path))} was changed while it was written; try again")
    return found


def _unwritable(text: Text, folder: Path, error: OSError) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = "no space is left; free some, set max_bytes, or choose another folder"
    else:
        why = f"{error.strerror or cut(error)}; choose another folder"
    return DataError(f"text {text.name} cannot be written to {cut(str(folder))}: {why}")


def _found(text: Text, path: Path) -> Prepared | None:
    """What lies there, if it is whole."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        size = path.stat().st_size
    except (OSError, ValueError):
        return None
    kinds = {field.name: field.type for field in dataclasses.fields(Prepared) if field.name not in ("text", "path")}
    if not isinstance(facts, dict) or facts.keys() != kinds.keys():
        return None
    if any(type(facts[name]).__name__ != kind for name, kind in kinds.items()) or facts["size_bytes"] != size:
        return None
    return Prepared(text=text, path=path, **facts)


def _write(text: Text, parts: list[_Part], path: Path, progress: Progress | None) -> None:
    """Write the parts one behind the other, then what is known of them; a file is renamed when it is whole."""
    totals = [min(part.total, text.max_bytes) if text.max_bytes and part.total else part.total for part in parts]
    written, described = path.with_name(f"{path.name}.new"), path.with_suffix(".json")
    sink = _Sink(progress, sum(totals) if all(totals) else 0)
    try:
        with written.open("wb") as file:
            sizes = [sink.part(part, text, file) for part in parts]
            file.flush()
            os.fsync(file.fileno())
        sink.report()
        facts = {
            "sha256": sink.digest.hexdigest(),
            "size_bytes": sink.done,
            "documents": sink.documents,
            "skipped": sink.skipped,
            "validation_bytes": sizes[1] if text.validation else 0,
            "test_bytes": sizes[-1] if text.test else 0,
            "origin": parts[0].origin + parts[0].revision(),
        }
        described.unlink(missing_ok=True)
        os.replace(written, path)
        written.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        os.replace(written, described)
    except OSError as error:
        if error is sink.stopped_by:
            raise
        raise _unwritable(text, path.parent, error) from error
    finally:
        written.unlink(missing_ok=True)


class _Sink:
    """Bytes on their way to disk: counted, summed up, and told about now and then."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total = progress, total
        self._told_bytes, self._told_s = 0, time.monotonic()
        self.digest = hashlib.sha256()
        self.done = self.documents = self.skipped = 0
        self.stopped_by: Exception | None = None
        """What `progress` raised, so that it is not taken for an error of the disk."""

    def part(self, part: _Part, text: Text, file: BinaryIO) -> int:
        """Write a part up to the text's `max_bytes`, and say how long it is."""
        start, skipped = self.done, self.skipped
        limit = text.max_bytes or sys.maxsize
        separator = text.separator.encode("utf-8", "replace")
        for data, begins in self._pieces(part):
            if begins and part.joined:
                data = separator + data if self.done > start else data
                self.documents += 1
            data = data[: start + limit - self.done]
            file.write(data)
            self.digest.update(data)
            self.done += len(data)
            self._tell()
            if self.done - start == limit:
                break
        if self.done == start:
            broken = (
                f": the contents of its {self.skipped - skipped:,} rows are broken" if self.skipped > skipped else ""
            )
            raise DataError(f"text {text.name}: {part.origin} is empty{broken}; choose another source, split or column")
        return self.done - start

    def report(self) -> None:
        """Say that this is all."""
        self._told_bytes, self._total = -_REPORT_BYTES, self.done
        self._tell()

    def _pieces(self, part: _Part) -> Iterator[tuple[bytes, bool]]:
        """What is not empty, and whether a document begins with it."""
        for document in part.documents():
            if document is None:
                self.skipped += 1
                self._tell()
                continue
            begins = True
            for data in document:
                if data:
                    yield data, begins
                    begins = False

    def _tell(self) -> None:
        now = time.monotonic()
        if self._progress is None or (self.done - self._told_bytes < _REPORT_BYTES and now - self._told_s < _REPORT_S):
            return
        self._told_bytes, self._told_s = self.done, now
        try:
            self._progress(self.done, self._total)
        except Exception as error:
            self.stopped_by = error
            raise


def _local_part(source: str, text: Text) -> _Part:
    """What a source names, looked at but not yet read."""
    if source.startswith(_GENERATED):
        kind = source.removeprefix(_GENERATED)
        if kind not in generated.KINDS:
            find_source(source)
        size = text.max_bytes or generated.DEFAULT_BYTES
        made = functools.partial(generated.blocks, kind, size)
        return _Part(source, [source, size, generated.VERSION], lambda: iter([made()]), False, size)
    path = find_source(source)
    if path.is_dir():
        return _folder_part(path)
    with _reading(path):
        facts = path.stat()
    identity = [str(path.resolve()), facts.st_size, facts.st_mtime_ns]
    if _has_rows(source):
        return _Part(path.name, identity, lambda: _documents(_row_file(path), text), True)
    packed = path.suffix.lower() in _OPENERS
    origin = f"corpus {source}" if path.parent == CORPORA else path.name
    return _Part(origin, identity, lambda: iter([read_file(path)]), False, 0 if packed else facts.st_size)


def _folder_part(folder: Path) -> _Part:
    files = sorted(_regular_files(folder), key=lambda entry: entry[0].relative_to(folder).parts)
    if not files:
        raise DataError(f"{cut(str(folder))} has no files to read (hidden ones and links are left out)")
    identity = [[str(path.relative_to(folder)), facts.st_size, facts.st_mtime_ns] for path, facts in files]

    def documents() -> Iterator[Document]:
        for path, _ in files:
            with _reading(path), path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
                if b"\0" not in head:
                    yield _whole(path, head, file)

    return _Part(f"folder {folder.resolve().name}", [str(folder.resolve()), identity], documents, True)


def _regular_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Files below a folder that are neither hidden nor links nor devices."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(root, name)
            with _reading(path):
                facts = path.lstat()
            if not name.startswith(".") and stat.S_ISREG(facts.st_mode):
                yield path, facts


def _whole(path: Path, head: bytes, file: BinaryIO) -> Iterator[bytes]:
    """A file of which the head has been read."""
    yield head
    with _reading(path):
        while data := file.read(_CHUNK_BYTES):
            yield data


def _row_file(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a file that has one JSON object a line."""
    with _reading(path), _OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LINE_BYTES + 1), b""), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line) if len(line) <= _LINE_BYTES else None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    f"line {number:,} of {cut(path.name)} is no JSON object of at most {_LINE_BYTES:,} bytes"
                )
            yield row


def _documents(rows: Iterable[Mapping[str, Any]], text: Text) -> Iterator[Document]:
    """The text of each row; None for a row whose contents are broken."""
    for row in rows:
        found = dialogue_of_row(row) if text.form == "tool-calling" else _cell(row, text.column)
        yield None if found is None else [found.encode("utf-8", "replace")]


def _cell(row: Mapping[str, Any], column: str) -> str:
    """What stands in a column; nothing, where it is empty."""
    value: Any = row
    for step in [column] if column in row else column.split("."):
        if not isinstance(value, Mapping) or step not in value:
            raise DataError(f"there is no column {cut(column)}; {_columns(row)}")
        value = value[step]
        if value is None:
            return ""
    if not isinstance(value, str):
        raise DataError(f"the column {cut(column)} holds {type(value).__name__}, not text; {_columns(row)}")
    return value


def _columns(row: Mapping[str, Any]) -> str:
    """The columns of a row, those of nested ones with a dot, as the end of a message."""
    names = []
    for name, value in row.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) else [str(name)]
    return f"the columns are {_listed(names)}"


class _Dataset:
    """A dataset on the Hub, opened when the first row of it is asked for."""

    def __init__(self, text: Text, offline: bool | None, token: Token) -> None:
        self.text, self.token = text, token
        self.offline = is_offline_mode() if offline is None else offline
        self.repo_id, _, self.revision = text.dataset.partition("@")
        self.commit = ""

    def part(self, split: str) -> _Part:
        """One split."""
        text = self.text
        reader = hashlib.sha256(self.token.encode()).hexdigest() if isinstance(self.token, str) else bool(self.token)
        return _Part(
            ", ".join(part for part in (text.dataset, text.config, split) if part),
            [text.dataset, text.config, split, reader],
            lambda: _documents(self.rows(split), text),
            True,
            revision=lambda: f", commit {self.commit}",
        )

    def rows(self, split: str) -> Iterator[Mapping[str, Any]]:
        """The rows of a split as they arrive."""
        if split not in self.splits:
            raise DataError(f"{self.text.dataset} has no split {cut(split)}; it has {_listed(self.splits)}")
        stream = self.splits[split]
        column = self.text.column
        if self.text.form == "plain" and stream.column_names and column not in stream.column_names:
            column = column.split(".")[0]
        if self.text.form == "plain" and column in (stream.column_names or ()):
            stream = stream.select_columns([column])  # pictures and sounds beside the text are not unpacked then
        rows = iter(stream)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # foreign data through foreign readers: nobody lists what they raise
                raise self._explained(error) from error
            yield row

    @functools.cached_property
    def splits(self) -> Mapping[str, Any]:
        """The splits by name, not yet read."""
        name, config = self.text.dataset, self.text.config
        if self.offline:
            raise _Unavailable(f"{name} has not been prepared here, and offline mode is on; go online, or use a source")
        if os.path.lexists(self.repo_id):
            raise DataError(
                f"{name} names a dataset on the Hub, but {self.repo_id} also lies here; name that as source, "
                "or start from another folder"
            )
        try:
            self.commit = _commit(self.repo_id, self.revision, self.token)
            return _open(self.repo_id, config, self.commit, self.token)
        except ImportError as error:
            raise _Unavailable(f"{name} needs the library datasets; install it: pip install datasets") from error
        except Exception as error:  # as above
            known = _configs(self.repo_id, self.commit, self.token) if isinstance(error, ValueError) else []
            if config and known and config not in known:
                raise DataError(f"{name} has no configuration {cut(config)}; it has {_listed(known)}") from error
            if not config and len(known) > 1:
                raise DataError(f"{name} has several configurations, name one as config: {_listed(known)}") from error
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> DataError:
        """The error in the words of one who wants a text."""
        name = self.text.dataset
        address = f"{constants.ENDPOINT}/datasets/{self.repo_id}"
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if isinstance(error, GatedRepoError):
            return _Unavailable(f"{name} is gated: accept its terms on {address}, and give a token of that account")
        if isinstance(error, RevisionNotFoundError):
            return DataError(f"{name}: there is no such revision; see {address}/tree/main")
        if isinstance(error, RepositoryNotFoundError):
            whose = "this token may not read it" if self.token else "give a token if it is private"
            return DataError(f"{name} was not found on the Hub: check the spelling, or {whose}")
        if isinstance(error, LocalTokenNotFoundError):
            return DataError(f"{name}: this machine is not logged in to the Hub; run hf auth login, or give a token")
        if 400 <= status < 500:
            return DataError(f"{name}: the Hub answers with error {status}; check the token, or try again later")
        if isinstance(error, (_TransportError, ConnectionError, TimeoutError)):
            return _Unavailable(f"{name}: the Hub cannot be reached ({type(error).__name__}); check the connection")
        if isinstance(error, RuntimeError):
            return DataError(f"{name} is read by code of its own, which is never run; look for it in Parquet or JSON")
        return DataError(f"{name} cannot be read ({type(error).__name__}: {cut(error, 200)}); {address} shows it")


def _commit(repo_id: str, revision: str, token: Token) -> str:
    """The commit at which a dataset is read, so that all of it is of one state."""
    api = HfApi(token=token or False, library_name="bdh-hatchery")
    facts = api.dataset_info(repo_id, revision=revision or None, timeout=float(constants.HF_HUB_DOWNLOAD_TIMEOUT))
    if facts.gated:
        api.auth_check(repo_id, repo_type="dataset")
    return facts.sha or ""


def _open(repo_id: str, config: str, commit: str, token: Token) -> Mapping[str, Any]:
    """The splits of a dataset as streams."""
    import datasets  # noqa: PLC0415 - takes a second, and only a text from the Hub needs it

    builder = datasets.load_dataset_builder(repo_id, config or None, revision=commit, token=token or False)
    splits: Mapping[str, Any] = builder.as_streaming_dataset()
    return splits


def _configs(repo_id: str, commit: str, token: Token) -> list[str]:
    """The configurations of a dataset; none if they cannot be had."""
    import datasets  # noqa: PLC0415 - as above

    try:
        return datasets.get_dataset_config_names(repo_id, revision=commit, token=token or False)
    except Exception:  # only the wording of another error hangs on it
        return []


def _listed(names: Iterable[str]) -> str:
    return ", ".join(cut(name, 40) for name in itertools.islice(names, 30))
