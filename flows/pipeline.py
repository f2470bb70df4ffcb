"""The pipeline: which artifact is built from which.  One page, read it downward; another shape is another small flow.

The same lines serve every builder: Prefect runs them, `align plan` looks them up, a benchmark calls the stages directly.
"""

from typing import Any

from flows.aligning import aligned
from flows.build import Build
from flows.plan import Plan, RewardModelPlan
from flows.suites import measured
from tasks.base import BASE
from tasks.curate import INSTRUCTIONS, PREFERENCES, PROMPTS, TEXTS
from tasks.generate import ANSWERS
from tasks.judge import VERDICT
from tasks.measure import METRICS, REWARDS, SCORES
from tasks.merge import MERGE, MergeSpec
from tasks.release import RELEASE
from tasks.reward_model import REWARD_MODEL
from tasks.train import PRETRAIN, REWARD, SFT, RewardSpec


def pipeline(plan: Plan, build: Build) -> None:
    """Curate, train, merge, measure, judge, release."""
    base = build(BASE, plan.model.spec(), plan.model.files())
    instructions = build(INSTRUCTIONS, plan.data.instructions.spec(), plan.data.instructions.files())
    prompts = build(PROMPTS, plan.data.prompts.spec(), plan.data.prompts.files())
    held_out = {"instructions": instructions, **measured_on(plan, build)}

    start, before = pretrained(plan, build, base)
    sft = build(SFT, plan.sft, {"policy": start, "data": instructions})
    parent, trained, made = start, sft, {"sft": sft}
    if plan.reward:
        made["reward_model"] = judge(plan.reward, build, sft, held_out["preferences"])
    if plan.policy:
        made |= aligned(plan, build, sft, made.get("reward_model"), held_out)
        parent, trained = sft, list(made.values())[-1]
    policy = build(MERGE, plan.merge or MergeSpec(), {"policy": trained, "prompts": prompts}) if plan.merges else trained

    models = {"candidate": policy, "parent": parent, "base": base}
    compared = {who: models[who] for who in plan.subjects()}
    asked = plan.evaluation
    answers = {
        f"answers_{who}": build(ANSWERS, asked.answers, {"policy": model, "prompts": prompts}, name=f"answers-{who}")
        for who, model in compared.items()
    }
    scores = {
        f"scores_{who}": build(SCORES, asked.scores, {"policy": model, **held_out}, name=f"scores-{who}")
        for who, model in compared.items()
    }
    if "reward_model" in made:
        judged = {"reward_model": made["reward_model"], "preferences": held_out["preferences"]}
        scores["rewards"] = build(REWARDS, asked.rewards, {**judged, **answers})
    scores["metrics"] = build(METRICS, plan.metrics(), {"prompts": prompts, **answers})
    suites = measured(plan, build, compared)
    scores |= suites.scores

    verdict = build(VERDICT, plan.judge(), scores)
    made_of = {"base": base, "prompts": prompts, **held_out, **before, **made}
    build(RELEASE, plan.card(), {"policy": policy, "verdict": verdict, **made_of, **answers, **suites.asked, **scores})


def judge(asked: RewardSpec | RewardModelPlan, build: Build, sft: Any, pairs: Any) -> Any:  # noqa: ANN401
    """The reward model, trained from `sft` or brought from elsewhere."""
    if isinstance(asked, RewardModelPlan):
        return build(REWARD_MODEL, asked.spec(), asked.files())
    return build(REWARD, asked, {"policy": sft, "data": pairs})


def measured_on(plan: Plan, build: Build) -> dict[str, Any]:
    """Pairs and ordinary text, where the plan has them."""
    found: dict[str, Any] = {}
    if plan.data.preferences:
        found["preferences"] = build(PREFERENCES, plan.data.preferences.spec(), plan.data.preferences.files())
    if plan.data.texts:
        found["texts"] = build(TEXTS, plan.data.texts.spec(), plan.data.texts.files())
    return found


def pretrained(plan: Plan, build: Build, base: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    """What SFT starts from, and what that was made of beside `base`."""
    if not (plan.pretrain and plan.data.corpus):
        return base, {}
    corpus = build(TEXTS, plan.data.corpus.spec(), plan.data.corpus.files(), name="curate-corpus")
    start = build(PRETRAIN, plan.pretrain, {"policy": base, "data": corpus})
    return start, {"corpus": corpus, "pretrain": start}
