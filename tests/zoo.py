"""Small random models of every kind and method, and what tests over all of them share."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from bdh import state as states
from bdh.config import (
    ComposedConfig,
    Config,
    FlatConfig,
    HebbianConfig,
    HierarchicalConfig,
    TransformerConfig,
)
from bdh.models import Model, build

FLAT = FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
FLAT_DAMPED = FlatConfig(n_layer=2, n_embd=12, n_head=3, mlp_internal_dim_multiplier=4, decay=(0.8, 0.97, 1.0))
HIERARCHICAL = HierarchicalConfig(
    patch_size=4,
    max_seq_len=32,
    global_n_layer=2,
    global_n_embd=16,
    global_n_head=2,
    global_mlp_mult=4,
    local_n_layer=2,
    local_n_embd=12,
    local_n_head=2,
    local_mlp_mult=4,
)
HIERARCHICAL_DAMPED = HierarchicalConfig(
    patch_size=3,
    max_seq_len=24,
    global_n_layer=1,
    global_n_embd=12,
    global_n_head=2,
    global_mlp_mult=4,
    local_n_layer=1,
    local_n_embd=8,
    local_n_head=1,
    local_mlp_mult=4,
    global_decay=(0.7, 0.95),
)
HIERARCHICAL_TRANSFORMER = HierarchicalConfig(
    patch_size=4,
    max_seq_len=24,
    global_n_layer=2,
    global_n_embd=16,
    global_n_head=2,
    local_n_layer=2,
    local_n_embd=8,
    local_n_head=2,
    use_bdh_attention=False,
)
HEBBIAN = HebbianConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, dropout=0.1)
HEBBIAN_DAMPED = HebbianConfig(n_layer=1, n_head=2, n_embd=12, block_size=32, decay=(0.9, 0.99))
TRANSFORMER = TransformerConfig(n_layer=2, n_head=2, n_embd=16, block_size=20, dropout=0.1)

ZOO: dict[str, Config] = {
    "flat": FLAT,
    "flat-damped": FLAT_DAMPED,
    "hierarchical": HIERARCHICAL,
    "hierarchical-damped": HIERARCHICAL_DAMPED,
    "hierarchical-transformer": HIERARCHICAL_TRANSFORMER,
    "hebbian": HEBBIAN,
    "hebbian-damped": HEBBIAN_DAMPED,
    "transformer": TRANSFORMER,
    "average": ComposedConfig(method="average", members=(FLAT, HEBBIAN, TRANSFORMER)),
    "mixture": ComposedConfig(method="mixture", members=(FLAT, HIERARCHICAL)),
    "mixture-shared": ComposedConfig(method="mixture", members=(FLAT_DAMPED, HEBBIAN, TRANSFORMER), share_rate=0.01),
    "deep": ComposedConfig(method="deep", members=(FLAT, HIERARCHICAL_DAMPED, TRANSFORMER), n_embd=10),
}
"""One small configuration of every kind, method and option that changes what a model remembers."""

MEMBERS = tuple(name for name in ZOO if ZOO[name].kind != "composed")

ABSOLUTE, RELATIVE = 2e-5, 1e-5
"""How near float32 sums taken in another order are: logits and sums of the zoo are of the order of 1."""


@cache
def model(name: str) -> Model[Any]:
    """The named model, in evaluation mode; shared between tests, so never changed by one."""
    return fresh(name)


def fresh(name: str, seed: int = 0) -> Model[Any]:
    """A new copy of the named model, for a test that changes it."""
    return louder(build(ZOO[name], seed=seed)).eval()


def louder(quiet: Model[Any]) -> Model[Any]:
    """The model with weights far enough from nothing that each of them, and all that is remembered, matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in quiet.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.mul_(8.0)
            else:
                parameter.add_(0.2 * noise)
    return quiet


def text(length: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Random bytes (B, T)."""
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Equal but for the order in which float32 sums were taken."""
    torch.testing.assert_close(actual, expected, atol=ABSOLUTE * scale, rtol=RELATIVE * scale)


def assert_same_state(actual: Any, expected: Any, scale: float = 1.0) -> None:
    """Same tensors by name; whole numbers equal, sums equal but for the order they were taken in."""
    left, right = states.named_tensors(actual), states.named_tensors(expected)
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        if tensor.is_floating_point():
            assert_close(left[name], tensor, scale)
        else:
            assert torch.equal(left[name], tensor), name


def assert_equal_state(actual: Any, expected: Any) -> None:
    """Bit for bit the same."""
    left, right = states.named_tensors(actual), states.named_tensors(expected)
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        assert left[name].dtype == tensor.dtype and torch.equal(left[name], tensor), name
