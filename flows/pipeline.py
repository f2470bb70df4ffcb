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
from tasks.merge import MERGE, MergeSpec
from tasks.release import RELEASE
from tasks.train import DPO, PRETRAIN, REWARD, SFT


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

    start, before = base, {}
    if plan.pretrain and plan.data.corpus:
        corpus = build(TEXTS, plan.data.corpus.spec(), plan.data.corpus.files(), name="curate-corpus")
        start = build(PRETRAIN, plan.pretrain, {"policy": base, "data": corpus})
        before = {"corpus": corpus, "pretrain": start}
    sft = build(SFT, plan.sft, {"policy": start, "data": instructions})
    reward_model = build(REWARD, plan.reward, {"policy": sft, "data": preferences})
    dpo = build(DPO, plan.policy, {"policy": sft, "data": preferences})
    policy = build(MERGE, plan.merge or MergeSpec(), {"policy": dpo, "prompts": prompts}) if plan.merges else dpo

    models = {"candidate": policy, "parent": sft, "base": base}
    compared = {who: models[who] for who in plan.subjects()}
    asked = plan.evaluation
    held_out = {"preferences": preferences, "instructions": instructions, "texts": texts}
    answers = {
        f"answers_{who}": build(ANSWERS, asked.answers, {"policy": model, "prompts": prompts}, name=f"answers-{who}")
        for who, model in compared.items()
    }
    scores = {
        f"scores_{who}": build(SCORES, asked.scores, {"policy": model, **held_out}, name=f"scores-{who}")
        for who, model in compared.items()
    }
    scores["rewards"] = build(REWARDS, asked.rewards, {"reward_model": reward_model, "preferences": preferences, **answers})
    scores["metrics"] = build(METRICS, plan.metrics(), {"prompts": prompts, **answers})

    verdict = build(VERDICT, plan.judge(), scores)
    made_of = {"base": base, "prompts": prompts, **held_out, **before, "sft": sft, "reward_model": reward_model, "dpo": dpo}
    build(RELEASE, plan.card(), {"policy": policy, "verdict": verdict, **made_of, **answers, **scores})
