"""A run's folder: its recipe, what it was trained on and where, its measures, its state, and its best checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdh import checkpoint
from bdh.config import Config
from bdh.errors import CheckpointError, ConfigError, TrainingError

from .recipe import Recipe

STATE, METRICS, BEST, END, STOP = "run.pt", "metrics.jsonl", "best", "end.json", "stop"
_MAY_CHANGE = {
    *(
        "name",
        "description",
        "base_place",
        "steps",
        "minutes",
        "phases",
        "decay_steps",
        "evaluate_every",
        "patience",
        "validation_bytes",
    ),
    *("validation_bytes", "test_bytes", "prompt", "sample_bytes", "micro_rows", "recompute", "compile"),
}
"""Of a recipe, what a run may go on with another value of: it is still the same run."""

TextSums = list[list[tuple[str, str]]]
"""Name and SHA-256 of every text, phase by phase."""


class Folder:
    """One run on disk."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """`writes` is False in all processes of a run but one."""
        self.path, self._writes = path, writes

    @property
    def state(self) -> Path:
        """What a run goes on from."""
        return self.path / STATE

    def exists(self) -> bool:
        """Whether there is a run to go on with."""
        return self.state.is_file()

    def begin(self, recipe: Recipe, texts: TextSums) -> None:
        """Note what is begun, and where; of a run that was there before, nothing is left to be taken for this one's."""
        if self._writes:
            for name in (STATE, METRICS):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / BEST, ignore_errors=True)
        self._write_json("recipe.json", dataclasses.asdict(recipe))
        self._write_json("texts.json", [dict(phase) for phase in texts])
        self._write_json("environment.json", environment())

    def save(self, state: dict[str, Any], recipe: Recipe, texts: TextSums) -> None:
        """Replace what the run goes on from; see `Run.save`."""
        if not self._writes:
            return
        written = self.state.with_suffix(".new")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with written.open("wb") as file:
                torch.save({**state, "recipe": json.dumps(dataclasses.asdict(recipe)), "texts": texts}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(written, self.state)
        except (OSError, RuntimeError) as error:
            written.unlink(missing_ok=True)
            raise self._not_saved(error) from error

    def read(self, recipe: Recipe, texts: TextSums) -> dict[str, Any]:
        """What `save` wrote, held against the recipe and the texts of now.

        Raises:
            CheckpointError: there is nothing, or it is damaged.
            ConfigError: the recipe or a text is another.
        """
        if not self.exists():
            raise CheckpointError(f"{self.path} holds no run to go on with; begin one without --resume")
        try:
            saved: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True)
            before = json.loads(saved["recipe"])
        except Exception as error:
            raise CheckpointError(f"{self.state} is damaged ({str(error)[:200]}); begin the run anew") from error
        for name, value in json.loads(json.dumps(dataclasses.asdict(recipe))).items():
            if name not in _MAY_CHANGE and before.get(name) != value:
                raise ConfigError(
                    f"{name} was {before.get(name)!r:.100} in the run at {self.path} and is {value!r:.100} now; "
                    "resume with the same recipe, or start a new run in another folder"
                )
        for now, then in zip(texts, saved["texts"], strict=False):
            if changed := [
                name for (name, sum_now), (_, sum_then) in zip(now, then, strict=False) if sum_now != sum_then
            ]:
                raise ConfigError(f"the text {changed[0]} is not what the run at {self.path} was begun with")
        return saved

    def note(self, report: Any) -> None:
        """Add a report to the run's measures."""
        if not self._writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(report)) + "\n")
        except OSError as error:
            raise self._not_saved(error) from error

    def _not_saved(self, error: Exception) -> TrainingError:
        return TrainingError(
            f"the run could not be saved to {self.path} ({str(error)[:200]}); what was saved before is kept: "
            "make room and go on with --resume"
        )

    def measures(self) -> list[dict[str, Any]]:
        """The reports so far; a line that a kill left unfinished is left out."""
        found = []
        path = self.path / METRICS
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def forget_after(self, step: int) -> None:
        """Take back the measures of steps that are to be taken again."""
        path = self.path / METRICS
        if self._writes and path.is_file():
            kept = [json.dumps(measure) + "\n" for measure in self.measures() if measure["step"] <= step]
            _replace(path, "".join(kept))

    def end(self, how: str, message: str = "") -> None:
        """Note how the run ended: `finished`, `stopped` or `failed`, and why."""
        if self._writes:
            with contextlib.suppress(OSError):  # a full disk must not hide why it is said
                (self.path / STOP).unlink(missing_ok=True)
                self._write_json(END, {"how": how, "message": message})

    def go_on(self) -> None:
        """Forget how the run ended, for it goes on; that it is to stop may be said already, and stays."""
        if self._writes:
            (self.path / END).unlink(missing_ok=True)

    def ask_to_stop(self, stop: bool = True) -> None:
        """Let the run end after the step under way, whatever process it is in; or take that back."""
        if stop:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / STOP).touch()
        else:
            (self.path / STOP).unlink(missing_ok=True)

    def asked_to_stop(self) -> bool:
        """Whether `ask_to_stop` was called."""
        return os.path.exists(self.path / STOP)

    def ended(self) -> tuple[str, str]:
        """What `end` noted last; two empty texts while the run goes on, and after a kill."""
        try:
            found = json.loads((self.path / END).read_text(encoding="utf-8"))
            return str(found["how"]), str(found["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def save_best(self, config: Config, tensors: Mapping[str, Tensor], phase: str) -> None:
        """Keep these weights as the best of their phase, and of the run so far."""
        if self._writes:
            target = self.path / BEST / phase if phase else self.path / BEST
            try:
                checkpoint.write(target, config, tensors)
            except OSError as error:
                raise TrainingError(f"{target} could not be written ({str(error)[:200]}); make room") from error

    def best(self, phase: str) -> Path:
        """Where the best weights of a phase are."""
        return self.path / BEST / phase if phase else self.path / BEST

    def _write_json(self, name: str, value: Any) -> None:
        if self._writes:
            self.path.mkdir(parents=True, exist_ok=True)
            _replace(self.path / name, json.dumps(value, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    """Put a text in the place of a file, whole or not at all."""
    written = path.with_name(f"{path.name}.new")
    try:
        written.write_text(text, encoding="utf-8")
        os.replace(written, path)
    except OSError:
        written.unlink(missing_ok=True)
        raise


def environment() -> dict[str, str]:
    """What a run was made with and on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "machine": f"{device}, {platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
