"""What a record can hold, and the columns that every schema shares: the prompt and what stands before it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from tasks.reading import turns
from tasks.reading.turns import Message, Refused

Row: TypeAlias = dict[str, object]
"""a record's columns"""


@dataclass(slots=True)
class Item:
    """One thing a record says.  `messages` is the conversation, or the prompt that the answers below belong to."""

    messages: list[Message] | None = None
    text: str | None = None
    reference: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    rejected_prompt: list[Message] | None = None
    """prompt of the rejected side, where the row gives each side its own"""
    chosen_score: float | None = None
    rejected_score: float | None = None
    margin: float | None = None
    ordinal: bool = False
    """scores are places or votes: they order the answers, but their difference has no size"""
    answers: list[dict[str, object]] | None = None
    """several answers: `{"text": ..., "score": ...}`, a higher score is better"""
    answer: str | None = None
    liked: bool | None = None
    """what the unpaired label says of `answer`"""
    pair: str | None = None
    """the second of two texts that have one label"""
    label: str | None = None
    tokens: list[str] | None = None
    tags: list[str] | None = None
    question: str | None = None
    context: str | None = None
    spans: list[dict[str, object]] | None = None
    """answers in the context: `{"text": ..., "start": ...}`, the character they start at where it is known"""
    images: list[str] | None = None
    """names of the images whose places are marked `<image>` in `messages`; None: there are none, whatever the text says"""


LINE = "\0"
"""the column of a record that is only a text: no file has a column of that name"""
DIALOGUE = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
PROMPT = ("prompt", "instruction", "question", "query")
INPUT = ("input", "context")
ANSWER = ("answer", "output", "response", "completion", "target")
LABELS = ("label", "kto_tag")
_SYSTEM = ("system", "system_prompt")
_MEDIA = ("videos", "video", "audios", "audio")


def first(row: Row, names: Iterable[str]) -> str | None:
    """The first of `names` that `row` has a value for."""
    return next((name for name in names if row.get(name) is not None), None)


def optional(row: Row, names: Iterable[str]) -> object:
    """The value of the first of `names` that is there, or None."""
    name = first(row, names)
    return None if name is None else row[name]


def number(row: Row, names: Iterable[str]) -> float | None:
    """A finite number, or None.  Raises Refused for anything else."""
    name = first(row, names)
    return None if name is None else as_number(row[name], name)


def as_number(value: object, what: str) -> float | None:
    """`value` as a finite number; None where there is none.  Raises Refused for anything else."""
    if value is None or value == "":
        return None
    try:
        found = float(cast(str, value))
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"{what} is not a number: {str(value)[:40]}") from None
    if found != found or abs(found) == float("inf"):
        raise Refused(f"{what} is not a number: {value}")
    return found


def no_media(row: Row) -> None:
    """Raises Refused for a row that comes with sound or video."""
    if any(row.get(name) for name in _MEDIA):
        raise Refused(turns.MEDIA)


def not_disliked(row: Row) -> None:
    """Raises Refused for an answer that its label calls bad: nothing to learn from by imitation."""
    if any(row.get(name) is False for name in LABELS):
        raise Refused("a disliked answer")


def dialogue(row: Row) -> list[Message]:
    """The conversation of a row, system message and tools included."""
    name = first(row, DIALOGUE)
    if name is None:
        raise Refused("no messages")
    return _with_system(row, turns.messages(row[name], name))


def opening(row: Row) -> list[Message]:
    """Everything before the answer: system, history, prompt and input.  Raises Refused where there is no prompt."""
    name = first(row, PROMPT)
    if name is None and isinstance(row.get("input"), str):
        name = "input"
    if name is None:
        raise Refused("no prompt")
    value = turns.turned(row[name])
    if isinstance(value, list) and value and not turns.is_parts(cast(object, value)):
        return _with_system(row, turns.messages(cast(object, value), name))
    if isinstance(row[name], str) and (told := turns.transcript(cast(str, row[name]))):
        return _with_system(row, told[:-1] if told[-1] == {"role": "assistant", "content": ""} else told)
    asked = turns.text(row[name], "prompt")
    for extra in INPUT:
        if extra != name and row.get(extra):
            asked = f"{asked}\n\n{turns.text(row[extra], extra)}".strip()
    return _with_system(row, [*_history(row), {"role": "user", "content": asked}])


def user(content: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant's turn."""
    return {"role": "assistant", "content": turns.unmarked(content)}


def _history(row: Row) -> list[Message]:
    history = turns.unpacked(row.get("history"))
    if not history:
        return []
    if not isinstance(history, list):
        raise Refused(f"history is not a list of turns: {type(history).__name__}")
    found: list[Message] = []
    for pair in cast(list[object], history):
        if isinstance(pair, dict):
            found += turns.messages([cast(object, pair)], "history")
        elif isinstance(pair, Sequence) and not isinstance(pair, str) and len(cast(Sequence[object], pair)) == 2:
            asked, answer = cast(Sequence[object], pair)
            found += [user(turns.text(asked, "history")), assistant(turns.text(answer, "history"))]
        else:
            raise Refused("history is not a list of question and answer pairs")
    return found


def _with_system(row: Row, found: list[Message]) -> list[Message]:
    parts: list[str] = []
    if (system := optional(row, _SYSTEM)) is not None:
        parts.append(turns.text(system, "system"))
    tools = turns.unpacked(row.get("tools"))
    if tools:
        parts.append("Tools:\n" + (row["tools"] if isinstance(row["tools"], str) else turns.as_json(tools)))
    if not any(parts):
        return found
    if found and found[0]["role"] == "system":
        parts.insert(0, found[0]["content"])
        found = found[1:]
    return [{"role": "system", "content": "\n\n".join(part for part in parts if part)}, *found]
