"""python -m bdh push and search: what they are told, what they show."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import card as cards
from . import hub, publish
from .errors import CheckpointError
from .search import MOST, Found, look, search

PUSH = """\
Publish a checkpoint on the Hugging Face Hub: its weights, configuration, card and provenance, and nothing else.
It is private unless --public is given. What is there already is replaced, and what is there and public is filled,
with --replace alone."""
PUSH_EXAMPLES = """\
examples:
  python -m bdh push runs/english/checkpoint --dry-run
  python -m bdh push runs/english/checkpoint
  python -m bdh push both user/both --public --license mit
  python -m bdh push both user/both --replace --revision draft
"""
SEARCH = "Search the Hugging Face Hub for BDH checkpoints, the most downloaded first."
SEARCH_EXAMPLES = """\
examples:
  python -m bdh search
  python -m bdh search english --author user --json
  python -m bdh search --about user/repo
"""


def add_push(parser: argparse.ArgumentParser) -> None:
    """What publishing can be told on the command line."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a folder, or the name of a shipped checkpoint")
    add("repo", metavar="REPO", nargs="?", default="", help="user/name (default: your name and the checkpoint's)")
    add("--public", action="store_true", help="let everybody see a repository that is made")
    add("--replace", action="store_true", help="send to a repository that holds something already")
    add("--revision", metavar="BRANCH", help="the branch, made if there is none (default: the main one)")
    add("--license", metavar="NAME", default="", help=f"such as {', '.join(cards.LICENSES[:4])} (default: the card's)")
    add("--message", metavar="TEXT", help="of the commit")
    add("--dry-run", action="store_true", help="show what would be sent and to what; change nothing")
    add("--json", action="store_true", help="write one JSON object")


def push(options: argparse.Namespace, resolved: Callable[[str], str], meter: hub.Progress) -> int:
    """Publish, or show what would be."""
    folder = Path(resolved(options.checkpoint))
    if not folder.is_dir():
        raise CheckpointError(
            f"{options.checkpoint[:100]!r} is no folder with a checkpoint; python -m bdh convert makes one of a file"
        )
    parcel = publish.pack(folder, license=options.license)
    user = publish.account()
    if not user and not options.dry_run:
        raise CheckpointError("this machine is not logged in to the Hub; run hf auth login")
    title = os.path.basename(os.path.abspath(folder))
    title = folder.resolve().parent.name if title == "checkpoint" else title  # of a run's folder
    repo = hub.without_address(options.repo) or publish.suggested(user, title)
    there = publish.look(repo, revision=options.revision) if repo and user else None
    if options.dry_run:
        _show(options, parcel, repo or f"<your name>/{publish.suggested('x', title)[2:]}", there)
        return 0
    _say(f"{repo}, {'as it is there' if there and there.exists else 'public' if options.public else 'private'}")
    address = publish.upload(
        folder, repo, private=not options.public, message=options.message, revision=options.revision,
        license=options.license, replace=options.replace, seen=there, progress=meter,
    )  # fmt: skip
    if options.json:
        print(json.dumps({"repo_id": repo, "commit_url": address, "bytes": parcel.size_bytes}))
    else:
        print(address)
    return 0


def _show(options: argparse.Namespace, parcel: publish.Parcel, repo: str, there: publish.There | None) -> None:
    """What would be sent, and what is there."""
    stands = bool(there and there.to_be_agreed(not options.public))
    made = not (there and there.exists)
    would = "make" if made else "replace" if there and there.files else "fill"
    would = "refuse" if stands and not options.replace else would
    if options.json:
        told = {
            "repo_id": repo, "exists": not made, "holds": list(there.files) if there else [],
            "would": would,
            "private": there.private if there and there.exists else not options.public, "files": parcel.files,
            "card": parcel.card,
        }  # fmt: skip
        print(json.dumps(told, ensure_ascii=False))
        return
    print(f"{repo}: ", end="")
    if stands and there:
        deed = "its files of these names would be replaced" if there.files else "it would be filled"
        print(f"{there.words()}; {deed if options.replace else 'it would be refused without --replace'}")
    elif made:
        print(f"would be made, {'public' if options.public else 'private'}")
    else:
        print(f"is there, {'private' if there and there.private else 'public'} and empty; it would be filled")
    for name, size in parcel.files.items():
        print(f"  {name:<20} {size:>15,} bytes")
    print(f"  {'together':<20} {parcel.size_bytes:>15,} bytes\n")
    print(parcel.card.split("\n---\n")[0] + "\n---")


def add_search(parser: argparse.ArgumentParser) -> None:
    """What searching can be told on the command line."""
    add = parser.add_argument
    add("text", metavar="TEXT", nargs="?", default="", help="part of the name (default: all)")
    add("--author", metavar="NAME", default="", help="a user or an organisation")
    add("--limit", metavar="N", type=int, default=20, help=f"results, 1 to {MOST} (default: 20)")
    add("--about", metavar="REPO", default="", help="show what one checkpoint is, and its card, without its weights")
    add("--login", action="store_true", help="search with this machine's login, private repositories too")
    add("--json", action="store_true", help="write one JSON object")


def find(options: argparse.Namespace) -> int:
    """Search, or show one checkpoint."""
    token = True if options.login else None
    if options.about:
        return _about(options, token)
    found = search(options.text, author=options.author, limit=options.limit, token=token)
    if options.json:
        print(json.dumps({"checkpoints": [dataclasses.asdict(one) for one in found]}))
    elif not found:
        _say("nothing on the Hub fits; leave the text or the author out to see all")
    else:
        print(listing(found))
    return 0


def listing(found: Sequence[Found]) -> str:
    """What was found, as a table for a terminal."""
    width = max(len(one.repo_id) for one in found)
    lines = [f"{'checkpoint':<{width}}  {'kind':<12} {'parameters':>13} {'downloads':>10}  updated"]
    for one in found:
        count = f"{one.parameters:,}" if one.parameters else "–"
        lock = "  private" if one.private else ""
        lines.append(
            f"{one.repo_id:<{width}}  {one.kind or '–':<12} {count:>13} {one.downloads:>10,}  {one.updated}{lock}"
        )
    return "\n".join(lines)


def _about(options: argparse.Namespace, token: bool | None) -> int:
    seen = look(hub.without_address(options.about), token=token)
    kind = seen.config.kind if seen.config else "of another project's form"
    if options.json:
        told = {
            "place": seen.place, "commit": seen.commit, "kind": kind, "parameters": seen.parameters,
            "weight_bytes": seen.weight_bytes, "license": seen.license, "card": seen.card,
        }  # fmt: skip
        print(json.dumps(told, ensure_ascii=False))
    else:
        print(f"{seen.place}: {kind}, {seen.parameters:,} parameters, {seen.weight_bytes:,} bytes of weights, ", end="")
        print(f"licence {seen.license or 'not stated'}, commit {seen.commit[:12]}\n")
        print("".join(one for one in seen.card if one.isprintable() or one == "\n").strip())
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
