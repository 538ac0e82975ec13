"""What the Train tab does, without components: from a filled form to a run, and from a run to what is shown of it."""

from __future__ import annotations

import dataclasses
import html
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

from bdh import checkpoint, hub
from bdh.errors import ConfigError, DataError, HatcheryError
from bdh.models import parameter_count
from bdh.presets import PRESETS, describe
from train.folder import METRICS
from train.job import FINISHED, LOG, RUNNING, STOPPING, WAITING, Job, Jobs
from train.recipe import list_recipes, load_recipe, read_fields

from .limits import Limits
from .parting import Packer
from .registry import Owner, Registry, compact, size_text
from .wishes import (
    DATASET,
    FRESH,
    MINUTES,
    OWN,
    SHIPPED,
    TRAINED,
    Wish,
    arguments,
    checked,
    command,
    run_name,
    text_fields,
)
from .writing import ON_ZERO_GPU, lent

MINE = "mine.txt"
_NO_SHAPE = "composed"
_ROWS = (".jsonl", ".ndjson")
_AROUND_S = 60.0
_OPENING_CHARACTERS = 40
_LEAST_BYTES = 1_000
_PARTS = ("the local part", "the global part")
_MEASURES_KEPT = 64
_MOST_SHOWN_BYTES = 2_000_000
"""Of a text that is put back into its box."""


class Look(NamedTuple):
    """What is shown of a run."""

    status: str
    """HTML, escaped."""
    measures: list[dict[str, Any]]
    samples: str
    log: str


class Trainer:
    """Runs of the page's visitors."""

    def __init__(self, registry: Registry, jobs: Jobs, limits: Limits) -> None:
        self.registry, self.jobs, self.limits = registry, jobs, limits
        self._measured: dict[str, tuple[tuple[int, int], list[dict[str, Any]]]] = {}
        self._packer = Packer()
        jobs.before_removal = lambda job: registry.drop_within(job.path)

    def bases(self, owner: Owner) -> list[tuple[str, str]]:
        """(label, id) of what can be trained: models to go on from, then shapes for fresh weights."""
        most = self.limits.max_train_parameters
        trainable = [
            entry.id
            for entry in self.registry.entries(owner)
            if not entry.kind.startswith(_NO_SHAPE) and entry.parameters <= most
        ]
        models = [choice for choice in self.registry.choices(owner) if choice[1] in trainable]
        fresh = [
            (f"fresh {one.name} · {compact(one.parameters)} parameters", FRESH + one.name)
            for one in describe()
            if one.parameters <= most
        ]
        return [*models, *fresh]

    def start(self, wish: Wish, files: Sequence[str], owner: Owner) -> str:
        """Let a run begin when its turn comes; returns its id.

        Raises:
            HatcheryError: what is asked for cannot be, or not now.
        """
        wish = checked(wish, self.limits)
        with self.jobs.draft(owner) as (id, given):
            words = self._prepare(wish, files, owner, given)
            words += ["compile=off"] if ON_ZERO_GPU else []  # there is no compiler there
            # What was pasted may be long, and stands beside.
            form = dataclasses.asdict(wish) | {"pasted": "", "own": self._own_name(wish, files)}
            limit_s = self.limits.max_train_minutes * 60.0 if self.limits.public else 0.0
            self.jobs.submit(id, self._name(wish, files), words, form, limit_s=limit_s)
        return id

    def estimate(self, wish: Wish, files: Sequence[str], owner: Owner) -> str:
        """What a run would take, in Markdown, found by a few steps that are thrown away.

        Raises:
            HatcheryError: what is asked for cannot be.
        """
        wish = checked(wish, self.limits)
        with self.jobs.draft(owner) as (id, given):
            try:
                found = self.jobs.try_out(id, self._prepare(wish, files, owner, given))
            finally:
                self.jobs.drop(id)
        learning = "all of them learn"
        if found["learning"] < found["parameters"]:
            learning = f"{found['learning']:,} learn"
        times = found["heard_bytes"] / max(1, found["text_bytes"])
        return (
            f"**{found['parameters']:,} parameters**, {learning} · {size_text(found['text_bytes'])} of text to train "
            f"on · **{size_text(found['memory_bytes'])} of memory** beside the weights, "
            f"{size_text(found['free_bytes'])} are free · {found['bytes_per_s']:,.0f} bytes/s on {found['device']}: "
            f"**{duration(found['seconds'])}** for {found['steps']:,} steps, in which it hears "
            f"{size_text(found['heard_bytes'])} ({times:.2g} times the text)"
        )

    def shell(self, wish: Wish, files: Sequence[str], owner: Owner) -> str:
        """The command that does the same; a line that says what is missing if it cannot be said yet."""
        try:
            wish = checked(wish, self.limits)
            words = self._words(wish, files, owner)
        except HatcheryError as error:
            return f"# {error}"
        notes = []
        if wish.data == OWN:
            own = self._own_name(wish, files)
            folder = "a folder with your files" if own == "mine" else "your text as a file"
            notes.append(f"# {own}: {folder}")
        if (base := "" if wish.fresh else self._base_name(wish.base, owner)).startswith("base/"):
            notes.append(f"# {base}: the specialist, downloaded and unpacked")
        return "\n".join([*notes, command(words)])

    def adopt(self, id: str, owner: Owner) -> str:
        """Take what a run made into the owner's list of models; returns the model's id.

        Raises:
            HatcheryError: there is nothing yet.
        """
        return self.registry.load_trained(self.made(id, owner), self.jobs.get(id, owner).title, owner)

    def zipped(self, id: str, owner: Owner) -> Path:
        """What a run made as one file, in a temporary folder of its own."""
        return self._packer.zipped(self.made(id, owner), self.jobs.get(id, owner).title)

    def _measures(self, job: Job) -> list[dict[str, Any]]:
        """A run's measures, read again only when there are more."""
        with suppress(OSError):
            found = (job.run.path / METRICS).stat()
            version = (found.st_ino, found.st_size)
            known = self._measured.get(job.id)
            if known is None or known[0] != version:
                known = self._measured[job.id] = (version, job.run.measures())
                while len(self._measured) > _MEASURES_KEPT:
                    self._measured.pop(next(iter(self._measured)), None)
            return known[1]
        return []

    def look(self, id: str, owner: Owner) -> Look:
        """A run as it is now."""
        job = self.jobs.get(id, owner)
        measures = self._measures(job)
        return Look(status(job, measures, self.jobs.busy()), measures, samples(measures), job.log())

    def wish_of(self, id: str, owner: Owner) -> Wish:
        """What was asked for, to be asked again with changes; of files, their text."""
        job = self.jobs.get(id, owner)
        known = {field.name for field in dataclasses.fields(Wish)}
        wish = Wish(**{name: value for name, value in job.form.items() if name in known})
        own = job.given / str(job.form.get("own", MINE))
        paths = sorted(own.iterdir()) if own.is_dir() else [own]
        if wish.data != OWN or sum(path.stat().st_size for path in paths) > _MOST_SHOWN_BYTES:
            return wish
        with suppress(UnicodeDecodeError):  # such as a compressed file, which has to be chosen again
            if not any(path.suffix in _ROWS for path in paths):
                return dataclasses.replace(wish, pasted="\n\n".join(path.read_bytes().decode() for path in paths))
        return wish

    def made(self, id: str, owner: Owner) -> Path:
        """The folder of the checkpoint that a run made.

        Raises:
            HatcheryError: there is none yet.
        """
        made = self.jobs.get(id, owner).checkpoint
        if made is None:
            raise DataError("this run has made no checkpoint yet; await its end, or stop it to take the best so far")
        return made

    def parted(self, owner: Owner, id: str) -> tuple[Path, str]:
        """The folder of the checkpoint that a run made, and what it is called."""
        return self.made(id, owner), self.jobs.get(id, owner).title

    def _prepare(self, wish: Wish, files: Sequence[str], owner: Owner, given: Path) -> list[str]:
        """Put what the run needs into its folder; returns the words after `python -m train`."""
        own = self._own_name(wish, files)
        words = self._words(wish, files, owner)
        if wish.data == OWN:
            self._write_own(wish, files, given / own)
        if not wish.fresh:
            target = given / self._base_name(wish.base, owner)
            if target.parts[len(given.parts)] == own:
                raise DataError(f"the text and the base are both called {own!r}; give the file another name")
            folder = self.registry.folder(wish.base, owner)
            if folder.is_dir() and checkpoint.is_checkpoint(folder):
                target.mkdir(parents=True)
                for name in checkpoint.FILES:
                    if (folder / name).is_file():
                        shutil.copyfile(folder / name, target / name)
            else:
                with self.registry.lease(wish.base, owner) as model:
                    model.save_pretrained(target)
            words += self._base_place(wish.base, owner)
        return words

    def _base_place(self, id: str, owner: Owner) -> list[str]:
        """Where on the Hub a base was fetched from, for the card of what is made of it."""
        source, folder = self.registry.source(id, owner), self.registry.folder(id, owner)
        commits = [one.name for one in (folder, *folder.parents) if one.parent.name == "snapshots"]
        if not source.startswith("Hub: ") or not commits:
            return []
        return [f"base_place={hub.parse_source(source.removeprefix('Hub: '), local=False).at(commits[0])}"]

    def _words(self, wish: Wish, files: Sequence[str], owner: Owner) -> list[str]:
        most = self.limits.max_train_parameters
        if not wish.base:
            raise ConfigError("choose a model to go on from, or a shape for fresh weights")
        if wish.fresh and wish.fresh not in PRESETS:
            raise ConfigError(f"there is no preset {wish.fresh!r:.60}; choose one of {', '.join(PRESETS)}")
        config = PRESETS[wish.fresh] if wish.fresh else self.registry.config(wish.base, owner)
        if config.kind == _NO_SHAPE:
            raise ConfigError("a composed model is not trained as a whole; train its members")
        if (count := parameter_count(config)) > most:
            raise ConfigError(f"this model has {count:,} parameters; up to {most:,} may be trained here")
        if wish.data == OWN and not wish.pasted.strip() and not files:
            raise DataError("paste a text or choose files first")
        if wish.trained in _PARTS and config.kind != "hierarchical":
            raise ConfigError(
                f"What learns is {wish.trained!r}, which hierarchical models have; this one is {config.kind}: choose "
                f"{', '.join(repr(one) for one in TRAINED if one not in _PARTS)}"
            )
        texts = text_fields(wish, self._own_name(wish, files), self.limits)
        base = "" if wish.fresh else self._base_name(wish.base, owner)
        wish = dataclasses.replace(wish, name=self._name(wish, files), prompt=wish.prompt or _opening(wish, files))
        words = arguments(wish, base, texts, kind=config.kind)
        load_recipe(words[0], words[1:])  # what it would refuse later is said now
        return words

    def _base_name(self, id: str, owner: Owner) -> str:
        """What a base is called in a run's folder: as it is found from a clone, or on the Hub."""
        source, title = self.registry.source(id, owner), run_name(self.registry.title(id, owner), "base")
        if source == "shipped":
            return f"checkpoints/{title}"
        if source.startswith("Hub: "):
            return source.removeprefix("Hub: ").partition("@")[0].partition(":")[0]
        return f"base/{title}"

    def _own_name(self, wish: Wish, files: Sequence[str]) -> str:
        """What a person's own text is called in a run's folder: a name that no shipped text and no base has."""
        if len(files) != 1 or wish.pasted.strip():
            return "mine" if files else MINE
        name = Path(files[0]).name
        ending = "".join(Path(name).suffixes[-2:])
        ending = ending if re.fullmatch(r"(\.\w{1,8}){1,2}", ending, re.ASCII) else ".txt"
        return f"{run_name(name.removesuffix(ending), 'mine')[:50]}{ending}"

    def _name(self, wish: Wish, files: Sequence[str]) -> str:
        if wish.name.strip():
            return run_name(wish.name, "specialist")
        if wish.data == OWN:
            return run_name(Path(files[0]).stem, "mine") if files else "mine"
        if wish.data == DATASET:
            return run_name(wish.dataset.rpartition("/")[2], "specialist")
        return run_name("-".join(wish.corpora), "specialist")

    def _write_own(self, wish: Wish, files: Sequence[str], target: Path) -> None:
        pasted = wish.pasted.encode("utf-8", errors="replace")
        size = len(pasted) * bool(pasted.strip()) + sum(Path(path).stat().st_size for path in files)
        if size > self.limits.max_train_bytes:
            raise DataError(
                f"the text has {size_text(size)}; up to {size_text(self.limits.max_train_bytes)} are allowed here"
            )
        if size < _LEAST_BYTES:
            raise DataError(f"the text has {size:,} bytes; give at least {_LEAST_BYTES:,}, and better 20,000 or more")
        for path in files:
            if len(files) + bool(pasted.strip()) > 1 and Path(path).suffix.lower() in (*_ROWS, ".xz", ".gz"):
                raise DataError(
                    f"{Path(path).name[:80]!r} is compressed or has rows; choose it alone, or unpack it first"
                )
            with Path(path).open("rb") as file:
                if Path(path).suffix.lower() not in (".xz", ".gz") and b"\0" in file.read(8192):
                    raise DataError(f"{Path(path).name[:80]!r} is no text in UTF-8; choose text files")
        if not files:
            target.write_bytes(pasted)
        elif len(files) == 1 and not pasted.strip():
            shutil.copyfile(files[0], target)
        else:
            target.mkdir()
            if pasted.strip():
                (target / "pasted.txt").write_bytes(pasted)
            for place, path in enumerate(files):
                shutil.copyfile(path, target / f"{place:03d}-{run_name(Path(path).name, 'text')}")


def _opening(wish: Wish, files: Sequence[str]) -> str:
    """What samples begin with unless it is said: what the text begins with."""
    if wish.data == SHIPPED:
        return next((str(read_fields(name, [])["prompt"]) for name in wish.corpora if name in list_recipes()), "")
    if wish.data != OWN:
        return ""
    start = wish.pasted[:400].encode()
    if not start.strip() and files:
        with Path(files[0]).open("rb") as file:
            start = file.read(400)
    words = start.decode("utf-8", "ignore").split()
    text = ""
    for word in words:
        if len(text) + len(word) > _OPENING_CHARACTERS:
            break
        text += f"{word} "
    return text if text.isprintable() else ""


def status(job: Job, measures: Sequence[dict[str, Any]], busy: tuple[int, int]) -> str:
    """How a run stands, as HTML."""
    last = measures[-1] if measures else None
    lines = [f"<b>{html.escape(_headline(job, last, busy))}</b>"]
    if last is not None and last["step"] and job.state in (RUNNING, STOPPING):
        part = min(1.0, last["step"] / max(1, last["steps"]))
        if job.form.get("budget") == MINUTES:
            part = min(1.0, last["elapsed_s"] / (60 * float(job.form.get("amount", 1))))
        lines.append(f'<progress max="1" value="{part:.4f}" aria-label="progress"></progress>')
    if told := _figures(measures):
        lines.append(html.escape(told))
    if job.message:
        lines.append(f'<span class="runs-message">{html.escape(job.message)}</span>')
    if made := _made_better(job):
        lines.append(html.escape(made))
    return '<div class="runs-status">' + "".join(f"<div>{line}</div>" for line in lines) + "</div>"


def _headline(job: Job, last: dict[str, Any] | None, busy: tuple[int, int]) -> str:
    if job.state == WAITING:
        before = job.place - 1
        ahead = f"{before} waiting before it, " if before else ""
        return f"Waiting for its turn: {ahead}{busy[0]} training now" if busy[0] or before else "About to start"
    if job.state in (RUNNING, STOPPING) and (last is None or not last["step"]):
        return "Getting ready: reading the text and the model" if last is None else "Training: the first step"
    if job.state == STOPPING:
        return "Stopping after the step under way, then measuring the best so far"
    if last is None or not last["step"]:
        return {"finished": "Done", "stopped": "Stopped", "failed": "It failed"}.get(job.state, "Interrupted")
    step = f"step {last['step']:,}"
    if job.state == RUNNING:
        if not last["remaining_s"] or last["stopped"]:
            return f"Measuring what it learned, {step}"
        return f"Training: {step} of {last['steps']:,}, {duration(last['remaining_s'])} left"
    said = {"finished": "Done", "stopped": "Stopped", "failed": "It failed"}.get(job.state, "Interrupted")
    early = f" early, {last['stopped']}" if job.state == FINISHED and last["stopped"] else ""
    return f"{said}{early} after {step}, {duration(last['elapsed_s'])} of training"


def _figures(measures: Sequence[dict[str, Any]]) -> str:
    last = next((one for one in reversed(measures) if one["step"]), None)
    if last is None:
        return ""
    told = [f"{last['bits_per_byte']:.3f} bits a byte in training", f"{last['bytes_per_s']:,.0f} bytes/s"]
    told += [f"{part:.0%} of {name} active" for name, part in last["active"].items()]
    return " · ".join([*told, f"{size_text(last['heard_bytes'])} heard"])


def _made_better(job: Job) -> str:
    """What the finished specialist scores, beside its base."""
    if job.checkpoint is None:
        return ""
    with suppress(HatcheryError, OSError):
        told = checkpoint.read_provenance(job.checkpoint)
        after, before = told.get("held_out_bits_per_byte", {}), told.get("base_held_out_bits_per_byte", {})
        lines = []
        for name, bits in after.items():
            line = f"{name}: {bits:.3f} bits a byte on text it never saw"
            if before.get(name):
                change = (before[name] - bits) / before[name]
                line += f"; its base has {before[name]:.3f} ({abs(change):.1%} {'fewer' if change >= 0 else 'MORE'})"
            lines.append(line)
        return " · ".join(lines)
    return ""


def samples(measures: Sequence[dict[str, Any]]) -> str:
    """What the model wrote as it learned, the latest first."""
    told = [(one["step"], one["sample"]) for one in measures if one.get("sample")]
    return "\n\n".join(f"── step {step:,} ──\n{sample}" for step, sample in reversed(told[-20:]))


def duration(seconds: float) -> str:
    """A span of time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds / 3600:.1f} h"


def _lent_seconds(root: str, id: str, minutes: float) -> int:
    """For how long to ask for a GPU: reading and measuring take time too."""
    return int(60 * minutes + _AROUND_S)


@lent(_lent_seconds)
def train_on_lent_gpu(root: str, id: str, minutes: float) -> None:
    """Do a job to its end in this process, which on ZeroGPU is one that has a GPU as long as the call lasts."""
    # It takes seconds to import, and elsewhere only child processes need it.
    from train.__main__ import main as run_command  # noqa: PLC0415

    jobs = Jobs(Path(root), watch=False)
    jobs.take(id)
    here = os.getcwd()
    try:
        os.chdir(jobs.root / id / "given")
        with (jobs.root / id / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            run_command(jobs.words(id))
    finally:
        os.chdir(here)
        jobs.give_back(id)
