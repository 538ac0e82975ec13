"""What autoencoders are held against: principal components, and a factorisation without negative numbers."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bdh.errors import ConfigError

from .autoencoders import Coder
from .training import Samples

PCA, NMF = "PCA", "NMF"
_FITTED_ROWS = 16_384
"""Samples that NMF learns from at most: more cost minutes and change little."""
_CODING_ROUNDS = 60


def check_installed() -> None:
    """Refuse to begin what would end without scikit-learn.

    Raises:
        ConfigError: says what to install.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("PCA and NMF need scikit-learn, which is not installed; pip install scikit-learn")


class Principal(Coder):
    """PCA: the k directions of most variance; each is two features, one for either end."""

    components: Tensor

    def __init__(self, components: Tensor) -> None:
        super().__init__()
        self.register_buffer("components", components)

    def encode(self, x: Tensor) -> Tensor:
        """See `Coder.encode`."""
        scores = x @ self.components.T
        return torch.cat((scores.relu(), (-scores).relu()), dim=-1)

    def decode(self, code: Tensor) -> Tensor:
        """See `Coder.decode`."""
        ends = code.unflatten(-1, (2, -1))
        return (ends[..., 0, :] - ends[..., 1, :]) @ self.components


class Nonnegative(Coder):
    """NMF of what is above and what is below the mean, side by side, so that nothing is negative."""

    components: Tensor

    def __init__(self, components: Tensor) -> None:
        super().__init__()
        self.register_buffer("components", components)

    def encode(self, x: Tensor) -> Tensor:
        """See `Coder.encode`: Lee and Seung's multiplicative steps with the components held fast."""
        wanted = torch.cat((x.relu(), (-x).relu()), dim=-1) @ self.components.T
        products = self.components @ self.components.T
        code = torch.full_like(wanted, float(wanted.mean().clamp_min(1e-6) / products.sum(0).mean().clamp_min(1e-6)))
        for _ in range(_CODING_ROUNDS):
            code = code * wanted / (code @ products + 1e-9)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """See `Coder.decode`."""
        above, below = (code @ self.components).chunk(2, dim=-1)
        return above - below


_KINDS: Mapping[str, type[Principal] | type[Nonnegative]] = {PCA: Principal, NMF: Nonnegative}


def fitted(name: str, count: int, samples: Samples, seed: int, path: Path) -> Coder:
    """PCA or NMF with so many components; what is saved at the path is not fitted again."""
    if not path.is_file():
        components = _fit(name, count, samples, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".part")
        save_file({"components": torch.from_numpy(np.ascontiguousarray(components, np.float32))}, written)
        os.replace(written, path)
    return _KINDS[name](load_file(path)["components"])


def _fit(name: str, count: int, samples: Samples, seed: int) -> Samples:
    # Only this command needs it, and it takes seconds to import.
    from sklearn.decomposition import PCA as Components  # noqa: PLC0415
    from sklearn.decomposition import MiniBatchNMF  # noqa: PLC0415

    if name == PCA:
        return Components(min(count, *samples.shape), random_state=seed).fit(samples).components_
    some = samples[np.random.default_rng(seed).permutation(len(samples))[:_FITTED_ROWS]]
    with warnings.catch_warnings():
        # That it could have gone on is said by its explained variance.
        warnings.simplefilter("ignore")
        model = MiniBatchNMF(count, batch_size=1024, max_iter=10, random_state=seed, init="nndsvda")
        return model.fit(np.concatenate([np.maximum(some, 0), np.maximum(-some, 0)], axis=1)).components_
