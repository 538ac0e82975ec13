"""EleutherAI's lm-eval harness on checkpoints of this project; needs `pip install lm-eval`.

`python -m train.lm_eval_adapter --model bdh --model_args pretrained=hatchling --tasks …` is the harness's own command
line, with this model known to it.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bdh import Sampling, Stream
from bdh import state as states
from bdh.cli import resolved
from bdh.errors import DataError
from bdh.load import load
from bdh.models import Model

from .evaluate.hearing import Heard, carried_bits, hear, judge, streams_side_by_side

try:
    from lm_eval import simple_evaluate
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    raise ImportError("the lm-eval harness is not installed; pip install lm-eval") from error

_START = b"\n"
"""Heard before whatever has no context: a text begins on a line of its own."""
_MAX_WRITTEN_BYTES = 256


@register_model("bdh")
class HarnessModel(LM):
    """A model as the harness asks it: each request is heard from an empty memory, however long it is."""

    tokenizer_name = "bytes"

    def __init__(
        self,
        pretrained: str | Model[Any] = "hatchling",
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ) -> None:
        """`pretrained` is a model, or a checkpoint's name as `python -m bdh` takes it.

        Args:
            batch_size: contexts heard side by side; what is no number lets the memories' size decide.
            max_batch_size: bounds that.
            device, dtype: for a checkpoint that is loaded here.
        """
        super().__init__()
        if isinstance(pretrained, str):
            kind = getattr(torch, str(dtype), None)
            if not isinstance(kind, torch.dtype):
                raise DataError(f"dtype is {str(dtype)!r:.40}; it must be float32 or bfloat16")
            pretrained = load(resolved(pretrained), device=device, dtype=kind)
        self.model = pretrained
        self._device = self.model.device
        asked = str(batch_size)
        self.streams = int(asked) if asked.isdecimal() and int(asked) else streams_side_by_side(self.model)
        if max_batch_size is not None:
            self.streams = max(1, min(self.streams, int(max_batch_size)))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Natural log of the probability of each continuation behind its context, and whether it is the greedy one."""
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        # The choices of one question share its context, which is heard once.
        asked: dict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
        for index, request in enumerate(requests):
            context, continuation = request.args
            asked[_encoded(context) or _START].append((index, _encoded(continuation)))
        contexts = sorted(asked, key=len)
        with tqdm(total=len(requests), desc="loglikelihood", disable=disable_tqdm) as bar:
            for start in range(0, len(contexts), self.streams):
                batch = contexts[start : start + self.streams]
                heard = hear(self.model, batch)
                for turn in range(max(len(asked[context]) for context in batch)):
                    rows = [row for row, context in enumerate(batch) if turn < len(asked[context])]
                    some = heard if len(rows) == len(batch) else _chosen(heard, rows)
                    now = [asked[batch[row]][turn] for row in rows]
                    judged = judge(self.model, some, [ending for _, ending in now])
                    for (index, ending), one in zip(now, judged, strict=True):
                        results[index] = (-float(one.bits.sum()) * math.log(2), one.is_greedy(ending))
                    bar.update(len(now))
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Natural log of the probability of each text as a whole, in one stream whatever its length."""
        results = []
        for request in tqdm(requests, desc="loglikelihood_rolling", disable=disable_tqdm):
            text = np.frombuffer(_START + _encoded(request.args[0]), np.uint8)
            results.append(-float(carried_bits(self.model, text).sum()) * math.log(2) if len(text) > 1 else 0.0)
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to the first of the task's stops, which is left out.

        A task's `max_gen_toks` counts bytes here. Sampling follows `do_sample`, `temperature`, `top_k` and `top_p`.
        """
        results = []
        for request in tqdm(requests, desc="generate_until", disable=disable_tqdm):
            context, wishes = request.args
            stream = Stream(self.model)
            stream.feed(_encoded(context) or _START)
            written = bytes(one.byte for one in stream.generate(sampling(wishes)) if not one.is_stop)
            results.append(written.decode("utf-8", "replace"))
        return results


def sampling(wishes: Mapping[str, Any]) -> Sampling:
    """The harness's generation arguments as options of this project."""
    until = wishes.get("until") or []
    stops = [until] if isinstance(until, str) else until
    temperature = float(wishes.get("temperature") or 0.0)
    sample = wishes.get("do_sample")
    return Sampling(
        max_bytes=int(wishes.get("max_gen_toks") or wishes.get("max_new_tokens") or _MAX_WRITTEN_BYTES),
        temperature=temperature if sample or sample is None else 0.0,
        top_k=min(256, int(wishes.get("top_k") or 0)),
        top_p=float(wishes.get("top_p") or 1.0),
        stop=tuple(dict.fromkeys(_encoded(stop) for stop in stops if stop)),
        seed=0,
    )


def run_tasks(model: Model[Any], tasks: Sequence[str | dict[str, Any]], **options: Any) -> dict[str, Any]:
    """The harness's results of each task; `options` are those of `lm_eval.simple_evaluate`."""
    return simple_evaluate(model=HarnessModel(model), tasks=list(tasks), **options)["results"]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _chosen(heard: Heard, rows: Sequence[int]) -> Heard:
    return Heard(heard.logits[list(rows)], states.select(heard.state, rows))


if __name__ == "__main__":
    sys.exit(cli_evaluate())
