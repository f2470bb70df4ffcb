"""What a plan says about one source of raw data.  Everything here is hashed, so no path: where it lies is not what it is."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from tasks.core.errors import SpecError
from tasks.core.spec import Spec

Format = Literal["auto", "jsonl", "json", "csv", "tsv", "text", "parquet", "dataset"]
Schema = Literal[
    "auto", "messages", "sharegpt", "alpaca", "completion", "tasks", "turns", "strings", "text",
    "pairs", "transcripts", "labels", "ranked", "choices", "tree",
    "classes", "tags", "questions", "articles",
]  # fmt: skip
Meaning = Literal[
    "messages", "system", "tools", "prompt", "input", "history", "answer", "reference", "instances", "turns", "text",
    "chosen", "rejected", "chosen_score", "rejected_score", "margin", "label",
    "answers", "scores", "ranks", "first", "second", "winner", "task", "conversation",
    "pair", "tokens", "tags", "question", "context", "start", "images",
]  # fmt: skip
"""what a column can mean"""


class PairRule(Spec):
    """How several scored or ranked answers to one prompt become pairs.  Answers that tie never make a pair."""

    take: Literal["best_worst", "all"] = "best_worst"
    """`best_worst`: one pair a prompt, the best against the worst; `all`: every two answers, the better one chosen"""
    min_margin: NonNegativeFloat = 0.0
    """smallest difference in score between the two (for ranks: in places)"""


class SourceSpec(Spec):
    """One source: its name, and what to take for granted where guessing would be wrong."""

    name: str = Field(min_length=1)
    """written into the `source` column"""
    schema_: Schema = Field(default="auto", alias="schema")
    """what the rows are; `auto` goes by their column names, row by row"""
    format: Format = "auto"
    """how the file is laid out; `auto` goes by its content first, then by its name"""
    encoding: str | None = None
    """Python's name of the text encoding; told from the bytes by default"""
    columns: dict[Meaning, str] = Field(default_factory=dict[Meaning, str])
    """meaning -> column of the file, where the column's name does not say it, for example `prompt: raw_text`"""
    rows: str | None = None
    """the key that holds the rows, where a JSON file is one object"""
    split: str | None = None
    """which split of a Hugging Face data set; default: `train`, or the only one"""
    hub: str | None = None
    """a data set on the Hugging Face hub (`owner/name`) instead of a file; needs `revision`"""
    revision: str | None = None
    """the commit of the hub data set: 40 hex digits, since a branch moves"""
    config: str | None = None
    """configuration of the hub data set"""
    pairs: PairRule = PairRule()
    """how several scored answers become pairs"""

    model_config = Spec.model_config | {"populate_by_name": True}

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                "".encode(value)
            except LookupError:
                raise SpecError(f"encoding: {value!r} is unknown; use a name such as utf-8, gb18030, cp1252 or utf-16") from None
        return value

    @model_validator(mode="after")
    def _pinned(self) -> "SourceSpec":
        if self.hub is None and (self.revision or self.config):
            raise SpecError(f"source {self.name}: revision and config belong to a hub data set; name it with `hub`")
        if self.hub is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            seen = f"{self.revision!r} moves or is short" if self.revision else "it is missing"
            raise SpecError(
                f"source {self.name}: hub data set {self.hub} needs `revision` as a 40-hex commit, but {seen}; "
                "copy the commit from the data set's history page"
            )
        return self


class SourceEntry(SourceSpec):
    """A source as a plan writes it: a SourceSpec and where the data lies.  `identity` leaves the place out."""

    name: str = ""
    """default: the base name of the path, or the hub id"""
    path: Path | None = None
    """a file, a folder of files, or a folder written by `save_to_disk`; relative to the plan"""
    images: Path | None = None
    """the folder that the rows' image paths start from, relative to the plan; default: the file that names them, in a folder"""

    @model_validator(mode="after")
    def _one_place(self) -> "SourceEntry":
        if (self.path is None) == (self.hub is None):
            raise SpecError(f"source {self.name or self.path or self.hub}: give either `path` or `hub`")
        return self

    def identity(self) -> SourceSpec:
        """What decides the result."""
        fields = self.model_dump(exclude={"path", "name", "images"})
        return SourceSpec(name=self.name or (self.path.name if self.path else str(self.hub)), **fields)
