"""Bits per byte of a text, heard as one stream or as several side by side."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from bdh.models import Model

from .data import Bytes


@torch.no_grad()
def bits_per_byte(model: Model[Any], text: Bytes, *, streams: int = 1, chunk: int = 512) -> float:
    """Mean surprise a byte, with the state carried from the first byte to the last.

    Args:
        text: at least two bytes a stream; what does not divide by `streams` is left out.
        streams: contiguous pieces heard side by side, each from an empty state.
        chunk: bytes a call.
    """
    training = model.training
    model.eval()
    length = len(text) // streams
    ids = torch.from_numpy(text[: length * streams].astype("int64")).view(streams, length)
    state = model.empty_state(streams)
    nats = 0.0
    for start in range(0, length - 1, chunk):
        piece = ids[:, start : min(start + chunk, length - 1)].to(model.device)
        target = ids[:, start + 1 : start + 1 + piece.shape[1]].to(model.device)
        output = model.step_(piece, state, last_only=False)
        state = output.state
        nats += F.cross_entropy(output.logits.float().flatten(0, 1), target.flatten(), reduction="sum").item()
    model.train(training)
    return nats / math.log(2) / (streams * (length - 1))
