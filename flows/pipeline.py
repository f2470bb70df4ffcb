"""The pipeline: which artifact is built from which.  One page, read it downward; another shape is another small flow.

The same lines serve every builder: Prefect runs them, `align plan` looks them up, a benchmark calls the stages directly.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from flows.plan import Plan
from tasks.base import BASE
from tasks.core.contract import Stage
from tasks.core.spec import Spec
from tasks.curate import INSTRUCTIONS, PREFERENCES, PROMPTS, TEXTS
from tasks.generate import ANSWERS
from tasks.judge import VERDICT
from tasks.measure import METRICS, REWARDS, SCORES
from tasks.merge import MERGE
from tasks.methods import METHODS
from tasks.release import RELEASE
from tasks.train import DPO, REWARD, SFT


class Build(Protocol):
    """How a stage is asked for.  What it returns is passed on as an input of later stages."""

    def __call__(self, stage: Stage, spec: Spec, inputs: Mapping[str, Any], *, name: str | None = None) -> Any:  # noqa: ANN401
        """Ask for `stage` under `spec`; `name` tells two uses of one stage apart."""
        ...


def pipeline(plan: Plan, build: Build) -> None:
    """Curate, train, merge, measure, judge, release."""
    base = build(BASE, plan.model.spec(), plan.model.files())
    instructions = build(INSTRUCTIONS, plan.data.instructions.spec(), plan.data.instructions.files())
    preferences = build(PREFERENCES, plan.data.preferences.spec(), plan.data.preferences.files())
    prompts = build(PROMPTS, plan.data.prompts.spec(), plan.data.prompts.files())
    texts = build(TEXTS, plan.data.texts.spec(), plan.data.texts.files())

    sft = build(SFT, plan.sft, {"policy": base, "data": instructions})
    reward_model = build(REWARD, plan.reward, {"policy": sft, "data": preferences})
    policy = build(DPO, plan.policy, {"policy": sft, "data": preferences})
    if METHODS[plan.policy.method.name].adapter:
        policy = build(MERGE, plan.merge, {"policy": policy, "prompts": prompts})

    models = {"candidate": policy, "parent": sft, "base": base}
    subjects = plan.subjects()
    measured = plan.evaluation
    answers = {
        who: build(ANSWERS, measured.answers, {"policy": models[who], "prompts": prompts}, name=f"answers-{who}") for who in subjects
    }
    held_out = {"preferences": preferences, "instructions": instructions, "texts": texts}
    scores = {
        f"scores_{who}": build(SCORES, measured.scores, {"policy": models[who], **held_out}, name=f"scores-{who}")
        for who in subjects
    }
    scores["rewards"] = build(
        REWARDS,
        measured.rewards,
        {"reward_model": reward_model, "preferences": preferences} | {f"answers_{who}": answers[who] for who in subjects},
    )
    if measured.metrics.names:
        for who in subjects:
            scores[f"metrics_{who}"] = build(METRICS, measured.metrics, {"answers": answers[who]}, name=f"metrics-{who}")

    verdict = build(VERDICT, plan.judge(), scores)
    made_of = {"instructions": instructions, "preferences": preferences, "sft": sft, "reward_model": reward_model, "base": base}
    build(RELEASE, plan.card(), {"policy": policy, "verdict": verdict, **made_of})
