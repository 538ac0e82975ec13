"""A merged model and its parents on the same prompt, its text coloured by whose neurons carried it."""

from __future__ import annotations

import html
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bdh.errors import HatcheryError
from bdh.sampling import Sampling
from bdh.stream import Stream, Written
from lab.heritage import carried

from . import lineage
from .kept import PARENT, Subject
from .registry import Owner, Registry
from .write import one_after_another, side_by_side
from .writing import ON_ZERO_GPU, hear_and_write

MOST_VOICES = 5
"""Models that write side by side: the merged one and its first parents."""
MAX_PROMPT_BYTES, MAX_BYTES = 2_000, 1_000


@dataclass
class Voice:
    """What one model makes of a prompt, as far as it has come."""

    subject: Subject
    place: int | None
    """A parent's place among the parents, whose colour it has; None for the merged model."""
    run: str = field(default_factory=lineage.new_run)
    written: bytearray = field(default_factory=bytearray)
    elapsed_s: float = 0.0
    told: str = "getting ready"
    markup: str = ""

    def summary(self) -> str:
        """Markup of who writes and how it goes, in one line."""
        name = html.escape(self.subject.name)
        chip = f"<b>{name}</b>"
        if self.place is not None:
            chip = f'<span class="tint lineage"><span class="p{self.place % len(lineage.LIGHT)}">{name}</span></span>'
        return f'<p class="summary">{chip} · {html.escape(self.told)}</p>'

    def drawn(self) -> dict[str, Any]:
        """Its text, for drawing."""
        return lineage.drawn(self.markup, self.run)


def write_beside(
    registry: Registry,
    subjects: Sequence[Subject],
    parents: Sequence[str],
    heritage: Any,
    prompt: bytes,
    options: Sampling,
    owner: Owner,
) -> Generator[list[Voice], None, None]:
    """Let every model go on from the prompt, again and again as texts grow; last, the merged one's is coloured.

    Args:
        subjects: the merged model first.
        parents: names of all parents, in the order of the merge.
        heritage: as `kept.heritage_of` says.

    Raises:
        HatcheryError: a model is gone, or there is no room for its memory.
    """
    voices = [
        Voice(one, parents.index(one.name) if one.kind == PARENT and one.name in parents else None)
        for one in subjects[:MOST_VOICES]
    ]
    yield voices
    opening = f'<span class="prompt">{html.escape(prompt.decode("utf-8", "replace"))}</span>'
    with ExitStack() as stack:
        leased = [stack.enter_context(registry.lease(one.subject.id, owner)) for one in voices]
        stack.enter_context(registry.reserve(sum(model.state_bytes() for model in leased)))
        runs = [_write(one, Stream(model), prompt, options) for one, model in zip(voices, leased, strict=True)]
        for voice in (one_after_another if ON_ZERO_GPU else side_by_side)(runs):
            voice.markup = opening + html.escape(voice.written.decode("utf-8", "ignore"))
            yield voices
        merged = voices[0]
        said, merged.told = merged.told, f"{merged.told}, now asking its neurons"
        yield voices
        text = bytes(merged.written)
        try:
            shares = carried(leased[0], heritage, prompt + text, parents=len(parents))[len(prompt) :]
            characters = lineage.carried_by(text, shares)
            merged.markup = opening + lineage.tinted(characters, parents)
            merged.told = f"{said}, carried by {lineage.overall(characters, parents)}"
        except HatcheryError:
            merged.told = f"{said}; all its neurons are of all parents, so it has no colours"
    yield voices


def _write(voice: Voice, stream: Stream, prompt: bytes, options: Sampling) -> Iterator[Voice]:
    heard = 0
    batches = hear_and_write(stream, prompt, options)
    while True:
        begun = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        new = [part for part in batch if isinstance(part, Written)]
        if len(new) == len(batch):
            voice.elapsed_s += time.perf_counter() - begun
        else:
            heard = max(part for part in batch if not isinstance(part, Written))
        voice.written += bytes(part.byte for part in new if not part.is_stop)
        count = len(voice.written)
        voice.told = f"{count:,} bytes" if count else f"reading {heard:,} of {len(prompt):,} bytes"
        if voice.elapsed_s > 0.2:
            voice.told += f", {count / voice.elapsed_s:,.0f} bytes/s"
        yield voice
