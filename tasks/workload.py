# pyright: basic
"""How many tokens a stage has to read: from curated data where they are there, else an upper bound.  Imports no torch.

Rows are rendered with the model's own chat template and tokenised with its own tokenizer, a sample of them where there are many.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from tasks.core.errors import DataError
from tasks.policy import TOKENIZER_CONFIG, template_text
from tasks.tables import read_rows

SAMPLE = 256
"""rows that are tokenised of a data set; the longest by characters are among them"""
Messages = Sequence[dict[str, str]]


class Tokens(NamedTuple):
    """Texts of a data set."""

    rows: int
    mean: float
    """tokens per row, both texts of a pair together"""
    longest: int
    """tokens of the longest text"""
    source: str


@dataclass(frozen=True)
class Reader:
    """A tokenizer and chat template, without transformers."""

    folder: Path
    template: str
    names: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> "Reader":
        """Those of the model in `folder`.  Raises DataError where they cannot be read without transformers."""
        if not (folder / "tokenizer.json").is_file():
            raise DataError(f"{folder}: no tokenizer.json here, so texts cannot be counted before the model is loaded")
        config: dict[str, Any] = {}
        if (folder / TOKENIZER_CONFIG).is_file():
            config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        special = {name: config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        texts = {name: value["content"] if isinstance(value, dict) else value for name, value in special.items()}
        return cls(folder, template_text(folder), {name: text for name, text in texts.items() if isinstance(text, str)})

    def ids(self, messages: Messages) -> list[int]:
        """Tokens of a conversation as the template writes it."""
        return self.plain(self._rendered.render(messages=messages, add_generation_prompt=False, **self.names))

    def plain(self, text: str) -> list[int]:
        """Tokens of `text` as it stands."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def _tokenizer(self) -> Any:  # noqa: ANN401  the class is written in Rust and not typed
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def _rendered(self) -> Any:  # noqa: ANN401
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _refuse  # pyright: ignore[reportArgumentType]
        try:
            return environment.from_string(self.template)
        except TemplateError as error:
            raise DataError(f"{self.folder}: its chat template needs transformers to be rendered ({error})") from error


def _refuse(message: str) -> None:
    raise DataError(f"the chat template refuses a conversation: {message}")


def measured(reader: Reader, path: Path, stage: str, max_length: int) -> Tokens:
    """Tokens of the rows in the parquet file `path` as `stage` reads them, each text cut at `max_length`."""
    rows = read_rows(path)
    texts = _TEXTS[stage]
    by_length = sorted(rows, key=lambda row: -sum(len(str(value)) for value in row.values()))
    step = max(1, len(rows) // (SAMPLE - SAMPLE // 8))
    sample = rows[::step]
    lengths = [[min(max_length, n) for n in texts(reader, row)] for row in sample]
    longest = max(n for row in by_length[: SAMPLE // 8] for n in texts(reader, row))
    said = "curated data" if step == 1 else f"{len(sample)} of {len(rows)} curated rows"
    mean = sum(map(sum, lengths)) / len(lengths)
    return Tokens(len(rows), mean, min(max_length, max(longest, *(n for row in lengths for n in row))), said)


def _conversation(reader: Reader, row: dict[str, Any]) -> list[int]:
    return [len(reader.ids(row["messages"]))]


def _pair(reader: Reader, row: dict[str, Any]) -> list[int]:
    return [len(reader.ids([*row["prompt"], {"role": "assistant", "content": row[side]}])) for side in ("chosen", "rejected")]


def _verdict(reader: Reader, row: dict[str, Any]) -> list[int]:
    return [len(reader.ids([*row["prompt"], {"role": "assistant", "content": row["answer"]}]))]


def _prompt(reader: Reader, row: dict[str, Any]) -> list[int]:
    return [len(reader.ids(row["prompt"]))]


def _text(reader: Reader, row: dict[str, Any]) -> list[int]:
    return [len(reader.plain(row["text"]))]


_TEXTS: dict[str, Callable[[Reader, dict[str, Any]], list[int]]] = {
    "pretrain": _text, "sft": _conversation, "reward": _pair, "dpo": _pair, "orpo": _pair, "feedback": _verdict,
    "answers": _prompt, "texts": _text,
}  # fmt: skip


def steps(rows: int, *, global_batch: int, epochs: float, max_steps: int | None) -> int:
    """Optimiser steps over `rows`, see `tasks.training.data.schedule`."""
    return max_steps or ceil(rows * epochs / global_batch)
