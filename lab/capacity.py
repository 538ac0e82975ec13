"""How many pairs a memory holds, by its size, and how many facts a trained model can be told and asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdh.errors import DataError
from bdh.models import Model
from bdh.models.layer import norm
from bdh.models.observe import observing
from train.data import Bytes
from train.evaluate.hearing import hear, judge, streams_side_by_side
from train.evaluate.needle import invented_word

from .claim import Tell
from .law import exponent

HELD = 0.5
"""Pairs are held as long as so many of them are found."""
LEAST_PAIRS = 4
"""That are written: of two, half are found by guessing."""
LEAST_SIZES = 3
"""Of memories that an exponent is fitted to."""

_ASKED = 512
"""At most, of what was written once."""
_QUESTIONS = 1024
"""At least, of every number of pairs: of few pairs many draws."""
_FACT = " The secret word of {} is"
_CANDIDATES = 8


@dataclass(frozen=True)
class Curve:
    """How often the right value was found, against the number of pairs written."""

    code: str
    """What the keys were."""
    neurons: int
    width: int
    found: dict[int, float]
    """By number of pairs."""
    held: float
    """Pairs up to which half of them are found, between two measured numbers by their logarithms; see `held`."""

    @property
    def at_edge(self) -> bool:
        """Whether it is only known that fewer are held than were ever tried, or more."""
        return not min(self.found) < self.held < max(self.found)


def recall(keys: Tensor, width: int, seed: int, cues: Tensor | None = None) -> float:
    """Write a pair for each key into a memory, ask with the keys, and count the right values.

    S = Σ k ⊗ v with random normalised values; asked with k_i, the value nearest to k_i · S is the answer.

    Args:
        keys: (k, N), no value below 0 where they are a model's.
        cues: (k, N), asked with in place of the keys.
    """
    generator = torch.Generator().manual_seed(seed)
    values = norm(torch.randn(len(keys), width, generator=generator))
    memory = keys.T @ values
    asked = torch.randperm(len(keys), generator=generator)[:_ASKED]
    answers = (norm((keys if cues is None else cues)[asked] @ memory) @ values.T).argmax(-1)
    return float((answers == asked).float().mean())


def curve(
    code: str,
    keys: Sequence[Tensor],
    width: int,
    counts: Sequence[int],
    *,
    centred: bool = False,
    draws: int = 4,
    seed: int = 0,
) -> Curve:
    """Recall against the number of pairs, mean over several sets of keys (heads) and draws from each.

    Args:
        counts: pairs, at least 4: of two a guess finds half.
        draws: at least, from every set of keys.
        centred: ask with the keys less their mean, which takes out what all keys have in common.
    """
    if min(counts) < LEAST_PAIRS:
        raise DataError(
            f"{min(counts)} pairs were asked for; of fewer than {LEAST_PAIRS} too many are found by guessing"
        )
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for count in counts:
        rates = []
        most = max(draws, -(-_QUESTIONS // (len(keys) * min(count, _ASKED))))
        for index, one in enumerate(keys):
            if len(one) < count:
                raise DataError(f"{count} pairs need as many keys; there are {len(one)}")
            for draw in range(most):
                chosen = one[torch.randperm(len(one), generator=generator)[:count]]
                cues = chosen - one.mean(0) if centred else None
                rates.append(recall(chosen, width, seed + index * most + draw, cues))
        found[count] = float(np.mean(rates))
    return Curve(code, keys[0].shape[1], width, found, held(found))


def held(found: Mapping[int, float]) -> float:
    """Up to how many pairs at least half are found; 0 if not even of the fewest, the most if of all numbers tried."""
    before: tuple[int, float] | None = None
    for count, rate in sorted(found.items()):
        if rate < HELD:
            if before is None:
                return 0.0
            part = (before[1] - HELD) / (before[1] - rate)
            return float(np.exp(np.log(before[0]) + part * (np.log(count) - np.log(before[0]))))
        before = (count, rate)
    return float(before[0]) if before else 0.0


def own_keys(model: Model[Any], text: Bytes, layer: int) -> list[Tensor]:
    """x_sparse of one layer at the same bytes of a text, one (T, N) a head; bytes where a head is silent left out.

    Raises:
        DataError: the model has no such layer of x_sparse.
    """
    seen: list[list[Tensor]] = []
    state = model.empty_state(1)
    for start in range(0, len(text), 256):
        heard: list[Tensor] = []

        def look(name: str, activation: Tensor, heard: list[Tensor] = heard) -> None:
            if name == "x_sparse":
                heard.append(activation[:, 0].float().clone())

        ids = torch.from_numpy(text[start : start + 256].astype(np.int64))[None]
        with torch.no_grad(), observing(look):
            state = model(ids, state).state
        seen.append(heard)
    if not seen or layer >= len(seen[0]):
        raise DataError(f"the {model.kind} model has no layer {layer} of x_sparse to take keys from")
    whole = torch.cat([heard[layer] for heard in seen], dim=1)
    # A place where nothing fires writes nothing.
    return list(whole[:, whole.any(-1).all(0)])


def memories(keys: Sequence[Tensor], seed: int = 0) -> dict[int, list[Tensor]]:
    """Keys of memories of several sizes, by neurons: an eighth of a head to a whole one, and several heads as one.

    Args:
        keys: (T, N) of every head, at the same places.
    """
    neurons = keys[0].shape[1]
    generator = np.random.default_rng(seed)
    found = {}
    for part in (8, 4, 2, 1):
        if count := neurons // part:
            chosen = np.sort(generator.permutation(neurons)[:count])
            found[count] = [head[:, chosen] for head in keys]
    heads = 2
    while heads <= len(keys):
        groups = [keys[first : first + heads] for first in range(0, len(keys) - heads + 1, heads)]
        found[heads * neurons] = [torch.cat(list(group), dim=1) for group in groups]
        heads *= 2
    return found


def sparse_keys(count: int, neurons: int, active: float, seed: int) -> Tensor:
    """Random keys as sparse as a model's: each neuron fires with that chance, as the absolute of a normal number."""
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(count, neurons, generator=generator) < active
    fires[torch.arange(count), torch.randint(neurons, (count,), generator=generator)] = True
    return torch.randn(count, neurons, generator=generator).abs() * fires


def signed_keys(count: int, neurons: int, seed: int) -> Tensor:
    """Dense random keys of both signs, the best that sums of outer products can be written with."""
    return torch.randn(count, neurons, generator=torch.Generator().manual_seed(seed))


def slope(curves: Sequence[Curve], size: str = "neurons") -> float | None:
    """Exponent with which pairs held grow with a memory's size: 1 is in proportion.

    Where it is only known that fewer or more are held than were tried, there is no number to fit; None if fewer than
    three sizes are left.

    Args:
        size: `neurons` or `width`.
    """
    points = [(getattr(one, size), one.held) for one in curves if not one.at_edge]
    return exponent(points) if len({point[0] for point in points}) >= LEAST_SIZES else None


@dataclass(frozen=True)
class Told:
    """How often a model named the right word after it was told so many facts."""

    facts: int
    trials: int
    found: int
    """Trials where the right word was the likeliest of the candidates: other told ones, filled up with untold ones."""


def told_and_asked(
    model: Model[Any], counts: Sequence[int], trials: int, *, seed: int = 0, tell: Tell | None = None
) -> list[Told]:
    """Tell facts ("The secret word of NAME is WORD."), ask for one of them, and see whether its word is likeliest."""
    found, side_by_side = [], streams_side_by_side(model)
    for index, count in enumerate(counts):
        asked = [_trial(count, (seed, count, number)) for number in range(trials)]
        right = 0
        for start in range(0, trials, side_by_side):
            batch = asked[start : start + side_by_side]
            heard = hear(model, [context for context, _ in batch])
            costs = np.array(
                [
                    [one.bits.sum() for one in judge(model, heard, [endings[candidate] for _, endings in batch])]
                    for candidate in range(_CANDIDATES)
                ]
            )
            right += int((costs[0] < costs[1:].min(0)).sum())
            if tell is not None:
                tell((index + (start + len(batch)) / trials) / len(counts))
        found.append(Told(count, trials, right))
    return found


CHANCE = 1 / _CANDIDATES
"""What guessing finds."""


def _trial(count: int, seed: Sequence[int]) -> tuple[bytes, list[bytes]]:
    """What is heard, the question behind it, and the candidates, the right one first."""
    random = np.random.default_rng(seed)
    names, words = _distinct(random, count, 2), _distinct(random, max(count, _CANDIDATES), 3)
    asked = int(random.integers(count))
    facts = "".join(f"{_FACT.format(name.capitalize())} {word}." for name, word in zip(names, words, strict=False))
    others = [words[i] for i in random.permutation(count) if i != asked] + words[count:]
    endings = [words[asked], *others[: _CANDIDATES - 1]]
    return (facts + _FACT.format(names[asked].capitalize())).encode(), [f" {word}".encode() for word in endings]


def _distinct(random: np.random.Generator, count: int, syllables: int) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        words[invented_word(random, syllables)] = None
    return list(words)
