"""Whatever is sent to a function of the page, public or private, it answers or refuses in words."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState
from hostile import JUNK, TEXTS, cases, everything, in_time, told
from hypothesis import given
from hypothesis import strategies as st

from bdh import hub, publish
from bdh.config import FlatConfig
from bdh.errors import TrainingError
from bdh.models import build
from train.job import Jobs
from ui import page as pages
from ui.limits import Limits
from ui.queued import _problem

FLAT = FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
LIMITS = Limits.from_environment(
    {"BDH_PUBLIC": "1", "BDH_MAX_WRITE_BYTES": "40", "BDH_MAX_PROMPT_BYTES": "3000", "BDH_MAX_MERGES_BYTES": "1000000"}
    | {"BDH_MAX_REPORT_BYTES": "300", "BDH_MAX_FEED_BYTES": "2000", "BDH_MAX_PARAMETERS": "1000000"}
)
SECRETS = ("", "A" * 40, "B" * 40)


class Page:
    """A page in this process, with two models and what two visitors made."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for seed, name in enumerate(("one", "two")):
            build(FLAT, seed=seed).save_pretrained(home / "checkpoints" / name)
        self.blocks = pages.build_page(home / "checkpoints", home / "data", LIMITS, "cpu")
        # Gradio looks at where files lie only when it believes itself served.
        self.blocks.has_launched, self.blocks.allowed_paths, self.blocks.blocked_paths = True, [], [str(home / "data")]
        self.functions = [one for one in self.blocks.fns.values() if one.fn is not None]
        self.loop = asyncio.new_event_loop()
        self.state = SessionState(self.blocks)
        text = home / "gradio" / ("a" * 64) / "mine.txt"
        text.parent.mkdir(parents=True)
        text.write_text("The cat sat on the mat. " * 100)
        self.file = {"path": str(text), "orig_name": "mine.txt", "meta": {"_type": "gradio.FileData"}}

    def call(self, function: Any, inputs: list[Any], event: Any = None, pieces: int = 4) -> Any:
        """What a function answers, as Gradio calls it; no more than some pieces of what it streams."""
        body = SimpleNamespace(session_hash="fuzz", fn_index=function._id, data=inputs, event_data=event)
        if problem := _problem(self.blocks, body):
            assert problem.isprintable()
            return None
        return self.loop.run_until_complete(self._call(function, inputs, event, pieces))

    async def _call(self, function: Any, inputs: list[Any], event: Any, pieces: int) -> Any:
        request = gr.Request(session_hash="fuzz", query_params={})
        data = gr.EventData(None, event)
        iterator, answer = None, None
        for _ in range(pieces):
            answer = await self.blocks.process_api(
                function, inputs, self.state, request, iterator=iterator, event_data=data
            )
            iterator = answer["iterator"]
            if not answer["is_generating"]:
                return answer
        await iterator.aclose()
        return answer


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    home = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(home / "gradio"))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        patch.setattr(hub, "_PAUSE_S", 0.0)
        patch.setattr(hub, "fetch", unreachable)
        patch.setattr(publish, "upload", unreachable)
        patch.setattr(publish, "look", unreachable)

        def idle(*given: Any, **named: Any) -> Jobs:
            return Jobs(*given, **named | {"at_once": 0, "watch": False})

        def refuse(*_: Any) -> Any:
            raise TrainingError("no estimate here")

        patch.setattr(pages, "Jobs", idle)
        patch.setattr(Jobs, "try_out", refuse)
        made = Page(home)
        before = everything(home / "checkpoints")
        beside = sorted(os.listdir(home))
        yield made
        assert everything(home / "checkpoints") == before
        key = (home / "data" / "browser-key").read_bytes()
        handed_out = [path.read_bytes() for path in (home / "gradio").rglob("*") if path.is_file()]
        assert handed_out and not any(key in content or b"root:" in content for content in handed_out)
        assert sorted(os.listdir(home)) == beside


def unreachable(*_: Any, **__: Any) -> Any:
    raise hub.CheckpointError("the Hub cannot be reached")


def plausible(page: Page, component: Any, place: Any) -> st.SearchStrategy[Any]:
    """What a page sends of a component: its value, a choice, an id; or what a stranger sends in its place."""
    kind = type(component).__name__
    usual: list[Any] = [getattr(component, "value", None)]
    for choice in getattr(component, "choices", None) or ():
        usual.append(choice[-1] if isinstance(choice, (list, tuple)) else choice)
    if kind == "BrowserState":
        usual = [*SECRETS]
    if kind in ("Dropdown", "Api"):
        usual += ["one", "two", "", "0" * 16]
    if kind == "CheckboxGroup" or getattr(component, "multiselect", False):
        usual += [["one", "two"], ["english"]]
    if kind in ("File", "UploadButton"):
        evil = page.file | {"path": "/etc/passwd"}
        usual += [page.file, [page.file], [page.file] * 3, evil, [evil], page.file | {"path": "http://127.0.0.1:9/x"}]
        usual += [missing := page.file | {"path": page.file["path"] + "x"}, [missing]]
        usual += [page.file | {"path": page.file["path"] + "\0"}, page.file | {"path": str(page.home / "data")}]
    if kind in ("Textbox", "Dropdown", "Api"):
        usual += [str(page.home / "data" / "browser-key")]
    if kind == "Textbox":
        usual += ["hello", "user/name", "1, 0.5", "The cat sat. " * 50]
    if callable(usual[0]):
        usual = usual[1:] or [None]
    return st.sampled_from(usual) if place else JUNK


@st.composite
def calls(draw: st.DrawFn, page: Page) -> tuple[Any, list[Any], Any]:
    """A function, its inputs and what is told of the event; mostly some of them are as they should be."""
    function = draw(st.sampled_from(page.functions))
    wild = draw(st.sampled_from([0, 1, 2, len(function.inputs)]))
    places = set(draw(st.permutations(range(len(function.inputs))))[:wild])
    inputs = [draw(plausible(page, one, place not in places)) for place, one in enumerate(function.inputs)]
    event = {"index": draw(st.sampled_from([0, 1, -1, [0, 0], "x", 10**30, None]) | JUNK), "value": draw(TEXTS | JUNK)}
    event |= {"previous_value": "x", "row_value": draw(st.sampled_from([["one"], [], None]) | JUNK)}
    return function, inputs, draw(st.sampled_from([event, None, {}, "x", []]) if wild else st.just(event))


def named(function: Any) -> str:
    return getattr(function.fn, "__qualname__", str(function.fn))


def refused_or_answered(page: Page, function: Any, inputs: list[Any], event: Any) -> None:
    with in_time():
        try:
            page.call(function, inputs, event)
        except gr.Error as error:
            told(error)
            assert not error.print_exception
        except Exception as error:
            raise AssertionError(f"{named(function)} broke on {inputs!r:.1500} and {event!r:.200}") from error


@cases(250)
@given(st.data())
def test_no_inputs_do_more_than_be_refused(page: Page, data: Any) -> None:
    function, inputs, event = data.draw(calls(page))
    refused_or_answered(page, function, inputs, event)
    names = {path.name for path in (page.home / "gradio").glob("*/*")}
    assert not names & {"passwd", "browser-key"}, f"{named(function)} took {inputs!r:.1500} and {event!r:.200}"
    for path in (page.home / "data").iterdir():
        assert path.name in {"browser-key", "hub", "merges", "parked", "runs", "uploads"}


def test_every_function_answers_to_nothing_at_all(page: Page) -> None:
    for function in page.functions:
        for nothing in (None, "", 0, [], {}, float("nan"), 10**400, "\ud800", True):
            refused_or_answered(page, function, [nothing] * len(function.inputs), {"index": nothing, "value": nothing})
