"""The pipeline: which artifact is built from which.  One page, read it downward; another shape is another small flow.

The same lines serve every builder: Prefect runs them, `align plan` looks them up, a benchmark calls the stages directly.
"""

from typing import Any

from evals.scores import CHAMPION
from flows.aligning import aligned
from flows.build import Build, Meet, nobody
from flows.measuring import Measuring
from flows.plan import Plan, RewardModelPlan
from tasks.base import BASE
from tasks.curate import INSTRUCTIONS, PREFERENCES, PROMPTS, TEXTS
from tasks.judge import VERDICT
from tasks.merge import MERGE, MergeSpec
from tasks.release import RELEASE
from tasks.reward_model import REWARD_MODEL
from tasks.train import PRETRAIN, REWARD, SFT, RewardSpec


def pipeline(plan: Plan, build: Build, meet: Meet = nobody) -> None:
    """Curate, train, merge, measure, judge, release."""
    base = build(BASE, plan.model.spec(), plan.model.files())
    instructions = build(INSTRUCTIONS, plan.data.instructions.spec(), plan.data.instructions.files())
    prompts = build(PROMPTS, plan.data.prompts.spec(), plan.data.prompts.files())
    held_out = {"instructions": instructions, **measured_on(plan, build)}
    if plan.challenges:
        meet(base)  # a champion that a gate could not compare with is refused before anything is trained

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
    compared = {who: model for who, model in models.items() if who in plan.subjects()}
    measuring = Measuring(plan, build, prompts, held_out, made.get("reward_model"))
    seen = measuring.models(compared)
    champion = meet(policy) if plan.challenges else None
    met = {CHAMPION: champion.policy} if champion else {}
    if champion:
        seen = measuring.beside(seen, champion.policy)

    both = {"policy": policy, **met} if met else {}
    verdict = build(VERDICT, plan.judge(champion and champion.release), {**seen.scores, **both})
    made_of = {"base": base, "prompts": prompts, **held_out, **before, **made, **met}
    build(RELEASE, plan.card(), {"policy": policy, "verdict": verdict, **made_of, **seen.asked, **seen.scores})


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
