"""Loading a plan: what it holds, and the one sentence for each way it can be wrong."""

import json
from pathlib import Path

import pytest

from flows.loading import load
from flows.pipeline import pipeline
from flows.plan import Plan
from flows.task_pipeline import load as load_any
from tasks.algorithms import ALGORITHMS, SPECS
from tasks.core.errors import SpecError
from tasks.preference import DpoSpec

DEMO = Path(__file__).parents[2] / "flows" / "plans" / "demo.yaml"


RELEASING = [path for path in sorted(DEMO.parent.glob("*.yaml")) if "\nrelease:" in path.read_text()]


@pytest.mark.parametrize("path", RELEASING, ids=lambda path: path.stem)
def test_every_plan_in_the_box_that_ends_in_a_release_loads(path):
    assert load_any(path).name == path.stem


def test_paths_are_relative_to_the_plan_and_stay_out_of_what_is_hashed():
    plan = load(DEMO)
    assert plan.data.texts.files() == {"0": DEMO.parents[2] / "datasets" / "samples" / "text.jsonl"}
    assert "/" not in str(plan.data.texts.spec())
    assert plan.data.texts.spec().sources[0].name == "text.jsonl"


def test_a_plan_survives_the_trip_through_json_that_a_deployment_makes():
    plan = load(DEMO)
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


def test_set_changes_one_field():
    plan = load(DEMO, ["policy.beta=0.3", "gates.0.at_least=0.6", "sft.method={name: full}"])
    assert (plan.policy.beta, plan.gates[0].at_least, plan.sft.method.name) == (0.3, 0.6, "full")


def test_a_null_learning_rate_is_the_methods_own_and_is_what_is_hashed():
    lora, full = load(DEMO, ["policy.learning_rate=null"]), load(DEMO, ["sft.method={name: full}", "sft.learning_rate=null"])
    assert lora.policy.learning_rate == 2e-5
    assert full.sft.learning_rate == 2e-5


PREFIX = [f"{stage}.method={{name: prefix_tuning}}" for stage in ("sft", "reward", "policy")]


def test_what_cannot_be_merged_stays_an_adapter_also_after_a_deployment():
    assert load(DEMO).merges
    assert not load(DEMO, ["policy.method={name: full}"]).merges
    plan = load(DEMO, PREFIX)
    assert not plan.merges
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan
    assert "merge" not in stages(plan)
    assert "merge" in stages(load(DEMO))


def test_pre_training_comes_before_sft():
    plan = load(DEMO, ["pretrain={max_steps: 1}", "data.corpus={sources: [../../datasets/samples/text.jsonl]}"])
    assert stages(plan)["pretrain"] == {"policy": "base", "data": "curate-corpus"}
    assert stages(plan)["sft"]["policy"] == "pretrain"


PAIRS = DEMO.parents[2] / "datasets" / "samples" / "preferences.jsonl"
PROMPTS = DEMO.parents[2] / "datasets" / "samples" / "prompts.jsonl"
PRACTICE = f"data.practice={{sources: [{PAIRS}]}}"
FEEDBACK = f"data.feedback={{sources: [{PAIRS}]}}"
NO_PAIRS = "data.preferences=null"
NO_REWARD = "reward=null"
SFT_GATES = "gates=[{metric: answer_perplexity_ratio, against: base, at_most: 1.0}]"
RULES = "[{rule: finished}]"


def asks(algorithm, **fields):
    return f"policy={json.dumps({'algorithm': algorithm, **fields})}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_goes_from_sft_to_a_policy_by_its_stage(algorithm):
    plan = load(DEMO, [asks(algorithm)])
    assert type(plan.policy) is SPECS[algorithm]
    assert plan.policy.stage == ALGORITHMS[algorithm].stage.name
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


def test_a_policy_without_an_algorithm_is_dpos():
    assert load(DEMO, ["policy={}"]).policy == DpoSpec()
    assert load(DEMO, ["policy.algorithm=dpo"]) == load(DEMO)


@pytest.mark.parametrize(
    "overrides",
    [
        [asks("ppo", rewards=[{"rule": "finished"}]), NO_REWARD, SFT_GATES],
        [asks("grpo", rewards=[{"rule": "finished"}]), NO_REWARD, NO_PAIRS, PRACTICE, SFT_GATES],
        [asks("kto"), NO_REWARD, NO_PAIRS, FEEDBACK, SFT_GATES],
        [asks("kto"), NO_REWARD, SFT_GATES],
        [asks("ppo"), PRACTICE],
        [NO_REWARD, "policy=null", NO_PAIRS, SFT_GATES],
    ],
    ids=["rules need no reward model", "own prompts, no pairs", "feedback alone", "pairs taken apart", "own prompts", "sft"],
)
def test_a_policy_with_something_to_learn_from_loads(overrides):
    load(DEMO, overrides)


WRONG_DATA = {
    "reward without preferences": ([NO_PAIRS, "policy=null", SFT_GATES], "reward needs data.preferences"),
    "practice without a policy": (["policy=null", PRACTICE], "data.feedback and data.practice are for a policy"),
    "feedback without a policy": (["policy=null", FEEDBACK], "data.feedback and data.practice are for a policy"),
    "dpo without preferences": ([NO_PAIRS, NO_REWARD, SFT_GATES], "policy: dpo needs data.preferences"),
    "orpo without preferences": ([asks("orpo"), NO_PAIRS, NO_REWARD, SFT_GATES], "policy: orpo needs data.preferences"),
    "kto without data": ([asks("kto"), NO_PAIRS, NO_REWARD, SFT_GATES], "policy: kto needs data.feedback or data.preferences"),
    "feedback with dpo": ([FEEDBACK], "data.feedback is for policy.algorithm: kto"),
    "feedback with ppo": ([asks("ppo"), FEEDBACK], "data.feedback is for policy.algorithm: kto"),
    "practice with dpo": ([PRACTICE], "data.practice is for policies that learn from their own answers"),
    "practice with kto": ([asks("kto"), PRACTICE], "data.practice is for policies that learn from their own answers"),
    "grpo without prompts": (
        [asks("grpo", rewards=[{"rule": "finished"}]), NO_PAIRS, NO_REWARD, SFT_GATES],
        "policy: grpo needs prompts to answer: data.practice, or those of data.preferences",
    ),
    "practice on what is measured": (
        [asks("ppo"), f"data.practice={{sources: [{PROMPTS}]}}"],
        "data.practice: prompts.jsonl is measured on too; practise on other prompts",
    ),
    "search for a method that ppo does not take": (
        [asks("ppo"), "search={steps: [4], methods: [{name: ia3}]}"],
        "search: method ia3 cannot train ppo: policy, value and reward are low-rank adapters",
    ),
    **{
        f"{algorithm} without its reward model": (
            [asks(algorithm), NO_REWARD, SFT_GATES],
            "policy: its reward is a reward model's, and the plan has none; add reward, or name rules in rewards",
        )
        for algorithm, row in ALGORITHMS.items()
        if row.learns_from == "answers"
    },
}


@pytest.mark.parametrize(("overrides", "says"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_a_policy_with_nothing_to_learn_from_is_refused_in_one_sentence(overrides, says):
    with pytest.raises(SpecError) as raised:
        load(DEMO, overrides)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


TYPOS = {
    "dpo": ("bete", "beta"),
    "kto": ("desirable_wait", "desirable_weight"),
    "orpo": ("betta", "beta"),
    "online_dpo": ("round", "rounds"),
    "grpo": ("sample", "samples"),
    "rloo": ("rollouts_batch", "rollout_batch"),
    "ppo": ("kl.targt", "target"),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_unknown_field_is_answered_with_the_nearest_of_its_algorithm(algorithm):
    typo, meant = TYPOS[algorithm]
    with pytest.raises(SpecError) as raised:
        load(DEMO, [asks(algorithm), f"policy.{typo}=1"])
    assert str(raised.value) == f"{DEMO}: policy.{typo}: no such field; did you mean {meant}?"


def stages(plan):
    """Stage -> its inputs by name, as the pipeline asks for them."""
    asked = {}

    def build(stage, spec, inputs, *, name=None):
        asked[name or stage.name] = {key: str(value) for key, value in inputs.items()}
        return name or stage.name

    pipeline(plan, build)
    return asked


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["policy.bete=0.2"], "policy.bete: no such field; did you mean beta?"),
        (["policy.beta=-1"], "policy.beta: should be greater than 0, got -1"),
        (["sft.method.rnak=8"], "no such field; did you mean rank?"),
        (["data.prompts.sources=[]"], "data.prompts"),
        (["data.prompts.heldout=0.1"], "data.prompts.heldout: no such field"),
        (["gates=[]"], "gates"),
        (["gates.0.metric=reward_winrate"], "reward_win_rate"),
        (["gates.9.metric=x"], "--set gates.9.metric=x: the plan has no such place"),
        (
            ["policy.algorithm=pppo"],
            "policy.algorithm: pppo is none of dpo, kto, orpo, online_dpo, grpo, rloo, ppo; did you mean ppo?",
        ),
        ([asks("grpo", rewards=[{"rule": "lenth"}])], "policy.rewards.0.rule: lenth is none of reward_model, regex,"),
        ([asks("grpo", rewards=[{"at_most": 1}])], "policy.rewards.0.rule: missing"),
        (
            [asks("grpo", rewards=[{"rule": "regex", "patern": "a"}])],
            "policy.rewards.0.patern: no such field; did you mean pattern?",
        ),
        ([asks("ppo", rollout_batch=33)], "policy: rollout_batch 33 is no multiple of global_batch 16"),
        ([asks("ppo", rewards=[])], "policy.rewards: "),
        ([asks("ppo", method={"name": "full"})], "method full cannot train ppo: policy, value and reward are low-rank adapters"),
        (["sft.method={name: prompt_tuning, length: -3}"], "sft.method.length: should be greater than 0, got -3"),
        (["policy.beta"], "write it as field=value"),
        (["model.base=org/name"], "40-digit commit"),
        (["model={base: org/name, revision: main}"], "40-digit commit"),
        (["model.base=./nowhere"], "is not a folder"),
        (["sft.method.name=lorra"], "sft.method.name: lorra is none of full, head, bottleneck, lora, "),
        (["release.channel=../x"], "release.channel"),
        (["execution.devize=cpu"], "did you mean device?"),
        (["policy.method={name: qlora}"], "train SFT with qlora of the same shape too"),
        (["sft.method={name: qlora}"], "merging its adapter there would change the policy"),
        ([*PREFIX, "merge={}"], "prefix_tuning cannot be merged: its keys and values belong to no token"),
        (["policy.method={name: prefix_tuning}", "merge={}"], "leave merge out, and the policy is measured and released as an"),
        (["sft.method={name: prefix_tuning}"], "reward: method lora: the policy was trained with prefix_tuning"),
        (["sft.method={name: head}"], "sft.method: method head cannot train sft: it trains nothing but a new head"),
        (["pretrain={max_steps: 1}"], "pretrain needs data.corpus"),
        (
            ["pretrain={method: {name: qlora}}", "data.corpus={sources: [../../datasets/samples/text.jsonl]}"],
            "sft: method lora: the policy's base is in 4 bits",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_with_its_place(overrides, says):
    with pytest.raises(SpecError) as raised:
        load(DEMO, overrides)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not readable as YAML"),
        ("- a", "a plan is a mapping of fields, this is list"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("name: x", "model: missing"),
        ("", "a plan is a mapping of fields, this is NoneType"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=says):
        load(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(SpecError, match=r"No such file or directory; give the path of a plan"):
        load(tmp_path / "plan.yaml")
