"""A plan of PPO from the command line: a weak reward model stops it, a cleared one leads to a release."""

import json

import pytest
from smoke import ended, write_smoke

pytestmark = pytest.mark.slow
PPO = "policy={algorithm: ppo, iterations: 2, rollout_batch: 8, global_batch: 4, max_new_tokens: 8, max_length: 1024}"
GATES = "gates=[{metric: answer_perplexity_ratio, at_most: 1.1, against: parent}]"


def set_to(*overrides):
    return [word for override in overrides for word in ("--set", override)]


@pytest.fixture(scope="module")
def plan(tmp_path_factory, prefect_server):
    return write_smoke(tmp_path_factory.mktemp("ppo"), prefect_server)


def artifact(plan, kind, name):
    """The newest file of that name among artifacts of `kind`."""
    found = sorted(plan.store.glob(f"{kind}/*/{name}"), key=lambda path: path.stat().st_mtime)
    return json.loads(found[-1].read_text())


def test_a_weak_reward_model_stops_the_run_once_its_card_can_be_read(plan):
    printed = plan.align("run", "plan.yaml", *set_to(PPO, GATES, "health.accuracy=1.0"), code=3)
    stages = ended(printed)
    assert (stages["reward"], stages["health"], stages["clearance"]) == ("built", "built", "failed")
    assert "ppo" not in stages
    assert "health.accept_weak: true" in printed
    assert artifact(plan, "health", "health.json")["verdict"] == "weak"


def test_accepted_it_is_learned_from_and_released_and_another_bound_trains_nothing_again(plan):
    asked = set_to(PPO, GATES, "health.accept_weak=true")
    printed = plan.align("run", "plan.yaml", *asked)
    stages = ended(printed)
    assert "released" in printed
    assert (stages["ppo"], stages["release"]) == ("built", "built")
    curve = artifact(plan, "policy", "training.json")  # the merged policy has none
    assert {"reward", "kl", "entropy", "value_loss", "clip_fraction", "answer_tokens", "finished"} <= curve[-1].keys()
    looser = ended(plan.align("run", "plan.yaml", *asked, *set_to("health.accuracy=0.01")))
    assert (looser["health"], looser["ppo"]) == ("built", "cached")
    assert "up to date" in plan.align("run", "plan.yaml", *asked)


def test_a_run_made_to_over_optimise_raises_the_reward_and_the_gates_refuse_it(plan):
    """Without a KL penalty and without the stops of the run itself: only the gates are left."""
    off = (
        "policy={algorithm: ppo, iterations: 8, rollout_batch: 32, global_batch: 16, max_new_tokens: 16, max_length: 1024, "
        "learning_rate: 0.02, kl: {coefficient: 0}, stop: {kl: null, fall: null}}"
    )
    learned = (  # an SFT policy and a reward model that have something to lose and to gain
        "sft={method: {name: full}, max_steps: 40, learning_rate: 0.01, global_batch: 8, max_length: 1024}",
        "reward={max_steps: 20, learning_rate: 0.003, global_batch: 8, max_length: 1024}",
    )
    gates = (
        "gates=[{metric: reward_difference, at_least: 0, against: parent}, "
        "{metric: text_perplexity_ratio, at_most: 1.1, against: parent}]"
    )
    printed = plan.align("run", "plan.yaml", *set_to(off, *learned, gates, "health.accept_weak=true"), code=3)
    assert ended(printed)["verdict"] == "built"
    assert "not released, the verdict is fail: text_perplexity_ratio: need <= 1.1 against parent" in printed
    reward, text = artifact(plan, "verdict", "verdict.json")["gates"]
    assert (reward["verdict"], text["verdict"]) == ("pass", "fail")
    assert reward["low"] > 0  # the reward model likes it more, beyond doubt
    assert text["low"] > 1.1  # and it has forgotten how to write, beyond doubt
    first, *_, last = artifact(plan, "policy", "training.json")
    assert last["reward"] > first["reward"] + 0.2
    assert last["kl"] > 5
