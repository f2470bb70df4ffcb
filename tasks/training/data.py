# pyright: basic
"""From messages to tokens: the text of the chat template, cut at the ends of the assistant's turns, tokenised piece by piece.

A model sees in training exactly what it sees in use: the prompt's tokens, then its own.  Only its own tokens, stop token
included, are trained on.  Nothing is left out silently: whatever does not fit is counted with its reason.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from tasks.core.errors import DataError
from tasks.training.models import READS_WHOLE, pad_id, stop_ids
from tasks.training.template import render, wants_parts

IGNORED = -100
"""label of a token that is not trained on"""
Messages = list[dict[str, Any]]
"""`content` is a text; of a vision-language model's encoder, once `prepared`, also parts"""


class Piece(NamedTuple):
    """A stretch of a rendered conversation."""

    ids: list[int]
    answer: bool
    """written by the assistant"""


@dataclass
class Encoded:
    """Tokenised rows, and what became of the others."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """reason -> rows left out"""
    truncated: int = 0
    """rows kept without their end"""

    def check(self, budget: float, what: str) -> None:
        """Raise DataError if nothing is left, or more than the share `budget` was left out."""
        lost = sum(self.dropped.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        if not self.rows:
            raise DataError(
                f"{what}: none of {self.total} rows can be trained on ({reasons or 'there are none'}); raise max_length?"
            )
        if lost > budget * self.total:
            raise DataError(
                f"{what}: {lost} of {self.total} rows would be left out ({reasons}), more than dropped_budget {budget:g}; raise "
                "max_length, curate them away, or raise the budget"
            )


class Encoder:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: Any = None) -> None:  # noqa: ANN401
        """`model`: its generation config may name more stop tokens."""
        self.tokenizer = tokenizer
        self._parts = wants_parts(tokenizer)
        self.stops = stop_ids(tokenizer, model)
        self.pad = pad_id(tokenizer)
        self._whole = bool(getattr(model, READS_WHOLE, False))

    def text(self, messages: Messages, *, prompt: bool = False) -> str:
        """The template's text of `messages`; with `prompt`, up to where the assistant begins."""
        return render(self.tokenizer, messages, prompt=prompt, parts=self._parts)

    def ids(self, text: str) -> list[int]:
        """Tokens of a stretch of rendered text; the template has written every special token already."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompt(self, messages: Messages) -> list[int]:
        """What the model is given before it answers."""
        return self.ids(self.text(messages, prompt=True))

    def pieces(self, messages: Messages) -> list[Piece]:
        """The conversation cut before and after each assistant turn; a turn ends with its stop token, where it has one.

        In one piece for a reward model that was trained elsewhere, where a text is tokenised as one.
        """
        whole, at, pieces = self.text(messages), 0, []
        if self._whole:
            return [Piece(self.ids(whole), answer=False)]
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self.text(messages[:i], prompt=True), self.text(messages[: i + 1])
            if not (after.startswith(before) and whole.startswith(after) and len(before) >= at):
                raise DataError(
                    "the chat template renders a conversation and its beginning differently, so the assistant's words cannot be "
                    "told apart; use a template that only appends, or single-turn data"
                )
            pieces.append(Piece(self.ids(whole[at : len(before)]), answer=False))
            turn = self.ids(whole[len(before) : len(after)])
            end = max((j + 1 for j, token in enumerate(turn) if token in self.stops), default=len(turn))
            pieces.append(Piece(turn[:end], answer=True))
            if turn[end:]:
                pieces.append(Piece(turn[end:], answer=False))
            at = len(after)
        if whole[at:]:
            pieces.append(Piece(self.ids(whole[at:]), answer=False))
        return pieces

    def faithful(self, pieces: Sequence[Piece], messages: Messages) -> bool:
        """Whether the tokens spell the rendered text (up to Unicode normal form, which some tokenizers apply)."""
        ids = [token for piece in pieces for token in piece.ids]
        spelled = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return unicodedata.normalize("NFC", str(spelled)) == unicodedata.normalize("NFC", self.text(messages))

    # what an encoder that sees does with images, see `vision.VisionEncoder`

    def prepared(self, rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Rows as this encoder reads them.  Raises DataError for images, which a text model cannot see."""
        if any(row.get("images") for row in rows):
            raise DataError(
                "the data hold images, and the base is a model of text alone; use a vision-language base, or rows without images"
            )
        return rows

    def unusable(self, messages: Messages) -> str | None:
        """Why a conversation cannot be told to this model, None where it can."""
        return None

    def pictures(self, messages: Messages) -> list[str]:
        """Names of a conversation's images, in order."""
        return []

    def cuts_image(self, ids: Sequence[int], max_length: int) -> bool:
        """Whether an image would not be whole within the first `max_length` tokens."""
        return False

    def with_pictures(self, row: dict[str, Any], messages: Messages) -> dict[str, Any]:
        """An encoded row with the names of its images, for a model that sees."""
        return row

    def seen(self, ids_BT: Any, pictures: Sequence[Sequence[str]]) -> dict[str, Any]:  # noqa: ANN401
        """What the model is given beside the tokens: the pixels of each row's `pictures`."""
        return {}

    def positions(self, model: Any, given: dict[str, Any]) -> Any:  # noqa: ANN401
        """Positions of the tokens in `given`, what a forward pass gets; the last two axes are batch and sequence."""
        return given["position_ids"]


def encode_instructions(encoder: Encoder, rows: Sequence[dict[str, Any]], *, max_length: int) -> Encoded:
    """Rows of `input_ids` and `labels`, cut at `max_length` on the right."""
    result = Encoded(total=len(rows))
    for row in encoder.prepared(rows):
        if reason := encoder.unusable(row["messages"]):
            result.dropped[reason] += 1
            continue
        pieces = encoder.pieces(row["messages"])
        if not encoder.faithful(pieces, row["messages"]):
            result.dropped["not spelled back by the tokenizer"] += 1
            continue
        if any(piece.answer and piece.ids[-1:] and piece.ids[-1] not in encoder.stops for piece in pieces):
            raise DataError(_no_stop(encoder))
        ids = [token for piece in pieces for token in piece.ids]
        labels = [token if piece.answer else IGNORED for piece in pieces for token in piece.ids]
        if all(label == IGNORED for label in labels[1:max_length]):
            result.dropped["prompts longer than max_length"] += 1
            continue
        if encoder.cuts_image(ids, max_length):
            result.dropped["images that do not fit max_length"] += 1
            continue
        result.truncated += len(ids) > max_length
        found = {"input_ids": ids[:max_length], "labels": labels[:max_length]}
        result.rows.append(encoder.with_pictures(found, row["messages"]))
    return result


def encode_pairs(encoder: Encoder, rows: Sequence[dict[str, Any]], *, max_length: int) -> Encoded:
    """Rows of `prompt_ids`, `chosen_ids` and `rejected_ids`; the answers are cut where prompt and answer exceed `max_length`."""
    result = Encoded(total=len(rows))
    for row in encoder.prepared(rows):
        if reason := encoder.unusable(told_twice(row)):
            result.dropped[reason] += 1
            continue
        one, two = (_answered(encoder, row["prompt"], row[side]) for side in ("chosen", "rejected"))
        if one is None or two is None:
            result.dropped["not spelled back by the tokenizer"] += 1
            continue
        (prompt, chosen), (_, rejected) = one, two
        room = max_length - len(prompt)
        if room < 1:
            result.dropped["prompts longer than max_length"] += 1
        elif chosen[:room] == rejected[:room]:
            result.dropped["pairs equal within max_length"] += 1
        else:
            result.truncated += max(len(chosen), len(rejected)) > room
            found = {"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]}
            result.rows.append(encoder.with_pictures(found, row["prompt"]))
    return result


def encode_answers(encoder: Encoder, rows: Sequence[dict[str, Any]], *, max_length: int) -> Encoded:
    """Rows of `prompt_ids`, `completion_ids` and `label` (whether it is liked), cut where both exceed `max_length`."""
    result, said = Encoded(total=len(rows)), dict[tuple[tuple[int, ...], tuple[int, ...]], set[bool]]()
    for row in encoder.prepared(rows):
        if (encoded := _answered(encoder, row["prompt"], row["answer"])) is None:
            result.dropped["not spelled back by the tokenizer"] += 1
            continue
        prompt, answer = encoded
        room = max_length - len(prompt)
        if room < 1:
            result.dropped["prompts longer than max_length"] += 1
            continue
        result.truncated += len(answer) > room
        result.rows.append({"prompt_ids": prompt, "completion_ids": answer[:room], "label": row["liked"]})
        said.setdefault((tuple(prompt), tuple(answer[:room])), set()).add(row["liked"])
    told = [row for row in result.rows if len(said[tuple(row["prompt_ids"]), tuple(row["completion_ids"])]) == 1]
    if len(told) < len(result.rows):
        result.dropped["liked and disliked alike within max_length"] += len(result.rows) - len(told)
    result.rows = told
    return result


def encode_texts(encoder: Encoder, rows: Sequence[dict[str, Any]], *, max_length: int) -> Encoded:
    """Rows of whole `chosen_ids` and `rejected_ids`, template tail included: a text that was cut would be scored elsewhere."""
    result = Encoded(total=len(rows))
    for row in encoder.prepared(rows):
        if reason := encoder.unusable(told_twice(row)):
            result.dropped[reason] += 1
            continue
        sides = [scored_ids(encoder, row["prompt"], row[side]) for side in ("chosen", "rejected")]
        if max(map(len, sides)) > max_length:
            result.dropped["pairs longer than max_length"] += 1
        elif sides[0] == sides[1]:
            result.dropped["pairs equal once tokenised"] += 1
        else:
            result.rows.append(encoder.with_pictures({"chosen_ids": sides[0], "rejected_ids": sides[1]}, row["prompt"]))
    return result


def told_twice(row: dict[str, Any]) -> Messages:
    """Everything that a pair says: its prompt and both answers."""
    return [*row["prompt"], *({"role": "assistant", "content": row[side]} for side in ("chosen", "rejected"))]


def scored_ids(encoder: Encoder, prompt: Messages, answer: str) -> list[int]:
    """What a reward model reads: prompt, answer and the template's tail, the same in training and in use.

    Raises DataError if it ended in the padding token: the score would be taken one token early.
    """
    pieces = encoder.pieces([*prompt, {"role": "assistant", "content": answer}])
    ids = [token for piece in pieces for token in piece.ids]
    if ids[-1] == encoder.pad:
        raise DataError(f"a scored text ends in token {encoder.pad}, which pads batches; does the template end each turn alike?")
    return ids


def schedule(lengths: Sequence[int], *, global_batch: int, epochs: float, max_steps: int | None, seed: int) -> list[int]:
    """Row numbers in training order: steps x global_batch of them, each pass shuffled anew.

    Within one global batch rows are sorted by length, so that the micro-batches cut from it hold like lengths and pad little.
    The sum over the batch, and so the mathematics, does not notice.
    """
    steps = max_steps or ceil(len(lengths) * epochs / global_batch)
    draw, stream = random.Random(seed), []
    while len(stream) < steps * global_batch:
        stream += draw.sample(range(len(lengths)), len(lengths))
    batches = [stream[i * global_batch : (i + 1) * global_batch] for i in range(steps)]
    return [row for batch in batches for row in sorted(batch, key=lambda row: (-lengths[row], row))]


def read_rows(data: Path, split: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of `data/<split>.parquet`, at most the first `limit`."""
    path = data / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: no such file; is the input an artifact of the right kind?")
    table = pq.read_table(path)
    return table.slice(0, limit).to_pylist()


def _answered(encoder: Encoder, prompt: Messages, answer: str) -> tuple[list[int], list[int]] | None:
    """Tokens of the prompt and of the answer with its stop token; None if they do not spell the text."""
    messages = [*prompt, {"role": "assistant", "content": answer}]
    pieces = encoder.pieces(messages)
    last = max(i for i, piece in enumerate(pieces) if piece.answer)
    if not pieces[last].ids or pieces[last].ids[-1] not in encoder.stops:
        raise DataError(_no_stop(encoder))
    if not encoder.faithful(pieces, messages):
        return None
    return [token for piece in pieces[:last] for token in piece.ids], pieces[last].ids


def _no_stop(encoder: Encoder) -> str:
    names = ", ".join(repr(encoder.tokenizer.decode([token])) for token in sorted(encoder.stops))
    return f"the chat template ends an assistant's turn without a stop token ({names}), so the model would never learn to stop"
