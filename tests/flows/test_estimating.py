"""The commands `align estimate` and `align advise` from end to end, on a plan of which nothing is built."""

import json

import pytest
from smoke import write_smoke

from flows.estimate import table
from flows.estimating import Row
from tasks.memory import Memory
from tasks.probe import Measured

TRAINING = ("sft", "reward", "dpo")


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory):
    return write_smoke(tmp_path_factory.mktemp("unbuilt"), None)


def test_every_stage_that_loads_a_model_has_a_row_and_nothing_is_built(unbuilt):
    rows = json.loads(unbuilt.align("estimate", "plan.yaml", "--json"))
    names = [row["stage"] for row in rows]
    assert names == [*TRAINING, "merge", *(f"answers-{who}" for who in ("candidate", "parent", "base")),
                     *(f"scores-{who}" for who in ("candidate", "parent", "base")), "rewards"]  # fmt: skip
    for row in rows:
        parts = {name: value for name, value in row["memory"].items() if name != "total"}
        assert sum(parts.values()) == row["memory"]["total"] <= row["limit"]
        assert row["fits"]
    sft = rows[0]
    assert (sft["micro_batch"], sft["largest_micro_batch"]) == (4, 4)
    assert (sft["tokens"], sft["tokens_from"]) == (4 * 4 * 1024, "at most: max_steps x max_length")
    assert sft["rate_from"] == "a matrix product on this CPU"
    assert not any((unbuilt.store / kind).exists() for kind in ("policy", "instructions"))


ONLINE = {"iterations": 2, "rollout_batch": 8, "global_batch": 4, "max_length": 64, "max_new_tokens": 16}


def estimated(unbuilt, **policy):
    """Stage -> its row, for a policy that is asked for like this."""
    asked = json.dumps(policy)
    return {row["stage"]: row for row in json.loads(unbuilt.align("estimate", "plan.yaml", "--json", "--set", f"policy={asked}"))}


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_sampling_and_learning_have_a_row_and_what_loads_no_model_has_none(unbuilt, algorithm):
    rows = estimated(unbuilt, algorithm=algorithm, **ONLINE)
    assert not {"health", "clearance"} & set(rows)
    assert {"answers-practice", "rewards-practice", algorithm} <= set(rows)
    row = rows[algorithm]
    assert (row["micro_batch"], row["largest_micro_batch"]) == (4, 4)
    assert (row["tokens"], row["tokens_from"]) == (2 * 8 * 16, "at most: answers x max_new_tokens")
    assert row["seconds"] > 0
    assert sum(value for name, value in row["memory"].items() if name != "total") == row["memory"]["total"]


def test_rules_alone_need_less_memory_than_a_reward_model(unbuilt):
    rules = [{"rule": "finished"}]
    for algorithm in ("ppo", "grpo"):
        judged, ruled = (estimated(unbuilt, algorithm=algorithm, **ONLINE, **more) for more in ({}, {"rewards": rules}))
        assert ruled[algorithm]["memory"]["weights"] < judged[algorithm]["memory"]["weights"]
        assert "answers-practice" not in ruled


@pytest.mark.parametrize(("algorithm", "texts"), [("kto", 1), ("orpo", 2)])
def test_relatives_of_dpo_are_estimated_as_they_read(unbuilt, algorithm, texts):
    row = estimated(unbuilt, algorithm=algorithm, max_steps=2, global_batch=4, max_length=64)[algorithm]
    assert row["tokens"] == 2 * 4 * 64 * texts


def test_every_round_of_online_dpo_has_its_answers_its_rewards_and_its_training(unbuilt):
    rows = estimated(unbuilt, algorithm="online_dpo", rounds=2, max_length=64, max_new_tokens=16, global_batch=4)
    assert [name for name in rows if "round" in name] == [
        f"{what}-round-{number}" for number in (1, 2) for what in ("answers", "rewards", "dpo")
    ]


def test_a_micro_batch_that_does_not_fit_is_said_with_the_one_that_would():
    memory = Memory(libraries=700_000_000, activations=900_000_000)
    row = Row("sft", "missing", memory, 10**9, 8, 2, None, "", None, "")
    printed = [str(cell) for column in table("plan", [row]).columns for cell in column.cells]
    assert "no, 2 would" in printed
    none = Row("sft", "missing", memory, 10**9, 8, None, None, "", None, "")
    assert "no, not one row" in [str(cell) for column in table("plan", [none]).columns for cell in column.cells]


def test_a_probes_error_is_the_estimate_over_the_measured_peak_less_one():
    row = Row("sft", "missing", Memory(weights=110), 10**9, 1, 1, None, "", None, "", 16, Measured(100, 5.0, 1.0))
    assert row.error == pytest.approx(0.1)


@pytest.mark.slow
def test_a_probe_measures_each_training_stage_and_builds_no_artifact(unbuilt):
    rows = json.loads(unbuilt.align("estimate", "plan.yaml", "--probe", "--json", "--set", "policy.max_length=64",
                                    "--set", "sft.max_length=64", "--set", "reward.max_length=64"))  # fmt: skip
    for row in rows:
        if row["stage"] in TRAINING:
            assert row["probed"]["tokens_per_second"] > 0
            assert abs(row["error"]) < 0.25  # a tiny model is all libraries; docs/estimates.md has the accuracy of real ones
            assert row["rate_from"] == "the probe's tokens/s"
        else:
            assert row["probed"] is None
    assert not (unbuilt.store / "policy").exists()


def test_advice_takes_the_model_from_a_plan_and_ends_with_a_part_of_one(unbuilt):
    printed = unbuilt.align("advise", "plan.yaml", "--memory", "8GB", "--device", "cpu", "--rows", "300", "--latency", "none")
    assert "not for this need" in printed
    assert "prefix_tuning: adds time in use and cannot be merged" in printed
    assert "to start with\nsft:\n  method:" in printed
    found = json.loads(unbuilt.align("advise", "--model-size", "7B", "--memory", "24GB", "--json"))
    ranked = [one["method"]["name"] for one in found["methods"] if not one["refused"]]
    assert "lora" in ranked
    assert "full" not in ranked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--task", "singing", "--model-size", "7B"), "--task singing: choose one of chat, generation"),
        ((), "nothing says how large the model is"),
        (("--model-size", "7B", "--latency", "none", "--adapters", "many"), "adapters that are switched stay unmerged"),
    ],
)
def test_a_need_that_cannot_be_is_said_in_one_sentence(arguments, said, tmp_path):
    from flows.advise import need_of
    from tasks.core.errors import SpecError

    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    defaults = {"task": "chat", "latency": "some", "forgetting": "any", "adapters": "one", "device": "cuda", "model_size": None}
    named = {name.removeprefix("--").replace("-", "_"): value for name, value in given.items()}
    with pytest.raises(SpecError, match=said):
        need_of(None, {**defaults, "memory": None, "rows": None, **named})
