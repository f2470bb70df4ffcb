"""Labelled records in all their layouts: a text (or two) with a label, tokens with tags, a question about a context.

Nothing is stripped where places are counted: tokens and contexts stay as they are written.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from tasks.reading import turns
from tasks.reading.rows import Item, Row, first
from tasks.reading.turns import Refused

TEXT = ("text", "sentence", "sentence1", "premise", "content", "review")
PAIR = ("pair", "sentence2", "hypothesis", "text_pair")
LABEL = ("label", "category", "class", "intent", "sentiment")
TOKENS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "pos_tags", "labels")


def classed(row: Row) -> list[Item]:
    """A text, or a pair of texts, and its label."""
    name, pair, label = first(row, TEXT), first(row, PAIR), first(row, LABEL)
    if name is None:
        raise Refused("no text")
    text = turns.text(row[name], "text")
    second = None if pair is None else turns.text(row[pair], "second text")
    return [Item(text=text, pair=second, label=_label(None if label is None else row[label], "label"))]


def tagged(row: Row) -> list[Item]:
    """Tokens and a tag for each: two lists, or two texts with white space between tokens."""
    names = first(row, TOKENS), first(row, TAGS)
    tokens, tags = (
        _listed(None if name is None else row[name], what) for name, what in zip(names, ("tokens", "tags"), strict=True)
    )
    if not all(isinstance(token, str) for token in tokens):
        raise Refused("a token is not text")
    return [Item(tokens=[str(token) for token in tokens], tags=[_label(tag, "tag") for tag in tags])]


def asked(row: Row) -> list[Item]:
    """A question, its context, and answers that stand in it; none at all says that the context does not answer."""
    question, context = row.get("question"), row.get("context")
    if not isinstance(context, str):
        raise Refused("no context" if context is None else f"context is not text: {type(context).__name__}")
    if "\0" in context:
        raise Refused("a NUL character in the context")
    spans = _spans(row)
    return [Item(question=turns.text(question, "question"), context=context, spans=spans)]


def articles(row: Row) -> list[Item]:
    """SQuAD's nesting: paragraphs, each a context with questions."""
    return [item for paragraph in _objects(row["paragraphs"], "paragraphs") for item in _paragraph(paragraph)]


def _paragraph(paragraph: Row) -> list[Item]:
    asked_of = _objects(paragraph.get("qas"), "qas")
    return [item for one in asked_of for item in asked({**one, "context": paragraph.get("context")})]


def _spans(row: Row) -> list[dict[str, object]]:
    """`{"text": ..., "start": character or None}` for each answer."""
    value = turns.unpacked(row.get("answers"))
    if value is None:
        if row.get("is_impossible") is True:
            return []
        answer = row.get("answer")
        if answer is None:
            raise Refused("no answers")
        value = cast(object, answer if isinstance(answer, Mapping) else {"text": [answer], "answer_start": [row.get("start")]})
    if isinstance(value, Mapping):
        texts, starts = (_several(cast(Mapping[str, object], value).get(name)) for name in ("text", "answer_start"))
        if starts and len(starts) != len(texts):
            raise Refused(f"{len(starts)} starts for {len(texts)} answers")
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts or [None] * len(texts), strict=True)]
    return [_span(entry) for entry in _objects(value, "answers")]


def _span(entry: Row) -> dict[str, object]:
    text, start = entry.get("text"), entry.get("answer_start", entry.get("start"))
    if not isinstance(text, str):
        raise Refused("an answer is not text")
    if isinstance(start, str) and start.strip().isdecimal():
        start = int(start)  # from a CSV file
    if start in (None, ""):
        return {"text": text, "start": None}
    if not isinstance(start, int) or isinstance(start, bool):
        raise Refused(f"the start of an answer is not a whole number: {start}")
    return {"text": text, "start": start}


def _several(value: object) -> list[object]:
    if value is None:
        return []
    return [*cast(Sequence[object], value)] if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _objects(value: object, what: str) -> list[Row]:
    value = turns.unpacked(value)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in cast(list[object], value)):
        raise Refused(f"no {what}" if value is None else f"{what} is not a list of objects")
    return cast(list[Row], value)


def _listed(value: object, what: str) -> list[object]:
    value = turns.unpacked(value)
    if isinstance(value, str):
        return [*value.split()]
    if not isinstance(value, list):
        raise Refused(f"no {what}" if value is None else f"{what} is not a list: {type(value).__name__}")
    return cast(list[object], value)


def _label(value: object, what: str) -> str:
    """A label as text: text, a whole number, or true and false.  Raises Refused for any other type."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float() if value.is_integer():
            return str(int(value))  # what tables make of whole numbers where one is missing
        case str():
            return value.strip()
        case None:
            raise Refused(f"no {what}")
        case _:
            raise Refused(f"unknown type of {what}: {type(value).__name__}")
