"""The part of the pipeline that makes the policy from the SFT policy, by the plan's algorithm."""

from typing import Any

from flows.build import Build
from flows.plan import Plan
from flows.rounds import rounds
from tasks.algorithms import ALGORITHMS
from tasks.curate import FEEDBACK, PROMPTS
from tasks.generate import ANSWERS, AnswersSpec
from tasks.health import CLEARANCE, HEALTH
from tasks.measure import REWARDS
from tasks.ppo import PpoSpec
from tasks.rewarding import wants_model
from tasks.rollouts import OnlineSpec
from tasks.rounds import OnlineDpoSpec


def aligned(plan: Plan, build: Build, sft: Any, reward_model: Any, held_out: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """What is made on the way from the SFT policy `sft`, by name and in order; the policy comes last."""
    asked = plan.policy
    assert asked is not None
    row = ALGORITHMS[asked.algorithm]
    if not isinstance(asked, OnlineSpec | OnlineDpoSpec):
        feedback = plan.data.feedback
        data = build(FEEDBACK, feedback.spec(), feedback.files()) if feedback else held_out["preferences"]
        return {
            **({"feedback": data} if feedback else {}),
            row.stage.name: build(row.stage, asked, {"policy": sft, "data": data}),
        }
    made: dict[str, Any] = {}
    if plan.data.practice:
        practice = build(PROMPTS, plan.data.practice.spec(), plan.data.practice.files(), name="curate-practice")
        made["practice"] = practice
    else:
        practice = held_out["preferences"]
    rewarded: dict[str, Any] = {}
    if wants_model(asked.rewards):
        made |= cleared(plan, asked, build, sft, reward_model, practice, held_out["preferences"])
        rewarded = {"reward_model": reward_model, "clearance": made["clearance"]}
    if isinstance(asked, OnlineDpoSpec):
        return {**made, **rounds(asked, build, sft, practice, rewarded)}
    given = {"policy": sft, "prompts": practice, **rewarded}
    if isinstance(asked, PpoSpec) and "preferences" in held_out and asked.stop.fall is not None:
        given["data"] = held_out["preferences"]
    return {**made, row.stage.name: build(row.stage, asked, given)}


def cleared(
    plan: Plan,
    asked: OnlineSpec | OnlineDpoSpec,
    build: Build,
    sft: Any,  # noqa: ANN401
    reward_model: Any,  # noqa: ANN401
    practice: Any,  # noqa: ANN401
    pairs: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """The clearance to learn from the reward model, and what it rests on: scores of held-out pairs and of answers of `sft`."""
    spec = AnswersSpec(
        max_new_tokens=asked.max_new_tokens, temperature=asked.temperature, seed=asked.seed, limit=plan.health.answers
    )
    answers = build(ANSWERS, spec, {"policy": sft, "prompts": practice}, name="answers-practice")
    judged = {"reward_model": reward_model, "preferences": pairs, "answers_sft": answers}
    scores = build(REWARDS, plan.evaluation.rewards, judged, name="rewards-practice")
    seen = {"scores": scores, "answers": answers, "reward_model": reward_model, "policy": sft, "preferences": pairs}
    health = build(HEALTH, plan.health, seen)
    clearance = build(CLEARANCE, plan.health.clearance(), {"health": health})
    return {"practice_answers": answers, "practice_rewards": scores, "health": health, "clearance": clearance}
