"""Exact symmetries of the flat model, and the one that brings a model nearest to another.

Models without a common base have unrelated spaces: joined or averaged as they are, they destroy each other. But what a
flat model computes does not change if its width is rotated with the all-ones vector fixed (the norms commute with
that), if neuron pairs change places together with their frequencies, or if heads of equal damping do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..config import Config, FlatConfig
from ..errors import MergeError
from ..models import Model
from ..models.base import CHUNK
from ..models.layer import norm
from ..models.observe import observing
from .axes import FREQUENCIES, Group, groups, select_pairs
from .recipe import CALIBRATION_BYTES

Tensors: TypeAlias = Mapping[str, Tensor]

_MOST_ALIKE = 64
"""Pairs of one frequency in a head that are matched: matching costs their number cubed, and honest merges have one for
each parent."""
_EMBED, _LM_HEAD = "embed.weight", "lm_head"
_EXACT = 1e-4
"""How far a rotation may be from one: rounding of float32."""
_UNTOLD = 1e-9
"""Weight of staying as it is, for directions in which nothing tells two models apart."""


class Matching(NamedTuple):
    """Which heads and neuron pairs of a model take the places of another's."""

    heads: Tensor
    """(H,) int64; as `permuted_heads` takes it."""
    pairs: Tensor
    """(H, N / 2) int64, of the heads in their new places; as `permuted_pairs` takes it."""


@dataclass(frozen=True)
class Alignment:
    """What aligning a model with another did.

    Cosines are of all rows of a source taken as one vector, in the space of the reference: 1 is equal, 0 unrelated.
    """

    before: dict[str, float]
    """Cosines of `embeddings` and `read-outs`, and with a text of `residuals`, mean over layers."""
    after: dict[str, float]
    """The same after the rotation."""
    calibration_bytes: int
    """Heard by both models."""
    heads_moved: int | None
    """None if neurons were not matched: the two differ in heads, damping, neurons or frequencies."""
    pairs_moved: int | None
    """Over all heads, likewise."""


def rotated(tensors: Tensors, config: Config, rotation: Tensor) -> dict[str, Tensor]:
    """The same function in a rotated space: every row r of width D becomes r · rotation.

    Args:
        rotation: (D, D), orthogonal, with rows and columns that sum to 1; reflections are allowed.

    Raises:
        MergeError: no flat model, or no such rotation.
    """
    group = _flat(config)
    turn = _checked_rotation(rotation, group.n_embd).to(tensors[_EMBED].device)
    result = dict(tensors)
    result[_EMBED] = (tensors[_EMBED].double() @ turn).to(tensors[_EMBED])
    result[_LM_HEAD] = (turn.mT @ tensors[_LM_HEAD].double()).to(tensors[_LM_HEAD])
    # A head at a time: in float64 the whole would be twice what it is.
    for name in group.encoders:
        result[name] = torch.stack([(turn.mT @ head.double()).to(head) for head in tensors[name]])
    decoder = group.by_head(tensors[group.decoder])
    result[group.decoder] = torch.cat([(head.double() @ turn).to(head) for head in decoder])
    return result


def permuted_pairs(tensors: Tensors, config: Config, order: Tensor) -> dict[str, Tensor]:
    """The same function with neuron pairs in other places.

    Args:
        order: (N / 2,), or (H, N / 2) for each head its own: which pair comes to each place. All heads share their
            frequencies, so orders of heads may differ only among pairs of equal frequency.

    Raises:
        MergeError: no flat model, or no such order.
    """
    group = _flat(config)
    pairs = order.expand(group.n_head, -1) if order.dim() == 1 else order
    _check_order(pairs, group.n_neuron // 2, "neuron pairs of a head")
    if pairs.shape[0] != group.n_head:
        raise MergeError(f"orders of neuron pairs are given for {pairs.shape[0]} heads; the model has {group.n_head}")
    return {**tensors, **select_pairs(tensors, group, pairs)}


def permuted_heads(tensors: Tensors, config: Config, order: Tensor) -> dict[str, Tensor]:
    """The same function with heads in other places.

    Args:
        order: (H,), which head comes to each place; its damping must be that of the head that stood there.

    Raises:
        MergeError: no flat model, or no such order.
    """
    group = _flat(config)
    _check_order(order[None], group.n_head, "heads")
    decay = _decay(config)
    for place, head in enumerate(order.tolist()):
        if decay[place] != decay[head]:
            raise MergeError(
                f"head {head} with damping {decay[head]} cannot take the place of head {place} with {decay[place]}; "
                "only heads of equal damping can change places"
            )
    order = order.to(tensors[group.decoder].device)
    result = dict(tensors)
    for name in group.encoders:
        result[name] = tensors[name][order]
    result[group.decoder] = group.by_head(tensors[group.decoder])[order].flatten(0, 1)
    return result


def find_rotation(reference: Model[Any], other: Model[Any], text: bytes | None = None) -> Tensor:
    """The rotation that brings `other` nearest to `reference`: orthogonal Procrustes across the all-ones vector.

    Compared are the normed embeddings and the read-outs of each byte, by how often it stands in the text, and the
    residuals of each layer while both models hear the text; each of these weighs the same.

    Args:
        text: its first `CALIBRATION_BYTES` are heard; None compares embeddings and read-outs alone.

    Returns:
        (D, D) float64 on the CPU, for `rotated`.

    Raises:
        MergeError: the models are not both flat and of one width.
    """
    return _procrustes(_crossings(reference, other, _calibration(text)))


def match_pairs(reference: Tensors, other: Tensors, config: Config) -> Matching:
    """Which head and which neuron pair of `other` is most like each of `reference`, one to one.

    Alike are neurons whose rows in encoder, encoder_v and decoder point the same way; only heads of equal damping
    and pairs of equal frequency are compared. Both models have this configuration, and one space: see `find_rotation`.

    Raises:
        MergeError: no flat model, or the frequencies of the two are not the same.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - half a second that only matching needs

    group = _flat(config)
    frequencies = [tensors[group.frequencies].flatten()[::2].cpu() for tensors in (reference, other)]
    (sorted_, ours), (others, theirs) = (one.sort(stable=True) for one in frequencies)
    if not torch.equal(sorted_, others):
        raise MergeError(
            "the neuron pairs of the two models have other frequencies, so none can take the other's place; "
            "join them (concat) instead"
        )
    counts = sorted_.unique_consecutive(return_counts=True)[1]
    if int(counts.max()) > _MOST_ALIKE:
        raise MergeError(
            f"{int(counts.max())} neuron pairs of a head have one frequency; at most {_MOST_ALIKE} are matched with "
            "each other"
        )
    starts = counts.cumsum(0) - counts
    # Groups of pairs of equal frequency, by how many are in one: (groups, pairs in a group).
    classes = [starts[counts == count][:, None] + torch.arange(int(count)) for count in counts.unique()]
    left, right = _directions(reference, group), _directions(other, group)
    decay = _decay(config)
    likeness = torch.full((group.n_head, group.n_head), -torch.inf, dtype=torch.float64)
    places = torch.empty(group.n_head, group.n_head, group.n_neuron // 2, dtype=torch.int64)
    for head in range(group.n_head):
        for candidate in range(group.n_head):
            if decay[head] != decay[candidate]:
                continue
            total = 0.0
            for where in classes:
                mine, its = ours[where], theirs[where]
                table = (left[head][mine] @ right[candidate][its].mT).double().numpy()
                for index, costs in enumerate(table):
                    rows, columns = linear_sum_assignment(costs, maximize=True)
                    places[head, candidate, mine[index, rows]] = its[index, columns]
                    total += float(costs[rows, columns].sum())
            likeness[head, candidate] = total
    heads = torch.arange(group.n_head)
    for rate in set(decay):
        alike = torch.tensor([head for head in range(group.n_head) if decay[head] == rate])
        heads[alike] = alike[linear_sum_assignment(likeness[alike][:, alike].numpy(), maximize=True)[1]]
    return Matching(heads, places[torch.arange(group.n_head), heads])


def aligned(reference: Model[Any], other: Model[Any], text: bytes | None = None) -> tuple[dict[str, Tensor], Alignment]:
    """The tensors of `other` where they are nearest to those of `reference`; what it computes stays the same.

    First its width is rotated; then, if the two have the same heads, damping and frequencies, and these tell most
    pairs apart, its heads and neuron pairs are matched.

    Args:
        text: as in `find_rotation`.

    Raises:
        MergeError: the models are not both flat and of one width.
    """
    heard = _calibration(text)
    crossings = _crossings(reference, other, heard)
    rotation = _procrustes(crossings)
    tensors = rotated(other.state_dict(), other.config, rotation)
    heads_moved = pairs_moved = None
    if _matchable(reference, other):
        matching = match_pairs(reference.state_dict(), tensors, reference.config)
        tensors = permuted_heads(tensors, other.config, matching.heads)
        tensors = permuted_pairs(tensors, other.config, matching.pairs)
        heads_moved = int((matching.heads != torch.arange(len(matching.heads))).sum())
        pairs_moved = int((matching.pairs != torch.arange(matching.pairs.shape[1])).sum())
    unmoved = torch.eye(len(rotation), dtype=torch.float64)
    report = Alignment(
        _cosines(crossings, unmoved), _cosines(crossings, rotation), len(heard), heads_moved, pairs_moved
    )
    return tensors, report


def _flat(config: Config) -> Group:
    if not isinstance(config, FlatConfig):
        raise MergeError(
            f"a {config.kind} model cannot be aligned: only in flat models do all norms commute with a rotation; "
            "merge parents of one base, or use mixture, which needs no common space"
        )
    return groups(config)[0]


def _decay(config: Config) -> tuple[float, ...]:
    assert isinstance(config, FlatConfig)
    return config.decay or (1.0,) * config.n_head


def _checked_rotation(rotation: Tensor, width: int) -> Tensor:
    if rotation.shape != (width, width):
        raise MergeError(f"the rotation is {tuple(rotation.shape)}; a model of width {width} needs {(width, width)}")
    rotation = rotation.double()
    one = torch.eye(width, dtype=rotation.dtype, device=rotation.device)
    # Not "above": a comparison with NaN is False.
    if not (rotation @ rotation.mT - one).abs().max() <= _EXACT:
        raise MergeError(
            "the rotation is not orthogonal, so it would change what the model computes; see find_rotation"
        )
    if not (rotation.sum(1) - 1).abs().max() <= _EXACT:
        raise MergeError(
            "the rotation moves the all-ones vector, so the model's norms do not commute with it; its rows must sum "
            "to 1, as those of find_rotation do"
        )
    return rotation


def _check_order(orders: Tensor, count: int, what: str) -> None:
    if (
        orders.dim() != 2
        or orders.shape[1] != count
        or not bool((orders.cpu().sort(1).values == torch.arange(count)).all())
    ):
        raise MergeError(f"the order of {what} is no permutation of 0 to {count - 1}")


def _calibration(text: bytes | None) -> Tensor:
    """(T,) uint8, T may be 0."""
    return torch.tensor(list((text or b"")[:CALIBRATION_BYTES]), dtype=torch.uint8)


def _crossings(reference: Model[Any], other: Model[Any], heard: Tensor) -> dict[str, Tensor]:
    """Sums of x_other ⊗ x_reference over the rows of each source, (sources of a name, D, D), each over its norms."""
    width = _flat(reference.config).n_embd
    if _flat(other.config).n_embd != width:
        raise MergeError(
            f"the models are {width} and {other.config.n_embd} wide; a rotation needs one width, mixture does not"
        )
    # Bytes that the text lacks count a little, so that they are not left wherever they were.
    weights = torch.bincount(heard.long(), minlength=256).double() + 1
    weights = (weights / weights.sum())[:, None]
    crossings = {}
    for name, rows in (("embeddings", _embeddings), ("read-outs", _read_outs)):
        x, y = (weights.sqrt() * rows(model.state_dict(), weights) for model in (other, reference))
        crossings[name] = _scaled(x.mT @ y, x.square().sum(), y.square().sum())[None]
    if len(heard):
        crossings["residuals"] = _residual_crossings(reference, other, heard)
    return crossings


def _embeddings(tensors: Tensors, weights: Tensor) -> Tensor:
    """What the first layer hears of each byte, (256, D)."""
    return norm(tensors[_EMBED].double().cpu())


def _read_outs(tensors: Tensors, weights: Tensor) -> Tensor:
    """What speaks for each byte, (256, D), without what moves no probability."""
    columns = tensors[_LM_HEAD].double().cpu().mT
    columns = columns - columns.mean(1, keepdim=True)
    return columns - (weights * columns).sum(0)


@torch.no_grad()
def _residual_crossings(reference: Model[Any], other: Model[Any], heard: Tensor) -> Tensor:
    """(layers, D, D); a layer that only one of the two has is left out."""
    models = (other, reference)
    states = [model.empty_state(1) for model in models]
    layers = min(model.config.n_layer for model in models)
    width = reference.config.n_embd
    crossing = torch.zeros(layers, width, width, dtype=torch.float64)
    squares = torch.zeros(2, layers, dtype=torch.float64)
    for piece in heard.split(CHUNK):
        rows = []
        for index, model in enumerate(models):
            residuals, states[index] = _residuals(model, piece, states[index])
            rows.append(residuals[:layers])
            squares[index] += rows[index].square().sum((1, 2))
        crossing += rows[0].mT @ rows[1]
    return _scaled(crossing, *squares[:, :, None, None])


def _residuals(model: Model[Any], piece: Tensor, state: Any) -> tuple[Tensor, Any]:
    """What each layer gives on, (layers, T, D), and the memory after a piece of at most a chunk."""
    seen: list[Tensor] = []

    def look(name: str, activation: Tensor) -> None:
        if name == "residual":
            seen.append(activation[0].double().cpu())

    with observing(look):
        state = model.step_(piece[None], state).state
    return torch.stack(seen), state


def _scaled(crossing: Tensor, square: Tensor, other_square: Tensor) -> Tensor:
    return crossing / (square * other_square).sqrt().clamp(min=torch.finfo(torch.float64).tiny)


def _procrustes(crossings: dict[str, Tensor]) -> Tensor:
    """The R that fixes the all-ones vector and makes the sum of <crossing, R> largest."""
    crossing = torch.cat(list(crossings.values())).sum(0)
    width = len(crossing)
    one = torch.eye(width, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat((torch.ones(width, 1, dtype=torch.float64), one[:, 1:]), dim=1)).Q[:, 1:]
    left, _, right = torch.linalg.svd(basis.mT @ (crossing + _UNTOLD * one) @ basis)
    return basis @ left @ right @ basis.mT + 1 / width


def _cosines(crossings: dict[str, Tensor], rotation: Tensor) -> dict[str, float]:
    return {name: float((crossing * rotation).sum((1, 2)).mean()) for name, crossing in crossings.items()}


def _directions(tensors: Tensors, group: Group) -> Tensor:
    """Unit rows of a pair's two neurons in encoder, encoder_v and decoder, end to end: (H, N / 2, 6 D) float32."""
    rows = [*(tensors[name].mT for name in group.encoders), group.by_head(tensors[group.decoder])]
    centred = [row.float().cpu() - row.float().cpu().mean(-1, keepdim=True) for row in rows]
    units = torch.cat([torch.nn.functional.normalize(row, dim=-1) for row in centred], dim=-1)
    return units.unflatten(1, (-1, 2)).flatten(2)


def _matchable(reference: Model[Any], other: Model[Any]) -> bool:
    one, two = reference.config, other.config
    if (one.n_head, one.n_neuron, _decay(one)) != (two.n_head, two.n_neuron, _decay(two)):
        return False
    frequencies = [model.state_dict()[FREQUENCIES].flatten().cpu().sort().values for model in (reference, other)]
    alike = int(frequencies[0][::2].unique_consecutive(return_counts=True)[1].max())
    return torch.equal(*frequencies) and alike <= _MOST_ALIKE
