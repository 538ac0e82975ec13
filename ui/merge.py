"""The Merge tab: several models into one, what it kept and lost, its parents beside it, and its healing."""

from __future__ import annotations

import dataclasses
import html
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from bdh.errors import HatcheryError, MergeError
from bdh.merge import METHODS
from bdh.sampling import Sampling
from train.job import Job, Jobs

from . import beside, kept, lineage
from .beside import MAX_BYTES, MAX_PROMPT_BYTES, MOST_VOICES, write_beside
from .kept import AVERAGE, HEALED, MERGED, MIXTURE, PARENT, Report, Subject
from .limits import Limits, hours_text
from .markup import bar
from .merges import DEMONSTRATION, Kept, Merger, Wanted, healing
from .models import renewed
from .owner import identify, reported
from .parting import Packer
from .publish import PublishForm
from .registry import Owner, Registry, size_text
from .runs import Trainer
from .steps import in_steps, whole
from .train import TrainTab
from .wishes import MINUTES, SHIPPED, SHIPPED_TEXTS, Wish
from .write import paper, prompt_bytes, sampling

CSS = """
#merge-line p { margin: 0; }
#merge-told p, #merge-heal-told p, #merge-progress p { margin: 0; }
#merge-plan textarea, #merge-shell textarea { font-family: var(--font-mono); font-size: var(--text-sm); }
.merge-fits { color: #047857; } .dark .merge-fits { color: #6ee7b7; }
.merge-unfit { color: #b45309; } .dark .merge-unfit { color: #fbbf24; }
"""
"""The looks, for the page's style sheet."""
PROMPTS = ["In the beginning, ", "En el principio ", "def read(self, ", '\nUser: What does "river" mean?\nBot:']
_NOTHING = (
    "Nothing merged yet. Choose two models or more above: the shipped specialists are chosen already, so one click on "
    "**Merge** makes one model of them."
)
_HEALED = "+"
"""Between a merged model's id and the id of the run that healed it."""
_FIELDS = [one.name for one in dataclasses.fields(Wanted)]
_OPTIONS = ("weights", "base", "t", "density", "scale", "share_rate", "width", "neurons", "align", "seed")
_BYTES = 2_048


def parents_dropdown(registry: Registry) -> gr.Dropdown:
    """The choice of parents, not yet placed: the Train tab fills it in, too."""
    known = [id for _, id in registry.choices("")]
    return gr.Dropdown(
        choices=registry.choices(""),
        value=[id for id in DEMONSTRATION if id in known] or known[:2],
        multiselect=True,
        label="Models to merge",
        info="two or more; the order matters only to slerp and to alignment",
        render=False,
        elem_id="merge-parents",
    )


def base_dropdown(registry: Registry) -> gr.Dropdown:
    """The choice of a base, not yet placed."""
    known = [id for _, id in registry.choices("")]
    return gr.Dropdown(
        choices=registry.choices(""),
        value="base" if "base" in known else registry.default() or None,
        label="Base",
        info="what these models were cloned from",
        scale=2,
        min_width=280,
        visible=False,
        render=False,
        elem_id="merge-base",
    )


class Workshop:
    """What the tab does with what was merged, without components."""

    def __init__(self, registry: Registry, merger: Merger, trainer: Trainer, limits: Limits) -> None:
        self.registry, self.merger, self.trainer, self.limits = registry, merger, trainer, limits
        self._packer = Packer()

    def healings(self, found: Kept, owner: Owner) -> list[Job]:
        """The runs that went on with a merged model, the newest first; none of one that cannot be listed."""
        try:
            id = self.merger.model_id(found, owner)
        except (HatcheryError, OSError):  # it is damaged, or was made where more is allowed
            return []
        return [job for job in self.trainer.jobs.of(owner) if job.form.get("base") == id]

    def choices(self, owner: Owner) -> list[tuple[str, str]]:
        """(label, subject) of what was merged, each followed by what became of it by healing."""
        listed = []
        for found in self.merger.of(owner):
            made = time.strftime("%d %b %H:%M", time.gmtime(found.created))
            listed.append((f"{found.title} · {found.method} of {len(found.parents)} · {made} UTC", found.id))
            listed += [
                (f"{job.title} · healed from it", f"{found.id}{_HEALED}{job.id}")
                for job in self.healings(found, owner)
                if job.checkpoint is not None
            ]
        return listed

    def subject(self, chosen: str | None, owner: Owner) -> tuple[Kept, Job | None]:
        """The merged model, and the run that healed it if that one is chosen.

        Raises:
            HatcheryError: it is none of the owner's.
        """
        id, _, run = (chosen if isinstance(chosen, str) else "").partition(_HEALED)
        found = self.merger.get(id, owner)
        if not run:
            return found, None
        job = next((one for one in self.healings(found, owner) if one.id == run), None)
        if job is None:
            raise MergeError("the run that healed this model was deleted; choose another")
        return found, job

    def model(self, chosen: str | None, owner: Owner) -> Subject:
        """What is chosen, as a model in the registry."""
        found, job = self.subject(chosen, owner)
        if job is not None:
            return Subject(job.title, self.trainer.adopt(job.id, owner), HEALED)
        return Subject(found.title, self.merger.model_id(found, owner), MERGED)

    def subjects(self, found: Kept, owner: Owner) -> list[Subject]:
        """Everything that is measured: parents, the merged model, and what healing made of it."""
        listed = [Subject(name, id, PARENT) for name, id in self.merger.parents(found, owner)]
        listed.append(Subject(found.title, self.merger.model_id(found, owner), MERGED))
        for job in reversed(self.healings(found, owner)):
            with suppress(HatcheryError):  # it has made nothing
                listed.append(Subject(job.title, self.trainer.adopt(job.id, owner), HEALED))
        named: list[Subject] = []
        for one in listed:  # a model may be called as another is, or as a baseline
            name, count = one.name, 1
            while name in (AVERAGE, MIXTURE, *(other.name for other in named)):
                count += 1
                name = f"{one.name} ({count})"
            named.append(one if name == one.name else dataclasses.replace(one, name=name))
        return named

    def report(
        self, chosen: str | None, names: Sequence[str], own: bytes, most_bytes: float, baselines: Sequence[str],
        owner: Owner,
    ) -> Iterator[Any]:  # fmt: skip
        """What `kept.measure` tells and gives.

        Raises:
            HatcheryError: there is no text, or the number of bytes is not allowed.
        """
        found, _ = self.subject(chosen, owner)
        most = self.limits.max_report_bytes
        if not isinstance(most_bytes, (int, float)) or not 256 <= most_bytes <= most:
            raise MergeError(f"the bytes of each text are {most_bytes!r:.40}; allowed are 256 to {most:,}")
        texts = kept.texts_of([name for name in SHIPPED_TEXTS if name in names], own, int(most_bytes))
        subjects = self.subjects(found, owner)
        return in_steps(
            lambda tell, give: kept.measure(self.merger, found, subjects, texts, baselines, owner, tell, give)
        )

    def heal(self, chosen: str | None, minutes: float | None, texts: Sequence[str], trained: str, owner: Owner) -> str:
        """Let a merged model go on with texts of its parents' kinds; returns the run's id.

        Raises:
            HatcheryError: what is asked for cannot be, or not now.
        """
        subject = self.model(chosen, owner)
        name = f"{subject.name.removesuffix('-healed')[:50]}-healed"
        return self.trainer.start(
            Wish(
                base=subject.id, data=SHIPPED, corpora=list(texts), budget=MINUTES, amount=minutes,  # type: ignore[arg-type]
                name=name, trained=trained, **healing(texts),
            ),
            [],
            owner,
        )  # fmt: skip

    def zipped(self, chosen: str | None, owner: Owner) -> str:
        """What is chosen as one file."""
        found, job = self.subject(chosen, owner)
        if job is not None:
            return str(self.trainer.zipped(job.id, owner))
        return str(self._packer.zipped(found.checkpoint, found.title))

    def made(self, owner: Owner, chosen: str | None) -> tuple[Path, str]:
        """The folder of the checkpoint that is chosen, and what it is called."""
        found, job = self.subject(chosen, owner)
        if job is not None:
            return self.trainer.made(job.id, owner), job.title
        return found.checkpoint, found.title

    def delete(self, chosen: str | None, owner: Owner) -> str:
        """Delete what was merged; returns what was done."""
        found, job = self.subject(chosen, owner)
        if job is not None:
            self.trainer.jobs.delete(job.id, owner)
            return f"{job.title} was deleted."
        return self.merger.delete(found.id, owner)


def build_merge(
    registry: Registry,
    merger: Merger,
    jobs: Jobs,
    owner: gr.BrowserState,
    limits: Limits,
    parents: gr.Dropdown,
    base: gr.Dropdown,
    dropdowns: Sequence[gr.Dropdown],
    chat_model: gr.Dropdown,
    write_model: gr.Dropdown,
    train: TrainTab,
    tabs: gr.Tabs,
    greeting: Dependency,
    tab: gr.Tab,
) -> None:
    """Lay out the tab and wire it.

    Args:
        parents, base: as `parents_dropdown` and `base_dropdown` made them.
        dropdowns: choices of a model anywhere on the page, which learn of what was merged.
        chat_model, write_model: those of them that it is tried in.
        train: where healing is watched.
        tabs: all tabs, with the ids `chat`, `write` and `train`.
        greeting: the event after which `owner` is known.
        tab: where this is; its lists are read anew whenever it is opened.
    """
    workshop = Workshop(registry, merger, Trainer(registry, jobs, limits), limits)
    with gr.Row():
        parents.render()
    with gr.Row():
        method = gr.Dropdown(
            [(f"{name}: {one.summary}", name) for name, one in METHODS.items()],
            value=next(iter(METHODS)),
            label="Method",
            elem_id="merge-method",
        )
    with gr.Row():
        weights = gr.Textbox(
            label="Weights", info="one a model, such as 1, 0.5; empty: all alike", max_lines=1, scale=2, min_width=200,
            elem_id="merge-weights",
        )  # fmt: skip
        base.render()
    with gr.Accordion("Advanced", open=False, elem_id="merge-advanced"):
        with gr.Row():
            name = gr.Textbox(label="Name", info="empty: after the models", max_lines=1, min_width=180)
            neurons = gr.Number(0, label="Neurons a head", info="cut to; 0 keeps all", precision=0, min_width=150)
            by = gr.Dropdown(["activity", "random"], value="activity", label="Cut by", info="which stay", min_width=150)
            align = gr.Checkbox(
                False, label="Align first", info="for models without a common base", min_width=180,
                elem_id="merge-align",
            )  # fmt: skip
        with gr.Row():
            hidden: dict[str, Any] = {"min_width": 150, "visible": False}
            t = gr.Slider(0, 1, 0.5, step=0.05, label="t", info="0: the first, 1: the second", **hidden)
            density = gr.Slider(0.05, 1, 0.5, step=0.05, label="Density", info="of changes, kept", **hidden)
            scale = gr.Number(1, label="Scale", info="of the summed changes", **hidden)
            rate = gr.Number(0.005, label="Share rate", info="0 to 0.5: trust that moves on", step=0.001, **hidden)
            width = gr.Number(256, label="Width", info="of the combined state", precision=0, **hidden)
            seed = gr.Number(0, label="Seed", info="of what is drawn at random", precision=0, min_width=150)
    line = gr.HTML(elem_classes="flush", elem_id="merge-line")
    plan = gr.Textbox(label="The plan", lines=8, max_lines=14, interactive=False, visible=False, elem_id="merge-plan")
    with gr.Accordion("The same from a shell", open=False):
        shell = gr.Textbox(
            label="Command", lines=3, max_lines=8, interactive=False, buttons=["copy"], elem_id="merge-shell"
        )
    go = gr.Button("Merge", variant="primary", elem_id="merge-go")
    told = gr.Markdown(elem_id="merge-told")
    expiry = (
        f"\n\nA merged model is deleted {hours_text(limits.runs_hours)} after it was made." if limits.public else ""
    )
    gr.Markdown(f"### Your merged models{expiry}")
    nothing = gr.Markdown(_NOTHING, elem_id="merge-nothing")
    with gr.Column(visible=False, elem_id="merge-made") as shown:
        # Whose a merge is decides who asks for it, not what this list knows.
        chosen = gr.Dropdown([], label="Model", allow_custom_value=True, elem_id="merge-chosen")
        with gr.Row():
            small: dict[str, Any] = {"size": "sm", "min_width": 120}
            write = gr.Button("Write with it", variant="primary", elem_id="merge-write", **small)
            chat = gr.Button("Chat with it", elem_id="merge-chat", **small)
            download = gr.Button("Download", elem_id="merge-download", **small)
            delete = gr.Button("Delete", elem_id="merge-delete", **small)
        file = gr.File(label="The merged model", visible=False, interactive=False, elem_id="merge-file")
        with gr.Tabs():
            with gr.Tab("Kept and lost", id="kept"):
                with gr.Row():
                    texts = gr.CheckboxGroup(
                        SHIPPED_TEXTS, value=SHIPPED_TEXTS, label="Measured on", info="held out from training",
                        min_width=280, elem_id="merge-texts",
                    )  # fmt: skip
                    baselines = gr.CheckboxGroup(
                        [AVERAGE, MIXTURE], value=[AVERAGE, MIXTURE], label="Beside", info="the cheap alternatives",
                        min_width=220,
                    )  # fmt: skip
                    size = gr.Number(
                        _BYTES, label="Bytes of each", info=f"256 to {limits.max_report_bytes:,}", precision=0,
                        min_width=140,
                    )  # fmt: skip
                with gr.Accordion("A text of your own", open=False), gr.Row():
                    pasted = gr.Textbox(
                        label="Text", placeholder="Paste a few thousand characters.", lines=5, max_lines=5, scale=3,
                        min_width=280, elem_id="merge-pasted",
                    )  # fmt: skip
                    own = gr.File(label="Or a file of text", height=150, scale=2, min_width=220)
                with gr.Row():
                    measure = gr.Button("Measure", variant="primary", scale=2, min_width=140, elem_id="merge-measure")
                    stop = gr.Button("Stop", variant="stop", interactive=False, min_width=90, elem_id="merge-stop")
                progress = gr.HTML(elem_classes="flush", elem_id="merge-progress")
                table = gr.HTML(elem_classes="flush", elem_id="merge-table")
                plot = gr.Plot(show_label=False, visible=False, elem_id="merge-plot")
                shares = gr.HTML(elem_classes="flush", elem_id="merge-shares")
            with gr.Tab("Side by side", id="beside"):
                prompt = gr.Textbox(
                    label="Prompt", info="All go on where this ends, from the same seed.", lines=2, max_lines=6,
                    value=PROMPTS[0], elem_id="merge-prompt",
                )  # fmt: skip
                gr.Examples(
                    [[one] for one in PROMPTS],
                    [prompt],
                    label="Prompts",
                    example_labels=[one.replace("\n", " ⏎ ").strip() for one in PROMPTS],
                    api_visibility="private",
                )
                with gr.Row():
                    count = gr.Number(120, label="Bytes to write", info=f"1 to {MAX_BYTES:,}", precision=0)
                    warmth = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="0 takes the likeliest byte")
                    drawn = gr.Number(0, label="Seed", info="the same seed, the same texts", precision=0)
                with gr.Row():
                    speak = gr.Button(
                        "Let them write", variant="primary", scale=2, min_width=140, elem_id="merge-speak"
                    )
                    hush = gr.Button("Stop", variant="stop", interactive=False, min_width=90, elem_id="merge-hush")
                legend = gr.HTML(elem_classes="flush", elem_id="merge-legend")
                summaries: list[gr.HTML] = []
                papers: list[gr.HTML] = []
                columns: list[gr.Column] = []

                def lay_out(place: int) -> None:
                    with gr.Column(visible=False, min_width=400) as column:
                        summaries.append(gr.HTML(elem_classes="flush", elem_id=f"merge-summary-{place}"))
                        label = f"What parent {place} wrote" if place else "What the merged model wrote"
                        papers.append(paper(label, "Its text appears here.", f"merge-paper-{place}"))
                    columns.append(column)

                lay_out(0)
                with gr.Row():
                    for place in range(1, MOST_VOICES):
                        lay_out(place)
            with gr.Tab("Heal", id="heal"):
                gr.Markdown(
                    "Healing is a short training on what the parents were trained on; it mends what joining put out "
                    "of step. It runs in the background, in the Train tab, also when the page is closed."
                )
                with gr.Row():
                    minutes = gr.Number(
                        min(3, limits.max_train_minutes), label="Minutes", info="of the clock", min_width=120,
                        elem_id="merge-minutes",
                    )  # fmt: skip
                    mixed = gr.CheckboxGroup(
                        SHIPPED_TEXTS, value=SHIPPED_TEXTS, label="Learns from", info="in equal parts", min_width=280,
                        elem_id="merge-mixed",
                    )  # fmt: skip
                    learning = gr.Dropdown(
                        ["everything", "the read-out"], value="everything", label="What learns",
                        info="of its weights", min_width=160,
                    )  # fmt: skip
                heal = gr.Button("Heal it", variant="primary", elem_id="merge-heal")
                healed = gr.Markdown(elem_id="merge-heal-told")
                watch = gr.Button("Watch it in the Train tab", visible=False, elem_id="merge-watch")
            with gr.Tab("Publish", id="publish") as publishing:
                parting = PublishForm("merge", owner, limits, [chosen], workshop.made)
    healing_run = gr.State("")

    form: dict[str, Any] = {
        "parents": parents, "method": method, "weights": weights, "base": base, "t": t, "density": density,
        "scale": scale, "share_rate": rate, "width": width, "neurons": neurons, "by": by, "align": align,
        "seed": seed, "name": name,
    }  # fmt: skip
    asked = [form[one] for one in _FIELDS]

    def wanted(values: Sequence[Any]) -> Wanted:
        given: dict[str, Any] = dict(zip(_FIELDS, values, strict=True))
        given["parents"] = tuple(given["parents"] or ())
        empty = ("weights", "base", "name", "by")
        return Wanted(**given | {one: given[one] or "" for one in empty})

    def on_preview(request: gr.Request, secret: str, *values: Any) -> tuple[Any, ...]:
        found = merger.preview(wanted(values), identify(secret, request))
        mark = "merge-fits" if found.fits else "merge-unfit"
        said = f'<p class="{mark}">{html.escape(found.line)}</p>'
        return (
            said,
            gr.Textbox(found.plan, visible=found.fits, lines=max(1, found.plan.count("\n") + 1)),
            found.command,
            gr.Button(interactive=found.fits),
        )

    def on_method(chosen_method: str) -> list[Any]:
        known = isinstance(chosen_method, str) and chosen_method in METHODS
        uses = METHODS[chosen_method].options if known else ()
        visible = {one: one in uses for one in _OPTIONS} | {"seed": "seed" in uses or "neurons" in uses}
        return [type(form[one])(visible=visible[one]) for one in _OPTIONS] + [gr.Dropdown(visible=visible["neurons"])]

    def look(whose: Owner, pick: str | None) -> tuple[Any, ...]:
        """Everything that shows what was merged."""
        choices = workshop.choices(whose)
        if not choices:
            return gr.Markdown(visible=True), gr.Column(visible=False), gr.Dropdown(choices=[], value=None), *blank()
        known = [one for _, one in choices]
        pick = pick if pick in known else known[0]
        return (
            gr.Markdown(visible=False),
            gr.Column(visible=True),
            gr.Dropdown(choices=choices, value=pick),
            *about(whose, pick),
        )

    def about(whose: Owner, pick: str) -> tuple[Any, ...]:
        found, job = workshop.subject(pick, whose)
        report = kept.last_report(found)
        names = merger.texts(found.parents, whose)
        return (
            gr.File(visible=False),
            *drawn_report(report),
            gr.CheckboxGroup(value=names),
            gr.CheckboxGroup(value=names),
            "",
            gr.Button("Delete this run" if job else "Delete"),
            lineage.legend(found.names),
            *([""] * MOST_VOICES),
            *([None] * MOST_VOICES),
            *[gr.Column(visible=place <= len(found.names)) for place in range(MOST_VOICES)],
        )

    def blank() -> list[Any]:
        return [gr.skip()] * (9 + 3 * MOST_VOICES)

    def drawn_report(report: Report | None) -> tuple[Any, ...]:
        if report is None:
            return "", gr.Plot(visible=False), ""
        return kept.table(report), gr.Plot(kept.chart(report), visible=True), kept.shares_markup(report)

    def on_open(request: gr.Request, secret: str, pick: str | None) -> tuple[Any, ...]:
        with reported():
            return look(identify(secret, request), pick)

    def on_choose(request: gr.Request, secret: str, pick: str | None) -> tuple[Any, ...]:
        with reported():
            return look(identify(secret, request), pick)

    def on_merge(
        request: gr.Request,
        secret: str,
        tell: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio knows a handler's progress by its default
        *given: Any,
    ) -> tuple[Any, ...]:
        whose = identify(secret, request)
        values, picks = given[: len(_FIELDS)], given[len(_FIELDS) :]
        begun = time.monotonic()
        with reported():
            made = merger.merge(wanted(values), whose, lambda done, total, note: tell((done, total), desc=note))
        size_told = size_text(sum(path.stat().st_size for path in made.checkpoint.iterdir()))
        said = (
            f"Merged into **{made.title}**, {size_told}, in {time.monotonic() - begun:.1f} s. It can be chosen in "
            "every tab."
        )
        choices = registry.choices(whose)
        again = [renewed(one, choices, pick) for one, pick in zip(dropdowns, picks, strict=True)]
        return said, *look(whose, made.id), *again

    def on_use(request: gr.Request, secret: str, pick: str, where: str, *values: Any) -> tuple[Any, ...]:
        target = {"chat": chat_model, "write": write_model}[where]
        whose = identify(secret, request)
        with reported():
            model = workshop.model(pick, whose).id
        choices = registry.choices(whose)
        return gr.Tabs(selected=where), *[
            renewed(one, choices, value, model if one is target else None)
            for one, value in zip(dropdowns, values, strict=True)
        ]

    def on_download(request: gr.Request, secret: str, pick: str) -> gr.File:
        with reported():
            return gr.File(workshop.zipped(pick, identify(secret, request)), visible=True)

    def on_delete(request: gr.Request, secret: str, pick: str, *values: Any) -> tuple[Any, ...]:
        whose = identify(secret, request)
        with reported():
            said = workshop.delete(pick, whose)
        choices = registry.choices(whose)
        again = [renewed(one, choices, value) for one, value in zip(dropdowns, values, strict=True)]
        return said, *look(whose, None), *again

    @whole
    def on_measure(
        request: gr.Request, secret: str, pick: str, names: list[str] | None, cheap: list[str] | None,
        most_bytes: float, text: str, path: str | None,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        with reported():
            own_bytes = kept.own_text(text, path)
            steps = workshop.report(pick, names or [], own_bytes, most_bytes, cheap or [], identify(secret, request))
            yield bar(0.0, "getting ready"), *[gr.skip()] * 3, *_buttons(running=True)
            with closing(steps) as progressing:  # type: ignore[type-var]
                for item in progressing:
                    if isinstance(item, Report):
                        yield gr.skip(), *drawn_report(item), gr.skip(), gr.skip()
                    else:
                        yield bar(*item), *[gr.skip()] * 5
            yield "", *[gr.skip()] * 3, *_buttons(running=False)

    def on_speak(
        request: gr.Request, secret: str, pick: str, text: str, many: float | None, temperature: float,
        seed: float | None,
    ) -> Iterator[list[Any]]:  # fmt: skip
        whose = identify(secret, request)
        with reported():
            found, _ = workshop.subject(pick, whose)
            options, data = told_how(text, many, temperature, seed)
            first = workshop.model(pick, whose)
            models = [first, *(one for one in workshop.subjects(found, whose) if one.kind == PARENT)]
            heritage = kept.heritage_of(found)
            voices: list[beside.Voice] = []
            names = kept.names_of(found, models)
            with closing(write_beside(registry, models, names, heritage, data, options, whose)) as writing:
                for voices in writing:
                    yield [*update(voices), *_buttons(running=True)]
            yield [*update(voices), *_buttons(running=False)]

    def told_how(text: str, many: float | None, temperature: float, seed: float | None) -> tuple[Sampling, bytes]:
        data = prompt_bytes(text or "", limits)
        if len(data) > MAX_PROMPT_BYTES:
            raise MergeError(f"the prompt has {len(data):,} bytes; up to {MAX_PROMPT_BYTES:,} are allowed here")
        if many is None or not 1 <= many <= MAX_BYTES:
            raise MergeError(f"the bytes to write are {many!r:.40}; allowed are 1 to {MAX_BYTES:,}")
        options = sampling(
            limits, max_bytes=many, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=0.0,
            repetition_decay=0.98, seed=seed, stop="", valid_utf8=True,
        )  # fmt: skip
        return options, data

    def update(voices: Sequence[beside.Voice]) -> list[Any]:
        unused = MOST_VOICES - len(voices)
        return [
            *[voice.summary() for voice in voices], *[""] * unused, *[voice.drawn() for voice in voices],
            *[None] * unused,
        ]  # fmt: skip

    def on_heal(
        request: gr.Request, secret: str, pick: str, for_minutes: float | None, names: list[str] | None, what: str
    ) -> tuple[Any, ...]:
        whose = identify(secret, request)
        with reported():
            id = workshop.heal(pick, for_minutes, names or [], what, whose)
        title = jobs.get(id, whose).title
        return (
            f"**{title}** is on its way. When it is done it stands in the list above, too.",
            id,
            gr.Button(visible=True),
        )

    quick: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    planning = quick | {"concurrency_limit": 2, "concurrency_id": "planning"}  # it reads the parents' files
    view = [
        nothing, shown, chosen, file, table, plot, shares, texts, mixed, progress, delete, legend, *summaries,
        *papers, *columns,
    ]  # fmt: skip
    gr.on(
        [tab.select, *(one.change for one in asked)],
        on_preview,
        [owner, *asked],
        [line, plan, shell, go],
        trigger_mode="always_last",
        **planning,
    )
    greeting.then(on_preview, [owner, *asked], [line, plan, shell, go], **planning)
    method.change(on_method, method, [*(form[one] for one in _OPTIONS), by], **quick)
    greeting.then(on_open, [owner, chosen], view, **quick)
    tab.select(on_open, [owner, chosen], view, **quick)
    chosen.input(on_choose, [owner, chosen], view, **quick)
    merged = go.click(
        on_merge, [owner, *asked, *dropdowns], [told, *view, *dropdowns], api_visibility="private",
        concurrency_limit=1, concurrency_id="merging", show_progress="full", show_progress_on=told,
    )  # fmt: skip
    merged.failure(lambda: "", None, told, **quick)
    for button, where in ((chat, "chat"), (write, "write")):
        button.click(on_use, [owner, chosen, gr.State(where), *dropdowns], [tabs, *dropdowns], **quick)
    download.click(on_download, [owner, chosen], file, **quick)
    deleted = delete.click(on_delete, [owner, chosen, *dropdowns], [told, *view, *dropdowns], **quick)
    deleted.failure(on_open, [owner, chosen], view, **quick)
    working: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    measured = measure.click(
        on_measure, [owner, chosen, texts, baselines, size, pasted, own],
        [progress, table, plot, shares, measure, stop],
        concurrency_limit=1, concurrency_id="measuring", **working,
    )  # fmt: skip
    measured.failure(lambda: ("", *_buttons(running=False)), None, [progress, measure, stop], **quick)
    stop.click(lambda: ("", *_buttons(running=False)), None, [progress, measure, stop], cancels=[measured], **quick)
    spoken = gr.on(
        [speak.click, prompt.submit], on_speak, [owner, chosen, prompt, count, warmth, drawn],
        [*summaries, *papers, speak, hush], concurrency_limit=limits.max_at_once, concurrency_id="writing", **working,
    )  # fmt: skip
    spoken.failure(lambda: _buttons(running=False), None, [speak, hush], **quick)
    hush.click(lambda: _buttons(running=False), None, [speak, hush], cancels=[spoken], **quick)
    begun = heal.click(
        on_heal, [owner, chosen, minutes, mixed, learning], [healed, healing_run, watch], api_visibility="private",
        concurrency_limit=1, show_progress="minimal", show_progress_on=healed,
    )  # fmt: skip
    begun.failure(lambda: "", None, healed, **quick)
    train.lend(begun, healing_run)
    train.arrive(watch.click(lambda id: (gr.Tabs(selected="train"), id), healing_run, [tabs, train.run], **quick))
    parting.suggest_on([publishing.select], [chosen.change])


def _buttons(*, running: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not running), gr.Button(interactive=running)
