"""python -m train RECIPE [key=value …]: train a model from a recipe and write its checkpoint.

python -m train evaluate CHECKPOINT --data TEXT: measure a checkpoint; --help says how.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from bdh.device import is_out_of_memory
from bdh.errors import ConfigError, HatcheryError, TrainingError
from bdh.models import check_size

from .compare import PLOT, RESULT, compare, contenders, judge, table
from .evaluate.command import main as evaluate
from .export import export
from .folder import STATE
from .loop import Report, Run, fit
from .memory import free_bytes
from .recipe import Recipe, list_recipes, read_fields, recipe_from_fields
from .tracking import accelerator, tracked

_EPILOG = """\
examples:
  python -m train --list
  python -m train english steps=500 --out runs/english
  python -m train english --out runs/english --resume
  python -m train finetune base=checkpoints/hatchling texts.mine.source=letters.txt texts.mine.rows=8
  python -m train english --dry-run
"""


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks: page faults on fresh ones took half of a step's time on a CPU."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mmap_threshold, trim_threshold, arenas = -3, -1, -8
    mallopt(arenas, 1)  # those of other threads give blocks back whatever the thresholds say
    if mallopt(mmap_threshold, 1 << 30):
        mallopt(trim_threshold, (1 << 31) - 1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 on bad input or a run that cannot go on, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["evaluate"]:
        keep_freed_memory()
        return evaluate(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", help="a shipped recipe's name or a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values laid over the recipe's")
    parser.add_argument("--list", action="store_true", help="list the shipped recipes")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and train nothing")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--checkpoint", type=Path, help="where the checkpoint goes (default: checkpoint/ in the run)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where a run was begun before")
    parser.add_argument(
        "--export-stopped", action="store_true", help="write the checkpoint of the best so far also when stopped"
    )
    parser.add_argument("--track", metavar="PROJECT", help="show the run in trackio as well (pip install trackio)")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors and the result")
    parser.add_argument("--json", action="store_true", help="print each report as a line of JSON")
    options = parser.parse_intermixed_args(arguments)
    if options.list or not options.recipe:
        _list()
        return 0
    try:
        return _train(options)
    except HatcheryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or options.out}: {error.strerror}; choose another --out", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped at once; what was saved last is kept", file=sys.stderr)
        return 130


def _list() -> None:
    for name in list_recipes():
        print(f"{name:<20}{read_fields(name, [])['description']}")


def _train(options: argparse.Namespace) -> int:
    fields = read_fields(options.recipe, options.overrides)
    keep_freed_memory()
    if "models" in fields:
        return _compare(options, contenders(fields, options.recipe), options.out or Path("runs") / fields["name"])
    recipe = recipe_from_fields(fields, options.recipe)
    folder: Path = options.out or Path("runs") / recipe.name
    if not recipe.base:
        check_size(recipe.config())
    if options.dry_run:
        return _dry_run(Run(recipe, folder, accelerator=accelerator(options.track)), options)
    tracked_by = accelerator(options.track)  # refused before anything is written
    with _alone_in(folder):
        return _train_in(Run(recipe, folder, accelerator=tracked_by), folder, options)


def _train_in(run: Run, folder: Path, options: argparse.Namespace) -> int:
    target = options.checkpoint or folder / "checkpoint"
    if options.resume:
        run.resume()
    elif run.folder.exists() and not options.overwrite:
        raise ConfigError(
            f"{folder} holds a run already; go on with it (--resume), replace it (--overwrite) or name another (--out)"
        )
    else:
        run.begin()
    run.folder.go_on()
    with _interruptible(run), _ending_noted(run):
        try:
            teller = _fit(run, options, folder)
        except TrainingError:
            if options.export_stopped and run.best and run.accelerator.is_main_process:
                with suppress(HatcheryError):  # what the run failed of comes first
                    export(run, target)
            raise
        if run.asked_to_stop and not options.export_stopped:
            return 130
        if not run.accelerator.is_main_process:
            return 130 if run.asked_to_stop else 0
        teller.say("measuring on all held-out text …")
        try:
            export(run, target)
        except KeyboardInterrupt:
            again = _again(options, folder)
            run.asked_to_stop = True
            teller.say(f"stopped while measuring; the training is done and saved, finish with: {again}")
            return 130
    print(json.dumps({"checkpoint": str(target)}) if options.json else f"checkpoint: {target}")
    return 130 if run.asked_to_stop else 0


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run's folder; those of one run are let in by the first."""
    if int(os.environ.get("LOCAL_RANK", "0")):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another process is training in {folder}; await or stop it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _ending_noted(run: Run) -> Iterator[None]:
    """Leave in the run's folder how it ended; of a run that is killed nothing is said."""
    try:
        yield
    except KeyboardInterrupt:
        run.folder.end("stopped", "at once; what was saved last is kept")
        raise
    except Exception as error:
        if is_out_of_memory(error):
            said = "memory ran out; what was saved last is kept: end other programs and go on, or take a smaller model"
            run.folder.end("failed", said)
            raise TrainingError(said) from error
        name = "" if isinstance(error, HatcheryError) else f"{type(error).__name__}: "
        run.folder.end("failed", f"{name}{error}"[:500])
        raise
    run.folder.end("stopped" if run.asked_to_stop else "finished")


def _compare(options: argparse.Namespace, recipes: dict[str, Recipe], folder: Path) -> int:
    """Train each contender, then print the table."""
    if options.dry_run:
        return max(_dry_run(Run(recipe, folder / name), options) for name, recipe in recipes.items())
    if not (options.resume or options.overwrite) and any((folder / name / STATE).is_file() for name in recipes):
        raise ConfigError(f"{folder} holds runs already; go on with them (--resume), --overwrite, or --out")
    runs = compare(recipes, folder, resume=options.resume, accelerator=partial(accelerator, options.track))
    for run in runs:
        with _interruptible(run):
            _fit(run, options, folder)
        if run.asked_to_stop:
            return 130
    found = judge(recipes, folder)
    if options.json:
        print(json.dumps({"comparison": str(folder / RESULT)}))
    else:
        print(table(found))
        for one in found:
            print(f"\n{one.name}: {one.sample!r}")
        print(f"\n{folder / RESULT}, {folder / PLOT}")
    return 0


def _fit(run: Run, options: argparse.Namespace, folder: Path) -> _Teller:
    """Train a run to its end or until it is asked to stop, telling how it goes."""
    teller = _Teller(options, run)
    teller.say(_opening(run))
    try:
        with tracked(run, options.track, resumed=options.resume) as track:
            for report in fit(run):
                track(report)
                teller.tell(report)
    finally:
        teller.close()
    if run.asked_to_stop:
        teller.say(f"stopped after step {run.step}; go on with: {_again(options, folder)}")
    return teller


def _again(options: argparse.Namespace, folder: Path) -> str:
    """The command that goes on with a run."""
    told = [options.recipe, *options.overrides, "--out", str(folder), "--resume"]
    told += ["--track", options.track] if options.track else []
    return shlex.join(["python", "-m", "train", *told])


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) end the run after the step under way, and a second one at once."""

    def ask(number: int, frame: object) -> None:
        if run.asked_to_stop or run.over:
            raise KeyboardInterrupt
        run.asked_to_stop = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Teller:
    """Reports as a bar with lines above it, as JSON, or not at all."""

    def __init__(self, options: argparse.Namespace, run: Run) -> None:
        self._json, main = options.json, run.accelerator.is_main_process
        self._quiet = options.quiet or not main
        self._steps = run.steps
        self._bar = None
        if not (self._quiet or self._json) and sys.stderr.isatty():
            self._bar = tqdm(total=self._steps, initial=run.step, unit="step", dynamic_ncols=True)

    def say(self, text: str) -> None:
        """A line for a person."""
        if not (self._quiet or self._json):
            tqdm.write(text, file=sys.stdout) if self._bar else print(text, flush=True)

    def tell(self, report: Report) -> None:
        """A report."""
        if self._json:
            if not self._quiet:
                print(json.dumps(dataclasses.asdict(report)), flush=True)
            return
        if not report.step:
            self.say(
                f"the base: {', '.join(f'{name} {bits:.3f}' for name, bits in report.validation.items())} bits/byte"
            )
            return
        line = f"{report.bits_per_byte:.3f} bits/byte  {report.bytes_per_s:,.0f} bytes/s"
        if self._bar is not None:
            self._bar.set_postfix_str(line, refresh=False)
            self._bar.total = report.steps
            self._bar.update(report.step - self._bar.n)
        told = []
        if report.validation:
            told += [f"{name} {bits:.3f}" for name, bits in report.validation.items()]
            told += ["best so far"] if report.best_step == report.step else [f"best at step {report.best_step}"]
        if report.active:
            told += [f"{name} {part:.0%} active" for name, part in report.active.items()]
        if self._bar is None or report.validation:
            phase = f"{report.phase}: " if report.phase else ""
            left = f"{report.remaining_s / 60:.1f} min left"
            self.say("  ".join([f"{phase}step {report.step}/{report.steps}", line, left, *told]))
        if report.sample:
            self.say(f"    {report.sample!r}")
        if report.stopped and "asked" not in report.stopped:
            self.say(f"stopped early: {report.stopped}")

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _opening(run: Run) -> str:
    count = run.model.parameter_count()
    learning = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    some = "" if learning == count else f", {learning:,} of them learn"
    text = sum(len(one.train) for splits in run.splits for one in splits)
    return f"{run.recipe.name}: {count:,} parameters{some}, {text:,} bytes of text, {run.folder.path}"


def _dry_run(run: Run, options: argparse.Namespace) -> int:
    """Say what a run would take; the time is that of a few steps taken and thrown away."""
    recipe: Recipe = run.recipe
    heard = sum(
        part.steps * part.chunk_bytes * sum(one.rows for one in splits)
        for part, splits in zip(run.parts, run.splits, strict=True)
    )
    taken = []
    for _ in range(3):
        begun = time.monotonic()
        run.train_step()
        taken.append(time.monotonic() - begun)
    plan = run.plan
    assert plan is not None
    rate = run.rows * run.parts[0].chunk_bytes / min(taken)
    if recipe.minutes:
        heard = int(rate * recipe.minutes * 60)
    steps = heard // (run.rows * run.parts[0].chunk_bytes) if recipe.minutes else recipe.total_steps
    free = free_bytes(run.accelerator.device)
    found = {
        "parameters": run.model.parameter_count(),
        "learning": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "device": str(run.accelerator.device),
        "text_bytes": sum(len(one.train) for splits in run.splits for one in splits),
        "heard_bytes": heard,
        "steps": steps,
        "memory_bytes": plan.step_bytes,
        "free_bytes": free,
        "micro_rows": plan.micro_rows,
        "recompute": plan.recompute,
        "bytes_per_s": rate,
        "seconds": heard / rate,
    }
    if options.json:
        print(json.dumps(found))
        return 0
    print(
        f"{_opening(run)}\n"
        f"device      {found['device']}, {'recomputing activations, ' if plan.recompute else ''}"
        f"{plan.micro_rows} of {run.rows} rows at once\n"
        f"memory      {plan.step_bytes / 1e9:.2f} GB beside the weights, {free / 1e9:.1f} GB free\n"
        f"to hear     {heard:,} bytes in {steps:,} steps\n"
        f"time        {heard / rate / 60:,.0f} minutes at {rate:,.0f} bytes/s (of the fastest of three steps)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
