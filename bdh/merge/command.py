"""python -m bdh merge: its options, the plan it shows, and the checkpoint it writes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import MergeError
from .make import merge, write
from .plan import make_plan
from .recipe import METHODS, PRUNED_BY, Recipe, read_recipe, recipe_from_fields

DESCRIPTION = "Merge models into one. The plan is shown first; --dry-run shows nothing but the plan."
EXAMPLES = """\
examples:
  python -m bdh merge english spanish --out both
  python -m bdh merge english spanish python chat --method mixture --out four
  python -m bdh merge english python --method ties --base base --density 0.3 --out ties
  python -m bdh merge --recipe merge.toml --out again

methods:
""" + "".join(f"  {name:<16} {method.summary}\n" for name, method in METHODS.items())

_NUMBERS = {
    "t": float,
    "density": float,
    "scale": float,
    "share_rate": float,
    "width": int,
    "neurons": int,
    "seed": int,
}
_HELP = {
    "t": "slerp: from 0, the first parent, to 1, the second",
    "density": "ties, dare: part of each parent's changes that is kept",
    "scale": "of the summed changes, where there is a base",
    "share_rate": "mixture: part of the trust that is shared out after each byte",
    "width": "deep: of the combined hidden state",
    "neurons": "concat: cut the result to so many neurons a head; 0 keeps all",
    "seed": "of random choices",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a merge can be told on the command line; what is not told is what the recipe or `Recipe` says."""
    usual = {field.name: field.default for field in dataclasses.fields(Recipe)}
    add = parser.add_argument
    add("parents", metavar="PARENT", nargs="*", help="a checkpoint, as CHECKPOINT in python -m bdh --help")
    add("--out", metavar="DIR", type=Path, help="the folder to write")
    add("--recipe", metavar="FILE", type=Path, help="a TOML file with any of these options; what stands here wins")
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    add("--method", choices=METHODS, help=f"see below (default: {usual['method']})", **given)
    add("--weights", metavar="W,W", type=_weights, help="one a parent (default: all alike)", **given)
    add("--base", metavar="CHECKPOINT", help="what the parents were cloned from", **given)
    for name, kind in _NUMBERS.items():
        flag = f"--{name.replace('_', '-')}"
        add(
            flag,
            metavar="N" if kind is int else "X",
            type=kind,
            help=f"{_HELP[name]} (default: {usual[name]})",
            **given,
        )
    add("--align", action="store_true", help="parents have no common base: align their spaces first", **given)
    add("--by", choices=PRUNED_BY, help=f"how neurons are chosen (default: {usual['by']})", **given)
    add("--text", metavar="FILE", help="what alignment and activity are measured on: its first 8,192 bytes", **given)
    add("--dtype", choices=("auto", "float32", "bfloat16"), help="of the stored weights (default: auto)", **given)
    add("--by-reference", action="store_true", help="store members' places on the Hub, not their weights", **given)
    add("--name", metavar="NAME", help="title of the card (default: the folder's name)", **given)
    add("--dry-run", action="store_true", help="show the plan and write nothing")
    add("--login", action="store_true", help="read the Hub with this machine's login")
    add("--offline", action="store_true", help="take Hub checkpoints from the cache only")
    add("--json", action="store_true", help="write one JSON object")


def run(options: argparse.Namespace, resolve: Callable[[str], str], progress: hub.Progress) -> int:
    """Merge as the options say; the exit status.

    Args:
        resolve: from the name of a shipped checkpoint to its folder.
        progress: shows downloads.

    Raises:
        HatcheryError: says what is wrong and what to do.
    """
    told = {name: value for name, value in vars(options).items() if name in _FIELDS}
    if not told["parents"]:
        del told["parents"]
    if "parents" not in told and options.recipe is None:
        raise MergeError("no parents were given; name two or more checkpoints, or a --recipe that does")
    if options.out is None and not options.dry_run:
        raise MergeError("--out is missing: name the folder to write, or look at the plan with --dry-run")
    if options.out is not None and options.recipe is None:
        told.setdefault("name", options.out.resolve().name)
    recipe = read_recipe(options.recipe, told) if options.recipe else recipe_from_fields(told)
    login, offline = (True if options.login else None), (True if options.offline else None)
    plan = make_plan(recipe, token=login, offline=offline, progress=progress, resolve=resolve)
    if not options.json:
        print("\n".join(plan.lines()))
    if options.dry_run:
        if options.json:
            print(json.dumps(plan.as_dict(), ensure_ascii=False))
        return 0
    merged = merge(plan, progress=_say)
    folder = write(merged, options.out)
    if options.json:
        print(json.dumps({**plan.as_dict(), "out": str(options.out), "notes": merged.notes}, ensure_ascii=False))
        return 0
    for note in merged.notes:
        print(note)
    print(f"written: {options.out}")
    if recipe.method == "deep":
        print(f"its combiner is untrained: python -m train finetune base={folder.name} …")
    return 0


_FIELDS = {field.name for field in dataclasses.fields(Recipe)}


def _weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no list of numbers such as 1,0.5") from None


def _say(done: int, total: int, note: str) -> None:
    if sys.stderr.isatty():
        print(f"{done} of {total}: {note}", file=sys.stderr, flush=True)
