"""What a merged model kept of its parents and what it lost: measured in the open, shown as a table, bars and shares."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bdh import checkpoint
from bdh.errors import DataError, HatcheryError, MergeError
from bdh.models import Model
from lab.crossed import Hearing, block_costs, compare
from lab.heritage import inherited
from train.data import Bytes
from train.evaluate import streams_bits

from . import lineage
from .merges import Kept, Merger, shipped_text
from .registry import Owner
from .steps import Tell

if TYPE_CHECKING:
    import altair as alt

AVERAGE, MIXTURE = "weight average", "mixture"
"""The cheap alternatives that a merge is held against."""
PARENT, BASELINE, MERGED, HEALED = "parent", "baseline", "merged", "healed"
OWN = "your text"
SUPPORTED, PARTLY = 1.2, 1.5
"""Ratios to the specialists under which what they knew counts as kept, or as kept in part."""
STREAMS = 4
_SHARE_RATE = 0.005
_HERITAGE_PART = 2
"""Shares are measured on one byte of so many that costs are measured on."""
_NOTE = "report.json"
_INK = "#78879f"
_BASELINE_BARS, _MERGED_BARS = ("#94a3b8", "#64748b"), ("#be123c", "#7f1d1d", "#fb7185")


@dataclass(frozen=True)
class Row:
    """A model on all texts."""

    name: str
    kind: str
    bits: dict[str, float]
    """Per byte, by text."""
    average: float
    ratio: float
    """To the best parent of each text, mean over texts."""
    low: float
    high: float
    """Where the ratio lies with 95 % confidence."""

    @property
    def verdict(self) -> str:
        """In words, whether the parents' knowledge was kept."""
        return "kept" if self.ratio < SUPPORTED else "partly kept" if self.ratio < PARTLY else "not kept"


@dataclass(frozen=True)
class Report:
    """What was measured so far."""

    rows: tuple[Row, ...] = ()
    specialists: dict[str, str] = field(default_factory=dict)
    """By text, the best parent."""
    bytes: int = 0
    """Of each text."""
    parents: tuple[str, ...] = ()
    shares: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """By text, the part of the activity that each parent's neurons had."""
    shares_bytes: int = 0
    notes: tuple[str, ...] = ()
    elapsed_s: float = 0.0


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    name: str
    id: str
    """In the registry."""
    kind: str


def texts_of(names: Sequence[str], own: bytes, most_bytes: int) -> dict[str, Bytes]:
    """Texts to measure on: of shipped ones pieces from all over the part kept for tests, of one's own its beginning.

    Raises:
        DataError: there is none, or too little of one's own.
    """
    found: dict[str, Bytes] = {}
    for name in names:
        held_out = np.frombuffer(shipped_text(name)[1], np.uint8)
        tests = held_out[len(held_out) // 2 :]
        size = min(most_bytes, len(tests)) // STREAMS
        starts = np.linspace(0, len(tests) - size, STREAMS).astype(int)
        found[name] = np.concatenate([tests[start : start + size] for start in starts])
    if own.strip():
        if len(own) < 256:
            raise DataError(f"your text has {len(own)} bytes; give at least 256, and better 4,000")
        found[OWN] = np.frombuffer(own[:most_bytes], np.uint8)
    if not found:
        raise DataError("choose at least one text to measure on, or paste one of your own")
    return found


def measure(
    merger: Merger,
    kept: Kept,
    subjects: Sequence[Subject],
    texts: Mapping[str, Bytes],
    baselines: Sequence[str],
    owner: Owner,
    tell: Tell,
    give: Callable[[Report], None],
) -> None:
    """Measure parents, baselines and what was merged; a report is given after each model, and the last is kept.

    Raises:
        HatcheryError: no parent is left, or a model cannot be loaded.
    """
    registry, begun = merger.registry, time.monotonic()
    parents = [one for one in subjects if one.kind == PARENT]
    if not parents:
        raise MergeError(f"of the parents of {kept.title} none is left to compare with; load them again in Models")
    names = names_of(kept, parents)
    notes = [f"{name} is not here any more." for name in names if name not in [one.name for one in parents]]
    kinds: dict[str, str] = {}
    hearings: dict[str, Hearing] = {}
    costs: list[dict[str, NDArray[np.float64]]] = []
    work = len(subjects) + (AVERAGE in baselines) + 2
    report = Report(bytes=max(map(len, texts.values())), parents=names)

    def hear(name: str, kind: str, model: Model[Any]) -> dict[str, NDArray[np.float64]]:
        nonlocal report
        bits: dict[str, NDArray[np.float64]] = {}
        for place, (text, data) in enumerate(texts.items()):
            at = (len(hearings) + place / len(texts)) / work

            def follow(done: int, total: int, at: float = at, text: str = text) -> None:
                tell(at + done / total / len(texts) / work, f"{name} hears {text}")

            follow(0, 1)
            bits[text] = streams_bits(model, data, STREAMS, progress=follow)
        add(name, kind, bits, model.parameter_count())
        return bits

    def add(name: str, kind: str, bits: dict[str, NDArray[np.float64]], parameters: int) -> None:
        nonlocal report
        heard = {text: block_costs(cost) for text, cost in bits.items()}
        hearings[name], kinds[name] = Hearing(heard, parameters, 0.0), kind
        report = dataclasses.replace(
            _compared(report, hearings, kinds, [one.name for one in parents]),
            notes=tuple(notes),
            elapsed_s=time.monotonic() - begun,
        )
        give(report)

    for subject in parents:
        with registry.lease(subject.id, owner) as model:
            costs.append(hear(subject.name, PARENT, model))
    if MIXTURE in baselines and len(parents) > 1:
        mixed = {text: mixture_bits([of_one[text] for of_one in costs], _SHARE_RATE) for text in texts}
        add(MIXTURE, BASELINE, mixed, sum(one.parameters for one in hearings.values()))
    if AVERAGE in baselines and len(parents) > 1:
        try:
            tell(len(hearings) / work, "averaging the parents")
            averaged = merger.average([one.id for one in parents], owner)
        except MergeError as error:
            notes.append(f"There is no weight average: {error}.")
        else:
            hear(AVERAGE, BASELINE, averaged.to(registry.device))
    shares: dict[str, tuple[float, ...]] = {}
    heritage = heritage_of(kept)
    part = {text: _part(data) for text, data in texts.items()}
    for subject in subjects:
        if subject.kind == PARENT:
            continue
        with registry.lease(subject.id, owner) as model:
            hear(subject.name, subject.kind, model)
            if heritage and not shares:
                for text, data in part.items():
                    tell(len(hearings) / work, f"whose neurons carry {text}")
                    found = inherited(model, heritage, names, {text: data}, streams=STREAMS)
                    shares[text] = found.texts[text].shares
                report = dataclasses.replace(report, shares=dict(shares), shares_bytes=max(map(len, part.values())))
    report = dataclasses.replace(report, notes=tuple(notes), elapsed_s=time.monotonic() - begun)
    written = kept.path / f"{_NOTE}.new"
    with suppress(OSError):
        written.write_text(json.dumps(dataclasses.asdict(report)), encoding="utf-8")
        os.replace(written, kept.path / _NOTE)
    with suppress(OSError):  # the disk is full: the report before stays
        written.unlink(missing_ok=True)
    give(report)


def last_report(kept: Kept) -> Report | None:
    """What was measured of a merged model before; None if nothing was."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        told = json.loads((kept.path / _NOTE).read_text(encoding="utf-8"))
        rows = tuple(Row(**row) for row in told.pop("rows"))
        shares = {text: tuple(parts) for text, parts in told.pop("shares").items()}
        told |= {"parents": tuple(told["parents"]), "notes": tuple(told["notes"])}
        return Report(rows=rows, shares=shares, **told)
    return None


def names_of(kept: Kept, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """What the parents of a merged model are called in what is measured; those that are gone, as they were."""
    called = {one.id: one.name for one in subjects if one.kind == PARENT}
    return tuple(called.get(id, name) for id, name in zip(kept.parents, kept.names, strict=True))


def heritage_of(kept: Kept) -> Any:
    """Which neurons of a merged model are whose, as `lab.heritage` takes it; None if parents were not joined."""
    with suppress(HatcheryError, OSError):
        return checkpoint.read_provenance(kept.checkpoint).get("heritage")
    return None


def mixture_bits(costs: Sequence[NDArray[np.float64]], share_rate: float) -> NDArray[np.float64]:
    """What bytes cost a mixture of models of which it is known what they cost each, (streams, bytes).

    As the composed model does it: w ← w · p(byte), normalised; then w ← (1 - α) w + α / K, after each byte.
    """
    chances = np.exp2(-np.stack(costs))
    weights = np.full((len(costs), chances.shape[1]), 1 / len(costs))
    mixed = np.empty(chances.shape[1:])
    for place in range(chances.shape[2]):
        weighed = weights * chances[:, :, place]
        total = weighed.sum(0)
        mixed[:, place] = -np.log2(total)
        weights = (1 - share_rate) * weighed / total + share_rate / len(costs)
    return mixed


def _part(data: Bytes) -> Bytes:
    """Every so many-th part of each stream's piece, from its beginning."""
    pieces = data[: len(data) // STREAMS * STREAMS].reshape(STREAMS, -1)
    return pieces[:, : max(2, pieces.shape[1] // _HERITAGE_PART)].ravel()


def _compared(
    report: Report, hearings: Mapping[str, Hearing], kinds: Mapping[str, str], parents: Sequence[str]
) -> Report:
    found = compare(hearings, parents=[name for name in parents if name in hearings])
    rows = tuple(
        Row(
            row.name,
            kinds[row.name],
            {text: estimate.mean for text, estimate in row.texts.items()},
            row.average.mean,
            row.ratio.mean,
            row.ratio.low,
            row.ratio.high,
        )
        for row in found.rows
    )
    return dataclasses.replace(report, rows=rows, specialists=dict(found.specialists))


def table(report: Report) -> str:
    """The table and what it is measured on, as HTML; all names are escaped."""
    if not report.rows:
        return ""
    texts = list(report.rows[0].bits)
    best = {text: min(row.bits[text] for row in report.rows) for text in texts}
    head = "".join(f"<th>{html.escape(text)}</th>" for text in texts)
    lines = []
    for row in report.rows:
        cells = ""
        for text in texts:
            shown = f"{row.bits[text]:.3f}"
            shown = f"<b>{shown}</b>" if row.bits[text] == best[text] else shown
            own = ' class="own" title="the best parent for this text"' if report.specialists[text] == row.name else ""
            cells += f"<td{own}>{shown}</td>"
        reach = (row.high - row.low) / 2
        ratio = f"{row.ratio:.3f} <small>± {reach:.3f}</small>"
        chip = "" if row.kind == PARENT else f' <span class="verdict">{row.verdict}</span>'
        lines.append(
            f'<tr class="{row.kind}"><th scope="row">{html.escape(row.name)}<small>{row.kind}</small></th>{cells}'
            f"<td>{row.average:.3f}</td><td>{ratio}{chip}</td></tr>"
        )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    return (
        f'<div class="report"><div class="wide"><table><thead><tr><th>bits per byte</th>{head}<th>mean</th>'
        f"<th>to specialists</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"<p>Fewer bits are better; the best of each text is bold, its best parent underlined. To specialists: bits "
        f"over those of each text's best parent, mean over texts, ± 95 %; under {SUPPORTED} is kept, under {PARTLY} "
        f"partly. Measured on {report.bytes:,} bytes of each text that no recipe trains on, in {report.elapsed_s:.0f} "
        f"s: enough for a look, not for a claim.</p>{f'<ul>{notes}</ul>' if notes else ''}</div>"
    )


def shares_markup(report: Report) -> str:
    """Whose neurons carried which text, as HTML."""
    if not report.shares:
        return ""
    told = (
        f"Whose neurons carried which text: parts of all activity, on {report.shares_bytes:,} bytes of each. Equal "
        "parts say that nobody took the lead."
    )
    return f'<div class="report"><p>{told}</p>{lineage.bars(report.shares, report.parents)}</div>'


def chart(report: Report) -> alt.LayerChart | Any | None:
    """Bars of bits per byte by text and model; None as long as nothing was measured."""
    import altair as alt  # noqa: PLC0415 - the page starts without it

    if not report.rows:
        return None
    names = [row.name for row in report.rows]
    colours, baseline, merged = [], 0, 0
    for row in report.rows:
        if row.kind == PARENT:
            place = report.parents.index(row.name) if row.name in report.parents else 0
            colours.append(lineage.BARS[place % len(lineage.BARS)])
        elif row.kind == BASELINE:
            colours.append(_BASELINE_BARS[baseline % len(_BASELINE_BARS)])
            baseline += 1
        else:
            colours.append(_MERGED_BARS[merged % len(_MERGED_BARS)])
            merged += 1
    points = [{"text": text, "model": row.name, "bits": bits} for row in report.rows for text, bits in row.bits.items()]
    plain = {"labelColor": _INK, "titleColor": _INK}
    bars = (
        alt.Chart(alt.InlineData(points))
        .mark_bar()
        .encode(
            x=alt.X("text:N", title=None, sort=None, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("model:N", sort=names),
            y=alt.Y("bits:Q", title="bits per byte"),
            color=alt.Color(
                "model:N",
                title=None,
                sort=names,
                scale=alt.Scale(domain=names, range=colours),
                legend=alt.Legend(orient="bottom", labelLimit=260, columns=3),
            ),
            tooltip=[alt.Tooltip("model:N"), alt.Tooltip("text:N"), alt.Tooltip("bits:Q", format=".3f")],
        )
        .properties(width="container", height=260)
    )
    return (
        bars.configure(background="transparent")
        .configure_axis(**plain, gridColor=_INK, gridOpacity=0.25, domainColor=_INK, tickColor=_INK)
        .configure_legend(**plain)
        .configure_view(stroke=None)
    )


def own_text(pasted: str | None, path: str | None) -> bytes:
    """A text of one's own: what was pasted, else what was uploaded.

    Raises:
        DataError: the file is no text.
    """
    if pasted and pasted.strip():
        return pasted.encode("utf-8", errors="replace")
    if not path:
        return b""
    with Path(path).open("rb") as file:
        data = file.read(1 << 20)
    if b"\0" in data:
        raise DataError(f"{Path(path).name[:80]!r} is no text in UTF-8; choose a text file")
    return data


CSS = """
.report .wide { overflow-x: auto; }
.report table { border-collapse: collapse; width: 100%; font-size: var(--text-sm); }
.report .wide :is(table, thead, tbody, tr, th, td) { border: 0 !important; }
.report .wide th, .report .wide td { padding: 5px 10px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--border-color-primary) !important; font-variant-numeric: tabular-nums; }
.report .wide th:first-child { text-align: left; white-space: normal; min-width: 8rem; }
.report th small { display: block; font-weight: normal; color: var(--body-text-color-subdued); }
.report .own { text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: 3px; }
.report tr.merged th, .report tr.merged td, .report tr.healed th, .report tr.healed td {
  background: var(--background-fill-secondary); }
.report .verdict { display: inline-block; padding: 0 6px; border: 1px solid currentColor; border-radius: 8px;
  font-size: var(--text-xs); }
.report p { margin: 8px 0; font-size: var(--text-sm); color: var(--body-text-color-subdued); }
.report ul { margin: 0 0 8px; padding-left: 1.2em; font-size: var(--text-sm); }
.report progress { width: 100%; }
#merge-plot .vega-embed, #merge-plot .altair { width: 100%; }
#merge-plot .vega-embed details { display: none; }
"""
"""The looks, for the page's style sheet."""
