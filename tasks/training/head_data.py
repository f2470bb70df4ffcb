# pyright: basic
"""Labelled rows as a head reads them: one window of tokens, or several, with what each position stands for.

A text is tokenised as `tokenizer(text, pair)` does it, so that transformers and PEFT read it alike without this project.  Long
token rows and contexts are read in overlapping windows.  Positions in texts are characters.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tasks.core.errors import DataError, SpecError
from tasks.heads import FORMS, Head
from tasks.training.data import IGNORED, Encoded

Place = tuple[int, int]
"""what a token stands for: `(word, word + 1)` of a token row, characters `[start, end)` of a context"""


@dataclass
class Window:
    """Tokens read at once."""

    row: int
    """number of the row it is part of"""
    ids: list[int]
    types: list[int] | None
    """segment of each token, where the model wants them"""
    places: dict[int, Place] = field(default_factory=dict)
    """position -> what it stands for; only positions that are predicted on"""

    def features(self, labels: Any) -> dict[str, Any]:  # noqa: ANN401
        """What the trainer is given."""
        types = {} if self.types is None else {"token_type_ids": self.types}
        return {"input_ids": self.ids, **types, "labels": labels}


class Cut(NamedTuple):
    """Rows as windows."""

    windows: list[Window]
    truncated: int
    """rows that lost their end"""
    unread: set[int]
    """rows that no window could be made of"""


def rows_of(head_kind: Any, rows: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:  # noqa: ANN401
    """`rows`, if all have the form that `head_kind` learns from.  Raises DataError, which names the other."""
    other = Counter(row["form"] for row in rows if row["form"] != FORMS[head_kind])
    if other:
        form, count = other.most_common(1)[0]
        raise DataError(
            f"{what}: {count} of {len(rows)} rows are {form}, and {head_kind} learns from {FORMS[head_kind]}; give each source "
            "its `schema`, or the task another kind"
        )
    return list(rows)


def cut(tokenizer: PreTrainedTokenizerBase, head: Head, rows: Sequence[dict[str, Any]]) -> Cut:
    """The windows of `rows`, in their order.  Raises SpecError for a tokenizer that cannot say where its tokens come from."""
    if not tokenizer.is_fast and head.kind != "sequence_classification":
        raise SpecError(
            f"task {head.kind}: this tokenizer does not tell where its tokens stand; use a base with a tokenizer.json"
        )
    made = {"sequence_classification": _texts, "token_classification": _tags, "question_answering": _questions}[head.kind]
    return made(tokenizer, head, rows)


def encode(tokenizer: PreTrainedTokenizerBase, head: Head, rows: Sequence[dict[str, Any]]) -> Encoded:
    """Windows with labels, as a trainer wants them; windows that teach nothing are left out, rows without any are counted."""
    found = cut(tokenizer, head, rows)
    result = Encoded(total=len(rows), truncated=found.truncated)
    number = {label: i for i, label in enumerate(head.labels)}
    taught: set[int] = set()
    for window in found.windows:
        labels = _labels(head, window, rows[window.row], number)
        if labels is not None:
            taught.add(window.row)
            result.rows.append(window.features(labels))
    if found.unread:
        result.dropped["questions that leave no room for their context"] = len(found.unread)
    if lost := len(rows) - len(taught | found.unread):
        result.dropped["nothing to learn from once tokenised"] = lost
    return result


def joined(tokens: Sequence[str]) -> tuple[str, list[int]]:
    """Tokens as one text, and where each starts.

    >>> joined(["New", "York", "!"])
    ('New York !', [0, 4, 9])
    """
    starts, at = [], 0
    for token in tokens:
        starts.append(at)
        at += len(token) + 1
    return " ".join(tokens), starts


def collate(rows: Sequence[dict[str, Any]], pad: int, kind: str) -> dict[str, Tensor]:
    """A batch padded on the right: input_ids, attention_mask, token_type_ids where rows have them, labels.

    labels: (B,) for texts, (B, T) for tags, (B, 2) start and end for questions.
    """
    width = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, value: int) -> Tensor:
        return torch.tensor([[*row[name], *[value] * (width - len(row[name]))] for row in rows])

    batch = {"input_ids": filled("input_ids", pad)}
    batch["attention_mask"] = torch.tensor([[int(i < len(row["input_ids"])) for i in range(width)] for row in rows])
    if rows[0].get("token_type_ids") is not None:
        batch["token_type_ids"] = filled("token_type_ids", 0)
    if "labels" in rows[0]:
        tagged = kind == "token_classification"
        batch["labels"] = filled("labels", IGNORED) if tagged else torch.tensor([row["labels"] for row in rows])
    return batch


def best_span(start_T: Tensor, end_T: Tensor, places: dict[int, Place], longest: int) -> tuple[float, Place]:
    """Score and characters of the best span of at most `longest` tokens: the largest sum of its start and end logit."""
    positions = torch.tensor(sorted(places))
    score_SE = start_T[positions][:, None] + end_T[positions][None, :]
    allowed_SE = torch.ones_like(score_SE, dtype=torch.bool).triu().tril(longest - 1)
    best = int(score_SE.masked_fill(~allowed_SE, -torch.inf).argmax())
    first, last = positions[best // len(positions)], positions[best % len(positions)]
    return float(score_SE.flatten()[best]), (places[int(first)][0], places[int(last)][1])


def _texts(tokenizer: PreTrainedTokenizerBase, head: Head, rows: Sequence[dict[str, Any]]) -> Cut:
    windows, truncated = [], 0
    for i, row in enumerate(rows):
        given = (row["text"],) if row["pair"] is None else (row["text"], row["pair"])
        read = tokenizer(*given, verbose=False)
        if len(read["input_ids"]) > head.max_length:
            truncated += 1
            read = tokenizer(*given, truncation=True, max_length=head.max_length)
        windows.append(Window(i, read["input_ids"], read.get("token_type_ids")))
    return Cut(windows, truncated, {window.row for window in windows if not window.ids})


def _tags(tokenizer: PreTrainedTokenizerBase, head: Head, rows: Sequence[dict[str, Any]]) -> Cut:
    """A word is predicted on its first token, in the first window that holds it."""
    windows = []
    for i, row in enumerate(rows):
        text, starts = joined(row["tokens"])
        read = _windowed(tokenizer, head, text)
        seen: set[int] = set()
        for ids, types, offsets in _each(read):
            window = Window(i, ids, types)
            for position, (start, end) in enumerate(offsets):
                spoken = text[start:end].lstrip()
                if spoken and (word := bisect_right(starts, end - len(spoken)) - 1) not in seen:
                    seen.add(word)
                    window.places[position] = (word, word + 1)
            windows.append(window)
    return Cut(windows, 0, set())


def _questions(tokenizer: PreTrainedTokenizerBase, head: Head, rows: Sequence[dict[str, Any]]) -> Cut:
    windows, unread = [], set()
    for i, row in enumerate(rows):
        alone = len(tokenizer(row["question"], "", verbose=False)["input_ids"])
        if head.max_length - alone <= head.stride:
            unread.add(i)
            continue
        read = _windowed(tokenizer, head, row["question"], row["context"])
        for n, (ids, types, offsets) in enumerate(_each(read)):
            segments = read.sequence_ids(n)
            places = {p: place for p, place in enumerate(offsets) if segments[p] == 1 and place[1] > place[0]}
            if places:
                windows.append(Window(i, ids, types, places))
    return Cut(windows, 0, unread)


def _windowed(tokenizer: PreTrainedTokenizerBase, head: Head, *texts: str) -> Any:  # noqa: ANN401
    stride = min(head.stride, head.max_length // 2)
    pair = texts[1] if len(texts) == 2 else None
    return tokenizer(
        texts[0], pair, truncation="only_second" if pair is not None else True, max_length=head.max_length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip


def _each(read: Any) -> list[tuple[list[int], list[int] | None, list[Place]]]:  # noqa: ANN401
    types = read.get("token_type_ids") or [None] * len(read["input_ids"])
    return list(zip(read["input_ids"], types, read["offset_mapping"], strict=True))


def _labels(head: Head, window: Window, row: dict[str, Any], number: dict[str, int]) -> Any:  # noqa: ANN401
    """What the head shall say of a window, None where that is nothing."""
    if head.kind == "sequence_classification":
        return number[row["label"]] if window.ids else None
    if head.kind == "token_classification":
        labels = [IGNORED] * len(window.ids)
        for position, (word, _) in window.places.items():
            labels[position] = number[row["tags"][word]]
        return labels if window.places else None
    return _span_of(window, row["answers"][0] if row["answers"] else None)


def _span_of(window: Window, answer: dict[str, Any] | None) -> list[int]:
    """First and last position of `answer`; position 0 twice where the window does not hold it all."""
    if answer is None:
        return [0, 0]
    start, end = answer["start"], answer["start"] + len(answer["text"])
    inside = [position for position, (a, b) in window.places.items() if a < end and b > start]
    whole = inside and window.places[inside[0]][0] <= start and window.places[inside[-1]][1] >= end
    return [inside[0], inside[-1]] if whole else [0, 0]
