"""All that was measured of a checkpoint, and how a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .last_word import LastWord
from .names import Names
from .needle import NeedleGrid
from .position import LongRange, Position
from .score import ColdAndCarried, wilson_interval


@dataclass(frozen=True)
class Text:
    """What is heard of a text, and whether the checkpoint says that it trained on it."""

    source: str
    name: str
    sha256: str
    """Of the whole text."""
    text_bytes: int
    """Of the whole text."""
    start_bytes: int
    """Where in the text the part begins that is heard."""
    heard_bytes: int
    trained_on: bool | None
    """Whether the checkpoint trained on any of that part; None if it does not say."""


@dataclass(frozen=True)
class TextResult:
    """What was measured on one text; None for what was not."""

    text: Text
    bits: ColdAndCarried | None
    positions: tuple[Position, ...] | None
    long_range: LongRange | None
    needle: NeedleGrid | None


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of one checkpoint."""

    checkpoint: str
    kind: str
    parameters: int
    state_bytes: int
    """Of one stream."""
    weights: str
    """Their checksum."""
    device: str
    dtype: str
    torch: str
    texts: tuple[TextResult, ...]
    lambada: LastWord | None
    names: Names | None
    elapsed_s: float


_TRAINED = {
    True: "by its provenance, the checkpoint trained on some of it",
    False: "by its provenance, the checkpoint never trained on it",
    None: "the checkpoint does not say whether it trained on it",
}


def report(evaluation: Evaluation) -> str:
    """Aligned tables in plain text."""
    head = (
        f"{evaluation.checkpoint}: {evaluation.kind}, {evaluation.parameters:,} parameters, "
        f"{evaluation.state_bytes / 1e6:.1f} MB of memory a stream; measured in {evaluation.elapsed_s:.0f} s"
    )
    parts = [head]
    for result in evaluation.texts:
        parts += [_about(result.text), *_parts(result)]
    if evaluation.lambada is not None:
        parts.append(_last_words(evaluation.lambada))
    if evaluation.names is not None:
        parts += _names(evaluation.names)
    return "\n\n".join(parts)


def _about(text: Text) -> str:
    end = text.start_bytes + text.heard_bytes
    part = "the whole text" if text.heard_bytes == text.text_bytes else f"bytes {text.start_bytes:,} to {end:,}"
    return f"{text.name}: {part} of {text.text_bytes:,}; {_TRAINED[text.trained_on]}"


def _parts(result: TextResult) -> Iterator[str]:
    if result.bits is not None:
        rows = [["memory", "bytes", "bits/byte", "±", "perplexity/byte"]]
        cold = f"cold, emptied every {result.bits.window_bytes:,} bytes"
        for name, score in ((cold, result.bits.cold), ("carried through", result.bits.carried)):
            rows.append(
                [
                    name,
                    f"{score.bytes:,}",
                    f"{score.bits_per_byte:.4f}",
                    _error(score.standard_error),
                    f"{score.perplexity_per_byte:.3f}",
                ]
            )
        yield table(rows)
    if result.positions is not None:
        rows = [["bytes heard", "bytes", "bits/byte", "±"]]
        for place in result.positions:
            stretch = f"{place.start_bytes:,} to {place.end_bytes - 1:,}"
            rows.append(
                [stretch, f"{place.bytes:,}", f"{place.bits_per_byte:.4f}", _error(place.standard_error)],
            )
        yield table(rows)
        yield _held(result.long_range)
    if result.needle is not None:
        yield from _needles(result.needle)


def _held(far: LongRange | None) -> str:
    if far is None:
        return "too short to say whether a long past does harm; that takes 12,192 bytes"
    return (
        f"a long past: the last {far.bytes:,} bytes cost {far.far_bits_per_byte:.4f} bits each after up to "
        f"{far.far_bytes:,} bytes,\n  and {far.near_bits_per_byte:.4f} heard again from {far.near_bytes:,} bytes "
        f"before; ratio {far.ratio:.4f} ± {far.standard_error:.4f}: "
        f"{'holds' if far.holds else 'does not hold'} (at most 1.01)"
    )


def _needles(grid: NeedleGrid) -> Iterator[str]:
    lengths = sorted({cell.length_bytes for cell in grid.cells})
    depths = sorted({cell.depth for cell in grid.cells})
    cells = {(cell.depth, cell.length_bytes): cell for cell in grid.cells}
    rows = [["needle: likeliest (written), depth", *(f"{length:,} bytes" for length in lengths)]]
    for depth in depths:
        of_depth = [cells[depth, length] for length in lengths]
        rows.append([f"{100 * depth:.4g} %", *(f"{c.found} ({c.written}) of {c.trials}" for c in of_depth)])
    yield table(rows)
    found, trials = sum(cell.found for cell in grid.cells), sum(cell.trials for cell in grid.cells)
    low, high = wilson_interval(found, trials)
    advantage = sum(cell.advantage_bits * cell.trials for cell in grid.cells) / trials
    yield (
        f"the hidden word was the likeliest of {grid.candidates} in {found} of {trials}: {found / trials:.1%} "
        f"({low:.1%} to {high:.1%}), guessing finds {grid.chance:.1%};\n  it cost {abs(advantage):.2f} bits "
        f"{'more' if advantage < 0 else 'less'} than the others on average"
    )


def _last_words(result: LastWord) -> str:
    given = "" if result.passages == result.passages_given else f", the first of {result.passages_given:,}"
    return (
        f"last word: {result.right:,} of {result.passages:,} passages{given}: {result.accuracy:.1%} "
        f"({result.low:.1%} to {result.high:.1%}); {result.bits_per_word:.2f} bits a word"
    )


def _names(result: Names) -> Iterator[str]:
    given = "" if result.words == result.words_given else f", of {result.words_given:,} that there are"
    yield (
        f"names: {result.words:,} words asked about{given}, which the training part of the dialogues never quotes;\n"
        f"  of the rest, where they stand: {_TRAINED[result.trained_on]}"
    )
    columns = [["named, of answers that name a word", "all", "95 %"]]
    columns[0] += [*(f"{one.letters} letters" for one in result.asked[0].lengths), "answers that name none"]
    for asked in result.asked:
        column = [f"after {asked.past_turns} other turns" if asked.past_turns else "at the start of a stream"]
        low, high = wilson_interval(asked.right, asked.naming) if asked.naming else (0.0, 1.0)
        column += [_rate(asked.right, asked.naming), f"{low:.0%} to {high:.0%}"]
        column += [_rate(one.right, one.naming) for one in asked.lengths]
        columns.append([*column, f"{asked.asked - asked.naming:,}"])
    yield table(list(zip(*columns, strict=True)))


def _rate(right: int, trials: int) -> str:
    return f"{right} of {trials}, {right / trials:.0%}" if trials else "none"


def _error(standard_error: float | None) -> str:
    return "" if standard_error is None else f"{standard_error:.4f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, the first flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
