"""The view Features: a report on a model's activations that was made before, and each feature with its examples."""

from __future__ import annotations

import html
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from bdh.errors import DataError
from lab.features.findings import (
    EXTRACTED,
    RESULT,
    Feature,
    Report,
    codes_table,
    draw_report,
    purity_table,
    tasks_table,
    verdicts,
)
from lab.features.made import RUNS, made, opened

from ..limits import Limits
from ..owner import identify, reported
from ..parting import Folders
from ..registry import Owner, Registry
from .named import NEURONS, of_model, one_line, point_name
from .turns import QUICK

_ABOUT = (
    "What are a model's activations made of? Autoencoders with few active features learned them, and are held against "
    "PCA, NMF and the model's own neurons. Nothing is trained here: these are reports that were made before."
)
_READ = (
    "Purity says how much a feature is about one thing: of the 20 places where it is strongest, the part with the "
    "commonest byte. Shown are the first of its strongest places, the byte heard there marked."
)
_NUMBERS = (
    "Active: features above 1 % of their largest strength in a place. Variance: the part that reconstructions explain. "
    "Recovered: of the bits per byte that the model loses with the mean alone put back. Reuse: mean number of features "
    "that use a part. The last table has synthetic samples whose features are known: how well they are detected."
)
COMMAND = "python -m lab features"
_SHIPPED = "shipped/"
_FIELDS = """
const say = (field) => {
  element.querySelectorAll('td').forEach((one) => { one.tabIndex = one === field ? 0 : -1; });
  element.querySelector('.field-said').textContent = field.title;
};
const field = (event) => event.target.closest?.('.attention td');
element.addEventListener('focusin', (event) => { if (field(event)) say(field(event)); });
element.addEventListener('click', (event) => field(event)?.focus());
element.addEventListener('keydown', (event) => {
  const own = field(event), step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (!own || !step[event.key]) return;
  event.preventDefault();
  const rows = [...element.querySelectorAll('.attention tr')], [down, right] = step[event.key];
  const row = rows[rows.indexOf(own.parentElement) + down];
  row?.querySelectorAll('td')[[...own.parentElement.querySelectorAll('td')].indexOf(own) + right]?.focus();
});
"""
"""Lets the fields of attention be walked through by arrow keys, and says the number of each."""


class Shown(NamedTuple):
    """A report as the page shows it."""

    told: str
    kinds: list[tuple[str, str]]
    kind: str | None
    heads: list[tuple[str, int]]


def build_features(registry: Registry, owner: gr.BrowserState, limits: Limits, model: gr.Dropdown) -> None:
    """Lay out the view and wire it."""
    # Reports of this machine may be on models of its owner alone.
    runs = None if limits.public else RUNS
    folders = Folders("features-", kept=64)
    names = choices(runs)
    first = names[0][1] if names else None
    begun, opening = _begin(runs, first)
    gr.Markdown(_ABOUT)
    told_first = _missing(registry, registry.default(), "", names, limits) if names and registry.default() else ""
    missing = gr.HTML(told_first, elem_classes="flush", elem_id="features-missing")
    with gr.Column(visible=bool(names)):
        report = gr.Dropdown(names, value=first, label="Report", min_width=280, elem_id="features-report")
        told = gr.HTML(begun.told, elem_classes="flush", elem_id="features-told")
        with gr.Row():
            kind = gr.Dropdown(
                begun.kinds, value=begun.kind, label="Features of", min_width=200, elem_id="features-kind"
            )
            feature = gr.Dropdown(
                opening[0], value=0, label="Feature, the most active first", min_width=240, elem_id="features-feature"
            )
        examples = gr.HTML(opening[1], elem_classes="flush", elem_id="features-examples")
        with gr.Accordion("All numbers", open=False, elem_id="features-numbers") as all_numbers:
            numbers = gr.HTML(elem_classes="flush")
        with gr.Accordion("What features attend to when they are composed", open=False) as all_heads:
            head = gr.Dropdown(begun.heads, value=0, label="Head", min_width=140, elem_id="features-head")
            attention = gr.HTML(js_on_load=_FIELDS, elem_classes="flush", elem_id="features-attention")
        take = gr.Button("Make files to take along (JSON, PNG)", size="sm", elem_id="features-take")
        files = gr.File(label="The report", visible=False, interactive=False, elem_id="features-files")
    if not names:
        missing.value = line(f"No report was made yet. Make one with <code>{COMMAND} english</code>.")
        return

    def found(name: Any) -> tuple[Report, Path]:
        path = made(runs).get(name) if isinstance(name, str) else None
        if path is None:
            raise DataError("there is no such report any more; choose another one")
        return opened(path), path

    def on_report(name: Any) -> tuple[Any, ...]:
        with reported():
            one, _ = found(name)
            as_shown = show(one)
            features, markup = feature_list(one, as_shown.kind), examples_markup(one, as_shown.kind, 0)
            return (
                as_shown.told, gr.Dropdown(as_shown.kinds, value=as_shown.kind), gr.Dropdown(features, value=0), markup,
                numbers_markup(one), gr.Dropdown(as_shown.heads, value=0), attention_markup(one, 0),
                gr.File(visible=False),
            )  # fmt: skip

    def on_kind(name: Any, which: Any) -> tuple[Any, ...]:
        with reported():
            one, _ = found(name)
            return gr.Dropdown(feature_list(one, which), value=0), examples_markup(one, which, 0)

    def on_feature(name: Any, which: Any, place: Any) -> str:
        with reported():
            return examples_markup(found(name)[0], which, place)

    def on_numbers(name: Any) -> str:
        with reported():
            return numbers_markup(found(name)[0])

    def on_head(name: Any, place: Any) -> str:
        with reported():
            return attention_markup(found(name)[0], place)

    def on_model(request: gr.Request, secret: str, id: str | None, name: Any) -> tuple[Any, str]:
        now = choices(runs)
        with reported():
            who = identify(secret, request)
            own = _report_on(registry, id, who, now) if id else None
            missing = _missing(registry, id, who, now, limits) if id else ""
        return gr.Dropdown(now, value=own or name), missing

    def on_take(name: Any) -> gr.File:
        with reported():
            one, path = found(name)
            folder = Path(folders.new())
            copied = folder / RESULT
            shutil.copyfile(path, copied)
            drawn = [copied, *draw_report(one, folder)]
            return gr.File(of_model(f"{one.checkpoint}-features", drawn), visible=True)

    private = QUICK
    worked: dict[str, Any] = private | {"concurrency_limit": limits.max_at_once, "concurrency_id": "inspecting"}
    seen = [told, kind, feature, examples, numbers, head, attention, files]
    report.input(on_report, report, seen, **private)
    changed = model.change(on_model, [owner, model, report], [report, missing], **private)
    changed.success(on_report, report, seen, **private)
    kind.input(on_kind, [report, kind], [feature, examples], **private)
    feature.input(on_feature, [report, kind, feature], examples, **private)
    all_numbers.expand(on_numbers, report, numbers, **private)
    gr.on([head.input, all_heads.expand], on_head, [report, head], attention, **private)
    take.click(on_take, report, files, **(worked | {"show_progress": "minimal"}))


def _report_on(registry: Registry, id: str, owner: Owner, names: Sequence[tuple[str, str]]) -> str | None:
    """The report on a model: shipped reports are on shipped models; others may have the same title."""
    if registry.source(id, owner) != "shipped":
        return None
    return next((name for _, name in names if name.partition("/")[2] == id), None)


def _missing(registry: Registry, id: str, owner: Owner, names: Sequence[tuple[str, str]], limits: Limits) -> str:
    """Markup of a line that says that there is no report on the chosen model; empty if there is one."""
    if _report_on(registry, id, owner, names):
        return ""
    said = f"There is no report on {html.escape(registry.title(id, owner))} yet; below is another model's."
    if not limits.public and registry.source(id, owner) == "shipped":
        said += f" <code>{COMMAND} {html.escape(id)}</code> makes one, in minutes."
    return line(said)


def choices(runs: Path | None) -> list[tuple[str, str]]:
    """(label, name) of each report that can be read."""
    found = []
    for name, path in made(runs).items():
        with suppress(DataError):
            one = opened(path)
            where = "shipped" if name.startswith(_SHIPPED) else f"made here, {name.partition('/')[2]}"
            found.append((f"{one.checkpoint} · {point_name(one.place)} · {where}", name))
    return found


def show(found: Report) -> Shown:
    """What is seen of a report at first."""
    kinds = [(kind_name(found, key), key) for key, one in found.sets.items() if one.features]
    heads = [(f"head {index + 1} of {len(found.attention)}", index) for index in range(len(found.attention))]
    return Shown(summary(found), kinds, kinds[0][1] if kinds else None, heads)


def kind_name(found: Report, key: str) -> str:
    """What a set of features is called."""
    if key in found.codes:
        return f"the {key} autoencoder"
    if key == EXTRACTED:
        return f"what the compositional one composes: {key}"
    return f"the model's own neurons: {point_name(key)}"


def feature_name(name: str) -> str:
    """A feature's number; of a neuron, which a report names as head:number from 0, its head from 1 and its number."""
    head, colon, number = name.partition(":")
    return f"head {int(head) + 1}, neuron {number}" if colon and head.isdecimal() else name


def feature_list(found: Report, kind: Any) -> list[tuple[str, int]]:
    """(label, place) of each feature of a set, the most active first."""
    return [
        (f"{feature_name(one.name)} · {visible(one.byte)} · purity {one.purity:.2f} · active {one.active:.1%}", place)
        for place, one in enumerate(_features(found, kind))
    ]


def summary(found: Report) -> str:
    """Markup of every question with its answer."""
    rows = "".join(
        f'<li><span class="verdict">{html.escape(one.verdict)}</span><div>{html.escape(in_words(found, one.question))} '
        f"<b>{html.escape(one.measured)}</b><small>{html.escape(one.threshold)}</small></div></li>"
        for one in verdicts(found)
    )
    how = found.settings
    return (
        f'<div class="features"><p>{html.escape(found.checkpoint)} at {html.escape(point_name(found.place))}: learned '
        f"from {how['bytes']:,} bytes of {html.escape(found.text)}, measured on {how['measured_bytes']:,} others. "
        f"Each question with its answer, what was measured, and the threshold that was stated before:</p>"
        f"<ul>{rows}</ul></div>"
    )


def in_words(found: Report, question: str) -> str:
    """A question of a report, with its neurons named as the page names them."""
    return question.replace(found.headline, f"of {point_name(found.headline)}") if found.headline else question


def examples_markup(found: Report, kind: Any, place: Any) -> str:
    """Markup of a feature's strongest places, its byte marked in each."""
    features = _features(found, kind)
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(features):
        return line("No feature of this kind is active often enough to be judged.") if not features else ""
    one = features[place]
    most = max((example.strength for example in one.examples), default=0.0) or 1.0
    rows = "".join(
        f"<tr><td><code>{_code(example.before)}<mark>{_code(example.byte)}</mark>{_code(example.after)}</code></td>"
        f'<td><i style="width: {max(2, 90 * example.strength / most):.0f}px"></i> {example.strength:.3g}</td></tr>'
        for example in one.examples
    )
    return (
        f'<div class="features"><p><b>{html.escape(feature_name(one.name))}</b> of '
        f"{html.escape(kind_name(found, str(kind)))}: active at {one.active:.1%} of the bytes; purity "
        f"{one.purity:.2f}, most often at <code>{html.escape(visible(one.byte))}</code>.</p>"
        f"<table><thead><tr><th>Where it is strongest</th><th>Strength</th></tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{_READ} {NEURONS}</p></div>"
    )


def numbers_markup(found: Report) -> str:
    """Markup of all tables."""
    purity = [[point_name(name), *cells] for name, *cells in purity_table(found)]
    return "".join(_table(rows) for rows in (codes_table(found), purity, tasks_table(found))) + (
        f'<p class="summary">{_NUMBERS}</p>'
    )


def attention_markup(found: Report, head: Any) -> str:
    """Markup of a head's attention among the most active extracted features, a field for each two."""
    if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < len(found.attention):
        return line("This report has no attention to show.")
    bytes_of = {one.name: one.byte for one in found.sets[EXTRACTED].features}
    names = [f"{number} {visible(bytes_of.get(str(number), ''))}".strip() for number in found.attention_of]
    fields = "".join(
        f'<tr><th scope="row">{html.escape(names[y])}</th>'
        + "".join(
            f'<td style="--part: {100 * min(1.0, value):.0f}%" tabindex="{0 if x == y == 0 else -1}" role="gridcell" '
            f'title="{(told := f"{html.escape(names[y])} attends to {html.escape(names[x])}: {value:.2f}")}" '
            f'aria-label="{told}"></td>'
            for x, value in enumerate(row)
        )
        + "</tr>"
        for y, row in enumerate(found.attention[head])
    )
    return (
        '<div class="features"><table class="attention" role="grid" aria-label="What features attend to">'
        f'<tbody>{fields}</tbody></table><p class="field-said" aria-live="polite">Point at a field, or walk through '
        "them with the arrow keys, for its number.</p><p>A row is an extracted feature with the byte that it is "
        "strongest for, its fields the same features in the same order: the fuller, the more it attends to that one "
        "where both are active.</p></div>"
    )


def visible(text: str) -> str:
    """Text of one line, in which blanks and line ends are seen."""
    return one_line(text).replace(" ", "␣")


def line(markup: str) -> str:
    """A line that tells something, as markup."""
    return f'<p class="summary">{markup}</p>'


def _begin(runs: Path | None, name: str | None) -> tuple[Shown, tuple[list[tuple[str, int]], str]]:
    """What the page shows before anything is chosen, and the first features with their examples."""
    if name is None:
        return Shown("", [], None, []), ([], "")
    one = opened(made(runs)[name])
    begun = show(one)
    return begun, (feature_list(one, begun.kind), examples_markup(one, begun.kind, 0))


def _features(found: Report, kind: Any) -> Sequence[Feature]:
    one = found.sets.get(kind) if isinstance(kind, str) else None
    return one.features if one else ()


def _code(text: str) -> str:
    return html.escape(one_line(text))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as markup; the first row is the head, the first cell of each a name."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = ""
    for name, *cells in rows[1:]:
        values = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{html.escape(name)}</th>{values}</tr>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="report"><div class="wide">{table}</div></div>'


CSS = """
.features { font-size: var(--text-sm); overflow-x: auto; }
.features p { margin: 8px 0; overflow-wrap: anywhere; color: var(--body-text-color-subdued); }
.features table { width: 100%; border-collapse: collapse; border: none !important; }
.features tr { border: none !important; background: none !important; }
.features th, .features td { text-align: left; vertical-align: top; padding: 4px 8px; border: none !important;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.features ul { list-style: none; margin: 0 0 12px; padding: 0; }
.features li { display: grid; grid-template-columns: 8.5rem 1fr; gap: 12px; margin: 0; padding: 5px 0;
  border-bottom: 1px solid var(--border-color-primary); }
.features small { display: block; color: var(--body-text-color-subdued); }
.features li b { font-weight: 600; font-variant-numeric: tabular-nums; }
.features .verdict { align-self: start; justify-self: start; padding: 0 6px; border: 1px solid currentColor;
  border-radius: 8px; text-align: center; }
@media (max-width: 600px) { .features li { grid-template-columns: 1fr; gap: 4px; } }
.features code { white-space: pre-wrap; overflow-wrap: anywhere; }
.features mark { background: var(--primary-300); color: #0b0b0b; border-radius: 2px; padding: 0 1px; }
.features td i { display: inline-block; height: 10px; border-radius: 2px; background: var(--color-accent); }
.features td:last-child { font-variant-numeric: tabular-nums; }
.features table.attention { width: auto; }
.features .attention th { padding: 0 8px 0 0; font-weight: 400; white-space: nowrap; border: none !important; }
.features .attention td { width: 22px; min-width: 12px; height: 20px; padding: 0;
  border: 1px solid var(--border-color-primary) !important; cursor: pointer;
  background: color-mix(in srgb, var(--color-accent) var(--part), transparent); }
"""
"""The looks, for the page's style sheet."""
