"""What a GPU does to neurons in one pass is what the plain operations do in several.

Where there is none, Triton's interpreter runs the kernels, in a process of its own: the choice falls when triton is
imported. It cuts bfloat16 off where the hardware rounds.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_fused import assert_near, drawn, phases_of, slopes_of
from torch import Tensor
from zoo import fresh, text

from bdh.models.layer import moments
from bdh.ops import fused, rope
from train.memory import set_recompute

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")

KERNELS = ("fire", "fire_back", "gate", "gate_back")
SHAPES = ((1, 1, 1, 2), (2, 3, 1, 6), (1, 1, 3, 34), (2, 1, 1, 1024), (1, 2, 2, 1058))
"""Heads, streams, bytes, neurons: fewer than a block, as many, more."""

Where = Callable[..., Any]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which triton interprets."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(_kernels_everywhere).result()
        yield pool


def _kernels_everywhere() -> None:
    """Let kernels take the place of the CPU's loops, too."""
    fused._run = fused._gpu().run


@pytest.fixture(
    params=[
        "interpreted",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ]
)
def there(request: pytest.FixtureRequest) -> Where:
    """Call a function with the device that kernels run on, where they do."""
    if request.param == "cuda":
        return lambda function, *arguments: function("cuda", *arguments)
    pool: ProcessPoolExecutor = request.getfixturevalue("interpreter")
    return lambda function, *arguments: pool.submit(function, "cpu", *arguments).result()


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_firing_in_one_pass_is_relu_rotation_and_moments(
    there: Where, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    there(_fires, shape, dtype)


def _fires(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    latent = drawn(shape, dtype, 0).to(device).requires_grad_()
    for batch in {1, shape[1]}:  # phases of every stream, or for all the same
        phases = tuple(phase.to(device) for phase in phases_of(batch, shape[2], shape[3]))
        ours = fused.fire(latent, *phases)
        active = torch.relu(latent)
        theirs = (active, rope.rotate_pairs(active, *phases), moments(active))
        for one, other in zip(ours, theirs, strict=True):
            assert_near(one, other, dtype)
        assert torch.equal(ours[0], theirs[0])
        torch.testing.assert_close(ours[2][..., 2], theirs[2][..., 2])
        slopes = [slopes_of((x, r, m[..., :2]), (latent,))[0] for x, r, m in (ours, theirs)]
        assert_near(slopes[0], slopes[1], dtype)
        if device == "cuda":
            again = fused.fire(latent, *phases)
            assert all(torch.equal(one, other) for one, other in zip(ours, again, strict=True))


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gating_in_one_pass_is_relu_and_product(there: Where, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    there(_gates, shape, dtype)


def _gates(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    latent = drawn(shape, dtype, 0).to(device).requires_grad_()
    active = torch.relu(drawn(shape, dtype, 1)).to(device).requires_grad_()
    gated, part = fused.gate(latent, active)
    expected = torch.relu(latent) * active
    assert_near(gated, expected, dtype)
    torch.testing.assert_close(part, (latent > 0).float().mean(-1, keepdim=True))
    ours, theirs = (slopes_of((one,), (latent, active)) for one in (gated, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other, dtype)
        if device == "cuda" or dtype == torch.float32:
            assert torch.equal(one, other) and torch.equal(gated, expected)


@dtypes
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(there: Where, value: float, dtype: torch.dtype) -> None:
    there(_stays, value, dtype)


def _stays(device: str, value: float, dtype: torch.dtype) -> None:
    latent = torch.ones(1, 1, 1, 8, dtype=dtype)
    latent[..., 3] = value
    latent = latent.to(device)
    active, rotated, told = fused.fire(latent, *(phase.to(device) for phase in phases_of(1, 1, 8)))
    gated, _ = fused.gate(latent, active)
    for one in (active[..., 3], rotated[..., 2:4].sum(), told[..., 0], gated[..., 3]):
        assert not torch.isfinite(one).any()
    assert torch.isfinite(active[..., :3]).all() and torch.isfinite(rotated[..., 4:]).all()


def test_gradients_may_lie_in_memory_as_they_like(there: Where) -> None:
    there(_lies)


def _lies(device: str) -> None:
    latent = drawn((1, 2, 3, 6), torch.float32, 0).to(device).requires_grad_()
    phases = tuple(phase.to(device) for phase in phases_of(2, 3, 6))
    slope = drawn((1, 2, 6, 3), torch.float32, 1).to(device).mT
    found = []
    for one in (slope, slope.contiguous()):
        active, rotated, _ = fused.fire(latent, *phases)
        gated, _ = fused.gate(latent, active)
        found.append(torch.autograd.grad((rotated, gated), (latent,), (one, one))[0])
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("kind", "half", "recompute"),
    [("flat", False, False), ("flat", True, True), ("hierarchical", False, True)],
)
def test_a_model_learns_and_reads_the_same_with_kernels_as_with_plain_operations(
    there: Where, kind: str, half: bool, recompute: bool
) -> None:
    there(_learns, kind, half, recompute)


def _learns(device: str, kind: str, half: bool, recompute: bool) -> None:
    model = fresh(kind).to(device)
    set_recompute(model, recompute)
    ids = text(3).to(device)
    found: list[list[Tensor | None]] = []
    for fuses in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if device == "cpu" or not fuses:
                patch.setattr(fused, "usable", lambda _, fuses=fuses: fuses)
            with torch.autocast(device, torch.bfloat16, enabled=half):
                logits = model(ids).logits
                with torch.no_grad():
                    read = model(ids).logits
            loss = logits.float().square().mean()
            slopes = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        found.append([logits, read, *slopes])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            difference = (ours - theirs).float().norm() / theirs.float().norm().clamp(min=1e-12)
            assert float(difference) <= (0.05 if half else 1e-4)


@dtypes
def test_kernels_that_agree_with_plain_operations_pass_and_leave_no_trace(there: Where, dtype: torch.dtype) -> None:
    there(_passes, dtype)


def _passes(device: str, dtype: torch.dtype) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("a tensor was kept for the way back")

    drawn_before = torch.get_rng_state()
    with torch.autograd.graph.saved_tensors_hooks(refuse, refuse), torch.autocast(device, torch.bfloat16):
        fused._gpu().check(torch.device(device), dtype)
    with torch.inference_mode():
        fused._gpu().check(torch.device(device), dtype)
    assert torch.equal(torch.get_rng_state(), drawn_before)


@pytest.mark.parametrize(
    ("kernel", "written"), [("fire", 4), ("fire", 5), ("fire_back", 6), ("gate", 2), ("gate_back", 3), ("gate_back", 4)]
)
def test_a_kernel_that_writes_other_numbers_is_found_out(there: Where, kernel: str, written: int) -> None:
    there(_is_found_out, kernel, written)


def _is_found_out(device: str, wrong: str, index: int) -> None:
    kernels = fused._gpu()
    right = kernels.run

    def run(kernel: str, *tensors: Tensor) -> None:
        right(kernel, *tensors)
        if kernel == wrong:
            tensors[index].view(-1)[-1] += 0.1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "run", run)
        with pytest.raises(RuntimeError, match=f"kernel {wrong} "):
            kernels.check(torch.device(device), torch.float32)


@pytest.fixture
def latent() -> Iterator[Any]:
    """What `usable` looks at, as if there were a GPU."""
    fused._tried.cache_clear()
    yield SimpleNamespace(dtype=torch.float32, device=torch.device("cuda", 0), shape=(1, 1, 2, 4))
    fused._tried.cache_clear()


def _kernels(error: Exception | None) -> tuple[Any, list[torch.dtype]]:
    """Kernels that work or do not, and what they were tried with."""
    tried: list[torch.dtype] = []

    def check(_: torch.device, dtype: torch.dtype) -> None:
        tried.append(dtype)
        if error:
            raise error

    return (lambda: SimpleNamespace(check=check)), tried


def test_where_kernels_fail_plain_operations_do_and_it_is_said_once(
    latent: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels, tried = _kernels(RuntimeError("no such instruction"))
    monkeypatch.setattr(fused, "_gpu", kernels)
    with caplog.at_level(logging.WARNING):
        assert not any(fused.usable(latent) for _ in range(3))
    assert len(tried) == 1
    (said,) = caplog.messages
    assert "cuda:0" in said and "no such instruction" in said


def test_kernels_are_tried_once_for_each_type_and_not_used_where_they_do_not_help(
    latent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, tried = _kernels(None)
    monkeypatch.setattr(fused, "_gpu", kernels)
    assert fused.usable(latent) and fused.usable(latent)
    with torch.no_grad():
        assert fused.usable(latent)
        latent.shape = (1, 1, 1, 4)
        assert not fused.usable(latent)  # a single byte
    assert fused.usable(latent)
    latent.dtype = torch.float16
    assert not fused.usable(latent)
    latent.dtype = torch.bfloat16
    assert fused.usable(latent)
    assert tried == [torch.float32, torch.bfloat16]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fused.usable(latent)


def test_kernels_can_be_turned_off(latent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, tried = _kernels(None)
    monkeypatch.setattr(fused, "_gpu", kernels)
    monkeypatch.setenv("BDH_COMPILED", "off")
    assert not fused.usable(latent) and not tried


def test_without_a_gpu_nothing_imports_the_kernels() -> None:
    script = """
import sys, torch
from bdh.config import FlatConfig
from bdh.models import build
model = build(FlatConfig(n_layer=1, n_embd=8, n_head=2, mlp_internal_dim_multiplier=4))
model(torch.zeros(1, 5, dtype=torch.int64)).logits.sum().backward()
assert "bdh.ops.fused" in sys.modules and not {"triton", "bdh.ops.fused_gpu"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """A process in which triton compiles, and finds nothing compiled."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TRITON_INTERPRET", raising=False)
            patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
            pool.submit(fused._gpu).exception()  # a module cannot be sent back; it is there all the same
        yield pool


@dtypes
@pytest.mark.parametrize(("capability", "aligned"), [(80, False), (90, True)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_compiles_for_a_gpu_that_is_not_here(
    compiler: ProcessPoolExecutor, kernel: str, capability: int, aligned: bool, dtype: torch.dtype
) -> None:
    text, binary_bytes = compiler.submit(_compiled, kernel, capability, aligned, dtype).result()
    assert f".visible .entry {kernel}(" in text and f".target sm_{capability}" in text
    assert binary_bytes > 1000
    assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", text, re.MULTILINE)  # sums in an order that changes


def _compiled(kernel: str, capability: int, aligned: bool, dtype: torch.dtype) -> tuple[str, int]:
    """Its assembler text and the size of what the GPU would run; aligned is for rows of a multiple of 16 neurons."""
    from triton import compile  # noqa: PLC0415 - only where it may be imported
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    types = {"neurons": "i32", "phases": "i32", "block": "constexpr"}
    types |= dict.fromkeys(("cos", "sin", "moments", "d_moments", "parts"), "*fp32")
    numbers = "*fp32" if dtype == torch.float32 else "*bf16"
    made_of = getattr(fused._gpu(), kernel)
    signature = {name: types.get(name, numbers) for name in made_of.arg_names}
    multiples = [i for i, name in enumerate(signature) if aligned and name not in ("phases", "block")]
    hints = {(index,): [["tt.divisibility", 16]] for index in multiples}
    source = ASTSource(made_of, signature=signature, constexprs={"block": 512}, attrs=hints)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    return made.asm["ptx"], len(made.asm["cubin"])
