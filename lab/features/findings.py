"""What an experiment on features found: numbers, a verdict by thresholds stated before, and how a person reads both."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bdh.errors import DataError
from train.folder import environment
from train.plots import draw_bars, draw_counts, draw_heat, draw_squares

from .autoencoders import ABLATIONS, COMPOSITIONAL, STANDARD
from .baselines import NMF, PCA
from .measures import Interval

REPORT, RESULT = "report.md", "report.json"
BARS, ATTENTION, REUSE, RECOVERED = "purity.png", "attention.png", "reuse.png", "recovered.png"
EXTRACTED = "extracted features"
"""What the compositional autoencoder composes: features of its own kind, shown and measured beside its code."""
PARTS_ALONE = "parts alone"
"""On tasks: what a code would recover that has every part and nothing that combines them."""
LABELS = ("byte", "two bytes", "next byte")
"""What a place is labelled by: the byte heard there, that with the one before, and the byte after it."""
COMPARISONS = {
    "most active": "the {count} most active of each",
    "as often active": "each of the autoencoder's {count} most active beside the neuron active nearest as often",
    "all live": "all that are live",
}
"""Which own neurons are held against which features: where there are many more neurons, it matters."""
MARGIN = 0.05
"""Parts of the bits that a reconstruction costs, and of F1, that count as a difference."""
FAITHFUL, PARTLY_FAITHFUL = 0.9, 0.75
"""Parts of the lost bits that a reconstruction must recover."""
MARKDOWN_FEATURES = 8
REUSED = (STANDARD, COMPOSITIONAL, PCA, NMF)
"""Methods whose reuse is drawn."""
MOST_REPORT_BYTES = 4 << 20


@dataclass(frozen=True)
class Purity:
    """Of features, by one label: part of the strongest places that bears the commonest."""

    most: Interval
    """Of the most active ones: as many of every kind."""
    live: Interval
    """Of all that are active in as many places as they are judged by."""


@dataclass(frozen=True)
class Example:
    """A place where a feature is strongest."""

    before: str
    byte: str
    after: str
    strength: float


@dataclass(frozen=True)
class Feature:
    """A feature and what it fires for."""

    name: str
    """Its number; of a neuron head:number."""
    active: float
    """Part of the places."""
    purity: float
    """By the byte heard."""
    byte: str
    """The commonest of the strongest places."""
    examples: list[Example]


@dataclass(frozen=True)
class FeatureSet:
    """Features, or neurons, of one kind on the measured text."""

    count: int
    live: int
    """Active in as many places as they are judged by."""
    active: float
    """In a place, mean."""
    purity: dict[str, Purity | None]
    """By label; None if none is live."""
    features: list[Feature]
    """Some of the most active ones, most active first."""


@dataclass(frozen=True)
class Code:
    """What a method's code of the measured text is worth."""

    explained_variance: float
    width: int
    active: float
    """Features above 1 % of their largest strength, mean over places: L0."""
    dead: int
    """Never active."""
    bits_per_byte: float
    """Of the model, with what the code stands for in the stead of the activations."""
    recovered: float
    """Part of the bits lost by putting back the mean alone that putting this back wins."""
    reuse: list[int]
    """By how many features each part is used; -1 of one that is never active. See `measures.reuse`."""
    numbers: int
    """Learned."""


@dataclass(frozen=True)
class Report:
    """All that the experiment found."""

    checkpoint: str
    kind: str
    text: str
    start_bytes: int
    """Where in the text the measured part begins."""
    place: str
    headline: str
    """The own neurons of the verdict."""
    settings: dict[str, Any]
    before: float
    """Bits per byte of the model as it is."""
    nothing: float
    """Bits per byte with the mean alone put back."""
    codes: dict[str, Code]
    sets: dict[str, FeatureSet]
    """By the name of a method, or of a point of own neurons."""
    against: dict[str, dict[str, Interval]]
    """By `COMPARISONS` and method, how much purer by the byte heard the own neurons of the verdict are."""
    random: dict[str, Interval]
    """Purity of places drawn at random, by label."""
    tasks: dict[str, dict[str, dict[str, Any]]]
    """By task and method, what was recovered of known features."""
    attention_of: list[int]
    attention: list[list[list[float]]]
    """By head, how much each of these extracted features attends to each."""


class Verdict(NamedTuple):
    """One question, answered."""

    question: str
    threshold: str
    """Stated before."""
    measured: str
    verdict: str


def verdicts(found: Report) -> Iterator[Verdict]:
    """Every question with its answer."""
    for which in found.against:
        yield _neurons(found, which)
    yield _composing(found)
    for method in (STANDARD, COMPOSITIONAL):
        part = found.codes[method].recovered
        yield Verdict(
            f"Is the {method} autoencoder's reconstruction what the model goes on with?",
            f"yes if it recovers {FAITHFUL:.0%} of the bits that the mean alone loses, partly from "
            f"{PARTLY_FAITHFUL:.0%}",
            f"{part:.1%} recovered",
            "yes" if part >= FAITHFUL else "partly" if part >= PARTLY_FAITHFUL else "no",
        )
    cost = _cost(found, COMPOSITIONAL)
    for method in ABLATIONS:
        more = _cost(found, method) / cost - 1 if cost > 0 else 0.0
        gain = _combined_f1(found, method) - _combined_f1(found, COMPOSITIONAL)
        yield Verdict(
            f"Does the compositional autoencoder need its {method.removeprefix('no ')}?",
            f"yes if the bits it costs rise by {MARGIN:.0%} without it; harmful if they fall by as much (one seed)",
            f"{more:+.1%} bits without it; on tasks {gain:+.3f} F1 on combined features",
            "yes" if more >= MARGIN else "harmful" if more <= -MARGIN else "no difference seen",
        )


def _neurons(found: Report, which: str) -> Verdict:
    gaps = {method: found.against[which][method] for method in (STANDARD, COMPOSITIONAL)}
    won, lost = all(gap.low > 0 for gap in gaps.values()), any(gap.high < 0 for gap in gaps.values())
    return Verdict(
        f"Are the neurons {found.headline} more about one thing than the autoencoders' features, "
        f"{COMPARISONS[which].format(count=found.settings['most_active'])}?",
        "yes if the 95 % interval of the difference in purity lies above 0 against both, no if below against one",
        "; ".join(f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}) against {name}" for name, gap in gaps.items()),
        "yes" if won else "no" if lost else "not decided",
    )


def _composing(found: Report) -> Verdict:
    cheaper = 1 - _cost(found, COMPOSITIONAL) / _cost(found, STANDARD) if _cost(found, STANDARD) > 0 else 0.0
    f1 = {name: _combined_f1(found, name) for name in (COMPOSITIONAL, STANDARD, PARTS_ALONE)}
    gain = f1[COMPOSITIONAL] - f1[STANDARD]
    both = cheaper >= MARGIN and gain >= MARGIN
    one = max(cheaper, gain) >= MARGIN and min(cheaper, gain) > -MARGIN
    return Verdict(
        "Is composing worth it against the standard autoencoder?",
        f"yes if its reconstruction costs {MARGIN:.0%} fewer bits and its F1 on combined features is {MARGIN} higher; "
        "partly if one of them and the other no worse by as much (one seed)",
        f"{-cheaper:+.1%} bits, {gain:+.3f} F1 ({f1[COMPOSITIONAL]:.3f} and {f1[STANDARD]:.3f}; {PARTS_ALONE} "
        f"{f1[PARTS_ALONE]:.3f})",
        "yes" if both else "partly" if one else "no",
    )


def _combined_f1(found: Report, method: str) -> float:
    """On combined features, mean over the tasks."""
    return statistics.fmean(of[method]["combined_f1"] for of in found.tasks.values())


def _cost(found: Report, method: str) -> float:
    """Bits per byte that a reconstruction costs."""
    return found.codes[method].bits_per_byte - found.before


def codes_table(found: Report) -> list[list[str]]:
    """Rows of cells: every method on the text."""
    rows = [["on the text", "features", "active", "dead", "variance", "bits/byte", "recovered", "reuse", "numbers"]]
    for name, code in found.codes.items():
        used = [count for count in code.reuse if count >= 0]
        rows.append(
            [
                name,
                f"{code.width:,}",
                f"{code.active:.1f}",
                f"{code.dead}",
                f"{code.explained_variance:.3f}",
                f"{code.bits_per_byte:.3f}",
                f"{code.recovered:.1%}",
                f"{statistics.fmean(used) if used else 0:.2f}",
                f"{code.numbers:,}",
            ]
        )
    rows.append(["the model as it is", "", "", "", "1", f"{found.before:.3f}", "100%", "", ""])
    rows.append(["the mean alone", "", "", "", "0", f"{found.nothing:.3f}", "0%", "", ""])
    return rows


def purity_table(found: Report) -> list[list[str]]:
    """Rows of cells: how much features and neurons are about one thing."""
    rows = [["purity", "features", "live", "active", *(f"{label}, most active" for label in LABELS), "byte, all live"]]
    for name, one in found.sets.items():
        of = [one.purity[label] for label in LABELS]
        cells = [_interval(purity.most) if purity else "–" for purity in of]
        every = _interval(of[0].live) if of[0] else "–"
        rows.append([name, f"{one.count:,}", f"{one.live:,}", f"{one.active:.1f}", *cells, every])
    chance = [f"{found.random[label].mean:.3f}" for label in LABELS]
    rows.append(["places at random", "", "", "", *chance, chance[0]])
    return rows


def tasks_table(found: Report) -> list[list[str]]:
    """Rows of cells: what was recovered of known features, and of those that combine so many parts, over all tasks."""
    combined = sorted({count for task in found.tasks.values() for one in task.values() for count in one["by_count"]})
    sizes = [count for count in combined if count != "1"]
    rows = [["F1, parts / combined", *found.tasks, *(f"of {size} parts" for size in sizes), "correlation", "variance"]]
    for name in next(iter(found.tasks.values())):
        of = [task[name] for task in found.tasks.values()]
        variance = [one["explained_variance"] for one in of if one["explained_variance"] is not None]
        rows.append(
            [
                name,
                *(f"{one['simple_f1']:.2f} / {one['combined_f1']:.2f}" for one in of),
                *(f"{statistics.fmean(one['by_count'][size] for one in of):.2f}" for size in sizes),
                f"{statistics.fmean(one['correlation'] for one in of):.2f}",
                f"{statistics.fmean(variance):.3f}" if variance else "–",
            ]
        )
    return rows


def write_report(found: Report, folder: Path) -> None:
    """Write report, numbers and drawings into the folder."""
    fields = dataclasses.asdict(found) | environment() | {"verdicts": [one._asdict() for one in verdicts(found)]}
    draw_report(found, folder)
    (folder / REPORT).write_text("\n\n".join(_markdown(found)) + "\n", encoding="utf-8")
    written = folder / f"{RESULT}.part"
    written.write_text(json.dumps(fields, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(written, folder / RESULT)


def read_report(path: Path) -> Report:
    """The report in a file that `write_report` wrote.

    Raises:
        DataError: it is none, or of another version.
    """
    try:
        if path.stat().st_size > MOST_REPORT_BYTES:
            raise DataError(
                f"{path.name[:100]} has {path.stat().st_size:,} bytes; a report has at most {MOST_REPORT_BYTES:,}"
            )
        fields = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(Report)}
        told = {name: value for name, value in fields.items() if name in known}
        told["codes"] = {name: Code(**code) for name, code in told["codes"].items()}
        told["sets"] = {name: _feature_set(one) for name, one in told["sets"].items()}
        told["random"] = {name: Interval(**one) for name, one in told["random"].items()}
        told["against"] = {
            which: {name: Interval(**one) for name, one in gaps.items()} for which, gaps in told["against"].items()
        }
        found = Report(**told)
        # What every table needs.
        for said in (codes_table, purity_table, tasks_table, _markdown):
            list(said(found))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name[:100]} is no report of features that this version reads; make it again") from error
    return found


def _feature_set(fields: dict[str, Any]) -> FeatureSet:
    purity = {
        label: Purity(Interval(**one["most"]), Interval(**one["live"])) if one else None
        for label, one in fields["purity"].items()
    }
    features = [
        Feature(**one | {"examples": [Example(**each) for each in one["examples"]]}) for one in fields["features"]
    ]
    return FeatureSet(**fields | {"purity": purity, "features": features})


def draw_report(found: Report, folder: Path) -> list[Path]:
    """Write the drawings into the folder; their paths."""
    bars = {}
    for name, one in found.sets.items():
        of = {label: one.purity[label] for label in LABELS}
        if all(of.values()):
            bars[name] = {label: dataclasses.astuple(purity.most) for label, purity in of.items() if purity}
    drawn = []
    if bars:
        draw_bars(bars, "purity of the most active: 1 is always the same", folder / BARS)
        drawn.append(folder / BARS)
    if found.attention_of:
        panels = {f"head {head + 1}": rows for head, rows in enumerate(found.attention)}
        draw_squares(panels, attention_names(found), "row attends to column", folder / ATTENTION)
        drawn.append(folder / ATTENTION)
    counts = {name: [count for count in found.codes[name].reuse if count >= 0] for name in REUSED}
    draw_counts(counts, "features that use a part", "parts, %", folder / REUSE)
    heat = {
        f"F1 on {what} features": {
            name: {task: of[name][f"{what}_f1"] for task, of in found.tasks.items()}
            for name in next(iter(found.tasks.values()))
        }
        for what in ("simple", "combined")
    }
    draw_heat(heat, "F1", folder / RECOVERED, span=(0, 1))
    return [*drawn, folder / REUSE, folder / RECOVERED]


def attention_names(found: Report) -> list[str]:
    """The extracted features that attention is shown of, each with the byte that it is strongest for."""
    bytes_of = {one.name: one.byte for one in found.sets[EXTRACTED].features}
    return [f"{number} {bytes_of.get(str(number), '')!r}" for number in found.attention_of]


def _markdown(found: Report) -> Iterator[str]:
    how = found.settings
    yield f"# Features of {found.checkpoint} at {found.place}"
    rows = [list(Verdict._fields), *(list(one) for one in verdicts(found))]
    yield listed([[cell.replace("|", "/") for cell in row] for row in rows], right=False)
    yield (
        f"Learned from {how['bytes']:,} bytes of {found.text}, measured on the {how['measured_bytes']:,} from byte "
        f"{found.start_bytes:,} on, the first {how['put_back_bytes']:,} of them with reconstructions put back. "
        f"{how['training']['steps']:,} steps of {how['training']['batch']} samples at a learning rate of "
        f"{how['training']['learning_rate']:g}, {how['task_steps']:,} on each task; seed {how['training']['seed']}. At "
        f"most {how['k']} features active in a place ({how['task_k']} on tasks, of {how['task_extracted']} extracted)."
    )
    yield "## What codes keep"
    yield listed(codes_table(found))
    yield (
        "Active: features above 1 % of their largest strength, mean over places. Dead: never active. Variance: the "
        "part that the reconstruction explains. Recovered: of the bits that the mean alone loses. Reuse: mean number "
        "of features that use a part; a part is used by a feature if it is active in at least half of the 20 places "
        "where the feature is strongest, and at least twice as often as everywhere. The parts of the compositional "
        "autoencoder are its extracted features, those of others are their features themselves."
    )
    yield f"![reuse]({REUSE})"
    yield "## What features are about"
    yield listed(purity_table(found))
    yield (
        "Purity: of the 20 places where a feature is strongest, the part that bears the commonest label. Labels are "
        "the byte heard, the last two bytes, and the byte to come. Most active: the "
        f"{how['most_active']} of each kind with the largest sum of strengths, of those active in 20 places or more "
        f"(live). In brackets 95 % by bootstrap over features. The verdict compares {found.headline or 'nothing'}: "
        "neurons that read the very vector that the autoencoders learn, or wrote to it where no BDH layer reads it, or "
        "are what they learn."
    )
    yield f"![purity]({BARS})"
    yield "## Known features"
    yield listed(tasks_table(found))
    yield (
        "A sample is the sum of the directions of the parts that hold of it: digits, variables, a word's class. What "
        "combines two to four of them has no direction of its own and shows only in their being there together; an "
        f"autoencoder may use {how['task_k']} features for a sample, fewer than parts hold. Each known feature is "
        "matched with one feature of the code, no two with the same (largest sum of correlations), and detected by its "
        f"being above a threshold; both chosen on samples other than those measured. “{PARTS_ALONE}” is what having "
        "every part and nothing combined would give, a part standing for as many features as it likes: a code above it "
        "holds combinations. PCA has as many directions as features may be extracted, NMF is held to no number. Of so "
        "many parts, correlation and variance: means over the tasks."
    )
    yield f"![recovered]({RECOVERED})"
    if found.attention_of:
        yield "## What attends to what"
        yield (
            "The most active extracted features with the byte that each is strongest for; mean attention over places "
            f"where both are active, a panel for each head.\n\n![attention]({ATTENTION})"
        )
    yield "## Examples"
    for name, one in found.sets.items():
        if one.features:
            rows = [["feature", "active", "purity", "byte", "strongest places: the byte in brackets"]]
            for feature in one.features[:MARKDOWN_FEATURES]:
                told = " · ".join(_escaped(f"{e.before[-12:]}[{e.byte}]{e.after[:4]}") for e in feature.examples[:3])
                rows.append(
                    [feature.name, f"{feature.active:.1%}", f"{feature.purity:.2f}", _escaped(feature.byte), told]
                )
            yield f"### {name}\n\n{listed(rows)}"


def listed(rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """Rows of cells as a Markdown table."""
    head, *others = rows
    lines = [head, ["---", *["--:" if right else "---"] * (len(head) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(one: Interval) -> str:
    return f"{one.mean:.3f} ({one.low:.3f} to {one.high:.3f})"


def _escaped(text: str) -> str:
    """Text for a cell: blanks seen, nothing that Markdown would take for its own."""
    shown = text.replace("\n", "⏎").replace(" ", "␣").replace("`", "'").replace("|", "¦")
    return f"`{shown}`"
