"""The Train tab: ask for a specialist, watch it learn, take it along."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.events import Dependency

from bdh.errors import HatcheryError
from train.job import STOPPING, Job, Jobs

from . import curves
from .limits import Limits, hours_text
from .models import renewed
from .owner import identify, reported
from .publish import PublishForm
from .registry import Owner, Registry, size_text
from .runs import Trainer, train_on_lent_gpu
from .wishes import (
    DATASET,
    FRESH,
    MINUTES,
    NUMBERS,
    OWN,
    RATE_OF_BASE,
    RATE_OF_FRESH,
    SHIPPED,
    SHIPPED_TEXTS,
    STEPS,
    TRAINED,
    Wish,
)
from .writing import ON_ZERO_GPU

CSS = """
.runs-status { display: grid; gap: 6px; overflow-wrap: anywhere; }
.runs-status progress { width: 100%; height: 10px; appearance: none; border: none; }
.runs-status progress::-webkit-progress-bar { background: var(--border-color-primary); border-radius: 5px; }
.runs-status progress::-webkit-progress-value { background: #059669; border-radius: 5px; }
.runs-status progress::-moz-progress-bar { background: #059669; border-radius: 5px; }
.runs-message { color: #b45309; }
.dark .runs-message { color: #fbbf24; }
#train-told p { margin: 0; }
#runs-plot .vega-embed, #runs-plot .altair { width: 100%; }
#runs-plot .vega-embed details { display: none; }
#train-shell textarea, #runs-samples textarea, #runs-log textarea {
  font-family: var(--font-mono); font-size: var(--text-sm); }
"""
"""The looks, for the page's style sheet."""
_TICK_S = 2.0
_NOTHING = "No runs yet. Choose a model and a text above, and start one: its curves and samples will appear here."
_TOO_EARLY = "The curves begin with the first measures, a few seconds after it started."
_OPENING = 400
"""Characters of a text that decide the command shown."""
_FIELDS = [field.name for field in dataclasses.fields(Wish)]


def allowed(limits: Limits) -> str:
    """What a run may take here, in words."""
    told = [f"up to {size_text(limits.max_train_bytes)} of text"]
    if limits.public or ON_ZERO_GPU:
        told.insert(0, f"up to {limits.max_train_minutes:,} minutes")
        told.append(f"models of up to {limits.max_train_parameters / 1e6:,.0f} M parameters")
    at_once = limits.max_runs_at_once
    queue = "One run trains at a time" if at_once == 1 else f"{at_once} runs train at a time"
    kept = f" A run and its texts are deleted {hours_text(limits.runs_hours)} after it ended." if limits.public else ""
    return (
        f"Allowed here: {', '.join(told)}. {queue}; others wait their turn. A run goes on when the page is closed, "
        f"and is found here again.{kept}"
    )


def label(job: Job) -> str:
    """A run as the list of runs names it."""
    return f"{job.title} · {job.state} · {time.strftime('%d %b %H:%M:%S', time.gmtime(job.created))} UTC"


@dataclasses.dataclass
class TrainTab:
    """What other parts of the page need."""

    run: gr.Dropdown
    arrive: Callable[[Dependency], Dependency]
    """Lets an event that chose a run be followed by a look at it."""
    lend: Callable[[Dependency, gr.components.Component], None]
    """Where GPUs are lent, lets an event that began a run do it; the component holds the run's id."""


def build_train(
    registry: Registry,
    jobs: Jobs,
    owner: gr.BrowserState,
    limits: Limits,
    dropdowns: Sequence[gr.Dropdown],
    chat_model: gr.Dropdown,
    write_model: gr.Dropdown,
    merge_parents: gr.Dropdown,
    tabs: gr.Tabs,
    greeting: Dependency,
    tab: gr.Tab,
) -> TrainTab:
    """Lay out the tab and wire it.

    Args:
        dropdowns: choices of a model anywhere on the page, which learn of new specialists.
        chat_model, write_model, merge_parents: those of them that a specialist is tried in.
        tabs: all tabs, with the ids `chat`, `write` and `merge`.
        greeting: the event after which `owner` is known.
        tab: where this is; its lists are read anew whenever it is opened.
    """
    trainer = Trainer(registry, jobs, limits)
    bases = trainer.bases("")
    with gr.Row():
        base = gr.Dropdown(
            choices=bases,
            value=bases[0][1] if bases else None,
            label="Begin with",
            info="a model that goes on learning, or a fresh one of a chosen size",
            scale=3,
            min_width=280,
            elem_id="train-base",
        )
        amount = gr.Number(
            min(5, limits.max_train_minutes), label="Budget", info="how long it trains", scale=1,
            min_width=110, elem_id="train-amount",
        )  # fmt: skip
        budget = gr.Radio(
            [MINUTES] if ON_ZERO_GPU else [MINUTES, STEPS], value=MINUTES, label="Unit",
            info="minutes of the clock, or steps", scale=1, min_width=230, elem_id="train-budget",
        )  # fmt: skip
    data = gr.Radio([OWN, SHIPPED, DATASET], value=OWN, label="Learns from", elem_id="train-data")
    with gr.Row(visible=True) as own_row:
        pasted = gr.Textbox(
            label="Text",
            placeholder="Paste a text: letters, a book, code, dialogues … The more the better, from about 20 kB on.",
            lines=7,
            max_lines=7,
            scale=3,
            min_width=280,
            elem_id="train-pasted",
        )
        files = gr.File(
            label="Or files of text", file_count="multiple", height=190, scale=2, min_width=240, elem_id="train-files"
        )
    with gr.Row(visible=False) as shipped_row:
        corpora = gr.CheckboxGroup(
            SHIPPED_TEXTS,
            label="Texts that come with the hatchery",
            info="about 1 to 5 MB each",
            elem_id="train-corpora",
        )
    with gr.Row(visible=False) as dataset_row:
        dataset = gr.Textbox(
            label="Dataset", info="user/name or user/name@revision", placeholder="roneneldan/TinyStories", max_lines=1,
            scale=3, min_width=240, elem_id="train-dataset",
        )  # fmt: skip
        config = gr.Textbox(label="Configuration", info="empty: its default", max_lines=1, min_width=130)
        split = gr.Textbox("train", label="Split", info="to train on", max_lines=1, min_width=110)
        column = gr.Textbox("text", label="Column", info="with the text", max_lines=1, min_width=110)
        megabytes = gr.Number(5, label="Megabytes", info="read at most", min_width=110)
    with gr.Accordion("Advanced", open=False, elem_id="train-advanced"):
        with gr.Row():
            name = gr.Textbox(label="Name", info="of the specialist; empty: after its text", max_lines=1, min_width=180)
            learning_rate = gr.Number(
                RATE_OF_BASE, label="Learning rate", info="the highest, of AdamW", step=0.0001, min_width=150
            )
            rows = gr.Number(8, label="Rows", info="places read side by side", precision=0, min_width=150)
            chunk_bytes = gr.Number(
                256, label="Chunk", info="bytes that gradients reach back", precision=0, min_width=150
            )
        with gr.Row():
            trained = gr.Dropdown(
                list(TRAINED), value="everything", label="What learns", info="of a model's weights", min_width=180
            )
            lora_rank = gr.Number(8, label="LoRA rank", info="of what is added", precision=0, min_width=150)
            patience = gr.Number(
                5,
                label="Patience",
                info="looks without a gain; 0: endless",
                precision=0,
                min_width=150,
            )
            seed = gr.Number(0, label="Seed", info="the same seed, the same run", precision=0, min_width=150)
        with gr.Row():
            activity = gr.Slider(0, 50, 0, step=1, label="Active neurons, %", info="to steer to; 0 leaves them free")
            dropout = gr.Slider(0, 0.5, 0, step=0.05, label="Dropout", info="against learning by heart")
            held_out = gr.Slider(1, 20, 5, step=1, label="Held out, %", info="to validate on; as much to measure on")
        prompt = gr.Textbox(label="Samples begin with", info="empty: the first words of the text", max_lines=3)
    with gr.Row():
        estimate = gr.Button("Estimate", scale=1, min_width=120, elem_id="train-estimate")
        start = gr.Button("Start training", variant="primary", scale=2, min_width=160, elem_id="train-start")
    told = gr.Markdown(allowed(limits), elem_id="train-told")
    with gr.Accordion("The same from a shell", open=False, elem_id="train-same"):
        shell = gr.Textbox(
            label="Command", lines=3, max_lines=8, interactive=False, buttons=["copy"], elem_id="train-shell"
        )
    gr.Markdown("### Your runs")
    nothing = gr.Markdown(_NOTHING, elem_id="runs-nothing")
    with gr.Column(visible=False, elem_id="runs") as shown:
        # Whose a run is decides who asks for it, not what this list knows: after a restart it knows nothing.
        run = gr.Dropdown([], label="Run", allow_custom_value=True, elem_id="runs-run")
        status = gr.HTML(elem_id="runs-status")
        with gr.Row():
            small: dict[str, Any] = {"size": "sm", "min_width": 120, "visible": False}
            stop = gr.Button("Stop", variant="stop", elem_id="runs-stop", **small)
            resume = gr.Button("Resume", elem_id="runs-resume", **small)
            write = gr.Button("Write with it", variant="primary", elem_id="runs-write", **small)
            chat = gr.Button("Chat with it", elem_id="runs-chat", **small)
            merge = gr.Button("Merge it", elem_id="runs-merge", **small)
            download = gr.Button("Download", elem_id="runs-download", **small)
            again = gr.Button("Again with changes", elem_id="runs-again", **small)
            delete = gr.Button("Delete", elem_id="runs-delete", **small)
        file = gr.File(label="The specialist", visible=False, interactive=False, elem_id="runs-file")
        early = gr.Markdown(_TOO_EARLY, visible=False, elem_id="runs-early")
        plot = gr.Plot(show_label=False, visible=False, elem_id="runs-plot")
        samples = gr.Textbox(
            label="What it writes as it learns, the latest first", lines=8, max_lines=8, interactive=False,
            autoscroll=False, visible=False, elem_id="runs-samples",
        )  # fmt: skip
        with gr.Accordion("Publish it on the Hub", open=False, visible=False, elem_id="runs-publish") as hub:
            parting = PublishForm("runs", owner, limits, [run], trainer.parted)
        with gr.Accordion("Log", open=False):
            log = gr.Textbox(
                show_label=False, container=False, lines=10, max_lines=10, interactive=False, elem_id="runs-log"
            )
    seen, opening = gr.State(""), gr.State("")
    timer = gr.Timer(_TICK_S, active=False)

    form: dict[str, Any] = {
        "base": base, "data": data, "pasted": pasted, "corpora": corpora, "dataset": dataset, "config": config,
        "split": split, "column": column, "megabytes": megabytes, "budget": budget, "amount": amount, "name": name,
        "learning_rate": learning_rate, "rows": rows, "chunk_bytes": chunk_bytes, "trained": trained,
        "lora_rank": lora_rank, "activity_percent": activity, "dropout": dropout, "held_out_percent": held_out,
        "patience": patience, "prompt": prompt, "seed": seed,
    }  # fmt: skip
    asked = [form[name] for name in _FIELDS]
    buttons = [stop, resume, write, chat, merge, download, again, delete, hub]
    view = [nothing, shown, run, status, early, plot, samples, log, file, *buttons, seen, timer]

    def wish_of(values: Sequence[Any]) -> Wish:
        told: dict[str, Any] = dict(zip(_FIELDS, values, strict=True))
        # An emptied number is said to be empty; an emptied text is one.
        empty = [name for name, value in told.items() if value is None and name not in (*NUMBERS, "amount")]
        return Wish(**told | dict.fromkeys(empty, "") | ({"corpora": []} if told["corpora"] is None else {}))

    def look(whose: Owner, id: str | None, token: str | None = None) -> tuple[Any, ...]:
        """Everything that shows a run; with the `token` of the look before, only what has changed since."""
        found = jobs.of(whose)
        if not found:
            return gr.Markdown(visible=True), gr.Column(visible=False), *[gr.skip()] * 16, "", gr.Timer(active=False)
        job = next((one for one in found if one.id == id), found[0])
        now = trainer.look(job.id, whose)
        choices = [(label(one), one.id) for one in found]
        renewed_token = f"{job.id} {len(now.measures)} {choices}"
        active = gr.Timer(active=job.active)
        if token == renewed_token:
            return *[gr.skip()] * 3, now.status, *[gr.skip()] * 3, now.log, *[gr.skip()] * 10, token, active
        drawn = curves.chart(now.measures)
        done = job.checkpoint is not None
        visible = [job.active, job.resumable, done, done, done, done, True, not job.active]
        named = "Stop at once, unmeasured" if job.state == STOPPING else "Stop"
        shows = [gr.Button(named, visible=visible[0]), *(gr.Button(visible=one) for one in visible[1:])]
        return (
            gr.Markdown(visible=False),
            gr.Column(visible=True),
            # Which run is looked at is not the clock's to say: another may have been chosen since.
            gr.Dropdown(choices=choices, value=job.id) if token is None else gr.Dropdown(choices=choices),
            now.status,
            gr.Markdown(visible=drawn is None and job.active),
            gr.Plot(drawn, visible=drawn is not None),
            gr.Textbox(now.samples, visible=bool(now.samples)),
            now.log,
            gr.File(visible=False),
            *shows,
            gr.Accordion(visible=done),
            renewed_token,
            active,
        )

    def on_open(request: gr.Request, secret: str, id: str | None, pick: str | None) -> tuple[Any, ...]:
        whose = identify(secret, request)
        known = trainer.bases(whose)
        pick = pick if pick in [one for _, one in known] else next((one for _, one in known), None)
        return gr.Dropdown(choices=known, value=pick), *look(whose, id)

    def on_look(request: gr.Request, secret: str, id: str | None) -> tuple[Any, ...]:
        return look(identify(secret, request), id)

    def on_tick(request: gr.Request, secret: str, id: str | None, token: str) -> tuple[Any, ...]:
        return look(identify(secret, request), id, token)

    def on_shell(request: gr.Request, secret: str, chosen: list[str] | None, *values: Any) -> str:
        return trainer.shell(wish_of(values), chosen or [], identify(secret, request))

    def on_estimate(request: gr.Request, secret: str, chosen: list[str] | None, *values: Any) -> str:
        with reported():
            return trainer.estimate(wish_of(values), chosen or [], identify(secret, request))

    def on_start(request: gr.Request, secret: str, chosen: list[str] | None, *values: Any) -> tuple[Any, ...]:
        whose = identify(secret, request)
        with reported():
            id = trainer.start(wish_of(values), chosen or [], whose)
        return allowed(limits), *look(whose, id)

    def on_stop(request: gr.Request, secret: str, id: str) -> tuple[Any, ...]:
        whose = identify(secret, request)
        with reported():
            jobs.stop(id, whose)
        return look(whose, id)

    def on_resume(request: gr.Request, secret: str, id: str) -> tuple[Any, ...]:
        whose = identify(secret, request)
        with reported():
            jobs.resume(id, whose)
        return look(whose, id)

    def on_delete(request: gr.Request, secret: str, id: str) -> tuple[Any, ...]:
        whose = identify(secret, request)
        with reported():
            jobs.delete(id, whose)
        return look(whose, None)

    def on_use(request: gr.Request, secret: str, id: str, where: str, *values: Any) -> tuple[Any, ...]:
        target = {"chat": chat_model, "write": write_model, "merge": merge_parents}[where]
        whose = identify(secret, request)
        with reported():
            model = trainer.adopt(id, whose)
        choices = registry.choices(whose)
        taken: Any = [*known_parents(id, whose), model] if target is merge_parents else model
        shown = [
            renewed(one, choices, value, taken if one is target else None)
            for one, value in zip(dropdowns, values, strict=True)
        ]
        return gr.Tabs(selected=where), *shown

    def known_parents(id: str, whose: Owner) -> list[str]:
        """What a specialist was made from, if that is still here: it is the nearest of its kin to merge with."""
        base = jobs.get(id, whose).form.get("base")
        return [entry.id for entry in registry.entries(whose) if entry.id == base]

    def on_download(request: gr.Request, secret: str, id: str) -> gr.File:
        with reported():
            return gr.File(str(trainer.zipped(id, identify(secret, request))), visible=True)

    def on_again(request: gr.Request, secret: str, id: str) -> list[Any]:
        whose = identify(secret, request)
        with reported():
            before = trainer.wish_of(id, whose)
        values = dataclasses.asdict(before)
        if before.base not in [one for _, one in trainer.bases(whose)]:
            values["base"] = gr.skip()
        lost = before.data == OWN and not before.pasted
        said = "Choose the files of this run again: they are not plain text, or too long to be shown." if lost else ""
        # The files would be read beside the text that was taken from them.
        return [*(values[name] for name in _FIELDS), None, before.pasted[:_OPENING], said or "Filled in above."]

    quick: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    greeting.then(on_open, [owner, run, base], [base, *view], **quick)
    tab.select(on_open, [owner, run, base], [base, *view], **quick)
    run.input(on_look, [owner, run], view, **quick)
    timer.tick(on_tick, [owner, run, seen], view, trigger_mode="once", **quick)
    data.change(
        lambda chosen: [gr.Row(visible=chosen == one) for one in (OWN, SHIPPED, DATASET)],
        data,
        [own_row, shipped_row, dataset_row],
        **quick,
    )
    base.input(
        lambda chosen: RATE_OF_FRESH if str(chosen).startswith(FRESH) else RATE_OF_BASE, base, learning_rate, **quick
    )
    # The command needs no more of a long text than its first words.
    hasty = [opening if one is pasted else one for one in asked]
    gr.on([pasted.blur, start.click], lambda text: str(text or "")[:_OPENING], pasted, opening, **quick)
    gr.on(
        [tab.select, opening.change, files.change, *(one.change for one in asked if one is not pasted)],
        on_shell,
        [owner, files, *hasty],
        shell,
        trigger_mode="always_last",
        **quick,
    )
    given = [owner, files, *asked]
    tried = estimate.click(
        on_estimate, given, told, api_visibility="private", concurrency_limit=1, show_progress="full"
    )
    tried.failure(lambda: allowed(limits), None, told, **quick)
    budget.input(lambda unit: 5 if unit == MINUTES else 300, budget, amount, **quick)
    started = start.click(
        on_start, given, [told, *view], **(quick | {"show_progress": "minimal"}), show_progress_on=told
    )
    resumed = resume.click(on_resume, [owner, run], view, **quick)
    lent: dict[str, Any] = quick | {"concurrency_limit": limits.max_runs_at_once, "concurrency_id": "training"}

    def on_lent(request: gr.Request, secret: str, id: str) -> None:
        job = jobs.get(id, identify(secret, request))
        try:
            train_on_lent_gpu(str(jobs.root), id, float(job.form.get("amount", 1)))
        except HatcheryError:  # it does not wait any more
            return
        except Exception as error:  # no GPU is left for this visitor, or it was taken back
            jobs.give_back(id, f"no GPU, or no longer: {error}"[:300])
            raise

    def lend(event: Dependency, id: gr.components.Component) -> None:
        if ON_ZERO_GPU:
            event.success(on_lent, [owner, id], None, **lent).then(on_look, [owner, run], view, **quick)

    for event in (started, resumed):
        lend(event, run)
    stopped = stop.click(on_stop, [owner, run], view, **quick)
    deleted = delete.click(on_delete, [owner, run], view, **quick)
    # What went wrong is told in words above the page; marks on the components would stay behind.
    started.failure(lambda: allowed(limits), None, told, **quick)
    for asked_for in (started, resumed, stopped, deleted):
        asked_for.failure(on_look, [owner, run], view, **quick)
    for button, where in ((chat, "chat"), (write, "write"), (merge, "merge")):
        place = gr.State(where)
        button.click(on_use, [owner, run, place, *dropdowns], [tabs, *dropdowns], **quick)
    download.click(on_download, [owner, run], file, **quick)
    filled = again.click(on_again, [owner, run], [*asked, files, opening, told], **quick)
    filled.then(None, js="() => { document.querySelector('#train-base').scrollIntoView({behavior: 'smooth'}); }")
    parting.suggest_on([hub.expand], [run.change])
    return TrainTab(run, lambda event: event.then(on_look, [owner, run], view, **quick), lend)
