"""Merging by mixing the weights of models of one shape: the mean, SLERP, task arithmetic, TIES and DARE.

All compute in float32, element by element and one tensor at a time, on the device of the parents; what comes back is
float32 and shares no memory with them. Rotary frequencies say what a neuron is rather than weigh it: they are never
mixed, and must be equal in all models. Where the papers leave a choice open, mergekit's is taken.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import is_frequency
from ..errors import MergeError

Tensors: TypeAlias = Mapping[str, Tensor]
"""The tensors of one model by their names."""

PARALLEL = 0.9995
"""Cosine beyond which `slerp` takes two tensors for parallel, as mergekit does."""
_PIECE = 1 << 16
"""Elements mixed at once: what is made of them on the way stays in the processor's cache and takes no memory."""


def average(parents: Sequence[Tensors], weights: Sequence[float]) -> dict[str, Tensor]:
    """Weighted mean of at least 2 parents: Σ w_i p_i / Σ w_i.

    Parents that are equal give themselves to the last bit, and so does one that has all the weight.

    Raises:
        MergeError: the parents do not match, or the weights do not fit them or do not sum to more than 0.
    """
    _check_models(parents)
    _check_weights(weights, parents)
    total = math.fsum(weights)
    if total <= 0:
        raise MergeError(f"the weights sum to {total:g}; a mean needs weights that sum to more than 0")
    shares = [weight / total for weight in weights]
    # The mean is taken from the heaviest parent outwards: what the parents agree on is then not rounded.
    return _moved(parents[shares.index(max(shares))], parents, lambda deltas: _sum(deltas, shares))


def slerp(first: Tensors, second: Tensors, t: float) -> dict[str, Tensor]:
    """Spherical interpolation: sin((1 − t)·θ)/sin θ · first + sin(t·θ)/sin θ · second.

    θ is the angle between two tensors, each taken whole; where they are nearly parallel, (1 − t)·first + t·second.

    Args:
        t: from 0, which gives the first, to 1, which gives the second.

    Raises:
        MergeError: the parents do not match, or t is out of its bounds.
    """
    _check_models((first, second))
    if not 0 <= t <= 1:
        raise MergeError(f"t is {t}; it must be from 0 (the first model) to 1 (the second)")

    def merged(name: str) -> Tensor:
        a, b = first[name], second[name]
        of_a, of_b = _arc(a, b, t)
        return _piecewise(lambda x, y: of_a * x + of_b * y, (a, b))

    return _by_name(first, merged)


def task_arithmetic(
    base: Tensors, parents: Sequence[Tensors], weights: Sequence[float], scale: float = 1.0
) -> dict[str, Tensor]:
    """Task arithmetic: base + scale · Σ w_i (p_i − base), the weights as they are.

    Source: Ilharco et al. 2022, arXiv 2212.04089.

    Raises:
        MergeError: the models do not match, or the weights do not fit them.
    """
    _check_models(parents, base)
    _check_weights(weights, parents)
    _check_finite("scale", scale)
    return _moved(base, parents, lambda deltas: scale * _sum(deltas, weights))


def ties(
    base: Tensors,
    parents: Sequence[Tensors],
    weights: Sequence[float],
    density: float,
    scale: float = 1.0,
    normalize: bool = True,
) -> dict[str, Tensor]:
    """TIES: base + scale · the weighted mean of those trimmed differences p_i − base that have the elected sign.

    Elected is, at each element, the sign of the weighted sum of all, + where that is 0; a trimmed difference takes
    no part. Source: Yadav et al. 2023, arXiv 2306.01708.

    Args:
        density: part of each tensor's differences that is kept, the largest; above 0, at most 1. The paper trims
            over the whole model; here, as in mergekit, each tensor is trimmed by itself. All that are as large as the
            last one kept are kept.
        normalize: divide by the sum of the weights that took part, at each element; else the sum is not divided.

    Raises:
        MergeError: the models do not match, the weights do not fit them, or the density is out of its bounds.
    """
    _check_models(parents, base)
    _check_weights(weights, parents)
    _check_density(density)
    _check_finite("scale", scale)
    return _moved(
        base,
        parents,
        lambda deltas: scale * _elected(deltas, weights, normalize),
        lambda index, name: _largest(parents[index][name], base[name], density),
    )


def dare(
    base: Tensors,
    parents: Sequence[Tensors],
    weights: Sequence[float],
    density: float,
    scale: float = 1.0,
    *,
    seed: int,
    elect_sign: bool = False,
) -> dict[str, Tensor]:
    """DARE: base + scale/density · Σ w_i m_i (p_i − base), m_i random zeros and ones.

    What is dropped depends on the seed, the parent's place and the tensor's name, and on nothing else; the same
    parents in another order are dropped from differently. Source: Yu et al. 2023, arXiv 2311.03099.

    Args:
        density: probability that a difference is kept; above 0, at most 1. mergekit rescales each tensor to the L1
            norm that it had before the drop; here, as in the paper, by 1/density.
        elect_sign: sum only the differences whose sign won, as in `ties`.

    Raises:
        MergeError: the models do not match, the weights do not fit them, or the density is out of its bounds.
    """
    _check_models(parents, base)
    _check_weights(weights, parents)
    _check_density(density)
    _check_finite("scale", scale)

    def move(deltas: Sequence[Tensor]) -> Tensor:
        mixed = _elected(deltas, weights, normalize=False) if elect_sign else _sum(deltas, weights)
        return scale / density * mixed

    return _moved(base, parents, move, lambda index, name: kept(base[name].shape, density, seed, index, name))


def kept(shape: Sequence[int], density: float, seed: int, parent: int, name: str) -> Tensor:
    """What `dare` keeps of one tensor of one parent, counted from 0: True with probability `density`."""
    digest = hashlib.sha256(f"{seed}/{parent}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    # Not bernoulli_: on some processors it draws from a library's own generator.
    return torch.rand(tuple(shape), generator=generator) < density


def _moved(
    base: Tensors,
    parents: Sequence[Tensors],
    move: Callable[[Sequence[Tensor]], Tensor],
    mask: Callable[[int, str], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The base, moved by what is made of the parents' differences from it.

    Args:
        mask: says by a parent's place and a tensor's name which of the differences count; all, if not given.
    """

    def mix(start: Tensor, *rest: Tensor) -> Tensor:
        deltas = [end - start for end in rest[: len(parents)]]
        for delta, keep in zip(deltas, rest[len(parents) :], strict=False):
            delta.mul_(keep)
        return start + move(deltas)

    def merged(name: str) -> Tensor:
        start = base[name]
        masks = [] if mask is None else [mask(index, name).to(start.device) for index in range(len(parents))]
        return _piecewise(mix, (start, *(parent[name] for parent in parents), *masks))

    return _by_name(base, merged)


def _sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)]).sum(0)


def _elected(deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """Sum or mean of the weighted differences that have the sign of the sum of all, element by element."""
    weight = torch.tensor(weights, dtype=torch.float32, device=deltas[0].device)[:, None]
    weighted = weight * torch.stack(tuple(deltas))
    # A difference of 0, trimmed or dropped, has neither sign and takes no part.
    agrees = weighted.sign() == torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    total = (weighted * agrees).sum(0)
    if not normalize:
        return total
    taking_part = (weight * agrees).sum(0)
    return total / torch.where(taking_part == 0, 1.0, taking_part)


def _largest(end: Tensor, start: Tensor, density: float) -> Tensor:
    """Where a difference is among the largest `density` of its tensor, at least one."""
    magnitudes = (end.float() - start.float()).abs_()
    dropped = magnitudes.numel() - max(1, int(density * magnitudes.numel()))
    if dropped <= 0:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    # NumPy's selection needs one copy; torch's also a tensor of int64 indices.
    return magnitudes >= float(np.partition(magnitudes.flatten().cpu().numpy(), dropped)[dropped])


def _arc(a: Tensor, b: Tensor, t: float) -> tuple[float, float]:
    """Coefficients of `slerp` for two tensors."""
    products = torch.zeros(3, dtype=torch.float64)
    for x, y in zip(a.reshape(-1).split(_PIECE), b.reshape(-1).split(_PIECE), strict=True):
        u, v = x.double(), y.double()  # millions of terms: float32 would show the order in which they are summed
        products += torch.stack((u.dot(u), v.dot(v), u.dot(v))).cpu()
    length_a, length_b, product = *products[:2].sqrt().tolist(), products[2].item()
    cosine = product / (length_a * length_b) if length_a and length_b else 0.0
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


@torch.no_grad()
def _by_name(first: Tensors, merged: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """All tensors merged, the frequencies copied."""
    return {name: first[name].clone() if is_frequency(name) else merged(name) for name in first}


def _piecewise(mix: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape mixed in float32, as many elements at once as memory should hold."""
    result = torch.empty(tensors[0].shape, dtype=torch.float32, device=tensors[0].device)
    for into, *pieces in zip(*(tensor.reshape(-1).split(_PIECE) for tensor in (result, *tensors)), strict=True):
        into.copy_(mix(*(piece.float() for piece in pieces)))
    return result


def _check_models(parents: Sequence[Tensors], base: Tensors | None = None) -> None:
    """Refuse models that differ in names, shapes or rotary frequencies."""
    least = 2 if base is None else 1
    if len(parents) < least:
        raise MergeError(f"parents: {len(parents)} given; at least {least} must be")
    models = {f"parent {number}": parent for number, parent in enumerate(parents, 1)}
    if base is not None:
        models = {"the base": base, **models}
    (label, first), *others = models.items()
    for other_label, other in others:
        if lone := sorted(first.keys() ^ other.keys()):
            holds, lacks = (label, other_label) if lone[0] in first else (other_label, label)
            raise MergeError(
                f"{lone[0]} is in {holds} and not in {lacks} ({len(lone)} such); weights are mixed only of models of "
                "one kind and number of layers: mixture takes any"
            )
    for name in first:
        shape = tuple(first[name].shape)
        for other_label, other in others:
            if shape != (other_shape := tuple(other[name].shape)):
                raise MergeError(
                    f"{name} is {shape} in {label} and {other_shape} in {other_label}; weights are mixed only of "
                    "models of one shape: concatenation takes models that differ in neurons alone, mixture any"
                )
            if is_frequency(name) and not _same_bits(first[name], other[name]):
                raise MergeError(
                    f"the rotary frequencies {name} of {label} and {other_label} differ; they are never mixed, and "
                    "weights only where they are equal: concatenation keeps those of each, mixture takes any models"
                )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.to(a.device).view(torch.uint8))


def _check_weights(weights: Sequence[float], parents: Sequence[Tensors]) -> None:
    if len(weights) != len(parents):
        raise MergeError(f"weights: {len(weights)} given for {len(parents)} parents; give one for each")
    for number, weight in enumerate(weights, 1):
        _check_finite(f"weight {number}", weight)


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise MergeError(f"density is {density}; it must be above 0 and at most 1 (1 keeps all)")


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise MergeError(f"{name} is {value}; it must be finite")
