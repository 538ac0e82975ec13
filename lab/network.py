"""Which neuron excites which: the weights as a graph, its degrees, its communities, and what chance would give.

A neuron speaks through its row of `decoder` and is heard by the column of `encoder` of another, so in one head
G = decoder · encoder, neuron to neuron, is what one firing now adds to another's drive in the next layer. In the
paper's letters (arXiv 2509.26507) that is G_x = D_x E, turned over. The mean over the width is taken off each row of
`decoder` first, because the norm between the two takes it off anyway. Kept are the largest positive weights between
different neurons, so many that the mean degree is the one asked for: one threshold would mean another density in each
model.

A flat model uses the same weights in every layer, so G leads back to the same neurons; blocks with weights of their own
lead from one layer's neurons to those of the next.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bdh.config import Config, FlatConfig, HierarchicalConfig
from bdh.errors import ConfigError
from bdh.merge.axes import Group, groups
from bdh.models import Model, build

Tell = Callable[[float, str], None]
"""Called with the part done and what is done next; raises if the work is to stop."""
Whole = NDArray[np.int64]

MOST_NEURONS = 2_048
"""Of one side of a graph; of more, so many are drawn by the seed."""
MEAN_DEGREE = 8.0
MOST_DEGREE = 64.0
RANDOM_GRAPHS = 10
LEAST_TAIL, LEAST_SPAN, SURE = 50, 10.0, 0.1
"""A fit speaks if so many neurons are in the tail, whose largest degree is so many times the least; a likelihood ratio
decides, and a distance rules the fit out, if its p is under the last."""
MODULAR = 0.05
"""By how much modularity must be above that of every random graph of the same degrees."""
_TRUNCATED = "truncated_power_law"
ALTERNATIVES = ("lognormal", "exponential", _TRUNCATED)
ALL_HEADS = "all heads"
_ALPHAS = [0.0, 30.0]
"""Among which alpha is sought; the package would stop at 3."""
_TERMS, _SPAN, _STEPS = 5_000, 30.0, 3_000
"""Of a sum without end: how many terms are added up, and over how many e-foldings in how many steps the rest is."""
DRAWS = 200
"""Sets of degrees drawn from a fit, to tell how often chance leaves so large a distance."""
_FITTED = 1 + np.geomspace(1e-3, 29, 600)
"""Values of alpha between which one is read off, for tails that begin below the next."""
_NEAR = 10
_DRAWN, _LARGEST = 20_000, 10**9
"""Degrees, from the start of the tail on, of which a draw knows each one's chance; beyond it is that of a power law
without steps, up to the second."""
_SWAPS = 10
"""Times each edge of a random graph is, on average, tried to be swapped."""


@dataclass(frozen=True)
class Place:
    """Where a graph is taken from."""

    name: str
    speaks: Group
    hears: Group
    head: int | None
    """None is all of them."""

    @property
    def loops(self) -> bool:
        """Whether it leads back to the same neurons."""
        return self.speaks == self.hears

    @property
    def neurons(self) -> int:
        """On one side."""
        return self.speaks.n_neuron * (self.speaks.n_head if self.head is None else 1)


@dataclass(frozen=True)
class Graph:
    """Directed edges between nodes 0 to `count` - 1; if it does not loop, the second half is the next layer's."""

    count: int
    source: Whole
    target: Whole
    weight: NDArray[np.float32]
    neurons: Whole
    """Of one side, by node: the number of the neuron within its head, or over all heads one after another."""
    loops: bool
    of: int
    """Neurons that there are on one side, of which these were drawn."""

    @property
    def out_degree(self) -> Whole:
        """Of every node that can speak."""
        return np.bincount(self.source, minlength=len(self.neurons))[: len(self.neurons)]

    @property
    def in_degree(self) -> Whole:
        """Of every node that can hear."""
        return np.bincount(self.target, minlength=self.count)[self.count - len(self.neurons) :]

    def neuron(self, node: int) -> int:
        """The neuron that a node stands for."""
        return int(self.neurons[node % len(self.neurons)])


@dataclass(frozen=True)
class Compared:
    """A power law against another distribution."""

    ratio: float
    """Normalised log-likelihood ratio; above 0 the power law is the likelier."""
    p: float
    """Of a ratio so far from 0 if both were equally good."""


@dataclass(frozen=True)
class Fit:
    """A power law fitted to the upper end of degrees, by maximum likelihood.

    It begins at the degree from which it fits best, of those that leave `LEAST_TAIL` neurons or more.
    """

    alpha: float
    sigma: float
    """Standard error of alpha."""
    least_degree: int
    """Where the tail begins."""
    tail: int
    """Neurons in it."""
    largest_degree: int
    distance: float
    """Kolmogorov and Smirnov's, between tail and fit."""
    p: float
    """Of a distance so large by chance: the part of `DRAWS` sets of degrees drawn from the fit, each with a start and
    an alpha fitted to it anew, whose distance is as large, the degrees themselves counted as one."""
    against: dict[str, Compared]
    """By name; of too short a tail none, and without those that could not be fitted."""

    @property
    def verdict(self) -> str:
        """What that says, by the thresholds of this file."""
        if too_short(self.tail, self.least_degree, self.largest_degree):
            return "too short a tail to tell"
        exponential = self.against.get("exponential")
        if exponential is None or exponential.ratio <= 0 or exponential.p >= SURE:
            return "no heavy tail"
        better = [name for name, one in self.against.items() if one.ratio < 0 and one.p < SURE]
        if better:
            return f"heavy tail, better as {better[0].replace('_', ' ')}"
        return "heavy tail, but no power law" if self.p < SURE else "power law not ruled out"


def too_short(tail: int, least_degree: int, largest_degree: int) -> bool:
    """Whether a tail has too few neurons, or too little span, to tell one distribution from another."""
    return tail < LEAST_TAIL or largest_degree < LEAST_SPAN * least_degree


@dataclass(frozen=True)
class Measured:
    """What is known of one graph."""

    in_degree: list[int]
    out_degree: list[int]
    least_weight: float
    """Of an edge, over the standard deviation of all weights."""
    in_fit: Fit
    out_fit: Fit
    communities: int
    """Of two neurons or more."""
    modularity: float
    random: list[float]
    """Modularity of random graphs with the same degrees."""

    @property
    def verdict(self) -> str:
        """Whether there are communities, by the threshold of this file."""
        above = self.modularity - max(self.random)
        return "modular" if above >= MODULAR else "a little modular" if above > 0 else "as random"


@dataclass(frozen=True)
class Network:
    """A graph of a trained model beside one of the same shape with fresh weights."""

    place: str
    neurons: int
    of: int
    edges: int
    mean_degree: float
    seed: int
    trained: Measured
    untrained: Measured

    @property
    def verdict(self) -> str:
        """Whether the trained weights have communities, and more than fresh ones have of their shape alone."""
        trained, fresh = (one.modularity - float(np.mean(one.random)) for one in (self.trained, self.untrained))
        if self.trained.modularity <= max(self.trained.random) or trained - fresh >= MODULAR:
            return self.trained.verdict
        return f"{self.trained.verdict}, but not clearly more than fresh weights are"


def places(config: Config) -> dict[str, Place]:
    """Where graphs can be taken from, by name.

    Raises:
        ConfigError: the model has no such neurons.
    """
    if not isinstance(config, (FlatConfig, HierarchicalConfig)) or not getattr(config, "use_bdh_attention", True):
        raise ConfigError(
            f"a {config.kind} model like this has no encoder and decoder that lead from neuron to neuron; choose a "
            "flat model, or a hierarchical one of BDH layers"
        )
    found = groups(config)
    if isinstance(config, FlatConfig):
        pairs = [("", found[0], found[0])] if config.n_layer > 1 else []
    else:
        pairs = []
        for scale in ("global", "local"):
            own = [group for group in found if group.prefix.startswith(f"{scale}_")]
            pairs += [(f"{scale} layer {i} to {i + 1}, ", *two) for i, two in enumerate(itertools.pairwise(own))]
    if not pairs:
        raise ConfigError(
            "with one layer (of a scale) there is no next layer whose neurons could be excited; choose a deeper model"
        )
    listed = []
    for name, speaks, hears in pairs:
        listed += [Place(f"{name}head {head}", speaks, hears, head) for head in range(speaks.n_head)]
        if speaks.n_head > 1:
            listed.append(Place(f"{name}{ALL_HEADS}", speaks, hears, None))
    return {place.name: place for place in listed}


def graph(model: Model[Any], place: Place, *, mean_degree: float = MEAN_DEGREE, seed: int = 0) -> Graph:
    """The strongest positive weights between different neurons, `mean_degree` a neuron on average.

    Raises:
        ConfigError: the mean degree is not allowed, or there are not so many positive weights.
    """
    return _graph(model, place, mean_degree, seed)[0]


def _graph(model: Model[Any], place: Place, mean_degree: float, seed: int) -> tuple[Graph, float]:
    """The graph, and the least weight that is in it over the deviation of all weights."""
    if not 1 <= mean_degree <= MOST_DEGREE:
        raise ConfigError(f"the mean degree is {mean_degree:g}; it must be from 1 to {MOST_DEGREE:g}")
    tensors = dict(model.named_parameters())
    heads = slice(None) if place.head is None else slice(place.head, place.head + 1)
    decoder = place.speaks.by_head(tensors[place.speaks.decoder].detach()).float()[heads].flatten(0, 1).cpu()
    encoder = tensors[place.hears.encoders[0]].detach().float()[heads].permute(1, 0, 2).flatten(1).cpu()
    of = place.neurons
    chosen = np.arange(of)
    if of > MOST_NEURONS:
        chosen = np.sort(np.random.default_rng(seed).permutation(of)[:MOST_NEURONS])
    drawn = torch.from_numpy(chosen)
    decoder, encoder = decoder[drawn], encoder[:, drawn]
    weights = (decoder - decoder.mean(-1, keepdim=True)) @ encoder
    if not bool(weights.isfinite().all()):
        raise ConfigError(
            f"the weights between the neurons of {place.name} are not finite: they overflow; check the checkpoint"
        )
    count = len(chosen)
    deviation = float(weights.std())
    if place.loops:
        weights.fill_diagonal_(-torch.inf)
    edges = min(round(mean_degree * count), weights.numel())
    strongest = weights.flatten().topk(edges)
    if not bool((strongest.values > 0).all()):
        raise ConfigError(
            f"only {int((weights > 0).sum()):,} weights between the neurons of {place.name} are positive; ask for a "
            "smaller mean degree"
        )
    index = strongest.indices.numpy()
    shift = 0 if place.loops else count
    made = Graph(
        count + shift, index // count, index % count + shift, strongest.values.numpy(), chosen, place.loops, of
    )
    return made, float(strongest.values[-1]) / deviation


def fit_power_law(degrees: Whole, seed: int = 0) -> Fit:
    """The power law of the upper end of degrees; degrees of 0 are none of a power law's and left out.

    Args:
        seed: of the draws.

    Raises:
        ConfigError: all degrees are the same, so that there is nothing to fit.
    """
    import powerlaw  # noqa: PLC0415 - a second that only a fit needs

    positive = degrees[degrees > 0]
    if len(np.unique(positive)) < 3:
        raise ConfigError("the degrees are nearly all the same, so no distribution can be fitted; change the degree")
    options = {"discrete": True, "verbose": False}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of fits that do not converge at once
        start = _start(positive)
        least = start.least_degree
        found = powerlaw.Fit(positive, xmin=least, parameter_ranges={"alpha": _ALPHAS}, **options)
        tail = positive[positive >= least]
        short = too_short(len(tail), least, int(tail.max()))
        own = found.power_law.loglikelihoods(tail)
        # Of the others alpha, if they have one, keeps the package's bounds: a cut-off does what a larger one would.
        others = powerlaw.Fit(tail, xmin=least, **options)
        against = {}
        for name in () if short else ALTERNATIVES:
            with suppress(ArithmeticError, ValueError):  # of a short tail its fit may not converge
                ratio, p = powerlaw.loglikelihood_ratio(
                    own,
                    (_truncated(tail, least) if name == _TRUNCATED else getattr(others, name)).loglikelihoods(tail),
                    nested=name == _TRUNCATED,
                    normalized_ratio=True,
                )
                if np.isfinite([ratio, p]).all():
                    against[name] = Compared(float(ratio), float(p))
        return Fit(
            float(found.power_law.alpha),
            float(found.power_law.sigma),
            least,
            len(tail),
            int(tail.max()),
            start.distance,
            _chance(positive, start, seed),
            against,
        )


class _Start(NamedTuple):
    """Where a tail begins, and how well a power law fits it."""

    distance: float
    least_degree: int
    alpha: float
    tail: int


def _start(positive: Whole) -> _Start:
    """The start from which a power law is nearest to the degrees, of those that leave enough neurons in the tail.

    For all starts at once: alpha by maximum likelihood, and the largest distance between F(k) = 1 - ζ(α, k + 1) / ζ(α,
    start) and the part of the tail that is at most k, which is at a degree that occurs or just before one.
    """
    from scipy.special import zeta  # noqa: PLC0415

    values, times = np.unique(positive, return_counts=True)
    above = times[::-1].cumsum()[::-1]  # as many or more
    logs = (times * np.log(values))[::-1].cumsum()[::-1] / above
    tried = max(1, min(len(values) - 2, int((above >= LEAST_TAIL).sum())))
    starts = values[:tried]
    # Far from 0 the sum over whole numbers is nearly an integral, from half a step before on.
    alphas = 1 + 1 / (logs[:tried] - np.log(starts - 0.5))
    for index in np.flatnonzero(starts < _NEAR):
        alphas[index] = np.interp(logs[index], _mean_logs(int(starts[index])), _FITTED[::-1])
    alphas = np.minimum(alphas, _ALPHAS[1])  # of a tail of nearly one degree it has no end, and ζ would be 0
    whole = values.astype(np.float64)
    sums = zeta(alphas[:, None], whole)
    first = np.diagonal(sums)[:, None]
    inside = np.arange(len(values)) >= np.arange(tried)[:, None]
    reached = 1 - np.append(above[1:], 0) / above[:tried, None]
    until = 1 - above / above[:tried, None]
    apart = np.maximum(
        np.abs(reached - (1 - (sums - whole ** -alphas[:, None]) / first)), np.abs(until - (1 - sums / first))
    )
    distances = np.where(inside, apart, 0).max(axis=1)
    best = int(distances.argmin())
    return _Start(float(distances[best]), int(starts[best]), float(alphas[best]), int(above[best]))


@lru_cache(maxsize=_NEAR)
def _mean_logs(least: int) -> NDArray[np.float64]:
    """The mean logarithm under a power law from `least` on, for each of `_FITTED` turned over, so that it ascends."""
    from scipy.special import zeta  # noqa: PLC0415

    found: NDArray[np.float64] = -np.gradient(np.log(zeta(_FITTED, least)), _FITTED)[::-1]
    return found


def _chance(positive: Whole, start: _Start, seed: int) -> float:
    """How often degrees that do follow the fit are as far from the one that fits them best (Clauset and others 2009).

    Below the tail, degrees are drawn from those that there are.
    """
    from scipy.special import zeta  # noqa: PLC0415

    generator = np.random.default_rng(seed)
    body = positive[positive < start.least_degree]
    known = np.arange(start.least_degree, start.least_degree + _DRAWN)
    above = zeta(start.alpha, known.astype(np.float64)) / zeta(start.alpha, start.least_degree)
    as_far = 0
    for _ in range(DRAWS):
        count = int(generator.binomial(len(positive), start.tail / len(positive)))
        chance = 1 - generator.random(count)
        place = np.searchsorted(-above, -chance, side="right") - 1
        drawn = known[place].astype(np.float64)
        far = place == _DRAWN - 1
        drawn[far] = np.floor(known[-1] * (chance[far] / above[-1]) ** (1 / (1 - start.alpha)))
        tail = np.minimum(drawn, _LARGEST).astype(np.int64)
        rest = generator.choice(body, len(positive) - count) if len(body) else body
        as_far += _start(np.concatenate([tail, rest])).distance >= start.distance
    return (1 + as_far) / (1 + DRAWS)


def _truncated(tail: Whole, least: int) -> Any:
    """The package's power law with a cut-off, fitted; its normalisation, by far the slowest part, is ours."""
    import powerlaw  # noqa: PLC0415 - a second that only a fit needs

    class Truncated(powerlaw.Truncated_Power_Law):
        @property
        def _pdf_discrete_normalizer(self) -> float:
            return 1 / lerch_sum(self.alpha, self.Lambda, least)

    return Truncated(data=tail, xmin=least, discrete=True)


def lerch_sum(alpha: float, rate: float, least: int) -> float:
    """Σ k^-α e^(-rate k) over whole numbers k from `least` on: some terms as they are, the rest by an integral.

    Infinite where the sum is.
    """
    border = float(max(_TERMS, 2 * least))
    terms = np.arange(least, border)
    summed = float((terms**-alpha * np.exp(-rate * terms)).sum())
    # In x = e^u the rest is smooth; where no rate ends it, what is beyond the last x is that of the power alone.
    u = np.linspace(0, _SPAN, _STEPS)
    x = border * np.exp(u)
    inside = x ** (1 - alpha) * np.exp(-rate * x)
    rest = float((inside[1:-1].sum() + (inside[0] + inside[-1]) / 2) * u[1])
    if rate * x[-1] < 1:
        if alpha <= 1:
            return float("inf")
        rest += float(x[-1] ** (1 - alpha) / (alpha - 1))
    first = border**-alpha * float(np.exp(-rate * border))
    return summed + rest + first / 2


def communities(found: Graph, seed: int = 0) -> tuple[Whole, float]:
    """The community of each node, the largest being 0, and the modularity; of edges without their direction."""
    return _louvain(*_undirected(found.source, found.target, found.count), found.count, seed)


def randomised(a: Whole, b: Whole, count: int, seed: int, *, sides: bool = False) -> tuple[Whole, Whole]:
    """Undirected edges a-b swapped until nothing but the degrees is left: no loops, no edge twice.

    Args:
        a, b: the ends of each edge, each edge once.
        count: of nodes.
        sides: no edge may join two nodes that only stand in `a`, or only in `b`.
    """
    generator = np.random.default_rng(seed)
    a, b = a.copy(), b.copy()
    for _ in range(2 * _SWAPS):
        order = generator.permutation(len(a))
        half = len(a) // 2
        one, two = order[:half], order[half : 2 * half]
        turned = (generator.random(half) < 0.5) & (not sides)
        c, d = np.where(turned, b[two], a[two]), np.where(turned, a[two], b[two])
        new = np.concatenate([_code(a[one], d, count), _code(c, b[one], count)])
        known = np.sort(_code(a, b, count))
        place = np.searchsorted(known, new).clip(max=len(known) - 1)
        _, inverse, times = np.unique(new, return_inverse=True, return_counts=True)
        bad = (known[place] == new) | (times[inverse] > 1)
        loops = (a[one] == d) | (c == b[one])
        good = ~(bad[:half] | bad[half:] | loops)
        a_one, b_one = a[one[good]], b[one[good]]
        a[one[good]], b[one[good]] = a_one, d[good]
        a[two[good]], b[two[good]] = c[good], b_one
    return a, b


def measure(
    model: Model[Any],
    place: Place,
    *,
    mean_degree: float = MEAN_DEGREE,
    random_graphs: int = RANDOM_GRAPHS,
    seed: int = 0,
    tell: Tell = lambda part, note: None,
) -> Network:
    """Degrees, fits and communities of a model's graph and of one with fresh weights.

    Raises:
        ConfigError: as `graph`.
    """
    fresh = build(model.config, seed=seed)
    both = []
    for index, (name, one) in enumerate((("trained", model), ("untrained", fresh))):

        def follow(part: float, note: str, index: int = index, name: str = name) -> None:
            tell((index + part) / 2, f"{name}: {note}")

        both.append(_measured(one, place, mean_degree, random_graphs, seed, follow))
    count = min(place.neurons, MOST_NEURONS)
    return Network(place.name, count, place.neurons, sum(both[0].in_degree), mean_degree, seed, both[0], both[1])


def _measured(
    model: Model[Any], place: Place, mean_degree: float, random_graphs: int, seed: int, tell: Tell
) -> Measured:
    tell(0.0, "weights between neurons")
    found, least = _graph(model, place, mean_degree, seed)
    a, b = _undirected(found.source, found.target, found.count)
    tell(0.1, "communities")
    member, modularity = _louvain(a, b, found.count, seed)
    random = []
    for index in range(random_graphs):
        tell(0.15 + 0.35 * index / random_graphs, f"communities of random graphs, {index} of {random_graphs}")
        shuffled = randomised(a, b, found.count, seed + index, sides=not found.loops)
        random.append(_louvain(*shuffled, found.count, seed)[1])
    tell(0.5, "power law of in-degrees")
    in_fit = fit_power_law(found.in_degree, seed)
    tell(0.75, "power law of out-degrees")
    out_fit = fit_power_law(found.out_degree, seed)
    return Measured(
        found.in_degree.tolist(),
        found.out_degree.tolist(),
        least,
        in_fit,
        out_fit,
        int((np.bincount(member) > 1).sum()),
        modularity,
        random,
    )


@dataclass(frozen=True)
class Surroundings:
    """A neuron and what is around it, laid out."""

    nodes: list[dict[str, Any]]
    """Each with `node`, `neuron`, `layer` (0, or 1 for the next layer's), `x`, `y`, `community`, `in_degree` and
    `out_degree`; the first is the one asked for."""
    edges: list[dict[str, Any]]
    """Each with `source` and `target` (places in `nodes`) and `weight`."""


def surroundings(found: Graph, member: Whole, node: int, most: int = 40) -> Surroundings:
    """A node and its strongest neighbours, then theirs, up to `most` nodes, with all edges between them.

    Args:
        member: the community of each node.

    Raises:
        ConfigError: there is no such node.
    """
    import networkx as nx  # noqa: PLC0415 - only graphs need it

    if not 0 <= node < found.count:
        raise ConfigError(f"node {node} is not in the graph; its nodes are 0 to {found.count - 1}")
    chosen = [node]
    order = np.argsort(-found.weight, kind="stable")
    ends = np.stack([found.source[order], found.target[order]], axis=1)
    for share in (0.6, 1.0):  # most of the places for its own neighbours, the rest for theirs
        reached = ends[np.isin(ends, chosen).any(axis=1)].ravel()
        for one in dict.fromkeys(reached.tolist()):
            if len(chosen) >= max(2, round(share * most)):
                break
            if one not in chosen:
                chosen.append(one)
    inside = np.isin(found.source, chosen) & np.isin(found.target, chosen)
    drawn = nx.Graph()
    drawn.add_nodes_from(chosen)
    drawn.add_edges_from(zip(found.source[inside].tolist(), found.target[inside].tolist(), strict=True))
    spread = nx.spring_layout(drawn, seed=0, iterations=80, k=1.6 / max(1, len(chosen)) ** 0.5)
    incoming = np.bincount(found.target, minlength=found.count)
    outgoing = np.bincount(found.source, minlength=found.count)
    place = {one: index for index, one in enumerate(chosen)}
    nodes = [
        {
            "node": one,
            "neuron": found.neuron(one),
            "layer": int(not found.loops and one >= len(found.neurons)),
            "x": float(spread[one][0]),
            "y": float(spread[one][1]),
            "community": int(member[one]),
            "in_degree": int(incoming[one]),
            "out_degree": int(outgoing[one]),
        }
        for one in chosen
    ]
    edges = [
        {"source": place[int(s)], "target": place[int(t)], "weight": float(w)}
        for s, t, w in zip(found.source[inside], found.target[inside], found.weight[inside], strict=True)
    ]
    return Surroundings(nodes, edges)


def _code(a: Whole, b: Whole, count: int) -> Whole:
    """One number for each undirected edge."""
    return np.minimum(a, b) * count + np.maximum(a, b)


def _undirected(source: Whole, target: Whole, count: int) -> tuple[Whole, Whole]:
    codes = np.unique(_code(source, target, count))
    return codes // count, codes % count


def _louvain(a: Whole, b: Whole, count: int, seed: int) -> tuple[Whole, float]:
    import networkx as nx  # noqa: PLC0415 - only graphs need it

    drawn = nx.Graph()
    drawn.add_nodes_from(range(count))
    drawn.add_edges_from(zip(a.tolist(), b.tolist(), strict=True))
    parts = sorted(nx.community.louvain_communities(drawn, seed=seed), key=lambda part: (-len(part), min(part)))
    member = np.zeros(count, np.int64)
    for index, part in enumerate(parts):
        member[list(part)] = index
    return member, float(nx.community.modularity(drawn, parts))
