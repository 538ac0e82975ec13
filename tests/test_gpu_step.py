"""A byte heard by a GPU's kernels is the byte heard by plain operations; `gpu_step_cases` says so in detail."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
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


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are tried anew, and warnings said again."""
    monkeypatch.delenv("BDH_COMPILED", raising=False)
    monkeypatch.setattr(gpu_step, "_ways", {})
    monkeypatch.setattr(gpu_step, "_warned", set())


def _run_cases(environment: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-o",
        "addopts=",
        str(_CASES),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:]


@triton
def test_every_case_holds_where_the_kernels_are_interpreted() -> None:
    _run_cases({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})


def _active() -> str:
    """Where Triton keeps the driver it uses: setting it back through Triton's own function would look for a GPU."""
    from triton.runtime import driver  # noqa: PLC0415 - where there is Triton

    return "_active" if hasattr(driver, "_active") else "active"


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


def _weights(width: int, heads: int, damped: bool, neurons: int = 1024) -> gpu_step.Weights:
    return gpu_step.Weights(
        torch.zeros(256, width), torch.zeros(heads, width, neurons), torch.zeros(heads, width, neurons),
        torch.zeros(heads * neurons, width), torch.zeros(width, 256), torch.zeros(neurons // 2, dtype=torch.int64),
        torch.ones(heads) if damped else None,
    )  # fmt: skip


@triton
@pytest.mark.parametrize(("capability", "width", "heads", "damped"), [(80, 100, 1, False), (90, 256, 4, True)])
@torch.no_grad()
def test_every_kernel_compiles_as_it_is_launched_once_for_any_batch_and_keeps_the_order_and_precision_of_sums(
    capability: int, width: int, heads: int, damped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import driver  # noqa: PLC0415 - where there is Triton

    weights = _weights(width, heads, damped)
    engine = gpu_step.Engine(weights, graphs=False)
    engine.kernels = compiling = _Compiling()
    monkeypatch.setattr(driver, _active(), _Driver(capability))
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
    for name in ("refresh", "recall", "add"):  # which write over what they read
        assert "barrier" in compiling.made[name][0].asm["ttir"]
    assert "ld.global.v4" in compiling.made["recall"][0].asm["ptx"]


@triton
@torch.no_grad()
def test_the_kernels_that_were_tried_are_those_of_any_number_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver  # noqa: PLC0415 - where there is Triton

    monkeypatch.setattr(driver, _active(), _Driver(80))
    compiling = _Compiling()
    for heads in (1, 2, 16, 40):
        weights = _weights(16, heads, True, 32)
        engine = gpu_step.Engine(weights, graphs=False)
        engine.kernels = compiling
        engine._launch(weights, engine._bucket(1, weights, 1))
    for kernels in compiling.made.values():
        assert len({kernel.hash for kernel in kernels}) == 1


class _Recorder:
    """The part of torch.cuda that records, which fails where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> None:
        self.fails, self.local, self.waits = fails, threading.local(), []
        self.inside, self.most = 0, 0
        for name in ("current_stream", "set_stream", "synchronize", "CUDAGraph", "Stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def _reach(self, what: str) -> None:
        if what == self.fails:
            raise RuntimeError(f"{what} failed")

    def current_stream(self, _: Any = None) -> Any:
        return getattr(self.local, "stream", None) or SimpleNamespace(wait_stream=self.waits.append)

    def set_stream(self, stream: Any) -> None:
        self.local.stream = stream

    def synchronize(self, _: Any) -> None:
        self._reach("synchronize")
        assert not self.inside

    def CUDAGraph(self) -> Any:
        return object()

    def Stream(self, _: Any) -> Any:
        return object()

    @contextmanager
    def graph(self, graph: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        """As torch's, on the other stream for good if it cannot begin or end."""
        assert capture_error_mode == "thread_local"
        before, self.local.stream = self.local.stream, stream
        self._reach("begin")
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.02)
        try:
            yield
        finally:
            self.inside -= 1
            self._reach("end")
            self.local.stream = before


@triton
@pytest.mark.parametrize("forgiving", [True, False])
@pytest.mark.parametrize("fails", ["synchronize", "begin", "launch", "end", ""])
def test_after_a_recording_that_fails_a_thread_is_on_its_own_stream(
    fails: str, forgiving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = _weights(16, 1, False, 32)
    engine = gpu_step.Engine(weights, graphs=True, forgiving=forgiving)
    bucket = engine._bucket(1, weights, 1)
    recorder = _Recorder(monkeypatch, fails)
    monkeypatch.setattr(engine, "_launch", lambda *_: recorder._reach("launch"))
    own = SimpleNamespace(wait_stream=recorder.waits.append)
    recorder.set_stream(own)
    with nullcontext() if forgiving or not fails else pytest.raises(RuntimeError, match=f"{fails} failed"):
        engine._record(weights, bucket)
    assert recorder.current_stream() is own
    assert len(recorder.waits) == (fails in ("begin", "launch", "end"))
    assert (bucket.graph is None) == bool(fails)
    assert engine.graphs == (not fails or not forgiving)


@triton
def test_engines_record_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = _weights(16, 1, False, 32)
    engines = [gpu_step.Engine(weights, graphs=True, forgiving=False) for _ in range(4)]
    buckets = [engine._bucket(1, weights, 1) for engine in engines]
    recorder = _Recorder(monkeypatch)

    def record(engine: gpu_step.Engine, bucket: Any) -> None:
        recorder.set_stream(SimpleNamespace())
        engine._launch = lambda *_: None  # type: ignore[method-assign]
        engine._record(weights, bucket)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(record, engines, buckets))
    assert recorder.most == 1
    assert all(bucket.graph is not None for bucket in buckets)


@triton
def test_what_is_kept_for_a_model_goes_when_it_leaves_the_device_or_ends() -> None:
    for ends in (False, True):
        model = fresh("flat")
        shape = model.encoder.shape
        weights = _weights(shape[1], shape[0], False, shape[2])._replace(encoder_v=model.encoder_v)
        engine = weakref.ref(gpu_step._engine(weights, graphs=False))
        assert engine() is gpu_step._engine(weights, graphs=False)
        model.to("cpu")
        assert engine() is not None
        del weights
        if ends:
            del model
            gc.collect()
        else:
            model.to("meta")
        assert engine() is None


def test_kernels_that_fail_or_are_wrong_are_done_without_after_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> float:
        raise RuntimeError("no such instruction")

    model = fresh("flat")
    for error, said in ((lambda *_, **__: 0.5, "0.5 from what they should be"), (fails, "no such instruction")):
        caplog.clear()
        gpu_step._ways.clear()
        monkeypatch.setattr(gpu_step, "_DEVICES", ("cpu",))
        monkeypatch.setattr(gpu_step, "_error", error)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert model.step_streams_([65], [model.empty_state(1)], [Debt()]) is None
        assert [said in record.message for record in caplog.records] == [True]
    stream = bdh.Stream(model)
    stream.feed(b"a")  # one byte, by plain operations
    assert stream.prediction().shape == (256,)


def test_graphs_that_fail_leave_launches(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(gpu_step, "_error", lambda *_, graphs: 1.0 if graphs else 0.0)
    with caplog.at_level(logging.WARNING):
        for neurons in (32, 64):
            assert gpu_step.usable(torch.device("cpu"), 16, neurons, 256, False) == "launches"
    assert ["without CUDA graphs" in record.message for record in caplog.records] == [True]


def test_an_accident_while_a_graph_is_tried_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results = iter((RuntimeError("another thread was not careful"), 0.0))

    def error(*_: Any, graphs: bool) -> float:
        assert graphs
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(gpu_step, "_error", error)
    for _ in range(2):
        assert gpu_step.usable(torch.device("cpu"), 16, 32, 256, False) == "graph"
    assert not caplog.records


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("20 MiB"), RuntimeError("Triton Error [CUDA]: out of memory")]
)
def test_memory_that_runs_out_while_kernels_are_tried_is_not_held_against_them(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results = iter((error, error, 0.0))

    def runs_out(*_: Any, graphs: bool) -> float:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(gpu_step, "_error", runs_out)
    with caplog.at_level(logging.WARNING):
        ways = [gpu_step.usable(torch.device("cpu"), 16, 32, 256, False) for _ in range(4)]
    assert ways == [None, None, "graph", "graph"]
    assert [record.message for record in caplog.records] == [gpu_step._SHORT]


def test_what_was_found_is_known_while_something_else_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, done = threading.Event(), threading.Event()

    def error(device: torch.device, width: int, *_: Any, **__: Any) -> float:
        if width == 32:
            begun.set()
            assert done.wait(60)
        return 0.0

    monkeypatch.setattr(gpu_step, "_error", error)
    device = torch.device("cpu")
    assert gpu_step.usable(device, 16, 32, 256, False) == "graph"
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(gpu_step.usable, device, 32, 32, 256, False)
        try:
            assert begun.wait(60)
            assert pool.submit(gpu_step.usable, device, 16, 32, 256, False).result(60) == "graph"
            assert not slow.done()
        finally:
            done.set()
        assert slow.result(60) == "graph"


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
    monkeypatch.setattr(gpu_step, "usable", lambda *_: "launches")
    for starts in ((3,), (3, 5, 8), (3, *range(40, 70)), (3, *range(300))):
        for recorded in (True, False):
            gpu_step._engines.clear()
            if recorded:
                monkeypatch.setattr(gpu_step, "usable", lambda *_: "graph")
            logits, heard = _heard(model, starts, 12)
            assert torch.equal(logits[0], known[0][0])
            assert all(map(torch.equal, heard[0].memory, known[1][0].memory))
            monkeypatch.setattr(gpu_step, "usable", lambda *_: "launches")


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
