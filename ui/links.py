"""Links that open the page on a tab, with a model and a text filled in; nothing is sent by them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from bdh.errors import HatcheryError

from .chat import ChatTab
from .inspect import InspectTab
from .limits import Limits
from .models import renewed
from .owner import identify
from .registry import Owner, Registry
from .write import WriteTab
from .writing import MAX_SEED

TABS = ("chat", "write", "train", "merge", "inspect", "models")
MAX_LINK_CHARACTERS = 8_000
"""Servers on the way refuse longer ones."""
COPY = f"""async (model, prompt, temperature, seed) => {{
  const query = new URLSearchParams({{tab: "write"}});
  if (model) query.set("model", model);
  if (prompt) query.set("prompt", prompt);
  query.set("temperature", temperature);
  if (seed !== null && seed >= 0) query.set("seed", seed);
  const link = `${{location.origin}}${{location.pathname}}?${{query}}`;
  const update = {{__type__: "update", visible: true, value: link, label: "Link, copied"}};
  if (link.length > {MAX_LINK_CHARACTERS})
    return {{...update, value: "", label: "The prompt is too long for a link"}};
  try {{ await navigator.clipboard.writeText(link); }} catch {{ update.label = "Link, to be copied"; }}
  return update;
}}"""
"""Makes a link of the Write tab's form, copies it where the browser lets it, and shows it."""


@dataclass(frozen=True)
class Link:
    """What a link asks for, as far as it can be done."""

    tab: str | None = None
    model: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    seed: int | None = None
    problems: tuple[str, ...] = ()
    """What cannot be done, in words."""


def read_link(query: Mapping[str, str], owner: Owner, registry: Registry, limits: Limits) -> Link:
    """What a link asks for; what cannot be done is left out and said."""
    problems: list[str] = []

    def take(name: str, parse: Callable[[str], Any]) -> Any:
        if not (text := query.get(name, "")):
            return None
        try:
            return parse(text)
        except (HatcheryError, ValueError) as error:
            problems.append(str(error)[:200])
            return None

    def tab(text: str) -> str:
        if text not in TABS:
            raise ValueError(f"the link names the tab {text[:40]!r}; there are {', '.join(TABS)}")
        return text

    def model(text: str) -> str:
        registry.config(text, owner)
        return text

    def prompt(text: str) -> str:
        if (size := len(text.encode("utf-8", errors="replace"))) > limits.max_prompt_bytes:
            raise ValueError(f"the link's prompt has {size:,} bytes; at most {limits.max_prompt_bytes:,} are allowed")
        return text

    def temperature(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number <= 2:
            raise ValueError(f"the link's temperature is {text[:40]!r}; it must be a number from 0 to 2")
        return number

    def seed(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or len(text) > 16 or int(text) > MAX_SEED:
            raise ValueError(f"the link's seed is {text[:40]!r}; it must be a whole number from 0 to {MAX_SEED}")
        return int(text)

    return Link(
        take("tab", tab),
        take("model", model),
        take("prompt", prompt),
        take("temperature", temperature),
        take("seed", seed),
        tuple(problems),
    )


def build_links(
    registry: Registry,
    owner: gr.BrowserState,
    limits: Limits,
    told: gr.HTML,
    tabs: gr.Tabs,
    chat: ChatTab,
    write: WriteTab,
    inspect: InspectTab,
    greeting: Any,
) -> None:
    """Let links open the page.

    Args:
        told: where it is said what of a link cannot be done.
        greeting: the event after which the owner is known.
    """

    def on_open(request: gr.Request, secret: str) -> tuple[Any, ...]:
        query: Mapping[str, str] = dict(request.query_params)
        if not any(name in query for name in ("tab", "model", "prompt", "temperature", "seed")):
            return (gr.skip(),) * 12
        visitor = identify(secret, request)
        link = read_link(query, visitor, registry, limits)
        lines = "".join(f"<p>{html.escape(problem)}</p>" for problem in link.problems)
        tab, choices = link.tab or "chat", registry.choices(visitor)
        models = [
            gr.skip() if link.model is None else renewed(dropdown, choices, None, link.model)
            for dropdown in (chat.model, write.model, inspect.model)
        ]
        texts = [
            link.prompt if wanted else None
            for wanted in (tab == "chat", tab not in ("chat", "inspect"), tab == "inspect")
        ]
        given = [*texts, link.temperature, link.temperature, link.seed, link.seed]
        said = gr.HTML(lines, visible=bool(lines))
        return said, gr.Tabs(selected=tab), *models, *(gr.skip() if value is None else value for value in given)

    filled = [chat.message, write.prompt, inspect.text, chat.temperature, write.temperature, chat.seed, write.seed]
    greeting.then(
        on_open,
        owner,
        [told, tabs, chat.model, write.model, inspect.model, *filled],
        api_visibility="private",
        concurrency_limit=None,
        show_progress="hidden",
    )
    write.copy.click(None, [write.model, write.prompt, write.temperature, write.seed], write.link, js=COPY)
