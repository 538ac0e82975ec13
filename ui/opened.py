"""What each visitor's session is told of the page's components, worked out once instead of for every visitor.

Gradio describes all components anew for each page and session: a tenth of a second in which nobody's bytes pass.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState

_logger = logging.getLogger(__name__)


def describe_once(page: gr.Blocks) -> None:
    """Let the sessions of a page that is built share the descriptions of its components, if Gradio lets them."""
    usual = page.default_config
    try:
        page.default_config = _described(page)
        SessionState(page)
    except Exception as error:  # an inside of Gradio that is another one now
        page.default_config = usual
        _logger.warning("sessions begin more slowly: %s", repr(error)[:300])


def _described(page: gr.Blocks) -> Any:
    plain: Any = type(page.default_config)
    nothing: tuple[Any, dict[str, Any]] = (None, {})
    known = {id: (block, copy.deepcopy(plain.config_for_block(id, [], block))) for id, block in page.blocks.items()}

    class Described(plain):
        def __copy__(self) -> Any:  # what a session begins with
            return _as(Described, super().__copy__())

        @staticmethod
        def config_for_block(_id: int, rendered_ids: list[int], block: Any, *more: Any, **named: Any) -> dict[str, Any]:
            own, told = known.get(_id, nothing)
            if own is not block or any(more) or any(named.values()):  # the session has changed it
                described: dict[str, Any] = plain.config_for_block(_id, rendered_ids, block, *more, **named)
                return described
            return {**told, "props": dict(told["props"])}  # a session writes values into it

    return _as(Described, page.default_config)


def _as(kind: type, config: Any) -> Any:
    same: Any = object.__new__(kind)
    same.__dict__.update(config.__dict__)
    return same
