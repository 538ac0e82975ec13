"""What a training step takes, counted before it is taken, and how many rows go through the model at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from bdh import state as states
from bdh.errors import TrainingError
from bdh.models import Model

_SHARE = 0.7
"""Part of the free memory that a run may plan with."""
_OPTIMIZER_COPIES = 3
"""Of every number that learns: its gradient and AdamW's two averages."""


@dataclass(frozen=True)
class Plan:
    """How a step fits into memory."""

    micro_rows: int
    """Rows that go through the model at once."""
    recompute: bool
    """Whether activations are computed again on the way back."""
    bytes_a_row: int
    """Kept for the way back by each row, with `recompute` as chosen."""
    step_bytes: int
    """What the whole run takes at most, beside the weights."""


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device, or in the machine for a CPU and its like."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def plan(
    model: Model[Any],
    rows: int,
    length: int,
    *,
    micro_rows: int,
    recompute: str,
    precision: torch.dtype,
    sharers: int = 1,
) -> Plan:
    """Choose what fits; `micro_rows` 0 and `recompute` "auto" leave the choice open.

    Args:
        sharers: threads that share the rows, each with gradients of its own.

    Raises:
        TrainingError: not even a single row fits.
    """
    learning = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    fixed = learning * (_OPTIMIZER_COPIES + (sharers if sharers > 1 else 0)) + 3 * model.state_bytes(rows)
    room = int(free_bytes(model.device) * _SHARE) - fixed
    needed = 0
    for again in {"auto": (False, True), "on": (True,), "off": (False,)}[recompute]:
        needed = kept_bytes(model, length, recompute=again, precision=precision)
        fitting = min(rows, room // max(1, needed))
        if micro_rows:
            fitting = min(micro_rows, rows) if fitting >= min(micro_rows, rows) or not again else fitting
        if fitting >= 1:
            return Plan(int(fitting), again, needed, fixed + int(fitting) * needed)
    raise TrainingError(
        f"one row of {length:,} bytes takes {(fixed + needed) / 1e9:.1f} GB beside the weights, and "
        f"{free_bytes(model.device) / 1e9:.1f} GB are free; take a smaller chunk_bytes or a smaller model"
    )


def kept_bytes(model: Model[Any], length: int, *, recompute: bool, precision: torch.dtype) -> int:
    """Bytes that autograd keeps of one row of `length` bytes for the way back, by running one."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = recomputes(model)
    set_recompute(model, recompute)
    row = torch.zeros(1, length, dtype=torch.int64, device=model.device)
    try:
        with (
            torch.random.fork_rng([model.device] if model.device.type == "cuda" else []),  # dropout draws
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16),
        ):
            output = model(row, model.empty_state(1))
            # What is kept stands in memory until the graph goes, so that no address is counted twice.
            count = sum(kept.values()) + states.state_bytes(output.state)
    finally:
        set_recompute(model, before)
    return count


def recomputes(model: Model[Any]) -> bool:
    """Whether the model computes activations again on the way back."""
    return any(getattr(module, "recompute", False) for module in model.modules())


def set_recompute(model: Model[Any], recompute: bool) -> None:
    """Let every layer that can compute its activations again on the way back, or keep them."""
    for module in model.modules():
        if hasattr(type(module), "recompute"):
            module.recompute = recompute  # type: ignore[assignment]
