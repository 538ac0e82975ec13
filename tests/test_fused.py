"""What a CPU does to neurons in one pass is what the plain operations do in several."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from zoo import fresh

from bdh.models.layer import moments
from bdh.models.observe import observing
from bdh.ops import fused, rope

_ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7}


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def phases_of(batch: int, length: int, neurons: int) -> tuple[Tensor, Tensor]:
    return rope.cos_sin(torch.arange(batch) * 1000, length, rope.increments(rope.frequencies(neurons)))


def slopes_of(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of a sum in which every output has its own weights, all of the outputs' type."""
    weights = [drawn(tuple(one.shape), one.dtype, seed) for seed, one in enumerate(outputs)]
    return torch.autograd.grad(outputs, inputs, weights)


def assert_near(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == theirs.dtype
    scale = max(1.0, float(theirs.detach().abs().max()))
    assert float((ours.detach().float() - theirs.detach().float()).abs().max()) <= 4 * scale * _ROUNDING[dtype]


_SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40).map(lambda n: 2 * n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(shape=_SHAPES, seed=st.integers(0, 99))
def test_firing_in_one_pass_is_relu_rotation_and_moments(
    dtype: torch.dtype, shape: tuple[int, int, int, int], seed: int
) -> None:
    latent = drawn(shape, dtype, seed).requires_grad_()
    cos, sin = phases_of(*shape[1:])
    ours = fused.fire(latent, cos, sin)
    active = torch.relu(latent)
    theirs = (active, rope.rotate_pairs(active, cos, sin), moments(active))
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other, dtype)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[2][..., 2], theirs[2][..., 2])
    slopes = [slopes_of((x, r, m[..., :2]), (latent,))[0] for x, r, m in (ours, theirs)]
    assert_near(slopes[0], slopes[1], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(shape=_SHAPES, seed=st.integers(0, 99))
def test_gating_in_one_pass_is_relu_and_product(
    dtype: torch.dtype, shape: tuple[int, int, int, int], seed: int
) -> None:
    latent = drawn(shape, dtype, seed).requires_grad_()
    active = torch.relu(drawn(shape, dtype, seed + 1)).requires_grad_()
    gated, part = fused.gate(latent, active)
    expected = torch.relu(latent) * active
    assert torch.equal(gated, expected)
    assert torch.allclose(part, (latent > 0).float().mean(-1, keepdim=True))
    for ours, theirs in zip(
        slopes_of((gated,), (latent, active)), slopes_of((expected,), (latent, active)), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_finite_stays_so(value: float, dtype: torch.dtype) -> None:
    latent = torch.ones(1, 1, 1, 8, dtype=dtype)
    latent[..., 3] = value
    active, rotated, told = fused.fire(latent, *phases_of(1, 1, 8))
    gated, _ = fused.gate(latent, active)
    for one in (active[..., 3], rotated[..., 2:4].sum(), told[..., 0], gated[..., 3]):
        assert not torch.isfinite(one).any()


def test_many_threads_write_what_one_writes() -> None:
    latent, phases = drawn((3, 2, 37, 1024), torch.float32, 0), phases_of(2, 37, 1024)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append((*fused.fire(latent, *phases), *fused.gate(latent, latent)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class _Looker:
    """Sees what can be seen, and that which is shown only to those who ask."""

    names = frozenset({"x_sparse", "x_moments", "y_sparse", "y_active", "residual"})

    def __init__(self, told: dict[str, Tensor]) -> None:
        self.told = told

    def __call__(self, name: str, activation: Tensor) -> None:
        self.told[name] = activation


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_a_model_learns_the_same_from_fused_and_plain_passes(
    kind: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh(kind)
    ids = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
    found: list[list[Tensor]] = []
    seen: list[dict[str, Tensor]] = []
    for fuses in (True, False):
        monkeypatch.setattr(fused, "usable", lambda _, fuses=fuses: fuses)
        told: dict[str, Tensor] = {}
        looker = _Looker(told)
        with observing(looker), torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(ids).logits
        loss = logits.float().square().mean()
        found.append([logits, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])
        seen.append(told)
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            difference = (ours - theirs).float().norm() / theirs.float().norm().clamp(min=1e-12)
            assert float(difference) <= (0.05 if half else 1e-4)
    assert seen[0].keys() == seen[1].keys() >= {"x_sparse", "x_moments", "y_sparse", "y_active"}
    for name in seen[0]:
        assert_near(seen[0][name], seen[1][name], torch.bfloat16 if half else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_types_that_the_passes_do_not_take_are_heard_by_plain_operations(dtype: torch.dtype) -> None:
    ids = torch.randint(0, 256, (1, 8), generator=torch.Generator().manual_seed(0))
    model = fresh("flat").to(dtype)
    logits = model(ids).logits
    assert logits.requires_grad and torch.isfinite(logits).all()
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), fresh("flat")(ids).logits, atol=0.3, rtol=0.05)
