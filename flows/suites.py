"""The part of the pipeline that measures on suites: prompts, answers of every subject, scores, and comparisons by a judge."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flows.build import Build
from flows.plan import Plan
from tasks.generate import ANSWERS, AnswersSpec
from tasks.pairwise import PAIRWISE
from tasks.suites import CHOICES, QUESTIONS, SUITE_SCORES, ChoicesSpec


class Measured(NamedTuple):
    """What suites add to a run, by the names that the verdict and the release know it by."""

    asked: dict[str, Any]
    """prompts and answers"""
    scores: dict[str, Any]


def measured(plan: Plan, build: Build, models: Mapping[str, Any]) -> Measured:
    """Measure `models` (subject -> policy) on every suite of the plan."""
    asked: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for suite in plan.evaluation.suites:
        name, spec = suite.name, suite.scores(plan.gates)
        prompts = build(QUESTIONS, suite.questions(), {"data": suite.source}, name=f"suite-{name}")
        asked[f"suite_{name}"] = prompts
        if isinstance(spec, ChoicesSpec):
            for who, model in models.items():
                given = {"policy": model, "prompts": prompts}
                scores[f"suite_{name}_{who}"] = build(CHOICES, spec, given, name=f"{name}-{who}")
            continue
        settings = AnswersSpec(**spec.answers.model_dump())
        answers = {
            who: build(ANSWERS, settings, {"policy": model, "prompts": prompts}, name=f"answers-{name}-{who}")
            for who, model in models.items()
        }
        for who, said in answers.items():
            asked[f"answers_{name}_{who}"] = said
            given = {"prompts": prompts, "answers": said}
            scores[f"suite_{name}_{who}"] = build(SUITE_SCORES, spec, given, name=f"{name}-{who}")
        if pairs := suite.pairs():
            for who in (who for who in answers if who != "candidate"):
                given = {"prompts": prompts, "answers_candidate": answers["candidate"], "answers_other": answers[who]}
                scores[f"judged_{name}_{who}"] = build(PAIRWISE, pairs, given, name=f"{name}-judged-{who}")
    return Measured(asked, scores)
