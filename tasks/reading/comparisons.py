"""Preference records in all their layouts: pairs, two answers with a winner, ranked lists, trees, and unpaired labels."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from tasks.reading import turns
from tasks.reading.rows import (
    ANSWER,
    DIALOGUE,
    INPUT,
    LABELS,
    PROMPT,
    Item,
    Row,
    as_number,
    assistant,
    dialogue,
    first,
    number,
    opening,
    optional,
    user,
)
from tasks.reading.turns import Message, Refused

SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("response_j", "response_k"),
    ("response", "rejected_response"),
)
"""columns of the better and the worse answer"""
OTHER_SIDE = ("rejected_response", "rejected_messages")
"""the worse answer, where the better one ends the conversation"""
ANSWERS = ("answers", "completions", "responses", "candidates", "outputs", "generations")
_TEXTS = ("text", "answer", "response", "completion", "content", "output", "value")
_SCORES = ("score", "overall_score", "rating", "reward", "fine-grained_score", "votes")
_LISTED_SCORES = ("scores", "ratings", "rewards", "overall_scores")


class Layout(NamedTuple):
    """Two answers side by side, and a column that names the better one."""

    first: str
    second: str
    winner: tuple[str, ...]
    wins: tuple[str, ...]
    """spellings of "the first is better"; then of the second"""
    loses: tuple[str, ...]


LAYOUTS = (
    Layout("first", "second", ("winner", "label"), ("1", "first", "a"), ("2", "second", "b")),
    Layout("output_1", "output_2", ("label", "preference", "winner"), ("1", "output_1"), ("2", "output_2")),
    Layout("response_0", "response_1", ("better_response_id", "label"), ("0", "response_0"), ("1", "response_1")),
    Layout("response_a", "response_b", ("winner", "preference"), ("a", "model_a", "response_a"), ("b", "model_b", "response_b")),
    Layout("answer_a", "answer_b", ("winner", "preference"), ("a", "model_a", "answer_a"), ("b", "model_b", "answer_b")),
    Layout("conversation_a", "conversation_b", ("winner",), ("a", "model_a"), ("b", "model_b")),
)
_TIES = frozenset(("tie", "tie (bothbad)", "both", "neither", "equal", "c"))


def layout(keys: set[str]) -> Layout | None:
    """The layout whose columns are all there."""
    return next((x for x in LAYOUTS if {x.first, x.second} <= keys and not keys.isdisjoint(x.winner)), None)


def pairs(row: Row) -> list[Item]:
    """A better and a worse answer, each as text, as a turn, as turns, or as a whole transcript."""
    keys = next(((a, b) for a, b in SIDES if a in row and b in row), None)
    if keys and not (keys[0] == "response" and first(row, DIALOGUE)):
        base = _base(row)
        better, worse = _side(row, keys[0], base, "chosen"), _side(row, keys[1], base, "rejected")
    else:
        name = next((name for name in OTHER_SIDE if name in row), None)
        if name is None:
            raise Refused("no rejected answer")
        better = _answered(dialogue(row), "chosen")
        worse = _side(row, name, better[0], "rejected")
    return [
        Item(
            messages=better[0],
            rejected_prompt=worse[0],
            chosen=better[1],
            rejected=worse[1],
            chosen_score=number(row, ("chosen_score", "score_chosen", "chosen_rating")),
            rejected_score=number(row, ("rejected_score", "score_rejected", "rejected_rating")),
            margin=number(row, ("margin",)),
        )
    ]


def choices(row: Row) -> list[Item]:
    """Two answers and which one is better; a declared tie gives both the same score."""
    found = layout(set(row))
    if found is None:
        raise Refused("no two answers with a winner")
    base = _base(row)
    one, two = _side(row, found.first, base, "answer"), _side(row, found.second, base, "answer")
    said = optional(row, found.winner)
    word = str(int(said) if isinstance(said, float) and said.is_integer() else said).strip().lower()
    if word in found.loses:
        one, two = two, one
    elif word not in found.wins and word not in _TIES:
        raise Refused(f"unknown winner: {word[:40]}")
    win = 0.0 if word in _TIES else 1.0
    item = Item(messages=one[0], rejected_prompt=two[0], chosen=one[1], rejected=two[1], ordinal=True)
    item.chosen_score, item.rejected_score = win, 0.0
    return [item]


def ranked(row: Row) -> list[Item]:
    """Several answers to one prompt, with a score or a rank each, beside them or in a list of their own."""
    listed = turns.unpacked(row.get(first(row, ANSWERS) or ""))
    if not isinstance(listed, list):
        raise Refused("no answers")
    answers = cast(list[object], listed)
    scores = turns.unpacked(optional(row, _LISTED_SCORES))
    ranks = turns.unpacked(optional(row, ("ranks",)))
    beside = cast("list[object] | None", ranks if isinstance(ranks, list) else scores if isinstance(scores, list) else None)
    if beside is not None and len(beside) != len(answers):
        raise Refused(f"answers and scores differ in number: {len(answers)} and {len(beside)}")
    sign = -1.0 if isinstance(ranks, list) else 1.0
    found: list[dict[str, object]] = []
    ordinal = isinstance(ranks, list)
    for index, answer in enumerate(answers):
        score = None if beside is None else as_number(beside[index], "score")
        score = None if score is None else sign * score
        if isinstance(answer, dict):
            fields = cast(Row, answer)
            answer = optional(fields, _TEXTS)
            if score is None and (score := number(fields, _SCORES)) is None and (rank := number(fields, ("rank",))) is not None:
                score, ordinal = -rank, True
        found.append({"text": _text(answer), "score": score})
    return [Item(messages=_base(row), answers=found, ordinal=ordinal)]


def labels(row: Row) -> list[Item]:
    """One answer and whether it was liked."""
    liked = _liked(optional(row, LABELS))
    if first(row, DIALOGUE) is not None:
        prompt, answer = _answered(dialogue(row), "labelled")
    else:
        name = first(row, ANSWER)
        if name is None:
            raise Refused("no answer")
        prompt, answer = _side(row, name, opening(row), "labelled")
    return [Item(messages=prompt, answer=answer, liked=liked)]


def tree_answers(row: Row) -> list[Item]:
    """An OpenAssistant tree: every user turn that has ranked replies."""
    found: list[Item] = []
    for path, node in _asked(row):
        replies = [reply for reply in _replies(node, "assistant") if reply.get("rank") is not None]
        if len(replies) > 1:
            answers: list[dict[str, object]] = [
                {"text": _text(reply.get("text")), "score": -(as_number(reply.get("rank"), "rank") or 0.0)} for reply in replies
            ]
            found.append(Item(messages=path, answers=answers, ordinal=True))
    if not found:
        raise Refused("fewer than two scored answers")
    return found


def tree_paths(row: Row) -> list[Item]:
    """An OpenAssistant tree as conversations: each ends where nobody asked further, every answer the best-ranked one."""
    found: list[Item] = []
    for path, node in _asked(row, best=True):
        best = _best(node)
        if best is not None and not any(_best(reply) for reply in _replies(best, "prompter")):
            found.append(Item(messages=[*path, assistant(_text(best.get("text")))]))
    if not found:
        raise Refused("no answer")
    return found


def tree_root(row: Row) -> list[Item]:
    """The question an OpenAssistant tree grew from."""
    return [Item(messages=next(_asked(row))[0])]


def _asked(row: Row, *, best: bool = False) -> Iterator[tuple[list[Message], Row]]:
    """`(path, node)` of each user turn of a tree, the path ending with it; with `best`, only below best-ranked answers."""
    root = row.get("prompt")
    if not isinstance(root, dict):
        raise Refused("no prompt")
    waiting: list[tuple[list[Message], Row]] = [([], cast(Row, root))]
    while waiting:
        before, node = waiting.pop(0)
        path = [*before, user(_text(node.get("text")))]
        yield path, node
        answers = [_best(node)] if best else _replies(node, "assistant")
        for answer in answers:
            if answer is not None:
                below = [*path, assistant(_text(answer.get("text")))]
                waiting += [(below, reply) for reply in _replies(answer, "prompter")]


def _replies(node: Row, role: str) -> list[Row]:
    replies = node.get("replies")
    if not isinstance(replies, list):
        return []
    return [
        cast(Row, reply)
        for reply in cast(list[object], replies)
        if isinstance(reply, dict) and cast(Row, reply).get("role") == role and not cast(Row, reply).get("deleted")
    ]


def _best(node: Row) -> Row | None:
    replies = _replies(node, "assistant")
    ranks = [as_number(reply.get("rank"), "rank") for reply in replies]
    places = sorted(range(len(replies)), key=lambda i: (ranks[i] is None, ranks[i] or 0.0, i))
    return replies[places[0]] if places else None


def _base(row: Row) -> list[Message]:
    """The prompt of a row whose answers stand apart; empty where the answers carry it themselves."""
    if isinstance(row.get("input"), dict):
        return turns.messages(cast(Row, row["input"]).get("messages"), "input")
    if first(row, DIALOGUE) is not None and not isinstance(optional(row, DIALOGUE), str):
        return dialogue(row)
    return opening(row) if first(row, (*PROMPT, *INPUT)) is not None else []


def _side(row: Row, name: str, base: list[Message], what: str) -> tuple[list[Message], str]:
    """`(prompt, answer)` of one side.  Turns that open with the system or the user bring their own prompt."""
    raw = row[name]
    value = turns.turned(raw)
    if value is None:
        raise Refused(f"no {what} answer")
    told = turns.transcript(raw) if isinstance(raw, str) else None
    if told:
        found = told
    elif isinstance(value, str | int | float) or turns.is_parts(value):
        found = [*base, assistant(turns.text(value, f"{what} answer"))]
    elif isinstance(value, list | dict):
        found = turns.messages(cast(object, value), f"{what} answer")
        if not found or found[0]["role"] == "assistant":
            found = [*base, *found]
    else:
        raise Refused(f"{what} answer is not text: {type(value).__name__}")
    return _answered(found, what)


def _answered(found: Sequence[Message], what: str) -> tuple[list[Message], str]:
    if len(found) < 2:
        raise Refused("no prompt" if found and found[-1]["role"] == "assistant" else f"no {what} answer")
    if found[-1]["role"] != "assistant":
        raise Refused(f"the {what} side does not end with an answer")
    return list(found[:-1]), turns.unmarked(found[-1]["content"])


def _text(value: object) -> str:
    return turns.unmarked(turns.text(value, "answer"))


def _liked(value: object) -> bool:
    word = str(value).strip().lower()
    if word in ("true", "1", "1.0", "yes", "good", "desirable", "liked"):
        return True
    if word in ("false", "0", "0.0", "-1", "no", "bad", "undesirable", "disliked"):
        return False
    raise Refused("no label" if value is None or word == "" else f"the label is not yes or no: {word[:40]}")
