"""A Space of one's own: the page with chosen checkpoints, and nothing else of this folder."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from . import checkpoint, hub
from .errors import CheckpointError

ROOT = Path(__file__).resolve().parent.parent
HARDWARE = (
    "cpu-basic", "cpu-upgrade", "zero-a10g", "t4-small", "t4-medium", "l4x1", "l4x4", "l40sx1", "l40sx4", "l40sx8",
    "a10g-small", "a10g-large", "a10g-largex2", "a10g-largex4", "a100-large", "a100x4", "a100x8",
)  # fmt: skip
"""What a Space can suggest to run on; zero-a10g is ZeroGPU."""

_TOP = ("app.py", "requirements.txt", "LICENSE")
_FOLDERS = {
    "bdh": (".py",),
    "lab": (".py", ".json", ".png", ".txt"),
    "train": (".py", ".toml", ".txt.xz", ".md"),
    "ui": (".py",),
}
"""What of each folder the page needs, by the ends of names."""
_ABOUT = """
# {name}

A copy of BDH Hatchery with {shown}. Baby Dragon Hatchling models read and write single bytes, and remember in a state
that never grows. The page says under *Where this runs* what it runs on and what visitors may use.
"""


@dataclass(frozen=True)
class Put:
    """One file of a Space."""

    path: str
    """In the Space."""
    source: Path | bytes
    """Where it lies here, or what is in it."""

    @property
    def size_bytes(self) -> int:
        """How large it is."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def planned(
    name: str, checkpoints: Mapping[str, Path], *, hardware: str = "cpu-basic", locked: bool = False, root: Path = ROOT
) -> list[Put]:
    """The files of a Space.

    Args:
        name: its title.
        checkpoints: folders by the names that the page is to show.
        hardware: what the Space suggests to be run on.
        locked: its requirements are the pins of requirements.lock instead of ranges.

    Raises:
        CheckpointError: a folder is no sound checkpoint, or something is missing here.
    """
    if hardware not in HARDWARE:
        raise CheckpointError(f"hardware is {checkpoint.cut(hardware)}; it must be one of {', '.join(HARDWARE)}")
    if not checkpoints:
        raise CheckpointError("no checkpoint was chosen; name at least one, or take the shipped ones along")
    files = [Put(top, root / top) for top in _TOP]
    for folder, endings in _FOLDERS.items():
        for path in sorted((root / folder).rglob("*")):
            inside = PurePosixPath(path.relative_to(root).as_posix())
            hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
            if path.is_file() and not path.is_symlink() and not hidden and path.name.endswith(endings):
                files.append(Put(str(inside), path))
    if missing := [file.path for file in files if not isinstance(file.source, bytes) and not file.source.is_file()]:
        raise CheckpointError(f"{root} lacks {missing[0]}; a Space is made from a whole copy of the repository")
    if locked:
        files = [Put(put.path, _pins(root)) if put.path == "requirements.txt" else put for put in files]
    for shown, place in checkpoints.items():
        files += _files_of(shown, place)
    return [Put("README.md", _readme(name, list(checkpoints), hardware, root)), *files]


def create(
    repo_id: str, files: Sequence[Put], *, private: bool = True, update: bool = False, token: str | None = None
) -> str:
    """Put files up as a Space.

    Args:
        private: of a Space that is made.
        update: put them into a Space that is there, over files of the same names.
        token: None writes with this machine's login.

    Returns:
        The Space's address.

    Raises:
        CheckpointError: there is one of that name already, or what the Hub says.
    """
    if token is None and os.environ.get("SPACE_ID"):
        raise CheckpointError("a Space cannot make Spaces with its own login; do it at home")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    api = HfApi(endpoint=endpoint, token=token, library_name="bdh-hatchery")
    try:
        validate_repo_id(repo_id)
        if not update:
            repo_id = api.create_repo(
                repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=False
            ).repo_id
        api.create_commit(
            repo_id,
            [CommitOperationAdd(put.path, put.source) for put in files],
            commit_message="The page and its checkpoints",
            repo_type="space",
        )
    except RuntimeError as error:
        raise CheckpointError(f"{repo_id}: the upload broke off ({checkpoint.cut(error)}); {_AGAIN}") from error
    except (hub.TransportError, OSError, ValueError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 409:
            raise CheckpointError(
                f"{repo_id} is there already; choose another name, or write over its files with --update"
            ) from error
        hub.raise_explained(error, hub.Source(repo_id, repo_id=repo_id), token or True)
    return f"{endpoint or 'https://huggingface.co'}/spaces/{repo_id}"


_AGAIN = "the Space may be there without its files: do it again with --update"


def _files_of(name: str, folder: Path) -> list[Put]:
    """What a checkpoint consists of, if it is one."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}", name, re.ASCII):
        raise CheckpointError(f"{checkpoint.cut(name)} is no name for a checkpoint of a page; rename the folder")
    checkpoint.read_config(folder)
    checkpoint.read_header(folder / checkpoint.WEIGHTS)
    return [
        Put(f"checkpoints/{name}/{file}", Path(os.path.realpath(folder / file)))
        for file in checkpoint.FILES
        if (folder / file).is_file()
    ]


def _readme(name: str, shown: Sequence[str], hardware: str, root: Path) -> bytes:
    """The repository's front matter, which says how a Space is built, and a few words."""
    card = SpaceCard((root / "README.md").read_text(encoding="utf-8"))
    fields = {**card.data.to_dict(), "title": name, "suggested_hardware": hardware}
    fields.pop("short_description", None)
    fresh = SpaceCard(f"---\ntitle: {name!r}\n---\n{_ABOUT.format(name=name, shown=', '.join(shown))}")
    for field, value in fields.items():
        setattr(fresh.data, field, value)
    return str(fresh).encode()


def _pins(root: Path) -> bytes:
    """The versions of requirements.lock without checksums, which a Space's builder does not take beside its own."""
    lines = (root / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.rstrip(" \\") for line in lines if line and not line.startswith((" ", "#"))]
    return ("\n".join(pins) + "\n").encode()


# The command

DESCRIPTION = """\
Put up a Space of your own: the page, and the checkpoints that you choose. Only the files that the page needs are
sent; the Space is private unless you say --public, and one that is there is left alone unless you say --update."""
EXAMPLES = """\
examples:
  python -m bdh space create user/hatchery chat my-checkpoint --dry-run
  python -m bdh space create user/hatchery chat my-checkpoint
  python -m bdh space create user/hatchery user/repo --shipped --hardware zero-a10g --public
  python -m bdh space create user/hatchery my-better-checkpoint --update
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    add = parser.add_argument
    add("what", metavar="create", choices=("create",), help="create")
    add("repo_id", metavar="USER/NAME", help="the Space")
    add("checkpoints", metavar="CHECKPOINT", nargs="*", help="a checkpoint, as in python -m bdh --help")
    add("--shipped", action="store_true", help="take along all checkpoints that come with the repository")
    add("--title", metavar="TEXT", help="of the page's card (default: BDH Hatchery)", default="BDH Hatchery")
    add("--hardware", metavar="NAME", default="cpu-basic", help=f"to suggest: {', '.join(HARDWARE)}")
    add("--locked", action="store_true", help="pin all requirements to the versions in requirements.lock")
    add("--public", action="store_true", help="let everybody see it")
    add("--update", action="store_true", help="write over the files of a Space that is there")
    add("--dry-run", action="store_true", help="list the files and their sizes, and send nothing")
    add("--login", action="store_true", help="read checkpoints on the Hub with this machine's login")
    add("--json", action="store_true", help="write one JSON object")


def run(
    options: argparse.Namespace, resolve: Callable[[str], str], shipped: Path, progress: hub.Progress | None = None
) -> int:
    """Do what the options say; the exit status.

    Args:
        resolve: from the name of a shipped checkpoint to its folder.
        shipped: where these lie.
        progress: shows downloads.

    Raises:
        CheckpointError: as `planned` and `create`.
    """
    chosen: dict[str, Path] = {}
    named = [str(folder) for folder in sorted(shipped.glob("*/"))] if options.shipped else []
    for text in (*map(resolve, options.checkpoints), *named):
        source = hub.parse_source(text)
        if source.path is None:
            folder = hub.fetch(source, token=True if options.login else None, progress=progress, foreign=False).folder
            name = (source.subfolder or source.repo_id).rsplit("/", 1)[-1]
        else:
            folder = source.path.resolve()
            name = folder.name
        if chosen.setdefault(name, folder) != folder:
            raise CheckpointError(f"two checkpoints are named {name}; rename one of the folders")
    files = planned(options.title, chosen, hardware=options.hardware, locked=options.locked)
    total = sum(put.size_bytes for put in files)
    if not options.json:
        for put in files if options.dry_run else ():
            print(f"{put.size_bytes:>13,}  {put.path}")
        print(f"{total:>13,}  bytes in {len(files)} files" + ("; nothing was sent" if options.dry_run else ""))
    address = ""
    if not options.dry_run:
        address = create(options.repo_id, files, private=not options.public, update=options.update)
    if options.json:
        listed = {put.path: put.size_bytes for put in files}
        print(json.dumps({"space": options.repo_id, "address": address, "files": listed, "bytes": total}))
    elif address:
        print(f"{address} is being built; its page says how far it is")
    return 0
