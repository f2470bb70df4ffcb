"""Instruction records, prompts and plain texts in all their layouts."""

from typing import cast

from tasks.reading import turns
from tasks.reading.rows import (
    ANSWER,
    DIALOGUE,
    LINE,
    Item,
    Row,
    assistant,
    dialogue,
    first,
    not_disliked,
    opening,
    optional,
    user,
)
from tasks.reading.turns import Refused

_REFERENCE = ("reference", "ground_truth", "expected")


def conversations(row: Row) -> list[Item]:
    """`messages` or `conversations`: a list of turns."""
    not_disliked(row)
    return [Item(messages=dialogue(row))]


def answered(row: Row) -> list[Item]:
    """Alpaca and every other prompt with an answer: instruction/input/output, query/response, prompt/completion, ..."""
    not_disliked(row)
    name = first(row, ANSWER)
    if name is None:
        raise Refused("no answer")
    value = turns.turned(row[name])
    if isinstance(value, list) and value and not turns.is_parts(cast(object, value)):
        answer = turns.messages(cast(object, value), "answer")
    else:
        answer = [assistant(turns.text(row[name], "answer"))]
    return [Item(messages=opening(row) + answer)]


def tasks(row: Row) -> list[Item]:
    """Self-Instruct's seed tasks: an instruction with instances, each an input and an output."""
    return [item for instance in _instances(row) for item in answered({**row, **instance})]


def asked(row: Row) -> list[Item]:
    """A prompt, whatever comes with it; the answer becomes the reference."""
    name = first(row, DIALOGUE)
    if name is not None and not isinstance(row[name], str):
        found = dialogue(row)
    else:
        found = opening(row)
        answer = None if row.get("label") is False else optional(row, ANSWER)
        if answer is not None and not isinstance(answer, list | dict):
            found = [*found, assistant(turns.text(answer, "answer"))]
    truth = _reference(row)
    if found and found[-1]["role"] == "assistant":
        truth = truth or found[-1]["content"] or None
        found = found[:-1]
    return [Item(messages=found, reference=truth)]


def asked_tasks(row: Row) -> list[Item]:
    """The prompts of Self-Instruct's seed tasks."""
    return [item for instance in _instances(row) for item in asked({**row, **instance})]


def first_turn(row: Row) -> list[Item]:
    """MT-Bench: a list of user turns.  The later ones build on answers that are not there, so only the first is a prompt."""
    listed = turns.unpacked(row["turns"])
    if not isinstance(listed, list) or not listed:
        raise Refused("no turns")
    return [Item(messages=[user(turns.text(cast(list[object], listed)[0], "prompt"))], reference=_reference(row))]


def plain(row: Row) -> list[Item]:
    """A text."""
    return [Item(text=_whole(optional(row, ("text", "content", "raw_content"))))]


def bare_prompt(row: Row) -> list[Item]:
    """A line that is just a prompt."""
    return [Item(messages=[user(turns.text(row[LINE], "prompt"))])]


def bare_text(row: Row) -> list[Item]:
    """A line or paragraph that is just text."""
    return [Item(text=_whole(row[LINE]))]


def _instances(row: Row) -> list[Row]:
    instances = turns.unpacked(row["instances"])
    if not isinstance(instances, list) or not instances:
        raise Refused("no instances")
    found = cast(list[object], instances)
    if not all(isinstance(instance, dict) for instance in found):
        raise Refused("instances is not a list of objects")
    return cast(list[Row], found)


def _reference(row: Row) -> str | None:
    value = optional(row, _REFERENCE)
    if isinstance(value, list):
        value = cast(list[object], value)[0] if value else None
    return None if value is None else turns.text(value, "reference") or None


def _whole(value: object) -> str:
    found = turns.text(value, "text")
    return value.strip("\r\n") if isinstance(value, str) and found else found
