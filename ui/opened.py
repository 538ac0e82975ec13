"""What each visitor's session is told of the page's components, worked out once instead of for every visitor.

Gradio describes all components anew for each page and session: a tenth of a second in which nobody's bytes pass.
"""

from __future__ import annotations

import copy
from typing import Any

import gradio as gr


def describe_once(page: gr.Blocks) -> None:
    """Let the sessions of a page that is built share the descriptions of its components."""
    plain: Any = type(page.default_config)
    nothing: tuple[Any, dict[str, Any]] = (None, {})
    known = {id: (block, copy.deepcopy(plain.config_for_block(id, [], block))) for id, block in page.blocks.items()}

    class Described(plain):
        def __copy__(self) -> Any:  # what a session begins with
            return _as(Described, super().__copy__())

        @staticmethod
        def config_for_block(_id: int, rendered_ids: list[int], block: Any, renderable: Any = None) -> dict[str, Any]:
            own, told = known.get(_id, nothing)
            if renderable is not None or own is not block:  # the session has changed it
                described: dict[str, Any] = plain.config_for_block(_id, rendered_ids, block, renderable)
                return described
            return {**told, "props": dict(told["props"])}  # a session writes values into it

    page.default_config = _as(Described, page.default_config)


def _as(kind: type, config: Any) -> Any:
    same: Any = object.__new__(kind)
    same.__dict__.update(config.__dict__)
    return same
