"""The part of the pipeline that measures models: the ones a run is about together, a champion alone and then beside them.

A champion's artifacts are its own, so that another one measures nothing else again, and the same one nothing at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evals.scores import CHAMPION
from flows.build import Build
from flows.plan import Plan
from flows.suites import Measured, measured
from tasks.generate import ANSWERS
from tasks.measure import METRICS, REWARDS, SCORES


@dataclass(frozen=True)
class Measuring:
    """What models are measured on and by: everything of one run."""

    plan: Plan
    build: Build
    prompts: Any
    held_out: Mapping[str, Any]
    reward_model: Any | None

    def models(self, models: Mapping[str, Any]) -> Measured:
        """Everything about `models` (subject -> policy), which are measured together."""
        answers, scores = self._of(models)
        if self.reward_model is not None:
            judged = {"reward_model": self.reward_model, "preferences": self.held_out["preferences"]}
            scores["rewards"] = self.build(REWARDS, self.plan.evaluation.rewards, {**judged, **answers})
        scores["metrics"] = self.build(METRICS, self.plan.metrics(), {"prompts": self.prompts, **answers})
        return measured(self.plan, self.build, models, Measured(answers, scores))

    def beside(self, seen: Measured, champion: Any) -> Measured:  # noqa: ANN401
        """What was `seen`, and everything about `champion`, a policy, on the same prompts and rows."""
        models = {CHAMPION: champion}
        answers, scores = self._of(models)
        if self.reward_model is not None:
            given = {"reward_model": self.reward_model, **answers}
            scores[f"rewards_{CHAMPION}"] = self.build(REWARDS, self.plan.evaluation.rewards, given, name=f"rewards-{CHAMPION}")
        given = {"prompts": self.prompts, **answers}
        scores[f"metrics_{CHAMPION}"] = self.build(METRICS, self.plan.metrics(), given, name=f"metrics-{CHAMPION}")
        return measured(self.plan, self.build, models, Measured({**seen.asked, **answers}, {**seen.scores, **scores}))

    def _of(self, models: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Answers to the prompts, and how likely each model finds what is held out."""
        asked, build = self.plan.evaluation, self.build
        answers = {
            f"answers_{who}": build(ANSWERS, asked.answers, {"policy": model, "prompts": self.prompts}, name=f"answers-{who}")
            for who, model in models.items()
        }
        scores = {
            f"scores_{who}": build(SCORES, asked.scores, {"policy": model, **self.held_out}, name=f"scores-{who}")
            for who, model in models.items()
        }
        return answers, scores
