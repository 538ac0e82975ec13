"""A batch shared among threads, each of which takes its rows through the whole model.

On a CPU this is faster than threads that share each product: they meet once a step instead of at every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor, nn

_Share = TypeVar("_Share")
_Result = TypeVar("_Result")


class Workers:
    """Threads that divide torch's threads among themselves."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="share")
        threads, met = torch.get_num_threads(), Barrier(count)

        def settle() -> None:
            torch.get_num_threads()  # a thread's first call sets its number to what is common; its own comes after
            torch.set_num_threads(max(1, threads // count))
            met.wait()  # so that every thread settles, none of them twice

        for settled in [self._pool.submit(settle) for _ in range(count)]:
            settled.result()
        torch.set_num_threads(threads)  # what threads yet to come begin with; those that have settled keep theirs

    def map(self, work: Callable[[_Share], _Result], shares: Sequence[_Share]) -> list[_Result]:
        """The results of the shares, in their order; of several errors the first is raised once all have ended."""
        calls = [self._pool.submit(work, share) for share in shares]
        errors = [error for call in calls if (error := call.exception()) is not None]
        try:
            if errors:
                raise errors[0]
            return [call.result() for call in calls]
        finally:
            del errors, calls  # an error holds this frame, and would hold with it what the others computed


def choose_count(threads: int, rows: int) -> int:
    """How many threads share rows, so that the others of torch's threads, evenly theirs, are as few idle as can be."""
    return max(range(1, min(threads, rows) + 1), key=lambda count: (threads // count * count, count))


def cut(rows: range, count: int) -> list[range]:
    """`rows` in at most `count` runs of nearly equal length, none of them empty."""
    count = min(count, len(rows))
    ends = [rows.start + len(rows) * part // count for part in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def add_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add to each parameter's gradient, in the order of the calls, so that sums are the same every time."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
