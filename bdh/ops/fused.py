"""Passes over a layer's neurons made in one, with their gradients.

`kernels` has the loops for a CPU, `fused_gpu` those for a GPU.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import loops

_LEAST = 2**16
"""Numbers below which a second thread is not worth waking."""
_logger = logging.getLogger(__name__)
_lock = threading.Lock()


def usable(latent: Tensor) -> bool:
    """Whether the fused passes can, and should, take the place of the plain ones, now.

    Without gradients, the plain ones write in place on a CPU, and on a GPU a single byte is not worth a launch.
    """
    if latent.dtype not in (torch.float32, torch.bfloat16) or torch.compiler.is_compiling():
        return False
    learns = torch.is_grad_enabled()
    if latent.device.type == "cuda":
        return (learns or latent.shape[-2] > 1) and loops.allowed() and _compiles(latent.device, latent.dtype)
    return learns and loops.usable(latent.device)


def fire(latent: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """relu, and the rotation of each pair of neurons by its phase.

    Args:
        latent: (..., B, T, N), float32 or bfloat16.
        cos, sin: (B or 1, T, N / 2) float32; no gradient reaches them.

    Returns:
        x = relu(latent); x rotated; and of each row of x its mean, the mean of its squares and the part of it that
        is above 0, (..., B, T, 3) float32, of which the last has no gradient.
    """
    active, rotated, moments = _Fire.apply(latent, cos, sin)
    return active, rotated, moments


def gate(latent: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """relu(latent) · active, and the part of each row of latent that is above 0, (..., 1) float32."""
    gated, parts = _Gate.apply(latent, active)
    return gated, parts


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent, cos, sin = latent.contiguous(), cos.contiguous(), sin.contiguous()
        active, rotated = torch.empty_like(latent), torch.empty_like(latent)
        moments = torch.empty(*latent.shape[:-1], 3, device=latent.device)
        _run("fire", latent, cos, sin, active, rotated, moments)
        ctx.save_for_backward(active, cos, sin)
        return active, rotated, moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_active: Tensor, d_rotated: Tensor, d_moments: Tensor) -> tuple[Tensor, None, None]:
        active, cos, sin = ctx.saved_tensors
        d_latent = torch.empty_like(active)
        _run("fire_back", d_active, d_rotated, d_moments, active, cos, sin, d_latent)
        return d_latent, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        latent, active = latent.contiguous(), active.contiguous()
        gated, parts = torch.empty_like(latent), torch.empty(*latent.shape[:-1], 1, device=latent.device)
        _run("gate", latent, active, gated, parts)
        ctx.save_for_backward(latent, active)
        ctx.mark_non_differentiable(parts)
        return gated, parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_gated: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        latent, active = ctx.saved_tensors
        d_latent, d_active = torch.empty_like(latent), torch.empty_like(active)
        _run("gate_back", d_gated, latent, active, d_latent, d_active)
        return d_latent, d_active


def _run(loop: str, *tensors: Tensor) -> None:
    """Let a loop work on all rows of the tensors; on a CPU, with as many threads as torch would take."""
    if tensors[0].is_cuda:
        _gpu().run(loop, *tensors)
        return
    arrays = [_array(tensor) for tensor in tensors]
    rows, threads = len(arrays[0]), torch.get_num_threads()
    if threads == 1 or arrays[0].size < _LEAST:
        loops.call(loop, 0, rows, *arrays)
        return
    ends = [rows * part // threads for part in range(threads + 1)]
    pool = _pool(threads, os.getpid(), threading.get_ident())
    for part in [pool.submit(loops.call, loop, *between, *arrays) for between in pairwise(ends)]:
        part.result()


def _gpu() -> Any:
    """The kernels for a GPU, which import triton."""
    return importlib.import_module(".fused_gpu", __package__)


def _compiles(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a GPU's kernels work there, which is tried once."""
    with _lock:
        return _tried(device, dtype)


@lru_cache(maxsize=64)
def _tried(device: torch.device, dtype: torch.dtype) -> bool:
    try:
        _gpu().check(device, dtype)
    except Exception as error:  # whatever ails triton here, the plain operations do
        _logger.warning("without compiled kernels, %s learns and reads slower: %s", device, repr(error)[:300])
        return False
    return True


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Its rows without copying, bfloat16 as uint16."""
    rows = tensor.detach().contiguous().view(-1, tensor.shape[-1])
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


@lru_cache(maxsize=64)
def _pool(threads: int, process: int, caller: int) -> ThreadPoolExecutor:
    """Threads of one caller: neither a fork nor another thread can use them."""
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")
