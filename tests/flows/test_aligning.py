"""Which artifacts each algorithm is built from: pairs, feedback, or prompts with a reward model that was cleared."""

from pathlib import Path

import pytest
from laid_out import laid_out

from flows.loading import load
from tasks.algorithms import ALGORITHMS
from tasks.core.errors import SpecError

PLANS = Path(__file__).parents[2] / "flows" / "plans"
DEMO = PLANS / "demo.yaml"
TRAINED = {"policy": "sft", "data": "curate-preferences"}
ROLLED = {"policy": "sft", "prompts": "curate-preferences"}
CLEARED = {"reward_model": "reward", "clearance": "clearance"}
RULES = "policy.rewards=[{rule: finished}]"


def asked(*overrides):
    return laid_out(load(DEMO, overrides))


@pytest.mark.parametrize("algorithm", ["dpo", "kto", "orpo"])
def test_pairs_that_are_there_need_no_reward_model(algorithm):
    stages = asked(f"policy={{algorithm: {algorithm}}}", "reward=null", "gates=[{metric: finished_rate, at_least: 0.1}]")
    assert stages[algorithm] == TRAINED
    assert not {"reward", "rewards", "health", "clearance"} & stages.keys()
    assert stages["merge"]["policy"] == algorithm
    assert {name: stages["release"][name] for name in ("sft", algorithm)} == {"sft": "sft", algorithm: algorithm}


def test_kto_learns_from_feedback_where_there_is_some():
    feedback = "data.feedback={sources: [../../datasets/samples/preferences.jsonl]}"
    stages = asked("policy={algorithm: kto}", feedback)
    assert stages["kto"] == {"policy": "sft", "data": "curate-feedback"}
    assert stages["release"]["feedback"] == "curate-feedback"


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_a_reward_model_is_cleared_before_a_policy_learns_from_it(algorithm):
    stages = asked(f"policy={{algorithm: {algorithm}}}")
    held_out = {"data": "curate-preferences"} if algorithm == "ppo" else {}
    assert stages[algorithm] == {**ROLLED, **CLEARED, **held_out}
    assert stages["clearance"] == {"health": "health"}
    assert stages["answers-practice"] == ROLLED
    names = list(stages)
    assert names.index("reward") < names.index("health") < names.index("clearance") < names.index(algorithm)
    assert stages["merge"]["policy"] == algorithm


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_rules_need_no_reward_model_and_no_clearance(algorithm):
    stages = asked(f"policy={{algorithm: {algorithm}}}", RULES)
    assert "clearance" not in stages[algorithm]
    assert not {"health", "clearance", "answers-practice"} & stages.keys()


def test_rules_need_no_pairs_either_where_there_are_prompts_to_practise_on():
    practice = "data.practice={sources: [../../datasets/samples/preferences.jsonl]}"
    gates = "gates=[{metric: finished_rate, at_least: 0.1}]"
    stages = asked("policy={algorithm: ppo}", RULES, practice, "reward=null", "data.preferences=null", gates)
    assert stages["ppo"] == {"policy": "sft", "prompts": "curate-practice"}
    assert stages["release"]["practice"] == "curate-practice"


def test_without_a_look_at_held_out_pairs_they_are_no_input_of_ppo():
    stages = asked("policy={algorithm: ppo, stop: {fall: null}}")
    assert "data" not in stages["ppo"]


@pytest.mark.parametrize("plan", ["ppo-lora", "ppo-qlora"])
def test_the_plans_that_ship_share_what_comes_before_with_the_demo(plan):
    demo, other = load(DEMO), load(PLANS / f"{plan}.yaml")
    assert other.data == demo.data
    assert other.evaluation.scores == demo.evaluation.scores
    if plan == "ppo-lora":  # nothing of these is trained again in a store that has the demo
        assert (other.sft, other.reward) == (demo.sft, demo.reward)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policy={algorithm: ppo}", "reward=null"], "its reward is a reward model's, and the plan has none"),
        (["policy={algorithm: kto}", "reward=null", "data.preferences=null"], "kto needs data.feedback or data.preferences"),
        (["policy={algorithm: orpo}", "reward=null", "data.preferences=null"], "orpo needs data.preferences"),
        (["reward.max_steps=1", "data.preferences=null"], "reward needs data.preferences"),
        (
            ["data.practice={sources: [../../datasets/samples/text.jsonl]}"],
            "data.practice is for policies that learn from",
        ),
        (
            ["policy={algorithm: ppo}", "data.practice={sources: [../../datasets/samples/prompts.jsonl]}"],
            "prompts.jsonl is measured on too",
        ),
        (["data.feedback={sources: [../../datasets/samples/text.jsonl]}"], "data.feedback is for policy.algorithm: kto"),
        (["policy={algorithm: ppo}", RULES, "reward=null", "data.preferences=null"], "ppo needs prompts to answer"),
        (["policy={algorithm: ppo, rollout_batch: 20}"], "rollout_batch 20 is no multiple of global_batch 16"),
        (["policy={algorithm: grpo, samples: 5}"], "rollout_batch 32 is no multiple of samples 5"),
        (["policy={algorithm: ppo, max_length: 64, max_new_tokens: 64}"], "max_length 64 holds prompt and answer"),
        (
            ["policy={algorithm: ppo, method: {name: full}}"],
            "method full cannot train ppo: policy, value and",
        ),
        (["policy={algorithm: ppo, method: {name: prompt_tuning}}"], "method prompt_tuning cannot train ppo"),
        (["policy={algorithm: pp0}"], "pp0"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_when_the_plan_is_loaded(overrides, said):
    with pytest.raises(SpecError) as raised:
        load(DEMO, overrides)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_algorithm_has_a_plan_that_loads():
    for algorithm in ALGORITHMS:
        assert load(DEMO, [f"policy={{algorithm: {algorithm}}}"]).policy.algorithm == algorithm
