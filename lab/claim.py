"""A claim put to the test: checks against thresholds that were stated before, tables, drawings and a verdict.

What is measured in parts is kept part by part, so that an experiment that was broken off goes on where it stood.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from bdh.cli import resolved
from bdh.errors import ConfigError, DataError
from bdh.load import load
from bdh.models import Model
from bdh.stream import function_of
from train.data import Bytes, held_out_start, read_bytes
from train.folder import environment
from train.sources import is_shipped

REPORT, RESULT, SETTINGS = "report.md", "report.json", "settings.json"
SUPPORTED, PARTLY, NOT, UNTOLD = "supported", "partly supported", "not supported", "not measured"
REPORTS = Path(__file__).parent / "reports"
"""What was measured on the shipped checkpoints, kept with the repository."""

Tell: TypeAlias = Callable[[float], None]
"""Called with how much of a part is done, 0 to 1."""

_TELL_S = 10.0
_MOST_KEPT_BYTES = 60_000
_PARTS = "parts"


@dataclass(frozen=True)
class Threshold:
    """What a number must be for one part of a claim to hold, stated before it is measured."""

    part: str
    """Of the claim, as a sentence."""
    measure: str
    """What the number is."""
    supported: float
    partly: float
    at_least: bool = False
    """Whether the number must be at least these bounds, or at most."""
    form: str = ",.3f"
    """How numbers are written."""
    control: bool = False
    """Whether it says if the test can be trusted, and not if the claim holds."""

    def said(self) -> str:
        """The bounds in words."""
        least = "at least" if self.at_least else "at most"
        supported, partly = format(self.supported, self.form), format(self.partly, self.form)
        if supported == partly:
            return f"supported if {least} {supported}, else not"
        return f"supported if {least} {supported}, partly if {least} {partly}, else not"

    def judge(self, value: float | None, note: str = "") -> Check:
        """Hold a number against the bounds; None was not measured."""
        if value is None or not math.isfinite(value):
            return Check(self.part, self.measure, self.said(), None, "–", UNTOLD, note, self.control)
        sign = -1.0 if self.at_least else 1.0
        verdict = PARTLY if sign * value <= sign * self.partly else NOT
        if sign * value <= sign * self.supported:
            verdict = SUPPORTED
        return Check(self.part, self.measure, self.said(), value, format(value, self.form), verdict, note, self.control)


@dataclass(frozen=True)
class Check:
    """One part of a claim, held against its threshold."""

    part: str
    measure: str
    threshold: str
    value: float | None
    shown: str
    verdict: str
    note: str = ""
    control: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of them the head."""

    title: str
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """All that was found about a claim."""

    name: str
    """As on the command line."""
    title: str
    """As a question."""
    said: str
    """What was said in public."""
    source: str
    """Where."""
    checkpoints: dict[str, str]
    """By name, the checksum of the weights."""
    command: str
    """That measures it again."""
    settings: dict[str, Any]
    checks: tuple[Check, ...]
    tables: tuple[Table, ...]
    drawings: tuple[str, ...]
    """Files beside the report."""
    notes: tuple[str, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)
    """All that was measured, for programs."""
    measured_s: float = 0.0

    @property
    def verdict(self) -> str:
        """Supported if every part is, not supported if no part that was measured is even partly, else partly.

        Controls are left out.
        """
        found = {check.verdict for check in self.checks if not check.control}
        if found <= {NOT, UNTOLD} and NOT in found:
            return NOT
        return found.pop() if len(found) == 1 else PARTLY if found else UNTOLD


class Work:
    """The parts of an experiment, each measured once and kept in its folder."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], expected_s: Mapping[str, float], say: Callable[[str], None]
    ) -> None:
        """Note what is asked, or hold it against what was asked before.

        Args:
            settings: all that what is measured depends on: options, models as `identities` and texts as `digest`.
            expected_s: by part, in order, about how long each takes; only their ratios matter once one is done.

        Raises:
            ConfigError: the folder holds an experiment with other settings.
        """
        self.folder, self._expected, self._say = folder, dict(expected_s), say
        self._spent_s = self._spent_expected = 0.0
        self._told = 0.0
        settle(folder, settings)

    def part(self, name: str, measure: Callable[[Tell], Any]) -> Any:
        """What a part gave, measured now or before: JSON values."""
        path = self.folder / _PARTS / f"{name}.json"
        if path.is_file():
            found = _read_part(path)["found"]
            self._say(f"{name}: measured before")
            return found
        number = list(self._expected).index(name) + 1
        self._say(f"{name}: part {number} of {len(self._expected)}, {self._left(name, 0.0)}")
        self._told = begun = time.monotonic()
        found = measure(partial(self._tell, name))
        elapsed = time.monotonic() - begun
        self._spent_s += elapsed
        self._spent_expected += self._expected[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"elapsed_s": round(elapsed, 1), "found": found})
        return _read_part(path)["found"]

    def elapsed_s(self) -> float:
        """Seconds that all parts took, whenever they were measured."""
        return float(sum(_read_part(path)["elapsed_s"] for path in (self.folder / _PARTS).glob("*.json")))

    def _tell(self, name: str, done: float) -> None:
        if time.monotonic() - self._told >= _TELL_S:
            self._told = time.monotonic()
            self._say(f"{name}: {done:.0%}, {self._left(name, done)}")

    def _left(self, name: str, done: float) -> str:
        """About how long all that is not yet measured will take, at the pace so far."""
        open_parts = [
            one for one in self._expected if one != name and not (self.folder / _PARTS / f"{one}.json").is_file()
        ]
        expected = sum(self._expected[one] for one in open_parts) + (1 - done) * self._expected[name]
        pace = self._spent_s / self._spent_expected if self._spent_expected else 1.0
        left = expected * pace
        return f"about {left / 60:.0f} min left" if left >= 100 else f"about {max(1.0, left):.0f} s left"


def settle(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note what an experiment is asked, or hold it against what was asked in its folder before.

    Args:
        settings: as `Work` takes them.

    Raises:
        ConfigError: the folder holds an experiment with other settings.
    """
    noted = json.loads(json.dumps(dict(settings)))
    path = folder / SETTINGS
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, noted)
    elif json.dumps(_read_json(path)) != json.dumps(noted):  # the order of checkpoints counts, too
        raise ConfigError(
            f"{folder} holds an experiment with other checkpoints, texts or options, or of another version; choose "
            "another --out"
        )


def identity(model: Model[Any]) -> dict[str, Any]:
    """What a model is known by: the checksum of its weights, and what its configuration computes with them."""
    return {"weights": model.checksum(), "computes": json.loads(function_of(model))}


def identities(models: Mapping[str, Model[Any]]) -> dict[str, dict[str, Any]]:
    """What models are known by, by their names."""
    return {name: identity(model) for name, model in models.items()}


def digest(data: bytes | Bytes) -> str:
    """What a text is known by."""
    return hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest()


def add_common(parser: argparse.ArgumentParser, name: str) -> None:
    """Options that every claim has."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / name, help=f"folder of it all (default: runs/{name})"
    )
    parser.add_argument(
        "--keep", action="store_true", help=f"put the report into {REPORTS.name}/, which the page shows"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def progress(options: argparse.Namespace) -> Callable[[str], None]:
    """What takes lines on how it goes."""
    return (lambda line: None) if options.quiet else partial(print, file=sys.stderr, flush=True)


def opened(checkpoint: str) -> Model[Any]:
    """A checkpoint on the CPU, ready to listen."""
    return load(resolved(checkpoint), device="cpu").eval()


def short_name(checkpoint: str) -> str:
    """What a report calls a checkpoint: no path of this machine."""
    name = Path(checkpoint).name
    return name if name not in ("", "..") else Path(checkpoint).resolve().name or "checkpoint"


def by_name(given: Sequence[str], reserved: Sequence[str] = ()) -> dict[str, str]:
    """Checkpoints or texts by what a report calls them.

    Args:
        reserved: what the report calls something else.

    Raises:
        ConfigError: two have one name, or one has a reserved one.
    """
    named: dict[str, str] = {}
    for one in given:
        if short_name(one) in reserved:
            raise ConfigError(f"{short_name(one)} is what the report calls something else; rename {one}")
        if (name := short_name(one)) in named:
            raise ConfigError(
                f"{named[name]} and {one} are both called {name} in the report; name each once, or rename one of them"
            )
        named[name] = one
    return named


def unheard(text: str, most: int) -> Bytes:
    """The first bytes of what recipes keep from training of a shipped corpus; of a file, its first bytes.

    Raises:
        DataError: there are too few.
    """
    data = read_bytes(text)
    part = data[held_out_start(len(data)) :] if is_shipped(text) else data
    if len(part) < 256:
        raise DataError(f"{text} has {len(part)} bytes that models did not train on; at least 256 are needed")
    return part[:most]


def command(name: str, arguments: Sequence[str]) -> str:
    """The command line that measures a claim again, without paths of this machine."""
    told, skip = [], False
    for argument in arguments:
        if not skip and argument not in ("--out", "--quiet", "--keep") and not argument.startswith("--out="):
            told.append(Path(argument).name if os.path.isabs(argument) else argument)
        skip = argument == "--out"
    return shlex.join(["python", "-m", "lab", name, *told])


def write(claim: Claim, folder: Path) -> None:
    """Write report.md and report.json; drawings lie beside them already."""
    fields = dataclasses.asdict(claim) | {
        "verdict": claim.verdict,
        "environment": {**environment(), "threads": torch.get_num_threads()},
    }
    write_json(folder / RESULT, fields)
    (folder / REPORT).write_text(markdown(fields) + "\n", encoding="utf-8")


def done(claim: Claim, options: argparse.Namespace) -> int:
    """Write what was found, keep it if that is asked for, and tell it in a few lines; the exit status."""
    write(claim, options.out)
    if options.keep:
        keep(options.out, REPORTS)
    print(f"{summary(claim)}\n\n{', '.join(str(options.out / name) for name in (REPORT, *claim.drawings))}")
    return 0


def keep(folder: Path, reports: Path) -> Path:
    """Put a report and its drawings, without its numbers, where the page shows them; one file name for each claim.

    Raises:
        DataError: it is no report, or a file is too large to be kept with the repository.
    """
    fields = read(folder / RESULT)
    reports.mkdir(parents=True, exist_ok=True)
    names = {drawing: f"{fields['name']}-{index}.png" for index, drawing in enumerate(fields["drawings"], 1)}
    for drawing, name in names.items():
        if (size := (folder / drawing).stat().st_size) > _MOST_KEPT_BYTES:
            raise DataError(f"{drawing} is {size:,} bytes; at most {_MOST_KEPT_BYTES:,} are kept with the repository")
        shutil.copyfile(folder / drawing, reports / name)
    for old in reports.glob(f"{fields['name']}-*.png"):  # of a report that had more drawings
        if old.name not in names.values():
            old.unlink()
    kept = {**fields, "drawings": list(names.values()), "numbers": {}}
    path = reports / f"{fields['name']}.json"
    write_json(path, kept)
    return path


def read(path: Path) -> dict[str, Any]:
    """A report that `write` wrote.

    Raises:
        DataError: it is none.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not {"name", "verdict", "checks", "tables", "command"} <= fields.keys():
            raise ValueError("fields are missing")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path.name} is no report of a claim ({str(error)[:200]}); measure it again") from error
    return dict(fields)


def markdown(fields: Mapping[str, Any], *, title: bool = True, drawings: bool = True) -> str:
    """A report as a person reads it, from what `read` gives."""
    return "\n\n".join(_markdown(fields, title, drawings))


def _markdown(fields: Mapping[str, Any], title: bool, drawings: bool) -> Iterator[str]:
    if title:
        yield f"# {fields['title']}"
    yield f"**{fields['verdict'].capitalize()}.** What was said: {fields['said']} ({fields['source']})"
    rows = [["part of the claim", "measured", "verdict", "threshold, stated before"]]
    for check in fields["checks"]:
        note = f"; {check['note']}" if check["note"] else ""
        measured = f"{check['shown']} – {check['measure']}{note}"
        part = f"control: {check['part']}" if check["control"] else check["part"]
        rows.append([part, measured, check["verdict"], check["threshold"]])
    yield listed(rows, numbers=False)
    yield (
        "The claim is supported if every part of it is, not supported if no part that was measured is even partly, and "
        "partly supported in between; controls say whether the test can be trusted."
    )
    if drawings:
        for drawing in fields["drawings"]:
            yield f"![{fields['title']}]({drawing})"
    for table in fields["tables"]:
        yield f"## {table['title']}"
        if table["note"]:
            yield table["note"]
        yield listed(table["rows"])
    if fields["notes"]:
        yield "## How it was measured"
        yield "\n".join(f"- {note}" for note in fields["notes"])
    place = fields["environment"]
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in fields["settings"].items())
    weights = ", ".join(f"{name} ({checksum[:12]})" for name, checksum in fields["checkpoints"].items())
    yield "\n".join(
        (
            f"- Weights: {weights or 'none'}",
            f"- Settings: {settings}",
            f"- {place['machine']}, {place['threads']} thread{'s' if place['threads'] != 1 else ''}, torch "
            f"{place['torch']}; measured in {fields['measured_s']:.0f} s",
        )
    )
    yield f"```sh\n{fields['command']}\n```"


def listed(rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Rows of cells as a Markdown table."""
    head, *others = rows
    lines = [head, ["---", *["--:" if numbers else "---"] * (len(head) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(claim: Claim) -> str:
    """A few lines for a terminal."""
    width = max(len(check.verdict) for check in claim.checks)
    lines = [f"{check.verdict.ljust(width)}  {check.part}: {check.shown} ({check.measure})" for check in claim.checks]
    return "\n".join([f"{claim.title} {claim.verdict.capitalize()}.", *lines])


def write_json(path: Path, value: Any) -> None:
    """Write a file whole, or leave the old one."""
    written = path.with_suffix(".new")
    written.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(written, path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({str(error)[:100]}); remove it, and it is measured again") from error


def _read_part(path: Path) -> dict[str, Any]:
    part = _read_json(path)
    if not isinstance(part, dict) or not {"elapsed_s", "found"} <= part.keys():
        raise DataError(f"{path} is damaged (fields are missing); remove it, and it is measured again")
    return part


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
