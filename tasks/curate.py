# pyright: basic
"""From raw sources to clean data: INSTRUCTIONS, PREFERENCES, FEEDBACK, PROMPTS, TEXTS, LABELLED, one stage for each kind.

The row equation, checked in every run: records read = records kept + records in quarantine.  A record is what the source counts
(a line, an element, a table's row, a paragraph).  It is kept when at least one row came of it, otherwise it is in
`quarantine.parquet`, once, with the first reason.  A record may hold several things (ranked answers give pairs, a task its
instances, a tree its conversations): what is refused of a kept record is in `dropped.parquet`, which is beside the equation.
A pair made of two unpaired labels keeps both records.

Order of judgement: read, schema, rules (or pairs, where none could be made), contradictions, duplicates; `datasets/sql` holds the
rules, one table a file.  Lengths are in characters, as no tokenizer is known here: about 4 to a token in English, 1.5 in Chinese.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from tasks import curate_report
from tasks.core import sql
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import AlignError, DataError, SpecError
from tasks.core.files import write_atomic, write_json
from tasks.core.spec import Json, Spec
from tasks.reading.images import Album
from tasks.reading.load import load
from tasks.reading.schemas import RawKind
from tasks.reading.spec import SourceSpec

# -- what is asked for -------------------------------------------------------------------------------------------


class CurateSpec(Spec):
    """What every curation is told."""

    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    """read in this order; of two equal rows the first one stays"""
    quarantine_budget: float = Field(default=0.5, ge=0, le=1)
    """largest share of records that may be refused before the stage fails"""

    @model_validator(mode="after")
    def _names_differ(self) -> "CurateSpec":
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SpecError(f"sources: two are called {twice[0]}; give one of them another `name`")
        return self


class PromptLimits(CurateSpec):
    """What is too long, for kinds that have a prompt."""

    max_prompt_chars: PositiveInt = 8000
    """characters of everything before the last answer, all turns together"""
    over_long: Literal["refuse", "keep"] = "refuse"
    """`keep` leaves the cutting to the training; pairs that it would make identical are refused all the same"""
    max_image_pixels: PositiveInt = 20_000_000
    """width times height of one image; a larger one is refused before it is decoded"""


class SplitSpec(PromptLimits):
    """What is too long, what is the same, and what is held out."""

    max_answer_chars: PositiveInt = 8000
    """characters of an answer; pairs that are identical up to here are refused as identical after truncation"""
    duplicates: Literal["exact", "normalised", "prompt"] = "normalised"
    """rows are the same when they are so byte for byte, as text without case and white space, or already in the prompt"""
    heldout: float = Field(default=0.1, ge=0, lt=1)
    """share of conversations held out; a conversation is all rows with the same first user turn or conversation id"""
    seed: int = 0
    """which conversations those are; a row stays on its side when rows are added"""


class InstructionsSpec(SplitSpec):
    """Conversations to learn from, each ending with an answer."""


class PreferencesSpec(SplitSpec):
    """Pairs of a better and a worse answer to the same prompt."""


class FeedbackSpec(SplitSpec):
    """Answers that people liked or did not, one at a time; a pair is taken apart into one of each."""

    max_answer_chars: PositiveInt = 8000
    """characters of an answer; answers that are identical up to here, one liked and one not, are refused as a contradiction"""
    duplicates: Literal["exact", "normalised"] = "normalised"  # pyright: ignore[reportIncompatibleVariableOverride]
    """rows are the same when they are so byte for byte, or as text without case and white space; what is liked is not disliked"""


class PromptsSpec(PromptLimits):
    """Prompts to answer, with a reference where the source has one."""

    duplicates: Literal["exact", "normalised"] = "normalised"
    """prompts are the same when they are so byte for byte, or as text without case and white space"""


class TextsSpec(CurateSpec):
    """Plain texts."""

    max_text_chars: PositiveInt = 200_000
    """characters of one text"""
    duplicates: Literal["exact", "normalised"] = "normalised"
    """texts are the same when they are so byte for byte, or without case and white space"""


class LabelledSpec(CurateSpec):
    """Rows with labels: texts or pairs of texts with one, tokens with tags, questions with a context that holds their answers."""

    max_text_chars: PositiveInt = 200_000
    """characters of one text, token sequence, or context with its question"""
    names: tuple[str, ...] = ()
    """what labels or tags that are numbers are called: 0 is the first"""
    duplicates: Literal["exact", "normalised"] = "exact"
    """rows are the same when text and label are so byte for byte, or but for case and white space of the text"""
    heldout: float = Field(default=0.2, ge=0, lt=1)
    """share of groups held out; a group is all rows with the same (first) text, tokens or context, or group id of the source"""
    seed: int = 0
    """which groups those are; a row stays on its side when rows are added"""


# -- what comes out ----------------------------------------------------------------------------------------------

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_HEAD: list[tuple[str, pa.DataType]] = [("id", pa.string()), ("conversation", pa.string())]
_TAIL: list[tuple[str, pa.DataType]] = [("source", pa.string()), ("line", pa.int64())]
_QUARANTINE = pa.schema([*_TAIL, ("stage", pa.string()), ("reason", pa.string()), ("raw", pa.string())])


_CHECKS: dict[RawKind, list[str]] = {
    "preferences": ["longer_chosen"],
    "feedback": ["liked_counts"],
    "labelled": ["label_counts"],
}
"""what is counted of one kind alone"""


@dataclass(frozen=True)
class Recipe:
    """How one kind is curated: its SQL in order, and the columns of what is kept."""

    kind: RawKind
    singular: str
    columns: list[tuple[str, pa.DataType]]
    split: bool

    @property
    def schema(self) -> pa.Schema:
        """Columns of the artifact's tables."""
        return pa.schema([*_HEAD, *self.columns, *_TAIL])

    @property
    def illustrated(self) -> pa.Schema:
        """The same where a row has images: their names, in the order of their places in the text."""
        return pa.schema([*_HEAD, *self.columns, ("images", pa.list_(pa.string())), *_TAIL])

    def staging(self) -> list[tuple[str, str]]:
        """`(file, table)` up to the rules."""
        stated = [(f"staging/{name}", name) for name in ("given_pairs", "ranked_pairs", "unranked")]
        rules = [(f"staging/{self.singular}_candidates", "candidates"), (f"curation/{self.singular}_rules", "rules")]
        if self.kind == "labelled":
            return [*rules, ("curation/labelled_contradictions", "contradictions")]
        if self.kind == "feedback":
            alone = [*stated[:2], ("staging/unranked", "unpaired")]
            return [*alone, *rules, ("curation/feedback_contradictions", "contradictions")]
        pairs = [*stated, *((f"staging/{name}", name) for name in ("labelled_pairs", "unpaired"))]
        return [*pairs, *rules, ("curation/contradictions", "contradictions")] if self.kind == "preferences" else rules

    def judging(self) -> list[tuple[str, str]]:
        """`(file, table)` from the rules to the verdicts and what is kept."""
        return [(f"curation/{name}", name) for name in ("duplicates", "verdicts", "quarantine", "dropped", "conversations")]

    def texts(self) -> list[str]:
        """Every SQL file whose text decides the result."""
        checks = ["lost_records", "repeated_ids", "reasons", "source_counts", f"{self.singular}_lengths"]
        checks += ["straddling_conversations"] if self.split else []
        checks += _CHECKS.get(self.kind, [])
        made = [name for name, _ in (*self.staging(), *self.judging())]
        return [*made, "curation/joined_conversations", f"curation/{self.kind}", *(f"checks/{name}" for name in checks)]


_TASK = ("task", pa.string())
RECIPES: dict[RawKind, Recipe] = {
    "instructions": Recipe("instructions", "instruction", [_TASK, ("messages", _MESSAGES)], True),
    "preferences": Recipe(
        "preferences",
        "preference",
        [_TASK, ("prompt", _MESSAGES), ("chosen", pa.string()), ("rejected", pa.string()), ("margin", pa.float64())],
        True,
    ),
    "feedback": Recipe(
        "feedback", "feedback", [_TASK, ("prompt", _MESSAGES), ("answer", pa.string()), ("liked", pa.bool_())], True
    ),
    "prompts": Recipe("prompts", "prompt", [_TASK, ("prompt", _MESSAGES), ("reference", pa.string())], False),
    "texts": Recipe("texts", "text", [("text", pa.string())], False),
    "labelled": Recipe(
        "labelled",
        "labelled",
        [
            ("form", pa.string()),
            ("text", pa.string()),
            ("pair", pa.string()),
            ("label", pa.string()),
            ("tokens", pa.list_(pa.string())),
            ("tags", pa.list_(pa.string())),
            ("question", pa.string()),
            ("context", pa.string()),
            ("answers", pa.list_(pa.struct([("text", pa.string()), ("start", pa.int64())]))),
        ],
        True,
    ),
}


# -- the stages --------------------------------------------------------------------------------------------------


def instructions(spec: InstructionsSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `train.parquet` and `heldout.parquet`: id, conversation, task, messages, source, line."""
    return _curate(RECIPES["instructions"], spec, inputs, out, run)


def preferences(spec: PreferencesSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `train.parquet` and `heldout.parquet`: id, conversation, task, prompt, chosen, rejected, margin, source, line."""
    return _curate(RECIPES["preferences"], spec, inputs, out, run)


def prompts(spec: PromptsSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `prompts.parquet`: id, conversation, task, prompt, reference, source, line."""
    return _curate(RECIPES["prompts"], spec, inputs, out, run)


def texts(spec: TextsSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `texts.parquet`: id, conversation, text, source, line."""
    return _curate(RECIPES["texts"], spec, inputs, out, run)


def labelled(spec: LabelledSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `train.parquet` and `heldout.parquet`: id, conversation, form, what the form has, source, line."""
    return _curate(RECIPES["labelled"], spec, inputs, out, run)


def feedback(spec: FeedbackSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `train.parquet` and `heldout.parquet`: id, conversation, task, prompt, answer, liked, source, line."""
    return _curate(RECIPES["feedback"], spec, inputs, out, run)


def _sql_of(kind: RawKind) -> Callable[[Spec], Mapping[str, str]]:
    return lambda spec: sql.texts(RECIPES[kind].texts())


INSTRUCTIONS = Stage("curate-instructions", 1, "instructions", instructions, _sql_of("instructions"))
PREFERENCES = Stage("curate-preferences", 1, "preferences", preferences, _sql_of("preferences"))
PROMPTS = Stage("curate-prompts", 1, "prompts", prompts, _sql_of("prompts"))
FEEDBACK = Stage("curate-feedback", 1, "feedback", feedback, _sql_of("feedback"))
TEXTS = Stage("curate-texts", 1, "texts", texts, _sql_of("texts"))
LABELLED = Stage("curate-labelled", 1, "labelled", labelled, _sql_of("labelled"))


def _curate(recipe: Recipe, spec: CurateSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Read, stage, judge, split, write.  Raises DataError where nothing survives, or less than the budget allows."""
    album = Album(run.work / "images", spec.max_image_pixels) if isinstance(spec, PromptLimits) else None
    with sql.Database(run.work, run.execution.threads) as database:
        layouts = load(recipe.kind, spec.sources, inputs, database, run, album)
        values = _values(spec)
        _empty_tables(recipe, database)
        for name, table in (*recipe.staging(), *recipe.judging()):
            database.build(name, values, table=table)
        _join_conversations(database)
        database.build(f"curation/{recipe.kind}", values, table="kept")
        _must_be_empty(database, recipe)
        _within_budget(database, spec.quarantine_budget, recipe)
        metrics = _write(database, recipe, out, album)
        report = curate_report.collect(database, recipe.kind, recipe.singular, metrics, layouts)
    write_json(out / "report.json", report)
    write_atomic(out / "report.md", curate_report.markdown(report))
    run.log(curate_report.summary(report))
    return metrics


def _values(spec: CurateSpec) -> dict[str, Json]:
    values: dict[str, Json] = {
        name: getattr(spec, name) for name in type(spec).model_fields if name not in ("sources", "quarantine_budget", "over_long")
    }
    if isinstance(spec, LabelledSpec):
        values["names"] = [*spec.names]
    if isinstance(spec, PromptLimits):
        values["keep_long"] = spec.over_long == "keep"
    return values


def _empty_tables(recipe: Recipe, database: sql.Database) -> None:
    """Only judgements can contradict each other; for other kinds the tables that later steps read are there, and empty."""
    if recipe.kind not in ("preferences", "feedback"):
        database.create("contradictions", pa.schema([("candidate", pa.int64()), ("reason", pa.string())]))
        database.create("unpaired", pa.schema([("record", pa.int64()), ("part", pa.int32()), ("reason", pa.string())]))


def _join_conversations(database: sql.Database) -> None:
    if not database.rows("select 1 from conversations where named_group is not null limit 1"):
        return
    changed = True
    while changed:
        database.build("curation/joined_conversations")
        changed = bool(
            database.rows(
                "select 1 from conversations inner join joined_conversations as j using (candidate) "
                "where conversations.conversation <> j.conversation limit 1"
            )
        )
        database.rename("joined_conversations", "conversations")


def _must_be_empty(database: sql.Database, recipe: Recipe) -> None:
    checks = ["lost_records", "repeated_ids", *(["straddling_conversations"] if recipe.split else [])]
    for name in checks:
        database.build(f"checks/{name}")
        if found := database.rows(f'select * from "{name}" order by all limit 3'):
            raise AlignError(f"curation broke its own rule {name}: {found}; this is a bug, please report it with the source")


def _within_budget(database: sql.Database, budget: float, recipe: Recipe) -> None:
    total, refused = _one(database, "select (select count(*) from records), (select count(*) from quarantine)")
    reasons = curate_report.top_reasons(database)
    if refused == total:
        first = curate_report.first_refusal(database)
        raise DataError(
            f"none of {total} records is usable as {recipe.kind}: {reasons}; first {first}; is this the right schema?"
        )
    if refused > budget * total:
        raise DataError(
            f"{refused} of {total} records were refused, more than the quarantine budget of {budget:.0%}: {reasons}; "
            "mend the data, or raise quarantine_budget"
        )


def _write(database: sql.Database, recipe: Recipe, out: Path, album: Album | None) -> Metrics:
    total, refused = _one(database, "select (select count(*) from records), (select count(*) from quarantine)")
    metrics: Metrics = {"rows_in": total, "rows_kept": total - refused, "rows_quarantined": refused}
    schema = recipe.schema
    if album:
        named = [str(name) for (name,) in database.rows("select distinct unnest(images) from kept")]
        album.move(named, out)
        if named:
            schema, metrics["images"] = recipe.illustrated, len(named)
    if recipe.split:
        metrics["train"] = database.write("kept", out / "train.parquet", schema, where="not is_heldout")
        metrics["heldout"] = database.write("kept", out / "heldout.parquet", schema, where="is_heldout")
    else:
        metrics[recipe.kind] = database.write("kept", out / f"{recipe.kind}.parquet", schema)
    database.write("quarantine", out / "quarantine.parquet", _QUARANTINE)
    metrics["dropped"] = database.write("dropped", out / "dropped.parquet", _QUARANTINE)
    metrics["conversations"] = _one(database, "select count(distinct conversation) from kept")[0]
    if recipe.kind == "preferences":
        database.build("checks/longer_chosen")
        share, extra = database.rows("select longer_chosen_share, mean_extra_chars from longer_chosen")[0]
        metrics |= {"longer_chosen_share": round(float(str(share)), 6), "mean_extra_chars": round(float(str(extra)), 3)}
    if recipe.kind == "feedback":
        database.build("checks/liked_counts")
        metrics |= {f"{label}_to_train_on": int(str(n)) for label, n in database.rows("select label, train from liked_counts")}
    if recipe.kind == "labelled":
        database.build("checks/label_counts")
        metrics["labels"] = _one(database, "select count(*) from label_counts")[0]
    return metrics


def _one(database: sql.Database, query: str) -> Sequence[int]:
    return [int(str(value)) for value in database.rows(query)[0]]
