"""The stages of suites: their prompts out of the user's file, and what follows from answers, likelihoods or a judge.

Only what a suite asks decides its prompts and so its answers; the rest of its text decides scores alone, so that another metric
generates nothing again.  Nothing is curated: a row that cannot be used means another file, and is refused with its line.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import PositiveInt

from evals import modules, suite
from evals.instructions import instruction, written
from evals.suite import Asked, Settings
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import DataError
from tasks.core.files import write_json
from tasks.core.spec import Json, Spec, to_json
from tasks.generate import alone
from tasks.measure import asked
from tasks.reading.sources import files
from tasks.reading.spec import SourceSpec
from tasks.tables import ANSWERS_FILE, PROMPTS_FILE, read_rows, score, write_questions, write_scores


class QuestionsSpec(Spec):
    """The prompts of a suite, out of the file that holds them."""

    asked: Asked
    """what of the suite decides them"""
    limit: PositiveInt | None = None
    """so many of them, drawn by the digest of their id, so that every model gets the same; null: all"""


class SuiteScoresSpec(Spec):
    """What metric modules say of answers to a suite."""

    suite: str
    """its name"""
    metrics: tuple[str, ...]
    """modules of evals/metrics, by folder name"""
    answers: Settings
    """how the answers were generated"""


class ChoicesSpec(Spec):
    """How likely a policy finds the choices of a suite."""

    suite: str
    """its name"""
    max_length: PositiveInt = 2048
    """tokens of a prompt with a choice; a longer one is refused, for a cut one would be another question"""


def questions(spec: QuestionsSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `prompts.parquet`, and `suite.json` that says which suite of which version it is.  Inputs: data, the file.

    Raises DataError for a file without rows of the suite, and for a row that it cannot ask, with its place.
    """
    rows = list(_rows(spec.asked, inputs["data"], run))
    if not rows:
        where = f" where {', '.join(spec.asked.where)} is as the suite wants" if spec.asked.where else ""
        raise DataError(f"suite {spec.asked.name}: {inputs['data'].name} has no rows{where}; is it the suite's file?")
    seen: dict[str, str] = {}
    for row in rows:
        if row["id"] in seen:
            raise DataError(f"suite {spec.asked.name}: {seen[row['id']]} and {row['place']} have one id, {row['id']}")
        seen[row["id"]] = row["place"]
    asked_once = {json.dumps([row[name] for name in ("prompt", "reference", "choices")]): row for row in reversed(rows)}
    kept = sorted(asked_once.values(), key=lambda row: hashlib.sha256(row["id"].encode()).digest())[: spec.limit]
    write_questions(out, kept, choices=spec.asked.form == "choices")
    write_json(out / suite.MADE_OF, {"suite": spec.asked.name, "version": spec.asked.version})
    return {"rows": len(rows), "prompts": len(kept), "repeated": len(rows) - len(asked_once)}


def score_suite(spec: SuiteScoresSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` and `suite.json`.  Inputs: prompts (of a suite), answers (of one policy to them)."""
    return alone("suites", spec, inputs, out, run)


def measure_suite(spec: SuiteScoresSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """What `score_suite` writes, in this process.  Raises DataError where answers and prompts do not pair up."""
    prompts = {row["id"]: row for row in read_rows(inputs["prompts"] / PROMPTS_FILE)}
    answers = read_rows(inputs["answers"] / ANSWERS_FILE)
    if other := sorted({answer["id"] for answer in answers} ^ prompts.keys()):
        raise DataError(
            f"suite {spec.suite}: prompts and answers do not pair up: {len(other)} are in one alone, such as {other[0]}"
        )
    columns: dict[str, list[Any]] = {
        "answer_tokens": [answer["tokens"] for answer in answers],
        "finished": [float(answer["finished"]) for answer in answers],
    }
    for name in spec.metrics:
        run.log(f"{spec.suite}.{name}: {len(answers)} answers")
        columns |= modules.columns(
            name,
            [answer["answer"] for answer in answers],
            [prompts[answer["id"]]["reference"] for answer in answers],
            [asked(answer["prompt"]) for answer in answers],
        )
    rows = [
        score(f"{spec.suite}.{name}", answer, value)
        for name, values in columns.items()
        for answer, value in zip(answers, values, strict=True)
        if value is not None
    ]
    write_suite_scores(out, rows, spec.suite, inputs["prompts"], cast(dict[str, Json], to_json(spec.answers)))
    judged = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {"answers": len(answers), **{name: sum(values) / len(values) for name, values in judged.items()}}


def score_choices(spec: ChoicesSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` and `suite.json`.  Inputs: policy, prompts (of a suite of choices)."""
    return alone("choices", spec, inputs, out, run)


def write_suite_scores(
    out: Path,
    rows: list[dict[str, Any]],
    name: str,
    prompts: Path,
    settings: Mapping[str, Json],
    judge: Mapping[str, Json] | None = None,
) -> None:
    """Write scores of the suite `name` with what says of which suite, prompts, settings and judge they are."""
    write_scores(out, rows)
    made = suite.made_of(suite.suite(name), suite.text(name), prompts / PROMPTS_FILE, settings, judge)
    write_json(out / suite.MADE_OF, made)


# -- reading -----------------------------------------------------------------------------------------------------


def _rows(asked: Asked, path: Path, run: Run) -> Iterator[dict[str, Any]]:
    """The rows of the suite in the file at `path`, in order."""
    source = SourceSpec(name=asked.name)
    run.work.mkdir(parents=True, exist_ok=True)
    for file in files(source, path):
        for record in file.records(source, run.work):
            place, value = f"{file.path.name} line {record.line}", record.value
            if record.reason or not isinstance(value, Mapping):
                raise DataError(f"suite {asked.name}: {place}: {record.reason or 'not a row of named values'}")
            row = cast(Mapping[str, object], value)
            try:
                if all(str(_cell(row, column)) in values for column, values in asked.where.items()):
                    yield _question(asked, row, record.line) | {"place": place}
            except ValueError as error:
                raise DataError(f"suite {asked.name}: {place}: {error}") from error


def _question(asked: Asked, row: Mapping[str, object], line: int) -> dict[str, Any]:
    """One row of `prompts.parquet`.  Raises ValueError for what the suite cannot ask."""
    of = {meaning: _cell(row, column) for meaning, column in asked.columns.items()}
    said = of["prompt"]
    if not isinstance(said, str) or not said.strip():
        raise ValueError(f"{asked.columns['prompt']} is {said!r:.40}, not a text")
    name = str(of["id"]) if "id" in of else f"{line:06d}"
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    reference = of.get("reference")
    if reference is not None and not isinstance(reference, str | int | float):
        raise ValueError(f"{asked.columns['reference']} is {reference!r:.40}, not a text")
    found: dict[str, Any] = {
        "id": name,
        "conversation": str(of["group"]) if "group" in of else name,
        "task": asked.name,
        "prompt": [*system, {"role": "user", "content": asked.prompt.replace("{prompt}", said)}],
        "reference": None if reference is None else str(reference),
        "source": asked.name,
        "line": line,
        "choices": None,
        "gold": None,
    }
    if asked.form == "instructions":
        found["reference"] = _instructions(of["instructions"], of["arguments"])
    if asked.form == "choices":
        found["choices"], found["gold"] = _choices(of["choices"], of["gold"])
    return found


def _instructions(kinds: object, arguments: object) -> str:
    if not isinstance(kinds, list) or not isinstance(arguments, list) or not kinds:
        raise ValueError(f"no list of instructions with one of their arguments, but {kinds!r:.40} and {arguments!r:.40}")
    told, given = cast(list[object], kinds), cast(list[object], arguments)
    if len(told) != len(given):
        raise ValueError(f"{len(told)} instructions and arguments for {len(given)}")
    return written([instruction(kind, values) for kind, values in zip(told, given, strict=True)])


def _choices(choices: object, gold: object) -> tuple[list[str], int]:
    """The different texts among `choices`, for public data says some twice, and the place of the right one."""
    given = cast(list[object], choices) if isinstance(choices, list) else []
    texts = [text.strip() for text in given if isinstance(text, str) and text.strip()]
    if len(texts) < len(given) or len(set(texts)) < 2:
        raise ValueError(f"choices are {choices!r:.60}, not two different texts or more")
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(texts):
        raise ValueError(f"gold is {gold!r:.40}, not the place of one of {len(texts)} choices from 0")
    distinct = list(dict.fromkeys(texts))
    return distinct, distinct.index(texts[gold])


def _cell(row: Mapping[str, object], column: str) -> object:
    """The value at `a.0.b` of a row.  Raises ValueError where there is none."""
    at: Any = row
    for part in column.split("."):
        if isinstance(at, Mapping) and part in at:
            at = cast(Any, at)[part]
        elif isinstance(at, list) and part.isdigit() and int(part) < len(cast(Any, at)):
            at = cast(Any, at)[int(part)]
        else:
            raise ValueError(f"there is no column {column}; there are {', '.join(sorted(map(str, row)))}")
    return at


# -- stages ------------------------------------------------------------------------------------------------------


def _of_scores(spec: Spec) -> Mapping[str, str]:
    assert isinstance(spec, SuiteScoresSpec)
    return {f"suite {spec.suite}": suite.text(spec.suite), **modules.sources(spec.metrics)}


def _of_choices(spec: Spec) -> Mapping[str, str]:
    assert isinstance(spec, ChoicesSpec)
    return {f"suite {spec.suite}": suite.text(spec.suite)}


QUESTIONS = Stage("questions", 1, "prompts", questions)
"""inputs: data, a file"""
SUITE_SCORES = Stage("suite-scores", 1, "scores", score_suite, texts=_of_scores, heavy=True)
"""inputs: prompts, answers"""
CHOICES = Stage("choices", 1, "scores", score_choices, texts=_of_choices, heavy=True)
"""inputs: policy, prompts"""
