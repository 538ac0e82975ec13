"""python -m train RECIPE [key=value …]: train a model from a recipe and write its checkpoint.

python -m train evaluate CHECKPOINT --data TEXT: measure a checkpoint; --help says how.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from dataclasses import asdict
from pathlib import Path

from bdh.errors import HatcheryError
from bdh.models import check_size

from .evaluate.command import main as evaluate
from .export import export
from .loop import Run, fit
from .recipe import list_recipes, load_recipe


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks: page faults on fresh ones took half of a step's time on a CPU."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mmap_threshold, trim_threshold = -3, -1
    if mallopt(mmap_threshold, 1 << 30):
        mallopt(trim_threshold, (1 << 31) - 1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 on bad input, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["evaluate"]:
        keep_freed_memory()
        return evaluate(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("recipe", nargs="?", help="a shipped recipe's name or a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values laid over the recipe's")
    parser.add_argument("--list", action="store_true", help="list the shipped recipes")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--checkpoint", type=Path, help="where the checkpoint goes (default: checkpoint/ in the run)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    options = parser.parse_intermixed_args(arguments)
    if options.list or not options.recipe:
        print("\n".join(list_recipes()))
        return 0
    try:
        return _train(options)
    except HatcheryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    folder = options.out or Path("runs") / recipe.name
    keep_freed_memory()
    parameters = check_size(recipe.config())
    run = Run(recipe, folder)
    if options.resume and (folder / "run.pt").is_file():
        run.resume()
    folder.mkdir(parents=True, exist_ok=True)
    text_bytes = sum(len(split.train) for split in run.splits)
    print(f"{recipe.name}: {parameters:,} parameters, {text_bytes:,} bytes of text, {folder}")
    try:
        with (folder / "log.jsonl").open("a") as log:
            for report in fit(run):
                log.write(json.dumps(asdict(report)) + "\n")
                log.flush()
                held_out = "".join(f"  {name} {bits:.3f}" for name, bits in report.held_out.items())
                print(
                    f"step {report.step}/{report.steps}  {report.bits_per_byte:.3f} bits/byte  "
                    f"{report.bytes_per_s:,.0f} bytes/s  {report.remaining_s / 60:.1f} min left{held_out}",
                    flush=True,
                )
    except KeyboardInterrupt:
        print(f"stopped; go on with: python -m train {options.recipe} --out {folder} --resume")
        return 130
    print("measuring on all held-out text …", flush=True)
    print(f"checkpoint: {export(run, options.checkpoint or folder / 'checkpoint')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
