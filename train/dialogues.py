"""Dialogues that call tools, in one form of text, and the rows of datasets that are brought into it.

    Tools: [{"name":"get_time","parameters":{"city":{"type":"string"}}}]
    User: What time is it in Oslo?
    Call: {"name":"get_time","arguments":{"city":"Oslo"}}

A line is a turn; `Result:` is what a tool gave back and `Bot:` what is said to the user, where a dataset has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bdh.checkpoint import cut
from bdh.errors import DataError

_SPEAKERS = {"USER": "User", "ASSISTANT": "Bot", "FUNCTION RESPONSE": "Result"}
_TURN = re.compile(r"^\s*(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_QUOTED_ARGUMENTS = re.compile(r"""("arguments"\s*:\s*)'(.*)'(\s*\})""", re.DOTALL)


def compact_json(value: object) -> str:
    """A value as JSON on one line, as short as it goes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def dialogue(tools: object, turns: Iterable[tuple[str, str]]) -> str:
    """The tools and the turns, each a speaker and what is said; without a line end at the end."""
    lines = [f"Tools: {compact_json(tools)}"]
    # Spaces within a call are part of its arguments; elsewhere a turn is brought onto one line.
    lines += [f"{who}: {said if who == 'Call' else ' '.join(said.split())}" for who, said in turns]
    return "\n".join(lines)


def dialogue_of_row(row: Mapping[str, Any]) -> str | None:
    """A dataset's row as a dialogue; None if what stands in its columns is broken.

    Columns that are read: `query`, `tools` and `answers` with JSON in them (Salesforce/xlam-function-calling-60k),
    or `system` and `chat` (glaiveai/glaive-function-calling-v2).

    Raises:
        DataError: the row has other columns.
    """
    if {"query", "tools", "answers"} <= row.keys():
        read = _from_answers
    elif {"system", "chat"} <= row.keys():
        read = _from_chat
    else:
        columns = ", ".join(cut(name, 40) for name in list(row)[:30])
        raise DataError(
            f"a row has the columns {columns}; the form tool-calling reads rows with query, tools and answers, or with "
            "system and chat; choose another dataset, or the form plain with a column"
        )
    try:
        return read(row)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _from_answers(row: Mapping[str, Any]) -> str:
    calls = _parsed(row["answers"])
    turns = [("User", row["query"]), *(("Call", _call(call)) for call in calls)]
    return dialogue(_tools(_parsed(row["tools"])), turns)


def _from_chat(row: Mapping[str, Any]) -> str:
    _, bracket, listed = row["system"].partition("{")
    return dialogue(_tools(list(_objects(bracket + listed))), _turns(row["chat"].replace("<|endoftext|>", "")))


def _parsed(value: Any) -> Any:
    """JSON that may have been parsed already."""
    return json.loads(value) if isinstance(value, str) else value


def _tools(tools: Any) -> list[Any]:
    """Tools without the wrapping that some sets have around each."""
    tools = [tools] if isinstance(tools, dict) else tools
    return [tool.get("function", tool) for tool in tools]


def _call(call: Mapping[str, Any]) -> str:
    return compact_json({"name": call["name"], "arguments": _parsed(call["arguments"])})


def _objects(text: str) -> Iterator[Any]:
    """JSON objects one after the other, with blank space between."""
    decoder = json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:]


def _turns(chat: str) -> Iterator[tuple[str, str]]:
    before, *parts = _TURN.split(chat)
    if before.strip() or not parts:
        raise ValueError("a chat begins with a speaker")
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        said, marker, called = said.partition("<functioncall>")
        if said.strip():
            yield _SPEAKERS[speaker], said
        if marker:
            # The arguments stand between single quotes there, which is no JSON.
            unquoted = _QUOTED_ARGUMENTS.sub(lambda found: found[1] + found[2].replace("\\'", "'") + found[3], called)
            yield "Call", _call(json.loads(unquoted))
