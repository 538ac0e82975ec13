"""Endpoints for programs that no tab has: what a text costs, which models there are, what a merge would be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from bdh.errors import DataError
from bdh.merge import METHODS
from bdh.stream import Stream

from .limits import Limits
from .merges import Merger, Wanted
from .owner import identify, reported
from .registry import Registry
from .write import Author, prompt_bytes, scored
from .writing import batched

MAX_BYTES_TOLD = 10_000
"""Bytes of a text of which each one's cost is told."""
MAX_PARENTS = 16


class Endpoints:
    """What they do."""

    def __init__(self, registry: Registry, merger: Merger, limits: Limits) -> None:
        self._registry, self._merger, self._limits = registry, merger, limits

    def score(
        self, request: gr.Request, text: str, model: str = "", per_byte: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Say what a text costs a model, in bits per byte: the less, the better the model predicts it.

        Streams the figures of what was heard so far. The text is heard with an empty memory; its first byte, which
        nothing predicts, costs 8 bits.

        Args:
            text: what the model is to hear; not empty.
            model: id of a model as the Models tab lists it; if empty, the first one.
            per_byte: list what each byte cost too; for texts of at most 10,000 bytes.

        Returns:
            model, bytes, bits_per_byte and, if asked for, bits: one number a byte.
        """
        with reported():
            if not isinstance(text, str) or not text:
                raise DataError("the text is empty; give at least one character")
            data = prompt_bytes(text, self._limits)
            if per_byte and len(data) > MAX_BYTES_TOLD:
                raise DataError(
                    f"the text has {len(data):,} bytes; what each byte cost is told for at most {MAX_BYTES_TOLD:,}"
                )
            id, owner = Author(self._registry, self._limits).known(model), identify(None, request)
            costs: list[float] = []
            with (
                self._registry.lease(id, owner) as leased,
                self._registry.reserve(leased.state_bytes()),
                closing(batched(scored(Stream(leased), data))) as batches,
            ):
                for batch in batches:
                    costs += [bits for part in batch for bits in part]
                    figures = {"model": id, "bytes": len(costs), "bits_per_byte": sum(costs) / len(costs)}
                    done = len(costs) == len(data)
                    yield figures | ({"bits": costs} if per_byte and done else {})

    def models(self, request: gr.Request) -> list[dict[str, Any]]:
        """List the models that there are.

        Returns:
            for each: id, kind, parameters, state_bytes (memory that one stream takes, at any length), source, loaded.
        """
        with reported():
            return [
                {
                    "id": entry.id,
                    "kind": entry.kind,
                    "parameters": entry.parameters,
                    "state_bytes": entry.state_bytes,
                    "source": entry.source,
                    "loaded": entry.loaded,
                }
                for entry in self._registry.entries(identify(None, request))
            ]

    def merge_plan(
        self,
        request: gr.Request,
        models: list[str],
        method: str = "concat",
        base: str = "",
        weights: list[float] | None = None,
        neurons: int = 0,
        align: bool = False,
    ) -> dict[str, Any]:
        """Say what merging models would make, without making it: shapes, parameters, memory, the command that does it.

        Args:
            models: ids of two models or more, as the Models tab lists them.
            method: one of METHODS.
            base: id of the model that the others were cloned from, for task-arithmetic, ties, dare and dare-ties.
            weights: how much each model counts; alike if left out.
            neurons: for concat, how many neurons a head the result is cut to; 0 keeps all.
            align: for concat, turn models that were trained apart into one space first.

        Returns:
            fits, line (whether and how they can be merged), plan (line by line) and command.
        """
        with reported():
            if not isinstance(models, list) or not all(isinstance(id, str) for id in models):
                raise DataError("models must be a list of ids, such as ['english', 'spanish']")
            if not 2 <= len(models) <= MAX_PARENTS:
                raise DataError(f"{len(models)} models were given; it must be 2 to {MAX_PARENTS}")
            if not isinstance(method, str) or not isinstance(base, str):
                raise DataError("method and base must be texts")
            given = weights or []
            if not isinstance(given, list) or not all(isinstance(w, (int, float)) for w in given):
                raise DataError("weights must be a list of numbers, one for each model")
            wanted = Wanted(
                parents=tuple(models),
                method=method,
                weights=" ".join(str(weight) for weight in given),
                base=base,
                neurons=neurons,
                align=bool(align),
            )
            found = self._merger.preview(wanted, identify(None, request))
        return {"fits": found.fits, "line": found.line, "plan": found.plan.splitlines(), "command": found.command}

    # Gradio describes an endpoint by its annotations as they stand, and a stream of figures as figures.
    score.__annotations__["return"] = dict
    models.__annotations__["return"] = list
    merge_plan.__annotations__["return"] = dict
    merge_plan.__doc__ = str(merge_plan.__doc__).replace("one of METHODS", " or ".join(METHODS))


def build_endpoints(registry: Registry, merger: Merger, limits: Limits) -> None:
    """Offer them beside those of the tabs."""
    endpoints = Endpoints(registry, merger, limits)
    gr.api(  # type: ignore[attr-defined]
        endpoints.score, api_name="score", concurrency_limit=limits.max_at_once, concurrency_id="writing"
    )
    gr.api(endpoints.models, api_name="models", concurrency_limit=None)  # type: ignore[attr-defined]
    gr.api(  # type: ignore[attr-defined]
        endpoints.merge_plan, api_name="merge_plan", concurrency_limit=2, concurrency_id="planning"
    )
