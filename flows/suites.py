"""The part of the pipeline that measures on suites: prompts, answers of every subject, scores, and comparisons by a judge."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flows.build import Build
from flows.plan import Plan
from flows.suite_plan import HarnessPlan
from tasks.generate import ANSWERS, AnswersSpec
from tasks.harness import HARNESS, HARNESS_TASK
from tasks.pairwise import PAIRWISE
from tasks.suites import CHOICES, QUESTIONS, SUITE_SCORES, ChoicesSpec


class Measured(NamedTuple):
    """What was measured, by the names that the verdict and the release know it by."""

    asked: dict[str, Any]
    """answers, and prompts of suites"""
    scores: dict[str, Any]


NOTHING = Measured({}, {})


def measured(plan: Plan, build: Build, models: Mapping[str, Any], before: Measured = NOTHING) -> Measured:
    """What was `before`, and `models` (subject -> policy) measured on every suite of the plan.

    The candidate is one of them, or was measured `before`: others are compared with it.
    """
    asked, scores = dict(before.asked), dict(before.scores)
    for suite in plan.evaluation.suites:
        if isinstance(suite, HarnessPlan):
            name = f"lm-eval-{suite.lm_eval}"
            task = asked.get(f"task_{suite.lm_eval}")
            if task is None:
                task = asked[f"task_{suite.lm_eval}"] = build(HARNESS_TASK, suite.task(), suite.files(), name=name)
            for who, model in models.items():
                given = {"policy": model, "task": task}
                scores[f"task_{suite.lm_eval}_{who}"] = build(HARNESS, suite.scores(), given, name=f"{name}-{who}")
            continue
        name, spec = suite.name, suite.scores(plan.gates)
        prompts = asked.get(f"suite_{name}")
        if prompts is None:
            prompts = asked[f"suite_{name}"] = build(QUESTIONS, suite.questions(), {"data": suite.source}, name=f"suite-{name}")
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
                mine = asked[f"answers_{name}_candidate"]
                given = {"prompts": prompts, "answers_candidate": mine, "answers_other": answers[who]}
                scores[f"judged_{name}_{who}"] = build(PAIRWISE, pairs, given, name=f"{name}-judged-{who}")
    return Measured(asked, scores)
