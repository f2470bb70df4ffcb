"""Verifiable instructions of a prompt: read from text, refused where they cannot be checked, judged strictly and loosely.

They travel as a prompt's reference, JSON of `[{"kind": "punctuation:no_comma"}, {"kind": ..., <arguments>}]`.  Strict judges the
answer as it is.  Loose (arXiv:2311.07911, section 2.2) also lets pass what holds once `*` of Markdown, the first line (an opening
such as "Sure:") or the last line (a closing) are taken away, in any combination.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, lru_cache
from itertools import product
from typing import Any, NamedTuple, cast, get_args

from evals.instruction_checks import CHECKS, Relation
from evals.language import KNOWN

_TYPES: dict[str, type | tuple[type, ...]] = {"int": int, "str": str, "list[str]": list, "Relation": str}


class Instruction(NamedTuple):
    """One thing that an answer must do."""

    kind: str
    arguments: Mapping[str, Any]

    def followed(self, answer: str) -> bool:
        """Whether `answer` does it; an empty answer follows nothing."""
        return bool(answer.strip()) and CHECKS[self.kind](answer, **self.arguments)


class Followed(NamedTuple):
    """How many of an answer's instructions were followed."""

    strict: int
    loose: int
    of: int


def instruction(kind: object, arguments: object) -> Instruction:
    """The instruction of `kind`; an argument that is null is as good as absent.

    Raises ValueError, with near names, for a kind that is not known and arguments that are not its own.
    """
    if kind not in CHECKS:
        near = get_close_matches(str(kind), CHECKS, n=1, cutoff=0.4)
        raise ValueError(f"no such kind of instruction: {kind}{f'; did you mean {near[0]}?' if near else ''}")
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{kind}: its arguments are {arguments!r:.60}, not named values")  # noqa: TRY004  data may hold anything
    given = {str(name): value for name, value in cast(Mapping[object, object], arguments).items() if value is not None}
    wanted = _wanted(str(kind))
    if given.keys() != wanted.keys():
        raise ValueError(f"{kind}: it takes {', '.join(wanted) or 'no arguments'}, got {', '.join(sorted(given)) or 'none'}")
    for name, type_name in wanted.items():
        _check(f"{kind}: {name}", type_name, given[name])
    return Instruction(str(kind), given)


def written(instructions: Sequence[Instruction]) -> str:
    """`instructions` as the text that a prompt's reference holds.

    >>> written([instruction("punctuation:no_comma", {}), instruction("startend:quotation", {"end_phrase": None})])
    '[{"kind": "punctuation:no_comma"}, {"kind": "startend:quotation"}]'
    """
    return json.dumps([{"kind": one.kind, **one.arguments} for one in instructions], ensure_ascii=False)


@lru_cache(maxsize=10_000)
def read(reference: str) -> tuple[Instruction, ...]:
    """What `written` wrote.  Raises ValueError where a reference holds no such instructions."""
    try:
        rows = json.loads(reference)
        return tuple(instruction(row["kind"], {name: row[name] for name in row if name != "kind"}) for row in rows)
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"the reference holds no instructions: {reference!r:.60}") from error


@lru_cache(maxsize=10_000)
def followed(answer: str, reference: str) -> Followed:
    """How many of the instructions in `reference` the answer follows.

    >>> followed("Sure:\\nthe sky is blue today", written([instruction("change_case:english_lowercase", {})]))
    Followed(strict=0, loose=1, of=1)
    """
    instructions = read(reference)
    strict = sum(one.followed(answer) for one in instructions)
    loose = sum(any(one.followed(text) for text in variants(answer)) for one in instructions)
    return Followed(strict, loose, len(instructions))


def variants(answer: str) -> Iterator[str]:
    """The eight readings of an answer that loose judging tries, the answer itself first."""
    lines = answer.split("\n")
    for stars, first, last in product((False, True), repeat=3):
        text = "\n".join(lines[first : len(lines) - last]).strip() if first or last else answer
        yield text.replace("*", "") if stars else text


@cache
def _wanted(kind: str) -> dict[str, str]:
    """Arguments of `kind` and what they are, as its check declares them."""
    parameters = list(inspect.signature(CHECKS[kind]).parameters.values())[1:]
    return {one.name: "Relation" if one.annotation is Relation else _called(one.annotation) for one in parameters}


def _called(annotation: Any) -> str:  # noqa: ANN401
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)


def _check(where: str, type_name: str, value: object) -> None:
    if not isinstance(value, _TYPES[type_name]) or isinstance(value, bool):
        raise ValueError(f"{where} is {value!r:.60}, not {type_name}")  # noqa: TRY004
    if type_name == "Relation" and value not in get_args(Relation):
        raise ValueError(f"{where} is {value!r}; it is one of {', '.join(get_args(Relation))}")
    if type_name == "int" and cast(int, value) < 0:
        raise ValueError(f"{where} is {value}; it is a count")
    if type_name == "list[str]" and not all(isinstance(word, str) and word for word in cast(list[object], value)):
        raise ValueError(f"{where} is {value!r:.60}, not a list of words")
    if where.endswith(" language") and value not in KNOWN:
        raise ValueError(f"{where} is {value}, which cannot be told; there are {', '.join(sorted(KNOWN))}")
