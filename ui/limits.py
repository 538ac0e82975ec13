"""What one visitor and all visitors together may use, from the environment."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass

from bdh.errors import ConfigError

_MB = 1_000_000
_THIS_MACHINE = ("", "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """Bounds of the page; each can be set as BDH_ and its name in capitals, such as BDH_MAX_MODELS=4."""

    max_prompt_bytes: int = 100_000
    """Bytes of one message or prompt."""
    max_write_bytes: int = 100_000
    """Bytes that one request may have written."""
    max_feed_bytes: int = 20 * _MB
    """Bytes of a text file fed into a memory."""
    max_upload_bytes: int = 200 * _MB
    """Bytes of one uploaded file."""
    max_fetched_bytes: int = 100_000 * _MB
    """Bytes of models from the Hub that a public page keeps on disk; those fetched longest ago are deleted."""
    max_uploads_each: int = 100
    """Uploaded models of one visitor."""
    max_request_bytes: int = 256 * _MB
    """Bytes of a request that is no upload; a text that is pasted must fit."""
    max_requests_each: int = 6_000
    """Requests of one visitor in a minute."""
    max_connections: int = 2_000
    """Requests and open pages at the same time; a page holds one or two."""
    max_connections_each: int = 500
    """Of these, one visitor's; scripts and styles of the page count apart."""
    max_served_bytes: int = 20_000 * _MB
    """Bytes of uploads that wait to be used, and of files that were made for download; the oldest are dropped."""
    served_hours: float = 24
    """Hours after which such a file is deleted; what was made of it stays."""
    max_conversations: int = 10_000
    """Conversations that are kept; beyond it, the one idle longest is forgotten."""
    max_said_bytes: int = 4 * _MB
    """Bytes of one conversation that can be gone back to; what was said before stays in its memory only."""
    max_live_streams: int = 64
    """Memories held at once; the one idle longest is put aside to disk."""
    max_state_bytes: int = 2_000 * _MB
    """Bytes that the memories held at once may take."""
    max_parked_bytes: int = 10_000 * _MB
    """Bytes of memories put aside to disk; the oldest are dropped beyond it."""
    max_models: int = 6
    """Models in memory; one that nobody uses makes room."""
    max_uploads_bytes: int = 4_000 * _MB
    """Bytes that all uploaded models together may take on disk."""
    max_parameters: int = 500_000_000
    """Parameters of one model."""
    max_at_once: int = 32
    """Answers written at the same time; further requests wait in a queue."""
    max_waiting: int = 256
    """Requests in the queue; further ones are refused."""
    max_waiting_each: int = 256
    """Requests of one visitor that wait or are answered; what a page asks for when it is opened counts apart."""
    max_train_minutes: int = 1_000_000
    """Minutes that one run may train."""
    max_train_bytes: int = 2_000 * _MB
    """Bytes of text that one run may read."""
    max_train_parameters: int = 500_000_000
    """Parameters of a model that is trained."""
    max_runs_at_once: int = 1
    """Runs that train at the same time; others wait their turn."""
    max_runs_waiting: int = 16
    """Runs that wait, of all visitors."""
    max_runs_each: int = 8
    """Runs of one visitor that wait or train."""
    max_runs_kept: int = 100
    """Runs of one visitor that have ended; beyond it the oldest are deleted."""
    max_runs_bytes: int = 200_000 * _MB
    """Bytes that the runs of all visitors may take on disk; beyond it no further one begins."""
    runs_hours: float = 1_000_000
    """Hours after which a run that has ended, or a merged model, is deleted."""
    max_merge_bytes: int = 32_000 * _MB
    """Memory that merging may take."""
    max_merges_kept: int = 100
    """Merged models of one visitor."""
    max_merges_bytes: int = 50_000 * _MB
    """Bytes that the merged models of all visitors may take on disk."""
    max_report_bytes: int = 16_384
    """Bytes of each text that a merged model and its parents are measured on, or of all sentences of a concept."""
    parked_hours: float = 24
    """Hours after which a conversation that nobody went on with is deleted, with its memory."""
    uploads_hours: float = 1_000_000
    """Hours after which an uploaded model is deleted."""
    allow_pickle: bool = False
    """Accept .pt files (read without running code); off by default, on at home."""
    mcp: bool = False
    """Offer tools to MCP clients (BDH_MCP; GRADIO_MCP_SERVER does the same)."""
    public: bool = False
    """Others than the one at this machine can reach the page: models cached by earlier runs are not shown to them."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not 0 < value < float("inf"):
                raise ConfigError(f"{field.name} is {value}; it must be a number above 0")
            if field.type == "int" and value < 1:
                raise ConfigError(f"{field.name} is {value}; it must be at least 1")

    @classmethod
    def from_environment(cls, environment: dict[str, str] | None = None) -> Limits:
        """The limits that the environment asks for.

        They are the public ones on a Space (SPACE_ID is set), and where GRADIO_SERVER_NAME lets other machines in.

        Raises:
            ConfigError: a value that is no number, no whole one where only whole ones count, or too small.
        """
        env = dict(os.environ) if environment is None else environment
        public = "SPACE_ID" in env or env.get("GRADIO_SERVER_NAME", "") not in _THIS_MACHINE
        mcp = env.get("GRADIO_MCP_SERVER", "").strip().lower() in ("1", "true")
        values: dict[str, float | bool] = {"public": public, "mcp": mcp}
        for field in dataclasses.fields(cls):
            name = f"BDH_{field.name.upper()}"
            if name not in env:
                continue
            text = env[name].strip().lower()
            if field.type == "bool":
                if text not in ("0", "1", "true", "false"):
                    raise ConfigError(f"{name} is {text!r:.40}; it must be true or false")
                values[field.name] = text in ("1", "true")
            elif re.fullmatch(r"[0-9]{1,30}", text):
                values[field.name] = int(text)
            elif field.type == "float":
                if not re.fullmatch(r"[0-9]{0,30}\.[0-9]{1,30}", text):
                    raise ConfigError(f"{name} is {text!r:.40}; it must be a number of hours, such as 2 or 0.5")
                values[field.name] = float(text)
            else:
                raise ConfigError(f"{name} is {text!r:.40}; it must be a whole number")
        usual: dict[str, float | bool] = dict(_PUBLIC) if values["public"] else {"allow_pickle": True}
        if env.get("SPACES_ZERO_GPU", "").lower() in ("1", "true"):
            usual |= {"max_train_minutes": _LENT_MINUTES, "max_at_once": _LENT_AT_ONCE}
        return cls(**{**usual, **values})  # type: ignore[arg-type]


def hours_text(hours: float) -> str:
    """A time as a person says it: hours, or minutes or seconds where it is shorter."""
    unit, count = next((unit, hours * scale) for unit, scale in _UNITS if hours * scale >= 1 or unit == "second")
    text = f"{count:,.3g}" if count < 100 else f"{count:,.0f}"
    return f"{text} {unit}{'' if text == '1' else 's'}"


_UNITS = (("hour", 1), ("minute", 60), ("second", 3600))
_LENT_MINUTES = 3
"""A GPU is lent to a visitor for a few minutes a day."""
_LENT_AT_ONCE = 4
"""There each answer is written by a process of its own."""
_PUBLIC: dict[str, float | bool] = {
    # Two cores hear some 2,500 bytes a second and write 500, for all visitors together.
    "max_prompt_bytes": 20_000,
    "max_write_bytes": 10_000,
    "max_feed_bytes": 500_000,
    # Of 16 GB of memory: models and their copies for fast single bytes 5, memories 1 for conversations and 1 for
    # requests, merging 2, training 3.
    "max_parameters": 100_000_000,
    "max_state_bytes": 1_000 * _MB,
    "max_said_bytes": 200_000,
    "max_conversations": 1_000,
    "max_request_bytes": 8 * _MB,
    "max_requests_each": 1_200,
    "max_connections": 500,
    "max_connections_each": 60,
    "max_waiting_each": 32,
    # Of 50 GB of disk.
    "max_upload_bytes": 100 * _MB,
    "max_fetched_bytes": 8_000 * _MB,
    "max_uploads_each": 8,
    "max_uploads_bytes": 2_000 * _MB,
    "max_served_bytes": 2_000 * _MB,
    "served_hours": 2,
    "max_parked_bytes": 4_000 * _MB,
    "max_runs_bytes": 4_000 * _MB,
    "max_train_minutes": 20,
    "max_train_bytes": 20 * _MB,
    "max_train_parameters": 30_000_000,
    "max_runs_each": 1,
    "max_runs_kept": 4,
    "runs_hours": 48,
    "max_merge_bytes": 2_000 * _MB,
    "max_merges_kept": 6,
    "max_merges_bytes": 4_000 * _MB,
    "uploads_hours": 48,
}
"""What else is allowed where strangers come."""
