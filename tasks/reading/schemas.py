"""Which columns mean what: one record becomes the items of the kind that is wanted, or is refused with the reason.

Rows are told apart one by one by their column names, so a file may mix schemas.  Nothing is judged here (empty, identical,
too long, doubled: `datasets/sql` does that); only what has no meaning at all is refused.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, cast

from tasks.core.errors import SpecError
from tasks.reading import comparisons, conversations, images, labelled, turns
from tasks.reading.rows import ANSWER, DIALOGUE, LABELS, LINE, PROMPT, Item, Row, no_media
from tasks.reading.spec import Schema, SourceSpec
from tasks.reading.turns import Refused

RawKind: TypeAlias = Literal["instructions", "preferences", "feedback", "prompts", "texts", "labelled"]
Keys: TypeAlias = "set[str]"


class Known(NamedTuple):
    """A schema of one kind: whether the columns fit it, and how such a row is read."""

    name: Schema
    fits: Callable[[Keys], bool]
    read: Callable[[Row], list[Item]]


def _any(*names: str) -> Callable[[Keys], bool]:
    wanted = frozenset(names)
    return lambda keys: not wanted.isdisjoint(keys)


def _all(*groups: tuple[str, ...]) -> Callable[[Keys], bool]:
    return lambda keys: all(not keys.isdisjoint(names) for names in groups)


def _is_pair(keys: Keys) -> bool:
    beside = any(a in keys and b in keys for a, b in comparisons.SIDES)
    return beside or (_TURNS(keys) and not keys.isdisjoint(comparisons.OTHER_SIDE))


def _is_labelled(keys: Keys) -> bool:
    return not keys.isdisjoint(LABELS) and (_TURNS(keys) or _is_answered(keys))


def _is_answered(keys: Keys) -> bool:
    return not keys.isdisjoint(ANSWER) and not keys.isdisjoint((*PROMPT, "input"))


_TURNS = _any(*DIALOGUE)
_NEVER = _any()
_TREE = _any("message_tree_id")
_ANSWERS = _any(*comparisons.ANSWERS)


def _is_alpaca(keys: Keys) -> bool:
    return "instruction" in keys and not keys.isdisjoint(ANSWER)


def _is_choice(keys: Keys) -> bool:
    return comparisons.layout(keys) is not None


def _prompt_of(read: Callable[[Row], list[Item]]) -> Callable[[Row], list[Item]]:
    """The prompt of a preference record."""
    return lambda row: [Item(messages=item.messages) for item in read(row)[:1]]


_COMPARISONS = (
    Known("tree", _TREE, comparisons.tree_answers),
    Known("pairs", _is_pair, comparisons.pairs),
    Known("transcripts", _NEVER, comparisons.pairs),
    Known("choices", _is_choice, comparisons.choices),
    Known("ranked", _ANSWERS, comparisons.ranked),
    Known("labels", _is_labelled, comparisons.labels),
)
SCHEMAS: dict[RawKind, tuple[Known, ...]] = {
    "instructions": (
        Known("tree", _TREE, comparisons.tree_paths),
        Known("messages", _any("messages"), conversations.conversations),
        Known("sharegpt", _any(*DIALOGUE[1:]), conversations.conversations),
        Known("tasks", _any("instances"), conversations.tasks),
        Known("alpaca", _is_alpaca, conversations.answered),
        Known("completion", _is_answered, conversations.answered),
    ),
    "preferences": _COMPARISONS,
    "feedback": _COMPARISONS,
    "prompts": (
        Known("strings", _any(LINE), conversations.bare_prompt),
        Known("tree", _TREE, comparisons.tree_root),
        Known("pairs", _is_pair, _prompt_of(comparisons.pairs)),
        Known("transcripts", _NEVER, _prompt_of(comparisons.pairs)),
        Known("choices", _is_choice, _prompt_of(comparisons.choices)),
        Known("turns", _any("turns"), conversations.first_turn),
        Known("tasks", _any("instances"), conversations.asked_tasks),
        Known("messages", _any("messages"), conversations.asked),
        Known("sharegpt", _any(*DIALOGUE[1:]), conversations.asked),
        Known("alpaca", _any("instruction"), conversations.asked),
        Known("completion", _any(*PROMPT, "input"), conversations.asked),
    ),
    "texts": (
        Known("strings", _any(LINE), conversations.bare_text),
        Known("text", _any("text", "content", "raw_content"), conversations.plain),
    ),
    "labelled": (
        Known("articles", _any("paragraphs"), labelled.articles),
        Known("questions", _all(("question",), ("context",)), labelled.asked),
        Known("tags", _all(labelled.TOKENS, labelled.TAGS), labelled.tagged),
        Known("classes", _all(labelled.TEXT, labelled.LABEL), labelled.classed),
    ),
}


class Schemas:
    """Reads the records of one source as items of one kind.  Raises SpecError for a schema that has none of that kind."""

    def __init__(self, kind: RawKind, spec: SourceSpec, take: Callable[[object], str] | None = None) -> None:
        """`kind` is what is wanted, `spec` what the plan says about the source, `take` keeps an image and gives its name."""
        self._take = take
        self._kind: RawKind = kind
        self._spec = spec
        self._known = {known.name: known for known in SCHEMAS[kind]}
        if spec.schema_ != "auto" and spec.schema_ not in self._known:
            names = ", ".join(self._known)
            raise SpecError(f"source {spec.name}: rows of schema {spec.schema_} hold no {kind}; use auto or one of {names}")
        self._seen: dict[frozenset[str], Known | None] = {}

    def read(self, row: Row) -> tuple[Schema, list[Item]]:
        """The schema of a record and what it says, from its `row`.  Raises Refused where it says nothing of this kind."""
        known = self._fitting(frozenset(row))
        no_media(row)
        try:
            if not images.brings_images(row):
                return known.name, known.read(row)
            return known.name, self._illustrated(known, row)
        except KeyError as error:
            raise Refused(f"no column {error.args[0]}") from None

    def _illustrated(self, known: Known, row: Row) -> list[Item]:
        if self._take is None:
            raise Refused(turns.MEDIA)
        plain, references = images.unfolded(row)
        items = known.read(plain)
        images.attach(items, [self._take(reference) for reference in references])
        return items

    def row(self, value: object) -> Row:
        """The columns of a record that hold something, by what they mean."""
        return {name: item for name, item in self._named(value).items() if item is not None}

    def _named(self, value: object) -> Row:
        if isinstance(value, str):
            return {LINE: value}
        if not isinstance(value, dict):
            raise Refused(f"not an object: {type(value).__name__}")
        row = cast(Row, value)
        if not self._spec.columns:
            return row
        named = {column: meaning for meaning, column in self._spec.columns.items()}
        if missing := sorted(column for column in named if column not in row):
            raise Refused(f"no column {missing[0]}")
        meant = set(named.values())
        kept = {name: item for name, item in row.items() if name not in named and name not in meant}
        return kept | {meaning: row[column] for column, meaning in named.items()}

    def _fitting(self, keys: frozenset[str]) -> Known:
        if self._spec.schema_ != "auto":
            return self._known[self._spec.schema_]
        if keys not in self._seen:
            self._seen[keys] = next((known for known in SCHEMAS[self._kind] if known.fits(set(keys))), None)
        known = self._seen[keys]
        if known is None:
            raise Refused(self._unfit(keys))
        return known

    def _unfit(self, keys: frozenset[str]) -> str:
        names = ", ".join(name or "(unnamed)" for name in sorted(keys)[:6])
        seen = "plain text" if LINE in keys else f"the columns {names}" if names else "no column"
        return f"no {_MEANING[self._kind]}: found {seen}"


_MEANING: dict[RawKind, str] = {
    "instructions": "prompt with an answer",
    "preferences": "two answers to compare",
    "feedback": "answer that is liked or not",
    "prompts": "prompt",
    "texts": "text",
    "labelled": "text with a label, tokens with tags, or question with a context",
}
