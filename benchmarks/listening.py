"""One listener of the page's server, through HTTP; and what each must get, worked out alone."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import bdh
from bdh.sampling import Sampling
from ui.chat import answer
from ui.sessions import Conversation

QUESTION = 'What does "river" mean?'
PROMPT = f"User: {QUESTION}\nBot:"
GENERATE, CHAT = "generate", "chat"
_TEMPERATURE = 0.8
_PATIENCE_S = 600


@dataclass
class Heard:
    """What one listener got: its text, and when each update came, in seconds after it asked."""

    text: str = ""
    times: list[float] = field(default_factory=list)
    event_id: str = ""
    whole: bool = False
    """Whether the answer came to its end."""

    @property
    def first_s(self) -> float:
        """Seconds to the first byte."""
        return self.times[0]

    @property
    def worst_gap_s(self) -> float:
        """The longest wait between two updates."""
        return max((later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)), default=0.0)


async def listen(
    server: httpx.AsyncClient,
    model: str,
    seed: int,
    count: int,
    session: str = "",
    *,
    what: str = GENERATE,
    heard: Heard | None = None,
) -> Heard:
    """Ask for so many bytes, and read the stream of the text so far to its end.

    Args:
        heard: filled as it comes, for one who does not wait for the end.
    """
    heard, begun = heard or Heard(), time.perf_counter()
    values: list[Any] = [PROMPT, model, count, _TEMPERATURE, 0, 1.0, 0.0, 0.0, 0.98, seed, "", True]
    if what == CHAT:
        values = [QUESTION, model, _TEMPERATURE, 1.0, count, seed, True]
    asked = await server.post(f"call/{what}", json={"data": values, "session_hash": session or f"listener-{seed}"})
    asked.raise_for_status()
    heard.event_id = asked.json()["event_id"]
    event = ""
    async with server.stream("GET", f"call/{what}/{heard.event_id}") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("event:"):
                event = line.removeprefix("event:").strip()
            elif line.startswith("data:") and event in ("generating", "complete"):
                with suppress(ValueError, KeyError, IndexError, TypeError):  # of one that was stopped there is none
                    text = json.loads(line.removeprefix("data:"))[0]
                    if text != heard.text:
                        heard.text = text
                        heard.times.append(time.perf_counter() - begun)
                    heard.whole = event == "complete"
            elif line.startswith("data:") and event == "error":
                raise SystemExit(f"the server says: {line[:300]}")
    return heard


def client(url: str) -> httpx.AsyncClient:
    """A client that opens as many connections as it is asked for."""
    most = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=f"{url}/gradio_api/", timeout=_PATIENCE_S, limits=most)


def alone(model: str, seed: int, count: int, what: str = GENERATE) -> str:
    """What a listener gets who is alone."""
    stream = bdh.Stream(_model(model))
    if what == CHAT:
        conversation = Conversation("", model, stream)
        options = Sampling(temperature=_TEMPERATURE, top_p=1.0, max_bytes=count, seed=seed, valid_utf8=True)
        for _ in answer(conversation, QUESTION, options):
            pass
        return conversation.turns[-1].answer
    stream.feed(PROMPT.encode())
    written = stream.generate(Sampling(max_bytes=count, seed=seed, valid_utf8=True))
    return bytes(one.byte for one in written).decode()


_models: dict[str, bdh.models.Model] = {}


def _model(name: str) -> bdh.models.Model:
    if name not in _models:
        _models[name] = bdh.load(Path(__file__).parents[1] / "checkpoints" / name)
    return _models[name]


def limits(at_once: int) -> dict[str, str]:
    """The environment of an app that serves so many at once and lets all others wait."""
    return {"BDH_MAX_AT_ONCE": str(at_once), "BDH_MAX_LIVE_STREAMS": "256", "BDH_MAX_WAITING": "1000"}
