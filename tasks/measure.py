"""The measuring stages: log-probabilities of held-out data, rewards, and metrics of the answers.  One row per item and metric.

A policy's scores name no subject, so that two plans, or two roles of one policy, share them; see evals/scores.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import PositiveInt, field_validator

from evals import modules
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import DataError
from tasks.core.spec import Spec
from tasks.generate import alone
from tasks.tables import ANSWERS_FILE, read_rows, score, write_scores

LENGTH = "length"
"""the subject that always prefers the longer answer"""
PREFIX = "answers_"
"""an input of this name holds the answers of the subject named after it"""


class ScoresSpec(Spec):
    """How likely a policy finds held-out data."""

    max_length: PositiveInt = 1024
    """tokens of one text, prompt included; what lies beyond is not scored"""
    limit: PositiveInt | None = None
    """score the first so many pairs, instructions and texts by id; null: all"""


class RewardsSpec(Spec):
    """What a reward model thinks of held-out pairs and of answers."""

    max_length: PositiveInt = 1024
    """pairs with a longer text, prompt included, are left out and counted; answers are always scored whole"""
    limit: PositiveInt | None = None
    """score the first so many pairs by id; null: all"""


class MetricsSpec(Spec):
    """Measure answers with metric modules."""

    metrics: tuple[str, ...] = ()
    """modules of evals/metrics, by folder name"""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            modules.check(name)
        return tuple(sorted(set(names)))


def score_policy(spec: ScoresSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet`: how likely the policy finds held-out data.

    Inputs: policy, and at least one of preferences, instructions, texts.
    """
    return alone("score", spec, inputs, out, run)


def score_rewards(spec: RewardsSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet`: what the reward model gives.  Inputs: reward_model, preferences, answers_<subject>."""
    return alone("rewards", spec, inputs, out, run)


def score_answers(spec: MetricsSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet`: length, end and metric modules of answers.  Inputs: prompts, answers_<subject> for each subject."""
    if spec.metrics:
        return alone("metrics", spec, inputs, out, run)
    return measure_answers(spec, inputs, out, run)  # needs no torch, so no child


def measure_answers(spec: MetricsSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """What `score_answers` writes, in this process."""
    references = {row["id"]: row.get("reference") for row in read_rows(inputs["prompts"] / "prompts.parquet")}
    rows: list[dict[str, Any]] = []
    means: Metrics = {}
    for subject, folder in subjects(inputs).items():
        answers = read_rows(folder / ANSWERS_FILE)
        if unknown := sorted({answer["id"] for answer in answers} - references.keys()):
            raise DataError(f"answers of {subject}: {unknown[0]} is not among the prompts; were they given to the same prompts?")
        columns: dict[str, Sequence[float | None]] = {
            "answer_tokens": [answer["tokens"] for answer in answers],
            "finished": [float(answer["finished"]) for answer in answers],
        }
        for name in spec.metrics:
            run.log(f"{name}: {len(answers)} answers of {subject}")
            columns |= modules.columns(
                name,
                [answer["answer"] for answer in answers],
                [references[answer["id"]] for answer in answers],
                [asked(answer["prompt"]) for answer in answers],
            )
        for name, values in columns.items():
            found = [(answer, value) for answer, value in zip(answers, values, strict=True) if value is not None]
            rows += [score(name, answer, value, subject=subject) for answer, value in found]
            if name in ("answer_tokens", "finished", *spec.metrics):  # what a module counts has no mean that says anything
                means[f"{name}/{subject}"] = sum(value for _, value in found) / len(found)
    write_scores(out, rows)
    return means


def subjects(inputs: Inputs) -> dict[str, Path]:
    """Subject -> folder of its answers, from the names of `inputs`."""
    return {name.removeprefix(PREFIX): path for name, path in sorted(inputs.items()) if name.startswith(PREFIX)}


def asked(prompt: Sequence[Mapping[str, str]]) -> str:
    """What the user said last, which is what a metric module sees of a prompt."""
    return next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")


def longer(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How the longer answer fares as a judge: 1 where chosen has more characters, 0.5 where as many."""
    return [
        score("chosen_longer", pair, 0.5 + 0.5 * _sign(len(pair["chosen"]) - len(pair["rejected"])), subject=LENGTH)
        for pair in pairs
    ]


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _sources(spec: Spec) -> Mapping[str, str]:
    assert isinstance(spec, MetricsSpec)
    return {name: modules.source(name) for name in spec.metrics}


SCORES = Stage("scores", 2, "scores", score_policy, heavy=True)
"""inputs: policy, and at least one of preferences, instructions, texts"""
REWARDS = Stage("rewards", 1, "scores", score_rewards, heavy=True)
"""inputs: reward_model; preferences and answers_<subject>, any number"""
METRICS = Stage("metrics", 1, "scores", score_answers, texts=_sources, heavy=True)
"""inputs: prompts; answers_<subject>, any number"""
