"""The Models tab: what there is to choose from, where it came from, and how to bring in more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency
from huggingface_hub.errors import RepositoryNotFoundError

from bdh import hub
from bdh.checkpoint import FILES, is_checkpoint
from bdh.errors import CheckpointError, HatcheryError

from .browse import build_browse
from .limits import Limits, hours_text
from .markup import details_markup, quiet
from .owner import identify, reported
from .publish import PublishForm, token_of
from .registry import LOADS_AT_ONCE, MERGED_HERE, TRAINED_HERE, Entry, Owner, Registry, compact, size_text

HEADERS = ["Model", "Kind", "Parameters", "State", "From", "Now"]
EMPTY = "There are no models yet. Load one from the Hub, or upload a file."
CSS = """
.model-details h3 { margin-top: 0; }
.model-details dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: 4px 16px; margin: 0; }
.model-details dt { color: var(--body-text-color-subdued); }
.model-details dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 500px) { .model-details dl { grid-template-columns: 1fr; gap: 0; }
  .model-details dd { margin-bottom: 6px; } }
#hub-search { align-items: end; }
#hub-table .selection-button { display: none; }
.model-card pre, .model-card code { white-space: pre-wrap; overflow-wrap: anywhere; }
.model-card th, .model-card td { word-break: normal; overflow-wrap: normal; padding: 4px 8px; }
.model-card h1 { font-size: 1.3rem; } .model-card h2 { font-size: 1.1rem; }
"""
"""The looks, for the page's style sheet."""
_PROGRESS_S = 0.1
_UNLOAD = "Unload"


def row(entry: Entry) -> list[str]:
    """An entry as a row of the table."""
    now = f"in use ({entry.in_use})" if entry.in_use else "loaded" if entry.loaded else "on disk"
    source = f"{entry.source}, only you see it" if entry.private else entry.source
    return [entry.id, entry.kind, compact(entry.parameters), size_text(entry.state_bytes), source, now]


def rate_text(done: int, total: int, elapsed_s: float) -> str:
    """How far a download is, and how fast."""
    text = f"{size_text(done)} of {size_text(total)}" if total else size_text(done)
    return f"{text} · {size_text(int(done / elapsed_s))}/s" if elapsed_s > 0.5 else text


def _until(limits: Limits) -> str:
    """How long an upload is kept, where that is bounded."""
    return f", and it is deleted {hours_text(limits.uploads_hours)} later" if limits.public else ""


class Download:
    """Tells a progress bar how a download goes, a few times a second, until it is to stop."""

    def __init__(self, tell: Callable[..., Any], clock: Callable[[], float] = time.monotonic) -> None:
        """`tell` is called with a part from 0 to 1 and `desc`."""
        self._tell, self._clock = tell, clock
        self._begun, self._told = clock(), -1.0
        self.stopped = False

    def __call__(self, done: int, total: int) -> None:
        """Take note that `done` of `total` bytes are there; a total of 0 is not known.

        Raises:
            HatcheryError: it is to stop.
        """
        if self.stopped:
            raise HatcheryError(f"stopped after {size_text(done)}; load it again, and it goes on from there")
        now = self._clock() - self._begun
        complete = 0 < total <= done
        if now - self._told < _PROGRESS_S and not complete:
            return
        self._told = now
        self._tell(min(1.0, done / total) if total else 0.0, desc=rate_text(done, total, now))


class Shelf:
    """What the tab and the public endpoint do, without components."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._downloads: list[tuple[Owner, Download]] = []

    def rows(self, owner: Owner) -> list[list[str]]:
        """The table."""
        return [row(entry) for entry in self.registry.entries(owner)]

    def ids(self, owner: Owner) -> list[str]:
        """The models that there are to choose from, in the table's order."""
        return [entry.id for entry in self.registry.entries(owner)]

    def look(self, id: str | None, owner: Owner) -> tuple[str, str]:
        """Facts and card of a model; words for a newcomer if there is none, or it is gone."""
        if not id or id not in self.ids(owner):
            return "", EMPTY if not self.ids(owner) else "Choose a model to read about it."
        registry = self.registry
        return details_markup(registry.title(id, owner), registry.details(id, owner)), quiet(registry.card(id, owner))

    def fetch(
        self, source: str, owner: Owner, token: str | None, tell: Callable[..., Any], login: str | None = None
    ) -> str:
        """Load from the Hub; returns the id.

        Args:
            login: a token to try when the repository is not found without one: it may be private.

        Raises:
            HatcheryError: no name was given, or what the registry says.
        """
        source = source.strip() if isinstance(source, str) else ""
        source = hub.without_address(source)
        if not source:
            raise HatcheryError("give the name of a model on the Hub, such as user/repo")
        under_way = (owner, Download(tell))
        self._downloads.append(under_way)
        try:
            try:
                return self.registry.load_hub(source, owner, token=token, progress=under_way[1])
            except CheckpointError as error:
                if token or not login or not isinstance(error.__cause__, RepositoryNotFoundError):
                    raise
                return self.registry.load_hub(source, owner, token=login, progress=under_way[1])
        finally:
            self._downloads.remove(under_way)

    def parted(self, owner: Owner, id: str | None) -> tuple[Path, str]:
        """The folder of a checkpoint, and what it is called.

        Raises:
            HatcheryError: there is none of the owner's, or it is of another project's form.
        """
        folder = self.registry.folder(id or "", owner)
        if not folder.is_dir() or not is_checkpoint(folder):
            raise CheckpointError(
                f"{self.registry.title(id or '', owner)} is of another project's form; python -m bdh convert makes a "
                "checkpoint of it that can be published"
            )
        place = self.registry.source(id or "", owner)
        named = place.startswith("Hub: ")
        title = place.partition("@")[0].partition(":/")[0] if named else self.registry.title(id or "", owner)
        return folder, title.rpartition("/")[2].partition(":")[0] if named else title

    def stop(self, owner: Owner) -> None:
        """Let what the owner is downloading stop with its next bytes."""
        for whose, download in list(self._downloads):
            if whose == owner:
                download.stopped = True

    def take(self, paths: list[str] | None, owner: Owner) -> str:
        """Take in uploaded files; returns the id.

        Raises:
            HatcheryError: no file was chosen, or what the registry says.
        """
        if not paths:
            raise HatcheryError("choose files first: model.safetensors and config.json, or a folder that holds them")
        return self.registry.load_files(paths, owner)

    def load(self, source: str, request: gr.Request) -> dict[str, Any]:
        """Load a model from the Hugging Face Hub, so that it can be named in other calls.

        Args:
            source: user/repo, user/repo@revision or user/repo:subfolder.

        Returns:
            id, kind, parameters and state_bytes (memory that one stream takes, at any length).
        """
        owner = identify(None, request)
        with reported():
            id = self.fetch(source, owner, None, lambda part, desc: None)
            entry = next(entry for entry in self.registry.entries(owner) if entry.id == id)
        return {
            "id": entry.id,
            "kind": entry.kind,
            "parameters": entry.parameters,
            "state_bytes": entry.state_bytes,
        }

    # Gradio describes an endpoint by its annotations as they stand.
    load.__annotations__["return"] = dict


def build_models(
    registry: Registry,
    owner: gr.BrowserState,
    limits: Limits,
    dropdowns: list[gr.Dropdown],
    greeting: Dependency,
    tab: gr.Tab,
) -> None:
    """Lay out the tab and wire it.

    Args:
        dropdowns: choices of a model anywhere on the page, which are kept up to date.
        greeting: the event after which `owner` is known.
        tab: where this is; the lists are read anew whenever it is opened.
    """
    shelf = Shelf(registry)
    first = registry.default() or None
    facts, about = shelf.look(first, "")
    table = gr.Dataframe(
        shelf.rows(""),
        headers=HEADERS,
        datatype="str",
        type="array",
        interactive=False,
        show_label=False,
        buttons=[],
        max_height=320,
        column_widths=["220px", "170px", "120px", "110px", "270px", "126px"],
        elem_id="models-table",
    )
    browsing = gr.Accordion("Search the Hub", open=False, elem_id="models-browse")
    with gr.Row():
        with gr.Column(min_width=280):
            chosen = gr.Dropdown(choices=shelf.ids(""), value=first, label="About", elem_id="models-chosen")
            details = gr.HTML(facts, elem_id="models-details")
            unload = gr.Button(_UNLOAD, size="sm", interactive=False, elem_id="models-unload")
        with gr.Column(min_width=280):
            source = gr.Textbox(
                label="Load from the Hub",
                info="user/repo, user/repo@revision or user/repo:subfolder",
                placeholder="user/repo",
                max_lines=1,
                elem_id="models-source",
            )
            with gr.Row():
                load = gr.Button("Load", variant="primary", elem_id="models-load")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="models-stop")
            files = gr.File(
                label="Upload a checkpoint",
                file_count="multiple",
                file_types=[".safetensors", ".json", ".md", *([".pt", ".pth", ".bin"] if limits.allow_pickle else [])],
                height=170,
                elem_id="models-files",
            )
            gr.Markdown(
                "Choose model.safetensors together with its config.json and, if there is one, README.md; up to "
                f"{size_text(limits.max_upload_bytes)} a file. Only you will see it{_until(limits)}.",
                elem_id="models-hint",
            )
            with gr.Row():
                add = gr.Button("Add these files", min_width=140, elem_id="models-add")
                folder = gr.UploadButton("Add a folder", file_count="directory", min_width=140, elem_id="models-folder")
    with browsing:
        build_browse(source, limits)
    told = gr.Markdown(elem_id="models-told")
    with gr.Accordion("Model card", open=True):
        card = gr.Markdown(about, elem_id="models-card", elem_classes="model-card")
    with gr.Accordion("Publish it on the Hub", open=False, elem_id="models-publish") as publishing:
        PublishForm("models", owner, limits, [chosen], shelf.parted).suggest_on([publishing.expand], [chosen.change])

    def look(pick: str | None, owner: Owner) -> tuple[Any, ...]:
        """Facts, card and button of a model."""
        facts, about = shelf.look(pick, owner)
        entry = next((entry for entry in registry.entries(owner) if entry.id == pick), None)
        label = "Delete this upload" if entry is not None and entry.private else _UNLOAD
        made_here = entry is not None and entry.source in (TRAINED_HERE, MERGED_HERE)
        label = "Take off the list" if made_here else label
        return facts, about, gr.Button(label, interactive=entry is not None and (entry.loaded or entry.private))

    def lists(owner: Owner, pick: str | None, values: Sequence[str | None]) -> tuple[Any, ...]:
        """Everything that shows models, as it is now."""
        ids = shelf.ids(owner)
        pick = pick if pick in ids else next(iter(ids), None)
        choices = registry.choices(owner)
        again = [renewed(dropdown, choices, value) for dropdown, value in zip(dropdowns, values, strict=True)]
        return shelf.rows(owner), gr.Dropdown(choices=ids, value=pick), *look(pick, owner), *again

    def on_open(request: gr.Request, secret: str, pick: str | None, *values: str | None) -> tuple[Any, ...]:
        return lists(identify(secret, request), pick, values)

    def on_look(request: gr.Request, secret: str, pick: str | None) -> tuple[Any, ...]:
        return look(pick, identify(secret, request))

    def on_select(request: gr.Request, event: gr.SelectData, secret: str) -> Any:
        row = event.row_value
        picked = row[0] if isinstance(row, list) and row else None
        return gr.Dropdown(value=picked) if picked in shelf.ids(identify(secret, request)) else gr.skip()

    def on_load(
        request: gr.Request,
        account: gr.OAuthToken | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio knows a handler's progress by its default
        *given: Any,
    ) -> tuple[Any, ...]:
        source, secret, _, *values = given
        owner = identify(secret, request)
        with reported():
            # As a stranger first: what everybody may read is everybody's here, and in memory once.
            id = shelf.fetch(source, owner, None, progress, login=token_of(account, limits))
        return f"Loaded **{quiet(id)}**. It can be chosen in every tab.", "", *lists(owner, id, values)

    def on_stop(request: gr.Request, secret: str) -> tuple[str, gr.Button]:
        shelf.stop(identify(secret, request))
        return "Stopped. Load it again, and the download goes on from there.", gr.Button(visible=False)

    def on_add(
        request: gr.Request, paths: list[str] | None, secret: str, pick: str | None, *values: str | None
    ) -> tuple[Any, ...]:
        owner = identify(secret, request)
        with reported():
            id = shelf.take(paths, owner)
        return f"Added **{quiet(id)}**. It can be chosen in every tab.", None, *lists(owner, id, values)

    def on_folder(
        request: gr.Request, paths: list[str] | None, secret: str, pick: str | None, *values: str | None
    ) -> tuple[Any, ...]:
        # Of a folder, what belongs to a checkpoint; whatever else lies there is left alone.
        return on_add(request, [path for path in paths or [] if Path(path).name in FILES], secret, pick, *values)

    def on_unload(request: gr.Request, secret: str, pick: str | None, *values: str | None) -> tuple[Any, ...]:
        owner = identify(secret, request)
        with reported():
            text = registry.unload(pick or "", owner)
        return quiet(text), *lists(owner, pick, values)

    mine = [owner, chosen, *dropdowns]
    about_one = [details, card, unload]
    everything = [table, chosen, *about_one, *dropdowns]
    quick: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    slow: dict[str, Any] = {
        "api_visibility": "private",
        "concurrency_limit": LOADS_AT_ONCE,
        "concurrency_id": "loading",
        "show_progress_on": told,
    }
    greeting.then(on_open, mine, everything, **quick)
    tab.select(on_open, mine, everything, **quick)
    table.select(on_select, owner, chosen, **quick)
    chosen.change(on_look, [owner, chosen], about_one, **quick)
    begun = gr.on([load.click, source.submit], lambda: gr.Button(visible=True), None, stop, **quick)
    fetched = begun.then(on_load, [source, *mine], [told, source, *everything], **slow)
    for ended in (fetched.success, fetched.failure):
        ended(lambda: gr.Button(visible=False), None, stop, **quick)
    stop.click(on_stop, owner, [told, stop], cancels=[fetched], **quick)
    added = add.click(on_add, [files, *mine], [told, files, *everything], **slow)
    taken = folder.upload(on_folder, [folder, *mine], [told, files, *everything], **slow)
    unloaded = unload.click(on_unload, mine, [told, *everything], **quick)
    # What went wrong is told in words above the page; a mark on the components would stay behind.
    for event in (fetched, added, taken, unloaded):
        event.failure(lambda: "", None, told, **quick)
    gr.api(  # type: ignore[attr-defined]
        shelf.load, api_name="load", concurrency_limit=LOADS_AT_ONCE, concurrency_id="loading"
    )


def renewed(dropdown: gr.Dropdown, choices: list[tuple[str, str]], value: Any, chosen: Any = None) -> gr.Dropdown:
    """The dropdown with new choices, its first and empty one kept.

    Args:
        value: what is chosen in it. It is sent again only where a part of it is gone: somebody may be choosing
            something else right now.
        chosen: what it is to show instead.
    """
    choices = [*((str(label), "") for label, id in dropdown.choices if id == ""), *choices]
    known = [id for _, id in choices]
    wanted = value if chosen is None else chosen
    if dropdown.multiselect:
        kept: Any = [one for one in wanted or [] if one in known]
        stays = len(kept) == len(wanted or [])
    else:
        kept = wanted if wanted in known else next(iter(known), None)
        stays = wanted in known
    return gr.Dropdown(choices=choices) if chosen is None and stays else gr.Dropdown(choices=choices, value=kept)
