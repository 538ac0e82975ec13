"""The form of a dialogue that the shipped models were trained on: a line a turn."""

from __future__ import annotations

from collections.abc import Iterable

from bdh.errors import DataError

USER, BOT, END = "User: ", "\nBot:", b"\n"


def line(text: str) -> str:
    """A text as it stands in a dialogue: in one line."""
    return " ".join(text.split())


def question(message: str, before: bytes = b"") -> bytes:
    """What a model hears of a message, up to where its answer begins; `before` is what it has heard last."""
    opening = b"" if before.endswith(END) else END
    return opening + encoded(USER + line(message) + BOT)


def transcript(messages: Iterable[tuple[str, str]]) -> bytes:
    """What a model hears of messages, up to where its answer begins.

    Args:
        messages: (role, text) of each: `system` is heard as a line of its own, `user` and `assistant` as turns;
            messages of a user that follow each other are one turn.

    Raises:
        DataError: a message is empty, or the last is not a user's.
    """
    heard, asked = b"", ""
    for role, text in messages:
        if not line(text):
            raise DataError(f"a message of the {role} is empty; each must hold some text")
        if role == "user":
            asked = f"{asked} {text}"
        elif role == "assistant" and asked:
            heard, asked = heard + question(asked, heard) + encoded(f" {line(text)}\n"), ""
        else:
            opening = b"" if heard.endswith(END) else END
            heard += opening + encoded(f"{BOT[1:]} {line(text)}\n" if role == "assistant" else f"{line(text)}\n")
    if not asked:
        raise DataError("the last message must be of the role user: it is what the model answers")
    return heard + question(asked, heard)


def encoded(text: str) -> bytes:
    """The bytes of a text from outside; what cannot be encoded becomes a question mark."""
    return text.encode("utf-8", errors="replace")
