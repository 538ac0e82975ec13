"""Samples whose features are known: sums, logic and a small grammar, of which only the parts are written down.

A sample is the sum of the directions of the parts that hold of it (a digit, a variable, a word's class), each of length
about 1, and a little noise. What combines two to four parts (a digit beside another, the carry, an AND, a plural noun)
has no direction of its own: it shows only in which parts are there together.
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
Combined: TypeAlias = Mapping[int, Facts]
"""By the number of parts that they combine, facts of each sample."""

WIDTH = 64
"""Numbers in a sample."""
K, EXTRACTED = 2, 8
"""Features that an autoencoder may use for a sample, fewer than parts hold at once, so that a feature which stands for
several parts is worth having; and features it may extract before it composes, more than hold at once."""
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
    counts: tuple[int, ...]
    """Of each feature, how many parts it combines; 1 of a part."""


def arithmetic(rng: np.random.Generator, count: int) -> tuple[Facts, Combined]:
    """Two digits of base 4, added or taken from each other, with or without a carry from before.

    Combined are which digits meet (two parts), digits that are taken from each other or meet a carry (three), and the
    last digit of what comes out and whether it goes beyond 0 to 3 (four).
    """
    a, b = rng.integers(4, size=(2, count))
    carried, minus = rng.random((2, count)) < 0.5
    parts = {f"a is {digit}": a == digit for digit in range(4)} | {f"b is {digit}": b == digit for digit in range(4)}
    result = np.where(minus, a - b - carried, a + b + carried)
    pairs = {f"a is {i}, b is {j}": (a == i) & (b == j) for i in range(4) for j in range(4)}
    threes = {f"{i} - {i}": (a == i) & (b == i) & minus for i in range(4)}
    threes |= {f"{i} with {3 - i}, carried": (a == i) & (b == 3 - i) & carried for i in range(4)}
    fours = {f"ends in {digit}": result % 4 == digit for digit in range(4)} | {"beyond": (result < 0) | (result > 3)}
    return parts | {"carried": carried, "minus": minus}, {2: pairs, 3: threes, 4: fours}


def logic(rng: np.random.Generator, count: int) -> tuple[Facts, Combined]:
    """Eight variables, each true in half of the samples; combined are ANDs of two to four, and XORs of two."""
    holds = rng.random((8, count)) < 0.5
    parts = {f"x{place}": values for place, values in enumerate(holds)}
    pairs = {f"x{i} and x{i + 1}": holds[i] & holds[i + 1] for i in range(0, 8, 2)}
    pairs |= {f"x{i} xor x{(i + 1) % 8}": holds[i] ^ holds[(i + 1) % 8] for i in range(1, 8, 2)}
    more = {
        size: {f"x{i} to x{i + size - 1}": holds[i : i + size].all(0) for i in range(0, 9 - size, size)}
        for size in (3, 4)
    }
    return parts, {2: pairs} | more


def grammar(rng: np.random.Generator, count: int) -> tuple[Facts, Combined]:
    """Words of sentences such as "the old dogs chase a cat": class, number, role, and which word of its class.

    S = NP verb [NP], NP = determiner [adjective] noun; the verb agrees with its subject. Combined are the words
    themselves and class with number (two parts), these in the object, or plural (three), and both (four).
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
    kind, number, role, word = np.array(rows[:count]).T
    plural, is_object = number == 1, role == 1
    classes = {"determiner": determiner, "adjective": adjective, "noun": noun, "verb": verb}
    parts = {name: kind == which for name, which in classes.items()}
    parts |= {"plural": plural, "object": is_object} | {f"word {i + 1}": word == i for i in range(4)}
    words = {f"{name} {i + 1}": (kind == which) & (word == i) for name, which in classes.items() for i in range(4)}
    pairs = words | {f"plural {name}": (kind == which) & plural for name, which in classes.items()}
    threes = {f"plural noun {i + 1}": words[f"noun {i + 1}"] & plural for i in range(4)}
    threes |= {f"plural {name} in the object": pairs[f"plural {name}"] & is_object for name in ("adjective", "noun")}
    fours = {f"plural noun {i + 1} in the object": threes[f"plural noun {i + 1}"] & is_object for i in range(4)}
    return parts, {2: pairs, 3: threes, 4: fours}


TASKS: Mapping[str, Callable[[np.random.Generator, int], tuple[Facts, Combined]]] = {
    "arithmetic": arithmetic,
    "logic": logic,
    "grammar": grammar,
}


def make_task(name: str, count: int, seed: int) -> Task:
    """A task by its name, with so many samples."""
    rng = np.random.default_rng((seed, sorted(TASKS).index(name)))
    parts, combined = TASKS[name](rng, count)
    held = np.stack(list(parts.values()), axis=1)
    directions = rng.standard_normal((len(parts), WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    samples = (held * rng.uniform(0.8, 1.2, held.shape)) @ directions + _NOISE * rng.standard_normal((count, WIDTH))
    samples -= samples.mean(0)
    samples /= np.sqrt((samples**2).mean())
    facts = {**parts} | {fact: values for of_size in combined.values() for fact, values in of_size.items()}
    counts = (1,) * len(parts) + tuple(size for size, of_size in combined.items() for _ in of_size)
    return Task(name, samples.astype(np.float32), np.stack(list(facts.values()), axis=1), tuple(facts), counts)
