"""Browsing the Hub: BDH checkpoints by name and author, and what one is before it is loaded."""

from __future__ import annotations

from typing import Any

import gradio as gr

from bdh import card as cards
from bdh import search
from bdh.errors import HatcheryError
from bdh.models import state_bytes
from bdh.search import Found, Seen

from .limits import Limits
from .markup import details_markup, quiet
from .publish import token_of
from .registry import compact, size_text

HEADERS = ["On the Hub", "Kind", "Parameters", "Downloads", "Updated"]
RESULTS = 20
_AT_ONCE = 4
"""Questions asked of the Hub at the same time, for all visitors together."""
_NOTHING = "Nothing on the Hub fits. Leave both fields empty to see all that is tagged `bdh`."


def row(found: Found) -> list[str]:
    """A result as a row of the table."""
    count = compact(found.parameters) if found.parameters else "–"
    name = f"{found.repo_id} (private)" if found.private else found.repo_id
    return [name, found.kind or "–", count, f"{found.downloads:,}", found.updated]


def facts(seen: Seen) -> str:
    """What a checkpoint is, as markup."""
    rows = {"Kind": "of another project's form; it is converted when it is loaded"}
    if seen.config is not None:
        rows = {
            "Kind": seen.config.kind,
            "State": f"{size_text(state_bytes(seen.config))} for one conversation, however long",
        }
    rows |= {
        "Parameters": f"{seen.parameters:,}",
        "Download": size_text(seen.weight_bytes),
        "Licence": seen.license or "not stated",
        "Commit": seen.commit[:12],
    }
    return details_markup(seen.place, rows)


def build_browse(source: gr.Textbox, limits: Limits) -> None:
    """Lay out the search and wire it.

    Args:
        source: what is to be loaded; a click on a result fills it in.
    """
    with gr.Row(elem_id="hub-search"):
        text = gr.Textbox(
            label="Search", info="part of a name; empty: all", max_lines=1, scale=3, min_width=160, elem_id="hub-text"
        )
        author = gr.Textbox(
            label="Author", info="a user or an organisation", max_lines=1, scale=2, min_width=140, elem_id="hub-author"
        )
        go = gr.Button("Search", scale=1, min_width=100, elem_id="hub-go")
    told = gr.Markdown(elem_id="hub-told")
    table = gr.Dataframe(
        None,
        headers=HEADERS,
        datatype="str",
        type="array",
        interactive=False,
        visible=False,
        show_label=False,
        buttons=[],
        max_height=260,
        column_widths=["440px", "130px", "130px", "120px", "120px"],
        elem_id="hub-table",
    )
    about = gr.HTML(elem_id="hub-facts")
    with gr.Accordion("Its card", open=True, visible=False) as shown:
        card = gr.Markdown(elem_id="hub-card", elem_classes="model-card")

    def on_search(account: gr.OAuthToken | None, wanted: str, by: str) -> tuple[Any, ...]:
        empty = "", gr.Accordion(visible=False), ""
        try:
            found = search.search(wanted, author=by, limit=RESULTS, token=token_of(account, limits))
        except HatcheryError as error:
            return f"**The search did not work**: {cards.line(error, 400)}.", gr.Dataframe(visible=False), *empty
        if not found:
            return _NOTHING, gr.Dataframe(visible=False), *empty
        more = f" The first {RESULTS} by downloads." if len(found) == RESULTS else ""
        said = f"{len(found)} found; click one to read about it and to have its name put in the box below.{more}"
        return said, gr.Dataframe([row(one) for one in found], visible=True), *empty

    def on_result(event: gr.SelectData, account: gr.OAuthToken | None) -> tuple[Any, ...]:
        row = event.row_value
        picked = str(row[0]).partition(" ")[0] if isinstance(row, list) and row else ""
        if not cards.is_hub_id(picked):
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        try:
            seen = search.look(picked, token=token_of(account, limits), max_parameters=limits.max_parameters)
            markup = facts(seen)
        except HatcheryError as error:
            said = f"**{cards.line(picked)} cannot be loaded here**: {cards.line(error, 400)}."
            return said, "", gr.Accordion(visible=False), "", gr.skip()
        text = quiet(seen.card).strip()
        return (
            f"**{picked}** stands in the box below; press Load to bring it here.",
            markup,
            gr.Accordion(visible=bool(text)),
            text,
            picked,
        )

    asked: dict[str, Any] = {
        "api_visibility": "private",
        "concurrency_limit": _AT_ONCE,
        "concurrency_id": "browsing",
        "show_progress": "minimal",
        "show_progress_on": told,
    }
    gr.on([go.click, text.submit, author.submit], on_search, [text, author], [told, table, about, shown, card], **asked)
    table.select(on_result, None, [told, about, shown, card, source], **asked)
