"""A byte heard by a GPU's kernels is the byte heard by plain operations; `gpu_step_cases` says so in detail."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import fresh, louder

import bdh
from bdh import state as states
from bdh.config import FlatConfig
from bdh.models import Flat, build
from bdh.ops import gpu_step
from bdh.ops.debt import Debt

_CASES = Path(__file__).with_name("gpu_step_cases.py")
triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton for this system")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _run_cases(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(_CASES)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:]


@triton
def test_every_case_holds_where_the_kernels_are_interpreted() -> None:
    _run_cases({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})


class _Driver:
    """A GPU that is not here."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget  # noqa: PLC0415 - where there is Triton

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # so that nothing compiled for another is taken

    def get_current_stream(self, _: int) -> int:
        return 0


class _Compiling:
    """The kernels, compiled as they would be launched."""

    interpreted = False

    def __init__(self) -> None:
        self.made: dict[str, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        from bdh.ops import gpu_kernels  # noqa: PLC0415 - where there is Triton

        return _Launcher(
            lambda *a, **k: self.made.setdefault(name, []).append(getattr(gpu_kernels, name).warmup(*a, **k))
        )


class _Launcher:
    def __init__(self, launch: Any) -> None:
        self.launch = launch

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.launch(*arguments, grid=grid, **options)


@triton
@pytest.mark.parametrize(("capability", "width", "heads", "damped"), [(80, 100, 1, False), (90, 256, 4, True)])
@torch.no_grad()
def test_every_kernel_compiles_as_it_is_launched_once_for_any_batch_and_keeps_the_order_and_precision_of_sums(
    capability: int, width: int, heads: int, damped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import driver  # noqa: PLC0415 - where there is Triton

    neurons = 1024
    weights = gpu_step.Weights(
        torch.zeros(256, width), torch.zeros(heads, width, neurons), torch.zeros(heads, width, neurons),
        torch.zeros(heads * neurons, width), torch.zeros(width, 256), torch.zeros(neurons // 2, dtype=torch.int64),
        torch.ones(heads) if damped else None,
    )  # fmt: skip
    engine = gpu_step.Engine(weights, graphs=False)
    engine.kernels = compiling = _Compiling()
    monkeypatch.setattr(driver, "_active", _Driver(capability))
    for streams in (1, 2, 64):
        engine._launch(weights, engine._bucket(streams, weights, 2))
    assert sorted(compiling.made) == ["add", "embed", "fire", "gate", "read_out", "recall", "refresh"]
    for kernels in compiling.made.values():
        assert len({kernel.hash for kernel in kernels}) == 1
        ptx = kernels[0].asm["ptx"]
        assert len(kernels[0].asm["cubin"]) > 1000
        assert not [
            inexact for inexact in ("atom.", " red.", "tf32", "mma.", "sin.approx", "cos.approx") if inexact in ptx
        ]
        assert kernels[0].metadata.shared <= 48 << 10
    assert "ld.global.v4" in compiling.made["recall"][0].asm["ptx"]


def test_kernels_that_fail_or_are_wrong_are_done_without_after_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("BDH_COMPILED", raising=False)

    def fails(*_: Any, **__: Any) -> float:
        raise RuntimeError("no such instruction")

    model = fresh("flat")
    for error, said in ((lambda *_, **__: 0.5, "0.5 from what they should be"), (fails, "no such instruction")):
        caplog.clear()
        gpu_step._tried.cache_clear()
        monkeypatch.setattr(gpu_step, "_DEVICES", ("cpu",))
        monkeypatch.setattr(gpu_step, "_error", error)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert model.step_streams_([65], [model.empty_state(1)], [Debt()]) is None
        assert [said in record.message for record in caplog.records] == [True]
    stream = bdh.Stream(model)
    stream.feed(b"a")  # one byte, by plain operations
    assert stream.prediction().shape == (256,)
    gpu_step._tried.cache_clear()


def test_graphs_that_fail_leave_launches(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("BDH_COMPILED", raising=False)
    monkeypatch.setattr(gpu_step, "_error", lambda *_, graphs: 1.0 if graphs else 0.0)
    gpu_step._tried.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert gpu_step.usable(torch.device("cpu"), 16, 32, 256, False) == "launches"
    assert "without CUDA graphs" in caplog.text
    gpu_step._tried.cache_clear()


def test_compiled_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_step, "_tried", lambda *_: "graph")
    monkeypatch.setenv("BDH_COMPILED", "")
    assert gpu_step.usable(torch.device("cpu"), 16, 32, 256, False) == "graph"
    monkeypatch.setenv("BDH_COMPILED", "off")
    assert gpu_step.usable(torch.device("cpu"), 16, 32, 256, False) is None


def test_other_kinds_and_a_cpu_have_no_way_sooner_for_several_streams() -> None:
    for name in ("flat", "hebbian", "mixture"):
        model = fresh(name)
        assert model.step_streams_([1], [model.empty_state(1)], [Debt()]) is None


def test_triton_is_not_imported_where_nobody_steps_on_a_gpu() -> None:
    code = (
        "import sys, bdh\n"
        "stream = bdh.Stream(bdh.build(bdh.FlatConfig(n_layer=1, n_embd=8, n_head=1, mlp_internal_dim_multiplier=4)))\n"
        "stream.feed(b'ab'); stream.feed(b'c')\n"
        "assert 'bdh.ops.gpu_step' in sys.modules and 'bdh.ops.gpu_kernels' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


_FULL = FlatConfig(n_layer=3, n_embd=192, n_head=4, mlp_internal_dim_multiplier=22, dropout=0.0)
_TEXT = b"It was a bright cold day in April, and the clocks were striking thirteen. "


def _on_cuda(decay: tuple[float, ...] = ()) -> Flat:
    config = FlatConfig(**{**vars(_FULL), "decay": decay})
    return louder(build(config, seed=0)).eval().to("cuda")  # type: ignore[return-value]


def _heard(model: Flat, starts: Sequence[int], count: int) -> tuple[Tensor, list[Any]]:
    """Logits (B, count, V) and states of streams that hear the text from different places on, stepped together."""
    several, debts = [model.empty_state(1) for _ in starts], [Debt() for _ in starts]
    said = []
    for t in range(count):
        logits = model.step_streams_([_TEXT[(start + t) % len(_TEXT)] for start in starts], several, debts)
        assert logits is not None
        said.append(logits)
    for debt in debts:
        debt.settle()
    return torch.stack(said, 1), several


@pytest.mark.gpu
@cuda
def test_every_case_holds_on_this_gpu() -> None:
    _run_cases({})


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("decay", [(), (0.9, 0.5, 0.99, 2.0**-16)], ids=["undamped", "damped"])
@torch.no_grad()
def test_on_this_gpu_streams_hear_and_remember_what_the_cpu_does(decay: tuple[float, ...]) -> None:
    model = _on_cuda(decay)
    starts = (0, 5, 9)
    logits, heard = _heard(model, starts, 40)
    ids = torch.tensor([[_TEXT[(start + t) % len(_TEXT)] for t in range(40)] for start in starts])
    whole = model.to("cpu").double()(ids)
    scale = float(whole.logits.abs().max())
    torch.testing.assert_close(logits.cpu().double() / scale, whole.logits / scale, atol=1e-4, rtol=0)
    for index, one in enumerate(heard):
        for ours, exact in zip(one.memory, whole.state.memory, strict=True):
            size = max(1.0, float(exact.abs().max()))
            torch.testing.assert_close(ours[0].cpu() / size, exact[index].float() / size, atol=1e-4, rtol=0)


@pytest.mark.gpu
@cuda
@torch.no_grad()
def test_on_this_gpu_a_stream_hears_the_same_bits_in_any_company_in_any_run_recorded_or_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _on_cuda((0.9, 0.5, 0.99, 2.0**-16))
    known = _heard(model, (3,), 12)
    monkeypatch.setattr(gpu_step, "_tried", lambda *_: "launches")
    for starts in ((3,), (3, 5, 8), (3, *range(40, 70)), (3, *range(300))):
        for recorded in (True, False):
            gpu_step._engines.clear()
            if recorded:
                monkeypatch.setattr(gpu_step, "_tried", lambda *_: "graph")
            logits, heard = _heard(model, starts, 12)
            assert torch.equal(logits[0], known[0][0])
            assert all(map(torch.equal, heard[0].memory, known[1][0].memory))
            monkeypatch.setattr(gpu_step, "_tried", lambda *_: "launches")


@pytest.mark.gpu
@cuda
@torch.no_grad()
def test_on_this_gpu_the_kernels_are_used_and_a_byte_at_a_million_takes_no_longer_than_the_first() -> None:
    model = _on_cuda()
    assert gpu_step.usable(model.device, 192, 1056, 256, False) == "graph"
    times: dict[int, list[float]] = {0: [], 1_000_000: []}
    for _ in range(5):
        for start, taken in times.items():
            state, debt = model.empty_state(1), Debt()
            state.position.fill_(start)
            model.step_streams_([1], [state], [debt])
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for byte in _TEXT:
                model.step_streams_([byte], [state], [debt])
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - begun)
            assert int(state.position) == start + len(_TEXT) + 1
    assert min(times[1_000_000]) < 1.5 * min(times[0])


@pytest.mark.gpu
@cuda
def test_on_this_gpu_a_stream_goes_on_from_what_was_saved_restored_and_heard_at_once(tmp_path: Path) -> None:
    model = _on_cuda((0.9, 0.5, 0.99, 0.7))
    stream, whole = bdh.Stream(model), bdh.Stream(model)
    for index in range(9):
        stream.feed(_TEXT[index : index + 1])
    stream.save(tmp_path / "memory.safetensors")
    stream.clear()
    stream.load(tmp_path / "memory.safetensors")
    stream.feed(_TEXT[9:10])
    stream.feed(_TEXT[10:30])
    stream.feed(_TEXT[30:31])
    whole.feed(_TEXT[:31])
    for ours, theirs in zip(stream.snapshot().state.memory, whole.snapshot().state.memory, strict=True):
        size = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours / size, theirs / size, atol=1e-4, rtol=0)
    assert states.named_tensors(stream.snapshot().state)["position"].tolist() == [31]
