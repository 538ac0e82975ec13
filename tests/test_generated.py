"""What is generated is right: every answer is worked out again, from the text alone and in another way."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdh.errors import DataError
from train.generated import KINDS, NO_TOOL, TOOLS, blocks, generate, generated_tool_calls
from train.shipped import CORPORA

BYTES = 60_000


def lines(kind: str, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """Task, input and answer of every line."""
    for line in generate(kind, BYTES, seed).decode().splitlines():
        match = re.fullmatch(r"([^:]+): (\S.*) -> (\S.*)", line)
        assert match, line
        yield match[1], match[2], match[3]


def step(name: str, given: str) -> str:
    """One step, from the words that name it."""
    verb, *words = name.split()
    if verb == "count":
        return str(sum(letter == words[0] for letter in given))
    if verb == "compare":
        left, right = map(int, [*given.split(), *words])
        return ["equal", "greater", "less"][(left > right) - (left < right)]
    if verb == "add":
        return str(sum(map(int, given.split())))
    if verb == "successor":
        return str(int(given) + 1)
    return {"copy": given, "reverse": "".join(reversed(given)), "upper": given.upper(), "lower": given.lower()}[verb]


def test_primitives_are_right_and_all_there() -> None:
    seen = set()
    for task, given_, answer in lines("primitives"):
        assert step(task, given_) == answer
        seen.add(task.split()[0])
    assert seen == {"copy", "reverse", "upper", "lower", "count", "successor", "compare", "add"}


def test_compositions_are_their_steps_in_turn() -> None:
    seen = set()
    for task, given_, answer in lines("composition"):
        first, second = task.split(" then ")
        assert step(second, step(first, given_)) == answer
        seen.add((first.split()[0], second.split()[0]))
    assert len(seen) >= 25


def reduced(text: str) -> str:
    """Brackets with every empty pair taken out, again and again."""
    while (shorter := re.sub(r"\(\)|\[\]|\{\}", "", text)) != text:
        text = shorter
    return text


def searched(values: list[int], wanted: int) -> list[int]:
    """What a binary search looks at, on ever shorter lists."""
    if not values:
        return []
    middle = (len(values) - 1) // 2
    if values[middle] == wanted:
        return [wanted]
    rest = values[middle + 1 :] if values[middle] < wanted else values[:middle]
    return [values[middle], *searched(rest, wanted)]


def test_algorithms_are_right_and_all_there() -> None:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def search(task: str, text: str, answer: str) -> bool:
        values, wanted = numbers(text), int(task.split()[1])
        *looked, found = answer.split()
        return searched(values, wanted) == numbers(" ".join(looked)) and (wanted in values) == (found == "found")

    checks: dict[str, Callable[[str, str, str], bool]] = {
        "sort": lambda _, text, answer: sorted(numbers(text)) == numbers(answer),
        "gcd": lambda _, text, answer: math.gcd(*numbers(text)) == int(answer),
        "balanced": lambda _, text, answer: (not reduced(text)) == (answer == "yes"),
        "search": search,
        "runs": lambda _, text, answer: (
            "".join(a * int(n) for a, n in re.findall(r"(\D)(\d+)", answer)) == text
            and not re.search(r"(\D)\d+\1", answer)
        ),
        "sum": lambda _, text, answer: sum(numbers(text)) == int(answer),
    }
    answers: dict[str, set[str]] = {name: set() for name in checks}
    for task, text, answer in lines("algorithms"):
        name = task.split()[0]
        assert checks[name](task, text, answer), (task, text, answer)
        answers[name].add(answer.split()[-1])
    assert answers["balanced"] == {"yes", "no"}
    assert answers["search"] == {"found", "missing"}
    assert all(answers.values())


def run_stack(commands: list[str]) -> Iterator[str]:
    stack: list[int] = []
    for command in commands:
        verb, *words = command.split()
        if verb == "push":
            stack.append(int(words[0]))
        elif verb == "dup":
            stack += stack[-1:]
        elif verb == "drop":
            del stack[-1]
        else:
            below, top = stack[-2:]
            stack[-2:] = {"add": [below + top], "sub": [below - top], "swap": [top, below]}[verb]
        yield " ".join(map(str, stack)) or "empty"


def run_store(commands: list[str]) -> Iterator[str]:
    kept: list[tuple[str, str]] = []
    for command in commands:
        verb, key, *value = command.split()
        before = [v for k, v in kept if k == key]
        if verb != "get":
            kept = [(k, v) for k, v in kept if k != key] + [(key, v) for v in value]
        yield "ok" if verb == "set" or (verb == "del" and before) else before[0] if before else "none"


def run_automaton(head: list[str], texts: list[str]) -> Iterator[str]:
    start, accepting = head[0].split()[1], head[0].split()[-1]
    moves = {(line[0], letter): line.split()[place] for line in head[1:] for letter, place in (("a", 2), ("b", 4))}
    for text in texts:
        path = [start]
        for letter in text:
            path.append(moves[path[-1], letter])
        yield f"{''.join(path)} {'yes' if path[-1] == accepting else 'no'}"


def test_systems_are_right_and_all_there() -> None:
    seen: dict[str, int] = {}
    for block in generate("systems", BYTES).decode().removesuffix("\n\n").split("\n\n"):
        head, *rest = block.split("\n")
        name = head.split()[0]
        seen[name] = seen.get(name, 0) + 1
        table = [line for line in rest if " -> " not in line]
        asked, answers = zip(*(line.split(" -> ") for line in rest if " -> " in line), strict=True)
        if name == "automaton":
            assert [*run_automaton([head, *table], list(asked))] == [*answers], block
        else:
            assert not table
            assert [*{"stack": run_stack, "store": run_store}[name](list(asked))] == [*answers], block
    assert seen.keys() == {"stack", "store", "automaton"}
    assert min(seen.values()) > 50


TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def test_dialogues_call_tools_that_they_have_with_arguments_of_their_types() -> None:
    called, calls_each = set(), set()
    for block in generated_tool_calls(4 * BYTES, 0).decode().removesuffix("\n\n").split("\n\n"):
        first, second, *rest = block.split("\n")
        tools = {tool["name"]: tool for tool in json.loads(first.removeprefix("Tools: "))}
        request = second.removeprefix("User: ")
        assert (first[:7], second[:6]) == ("Tools: ", "User: ")
        assert 1 <= len(tools) <= 4
        if rest == [f"Bot: {NO_TOOL}"]:
            calls_each.add(0)
            continue
        calls_each.add(len(rest))
        for line in rest:
            assert line.startswith("Call: ")
            call = json.loads(line.removeprefix("Call: "))
            parameters = tools[call["name"]]["parameters"]
            called.add(call["name"])
            required = {name for name, parameter in parameters.items() if "default" not in parameter}
            assert required <= call["arguments"].keys() <= parameters.keys()
            for name, value in call["arguments"].items():
                assert isinstance(value, TYPES[parameters[name]["type"]])
                assert isinstance(value, bool) == (parameters[name]["type"] == "boolean")
                if parameters[name]["type"] != "boolean" and name != "mode":
                    assert str(value) in request
    assert called == {tool.name for tool in TOOLS}
    assert calls_each == {0, 1, 2}
    assert len(called) == 20


def test_a_made_up_word_stands_nowhere_in_the_corpus_and_is_the_one_that_answers_name() -> None:
    corpus = set(re.findall(r"\w+", lzma.decompress((CORPORA / "chat.txt.xz").read_bytes()).decode().lower()))
    dialogues = generate("invented-words", BYTES).decode().split("\n\n")[:-1]
    asked = [re.search(r'"(\w+)"', text.partition("\n")[0]) for text in dialogues]
    words = [found[1] for found in asked if found]
    assert len(words) == len(dialogues) > 100 and len(set(words)) > 0.95 * len(words)
    assert not corpus & set(words)
    named = 0
    for word, text in zip(words, dialogues, strict=True):
        if found := re.match(r'Bot: (?:The word )?"(\w+)"(?: means|:)', text.split("\n")[1]):
            assert found[1].lower() == word
            named += 1
    assert named > 0.3 * len(words)


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 5000), st.integers(0, 2**63 - 1))
def test_whole_blocks_fill_the_bytes_and_more_bytes_only_add_to_them(kind: str, max_bytes: int, seed: int) -> None:
    made = generate(kind, max_bytes, seed)
    assert len(made) <= max_bytes
    assert made == b"".join(blocks(kind, max_bytes, seed))
    assert generate(kind, max_bytes + 3000, seed).startswith(made)
    assert len(generate(kind, max_bytes + 3000, seed)) > len(made)


@pytest.mark.parametrize(
    ("kind", "checksum"),
    [
        ("algorithms", "3013aa5474482326"),
        ("composition", "79eeb0eccec86759"),
        ("primitives", "1589b7d277140045"),
        ("systems", "dadffe12d4922e1c"),
        ("invented-words", "9cd7d2dd5abdf627"),
        ("tool-calling", "dbc17e66d7a1f734"),
    ],
)
def test_the_same_seed_gives_the_same_bytes_everywhere(kind: str, checksum: str) -> None:
    """Whoever changes what is generated raises `VERSION`, so that prepared texts are not taken for the new ones."""
    assert hashlib.sha256(generate(kind, 20_000, 7)).hexdigest()[:16] == checksum
    assert generate(kind, 20_000, 8) != generate(kind, 20_000, 7)


def test_a_kind_that_is_not_known_is_named_with_those_that_are() -> None:
    with pytest.raises(DataError, match="nothing generates 'poems'; what can be generated is primitives, composition"):
        generate("poems", 100)
