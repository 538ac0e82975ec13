"""Checkpoints on the Hugging Face Hub: looked at before they are downloaded, pinned to a commit, cached.

The cache is the Hub client's own. Files are streamed into it here, because that client throws a cut download
away where this one goes on from where it stopped, and because what is not as large as announced is cut off.

Tokens: None reads as a stranger, never with a login or secret that happens to lie on this machine; True reads
with this machine's login (`hf auth login` or HF_TOKEN); a text is a token itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from json import JSONDecodeError
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeAlias

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
    validate_repo_id,
)

from . import checkpoint
from .config import Config
from .errors import CheckpointError

MAX_WEIGHT_BYTES = 16 << 30
"""The largest weights that are downloaded: the largest model that is built, in float32."""

Token: TypeAlias = str | bool | None
Progress: TypeAlias = Callable[[int, int], None]
"""Called with bytes done and bytes in all; an exception it raises stops the download, which may go on later."""

TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base of what the Hub client's HTTP library raises, whichever library that is."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\-/]{0,199}")
_SUBFOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\- ]{0,99}(?:/[A-Za-z0-9_][A-Za-z0-9_.+\- ]{0,99}){0,7}")
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 3
_PAUSE_S = 0.5


@dataclass(frozen=True)
class Source:
    """Where a model is asked for: a path on this machine, or a place on the Hub."""

    text: str
    """As it was given."""
    path: Path | None = None
    repo_id: str = ""
    revision: str | None = None
    """Branch, tag or commit; None is the main branch."""
    subfolder: str = ""

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        """The place on the Hub in the one form that all ways of writing it share."""
        revision = f"@{self.revision}" if self.revision not in (None, constants.DEFAULT_REVISION) else ""
        return self.repo_id + revision + (f":{self.subfolder}" if self.subfolder else "")

    def at(self, revision: str) -> str:
        """The name of the same place at another revision."""
        return replace(self, revision=revision).name

    def within(self, revision: str | None, subfolder: str | None) -> Source:
        """The same, at a revision and in a subfolder that were given apart."""
        if revision is None and subfolder is None:
            return self
        if self.path is not None:
            if revision is not None:
                raise CheckpointError(f"{self.text} is on this machine and has no revision; leave the revision out")
            return replace(self, path=self.path / _checked_subfolder(subfolder or ""))
        if (revision and self.revision) or (subfolder and self.subfolder):
            raise CheckpointError(f"{self.text} names a revision or subfolder, and another was given beside it")
        return replace(
            self,
            revision=_checked_revision(revision) if revision else self.revision,
            subfolder=_checked_subfolder(subfolder) if subfolder else self.subfolder,
        )


@dataclass(frozen=True)
class Fetched:
    """What lies in the cache now."""

    source: Source
    folder: Path
    """With `config.json` (foreign weights may lack it) and the weights."""
    weights: Path
    repo_id: str
    revision: str
    """The commit, 40 hexadecimal digits."""


@dataclass(frozen=True)
class Remote:
    """A file in a repository: its name there, the name of its contents, and its size."""

    name: str
    etag: str
    size: int


@dataclass(frozen=True)
class Peeked:
    """A checkpoint on the Hub whose weights are not here."""

    config: Config
    header: checkpoint.Header
    repo_id: str
    revision: str
    """The commit, 40 hexadecimal digits."""


@dataclass(frozen=True)
class _Looked:
    """What a repository holds at a commit."""

    repo: Repo
    """At that commit."""
    commit: str
    names: set[str]
    weights: Remote
    header: checkpoint.Header | None
    """None if the weights are in the cache."""
    config: Config | None
    """None if it is not of this project's format."""
    ours: bool


def without_address(text: str) -> str:
    """`user/repo` for the address of its page; any other text as it is, but for slashes at its end."""
    return text.removeprefix("https://huggingface.co/").rstrip("/")


def parse_source(source: str | Path | Source, *, local: bool = True) -> Source:
    """Read `folder`, `file`, `user/repo`, `user/repo@revision`, `user/repo:subfolder` or both.

    A text that names something on this machine means that; a `Path` never means the Hub.

    Args:
        local: False takes nothing but the Hub's: for what a stranger typed.

    Raises:
        CheckpointError: it is none of these.
    """
    if isinstance(source, Source):
        return source
    text = without_address(source) if isinstance(source, str) else str(source)
    if not text.strip() or len(text) > 4096 or not text.isprintable():
        raise CheckpointError("the source is empty, too long or has control characters; give a path or user/repo")
    path = Path(text)
    with suppress(RuntimeError):  # nobody here is called so
        path = path.expanduser()
    if local and (isinstance(source, Path) or os.path.lexists(checkpoint.recovered(path))):
        return Source(text, path=path)
    if local and text.startswith(("./", "../", "/", "~", ".\\", "..\\")):
        raise CheckpointError(f"{checkpoint.cut(text)}: there is no such file or folder")
    match = re.fullmatch(r"([^/@:\\]+/[^/@:\\]+)(?:@([^:\\]+))?(?::([^:\\]+))?", text.strip())
    if match is None:
        here = "nothing here has that path, and on the Hub it must be" if local else "it must be"
        raise CheckpointError(f"{checkpoint.cut(text)}: {here} user/repo, user/repo@revision or user/repo:subfolder")
    repo_id, revision, subfolder = match.groups()
    _check_repo_id(repo_id)
    return Source(
        text,
        repo_id=repo_id,
        revision=_checked_revision(revision) if revision is not None else None,
        subfolder=_checked_subfolder(subfolder) if subfolder is not None else "",
    )


def fetch(
    source: str | Source,
    *,
    expected: Callable[[Config], Mapping[str, checkpoint.Shape]] | None = None,
    token: Token = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    max_bytes: int = MAX_WEIGHT_BYTES,
    foreign: bool = True,
    commit: str = "",
) -> Fetched:
    """Bring a checkpoint, or foreign safetensors with their configuration, from the Hub into the cache.

    The configuration and the header of the weights are read and checked before the weights are downloaded. A
    download that was cut off goes on where it stopped, also in another process.

    Args:
        expected: the shapes that the model of a configuration has; it may refuse the configuration.
        token: see the head of this file.
        cache_dir: the Hub client's cache; None is its usual place.
        offline: True reads the cache alone; False asks the Hub each time, and so never shows a private
            repository to one who may not read it; None asks the Hub, and reads the cache if it cannot be reached.
        max_bytes: of the weights.
        foreign: False refuses a repository whose configuration is not of this project's format.
        commit: what `peek` found there; it is fetched, whatever stands there since.

    Raises:
        CheckpointError: says what is wrong and what to do.
    """
    source = parse_source(source, local=False) if isinstance(source, str) else source
    cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()
    repo = Repo(source, checked_token(token) or False, cache)
    if offline or (offline is None and is_offline_mode()):
        return repo.cached(f"it is not in the cache {cache}, and offline mode is on; go online and load it once")
    try:
        return repo.fetched(repo.looked(expected, max_bytes, foreign, commit), progress)
    except CheckpointError:
        raise
    except (TransportError, OSError, ValueError) as error:
        if offline is None and _unreachable(error):
            why = f"the Hub cannot be reached, and it is not in the cache {cache}; check the connection and try again"
            return repo.cached(why, error)
        raise_explained(error, source, token)


def peek(
    source: str | Source,
    *,
    expected: Callable[[Config], Mapping[str, checkpoint.Shape]] | None = None,
    token: Token = None,
    offline: bool | None = None,
    max_bytes: int = MAX_WEIGHT_BYTES,
) -> Peeked | None:
    """What a checkpoint on the Hub is, before its weights are downloaded; arguments as of `fetch`.

    Returns:
        None where `fetch` has nothing to download, or where weights must be read to know what they are: they are in
        the cache, the Hub cannot be reached, or the format is foreign.

    Raises:
        CheckpointError: says what is wrong and what to do.
    """
    source = parse_source(source, local=False) if isinstance(source, str) else source
    repo = Repo(source, checked_token(token) or False, Path(constants.HF_HUB_CACHE).expanduser())
    if offline or (offline is None and is_offline_mode()):
        return None
    try:
        looked = repo.looked(expected, max_bytes, True)
    except CheckpointError:
        raise
    except (TransportError, OSError, ValueError) as error:
        if offline is None and _unreachable(error):
            return None
        raise_explained(error, source, token)
    if looked.config is None or looked.header is None:
        return None
    return Peeked(looked.config, looked.header, source.repo_id, looked.commit)


def cached_checkpoints(cache_dir: str | Path | None = None) -> list[Fetched]:
    """The checkpoints of this project's format that earlier calls left in the cache, where their branches stand.

    Nothing is asked of the Hub, so private repositories are among them: only for whom the cache belongs to.
    """
    cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()
    found: list[Fetched] = []
    for ref in sorted(cache.glob("models--*--*/refs/**/*")):
        storage = next(parent for parent in ref.parents if parent.parent == cache)
        branch = ref.relative_to(storage / "refs").as_posix()
        repo_id = storage.name.removeprefix("models--").replace("--", "/", 1)
        try:
            commit = ref.read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue  # a folder of branches, or something else's
        if not _COMMIT.fullmatch(commit):
            continue
        snapshot = storage / "snapshots" / commit
        for config in sorted(snapshot.rglob(checkpoint.CONFIG)):
            folder = config.parent
            at = "" if branch == constants.DEFAULT_REVISION else f"@{branch}"
            below = "" if folder == snapshot else f":{folder.relative_to(snapshot).as_posix()}"
            try:
                if checkpoint.is_checkpoint(folder) and (folder / checkpoint.WEIGHTS).is_file():
                    place = parse_source(f"{repo_id}{at}{below}", local=False)
                    found.append(Fetched(place, folder, folder / checkpoint.WEIGHTS, repo_id, commit))
            except (CheckpointError, OSError):
                continue  # something else's, or damaged: no reason to keep the others back
    return found


@dataclass(frozen=True)
class Repo:
    """One repository as one reader sees it."""

    source: Source
    token: str | bool
    cache: Path

    @property
    def storage(self) -> Path:
        """Its place in the cache, as the Hub client lays it out: blobs, snapshots, refs."""
        return self.cache / f"models--{self.source.repo_id.replace('/', '--')}"

    @property
    def prefix(self) -> str:
        """What the paths of the checkpoint's files begin with."""
        return f"{self.source.subfolder}/" if self.source.subfolder else ""

    def listing(self, commit: str = "") -> tuple[Repo, set[str]]:
        """The repository at the commit where it stands now, or at another, and the names of its files there."""
        repo_id, asked = self.source.repo_id, commit or self.source.revision or constants.DEFAULT_REVISION
        info = HfApi(endpoint=endpoint(), token=self.token).model_info(repo_id, revision=asked, timeout=timeout_s())
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise CheckpointError(f"{repo_id}: the server names no commit for {asked}; it is not the Hub")
        paths = [entry.rfilename for entry in info.siblings or () if entry.rfilename.startswith(self.prefix)]
        names = {name for path in paths if "/" not in (name := path.removeprefix(self.prefix))}
        return replace(self, source=replace(self.source, revision=commit)), names

    def looked(
        self,
        expected: Callable[[Config], Mapping[str, checkpoint.Shape]] | None,
        max_bytes: int,
        foreign: bool,
        commit: str = "",
    ) -> _Looked:
        """What the repository holds now, or at a commit: configuration and header are read and checked."""
        pinned, names = self.listing(commit)
        commit = str(pinned.source.revision)
        fields = pinned.small_json(checkpoint.CONFIG) if checkpoint.CONFIG in names else {}
        where = f"{self.source.repo_id}@{commit[:7]}/{self.prefix}"
        ours = checkpoint.has_format(fields)
        config = checkpoint.config_from_fields(fields, where + checkpoint.CONFIG) if ours or not foreign else None
        name = checkpoint.find_weights(names, where.rstrip("/"))
        shapes = expected(config) if config is not None and expected is not None else None
        weights = pinned.look(name)
        if weights.size > max_bytes:
            raise CheckpointError(f"{where}{name} is {weights.size:,} bytes; at most {max_bytes:,} are downloaded")
        header = None
        if not pinned.has(weights):
            header = pinned.header(weights, where + name)
            if shapes is not None:
                checkpoint.check_tensors(header, shapes, where + name)
        return _Looked(pinned, commit, names, weights, header, config, ours)

    def fetched(self, looked: _Looked, progress: Progress | None) -> Fetched:
        """Bring what was looked at into the cache."""
        pinned, weights = looked.repo, looked.weights
        placed = (
            looked.header is None
            and (self.storage / "snapshots" / looked.commit / (self.prefix + weights.name)).exists()
        )
        for text in (checkpoint.CARD, checkpoint.PROVENANCE):
            if (
                looked.ours
                and not placed
                and text in looked.names
                and (remote := pinned.look(text)).size <= checkpoint.MAX_TEXT_BYTES
            ):
                pinned.download(remote)
                pinned.place(text)
        pinned.download(weights, progress)
        path = pinned.place(weights.name)
        self.remember(self.source.revision or constants.DEFAULT_REVISION, looked.commit)
        return Fetched(self.source, path.parent, path, self.source.repo_id, looked.commit)

    def small_json(self, name: str) -> dict[str, object]:
        """A JSON object, brought into the cache."""
        remote = self.look(name)
        if remote.size > checkpoint.MAX_TEXT_BYTES:
            limit = f"at most {checkpoint.MAX_TEXT_BYTES:,} are read"
            raise CheckpointError(f"{name} of {self.source.repo_id} is {remote.size:,} bytes; {limit}")
        self.download(remote)
        return checkpoint.parse_json(self.place(name).read_bytes(), f"{name} of {self.source.repo_id}")

    def look(self, name: str) -> Remote:
        """Name and size of a file's contents, by a request that the Hub refuses to one who may not read it."""
        found = get_hf_file_metadata(
            self.url(name), token=self.token, timeout=timeout_s(), library_name="bdh-hatchery", endpoint=endpoint()
        )
        if found.size is None or not _ETAG.fullmatch(found.etag or ""):
            raise CheckpointError(f"{name} of {self.source.repo_id}: the server tells neither size nor checksum")
        return Remote(name, found.etag or "", found.size)

    def url(self, name: str) -> str:
        """Where a file is fetched from."""
        return hf_hub_url(
            self.source.repo_id,
            name,
            subfolder=self.source.subfolder or None,
            revision=self.source.revision,
            endpoint=endpoint(),
        )

    def headers(self, start: int, stop: int) -> dict[str, str]:
        """What a request for a part of a file is sent with."""
        headers: dict[str, str] = build_hf_headers(token=self.token, library_name="bdh-hatchery")
        return headers | {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}

    def header(self, remote: Remote, where: str) -> checkpoint.Header:
        """The header of remote weights, without the weights."""
        length = checkpoint.header_length(self.part(remote, 0, min(8, remote.size)), remote.size, where)
        return checkpoint.parse_header(self.part(remote, 8, 8 + length), remote.size, where)

    def part(self, remote: Remote, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a remote file, and no more even if the server sends all."""
        data, headers = b"", self.headers(start, stop)
        with get_session().stream("GET", self.url(remote.name), headers=headers, timeout=timeout_s()) as response:
            hf_raise_for_status(response)
            skipped = 0 if response.status_code == 206 else start
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) >= skipped + stop - start:
                    break
        return data[skipped : skipped + stop - start]

    def has(self, remote: Remote) -> bool:
        """Whether its contents are in the cache."""
        blob = self.storage / "blobs" / remote.etag
        return blob.is_file() and blob.stat().st_size == remote.size

    def download(self, remote: Remote, progress: Progress | None = None) -> None:
        """Bring a file's contents into the cache, going on where an earlier download stopped."""
        blob = self.storage / "blobs" / remote.etag
        lock = self.cache / ".locks" / self.storage.name / f"{remote.etag}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not self.has(remote):
                partial = blob.with_name(f"{remote.etag}.incomplete")
                try:
                    self._stream(remote, partial, progress or (lambda done, total: None))
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        partial.unlink(missing_ok=True)
                    raise
                _verify(partial, remote)
                os.replace(partial, blob)
            elif progress is not None:
                progress(remote.size, remote.size)

    def _stream(self, remote: Remote, partial: Path, progress: Progress) -> None:
        """Append what is missing, over as many connections as it takes."""
        failures = 0
        with partial.open("ab") as file:
            free, missing = shutil.disk_usage(partial.parent).free, remote.size - file.tell()
            if free < missing:
                raise CheckpointError(
                    f"no space left: {remote.name} needs {missing:,} bytes more, and {free:,} are free in "
                    f"{self.cache}; free some, or choose another cache folder"
                )
            while (before := file.tell()) < remote.size:
                progress(before, remote.size)
                lost: Exception | None = None
                try:
                    self._rest(remote, file, progress)
                except HfHubHTTPError:
                    raise
                except TransportError as error:
                    lost = error
                failures = failures + 1 if file.tell() == before else 0
                if failures >= _ATTEMPTS:
                    raise CheckpointError(
                        f"{remote.name} of {self.source.repo_id}: the connection was cut after {before:,} of "
                        f"{remote.size:,} bytes; try again, and the download goes on from there"
                    ) from lost
                if lost is not None:
                    time.sleep(_PAUSE_S * 2**failures)

    def _rest(self, remote: Remote, file: BinaryIO, progress: Progress) -> None:
        headers = self.headers(file.tell(), remote.size)
        with get_session().stream("GET", self.url(remote.name), headers=headers, timeout=timeout_s()) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:  # the server begins at the beginning, whatever it was asked for
                file.truncate(0)
                file.seek(0)
            for chunk in response.iter_bytes():
                if file.tell() + len(chunk) > remote.size:
                    file.truncate(0)
                    raise CheckpointError(f"{remote.name} of {self.source.repo_id} is larger than the server announced")
                file.write(chunk)
                progress(file.tell(), remote.size)

    def place(self, name: str) -> Path:
        """Give a file whose contents are in the cache its name in the snapshot."""
        return Path(
            hf_hub_download(
                self.source.repo_id,
                name,
                subfolder=self.source.subfolder or None,
                revision=self.source.revision,
                cache_dir=self.cache,
                token=self.token,
                endpoint=endpoint(),
                library_name="bdh-hatchery",
            )
        )

    def remember(self, asked: str, commit: str) -> None:
        """Note which commit a branch or tag stood at, for when the Hub cannot be asked."""
        if asked != commit:
            ref = self.storage / "refs" / asked
            ref.parent.mkdir(parents=True, exist_ok=True)
            fresh = ref.with_name(f".{ref.name}.{secrets.token_hex(4)}")
            fresh.write_text(commit)
            os.replace(fresh, ref)

    def cached(self, otherwise: str, cause: Exception | None = None) -> Fetched:
        """What an earlier call left in the cache; `otherwise` says why there is nothing else."""
        asked = self.source.revision or constants.DEFAULT_REVISION
        ref = self.storage / "refs" / asked
        commit = ref.read_text()[:40] if not _COMMIT.fullmatch(asked) and ref.is_file() else asked
        folder = self.storage / "snapshots" / commit / self.source.subfolder
        if not _COMMIT.fullmatch(commit) or not folder.is_dir():
            raise CheckpointError(f"{self.source.text}: {otherwise}") from cause
        try:
            name = checkpoint.find_weights([entry.name for entry in folder.iterdir() if entry.is_file()], str(folder))
        except CheckpointError:
            raise CheckpointError(f"{self.source.text}: {otherwise}") from cause
        return Fetched(self.source, folder, folder / name, self.source.repo_id, commit)


def _verify(partial: Path, remote: Remote) -> None:
    """Hold a download against its checksum, which is the Hub's name for the contents."""
    digest = hashlib.sha256() if len(remote.etag) == 64 else hashlib.sha1(b"blob %d\0" % remote.size)
    with partial.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            digest.update(data)
    if digest.hexdigest() != remote.etag:
        partial.unlink()
        raise CheckpointError(f"{remote.name} was damaged on its way from the Hub; try again")


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(f"{checkpoint.cut(repo_id)} is no Hub name: {checkpoint.cut(error, 200)}") from None


def _checked_revision(revision: str) -> str:
    steps = revision.split("/")
    if not _REVISION.fullmatch(revision) or ".." in revision or "" in steps or revision.endswith(".lock"):
        raise CheckpointError(f"revision {checkpoint.cut(revision)} is no branch, tag or commit")
    return revision


def _checked_subfolder(subfolder: str) -> str:
    if not _SUBFOLDER.fullmatch(subfolder) or ".." in subfolder:
        raise CheckpointError(f"subfolder {checkpoint.cut(subfolder)} must be plain names with / between them")
    return subfolder


def checked_token(token: Token) -> Token:
    """The token, if it can be one.

    Raises:
        CheckpointError: it cannot.
    """
    if isinstance(token, str) and not re.fullmatch(r"[!-~]{0,1000}", token):
        raise CheckpointError("the token holds characters that no token has; copy it again, without spaces around it")
    return token


def endpoint() -> str | None:
    """HF_ENDPOINT as it is now; the Hub client looks at it only when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def timeout_s() -> float:
    """For how long the Hub is waited for."""
    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _unreachable(error: Exception) -> bool:
    """Whether the Hub gave no answer, rather than an unwelcome one."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, (TransportError, OfflineModeIsEnabled))


@contextmanager
def explained(source: Source | str, token: Token) -> Iterator[None]:
    """Let what goes wrong with the Hub be said in words; a source that is a text is called so."""
    try:
        yield
    except CheckpointError:
        raise
    except (TransportError, OSError, ValueError) as error:
        raise_explained(error, source if isinstance(source, Source) else Source(source, repo_id=source), token)


def raise_explained(error: Exception, source: Source, token: Token) -> NoReturn:
    """Raise the Hub client's error in the words of one who wants a model."""
    repo_id, revision = checkpoint.cut(source.repo_id), source.revision or constants.DEFAULT_REVISION
    address = f"{endpoint() or constants.ENDPOINT}/{source.repo_id}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    with_token = "this token may not read it" if token else "give a token if it is private"
    if isinstance(error, GatedRepoError):
        text = f"{repo_id} is gated: accept its terms on {address} while signed in, and give a token of that account"
    elif isinstance(error, RepositoryNotFoundError):
        text = f"{repo_id} was not found on the Hub: check the spelling, or {with_token} (the Hub does not tell which)"
    elif isinstance(error, RevisionNotFoundError):
        text = f"{repo_id} has no revision {checkpoint.cut(revision)}; its branches and tags are on {address}/tree/main"
    elif isinstance(error, EntryNotFoundError):
        text = f"{repo_id} at {checkpoint.cut(revision)} lacks a file it lists; its files are on {address}/tree/main"
    elif isinstance(error, LocalTokenNotFoundError):
        text = f"{repo_id}: this machine is not logged in to the Hub; run hf auth login, or give a token"
    elif isinstance(error, HFValidationError):
        text = f"{repo_id} is no name on the Hub: {checkpoint.cut(error, 200)}"
    elif status in (401, 403):
        text = f"{repo_id}: the Hub refuses the token, or the token does not allow this; make a new one"
    elif status == 429:
        text = f"{repo_id}: the Hub asks for patience after too many requests; try again in some minutes"
    elif status is not None:
        text = f"{repo_id}: the Hub answers with error {status}; try again later"
    elif isinstance(error, OfflineModeIsEnabled):
        text = f"{repo_id}: offline mode is on (HF_HUB_OFFLINE); switch it off to reach the Hub"
    elif isinstance(error, (FileMetadataError, JSONDecodeError)):
        text = f"{repo_id}: {address} does not answer as the Hub does; check HF_ENDPOINT, proxy and firewall"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"{repo_id}: no space left for the download; free some, or choose another cache folder"
    elif isinstance(error, TransportError):
        text = f"{repo_id}: the Hub cannot be reached ({type(error).__name__}); check the connection and try again"
    else:
        text = f"{repo_id}: {type(error).__name__}: {checkpoint.cut(error, 200)}"
    raise CheckpointError(text) from error
