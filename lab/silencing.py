"""What a model does without some of its neurons: beside it, without as many others near them in activity."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bdh import probe
from bdh.errors import DataError
from bdh.models import Model
from bdh.sampling import Sampling
from bdh.stream import Stream
from train.evaluate.hearing import evaluating

from .concepts import Neuron, Search, Tell

CONTROLS = 19
"""Draws of other neurons; if the found ones beat all of 19, chance would do that once in 20."""
MOST_SILENCED = 256
_LIKE = 16
"""A neuron's stand-in is one of so many of its layer that are nearly as active on the concept."""
_ROWS = 16


@dataclass(frozen=True)
class Cost:
    """Bits per byte of the sentences held out."""

    concept: float
    contrast: float


@dataclass(frozen=True)
class Silenced:
    """What silence costs."""

    neurons: tuple[Neuron, ...]
    whole: Cost
    """With nothing silenced."""
    found: Cost
    controls: tuple[Cost, ...]
    """With others silenced, a cost each draw."""
    alike: float
    """Activity of the others on the concept, over that of the neurons found; mean over the draws."""

    def more(self, cost: Cost) -> tuple[float, float]:
        """What a cost is above that of the whole model, on the concept's sentences and on the contrast's."""
        return cost.concept - self.whole.concept, cost.contrast - self.whole.contrast

    @property
    def verdict(self) -> str:
        """Whether the neurons found matter to the concept more than others do."""
        concept, contrast = self.more(self.found)
        others = [self.more(one) for one in self.controls]
        if concept <= 0:
            return "nothing: the concept costs no more without them"
        if concept <= max(one for one, _ in others):
            return "no more than others"
        if concept - contrast <= max(one - other for one, other in others):
            return "more than others, but not to the concept alone"
        return "more than others, and to the concept most"


def silence(
    model: Model[Any],
    found: Search,
    neurons: Sequence[Neuron],
    *,
    controls: int = CONTROLS,
    seed: int = 0,
    tell: Tell = lambda part, note: None,
) -> Silenced:
    """Cost of the held-out sentences with the neurons silenced, and with others.

    Raises:
        DataError: no neuron, or too many.
    """
    if not 1 <= len(neurons) <= MOST_SILENCED:
        raise DataError(f"{len(neurons)} neurons are to be silenced; choose 1 to {MOST_SILENCED}")
    if controls < 1:
        raise DataError(f"{controls} draws of others are asked for; at least 1 is needed to compare with")
    held = _held(found)
    costs: list[Cost] = []
    others = stand_ins(found, neurons, controls, seed)
    sets = [(), tuple(neurons), *others]
    for index, some in enumerate(sets):
        what = "nothing" if not some else "the neurons found" if index == 1 else f"others, draw {index - 1}"
        tell(index / len(sets), f"silencing {what}")
        with probe.edited(silencing(model, some), model):
            costs.append(Cost(*(bits_per_byte(model, one) for one in held)))
    tell(1.0, "done")
    own = _activity(found, neurons)
    alike = sum(_activity(found, some) for some in others) / len(others) / own if own else 1.0
    return Silenced(tuple(neurons), costs[0], costs[1], tuple(costs[2:]), alike)


def _activity(found: Search, neurons: Sequence[Neuron]) -> float:
    """Of some neurons together, on the concept's sentences that were searched."""
    return float(sum(abs(found.activity[found.columns.column(neuron)]) for neuron in neurons))


def silencing(model: Model[Any], neurons: Sequence[Neuron]) -> list[probe.Silence]:
    """The edits that silence neurons of a model.

    Raises:
        DataError: a point that the model has not got.
    """
    by_point: dict[str, list[Any]] = defaultdict(list)
    known = {point.name: point for point in probe.points(model)}
    for neuron in neurons:
        if neuron.point not in known:
            raise DataError(f"this {model.config.kind} model has no point {neuron.point!r:.100}, so no {neuron} in it")
        headed = known[neuron.point].heads
        by_point[neuron.point].append((neuron.head, neuron.number) if headed else neuron.number)
    return [probe.Silence(point, places) for point, places in by_point.items()]


def stand_ins(found: Search, neurons: Sequence[Neuron], draws: int, seed: int) -> list[tuple[Neuron, ...]]:
    """Sets of other neurons of the same points, one for each neuron, nearly as active on the concept's sentences."""
    columns, generator = found.columns, np.random.default_rng(seed)
    taken = {columns.column(neuron) for neuron in neurons}
    sets = []
    for _ in range(draws):
        drawn: set[int] = set()
        for neuron in neurons:
            own = columns.of_point(neuron.point)
            apart = np.abs(found.activity[own] - found.activity[columns.column(neuron)])
            likely = [
                column
                for column in (np.argsort(apart, kind="stable") + own.start).tolist()
                if column not in taken and column not in drawn
            ][:_LIKE]
            if not likely:
                raise DataError(f"{neuron.point} has too few other neurons to compare with; silence fewer")
            drawn.add(int(generator.choice(likely)))
        sets.append(tuple(columns.neuron(column) for column in sorted(drawn)))
    return sets


@torch.no_grad()
def bits_per_byte(model: Model[Any], sentences: Sequence[bytes]) -> float:
    """Mean cost of all bytes but the first of each sentence, each heard from an empty memory."""
    order = sorted(sentences, key=len)
    nats, count = 0.0, 0
    with evaluating(model):
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            length = len(rows[-1])
            ids = torch.tensor([list(row.ljust(length, b"\n")) for row in rows], dtype=torch.uint8)
            logits = model(ids[:, :-1], keep_state=False).logits.float().cpu()
            cost = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:].long(), reduction="none")
            ends = torch.tensor([len(row) for row in rows])
            cost[torch.arange(1, length) >= ends[:, None]] = 0
            nats += float(cost.double().sum())
            count += int((ends - 1).sum())
    return nats / count / math.log(2)


def go_on(
    model: Model[Any],
    prompt: bytes,
    neurons: Sequence[Neuron],
    options: Sampling,
    stop: Callable[[], None] = lambda: None,
) -> bytes:
    """What the model writes after a prompt with some neurons silenced, heard and written without them.

    Args:
        stop: called at each byte; raises to end the writing.
    """
    stream, written = Stream(model), bytearray()
    with probe.edited(silencing(model, neurons), model):
        stream.feed(prompt)
        for one in stream.generate(options):
            written.append(one.byte)
            stop()
    return bytes(written)


def _held(found: Search) -> tuple[list[bytes], list[bytes]]:
    """The concept's and the contrast's sentences that were not searched."""
    first = found.sentences.is_concept
    rows = list(zip(found.sentences.all, first.tolist(), found.searched.tolist(), strict=True))
    return (
        [sentence for sentence, concept, searched in rows if concept and not searched],
        [sentence for sentence, concept, searched in rows if not concept and not searched],
    )
