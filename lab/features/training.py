"""Training an autoencoder: a run that is killed goes on where it was saved last, as if it had not been."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from bdh.errors import ConfigError

from .autoencoders import NO_CURRICULUM, Autoencoder, Shape, build_autoencoder, schedule

Samples: TypeAlias = NDArray[np.float32]
"""(n, width), in memory or mapped from disk."""
Progress: TypeAlias = Callable[[int, float], None]
"""Called with steps done and the loss, often."""

_SAVE_S = 15.0
_WEIGHT, _MEAN, _SQUARE = "weight.", "mean.", "square."


@dataclass(frozen=True)
class Training:
    """How an autoencoder is trained."""

    steps: int = 800
    batch: int = 512
    learning_rate: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.seed < 0:
            raise ConfigError("steps and batch must be at least 1, the seed at least 0")
        if not 0 < self.learning_rate <= 1:
            raise ConfigError(f"the learning rate is {self.learning_rate!r:.40}; it must be above 0 and at most 1")


def trained(
    name: str, shape: Shape, samples: Samples, how: Training, path: Path, progress: Progress | None = None
) -> Autoencoder:
    """The autoencoder of that name after its last step; what is saved at the path is not trained again.

    Args:
        samples: centred, with a mean square of about 1.
        path: of a .safetensors file, which also keeps what is needed to go on.
    """
    coder = build_autoencoder(name, shape, how.seed)
    optimizer = torch.optim.Adam(coder.parameters(), lr=how.learning_rate)
    step = _resume(coder, optimizer, path)
    saved_s = time.monotonic()
    while step < how.steps:
        # What is drawn depends on the step alone, so a run that goes on draws what it would have drawn.
        drawn = np.random.default_rng((how.seed, step)).integers(len(samples), size=how.batch)
        x = torch.from_numpy(samples[drawn])
        now = schedule(shape, step, how.steps, curriculum=name != NO_CURRICULUM)
        loss = (coder.decode(coder.encode(x, now)) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        coder.tidy_()
        step += 1
        if step == how.steps or time.monotonic() - saved_s > _SAVE_S:
            _save(coder, optimizer, step, path)
            saved_s = time.monotonic()
        if progress is not None:
            progress(step, loss.item())
    return coder.eval()


def _save(coder: Autoencoder, optimizer: torch.optim.Adam, step: int, path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name, weight in coder.named_parameters():
        moments = optimizer.state[weight]
        tensors[_WEIGHT + name] = weight.detach()
        # A weight that takes no part in the prediction has no gradient, and no moments.
        if moments:
            tensors[_MEAN + name], tensors[_SQUARE + name] = moments["exp_avg"], moments["exp_avg_sq"]
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()} | {"step": torch.tensor(step)}, written)
    os.replace(written, path)


def _resume(coder: Autoencoder, optimizer: torch.optim.Adam, path: Path) -> int:
    if not path.is_file():
        return 0
    tensors = load_file(path)
    step = int(tensors["step"])
    coder.load_state_dict({name: tensors[_WEIGHT + name] for name, _ in coder.named_parameters()})
    for name, weight in coder.named_parameters():
        if _MEAN + name in tensors:
            optimizer.state[weight] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[_MEAN + name],
                "exp_avg_sq": tensors[_SQUARE + name],
            }
    return step
