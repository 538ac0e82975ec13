"""Does a model have neurons and synapses for a concept? Searched, tested on held-out sentences, silenced.

Two sets of sentences are given, a line each: about the concept, and not (at least 12 each, better 50; with few nothing
can hold among so many neurons, which is said before the search). Half of each is searched, by one-sided Mann-Whitney U
of every neuron and of the synapses between the best; the rest is held out. A find holds if its p, corrected by
Bonferroni, is under 0.01 (for synapses, whose neurons were chosen on the same sentences, the p of the held-out ones),
if in at most 5 % of the shuffles of the labels something is so good, and if it tells the held-out sentences apart with
an AUC of 0.9; with 0.75 it is faint. Then the best are silenced, against random neurons near them in activity. What was
measured before is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bdh.cli import guarded, resolved
from bdh.errors import ConfigError, DataError
from bdh.load import load
from bdh.models import Model
from bdh.sampling import Sampling
from train.folder import environment
from train.plots import as_drawn, draw_bars, figure

from .claim import Work, digest, identity, short_name, write_json
from .concepts import (
    CHANCE,
    FAINT,
    HOLDS,
    LEAST_SHUFFLES,
    SHOWN,
    SHUFFLES,
    SUMMARIES,
    SURE,
    Find,
    Finds,
    Search,
    search,
    search_synapses,
    searchable,
    too_few,
)
from .sentences import PRESETS, Sentences, parse, preset
from .silencing import CONTROLS, Silenced, go_on, silence

REPORT, RESULT, PLOT = "report.md", "report.json", "strips.png"
_LISTED = 8
"""Finds of a table in the report."""


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab concept", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a shipped name, a folder or user/repo")
    add("--concept", metavar="FILE", type=Path, help="sentences about the concept, one a line")
    add("--contrast", metavar="FILE", type=Path, help="sentences that are not about it")
    add("--presets", metavar="NAME", nargs="+", default=list(PRESETS), help=f"of {', '.join(PRESETS)} (default: all)")
    add(
        "--points",
        metavar="POINT",
        nargs="+",
        default=[],
        help="search these alone, such as 'layer.2.*' (default: all; fewer neurons need fewer sentences)",
    )
    add("--summary", choices=SUMMARIES, default="mean", help="how a neuron's activations become one number a sentence")
    add("--silence", metavar="N", type=int, default=8, help=f"silence so many of the best, up to {SHOWN} (default: 8)")
    add("--controls", metavar="N", type=int, default=CONTROLS, help=f"draws of other neurons (default: {CONTROLS})")
    add("--shuffles", metavar="N", type=int, default=SHUFFLES, help=f"of the labels (default: {SHUFFLES})")
    add(
        "--sample-bytes", metavar="N", type=int, default=80, help="written with and without them (default: 80; 0: none)"
    )
    add("--seed", metavar="N", type=int, default=0, help="of split, shuffles and draws (default: 0)")
    add("--out", type=Path, default=Path("runs/concept"), help="folder (default: runs/concept)")
    add("--quiet", action="store_true", help="show no progress")
    return parser


def _run(options: argparse.Namespace) -> int:
    say: Callable[[str], None] = (lambda line: None) if options.quiet else partial(print, file=sys.stderr, flush=True)
    if not 1 <= options.silence <= SHOWN or options.controls < 1 or options.sample_bytes < 0:
        raise ConfigError(f"--silence is 1 to {SHOWN}, --controls at least 1, --sample-bytes 0 or more")
    if options.shuffles < LEAST_SHUFFLES:
        raise ConfigError(f"--shuffles is {options.shuffles}; under {LEAST_SHUFFLES} nothing can be better than chance")
    if (options.concept is None) != (options.contrast is None):
        raise ConfigError("--concept and --contrast go together; give a file of sentences for each")
    if options.concept is not None:
        asked = [parse(options.concept.stem, _text(options.concept), _text(options.contrast))]
    else:
        asked = [preset(name) for name in options.presets]
    model = load(resolved(options.checkpoint), device="cpu")
    settings = {
        "points": options.points,
        "summary": options.summary,
        "silence": options.silence,
        "controls": options.controls,
        "shuffles": options.shuffles,
        "sample_bytes": options.sample_bytes,
        "seed": options.seed,
    }
    found = experiment(model, short_name(options.checkpoint), asked, settings, options.out, say=say)
    print("\n".join(verdict_line(one) for one in found))
    print(f"\n{options.out / REPORT}, {options.out / RESULT}, {options.out / PLOT}")
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a text in UTF-8: {error}") from error


def experiment(
    model: Model[Any],
    name: str,
    asked: Sequence[Sentences],
    settings: Mapping[str, Any],
    folder: Path,
    *,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Search and silence each concept that is not measured yet, and write the report.

    Args:
        name: of the checkpoint, for the report.
        settings: as the command's options.

    Raises:
        ConfigError: the folder holds another model or other settings.
        DataError: a point that is not there, or a sentence that this model cannot be searched with.
    """
    neurons = len(searchable(model, settings["points"]))
    parts = {_part(sentences): sentences for sentences in asked}
    passes = 2 + settings["controls"]
    expected = {part: passes * sum(map(len, of.all)) / 2500 for part, of in parts.items()}
    work = Work(folder, {"model": identity(model), **settings}, expected, say)
    found = []
    for part, sentences in parts.items():
        if few := too_few(neurons, sentences):
            say(f"{sentences.name}: {few}")
        found.append(work.part(part, partial(_measured, model, sentences, settings)))
        say(verdict_line(found[-1]))
    result = {"checkpoint": name, **identity(model), **settings, **environment()}
    write_json(folder / RESULT, {**result, "thresholds": _THRESHOLDS, "concepts": found})
    (folder / REPORT).write_text("\n\n".join(_markdown(name, settings, found)) + "\n", encoding="utf-8")
    draw_strips({one["name"]: one for one in found}, folder / PLOT)
    return found


_THRESHOLDS = {"bonferroni_under": SURE, "better_than_shuffles": CHANCE, "holds_from_auc": HOLDS, "faint_from": FAINT}


def _part(sentences: Sentences) -> str:
    """What a search is kept as: other sentences of the same name are another."""
    told = json.dumps(_sentences(sentences)).encode()
    return f"{sentences.name}-{digest(told)[:12]}"


def _measured(
    model: Model[Any], sentences: Sentences, settings: Mapping[str, Any], tell: Callable[[float], None]
) -> dict[str, Any]:
    shuffles, seed = settings["shuffles"], settings["seed"]
    found = search(
        model,
        sentences,
        summary=settings["summary"],
        points=settings["points"],
        seed=seed,
        shuffles=shuffles,
        tell=lambda part, note: tell(0.3 * part),
    )
    synapses = search_synapses(model, found, shuffles=shuffles, tell=lambda part, note: tell(0.3 + 0.2 * part))
    chosen: Any = [one.what for one in found.neurons.best[: settings["silence"]]]
    silenced = silence(
        model, found, chosen, controls=settings["controls"], seed=seed, tell=lambda part, note: tell(0.5 + 0.4 * part)
    )
    told = fields(found, synapses, silenced)
    if settings["sample_bytes"]:
        held = [one for one, seen in zip(sentences.concept, found.searched, strict=False) if not seen]
        prompt = held[0][: len(held[0]) // 2]
        greedy = Sampling(max_bytes=settings["sample_bytes"], temperature=0.0, seed=0)
        written = {
            "with all": go_on(model, prompt, (), greedy),
            "without them": go_on(model, prompt, silenced.neurons, greedy),
        }
        told["prompt"] = prompt.decode("utf-8", "replace")
        told["written"] = {which: text.decode("utf-8", "replace") for which, text in written.items()}
    return told


def fields(found: Search, synapses: Finds | None, silenced: Silenced | None) -> dict[str, Any]:
    """All that was found, as JSON takes it."""
    return {
        "name": found.sentences.name,
        "summary": found.summary,
        "seed": found.seed,
        "sentences": _sentences(found.sentences),
        "searched": found.searched.tolist(),
        "neurons": _finds(found.neurons),
        "synapses": None if synapses is None else _finds(synapses),
        "baselines": [dataclasses.asdict(one) for one in found.baselines],
        "silenced": None if silenced is None else _silenced(silenced),
    }


def _sentences(sentences: Sentences) -> dict[str, list[str]]:
    return {
        "concept": [one.decode("utf-8", "replace") for one in sentences.concept],
        "contrast": [one.decode("utf-8", "replace") for one in sentences.contrast],
    }


def _finds(finds: Finds) -> dict[str, Any]:
    return {
        "tried": finds.tried,
        "silent": finds.silent,
        "sure": finds.sure,
        "discovered": finds.discovered,
        "holding": finds.holding,
        "too_few": finds.too_few,
        "best_by_chance": finds.chance.tolist(),
        "best": [find_fields(one) for one in finds.best],
    }


def find_fields(find: Find) -> dict[str, Any]:
    """A find as JSON takes it."""
    return {
        **dataclasses.asdict(find),
        "what": {"name": str(find.what), **find.what._asdict()},
        "verdict": find.verdict,
    }


def _silenced(silenced: Silenced) -> dict[str, Any]:
    concept, contrast = silenced.more(silenced.found)
    return {
        **dataclasses.asdict(silenced),
        "neurons": [str(one) for one in silenced.neurons],
        "more_bits": {"concept": concept, "contrast": contrast},
        "verdict": silenced.verdict,
    }


def as_csv(found: Mapping[str, Any]) -> str:
    """The finds of `fields` as a table: a row for each neuron and synapse, the value of each sentence included."""
    into = io.StringIO()
    writer = csv.writer(into, lineterminator="\n")
    own = found["sentences"]
    labels = [f"{which} {i + 1}" for which in ("concept", "contrast") for i in range(len(own[which]))]
    measures = ["effect", "p", "bonferroni", "q", "by_chance", "held_effect", "held_auc", "held_p", "verdict"]
    writer.writerow(["kind", "name", *measures, *labels])
    for kind in ("neurons", "synapses"):
        for one in (found[kind] or {"best": []})["best"]:
            writer.writerow([kind[:-1], one["what"]["name"], *(one[name] for name in measures), *one["values"]])
    return into.getvalue()


def verdict_line(found: Mapping[str, Any]) -> str:
    """One line on what was found."""
    parts = [f"{found['name']}:"]
    for kind in ("neurons", "synapses"):
        if (own := found[kind]) is None:
            continue
        best = own["best"][0]
        parts.append(
            f"best of {own['tried']:,} {kind} {best['what']['name']} {best['verdict']} "
            f"(effect {best['effect']:.2f}, held-out AUC {best['held_auc']:.2f}; by chance "
            f"{_middle(own['best_by_chance']):.2f});"
        )
        if own["too_few"]:
            parts.append(f"of {kind} {own['too_few']};")
    plain = max(found["baselines"], key=lambda one: one["held_auc"])
    if plain["held_auc"] >= found["neurons"]["best"][0]["held_auc"]:
        parts.append(f"without any model {plain['name']} does as well (held-out AUC {plain['held_auc']:.2f});")
    if (silenced := found["silenced"]) is not None:
        count = len(silenced["controls"])
        draws = f"{count} draw{'s' if count != 1 else ''}"
        parts.append(f"{len(silenced['neurons'])} silenced matter {silenced['verdict']} ({draws} of others)")
    return " ".join(parts)


def _middle(values: Sequence[float]) -> float:
    return values[len(values) // 2]


def draw_strips(found: Mapping[str, Mapping[str, Any]], path: Path, *, place: int = 0, kind: str = "neurons") -> None:
    """The values of a find in every sentence, a panel for each concept.

    Args:
        place: of the find among the best.

    Raises:
        DataError: the file cannot be written.
    """
    with figure(path, len(found), inches=(6.0, 2.1)) as panels:
        for axes, (name, one) in zip(panels[:, 0], found.items(), strict=True):
            find = one[kind]["best"][place]
            count = len(one["sentences"]["concept"])
            for row, (value, searched) in enumerate(zip(find["values"], one["searched"], strict=True)):
                concept = row < count
                # Spread by the order of the sentences, so that the same data give the same picture.
                height = (0 if concept else 1) + 0.5 * ((row * 0.618) % 1 - 0.5)
                axes.plot(
                    value, height, "o" if concept else "s", color="C1" if concept else "C0", markersize=4,
                    fillstyle="full" if searched else "none", alpha=0.85,
                )  # fmt: skip
            axes.set_yticks([0, 1], ["concept", "contrast"])
            axes.set_ylim(1.5, -0.5)
            axes.set_title(f"{as_drawn(name)}: {find['what']['name']}, held-out AUC {find['held_auc']:.2f}", loc="left")
            axes.set_xlabel(
                "σ after the sentence" if kind == "synapses" else f"activation, {SUMMARIES[one['summary']]}"
            )
            axes.grid(True, axis="x", color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)


def draw_silence(silenced: Silenced, path: Path) -> None:
    """What silence costs the sentences held out, beside that of others: their mean and their range.

    Raises:
        DataError: the file cannot be written.
    """
    rows: dict[str, dict[str, tuple[float, float, float]]] = {}
    for side, which in enumerate(("concept", "contrast")):
        found = silenced.more(silenced.found)[side]
        others = [silenced.more(one)[side] for one in silenced.controls]
        rows[which] = {
            "the neurons found": (found, found, found),
            "others near in activity": (sum(others) / len(others), min(others), max(others)),
        }
    draw_bars(rows, f"bits per byte more, {len(silenced.neurons)} neurons silenced", path)


def _markdown(name: str, settings: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"# {name}: neurons and synapses for concepts"
    yield "\n".join(f"- {verdict_line(one)}" for one in found)
    yield (
        f"A find holds if its one-sided Mann-Whitney p, times the number tried (Bonferroni), is under {SURE}, if at "
        f"most {1 - CHANCE:.0%} of {settings['shuffles']} shuffles of the labels, the true ones counted as one more, "
        f"have a find so good, and if its AUC on the held-out sentences is at least {HOLDS}; from {FAINT} it is faint. "
        "The p is exact for up to 50 and 50 sentences searched where none but the lowest values are alike, else "
        "normal. q is Benjamini and "
        f"Hochberg's. Of each neuron the {SUMMARIES[settings['summary']]} is taken; one that hears patches is measured "
        "on those that a sentence fills. Synapses are those between the most separating neurons of each head, chosen "
        "on the same searched sentences, so for them only the held-out columns are evidence, and it is the p held out, "
        "times the finds that are shown, that must be under the threshold. Words of searched sentences may stand in "
        "held-out ones, too; two sentences on one line of the two sets are searched or held out together, if the sets "
        "are of one size."
    )
    yield f"![the best neuron in every sentence; filled: searched, empty: held out]({PLOT})"
    for one in found:
        own = one["sentences"]
        yield f"## {one['name']}\n\n{len(own['concept'])} sentences, such as {own['concept'][0]!r}, against " + (
            f"{len(own['contrast'])}, such as {own['contrast'][0]!r}."
        )
        for kind in ("neurons", "synapses"):
            if one[kind] is not None:
                yield from _found(kind, one[kind])
        lines = [
            f"- {base['name']} alone: effect {base['effect']:.2f}, held-out AUC {base['held_auc']:.2f}"
            for base in one["baselines"]
        ]
        yield "Without any model:\n\n" + "\n".join(lines)
        yield from _silence(one)


def _found(kind: str, own: Mapping[str, Any]) -> Iterator[str]:
    chance = own["best_by_chance"]
    if own["too_few"]:
        yield f"**{own['too_few'][0].upper()}{own['too_few'][1:]}.**"
    if kind == "synapses":  # what was searched chose their neurons, and is no evidence
        held = f"of the {len(own['best'])} that are held against the other sentences {own['holding']:,} hold"
    else:
        held = (
            f"{own['sure']:,} are sure by Bonferroni and shuffles, {own['discovered']:,} by Benjamini and Hochberg, "
            f"and of the sure {own['holding']:,} have an AUC of {HOLDS} or more held out"
        )
    yield (
        f"{own['tried']:,} {kind} tried ({own['silent']:,} say the same in all sentences); {held}. The best of "
        f"shuffled labels: median {_middle(chance):.2f}, largest {chance[-1]:.2f}."
    )
    rows = [
        f"| {one['what']['name']} | {one['effect']:.2f} | {one['bonferroni']:.1e} | {one['q']:.1e} | "
        f"{one['by_chance']:.1%} | {one['held_effect']:.2f} | {one['held_auc']:.2f} | {one['held_p']:.1e} | "
        f"{one['verdict']} |"
        for one in own["best"][:_LISTED]
    ]
    head = (
        f"| {kind[:-1]} | effect | p, Bonferroni | q | shuffles as good | effect held out | AUC held out | p held out "
    )
    yield "\n".join([f"{head}| verdict |", "| --- |" + " --: |" * 7 + " --- |", *rows])


def _silence(one: Mapping[str, Any]) -> Iterator[str]:
    silenced = one["silenced"]
    whole, found, others = silenced["whole"], silenced["found"], silenced["controls"]
    rows = [("nothing", whole), ("the neurons found", found)]
    rows += [(f"others, draw {i + 1}", cost) for i, cost in enumerate(others)]
    lines = [
        f"| {name} | {cost['concept']:.4f} ({cost['concept'] - whole['concept']:+.4f}) | "
        f"{cost['contrast']:.4f} ({cost['contrast'] - whole['contrast']:+.4f}) |"
        for name, cost in rows
    ]
    yield (
        f"Silenced: {', '.join(silenced['neurons'])}, and in each draw as many others of the same points, those that "
        f"come near in activity on the concept (together {silenced['alike']:.0%} as active, mean of the draws). "
        f"Verdict: the neurons matter {silenced['verdict']}; by chance neurons cost more than all others once in "
        f"{len(others) + 1} times."
    )
    yield "\n".join(["| silenced | concept, bits per byte held out | contrast |", "| --- | --: | --: |", *lines])
    if "written" in one:
        texts = "\n".join(f"{which}: {text!r}" for which, text in one["written"].items())
        yield f"What the likeliest bytes after {one['prompt']!r} are:\n\n```\n{texts}\n```"
