"""What was computed last, so that looking again at the same thing does not compute it again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from bdh.models import Model
from bdh.stream import function_of

T = TypeVar("T")


def known_by(model: Model[Any]) -> tuple[str, str]:
    """What a model's results may be kept under: weights alone can be anybody's, with another damping or depth."""
    return model.checksum(), function_of(model)


class Recent(Generic[T]):
    """The newest few results by what they are of, such as the checksum of the weights and the options.

    Whoever asks for the same gets the same: keys must name all that a result depends on.
    """

    def __init__(self, most: int, size: Callable[[T], int] = lambda result: 1) -> None:
        """Keep results of the size `most` together, and the newest whatever its size."""
        self._most, self._size, self._lock = most, size, threading.Lock()
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """The result, or None if it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, result: T) -> None:
        """Keep a result; the one not asked for longest goes."""
        with self._lock:
            self._kept[key] = result
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(map(self._size, self._kept.values())) > self._most:
                self._kept.popitem(last=False)
