"""Samples whose features are known: sums, logic and a small grammar, each feature a direction of its own.

A sample is the sum of the directions of what holds of it, each of length about 1, and a little noise. Some of what
holds is simple (a digit, a variable, a word's class), some combines two of these (the carry, an AND, a plural noun).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .training import Samples

Facts: TypeAlias = Mapping[str, NDArray[np.bool_]]
"""By name, what holds of each sample."""

WIDTH, K = 64, 8
"""Numbers in a sample, and features that an autoencoder may use for one: some more than hold at once."""
_NOISE = 0.05


@dataclass(frozen=True)
class Task:
    """Samples and what is known of them."""

    name: str
    samples: Samples
    """(n, WIDTH), centred and scaled."""
    known: NDArray[np.bool_]
    """(n, features)."""
    names: tuple[str, ...]
    combined: tuple[bool, ...]
    """Of each feature, whether it combines simpler ones."""


def arithmetic(rng: np.random.Generator, count: int) -> tuple[Facts, Facts]:
    """Two digits; combined are the last digit of their sum, whether it carries, and whether the digits are equal."""
    a, b = rng.integers(10, size=(2, count))
    simple = {f"a is {digit}": a == digit for digit in range(10)} | {f"b is {digit}": b == digit for digit in range(10)}
    combined = {f"the sum ends in {digit}": (a + b) % 10 == digit for digit in range(10)}
    return simple, combined | {"carry": a + b > 9, "equal": a == b}


def logic(rng: np.random.Generator, count: int) -> tuple[Facts, Facts]:
    """Ten variables, each true in three of ten; combined are five times AND and five times XOR of neighbours."""
    holds = rng.random((10, count)) < 0.3
    simple = {f"x{place}": values for place, values in enumerate(holds)}
    combined = {f"x{i} and x{i + 1}": holds[i] & holds[i + 1] for i in range(0, 10, 2)}
    return simple, combined | {f"x{i} xor x{(i + 1) % 10}": holds[i] ^ holds[(i + 1) % 10] for i in range(1, 10, 2)}


def grammar(rng: np.random.Generator, count: int) -> tuple[Facts, Facts]:
    """Words of sentences such as "the old dogs chase a cat": class, number, role, and which word of its class.

    S = NP verb [NP], NP = determiner [adjective] noun; the verb agrees with its subject. Combined are class with
    number, and class with role.
    """
    rows: list[tuple[int, int, int, int]] = []
    determiner, adjective, noun, verb = range(4)
    while len(rows) < count:
        numbers = rng.integers(2, size=2)
        for role in range(1 + int(rng.random() < 0.6)):
            phrase = [determiner, *([adjective] if rng.random() < 0.4 else []), noun]
            rows += [(one, int(numbers[role]), role, int(rng.integers(4))) for one in phrase]
            if role == 0:
                rows.append((verb, int(numbers[0]), 0, int(rng.integers(4))))
    kind, plural, role, word = np.array(rows[:count]).T
    classes = {"determiner": determiner, "adjective": adjective, "noun": noun, "verb": verb}
    simple = {name: kind == number for name, number in classes.items()}
    simple |= {"plural": plural == 1, "object": role == 1}
    simple |= {f"{name} {i + 1}": (kind == number) & (word == i) for name, number in classes.items() for i in range(4)}
    combined = {f"plural {name}": (kind == number) & (plural == 1) for name, number in classes.items()}
    return simple, combined | {
        f"{name} in the object": (kind == classes[name]) & (role == 1) for name in ("adjective", "noun")
    }


TASKS: Mapping[str, Callable[[np.random.Generator, int], tuple[Facts, Facts]]] = {
    "arithmetic": arithmetic,
    "logic": logic,
    "grammar": grammar,
}


def make_task(name: str, count: int, seed: int) -> Task:
    """A task by its name, with so many samples."""
    rng = np.random.default_rng((seed, sorted(TASKS).index(name)))
    simple, combined = TASKS[name](rng, count)
    facts = {**simple, **combined}
    known = np.stack(list(facts.values()), axis=1)
    directions = rng.standard_normal((len(facts), WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    samples = (known * rng.uniform(0.8, 1.2, known.shape)) @ directions + _NOISE * rng.standard_normal((count, WIDTH))
    samples -= samples.mean(0)
    samples /= np.sqrt((samples**2).mean())
    return Task(name, samples.astype(np.float32), known, tuple(facts), (False,) * len(simple) + (True,) * len(combined))
