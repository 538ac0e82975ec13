"""Checkpoints sent to the Hugging Face Hub: what would be sent, to what is there, and the sending itself.

Nothing that is there is replaced unless that was said. Weights are sent over plain HTTP and not through the Hub
client's own transfer, which tells nothing of how far it is and stops for nobody. A repository that a call made and
could not fill is taken away again, or said to be left.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from . import card as cards
from . import checkpoint, hub
from .config import Config
from .errors import CheckpointError, HatcheryError
from .hub import Progress, Source, Token
from .waiting import LOOK_S, SILENCE_S, Sent, waiting

# The client says so each time that its own transfer is not used.
logging.getLogger("huggingface_hub._commit_api").addFilter(lambda record: "binary IO buffer" not in str(record.msg))
_NO_FILES = (".gitattributes",)
"""What a repository holds that nobody has put anything into."""
_CHANGED = "{} was changed by somebody else meanwhile, and nothing was put there; look at it, and publish again"


@dataclass(frozen=True)
class Parcel:
    """What is sent: the files of a checkpoint, the card completed, and nothing else of its folder."""

    folder: Path
    config: Config
    card: str
    files: dict[str, int]
    """Bytes by name."""

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(self.files.values())


@dataclass(frozen=True)
class There:
    """A repository as the publishing account finds it."""

    repo_id: str
    exists: bool
    private: bool = False
    commit: str = ""
    """Where the branch stands; empty if there is none."""
    files: tuple[str, ...] = ()
    """What a stranger to it would lose, or find mixed with what is sent; empty if nobody has put anything there."""
    changed: str = ""
    """The day of its last change."""

    @property
    def mark(self) -> str:
        """What there is to agree to: another one, once anything was sent there or others can see it."""
        return f"{self.repo_id}@{self.commit} {'private' if self.private else 'public'}"

    def words(self) -> str:
        """What is there, for one who is about to replace or fill it."""
        kept = [name for name in self.files if name not in checkpoint.FILES]
        files = "1 file" if len(self.files) == 1 else f"{len(self.files):,} files" if self.files else "empty"
        others = f"; {len(kept):,} of them with other names would stay" if kept else ""
        changed = f", last changed on {self.changed}" if self.changed else ""
        seen = "private" if self.private else "public: everybody will see what is sent"
        return f"{self.repo_id} is there already: {files}{changed}, {seen}{others}"

    def to_be_agreed(self, private: bool) -> bool:
        """Whether whoever publishes has to agree first: it holds something, or others see it than was asked for."""
        return bool(self.files) or (self.exists and self.private != private)


def pack(folder: str | Path, *, license: str = "") -> Parcel:
    """What would be sent of a checkpoint.

    Args:
        license: put in place of what the card says.

    Raises:
        CheckpointError: the folder is no whole checkpoint, or the licence no name of the Hub's.
    """
    folder = checkpoint.recovered(folder)
    config = checkpoint.read_config(folder)
    checkpoint.read_header(folder / checkpoint.WEIGHTS)
    card = checkpoint.read_card(folder)
    provenance = checkpoint.read_provenance(folder)
    card = cards.completed(card or f"# {cards.line(folder.name)}\n", config.kind, provenance, license=license)
    sizes = {name: (folder / name).stat().st_size for name in checkpoint.FILES if (folder / name).is_file()}
    return Parcel(folder, config, card, sizes | {checkpoint.CARD: len(card.encode())})


def account(token: Token = None) -> str:
    """Whose login or token it is; empty if there is none.

    Raises:
        CheckpointError: the Hub refuses the token, or cannot be reached.
    """
    token = _own(token) if isinstance(token, str) or not os.environ.get("SPACE_ID") else None
    if token is None:
        return ""
    with _explained(Source("your account", repo_id="your account"), token):
        told = waiting(lambda: HfApi(endpoint=hub.endpoint(), token=token).whoami(), LOOK_S)
    name = told.get("name")
    return name if isinstance(name, str) and re.fullmatch(r"[\w.\-]{1,96}", name, re.ASCII) else ""


def suggested(user: str, title: str) -> str:
    """A name for the repository of a checkpoint; empty without a user."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-._")
    name = re.sub(r"--+", "-", re.sub(r"\.\.+", ".", name))[:80].strip("-._").removesuffix(".git") or "model"
    name = name if re.search(r"bdh", name, re.IGNORECASE) else f"bdh-{name}"
    return f"{user}/{name}" if user else ""


def look(repo_id: str, *, token: Token = None, revision: str | None = None) -> There:
    """What is at a place on the Hub that something is to be sent to.

    Raises:
        CheckpointError: says what is wrong and what to do.
    """
    target = _target(repo_id, revision)
    token = _own(token)
    api = HfApi(endpoint=hub.endpoint(), token=token or False, library_name=cards.LIBRARY)
    with _explained(target, token):
        return _look(api, target)


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    token: Token = None,
    message: str | None = None,
    revision: str | None = None,
    license: str = "",
    replace: bool = False,
    seen: There | None = None,
    progress: Progress | None = None,
) -> str:
    """Send a checkpoint's files, and nothing else of its folder, to a repository, made if there is none.

    The folder is only read: what failed is sent again by another call. Of weights that arrived, nothing is sent twice.

    Args:
        private: of a repository that is made; one that is there stays as it is, and is refused if it is otherwise.
        token: None and True write with this machine's login; but on a Space, whose login is its owner's, the
            visitor's own token must be given.
        revision: the branch, made if there is none; None is the main one.
        license: put in place of what the card says.
        replace: also send to a repository in which something is, in place of what it has by the same names, whoever
            can see it.
        seen: what `look` said, to which `replace` agrees; what is otherwise by now is left alone. Without it, that is
            what this call finds at its beginning.
        progress: called with bytes sent and bytes in all; an exception it raises stops the upload.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: says what is wrong and what to do.
    """
    if not isinstance(token, str) and os.environ.get("SPACE_ID"):
        raise CheckpointError("publishing from a Space needs the token of the one who publishes: sign in, or give it")
    parcel = pack(folder, license=license)
    token = _own(token)
    if token is None:
        raise CheckpointError("this machine is not logged in to the Hub; run hf auth login, or give a token")
    api = HfApi(endpoint=hub.endpoint(), token=token, library_name=cards.LIBRARY)
    if "/" not in repo_id:
        repo_id = f"{account(token)}/{repo_id}"
    target = _target(repo_id, revision)
    with _explained(target, token or True):
        there = _look(api, target)
        if seen is not None and seen.mark != there.mark:
            raise CheckpointError(_CHANGED.format(repo_id))
        if there.to_be_agreed(private) and not replace:
            how = "private" if there.private else "public"
            meant = "is to be replaced (replace, --replace)" if there.files else f"may be {how} (private, --public)"
            raise CheckpointError(f"{there.words()}. Choose another name, or say that it {meant}")
        if not there.exists:
            repo_id = _made(api, repo_id, private)
        made = repo_id if not there.exists else ""
    try:
        with _explained(target, token or True):
            if not there.commit:
                there = _begun(api, there, repo_id, revision, private)
            return _send(api, parcel, repo_id, revision, message, there, progress)
    except BaseException as error:
        left = _cleared(api, made) if made else ""
        if left and isinstance(error, HatcheryError):
            raise CheckpointError(f"{error}. {left}") from error
        raise


def _target(repo_id: str, revision: str | None) -> Source:
    if not cards.is_hub_id(repo_id):
        raise CheckpointError(f"{checkpoint.cut(repo_id)} is no name on the Hub; give it as user/name")
    return Source(repo_id, repo_id=repo_id).within(revision, None)


def _own(token: Token) -> str | None:
    """The token itself: as given, or this machine's."""
    token = hub.checked_token(token)
    return token if isinstance(token, str) else (get_token() or None)


def _look(api: HfApi, target: Source) -> There:
    try:
        info = api.model_info(target.repo_id, revision=target.revision, timeout=LOOK_S)
    except RevisionNotFoundError:
        info = api.model_info(target.repo_id, timeout=LOOK_S)
        return There(info.id, True, bool(info.private))
    except RepositoryNotFoundError:
        return There(target.repo_id, exists=False)
    names = tuple(one.rfilename for one in info.siblings or () if one.rfilename not in _NO_FILES)
    changed = info.last_modified.strftime("%d %b %Y") if info.last_modified else ""
    return There(info.id, True, bool(info.private), info.sha or "", names, changed)


def _made(api: HfApi, repo_id: str, private: bool) -> str:
    try:
        return str(waiting(lambda: api.create_repo(repo_id, private=private), LOOK_S).repo_id)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        raise CheckpointError(
            f"{repo_id} is there already, and this login or sign-in may not look into it; choose another name"
        ) from error


def _begun(api: HfApi, there: There, repo_id: str, revision: str | None, private: bool) -> There:
    """What is in a repository that was just made, or in a branch of one that is begun now.

    Raises:
        CheckpointError: somebody else has put something there meanwhile, or lets others see it.
    """
    if revision is not None:
        api.create_branch(repo_id, branch=revision)
    begun = _look(api, _target(repo_id, revision))
    if not begun.commit:
        raise CheckpointError(f"{repo_id}: the Hub does not show yet what was just made there; publish again")
    meant_private, filled = (there.private, False) if there.exists else (private, bool(begun.files))
    if filled or (meant_private and not begun.private):
        raise CheckpointError(_CHANGED.format(repo_id))
    return begun


def _send(
    api: HfApi, parcel: Parcel, repo_id: str, revision: str | None, message: str | None, there: There,
    progress: Progress | None,
) -> str:  # fmt: skip
    total, sent = parcel.size_bytes, Sent()
    with ExitStack() as stack:
        small, large = [CommitOperationAdd(checkpoint.CARD, parcel.card.encode())], []
        for name in parcel.files:
            if name == checkpoint.CARD:
                continue
            if name != checkpoint.WEIGHTS:
                small.append(CommitOperationAdd(name, (parcel.folder / name).read_bytes()))
                continue
            file = stack.enter_context(_Counted(parcel.folder / name, sent))
            large.append(CommitOperationAdd(name, file))  # reads it once, for its checksum
            file.counting = True

        def first() -> None:
            api.preupload_lfs_files(repo_id, large, revision=revision, free_memory=False)

        def last() -> Any:
            # Of who may see it the Hub would say nothing, and much time may have passed.
            if _look(api, _target(repo_id, revision)).mark != there.mark:
                raise CheckpointError(_CHANGED.format(repo_id))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the Hub's advice on cards
                return api.create_commit(
                    repo_id,
                    [*large, *small],
                    revision=revision,
                    commit_message=message or f"A {parcel.config.kind} BDH model",
                    parent_commit=there.commit or None,
                )

        def tell() -> None:
            if progress is not None:
                progress(min(sent.bytes, total), total)

        try:
            waiting(first, SILENCE_S, sent, tell)
            sent.bytes = total - sum(parcel.files[one.path_in_repo] for one in small)
            commit = waiting(last, SILENCE_S, sent, tell)
        finally:
            sent.stopped = True
        if progress is not None:
            progress(total, total)
        return str(commit.commit_url)


class _Counted(io.BufferedReader):
    """A file that notes how far it is read, and is read no further when nobody waits for it."""

    def __init__(self, path: Path, sent: Sent) -> None:
        super().__init__(io.FileIO(path), 1 << 16)
        self._sent, self.counting = sent, False

    def read(self, size: int | None = -1, /) -> bytes:
        if self._sent.stopped:
            raise HatcheryError("the upload was stopped")
        data = super().read(-1 if size is None else size)
        if self.counting:
            self._sent.bytes = self.tell()
        return data

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(1 << 16):
            yield data


def _cleared(api: HfApi, repo_id: str) -> str:
    """Take away a repository that this call made, if it is still empty; words if it could not."""
    try:
        there = waiting(lambda: _look(api, Source(repo_id, repo_id=repo_id)), LOOK_S)
        if there.files or not there.exists:
            return ""
        waiting(lambda: api.delete_repo(repo_id), LOOK_S)
    except Exception:  # whatever failed before is what is told
        return f"An empty repository {repo_id} was left on the Hub; publishing there again fills it"
    return ""


@contextmanager
def _explained(target: Source, token: Token) -> Iterator[None]:
    """Let what goes wrong with the Hub be said in words."""
    try:
        yield
    except HatcheryError:
        raise
    except (RuntimeError, OSError, ValueError, hub.TransportError) as error:
        _raise_explained(error, target, token)


def _raise_explained(error: Exception, target: Source, token: Token) -> NoReturn:
    """Raise the Hub client's error in the words of one who publishes."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and len(chain) < 8:
        chain.append(cause)
    for one in chain:
        if isinstance(one, HatcheryError):
            raise one
    repo_id = checkpoint.cut(target.repo_id)
    answered = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    status = answered.response.status_code if answered is not None else None
    told = f"{answered.server_message or ''} {answered}" if answered is not None else " ".join(map(str, chain))
    if re.search(r"storage.{0,40}(limit|quota|exceed|full)|(limit|quota).{0,40}storage|no space", told, re.I | re.S):
        text = f"{repo_id}: the Hub has no more room for this account; delete something there, or publish it publicly"
    elif status == 402:
        text = f"{repo_id}: the Hub asks this account for payment before it takes more"
    elif status in (401, 403):
        text = (
            f"{repo_id}: the Hub refuses the token, or the token may not write there; sign in again, make a token with "
            "the right to write, or choose a name of your own"
        )
    elif status in (409, 412):
        text = _CHANGED.format(repo_id)
    elif status == 413:
        text = f"{repo_id}: the Hub takes no file as large as this"
    elif any(isinstance(one, FileNotFoundError) for one in chain):
        text = f"{repo_id}: the checkpoint was taken away while it was sent"
    elif answered is not None:
        hub.raise_explained(answered, target, token)
    elif "Invalid metadata" in told:
        text = f"{repo_id}: the Hub does not take the card's front matter: {checkpoint.cut(told, 300)}"
    elif transport := next((one for one in chain if isinstance(one, hub.TransportError)), None):
        text = (
            f"{repo_id}: the connection to the Hub was cut ({type(transport).__name__}); publish again when it is back"
        )
    elif isinstance(error, OSError) and error.errno == errno.ENOENT:
        text = f"{repo_id}: the checkpoint was taken away while it was sent"
    elif isinstance(error, RuntimeError):
        text = f"{repo_id}: the upload broke off ({checkpoint.cut(error)}); try again"
    else:
        hub.raise_explained(error, target, token)
    raise CheckpointError(text) from error


def push(
    source: str | Path,
    repo_id: str = "",
    **options: Any,
) -> str:
    """Publish the checkpoint in a folder; without a name, under the login's name and one made of the folder's.

    Args:
        options: as of `upload`.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: says what is wrong and what to do.
    """
    folder = Path(source)
    if not repo_id:
        user = account(options.get("token"))
        if not user:
            raise CheckpointError("this machine is not logged in to the Hub; run hf auth login, or give a token")
        repo_id = suggested(user, os.path.basename(os.path.abspath(folder)))
    return upload(folder, hub.without_address(repo_id), **options)
