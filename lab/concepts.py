"""Which neurons and synapses tell sentences about a concept from others.

Half of the sentences are searched, the rest held out; the split is fixed by a seed before anything is heard. Thousands
of neurons on few sentences always find something, so beside the best find stands what shuffled labels find, and every
find is measured again on the sentences that were held out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdh import probe
from bdh.config import HierarchicalConfig
from bdh.errors import DataError
from bdh.merge.axes import groups
from bdh.models import Model
from bdh.models.observe import Scaling, probing
from bdh.ops import rope
from train.evaluate.hearing import evaluating

from .sentences import Sentences
from .separation import (
    Floats,
    Separation,
    benjamini_hochberg,
    best_by_chance,
    bonferroni,
    chance_of,
    least_p,
    ranked,
    separation,
    smallest_groups,
)

Values = NDArray[np.float32]
Tell: TypeAlias = Callable[[float, str], None]
"""Called with the part done and what is done next; raises if the work is to stop."""

SUMMARIES = {"mean": "mean over the sentence", "max": "highest value in the sentence", "last": "value at the last byte"}
"""How a neuron's activations in a sentence become one number."""
NEURONS = "x_sparse", "y_sparse", "mlp"
"""Kinds of points whose neurons are searched."""
SHUFFLES, LEAST_SHUFFLES = 200, 19
"""Of the labels; with fewer than the second none could be better than the part that is asked for below."""
SHOWN = 24
"""Finds that are held against the sentences held out, one by one."""
POOL = 12
"""Most separating x neurons, and y neurons, of each head, between which synapses are searched."""
SURE = 0.01
"""A find is one if, corrected by Bonferroni, chance would find it with less than this..."""
CHANCE = 0.95
"""...if chance finds something as good in so few shuffles, the true labels counted as one, that this part is left..."""
HOLDS, FAINT = 0.9, 0.75
"""...and if it tells held-out sentences apart with an AUC of the first; with one of the second it is faint."""
MOST_VALUES_BYTES = 512 << 20
"""Of the numbers of all neurons in all sentences."""
_BATCH_BYTES = 128 << 20
"""Of the activations of one layer, or of the memories, of sentences heard side by side."""
_COPIES, _BATCHES = 3, 2
"""Of the numbers of all neurons, with their ranks; and of a batch, with what it is computed from."""
_MOST_ROWS = 32
_CLASSES: dict[str, Callable[[str], bool]] = {
    "capitals": lambda one: "A" <= one <= "Z",
    "digits": str.isdecimal,
    "marks": lambda one: one.isascii() and one.isprintable() and not one.isalnum() and one != " ",
    "bytes beyond ASCII": lambda one: not one.isascii(),
}


class Neuron(NamedTuple):
    """A neuron where it can be recorded."""

    point: str
    """As in `probe.points`, such as `layer.0.x_sparse`."""
    head: int | None
    """None where the point has no heads."""
    number: int

    def __str__(self) -> str:
        """Such as layer.0.x_sparse 1:337, or layer.0.mlp 337."""
        return f"{self.point} {self.number if self.head is None else f'{self.head}:{self.number}'}"


class Synapse(NamedTuple):
    """From an x neuron to a y neuron of one head."""

    place: str
    """Such as `layer.0`."""
    head: int
    x: int
    y: int

    def __str__(self) -> str:
        """Such as layer.0 1:337→12."""
        return f"{self.place} {self.head}:{self.x}→{self.y}"


@dataclass(frozen=True)
class Find:
    """A neuron or a synapse, and how well it separates."""

    what: Neuron | Synapse
    effect: float
    """Rank-biserial, on the sentences searched."""
    p: float
    """One-sided Mann-Whitney U, uncorrected."""
    bonferroni: float
    q: float
    """Benjamini and Hochberg's."""
    by_chance: float
    """Part of the shuffles whose best find is as good or better, the true labels counted as one of them."""
    held_effect: float
    """Rank-biserial, on the sentences held out."""
    held_auc: float
    held_p: float
    """Corrected by Bonferroni for the finds that are shown."""
    values: tuple[float, ...]
    """Of each sentence, the concept's first."""

    @property
    def verdict(self) -> str:
        """`holds`, `faint` or `does not hold`, by the thresholds of this file.

        Synapses were chosen on the sentences that are searched, so that for them the p that counts is the held-out one.
        """
        if not self.sure or self.held_auc < FAINT:
            return "does not hold"
        return "holds" if self.held_auc >= HOLDS else "faint"

    @property
    def sure(self) -> bool:
        """Whether it is no find of chance, which is what a verdict asks first."""
        p = self.held_p if isinstance(self.what, Synapse) else self.bonferroni
        return p < SURE and self.by_chance <= 1 - CHANCE


@dataclass(frozen=True)
class Finds:
    """What a search among many found, the best first."""

    tried: int
    silent: int
    """Of these, the same in all sentences that were searched."""
    best: tuple[Find, ...]
    sure: int
    """Those that are, as `Find.sure` says: of all neurons that were tried, of synapses of the best."""
    discovered: int
    """With a false discovery rate under `SURE`, on the sentences that were searched."""
    holding: int
    """Of the sure ones, those that hold, as `Find.verdict` says."""
    chance: Floats
    """The best effect of each shuffle, in ascending order."""
    too_few: str
    """That nothing can hold, and what it would take; empty if something can."""


@dataclass(frozen=True)
class Baseline:
    """What one could tell the sentences apart by without any model, more of it in the concept's or less of it."""

    name: str
    effect: float
    """Above 0: the way round that separates the sentences searched."""
    held_auc: float
    """The same way round."""


@dataclass(frozen=True)
class Search:
    """A concept searched in a model."""

    sentences: Sentences
    summary: str
    seed: int
    searched: NDArray[np.bool_]
    """Of `sentences.all`, those looked at."""
    neurons: Finds
    baselines: tuple[Baseline, ...]
    columns: Columns
    activity: Values
    """Of every neuron, its mean over the concept's sentences that were searched."""
    effects: Floats
    """Of every neuron, on the sentences that were searched."""


class Columns:
    """Which neuron each column of measurements is of."""

    def __init__(self, points: Sequence[probe.Point]) -> None:
        self.points = tuple(points)
        sizes = [max(1, point.heads) * point.width for point in points]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def neuron(self, column: int) -> Neuron:
        """The neuron of a column."""
        place = int(np.searchsorted(self.starts, column, side="right")) - 1
        head, index = divmod(column - int(self.starts[place]), self.points[place].width)
        return Neuron(self.points[place].name, head if self.points[place].heads else None, index)

    def column(self, neuron: Neuron) -> int:
        """The column of a neuron."""
        place = next(i for i, point in enumerate(self.points) if point.name == neuron.point)
        return int(self.starts[place]) + (neuron.head or 0) * self.points[place].width + neuron.number

    def of_point(self, name: str) -> slice:
        """The columns of a point."""
        place = next(i for i, point in enumerate(self.points) if point.name == name)
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


def searchable(model: Model[Any], names: Sequence[str] = ()) -> Columns:
    """The neurons that are searched: all, or those of points, or patterns such as `layer.2.*`, of the names.

    Raises:
        DataError: a name that stands for no point, or none of them has neurons that are searched.
    """
    known = probe.selected(model, names) if names else probe.points(model)
    if not (points := [one for one in known if one.kind in NEURONS]):
        raise DataError(f"{', '.join(names):.100} has no neurons to search; name points of {', '.join(NEURONS)}")
    return Columns(points)


def too_few(tried: int, sentences: Sentences) -> str:
    """That with these sentences nothing among so many can hold, and what it would take; empty if something can."""
    sizes = [(len(group) + 1) // 2 for group in (sentences.concept, sentences.contrast)]
    least = least_p(*sizes)
    if least * tried < SURE:
        return ""
    needed, most = 2 * smallest_groups(tried, SURE) - 1, int(SURE / least)
    most -= most * least >= SURE
    fewer = f", or at most {most:,} neurons tried" if most else ""
    return (
        f"nothing can hold: with {len(sentences.concept)} and {len(sentences.contrast)} sentences, half of them "
        f"searched, the smallest possible p is {least:.1e}, and {min(1.0, least * tried):.2g} after Bonferroni for "
        f"{tried:,} neurons, where under {SURE} is needed; at least {needed} sentences a set are needed{fewer}"
    )


def search(
    model: Model[Any],
    sentences: Sentences,
    *,
    summary: str = "mean",
    points: Sequence[str] = (),
    seed: int = 0,
    shuffles: int = SHUFFLES,
    tell: Tell = lambda part, note: None,
) -> Search:
    """Search all neurons, or those of some points.

    Args:
        points: as `searchable`; none is all.

    Raises:
        DataError: an unknown summary or point, too few shuffles, a sentence that does not fill a patch of the model,
            or more neurons times sentences than memory is given for.
    """
    if summary not in SUMMARIES:
        raise DataError(f"the summary is {summary!r:.40}; it must be one of {', '.join(SUMMARIES)}")
    if (count := min(len(sentences.concept), len(sentences.contrast))) < 2:
        raise DataError(f"a set has {count} sentences; half are held out, so at least 2 are needed, better 50")
    _check_shuffles(shuffles)
    searched, first = sentences.searched(seed), sentences.is_concept
    columns = searchable(model, points)
    size = 4 * len(columns) * len(first)
    if size > MOST_VALUES_BYTES:
        raise DataError(
            f"{len(columns):,} neurons in {len(first)} sentences would take {size:,} bytes; at most "
            f"{MOST_VALUES_BYTES:,} are allowed. Give fewer sentences, or choose a smaller model"
        )

    few = too_few(len(columns), sentences)

    def hearing(part: float) -> None:
        tell(0.8 * part, f"hearing {len(first)} sentences" + (", too few for anything to hold" if few else ""))

    hearing(0.0)
    values = activities(model, sentences.all, columns, summary, hearing)
    if not np.isfinite(values).all():
        raise DataError("activations of this model are not finite: its weights overflow; check the checkpoint")
    tell(0.8, f"ranking {len(columns):,} neurons")
    found, neurons = _finds(values, first, searched, shuffles, seed, columns.neuron, few)
    activity = values[searched & first].mean(axis=0)
    baselines = _baselines(sentences, searched)
    return Search(sentences, summary, seed, searched, neurons, baselines, columns, activity, found.effect)


def search_bytes(model: Model[Any], sentences: Sentences) -> int:
    """Memory that a search takes at most, for the numbers of all neurons and for what is heard side by side."""
    columns = Columns([one for one in probe.points(model) if one.kind in ("x_sparse", "y_sparse", "mlp")])
    widest = max(max(1, point.heads) * point.width for point in columns.points)
    row = max(4 * max(map(len, sentences.all)) * widest, model.state_bytes())
    batch = max(row, min(_BATCH_BYTES, _MOST_ROWS * row))
    return _COPIES * 4 * len(columns) * len(sentences.all) + _BATCHES * batch


def search_synapses(
    model: Model[Any], found: Search, *, shuffles: int = SHUFFLES, tell: Tell = lambda part, note: None
) -> Finds | None:
    """Search the synapses between the most separating x and y neurons of each head; None if the model has none.

    σ(i, j) is what x neuron i, firing after the sentence, adds to y neuron j: see `probe.synapses`. The pool was chosen
    on the sentences that are searched, so only what the others say is evidence.
    """
    _check_shuffles(shuffles)
    pool = _pool(found)
    if not pool:
        return None
    strengths, named = _strengths(
        model, found.sentences.all, pool, lambda part: tell(0.9 * part, "synapses after each sentence")
    )
    first = found.sentences.is_concept
    return _finds(strengths, first, found.searched, shuffles, found.seed, named.__getitem__, _too_few_held(found))[1]


def _check_shuffles(shuffles: int) -> None:
    if shuffles < LEAST_SHUFFLES:
        raise DataError(
            f"{shuffles} shuffles were asked for; with fewer than {LEAST_SHUFFLES} nothing can be better than "
            f"{CHANCE:.0%} of them"
        )


def _too_few_held(found: Search) -> str:
    """As `too_few`, of synapses, for which the sentences held out decide."""
    held = [int((~found.searched & group).sum()) for group in (found.sentences.is_concept, ~found.sentences.is_concept)]
    if (least := least_p(*held)) * SHOWN < SURE:
        return ""
    return (
        f"nothing can hold: on {held[0]} and {held[1]} sentences held out the smallest possible p is {least:.1e}, and "
        f"{min(1.0, least * SHOWN):.2g} after Bonferroni for the {SHOWN} that are held against them, where under "
        f"{SURE} is needed; at least {2 * smallest_groups(SHOWN, SURE)} sentences a set are needed"
    )


def _finds(
    values: Values,
    first: NDArray[np.bool_],
    searched: NDArray[np.bool_],
    shuffles: int,
    seed: int,
    named: Callable[[int], Neuron | Synapse],
    few: str,
) -> tuple[Separation, Finds]:
    """The best columns of measurements (S, F) of all sentences."""
    ranks = ranked(values[searched])
    found = separation(ranks, first[searched])
    chance = best_by_chance(ranks, first[searched], shuffles, seed)
    corrected, rate = bonferroni(found.p), benjamini_hochberg(found.p)
    by_chance = chance_of(found.effect, chance)
    order = _best(found, values[searched], first[searched])
    held = values[~searched]
    best = []
    again = separation(ranked(held[:, order]), first[~searched])
    for place, column in enumerate(order.tolist()):
        best.append(
            Find(
                named(column),
                float(found.effect[column]),
                float(found.p[column]),
                float(corrected[column]),
                float(rate[column]),
                float(by_chance[column]),
                float(again.effect[place]),
                float(again.effect[place] + 1) / 2,
                min(1.0, float(again.p[place]) * len(order)),
                tuple(values[:, column].tolist()),
            )
        )
    if isinstance(best[0].what, Synapse):  # of which those held out decide, for as many as are shown
        sure, holding = sum(one.sure for one in best), sum(one.verdict == "holds" for one in best)
    else:
        those = np.flatnonzero((corrected < SURE) & (by_chance <= 1 - CHANCE))
        aucs = (separation(ranked(held[:, those]), first[~searched]).effect + 1) / 2 if len(those) else np.empty(0)
        sure, holding = len(those), int((aucs >= HOLDS).sum())
    return found, Finds(
        len(found.p),
        int((ranks.tied >= len(ranks.ranks) ** 3 - len(ranks.ranks)).sum()),
        tuple(best),
        sure,
        int((rate < SURE).sum()),
        holding,
        chance,
        few,
    )


def _best(found: Separation, values: Values, first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The columns with the largest effects; where these are alike, the means that are furthest apart by deviations."""
    likely = np.argsort(-found.effect, kind="stable")[: 8 * SHOWN]
    one, other = values[first][:, likely], values[~first][:, likely]
    spread = np.sqrt((one.var(axis=0) + other.var(axis=0)) / 2) + 1e-12
    apart = (one.mean(axis=0) - other.mean(axis=0)) / spread
    return likely[np.lexsort((-apart, -found.effect[likely]))][:SHOWN]


def _baselines(sentences: Sentences, searched: NDArray[np.bool_]) -> tuple[Baseline, ...]:
    """The length, and the byte or class of bytes that separates best by its share of a sentence."""
    first = sentences.is_concept
    lengths = np.array([[len(one)] for one in sentences.all], np.float32)
    counts = np.stack([np.bincount(np.frombuffer(one, np.uint8), minlength=256) for one in sentences.all])
    named = [repr(chr(byte)) if 32 <= byte < 127 else f"byte {byte}" for byte in range(256)]
    for name, kind in _CLASSES.items():
        own = [byte for byte in range(256) if kind(chr(byte))]
        counts = np.concatenate([counts, counts[:, own].sum(axis=1, keepdims=True)], axis=1)
        named.append(name)
    often = (counts / lengths).astype(np.float32)
    best = int(np.abs(separation(ranked(often[searched]), first[searched]).effect).argmax())
    listed = []
    for name, column in (("length in bytes", lengths), (f"share of {named[best]}", often[:, [best]])):
        looked = separation(ranked(column[searched]), first[searched])
        held = separation(ranked(column[~searched]), first[~searched])
        way = -1 if looked.effect[0] < 0 else 1
        told = f"{name}, the less" if way < 0 else name
        listed.append(Baseline(told, way * float(looked.effect[0]), (way * float(held.effect[0]) + 1) / 2))
    return tuple(listed)


@torch.no_grad()
def activities(
    model: Model[Any],
    sentences: Sequence[bytes],
    columns: Columns,
    summary: str,
    progress: Callable[[float], None] = lambda part: None,
) -> Values:
    """What each neuron does in each sentence, heard from an empty memory, (S, F).

    A neuron that hears patches is measured on those that the sentence fills.

    Raises:
        DataError: a sentence that fills no patch.
    """
    patch = max(point.bytes_per_row for point in columns.points)
    if (shortest := min(sentences, key=len, default=b"")) and len(shortest) < patch:
        raise DataError(
            f"{shortest.decode('utf-8', 'replace')!r:.60} has {len(shortest)} bytes and fills no patch: this model "
            f"hears patches of {patch}. Give sentences of at least {patch} bytes, or choose another model"
        )
    values = np.zeros((len(sentences), len(columns)), np.float32)
    widest = max(max(1, point.heads) * point.width for point in columns.points)
    done = 0
    with evaluating(model):
        for rows, ids in _batches(model, sentences, widest):
            lengths = torch.tensor([len(sentences[row]) for row in rows])
            summing = _Summing(columns, lengths, summary)
            with probing(summing):
                for _, piece, state in _pieces(model, ids):
                    model(piece, keep_state=False) if state is None else model.step_(piece, state)
            values[rows] = summing.values.numpy()
            done += len(rows)
            progress(done / len(sentences))
    return values


class _Summing:
    """A probe that sums activations of sentences heard side by side, without what stands after their ends."""

    edits = False

    def __init__(self, columns: Columns, lengths: Tensor, summary: str) -> None:
        self._points = {point.name: point for point in columns.points}
        self._columns, self._lengths, self._summary = columns, lengths, summary
        self.values = torch.zeros(len(lengths), len(columns))
        self._seen: dict[str, int] = {}
        """Rows of each point so far."""

    def wants(self, point: str) -> bool:
        return point in self._points

    def see(self, point: str, activation: Tensor) -> None:
        patch = self._points[point].bytes_per_row
        heads = activation if activation.dim() == 4 else activation[None]
        streams = len(self._lengths)
        # Patches of a stream may stand as rows of their own; streams come one after another either way.
        heads = heads.flatten(1, 2).unflatten(1, (streams, -1)).float().cpu()
        ends = self._lengths // patch
        seen = self._seen.get(point, 0)
        self._seen[point] = seen + heads.shape[2]
        places = seen + torch.arange(heads.shape[2])
        own = self._columns.of_point(point)
        if self._summary == "max":
            inside = heads.masked_fill((places >= ends[:, None])[None, :, :, None], -torch.inf).amax(2)
            most = torch.maximum(self.values[:, own], inside.transpose(0, 1).flatten(1))
            self.values[:, own] = most if seen else inside.transpose(0, 1).flatten(1)
            return
        if self._summary == "mean":
            weights = (places < ends[:, None]).float() / ends[:, None]
        else:
            weights = (places == ends[:, None] - 1).float()
        summed = (weights[None, :, None] @ heads)[:, :, 0]
        self.values[:, own] += summed.transpose(0, 1).flatten(1)

    def scalings(self, place: str, encoder_v: Tensor) -> Sequence[Scaling]:
        return ()


def _patch(model: Model[Any]) -> int:
    return max(point.bytes_per_row for point in probe.points(model))


def _batches(model: Model[Any], sentences: Sequence[bytes], widest: int) -> Iterator[tuple[list[int], Tensor]]:
    """Sentences of nearly one length side by side, filled up with line breaks to whole patches and one more."""
    order = sorted(range(len(sentences)), key=lambda row: len(sentences[row]))
    patch = _patch(model)
    while order:
        longest = min(len(sentences[order[-1]]) + patch, model.chunk_bytes(inplace=True))
        count = max(1, min(_MOST_ROWS, _BATCH_BYTES // max(4 * longest * widest, model.state_bytes())))
        rows, order = order[-count:], order[:-count]
        length = max(len(sentences[row]) for row in rows)
        if patch > 1:  # the last patch is left out of the global layers where nothing comes after it
            length = (-(-length // patch) + 1) * patch
        filled = [list(sentences[row].ljust(length, b"\n")) for row in rows]
        yield rows, torch.tensor(filled, dtype=torch.uint8)


def _pieces(model: Model[Any], ids: Tensor) -> Iterator[tuple[int, Tensor, Any]]:
    """Pieces that are heard in one pass, each with where it begins and the memory; None if no memory is needed."""
    size = model.chunk_bytes(inplace=True)
    state = None if ids.shape[1] <= size else model.empty_state(len(ids))
    for start in range(0, ids.shape[1], size):
        yield start, ids[:, start : start + size], state


def _pool(found: Search) -> dict[tuple[str, int], tuple[list[int], list[int]]]:
    """The most separating x and y neurons, by layer and head; local layers forget at the end of each patch.

    Layers of which only x or only y neurons were searched have none.
    """
    pool = {}
    known = {point.name for point in found.columns.points}
    for point in found.columns.points:
        of_patch = "local" in point.place.split(".")
        if point.kind != "x_sparse" or of_patch or f"{point.place}.y_sparse" not in known:
            continue
        sides = []
        for kind in ("x_sparse", "y_sparse"):
            effects = found.effects[found.columns.of_point(f"{point.place}.{kind}")].reshape(point.heads, -1)
            sides.append(np.argsort(-effects, axis=1, kind="stable")[:, :POOL].tolist())
        for head in range(point.heads):
            pool[point.place, head] = (sides[0][head], sides[1][head])
    return pool


@torch.no_grad()
def _strengths(
    model: Model[Any],
    sentences: Sequence[bytes],
    pool: dict[tuple[str, int], tuple[list[int], list[int]]],
    progress: Callable[[float], None],
) -> tuple[Values, list[Synapse]]:
    """σ of the synapses of the pool after each sentence, (S, synapses), and which they are."""
    named = [Synapse(place, head, x, y) for (place, head), (xs, ys) in pool.items() for x in xs for y in ys]
    layers = {place: _layer(model, place) for place, _ in pool}
    alike: dict[int, list[int]] = defaultdict(list)
    for row, sentence in enumerate(sentences):
        alike[len(sentence)].append(row)
    at_once = max(1, min(_MOST_ROWS, _BATCH_BYTES // model.state_bytes()))
    values, done = np.empty((len(sentences), len(named)), np.float32), 0
    with evaluating(model):
        for rows in alike.values():
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                ids = torch.tensor([list(sentences[row]) for row in some], dtype=torch.uint8)
                state = model.step_(ids, model.empty_state(len(some))).state
                parts = []
                for (place, head), (xs, ys) in pool.items():
                    layer = layers[place]
                    memory = layer.memory(state)[:, head]
                    read = _turned(memory, xs, layer.increments, len(sentences[some[0]]) // layer.patch)
                    parts.append((read @ layer.encoder_v[head][:, ys]).flatten(1))
                values[some] = torch.cat(parts, dim=1).cpu().numpy()
                done += len(some)
                progress(done / len(sentences))
    return values, named


class _Layer(NamedTuple):
    """What synapses of a layer are made of."""

    memory: Callable[[Any], Tensor]
    """(B, H, N, D) of a state."""
    encoder_v: Tensor
    """(H, D, N), centred as the norm of what is read centres it."""
    increments: Tensor
    patch: int


def _layer(model: Any, place: str) -> _Layer:
    scale, _, number = place.partition(".")
    if scale == "member":
        index, _, inner = number.partition(".")
        of_member = _layer(model.members[int(index)], inner)
        return of_member._replace(memory=lambda state: of_member.memory(state.members[int(index)]))
    own = groups(model.config)
    if isinstance(model.config, HierarchicalConfig):  # where every layer has neurons of its own
        group = [group for group in own if group.prefix.startswith(f"{scale}_")][int(number)]
    else:
        group = own[0]
    encoder_v = model.get_parameter(group.encoders[1]).detach().float()
    return _Layer(
        lambda state: state.global_layers[int(number)] if scale == "global" else state.memory[int(number)],
        encoder_v - encoder_v.mean(1, keepdim=True),
        rope.increments(model.get_buffer(group.frequencies)),
        model.config.patch_size if scale == "global" else 1,
    )


def _turned(memory: Tensor, neurons: Sequence[int], increments: Tensor, position: int) -> Tensor:
    """What some x neurons would read of a head's memory (B, N, D), firing with 1 at a position, (B, neurons, D)."""
    own = torch.tensor(neurons, device=memory.device)
    cos, sin = rope.cos_sin(torch.tensor([position], device=memory.device), 1, increments)
    cos, sin = cos[0, 0][own // 2], sin[0, 0][own // 2]
    # A neuron of a pair, rotated, reads its own row and its partner's.
    partner = torch.where(own % 2 == 0, sin, -sin)
    return cos[:, None] * memory[:, own] + partner[:, None] * memory[:, own ^ 1]
