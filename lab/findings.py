"""What an experiment on composability was asked and what it found, and how a person reads it."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bdh.errors import ConfigError
from train.folder import environment
from train.plots import draw_bars, draw_heat

from .claim import Claim, Table, Threshold
from .crossed import Crossed, Estimate, Row
from .heritage import Inherited

REPORT, RESULT = "report.md", "report.json"
BARS, CROSSED, HERITAGE = "bars.png", "crossed.png", "heritage.png"
SUPPORTED, PARTLY = 1.2, 1.5
"""A method supports the claim if its ratio to the specialists is under the first, partly if under the second."""
BASE, JOINT = "the base", "joint training"
STREAMS = 8
"""In which every text is heard."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is merged and measured."""

    parents: tuple[str, ...]
    """Checkpoints, as `bdh.load` takes them."""
    texts: tuple[str, ...]
    """Shipped corpora or files; healed on, and measured on."""
    methods: tuple[str, ...] = ("concat",)
    """As on the command line; average and mixture are always there."""
    base: str = ""
    """What the parents were cloned from."""
    joint: str = ""
    """A checkpoint trained on all texts at once."""
    heal_steps: int = 0
    """Of each healing; 0 heals nothing."""
    heal_trained: str = "full"
    """What heals: `full`, or the `ends` (embedding and read-out)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the healings."""
    bytes: int = 65_536
    """Measure at most so many of each text."""
    sample_bytes: int = 120
    """Length of what each model writes on each text's prompt; 0 writes nothing."""

    def __post_init__(self) -> None:
        if len(self.parents) < 2:
            raise ConfigError(f"{len(self.parents)} parents are given; name at least two checkpoints")
        if not self.texts or len(set(map(text_name, self.texts))) < len(self.texts):
            raise ConfigError("texts must be one or more, with names that differ; name them with --data")
        if self.heal_trained not in ("full", "ends"):
            raise ConfigError(f"what heals is {self.heal_trained!r:.80}; it must be full or ends")
        if self.heal_steps < 0 or self.sample_bytes < 0 or not self.seeds or min(self.seeds) < 0:
            raise ConfigError("steps, bytes of samples and seeds are 0 or more, and at least one seed is needed")
        if self.bytes < 3 * STREAMS:
            raise ConfigError(f"--bytes is {self.bytes}; it must be at least {3 * STREAMS}")


@dataclass(frozen=True)
class Measured:
    """A text as it is measured on."""

    name: str
    source: str
    sha256: str
    """Of the whole text."""
    start_bytes: int
    """Where the part begins that is heard."""
    heard_bytes: int
    trained_on: dict[str, bool | None]
    """By parent, whether it trained on some of that part; None if it does not say."""


@dataclass(frozen=True)
class Contender:
    """A row of the report."""

    name: str
    what: str
    """`parent`, `base`, `joint`, `merged` or `healed`."""
    row: Row
    """If healed, of the mean over seeds."""
    verdict: str
    """`supported`, `partly supported` or `not supported`; empty of what was not merged."""
    seeds: dict[int, float]
    """The ratio of each seed, if healed."""
    spread: float
    """Standard deviation of these; 0 for fewer than two."""
    notes: tuple[str, ...]
    """What merging found on the way."""


@dataclass(frozen=True)
class Report:
    """All that the experiment found."""

    experiment: Experiment
    texts: tuple[Measured, ...]
    crossed: Crossed
    contenders: tuple[Contender, ...]
    healed_bytes: int
    """Heard by each healing."""
    healed_part: float | None
    """Of the bytes that the specialists were trained on; None if these do not say how many."""
    heritage: dict[str, Inherited]
    """Of each model joined by neurons or heads."""
    samples: dict[str, dict[str, str]]
    """By text, what each model wrote on its prompt."""
    prompts: dict[str, str]
    left_out: tuple[str, ...]
    """Baselines that these parents do not allow, and why."""

    def contender(self, name: str) -> Contender:
        """The contender of a name."""
        return next(one for one in self.contenders if one.name == name)


def verdict(ratio: float) -> str:
    """What a ratio to the specialists says about the claim that trained models can be merged."""
    return "supported" if ratio < SUPPORTED else "partly supported" if ratio < PARTLY else "not supported"


def text_name(source: str) -> str:
    """What the report calls a text."""
    return Path(source).name.split(".")[0]


def contenders_table(found: Report) -> list[list[str]]:
    """Rows of cells: the head, the best parents, and each contender."""
    texts = [text.name for text in found.texts]
    rows = [["bits per byte", *texts, "average", "ratio", "95 %", "verdict", "parameters", "bytes/s"]]
    best = found.crossed.best()
    average = statistics.fmean(one.mean for one in best.values())
    rows.append(["best parents", *(f"{best[text].mean:.3f}" for text in texts), f"{average:.3f}", "1", "", "", "", ""])
    for one in found.contenders:
        row = one.row
        spread = f" ± {one.spread:.3f}" if one.seeds else ""
        rows.append(
            [
                one.name,
                *(f"{row.texts[text].mean:.3f}" for text in texts),
                f"{row.average.mean:.3f}",
                f"{row.ratio.mean:.3f}{spread}",
                _interval(row.ratio),
                one.verdict,
                f"{row.parameters:,}",
                f"{row.bytes_per_s:,.0f}",
            ]
        )
    return rows


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def verdicts(found: Report) -> Iterator[str]:
    """Lines that say which methods support the claim, before and after healing."""
    for what, told in (("merged", "untrained"), ("healed", "healed")):
        some = [one for one in found.contenders if one.what == what]
        for level in ("supported", "partly supported", "not supported"):
            if named := [one.name.removesuffix(", healed") for one in some if one.verdict == level]:
                yield f"- {told}: {level} by {', '.join(named)}"


def write_report(found: Report, folder: Path) -> None:
    """Write report, numbers and drawings into the folder."""
    fields = dataclasses.asdict(found) | environment() | {"supported_under": SUPPORTED, "partly_under": PARTLY}
    # As others may read them: no paths of this machine.
    for name in ("base", "joint"):
        fields["experiment"][name] = Path(fields["experiment"][name]).name
    for name in ("parents", "texts"):
        fields["experiment"][name] = [Path(one).name for one in fields["experiment"][name]]
    (folder / RESULT).write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / REPORT).write_text("\n\n".join(_markdown(found)) + "\n", encoding="utf-8")
    bars = {
        one.name: {name: dataclasses.astuple(value) for name, value in one.row.texts.items()}
        | {"mean of the texts": dataclasses.astuple(one.row.average)}
        for one in found.contenders
    }
    draw_bars(bars, "bits per byte, held out", folder / BARS)
    heat = {one.name: {text: value.mean for text, value in one.row.texts.items()} for one in found.contenders}
    draw_heat({"bits per byte of every model on every text": heat}, "bits per byte", folder / CROSSED)
    if found.heritage:
        shares = {
            name: {
                parent: {text: 100 * on.shares[index] for text, on in one.texts.items()}
                for index, parent in enumerate(one.parents)
            }
            for name, one in found.heritage.items()
        }
        draw_heat(shares, "of the activity, %", folder / HERITAGE, span=(0, 100))


def as_claim(found: Report, checkpoints: dict[str, str], repeat: str, elapsed_s: float) -> Claim:
    """The report in the form that the page shows of every claim, with a part for each method.

    Args:
        checkpoints: the parents' names and the checksums of their weights.
    """
    checks = []
    for one in found.contenders:
        if one.verdict:
            bounds = Threshold(
                f"{one.name} keeps what the parents know", "ratio to the best parents", SUPPORTED, PARTLY
            )
            checks.append(bounds.judge(one.row.ratio.mean, f"95 %: {_interval(one.row.ratio)}"))
    asked = found.experiment
    base = [one.row.ratio.mean for one in found.contenders if one.what == "base"]
    return Claim(
        name="composability",
        title=f"{' + '.join(checkpoints)}: can they be merged?",
        said="specialists that were trained from one base can be joined by putting their neurons side by side, without "
        "training",
        source="arXiv 2509.26507, §7.1",
        checkpoints=checkpoints,
        command=repeat,
        settings={
            "texts": [text.name for text in found.texts],
            "bytes": asked.bytes,
            "methods": list(asked.methods),
            "heal_steps": asked.heal_steps,
        },
        checks=tuple(checks),
        tables=(Table("Bits per byte, held out", contenders_table(found)),),
        drawings=(BARS, CROSSED),
        notes=(
            "The ratio is the mean over texts of bits per byte over those of the best parent for that text; all heard "
            "the same bytes.",
            *(
                f"The base that the parents were cloned from has a ratio of {one:.3f}: merging gains below."
                for one in base
            ),
        ),
        measured_s=elapsed_s,
    )


def _markdown(found: Report) -> Iterator[str]:
    asked = found.experiment
    names = [one.name for one in found.contenders if one.what == "parent"]
    yield f"# {' + '.join(names)}: can they be merged?"
    yield "\n".join(verdicts(found))
    yield (
        f"A method's claim is supported if its ratio is under {SUPPORTED}, partly if under {PARTLY}, else not. The "
        "ratio is the mean over texts of bits per byte over those of the best parent for that text."
    )
    yield _listed(contenders_table(found))
    yield f"![bits per byte]({BARS})\n\n![every model on every text]({CROSSED})"
    specialists = ", ".join(f"{name} on {text}" for text, name in found.crossed.specialists.items())
    told = [
        f"Best parents: {specialists}.",
        f"Every row heard the same bytes as {STREAMS} streams with their state carried; intervals are of 95 %, by t "
        "over blocks of about 512 bytes as if independent, those of ratios from paired blocks. Bytes/s are of all "
        "streams together.",
    ]
    if asked.base:
        base = next(one.row.ratio.mean for one in found.contenders if one.what == "base")
        told.append(f"The base that the parents were cloned from has a ratio of {base:.3f}: merging gains below that.")
    if asked.heal_steps:
        part = (
            f"{found.healed_part:.1%} of what the specialists were trained on after their base"
            if found.healed_part
            else "what part of the specialists' training that is, they do not say"
        )
        seeds = ", ".join(map(str, asked.seeds))
        told.append(
            f"Healing: {asked.heal_steps} steps, {found.healed_bytes:,} bytes of all texts alike ({part}), on "
            f"{'all weights' if asked.heal_trained == 'full' else 'embedding and read-out'}; seeds {seeds}: mean, and "
            "after ± the standard deviation over seeds."
        )
    told += [f"{one.name}: {note}." for one in found.contenders for note in one.notes]
    told += [f"Left out: {reason}." for reason in found.left_out]
    yield "\n".join(f"- {line}" for line in told)
    yield "## Texts"
    rows = [["text", "bytes heard", "from byte", "trained on by a parent"]]
    for text in found.texts:
        by = [name for name, trained in text.trained_on.items() if trained]
        unknown = [name for name, trained in text.trained_on.items() if trained is None]
        said = ", ".join(by) or ("none" if not unknown else f"not said by {', '.join(unknown)}")
        rows.append([text.name, f"{text.heard_bytes:,}", f"{text.start_bytes:,}", said])
    yield _listed(rows)
    if found.heritage:
        yield "## Whose neurons fire"
        yield from _inheritance(found)
    if asked.sample_bytes:
        yield "## Samples\n\nSeed 0, temperature 0.5; nothing was chosen by hand."
        for domain, prompt in found.prompts.items():
            yield f"### {domain}: {prompt!r}"
            yield "```\n" + "\n".join(f"{name}: {sample!r}" for name, sample in found.samples[domain].items()) + "\n```"


def _inheritance(found: Report) -> Iterator[str]:
    yield (
        "Share of the activity (x_sparse · y_sparse) by parent, part of its neurons that is active, and how many fire: "
        "are active in at least 1 % of all places of the text."
    )
    for name, one in found.heritage.items():
        rows = [["text", *(f"{parent}: share, active, firing" for parent in one.parents)]]
        for text, on in one.texts.items():
            cells = zip(on.shares, on.active, on.firing, one.neurons, strict=True)
            rows.append([text, *(f"{s:.1%}, {a:.1%}, {f:,} of {n:,}" for s, a, f, n in cells)])
        for overlap in one.overlaps:
            both = zip(overlap.both, overlap.either, strict=True)
            rows.append([" and ".join(overlap.texts), *(f"{b:,} on both, of {e:,} on either" for b, e in both)])
        yield f"### {name}"
        yield _listed(rows)
    yield f"![heritage]({HERITAGE})"


def _listed(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table."""
    head, *others = rows
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
