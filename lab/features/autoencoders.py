"""Autoencoders with few active features: a standard one, and one that composes the features of a sample by attention.

Both keep the k strongest of their code and no other, and write with directions of length 1, so that the strength of a
feature is the length of what it adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdh.errors import ConfigError

STANDARD, COMPOSITIONAL = "standard", "compositional"
NO_ATTENTION, NO_GATE, NO_CURRICULUM = "no attention", "no gate", "no curriculum"
ABLATIONS = (NO_ATTENTION, NO_GATE, NO_CURRICULUM)
"""The compositional autoencoder without one of its parts."""
LEAST_COMBINED, MOST_COMBINED = 2, 4
"""Features that attention combines for each feature, at the beginning and at the end of the curriculum."""


@dataclass(frozen=True)
class Shape:
    """How large an autoencoder is."""

    width: int
    """Numbers in a sample."""
    features: int = 256
    """Features that are extracted, d_f: all of the standard autoencoder's code."""
    composed: int = 128
    """Composed features, d_c."""
    heads: int = 8
    k: int = 32
    """Features that may be active in a sample."""
    extracted: int = 0
    """Features that may be extracted from a sample before they are composed; 0 is k."""

    def __post_init__(self) -> None:
        if min(self.width, self.features, self.composed, self.heads, self.k) < 1:
            raise ConfigError("width, features, composed features, heads and k must all be at least 1")
        if self.composed % self.heads:
            raise ConfigError(f"{self.composed} composed features cannot be shared among {self.heads} heads alike")
        if self.k > min(self.features, self.composed):
            raise ConfigError(
                f"k is {self.k}; it must be at most the number of features, {self.features}, and of composed ones, "
                f"{self.composed}"
            )
        if self.extracted and not self.k <= self.extracted <= self.features:
            raise ConfigError(
                f"{self.extracted} features are to be extracted from a sample; allowed are {self.k}, the k, to "
                f"{self.features}, all features"
            )

    @property
    def tokens(self) -> int:
        """Extracted features that attend to each other."""
        return self.extracted or self.k


class Schedule(NamedTuple):
    """How sparse and how composed an autoencoder is at a step."""

    k: int
    """Features that may be active in a sample: graduated, from four times the last k down to it."""
    combined: int
    """Features that attention combines: the curriculum."""


def schedule(shape: Shape, step: int, steps: int, *, curriculum: bool = True) -> Schedule:
    """What holds at a step: k falls over the first half of the steps, each third of them combines one feature more."""
    part = step / max(1, steps)
    widest = min(4 * shape.k, shape.composed, shape.features)
    k = round(widest + (shape.k - widest) * min(1.0, 2 * part))
    stages = MOST_COMBINED - LEAST_COMBINED + 1
    combined = LEAST_COMBINED + min(stages - 1, int(part * stages)) if curriculum else MOST_COMBINED
    return Schedule(k, combined)


class Coder(nn.Module, ABC):
    """Samples (n, width) to codes of positive features, and back."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """The code (n, code width), at least 0."""

    @abstractmethod
    def decode(self, code: Tensor) -> Tensor:
        """What a code stands for, (n, width)."""

    def parts(self, x: Tensor) -> Tensor:
        """The features that the code is made of; the code itself if it is made of nothing smaller."""
        return self.encode(x)


class Autoencoder(Coder):
    """A coder that is trained step by step."""

    shape: Shape

    @abstractmethod
    def encode(self, x: Tensor, now: Schedule | None = None) -> Tensor:
        """See `Coder.encode`; None is the end of the schedule."""

    @abstractmethod
    def tidy_(self) -> None:
        """Bring the directions that are written back to length 1; after each step."""


class Standard(Autoencoder):
    """z = the k strongest of relu((x - b) E + c);  x' = z D + b, rows of D of length 1."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        directions = _directions(shape.features, shape.width, seed)
        self.encoder = nn.Parameter(directions.T.clone())
        self.threshold = nn.Parameter(torch.zeros(shape.features))
        self.decoder = nn.Parameter(directions)
        self.middle = nn.Parameter(torch.zeros(shape.width))

    def encode(self, x: Tensor, now: Schedule | None = None) -> Tensor:
        """See `Coder.encode`."""
        return strongest(F.relu((x - self.middle) @ self.encoder + self.threshold), now.k if now else self.shape.k)

    def decode(self, code: Tensor) -> Tensor:
        """See `Coder.decode`."""
        return code @ self.decoder + self.middle

    @torch.no_grad()
    def tidy_(self) -> None:
        """See `Autoencoder.tidy_`."""
        self.decoder.copy_(F.normalize(self.decoder, dim=1))


class Compositional(Autoencoder):
    """Features of a sample, composed with each other before the bottleneck.

    f = the few strongest of relu((x - b) E + c)                  the extractor, d_f wide
    a = sum over active i of attention(f_i t_i over f_j t_j)      tokens of one sample; each combines a few
    m = LN(a O)                                                   the composition, d_c wide
    r = f P;  g = sigmoid([r, m] G + h)                           the residual, and how much of m it lets in
    z = the k strongest of relu(r + g m);  x' = z D + b           rows of D of length 1

    A token attends only to active features of its own sample, and of these to the few that it scores highest.
    """

    def __init__(self, shape: Shape, seed: int = 0, *, attends: bool = True, gated: bool = True) -> None:
        """As the equations say.

        Args:
            attends: False lets every feature pass on its own value alone.
            gated: False adds all of the composition.
        """
        super().__init__()
        self.shape, self.attends, self.gated = shape, attends, gated
        directions = _directions(shape.features, shape.width, seed)
        written = _directions(shape.composed, shape.width, seed + 1)
        generator = torch.Generator().manual_seed(seed + 2)

        def drawn(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*size, generator=generator) / size[0] ** 0.5)

        d_c = shape.composed
        self.encoder = nn.Parameter(directions.T.clone())
        self.threshold = nn.Parameter(torch.zeros(shape.features))
        self.tokens = nn.Parameter(torch.randn(shape.features, d_c, generator=generator))
        self.query, self.key, self.value, self.out = (drawn(d_c, d_c) for _ in range(4))
        self.norm = nn.LayerNorm(d_c)
        self.pass_on = nn.Parameter(directions @ written.T)
        self.gate = drawn(2 * d_c, d_c)
        self.gate_threshold = nn.Parameter(torch.zeros(d_c))
        self.decoder = nn.Parameter(written)
        self.middle = nn.Parameter(torch.zeros(shape.width))

    def parts(self, x: Tensor) -> Tensor:
        """The extracted features (n, d_f), few of each sample active."""
        return strongest(F.relu((x - self.middle) @ self.encoder + self.threshold), self.shape.tokens)

    def encode(self, x: Tensor, now: Schedule | None = None) -> Tensor:
        """See `Coder.encode`."""
        k, combined = now or Schedule(self.shape.k, MOST_COMBINED)
        features = self.parts(x)
        values, which = features.topk(self.shape.tokens, dim=-1)
        composed = self.norm(self._composed(values, which, combined) @ self.out)
        kept = features @ self.pass_on
        if self.gated:
            told = torch.cat((kept, composed), dim=-1) @ self.gate + self.gate_threshold
            composed = torch.sigmoid(told) * composed
        return strongest(F.relu(kept + composed), k)

    def decode(self, code: Tensor) -> Tensor:
        """See `Coder.decode`."""
        return code @ self.decoder + self.middle

    @torch.no_grad()
    def tidy_(self) -> None:
        """See `Autoencoder.tidy_`."""
        self.decoder.copy_(F.normalize(self.decoder, dim=1))

    @torch.no_grad()
    def attention(self, x: Tensor, shown: Tensor) -> Tensor:
        """How much each of some features attends to each, (heads, m, m), mean over samples where both are active.

        Args:
            x: (n, width) samples.
            shown: (m,) numbers of extracted features.

        Returns:
            Rows attend to columns; 0 where two are never active together.
        """
        values, which = self.parts(x).topk(self.shape.tokens, dim=-1)
        active = (values > 0).float()
        weights = self._weights(values, which, MOST_COMBINED)
        # (n, k, m): whether the i-th token of a sample is the m-th shown feature.
        place = (which[..., None] == shown).float() * active[..., None]
        total = torch.einsum("nim,nhij,njo->hmo", place, weights, place)
        together = torch.einsum("nim,njo->mo", place, place)
        return total / together.clamp_min(1)

    def _composed(self, values: Tensor, which: Tensor, combined: int) -> Tensor:
        """What the tokens of each sample make of each other, summed, (n, d_c)."""
        # A linear map of a token is the map of its direction times its strength: n·k products less for each map.
        value = self._tokens(self.tokens @ self.value, which, values)
        if self.attends:
            value = self._weights(values, which, combined) @ value
        active = (values > 0).to(value.dtype)
        return (value * active[:, None, :, None]).sum(2).flatten(1)

    def _weights(self, values: Tensor, which: Tensor, combined: int) -> Tensor:
        """Attention (n, heads, k, k) of each token over those of its sample, all but `combined` of them 0."""
        scale = (self.shape.composed // self.shape.heads) ** -0.5
        query = self._tokens(self.tokens @ self.query * scale, which, values)
        key = self._tokens(self.tokens @ self.key, which, values)
        scores = query @ key.mT
        # What is not active comes last: it is chosen only where nothing else is left, and then its value is 0.
        scores = scores + (values <= 0).to(scores.dtype)[:, None, None, :] * -1e9
        return scores.masked_fill(scores < _nth_largest(scores.detach(), combined), float("-inf")).softmax(-1)

    def _tokens(self, table: Tensor, which: Tensor, values: Tensor) -> Tensor:
        """Rows of a table (d_f, d_c) for the tokens, times their strength, (n, heads, k, d_c / heads)."""
        rows = F.embedding(which, table) * values[..., None]
        return rows.unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)


def build_autoencoder(name: str, shape: Shape, seed: int = 0) -> Autoencoder:
    """A new autoencoder by its name: `standard`, `compositional`, or that without a part.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == STANDARD:
        return Standard(shape, seed)
    if name not in (COMPOSITIONAL, *ABLATIONS):
        raise ConfigError(
            f"{name!r:.80} is no autoencoder; there is {', '.join((STANDARD, COMPOSITIONAL, *ABLATIONS))}"
        )
    return Compositional(shape, seed, attends=name != NO_ATTENTION, gated=name != NO_GATE)


def strongest(code: Tensor, k: int) -> Tensor:
    """The code with all but the k largest of each row set to 0."""
    if k >= code.shape[-1]:
        return code
    values, which = code.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(code).scatter(-1, which, values)


def _nth_largest(scores: Tensor, n: int) -> Tensor:
    """The n-th largest different value of each row, (..., 1); -inf of a row with fewer."""
    # A few maxima are sooner found than an order.
    for _ in range(n - 1):
        scores = scores.masked_fill(scores >= scores.amax(-1, keepdim=True), float("-inf"))
    return scores.amax(-1, keepdim=True)


def _directions(count: int, width: int, seed: int) -> Tensor:
    """Random rows of length 1, (count, width)."""
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)
