"""Faults of a machine, in a real process: Python imports this first where the folder is on its path.

Files in the folder that FAULTS names switch them on and off while the process runs:

    clock    seconds by which the machine's clock is set
    memory   there is none left where a stream hears and where a step is trained: of a gpu, or of the host
    slow     files are copied by halves, and what is written is never done
    roomy    the disk says that it has room, whatever it has
    pace     seconds between two steps of a run, which takes little of the machine so
    full     the disk takes nothing below the folder that it names; for machines that let no small disk be mounted
"""

from __future__ import annotations

import builtins
import collections
import errno
import importlib.abc
import importlib.machinery
import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

_FOLDER = os.environ.get("FAULTS", "")
_USAGE = collections.namedtuple("usage", "total used free")


def _said(name: str) -> str | None:
    try:
        with _open(os.path.join(_FOLDER, name)) as file:
            return file.read()
    except OSError:
        return None


def _instead(of: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(of, name, make(getattr(of, name)))


class _After(importlib.abc.MetaPathFinder):
    """Does something to modules when they were imported."""

    def __init__(self, then: dict[str, Callable[[Any], None]]) -> None:
        self.then = then

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self.then:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                self.then[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _out_of_memory(usual: Callable[..., Any]) -> Callable[..., Any]:
    def op(*given: Any, **named: Any) -> Any:
        if (where := _said("memory")) == "host":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
        if where is not None:
            raise sys.modules["torch"].OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return usual(*given, **named)

    return op


def _unhurried(module: Any) -> None:
    step = _out_of_memory(module.Run.train_step)

    def train_step(*given: Any, **named: Any) -> Any:
        time.sleep(float(_said("pace") or 0.02))
        return step(*given, **named)

    module.Run.train_step = train_step


def _endless(usual: Callable[..., Any]) -> Callable[..., Any]:
    def sync(path: Any) -> None:
        while _said("slow") is not None:
            time.sleep(0.05)
        usual(path)

    return sync


def _halved(usual: Callable[..., Any]) -> Callable[..., Any]:
    def copy(source: Any, target: Any, **named: Any) -> Any:
        if _said("slow") is not None:
            with _open(source, "rb") as file, _open(target, "wb") as half:
                half.write(file.read(os.path.getsize(source) // 2))
            while _said("slow") is not None:
                time.sleep(0.05)
        return usual(source, target, **named)

    return copy


def _hasty(module: Any) -> None:
    module._TIDY_S = 0.5


def _refused(path: Any, mode: str = "w") -> None:
    writes = isinstance(path, (str, os.PathLike)) and any(one in mode for one in "wax+")
    full = _said("full") if writes else ""
    if full and os.path.realpath(path).startswith(full):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _full_open(path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
    _refused(path, mode)
    return _open(path, mode, *given, **named)


def _full(usual: Callable[..., Any]) -> Callable[..., Any]:
    def make(path: Any, *given: Any, **named: Any) -> Any:
        _refused(path)
        return usual(path, *given, **named)

    return make


def _full_tensors(usual: Callable[..., Any]) -> Callable[..., Any]:
    def save(tensors: Any, path: Any, *given: Any, **named: Any) -> Any:
        _refused(path)
        return usual(tensors, path, *given, **named)

    return save


_open, _time, _disk_usage = io.open, time.time, shutil.disk_usage
if _FOLDER:
    time.time = lambda: _time() + float(_said("clock") or 0)
    shutil.disk_usage = lambda path: _USAGE(10**11, 0, 10**11) if _said("roomy") is not None else _disk_usage(path)
    _instead(shutil, "copyfile", _halved)
    if os.environ.get("FAULTS_PATCH_FILES"):
        builtins.open = io.open = _full_open  # type: ignore[assignment]
        _instead(os, "mkdir", _full)
    sys.meta_path.insert(
        0,
        _After(
            {
                "bdh.stream": lambda module: _instead(module.Stream, "_hear", _out_of_memory),
                "train.loop": _unhurried,
                "bdh.checkpoint": lambda module: _instead(module, "_sync", _endless),
                "safetensors.torch": lambda module: _instead(module, "save_file", _full_tensors),
                "ui.data_folder": _hasty,
            }
        ),
    )
