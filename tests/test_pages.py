"""Where a stream's memory lies: on cache lines, and back with the system when nobody has it any more."""

from __future__ import annotations

import psutil
import pytest
import torch

from bdh.ops.pages import zeros


@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 4, 64, 32), (4, 1, 4, 1024, 128)])
def test_zeros_are_zeros_that_can_be_written_and_lie_on_cache_lines(shape: tuple[int, ...]) -> None:
    found = zeros(*shape)
    assert found.dtype == torch.float32 and found.shape == shape and found.is_contiguous()
    assert found.data_ptr() % 64 == 0 and int(torch.count_nonzero(found)) == 0
    assert float(found.add_(1).sum()) == found.numel()


def test_more_than_there_is_is_said_to_be_a_lack_of_memory() -> None:
    for size in (1 << 45, 1 << 62):
        with pytest.raises(MemoryError, match="no memory for"):
            zeros(size)


@pytest.mark.skipif(not psutil.LINUX, reason="other systems tell otherwise what a process holds")
def test_a_memory_goes_back_to_the_system_with_the_last_part_of_it() -> None:
    process, size = psutil.Process(), 64 << 20
    layers = zeros(4, size // 16).add_(1).unbind(0)
    beside = [torch.zeros(1000) for _ in range(100)]  # would hold a heap up
    held = process.memory_info().rss
    last = layers[3]
    del layers
    assert float(last.sum()) == size // 16
    assert process.memory_info().rss > held - size // 2  # a layer holds them all
    del last
    assert process.memory_info().rss < held - size * 9 // 10
    assert len(beside) == 100
