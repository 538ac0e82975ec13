"""Texts that are made here, without a network: exercises whose answers are known, and dialogues that call tools.

Every text is a run of blocks, each with its own answer, the same for the same seed on every machine and version.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias, TypeVar

from bdh.errors import DataError

from .dialogues import compact_json, dialogue
from .invented import invented_dialogue

VERSION = 1
"""Part of what names a prepared text: raised when a change here changes any byte."""

DEFAULT_BYTES = 4 << 20
"""How long a text is whose length nobody chose."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_T = TypeVar("_T")
Value: TypeAlias = str | int | float | bool
Phrased: TypeAlias = Value | tuple[str, Value]
"""A value as it is said, where that differs from how it is written in a call: what is said, what is written."""


class Draws:
    """Chance from a seed, drawn from `random()` alone: the one sequence that Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[_T]) -> _T:
        """One of the items."""
        return items[self.whole(0, len(items) - 1)]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def some(self, items: Sequence[_T], count: int) -> list[_T]:
        """So many different items, in any order."""
        left = list(items)
        return [left.pop(self.whole(0, len(left) - 1)) for _ in range(count)]

    def word(self, low: int, high: int, letters: str = _LETTERS) -> str:
        """A word of `low` to `high` of these letters."""
        return "".join(self.pick(letters) for _ in range(self.whole(low, high)))

    def number(self, digits: int) -> int:
        """A whole number of 1 to so many digits, each length as likely."""
        return self.whole(0, 10 ** self.whole(1, digits) - 1)


def generate(kind: str, max_bytes: int = DEFAULT_BYTES, seed: int = 0) -> bytes:
    """As many whole blocks of a kind as fit into `max_bytes`."""
    return b"".join(blocks(kind, max_bytes, seed))


def generated_tool_calls(max_bytes: int, seed: int) -> bytes:
    """Dialogues that call tools, as many as fit into `max_bytes`."""
    return generate("tool-calling", max_bytes, seed)


def blocks(kind: str, max_bytes: int = DEFAULT_BYTES, seed: int = 0) -> Iterator[bytes]:
    """Blocks of a kind, one after the other, as long as they fit into `max_bytes`.

    Raises:
        DataError: an unknown kind.
    """
    if kind not in KINDS:
        raise DataError(f"nothing generates {kind!r:.80}; what can be generated is {', '.join(KINDS)}")
    make, draws, left = KINDS[kind], Draws(seed), max_bytes
    while len(block := make(draws).encode()) <= left:
        left -= len(block)
        yield block


def _string_step(draws: Draws, text: str) -> tuple[str, str | int]:
    """Something that is done to a text, and what comes of it."""
    name = draws.pick(("copy", "reverse", "upper", "lower", "count"))
    if name == "count":
        letter = draws.pick(text if draws.chance(0.8) else _LETTERS)
        return f"count {letter}", text.count(letter)
    return name, {"copy": text, "reverse": text[::-1], "upper": text.upper(), "lower": text.lower()}[name]


def _order(left: int, right: int) -> str:
    return "less" if left < right else "greater" if left > right else "equal"


def _either_case(draws: Draws) -> str:
    """A short word, all of it large or small, of few letters so that some come twice."""
    word = draws.word(1, 8, _LETTERS if draws.chance(0.5) else "abcd")
    return word.upper() if draws.chance(0.3) else word


def _primitive(draws: Draws) -> str:
    """One step on one input."""
    kind = draws.whole(0, 7)
    if kind < 5:
        text = _either_case(draws)
        step, answer = _string_step(draws, text)
        return f"{step}: {text} -> {answer}\n"
    left, right = draws.number(2), draws.number(2)
    if kind == 5:
        return f"successor: {left} -> {left + 1}\n"
    if kind == 6:
        right = left if draws.chance(0.1) else right
        return f"compare: {left} {right} -> {_order(left, right)}\n"
    return f"add: {left} {right} -> {left + right}\n"


def _composition(draws: Draws) -> str:
    """Two steps, the second on what came of the first."""
    given = ""
    value: str | int
    if draws.chance(0.7):
        given = _either_case(draws)
        first, value = _string_step(draws, given)
    else:
        left, right = draws.number(2), draws.number(2)
        first, given, value = (
            ("add", f"{left} {right}", left + right) if draws.chance(0.5) else ("successor", f"{left}", left + 1)
        )
    if isinstance(value, str):
        second, answer = _string_step(draws, value)
    elif draws.chance(0.5):
        second, answer = "successor", value + 1
    else:
        other = max(0, value + draws.whole(-3, 3))
        second, answer = f"compare {other}", _order(value, other)
    return f"{first} then {second}: {given} -> {answer}\n"


def _numbers(values: Sequence[int]) -> str:
    return " ".join(str(value) for value in values)


def _brackets(draws: Draws, pairs: int) -> str:
    """Balanced brackets, so many pairs."""
    if not pairs:
        return ""
    opening, closing = draws.pick((("(", ")"), ("[", "]"), ("{", "}")))
    inside = draws.whole(0, pairs - 1)
    return opening + _brackets(draws, inside) + closing + _brackets(draws, pairs - 1 - inside)


def balanced(text: str) -> bool:
    """Whether every bracket is closed by its own kind, in order."""
    open_ones = []
    for mark in text:
        if mark in "([{":
            open_ones.append(mark)
        elif not open_ones or open_ones.pop() + mark not in ("()", "[]", "{}"):
            return False
    return not open_ones


def _search_steps(values: Sequence[int], wanted: int) -> list[int]:
    """The values that a binary search looks at, the lower one of two middles first."""
    low, high, seen = 0, len(values) - 1, []
    while low <= high:
        middle = (low + high) // 2
        seen.append(values[middle])
        if values[middle] == wanted:
            break
        low, high = (middle + 1, high) if values[middle] < wanted else (low, middle - 1)
    return seen


def _algorithm(draws: Draws) -> str:
    """A known algorithm on one input, with its result."""
    kind = draws.pick(("sort", "gcd", "balanced", "search", "runs", "sum"))
    if kind == "sort":
        values = [draws.number(2) for _ in range(draws.whole(2, 8))]
        return f"sort: {_numbers(values)} -> {_numbers(sorted(values))}\n"
    if kind == "gcd":
        shared = draws.whole(1, 12)
        left, right = shared * draws.whole(1, 20), shared * draws.whole(1, 20)
        return f"gcd: {left} {right} -> {math.gcd(left, right)}\n"
    if kind == "balanced":
        text = _brackets(draws, draws.whole(1, 6))
        if draws.chance(0.5):
            place = draws.whole(0, len(text) - 1)
            text = text[:place] + draws.pick("()[]{}") + text[place + draws.whole(0, 1) :]
        return f"balanced: {text} -> {'yes' if balanced(text) else 'no'}\n"
    if kind == "search":
        values = sorted(draws.some(range(100), draws.whole(3, 12)))
        wanted = draws.pick(values) if draws.chance(0.7) else draws.whole(0, 99)
        found = "found" if wanted in values else "missing"
        return f"search {wanted}: {_numbers(values)} -> {_numbers(_search_steps(values, wanted))} {found}\n"
    if kind == "runs":
        text = "".join(draws.pick("abcd") * draws.whole(1, 6) for _ in range(draws.whole(1, 6)))
        return f"runs: {text} -> {''.join(f'{letter}{len(list(run))}' for letter, run in groupby(text))}\n"
    left, right = draws.number(7), draws.number(7)
    return f"sum: {left} {right} -> {left + right}\n"


def _stack_machine(draws: Draws) -> str:
    """Commands to a stack, each with the stack after it, its top last."""
    stack: list[int] = []
    lines = ["stack"]
    for _ in range(draws.whole(4, 9)):
        commands = ["push", "push"]
        commands += ["dup", "drop"] if stack else []
        commands += ["add", "sub", "swap"] if len(stack) > 1 else []
        command = draws.pick(commands)
        if command == "push":
            value = draws.whole(0, 9)
            stack.append(value)
            command = f"push {value}"
        elif command == "dup":
            stack.append(stack[-1])
        elif command == "drop":
            stack.pop()
        else:
            right, left = stack.pop(), stack.pop()
            stack += {"add": [left + right], "sub": [left - right], "swap": [right, left]}[command]
        lines.append(f"{command} -> {_numbers(stack) or 'empty'}")
    return "\n".join(lines) + "\n\n"


def _store(draws: Draws) -> str:
    """Commands to a store of values by key, each with its answer."""
    store: dict[str, int] = {}
    keys = draws.some(_LETTERS, 3)
    lines = ["store"]
    for _ in range(draws.whole(5, 10)):
        command, key = draws.pick(("set", "set", "get", "get", "get", "del")), draws.pick(keys)
        if command == "set":
            store[key] = draws.number(2)
            lines.append(f"set {key} {store[key]} -> ok")
        else:
            answer = store.get(key) if command == "get" else "ok" if store.pop(key, None) is not None else None
            lines.append(f"{command} {key} -> {'none' if answer is None else answer}")
    return "\n".join(lines) + "\n\n"


def _automaton(draws: Draws) -> str:
    """A finite automaton on the letters a and b, and the states it goes through as it reads."""
    states = list("PQRST")[: draws.whole(2, 4)]
    moves = {(state, letter): draws.pick(states) for state in states for letter in "ab"}
    accepting = draws.pick(states)
    lines = [f"automaton {states[0]} accepts in {accepting}"]
    lines += [f"{state} a {moves[state, 'a']} b {moves[state, 'b']}" for state in states]
    for _ in range(draws.whole(2, 4)):
        text = draws.word(2, 8, "ab")
        path = states[0]
        for letter in text:
            path += moves[path[-1], letter]
        lines.append(f"{text} -> {path} {'yes' if path[-1] == accepting else 'no'}")
    return "\n".join(lines) + "\n\n"


def _system(draws: Draws) -> str:
    """One of the small machines."""
    return draws.pick((_stack_machine, _store, _automaton))(draws)


@dataclass(frozen=True)
class _Parameter:
    type: str
    values: tuple[Phrased, ...]
    default: Value | None = None
    """What holds where a request does not say it; None makes it required."""


@dataclass(frozen=True)
class _Tool:
    name: str
    description: str
    parameters: dict[str, _Parameter]
    requests: tuple[str, ...]
    """Ways to ask for it, with its parameters in braces."""

    def described(self) -> dict[str, Any]:
        """The tool as the one who calls it sees it."""
        parameters: dict[str, dict[str, Value]] = {}
        for name, parameter in self.parameters.items():
            parameters[name] = {"type": parameter.type}
            if parameter.default is not None:
                parameters[name]["default"] = parameter.default
        return {"name": self.name, "description": self.description, "parameters": parameters}

    def asked(self, draws: Draws) -> tuple[str, dict[str, Any]]:
        """A request for it and the call that fulfils it."""
        request, arguments = draws.pick(self.requests), {}
        for name, parameter in self.parameters.items():
            if f"{{{name}}}" not in request:
                continue
            value = draws.pick(parameter.values)
            said, arguments[name] = value if isinstance(value, tuple) else (str(value), value)
            request = request.replace(f"{{{name}}}", said)
        return request, {"name": self.name, "arguments": arguments}


_CITY = _Parameter(
    "string",
    (
        *("Lisbon", "Oslo", "Nairobi", "Kyoto", "Lima", "Toronto", "Vienna", "Cairo", "Hanoi", "Dublin"),
        *("Warsaw", "Quito", "Perth", "Tunis", "Bergen", "Seville", "Osaka", "Bogotá", "Zürich", "Riga"),
    ),
)
_OTHER_CITY = _Parameter("string", ("Madrid", "Rome", "Delhi", "Accra", "Boston", "Prague", "Santiago", "Helsinki"))
_PERSON = _Parameter(
    "string", ("Ana", "Ben", "Chloe", "Diego", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kofi", "Lena")
)
_DAY = _Parameter("string", ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"))
_TIME = _Parameter("string", tuple(f"{hour:02d}:{minute:02d}" for hour in range(6, 22) for minute in (0, 15, 30, 45)))
_ROOM = _Parameter("string", ("kitchen", "bedroom", "hall", "office", "garage", "living room", "bathroom"))
_CURRENCY = _Parameter("string", ("EUR", "USD", "GBP", "JPY", "CHF", "SEK", "BRL", "INR"))
_OTHER_CURRENCY = _Parameter("string", ("CAD", "AUD", "NOK", "MXN", "ZAR", "KRW"))
_AMOUNT = _Parameter("number", (*range(5, 1000, 7), 12.5, 19.99, 49.5, 75.25, 120.75, 349.9))
_ITEM = _Parameter(
    "string", ("apples", "bread", "rice", "olive oil", "coffee", "soap", "batteries", "eggs", "tea", "paper towels")
)
_DRINK = _Parameter("string", ("tea", "water", "orange juice", "lemonade", "hot chocolate", "espresso"))
_LANGUAGE = _Parameter("string", ("French", "Spanish", "German", "Japanese", "Swahili", "Portuguese", "Polish"))
_PHRASE = _Parameter("string", ("good morning", "thank you", "where is the station", "see you soon", "how much is it"))
_TASK = _Parameter(
    "string",
    (
        *("water the plants", "call the bank", "pay the rent", "send the report", "book the dentist"),
        *("feed the cat", "charge the camera", "return the library books", "renew the passport"),
    ),
)
_SONG = _Parameter("string", ("Blue Harbour", "Paper Moon", "Winter Train", "Slow River", "Glass Garden", "Red Kite"))
_SUBJECT = _Parameter("string", ("volcanoes", "honey bees", "tides", "glaciers", "medieval bridges", "solar eclipses"))
_SWITCH = _Parameter("boolean", (("on", True), ("off", False)))

TOOLS: tuple[_Tool, ...] = (
    _Tool(
        "get_weather",
        "The weather forecast of a city",
        {"city": _CITY, "day": _Parameter("string", _DAY.values, "today")},
        (
            "What is the weather in {city}?",
            "How will the weather be in {city} on {day}?",
            "Will it rain in {city} on {day}?",
        ),
    ),
    _Tool(
        "get_time",
        "The local time of a city",
        {"city": _CITY},
        ("What time is it in {city}?", "Tell me the local time in {city}."),
    ),
    _Tool(
        "convert_currency",
        "An amount of money in another currency",
        {"amount": _AMOUNT, "source": _CURRENCY, "target": _OTHER_CURRENCY},
        ("How much is {amount} {source} in {target}?", "Convert {amount} {source} to {target}."),
    ),
    _Tool(
        "send_message",
        "Send a text message to a person",
        {
            "to": _PERSON,
            "text": _Parameter(
                "string", ("I am late", "the meeting is over", "dinner is ready", "call me back", "the train is full")
            ),
        },
        ('Send {to} the message "{text}".', 'Write "{text}" to {to}.', 'Tell {to}: "{text}".'),
    ),
    _Tool(
        "set_alarm",
        "Set an alarm clock",
        {"time": _TIME, "day": _Parameter("string", _DAY.values, "tomorrow")},
        ("Wake me at {time}.", "Set an alarm for {time} on {day}.", "Please set an alarm for {time}."),
    ),
    _Tool(
        "set_timer",
        "Start a countdown",
        {"minutes": _Parameter("integer", tuple(range(1, 91)))},
        ("Set a timer for {minutes} minutes.", "Remind me when {minutes} minutes are over."),
    ),
    _Tool(
        "add_reminder",
        "Remember a task for a day",
        {"task": _TASK, "day": _DAY},
        ("Remind me to {task} on {day}.", "On {day} make sure that we {task}."),
    ),
    _Tool(
        "switch_light",
        "Switch the light of a room",
        {"room": _ROOM, "on": _SWITCH},
        ("Turn {on} the light in the {room}.", "Switch the {room} light {on}, please."),
    ),
    _Tool(
        "set_temperature",
        "Set the heating of a room in degrees Celsius",
        {"room": _ROOM, "degrees": _Parameter("number", tuple(half / 2 for half in range(32, 51)))},
        ("Set the {room} to {degrees} degrees.", "Heat the {room} to {degrees} degrees, please."),
    ),
    _Tool(
        "play_song",
        "Play a song",
        {
            "title": _SONG,
            "shuffle": _Parameter("boolean", (("shuffled", True), ("in order", False)), False),
        },
        ('Play "{title}".', 'Put on "{title}", {shuffle}.', 'Let us hear "{title}".'),
    ),
    _Tool(
        "set_volume",
        "Set the volume in percent",
        {"percent": _Parameter("integer", tuple(range(0, 101, 5)))},
        ("Set the volume to {percent} percent.", "Volume at {percent}, please."),
    ),
    _Tool(
        "find_route",
        "The way from one city to another",
        {
            "start": _CITY,
            "end": _OTHER_CITY,
            "mode": _Parameter("string", (("by car", "car"), ("by train", "train"), ("on foot", "walk")), "car"),
        },
        ("How do we get from {start} to {end}?", "Show the way from {start} to {end} {mode}."),
    ),
    _Tool(
        "book_table",
        "Reserve a table in a restaurant",
        {"people": _Parameter("integer", tuple(range(1, 13))), "day": _DAY, "time": _TIME},
        ("Book a table for {people} on {day} at {time}.", "We are {people}: reserve a table at {time} on {day}."),
    ),
    _Tool(
        "search_flights",
        "Flights between two cities on a day",
        {
            "start": _CITY,
            "end": _OTHER_CITY,
            "day": _DAY,
            "direct": _Parameter("boolean", (("direct", True), ("any", False)), False),
        },
        (
            "Find flights from {start} to {end} on {day}.",
            "Show {direct} flights from {start} to {end} on {day}.",
        ),
    ),
    _Tool(
        "add_to_cart",
        "Put something into the shopping cart",
        {"item": _ITEM, "count": _Parameter("integer", tuple(range(2, 25)), 1)},
        ("Add {item} to my cart.", "Put {count} packs of {item} into the cart."),
    ),
    _Tool(
        "order_drink",
        "Order a drink",
        {
            "drink": _DRINK,
            "size": _Parameter("string", ("small", "medium", "large"), "medium"),
        },
        ("Order me {drink}.", "Bring a {size} {drink}."),
    ),
    _Tool(
        "translate",
        "Translate a phrase",
        {"phrase": _PHRASE, "language": _LANGUAGE},
        ('How do you say "{phrase}" in {language}?', 'Translate "{phrase}" to {language}.'),
    ),
    _Tool(
        "split_bill",
        "What each of several people pays",
        {
            "total": _AMOUNT,
            "people": _Parameter("integer", tuple(range(2, 13))),
            "tip_percent": _Parameter("integer", (5, 8, 10, 12, 15, 18, 20), 0),
        },
        (
            "Split {total} between {people} people.",
            "We are {people} and the bill is {total}. With a tip of {tip_percent} percent, what does each pay?",
        ),
    ),
    _Tool(
        "search_articles",
        "Articles about a subject",
        {"subject": _SUBJECT, "limit": _Parameter("integer", tuple(range(1, 21)), 10)},
        ("Find articles about {subject}.", "Show me {limit} articles about {subject}."),
    ),
    _Tool(
        "roll_dice",
        "Roll dice",
        {
            "count": _Parameter("integer", tuple(range(1, 9))),
            "sides": _Parameter("integer", (4, 8, 10, 12, 20), 6),
        },
        ("Roll {count} dice.", "Roll {count} dice with {sides} sides."),
    ),
)

NO_TOOL = "None of my tools can do that."
"""What is answered where no tool fits."""


def _dialogue(draws: Draws) -> str:
    """The tools there are, a request, and the calls that fulfil it: none, one or two."""
    chosen = draws.some(TOOLS, draws.whole(2, 4))
    shown, calls = chosen, [chosen[0].asked(draws)]
    if draws.chance(0.15):
        calls.append(chosen[1].asked(draws))
    elif draws.chance(0.1):
        shown = chosen[1:]
    shown = draws.some(shown, len(shown))
    turns = [("User", " ".join(request for request, _ in calls))]
    turns += [("Call", compact_json(call)) for _, call in calls] if chosen[0] in shown else [("Bot", NO_TOOL)]
    return dialogue([tool.described() for tool in shown], turns) + "\n\n"


KINDS: dict[str, Callable[[Draws], str]] = {
    "primitives": _primitive,
    "composition": _composition,
    "algorithms": _algorithm,
    "systems": _system,
    "tool-calling": _dialogue,
    "invented-words": invented_dialogue,
}
"""What can be generated, and what makes a block of it."""
