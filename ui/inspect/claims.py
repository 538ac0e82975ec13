"""The view Claims: what was said about BDH, what was measured on the shipped checkpoints, and the command for each."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from bdh.errors import DataError, HatcheryError
from lab.claim import NOT, PARTLY, REPORTS, SUPPORTED, UNTOLD, markdown, read

from ..limits import Limits
from ..owner import reported
from ..registry import Registry

CSS = """
.claims-table { overflow-x: auto; }
.claims-table table { width: 100%; border-collapse: collapse; font-size: var(--text-sm); }
.claims-table th, .claims-table td { padding: 6px 10px; vertical-align: top; text-align: left;
  border-bottom: 1px solid var(--border-color-primary); overflow-wrap: anywhere; }
.claims-table th:first-child, .claims-table td:first-child { white-space: nowrap; overflow-wrap: normal; }
.claims-table td:nth-child(2) { width: 32%; } .claims-table td:nth-child(3) { width: 46%; }
#claims-overview :is(table, tr, td, th) { border-left: 0; border-right: 0; border-top: 0; }
#claims-overview table { border-bottom: 0; }
.claims-table ul { margin: 0; padding-left: 1.1em; }
.claim-verdict { display: inline-block; white-space: nowrap; padding: 1px 8px; border-radius: 9px; border: 1px solid; }
.claim-verdict.yes { color: #1a7f37; } .claim-verdict.partly { color: #9a6700; } .claim-verdict.no { color: #cf222e; }
.claim-verdict.untold { color: var(--body-text-color-subdued); }
.dark .claim-verdict.yes { color: #57d977; } .dark .claim-verdict.partly { color: #e3b341; }
.dark .claim-verdict.no { color: #ff8b82; }
.claim-drawings figure { margin: 0 0 12px; }
.claim-drawings img { display: block; max-width: 100%; height: auto; background: white; border-radius: 6px; }
.claim-links a, .claim-drawings a { color: inherit; text-decoration: underline; }
.claim-drawings figcaption, .claim-links { font-size: var(--text-sm); color: var(--body-text-color-subdued); }
#claim-report table { display: block; overflow-x: auto; width: fit-content; max-width: 100%; border: 0; }
#claim-report table:first-of-type td { min-width: 9em; }
#claim-report th, #claim-report td { padding: 4px 8px; font-size: var(--text-sm); word-break: normal;
  overflow-wrap: normal; min-width: 5.5em; vertical-align: top; }
#claim-report pre, #claim-report code { white-space: pre-wrap; overflow-wrap: anywhere; }
#claim-report h2 { font-size: 1.05rem; }
@media (max-width: 600px) {
  .claims-table thead { display: none; }
  .claims-table tr { display: block; padding: 8px 0; border-bottom: 1px solid var(--border-color-primary); }
  .claims-table td, .claims-table td:nth-child(n) { display: block; border: 0; padding: 2px 0; width: auto; }
}
"""
"""The looks, for the page's style sheet."""

_COUNTED = "Reports and their drawings count layers and heads from 0, as in the weights; all other views count from 1."
_NAMES_LAYERS = re.compile(r"\b(layer|head) \d")
_CLASSES = {SUPPORTED: "yes", PARTLY: "partly", NOT: "no", UNTOLD: "untold"}


class Known(NamedTuple):
    """A claim that the page knows of, whether it was measured or not."""

    name: str
    question: str
    said: str
    """Shortly, where no report says it."""
    command: str
    """That measures it; {model} stands for a checkpoint."""
    kinds: tuple[str, ...]
    """Of models that can stand there."""


CLAIMS = (
    Known(
        "unlimited-context",
        "Unlimited context",
        "the state has one size however long the text is, and holds what was said",
        "python -m lab unlimited-context {model}",
        ("flat",),
    ),
    Known(
        "sparsity",
        "Sparse neurons",
        "about 5 % of the neurons are active at a time",
        "python -m lab sparsity {model}",
        ("flat", "hierarchical"),
    ),
    Known(
        "scaling",
        "Scaling laws",
        "loss follows laws like a Transformer's",
        "python -m lab scaling {model}",
        ("flat",),
    ),
    Known(
        "composability",
        "Merging",
        "trained models can be joined neuron by neuron",
        "python -m lab composability english {model} --base base",
        ("flat",),
    ),
    Known(
        "hierarchy",
        "Patches of bytes",
        "a model over patches is better and cheaper than one over bytes",
        "python -m lab hierarchy base {model}",
        ("hierarchical",),
    ),
    Known(
        "causality",
        "0.24 bits per byte",
        "a hierarchical model reaches 0.24 bits per byte on WikiText-2",
        "python -m lab causality {model}",
        ("flat", "hierarchical", "hebbian", "transformer", "composed"),
    ),
)


def build_claims(registry: Registry, owner: gr.BrowserState, limits: Limits, model: gr.Dropdown) -> None:
    """Lay out the view."""
    reports = known_reports(REPORTS)
    gr.Markdown(
        "What was said about BDH in public, and what came of measuring it on the checkpoints that are shipped here, "
        "with thresholds that were stated before. These models are very small: a verdict is about them."
    )
    gr.HTML(overview(reports), elem_id="claims-overview")
    first = next((one.name for one in CLAIMS if one.name in reports), CLAIMS[0].name)
    chosen = gr.Dropdown(
        choices=[(one.question, one.name) for one in CLAIMS],
        value=first,
        label="Show the report of",
        min_width=240,
        elem_id="claims-choice",
    )
    command = gr.Markdown(repeat(first, model.value, registry), elem_id="claim-command")
    drawings = gr.HTML(pictures(first, reports), elem_id="claim-drawings")
    report = gr.Markdown(told(first, reports), elem_id="claim-report")

    def show(name: str) -> tuple[str, str]:
        with reported():
            known = _known(name).name
            return pictures(known, reports), told(known, reports)

    def command_of(name: str, model: str | None) -> str:
        with reported():
            return repeat(name, model, registry)

    quick: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "minimal"}
    chosen.change(show, chosen, [drawings, report], **quick)
    gr.on(
        [chosen.change, model.change],
        command_of,
        [chosen, model],
        command,
        **{**quick, "show_progress": "hidden"},
    )


def known_reports(folder: Path) -> dict[str, dict[str, Any]]:
    """The kept reports by claim, each with its drawings' bytes; a damaged one is not there."""
    found = {}
    for one in CLAIMS:
        path = folder / f"{one.name}.json"
        try:
            fields = read(path)
            fields["pictures"] = {name: (folder / Path(name).name).read_bytes() for name in fields["drawings"]}
        except (DataError, OSError):
            continue
        found[one.name] = fields
    return found


def overview(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """All claims as a table: what was said, what was measured, the verdict."""
    rows = []
    for one in CLAIMS:
        fields = reports.get(one.name)
        said, source, verdict = (
            (fields["said"], fields["source"], fields["verdict"]) if fields else (one.said, "", UNTOLD)
        )
        where = f" <small>({html.escape(source)})</small>" if source else ""
        rows.append(
            f"<tr><td><b>{html.escape(one.question)}</b></td><td>{html.escape(said)}{where}</td>"
            f"<td>{_measured(fields)}</td><td>{badge(verdict if fields else 'not run')}</td></tr>"
        )
    head = "<tr><th>claim</th><th>what was said</th><th>what we measured</th><th>verdict</th></tr>"
    return f'<div class="claims-table"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def badge(verdict: str) -> str:
    """A verdict in its colour, and in words."""
    return f'<span class="claim-verdict {_CLASSES.get(verdict, "untold")}">{html.escape(verdict)}</span>'


def told(name: str, reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A report in Markdown, or that there is none."""
    if name not in reports:
        known = _known(name)
        command = known.command.format(model="base" if "flat" in known.kinds else "fledgling")
        return f"This was **not run** on the shipped checkpoints. To measure it:\n\n```sh\n{command}\n```"
    report = markdown(reports[name], title=False, drawings=False)
    return f"{report}\n\n{_COUNTED}" if _NAMES_LAYERS.search(report) else report


def pictures(name: str, reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The drawings of a report, each to be taken along, and the report as data."""
    if name not in reports:
        return ""
    fields = reports[name]
    figures = []
    for file, data in fields["pictures"].items():
        address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        title = html.escape(str(fields["title"]))
        figures.append(
            f'<figure><img src="{address}" alt="{title}"><figcaption>'
            f'<a href="{address}" download="{html.escape(file)}">Download {html.escape(file)}</a></figcaption></figure>'
        )
    plain = json.dumps({key: value for key, value in fields.items() if key != "pictures"}, indent=1, ensure_ascii=False)
    data = base64.b64encode(plain.encode()).decode()
    link = (
        f'<p class="claim-links"><a href="data:application/json;base64,{data}" download="{html.escape(name)}.json">'
        "Download the report as JSON</a></p>"
    )
    return f'<div class="claim-drawings">{"".join(figures)}{link}</div>'


def repeat(name: str, model: str | None, registry: Registry) -> str:
    """The command that measures the claim on the chosen model, where that is a shipped one of a kind that fits."""
    known = _known(name)
    try:
        if not isinstance(model, str) or not model or registry.source(model, "") != "shipped":
            return "Choose a shipped model above for the command that measures this claim on it."
        kind = registry.config(model, "").kind
    except HatcheryError:
        return "Choose a shipped model above for the command that measures this claim on it."
    if kind not in known.kinds:
        kinds = " or ".join(known.kinds)
        return f"{model} is a {kind} model; this claim is measured on a {kinds} one. Choose one above for its command."
    return f"To measure it on {model}:\n\n```sh\n{known.command.format(model=shlex.quote(model))}\n```"


def _known(name: str) -> Known:
    """The claim of a name.

    Raises:
        DataError: there is none.
    """
    for one in CLAIMS:
        if one.name == name:
            return one
    raise DataError(f"there is no claim {name!r:.60}; there is {', '.join(one.name for one in CLAIMS)}")


def _measured(fields: Mapping[str, Any] | None) -> str:
    if fields is None:
        return "not run on the shipped checkpoints"
    lines = [
        f"<li>{html.escape(check['part'])}: {html.escape(check['shown'])}, {html.escape(check['verdict'])}</li>"
        for check in fields["checks"]
        if not check["control"]
    ]
    return f"<ul>{''.join(lines)}</ul>"
