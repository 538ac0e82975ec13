"""The experiment: what is trained, measured and kept, step by step, so that a killed one goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdh import checkpoint, probe
from bdh.errors import ConfigError, DataError
from bdh.load import load
from bdh.models import Model
from train.data import Bytes, held_out_start, read_bytes
from train.sources import is_shipped

from ..claim import digest, identity, settle, write_json
from .autoencoders import ABLATIONS, COMPOSITIONAL, NO_ATTENTION, STANDARD, Coder, Compositional, Shape
from .baselines import NMF, PCA, check_installed, fitted
from .findings import (
    COMPARISONS,
    EXTRACTED,
    LABELS,
    PARTS_ALONE,
    Code,
    Example,
    Feature,
    FeatureSet,
    Purity,
    Report,
    write_report,
)
from .measures import (
    STRONGEST,
    Interval,
    active,
    codes_of,
    difference,
    explained_variance,
    interval,
    parts_alone,
    purity,
    recovery,
    reuse,
)
from .recording import (
    STREAMS,
    Heard,
    Place,
    Strongest,
    bits_with,
    check_size,
    find_place,
    hear_samples,
    hear_with_neurons,
    own_neurons,
    put_back,
)
from .synthetic import EXTRACTED as TASK_EXTRACTED
from .synthetic import TASKS, WIDTH, Task, make_task
from .synthetic import K as TASK_K
from .training import Samples, Training, trained

METHODS = (STANDARD, COMPOSITIONAL, *ABLATIONS, PCA, NMF)
"""Everything that makes codes of samples."""

Say: TypeAlias = Callable[[str], None]

_TEXT = "text"
_ORIGINAL, _NOTHING = "nothing changed", "only the mean put back"
_TASK_SAMPLES, _TASK_LEARNED = 12_000, 8_000
_SHOWN_PARTS = 16
_ATTENDED = 4096
_EXAMPLES = 4
_LEAST_BYTES = 64
_BEFORE_BYTES, _AFTER_BYTES = 24, 8
_SAY_S = 2.0
# Seconds on one core, about; what is left is estimated by their ratios.
_HEAR_S = 1 / 2500
_FIT_S = {PCA: 0.5, NMF: 5.0}
_STEP_S = {STANDARD: (0.004, 0.003), NO_ATTENTION: (0.016, 0.01)}
"""A step on the text and on a task."""
_ATTENDING_STEP_S = (0.1, 0.03)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is asked."""

    checkpoint: str
    """As `bdh.load` takes it."""
    text: str = ""
    """A shipped corpus or a file; empty is the first that the checkpoint says it learned from."""
    point: str = ""
    """Of `bdh.probe`; empty is the residual of the middle layer."""
    head: int | None = None
    bytes: int = 32_768
    """Heard to learn from."""
    measured_bytes: int = 16_384
    """Heard to measure on."""
    put_back_bytes: int = 8_192
    """Of these, heard with every reconstruction put back."""
    features: int = 256
    composed: int = 128
    heads: int = 8
    k: int = 32
    training: Training = field(default_factory=Training)
    task_steps: int = 300
    """Steps on each synthetic task."""
    most_active: int = 64
    """Features of each method that are compared and shown."""

    def __post_init__(self) -> None:
        Shape(1, self.features, self.composed, self.heads, self.k)
        self.task_shape()
        if min(self.bytes, self.measured_bytes) < _LEAST_BYTES or self.put_back_bytes < 2 * STREAMS:
            raise ConfigError(
                f"bytes to learn from and to measure on must be at least {_LEAST_BYTES}, to put back {2 * STREAMS}"
            )
        if self.put_back_bytes > self.measured_bytes:
            raise ConfigError(
                f"{self.put_back_bytes:,} bytes to put back are more than the {self.measured_bytes:,} measured"
            )
        if self.task_steps < 1 or self.most_active < 2:
            raise ConfigError("steps on tasks must be at least 1, features compared at least 2")

    def shape(self, width: int) -> Shape:
        """Of autoencoders on samples so wide."""
        return Shape(width, self.features, self.composed, self.heads, self.k)

    def task_shape(self) -> Shape:
        """Of autoencoders on tasks: less than all parts fits in a code, so that some must stand for several."""
        return Shape(WIDTH, self.features, self.composed, self.heads, TASK_K, TASK_EXTRACTED)


class Meter:
    """Says how it goes: what is done, at which rate, and about how long all of it will still take."""

    def __init__(self, say: Say, planned_s: float) -> None:
        self._say, self._left_s, self._done_s = say, planned_s, 0.0
        self._begun = self._said = self._last = time.monotonic()
        self._what, self._what_begun, self._count = "", self._begun, 0

    def skip(self, cost_s: float, what: str) -> None:
        """That was done before."""
        self._left_s -= cost_s
        self._last = time.monotonic()
        self._say(f"{what}: done before")

    def add(self, what: str, count: int, total: int, unit: str, cost_s: float) -> None:
        """So many more of `total` units are done, at a planned cost each."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._what_begun, self._count = what, self._last, 0
        self._last = now
        self._count += count
        self._left_s, self._done_s = self._left_s - count * cost_s, self._done_s + count * cost_s
        if now - self._said > _SAY_S:
            self._said = now
            rate = self._count / max(now - self._what_begun, 1e-9)
            left_s = max(0.0, self._left_s) * (now - self._begun) / max(self._done_s, 1e-9)
            self._say(f"{what}: {rate:,.1f} {unit}/s of {total:,}, about {left_s / 60:.1f} min left in all")


def experiment(asked: Experiment, folder: Path, *, say: Say = print) -> Report:
    """Record, train, measure and write the report; what was done before is not done again.

    Raises:
        HatcheryError: the checkpoint, the text or a setting does not fit, or the folder holds another experiment.
    """
    check_installed()
    model = load(asked.checkpoint, device="cpu").eval()
    text = _text(asked)
    place = find_place(model, asked.point, asked.head)
    if not place.point.is_neurons and place.point.kind != "residual":
        raise ConfigError(f"{place.name} is neither a residual nor neurons; features are looked for in these")
    check_size(place, len(text.learned))
    tasks = {name: make_task(name, _TASK_SAMPLES, asked.training.seed) for name in TASKS}
    _settle(asked, folder, model, text, tasks)
    return _Work(asked, folder, model, text, tasks, place, say).report()


@dataclass(frozen=True)
class _Text:
    name: str
    learned: Bytes
    measured: Bytes
    """One byte more than is measured, so that each has a next one."""
    start_bytes: int
    """Where in the text the measured part begins."""


class _Work:
    """One experiment under way."""

    def __init__(
        self,
        asked: Experiment,
        folder: Path,
        model: Model[Any],
        text: _Text,
        tasks: Mapping[str, Task],
        place: Place,
        say: Say,
    ) -> None:
        self.asked, self.folder, self.model, self.text, self.place, self.say = asked, folder, model, text, place, say
        self.tasks = tasks
        planned_s = (len(text.learned) + len(text.measured)) * _HEAR_S
        planned_s += (len(METHODS) + 2) * asked.put_back_bytes * _HEAR_S
        for method in METHODS:
            planned_s += asked.training.steps * _cost_s(method, _TEXT)
            planned_s += len(TASKS) * asked.task_steps * _cost_s(method, "task")
        self.meter = Meter(say, planned_s)

    def report(self) -> Report:
        """Everything, from what is there."""
        asked, text, place = self.asked, self.text, self.place
        samples, scale = hear_samples(
            self.model, text.learned, place, self.folder / "heard", self._hearing("hearing what is learned")
        )
        neurons = own_neurons(self.model, place)
        heard, own = hear_with_neurons(
            self.model,
            text.measured[:-1],
            place,
            scale,
            neurons,
            self.folder / "heard",
            self._hearing("hearing what is measured"),
        )
        seen = _Seen(text.measured, asked.most_active)
        sets = {point.name: seen.described(own[point.name], point.width if point.heads else 0) for point in neurons}
        before = self._bits(_ORIGINAL, [])
        nothing = self._bits(_NOTHING, [put_back(place, scale, None)])
        codes: dict[str, Code] = {}
        autoencoders: dict[str, Strongest] = {}
        attention: tuple[list[int], list[list[list[float]]]] = ([], [])
        for method in METHODS:
            coder = self._made(method, _TEXT, samples, asked.shape(place.width), asked.training)
            bits = self._bits(f"{method} put back", [put_back(place, scale, coder)])
            code, parts = codes_of(coder, heard.samples)
            codes[method] = Code(
                explained_variance=explained_variance(coder, heard.samples, code),
                width=code.shape[1],
                active=float(active(code).sum(1).float().mean()),
                dead=int((~active(code).any(0)).sum()),
                bits_per_byte=bits,
                recovered=(nothing - bits) / (nothing - before) if nothing != before else 1.0,
                reuse=[int(count) for count in reuse(code, parts)],
                numbers=sum(tensor.numel() for tensor in coder.state_dict().values()),
            )
            shown = asked.most_active if method in (STANDARD, COMPOSITIONAL) else 0
            strongest = Strongest.of_code(code, heard.at)
            sets[method] = seen.described(strongest, 0, shown)
            if shown:
                autoencoders[method] = strongest
            if isinstance(coder, Compositional) and method == COMPOSITIONAL:
                found = Strongest.of_code(parts, heard.at)
                sets[EXTRACTED] = seen.described(found, 0)
                attention = _attention(coder, heard, found)
        tasks = {name: self._on_task(name) for name in self.tasks}
        self.say("writing the report")
        written = Report(
            checkpoint=Path(asked.checkpoint).name,
            kind=self.model.config.kind,
            text=text.name,
            start_bytes=text.start_bytes,
            place=place.name,
            headline=neurons[0].name if neurons else "",
            # As others may read them: no paths of this machine.
            settings=dataclasses.asdict(asked)
            | {"checkpoint": Path(asked.checkpoint).name, "text": text.name}
            | {"task_k": TASK_K, "task_extracted": TASK_EXTRACTED},
            before=before,
            nothing=nothing,
            codes=codes,
            sets=sets,
            against=seen.against(own[neurons[0].name], autoencoders) if neurons else {},
            random=seen.random(asked.training.seed),
            tasks=tasks,
            attention_of=attention[0],
            attention=attention[1],
        )
        write_report(written, self.folder)
        return written

    def _hearing(self, what: str) -> Callable[[int, int], None]:
        return lambda count, total: self.meter.add(what, count, total, "bytes", _HEAR_S)

    def _bits(self, what: str, edits: Sequence[probe.Edit]) -> float:
        """Bits per byte with edits, measured once."""
        kept = self.folder / "measured" / f"{_file(what)}.json"
        if kept.is_file():
            self.meter.skip(self.asked.put_back_bytes * _HEAR_S, what)
            return float(json.loads(kept.read_text(encoding="utf-8"))["bits_per_byte"])
        some = self.text.measured[: self.asked.put_back_bytes]
        bits = bits_with(self.model, some, edits, self._hearing(f"hearing with {what}"))
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"bits_per_byte": bits})
        return bits

    def _made(self, method: str, data: str, samples: Samples, shape: Shape, how: Training) -> Coder:
        """A coder after its last step; trained or fitted only if it was not."""
        path = self.folder / "trained" / data / f"{_file(method)}.safetensors"
        what, cost_s = f"{data}, {method}", _cost_s(method, data)
        if method in _FIT_S:
            self.say(f"{what}: fitting")
            return fitted(method, shape.tokens if method == PCA else shape.composed, samples, how.seed, path)
        done: list[int] = []

        def tell(step: int, loss: float) -> None:
            if not done and step > 1:
                self.meter.skip((step - 1) * cost_s, f"{what}, {step - 1} steps")
            done[:] = [step]
            self.meter.add(what, 1, how.steps, "steps", cost_s)

        coder = trained(method, shape, samples, how, path, tell)
        if not done:
            self.meter.skip(how.steps * cost_s, what)
        return coder

    def _on_task(self, name: str) -> dict[str, dict[str, Any]]:
        """Every method on samples whose features are known."""
        task = self.tasks[name]
        learned, held = task.samples[:_TASK_LEARNED], task.samples[_TASK_LEARNED:]
        how = dataclasses.replace(self.asked.training, steps=self.asked.task_steps)
        found = {}
        for method in METHODS:
            coder = self._made(method, name, learned, self.asked.task_shape(), how)
            (code, parts), (held_code, held_parts) = codes_of(coder, learned), codes_of(coder, held)
            found[method] = _known(task, coder, code, held, held_code)
            if method == COMPOSITIONAL:
                found[EXTRACTED] = _known(task, None, parts, held, held_parts)
        known, held_known = task.known[:_TASK_LEARNED], task.known[_TASK_LEARNED:]
        alone = parts_alone(known, held_known, task.names, task.counts)
        found[PARTS_ALONE] = {"explained_variance": None, **dataclasses.asdict(alone)}
        return found


def _known(task: Task, coder: Coder | None, code: Tensor, held: Samples, held_code: Tensor) -> dict[str, Any]:
    """What a code recovers of the known features, on samples that nothing was chosen on."""
    known, held_known = task.known[:_TASK_LEARNED], task.known[_TASK_LEARNED:]
    recovered = recovery(code, known, held_code, held_known, task.names, task.counts)
    return {
        "explained_variance": explained_variance(coder, held, held_code) if coder else None,
        "active": float(active(held_code).sum(1).float().mean()),
        "dead": int((~active(held_code).any(0)).sum()),
        **dataclasses.asdict(recovered),
    }


def _attention(coder: Compositional, heard: Heard, parts: Strongest) -> tuple[list[int], list[list[list[float]]]]:
    """Which extracted features are shown, and how much each attends to each, head by head."""
    shown = parts.most_active(_SHOWN_PARTS)
    weights = coder.attention(torch.from_numpy(heard.samples[:_ATTENDED]), torch.from_numpy(shown))
    return [int(number) for number in shown], [[[round(float(v), 3) for v in row] for row in head] for head in weights]


class _Seen:
    """The measured text, and what features are about by it."""

    def __init__(self, text: Bytes, most_active: int) -> None:
        data = text.astype(np.int64)
        self._data, self._count = text.tobytes(), most_active
        now, after = data[:-1], data[1:]
        before = np.concatenate([[0], now[:-1]])
        self._labels = dict(zip(LABELS, (now, 256 * before + now, after), strict=True))

    def described(self, found: Strongest, head_width: int, shown: int | None = None) -> FeatureSet:
        """Purity of the most active features, and what some of them fire for.

        Args:
            head_width: neurons of a head, 0 where there are no heads.
            shown: how many are shown with examples; None is all that are compared.
        """
        most, live = found.most_active(self._count), found.live()
        places = found.places.numpy()
        pure = {
            name: (purity(labels[places[most]]), purity(labels[places[live]])) for name, labels in self._labels.items()
        }
        rows = most[:shown] if shown is not None else most
        features = [
            self._feature(found, int(number), head_width, float(pure[LABELS[0]][0][i])) for i, number in enumerate(rows)
        ]
        return FeatureSet(
            count=len(found.places),
            live=len(live),
            active=found.active_each,
            purity={
                name: Purity(interval(of_most), interval(of_live)) if len(most) else None
                for name, (of_most, of_live) in pure.items()
            },
            features=features,
        )

    def against(self, own: Strongest, others: dict[str, Strongest]) -> dict[str, dict[str, Interval]]:
        """How much purer own neurons are than features, by `COMPARISONS` and method; nothing where too few are live."""
        label = self._labels[LABELS[0]]

        def pure(found: Strongest, which: NDArray[np.int64]) -> NDArray[np.float64]:
            return purity(label[found.places[which].numpy()])

        if any(len(found.live()) < 2 for found in (own, *others.values())):
            return {}
        gaps: dict[str, dict[str, Interval]] = {which: {} for which in COMPARISONS}
        for name, other in others.items():
            same = min(self._count, len(own.live()), len(other.live()))
            shown = other.most_active(same)
            beside = _as_often(own, other, shown)
            pairs = (own.most_active(same), shown), (own.live(), other.live())
            most, live = (difference(pure(own, mine), pure(other, theirs)) for mine, theirs in pairs)
            often = interval(pure(own, beside) - pure(other, shown))
            for which, gap in zip(COMPARISONS, (most, often, live), strict=True):
                gaps[which][name] = gap
        return gaps

    def random(self, seed: int) -> dict[str, Interval]:
        """Purity of as many places drawn at random: what knowing nothing gives."""
        drawn = np.random.default_rng(seed).integers(len(self._data) - 1, size=(1000, STRONGEST))
        return {name: interval(purity(labels[drawn])) for name, labels in self._labels.items()}

    def _feature(self, found: Strongest, number: int, head_width: int, pure: float) -> Feature:
        places = found.places[number].tolist()
        heard = [self._data[place] for place in places]
        return Feature(
            name=f"{number // head_width}:{number % head_width}" if head_width else str(number),
            active=float(found.fired[number]) / max(1, found.rows),
            purity=pure,
            byte=shown_bytes(bytes([max(sorted(set(heard)), key=heard.count)])),
            examples=[
                Example(
                    shown_bytes(self._data[max(0, place - _BEFORE_BYTES) : place]),
                    shown_bytes(self._data[place : place + 1]),
                    shown_bytes(self._data[place + 1 : place + 1 + _AFTER_BYTES]),
                    round(float(strength), 3),
                )
                for place, strength in zip(places[:_EXAMPLES], found.values[number, :_EXAMPLES].tolist(), strict=True)
            ],
        )


def _as_often(own: Strongest, other: Strongest, features: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each feature the live neuron that is active nearest as often and was not yet taken."""
    live = own.live()
    rates = own.fired[live].numpy() / own.rows
    taken = []
    for feature in features:
        nearest = int(np.abs(rates - float(other.fired[feature]) / other.rows).argmin())
        taken.append(live[nearest])
        rates[nearest] = np.inf
    return np.array(taken)


def shown_bytes(data: bytes) -> str:
    """Bytes as text; of those that are no UTF-8, or half a character, the hexadecimal digits."""
    return data.decode("utf-8", "backslashreplace")


def _cost_s(method: str, data: str) -> float:
    """Of a step; what is fitted takes no steps."""
    return 0.0 if method in _FIT_S else _STEP_S.get(method, _ATTENDING_STEP_S)[data != _TEXT]


def _text(asked: Experiment) -> _Text:
    source = asked.text
    if not source:
        told = checkpoint.read_provenance(asked.checkpoint).get("texts") if Path(asked.checkpoint).is_dir() else None
        names = [name for name in told if is_shipped(name)] if isinstance(told, dict) else []
        if not names:
            raise ConfigError("the checkpoint does not say what it was trained on; name a text with --data")
        source = names[0]
    whole = read_bytes(source)
    # Of a shipped corpus what is measured was never trained on.
    start = held_out_start(len(whole)) if is_shipped(source) else max(0, len(whole) - asked.measured_bytes - 1)
    measured = whole[start : start + asked.measured_bytes + 1]
    learned = whole[max(0, start - asked.bytes) : start]
    if len(learned) < asked.bytes or len(measured) <= asked.measured_bytes:
        raise DataError(
            f"{source[:200]} has {len(learned):,} of {asked.bytes:,} bytes to learn from and {len(measured):,} of "
            f"{asked.measured_bytes + 1:,} to measure on, the byte after the last included; take a longer text, or "
            "fewer bytes with --bytes and --measured-bytes"
        )
    return _Text(Path(source).name.split(".")[0], learned, measured, start)


def _settle(asked: Experiment, folder: Path, model: Model[Any], text: _Text, tasks: Mapping[str, Task]) -> None:
    """Note what is asked, or hold it against what was noted before."""
    told = dataclasses.asdict(asked) | {
        "checkpoint": identity(model),
        "text": [digest(part) for part in (text.learned, text.measured)],
        # What was trained on other samples, of an older version, is not taken for what this one would train.
        "tasks": {
            name: [digest(task.samples.tobytes()), *dataclasses.astuple(asked.task_shape())]
            for name, task in tasks.items()
        },
    }
    settle(folder, told)


def _file(name: str) -> str:
    return name.replace(" ", "-").lower()
