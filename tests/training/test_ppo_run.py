"""The PPO job: it learns, results depend on the plan alone, the curve says what happened, and a run that goes wrong is ended."""

import json
import math

import practising
import pytest
import torch
from practising import MODEL, curve, spec
from safetensors.torch import load_file

from tasks.core.contract import Execution, Run
from tasks.core.errors import AlignError, DataError, GateError, SpecError
from tasks.policy import read_record
from tasks.ppo import StopSpec
from tasks.training import ppo, stops
from tasks.training.models import load

pytestmark = [pytest.mark.filterwarnings(warning) for warning in practising.WARNINGS]


def weights(out):
    return load_file(next(out.glob("adapters/*/adapter_model.safetensors")))


def distance(one, two):
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# -- it learns


def test_the_reward_rises_far_above_its_start_and_above_the_same_run_without_updates(studio):
    fields = {"iterations": 8, "rollout_batch": 48, "global_batch": 24, "max_new_tokens": 10, "learning_rate": 1e-2}
    learned, metrics = studio.practise(spec(**fields), run=studio.run(micro_batch=24))
    still, _ = studio.practise(spec(**{**fields, "learning_rate": 1e-12}), run=studio.run(micro_batch=24))
    rows, control = curve(learned), curve(still)
    assert rows[0]["reward"] == control[0]["reward"] < 0.6
    assert metrics["last_reward"] == rows[-1]["reward"] > 0.85
    assert metrics["last_reward"] > control[-1]["reward"] + 0.3
    assert max(row["reward"] for row in control) < 0.7
    assert max(row["kl"] for row in rows) < 5
    assert max(abs(row["kl"]) for row in control) < 1e-4
    assert rows[-1]["answer_tokens"] > 2  # it ends its answers, and does not merely end them at once


def test_a_target_steers_the_pull(studio):
    fields = {"iterations": 4, "ppo_epochs": 1, "learning_rate": 1e-2}
    near, _ = studio.practise(spec(**fields, kl={"coefficient": 0.1, "target": 0.01, "horizon": 8}))
    far, _ = studio.practise(spec(**fields, kl={"coefficient": 0.1, "target": 1e6, "horizon": 8}))
    fixed, _ = studio.practise(spec(**fields, kl={"coefficient": 0.1}))
    assert [row["kl_coefficient"] for row in curve(far)[::2]] == pytest.approx([0.1, 0.08, 0.064, 0.0512])
    assert {row["kl_coefficient"] for row in curve(fixed)} == {0.1}
    pulls = [row["kl_coefficient"] for row in curve(near)[::2]]
    errors = [min(max(row["kl"] / 0.01 - 1, -0.2), 0.2) for row in curve(near)[::2]]
    assert pulls[0] == 0.1
    assert pulls[1:] == pytest.approx([pull * (1 + error) for pull, error in zip(pulls[:-1], errors[:-1], strict=True)])


# -- what a result depends on


@pytest.mark.parametrize("more", [{}, pytest.param(MODEL, marks=pytest.mark.slow)], ids=["rules", "reward model"])
def test_four_answers_at_once_equal_one_answer_four_times(studio, more):
    reward = studio.reward_model() if more else None
    outs = {}
    for size in (4, 1):
        outs[size], metrics = studio.practise(spec(**more), reward=reward, run=studio.run(micro_batch=size))
        assert (metrics["micro_batch"], metrics["accumulation"]) == (size, 4 // size)
    assert distance(outs[4], outs[1]) < 1e-4  # a fiftieth of one step of 5e-3
    for one, two in zip(curve(outs[4]), curve(outs[1]), strict=True):
        assert one.keys() == two.keys()
        assert one == pytest.approx(two, abs=2e-4)


def test_gradient_checkpointing_changes_nothing(studio):
    runs = [studio.run(gradient_checkpointing=on) for on in (False, True)]
    one, two = (studio.practise(spec(**MODEL), reward=studio.reward_model(), run=run)[0] for run in runs)
    assert distance(one, two) < 1e-6
    assert [row["loss"] for row in curve(one)] == pytest.approx([row["loss"] for row in curve(two)], abs=1e-6)


@pytest.mark.parametrize(
    ("sft", "method"),
    [
        ("lora", "lora"),
        ("qlora", "qlora"),
        *(pytest.param(*names, marks=pytest.mark.slow) for names in (("full", "dora"), ("lora_plus",) * 2, ("rslora",) * 2)),
    ],
)
def test_every_low_rank_method_starts_at_a_ratio_of_one_and_leaves_a_policy_that_loads(studio, sft, method):
    policy = studio.sft(sft)
    short = [{"rule": "length", "unit": "characters", "at_most": 8}]
    out, metrics = studio.practise(spec(method, rewards=short), policy)
    rows = curve(out)
    assert (len(rows), metrics["steps"]) == (8, 8)
    assert {row["ratio_start"] for row in rows} == {0.0}
    assert rows[0]["kl"] == 0.0
    assert rows[0]["approx_kl"] == 0.0
    assert rows[-1]["kl"] != 0.0
    record = read_record(out)
    assert (record.chain[-1].stage, record.chain[-1].method) == ("ppo", method)
    assert record.quantization == ("nf4" if method == "qlora" else None)
    assert sorted(path.name for path in (out / "adapters").iterdir()) == [record.chain[-1].adapter]
    ids = torch.tensor([[5, 6, 7, 8]])
    before, after = (load(folder, studio.run()).model(input_ids=ids).logits for folder in (policy, out))
    assert 0 < float((before - after).detach().abs().max()) < 5


def test_lora_plus_lets_b_learn_faster_in_both_adapters_and_the_value_model_has_its_own_rate(studio, monkeypatch):
    made = []
    real = ppo._optimizer
    monkeypatch.setattr(ppo, "_optimizer", lambda *given: made.append(real(*given)) or made[-1])
    studio.practise(spec("lora_plus", learning_rate=1e-3, value_learning_rate=4e-3, schedule="constant", warmup=0.0))
    rates = sorted({group["initial_lr"] for group in made[0].param_groups})
    assert rates == pytest.approx([1e-3, 4e-3, 16e-3, 64e-3])
    counted = sum(p.numel() for group in made[0].param_groups for p in group["params"])
    assert counted == 2 * 4096 + 33  # two adapters of the tiny model, and a head of 32 weights and a bias


# -- the curve


def test_the_curve_has_a_row_per_step_with_the_numbers_worth_watching(studio):
    seen = []
    fields = {"rewards": [{"rule": "finished"}, {"rule": "length", "unit": "tokens", "at_most": 3, "weight": 0.5}]}
    run = studio.run(progress=seen.append)
    out, metrics = studio.practise(spec(**fields, missing_eos_penalty=0.25), data=True, run=run)
    rows = curve(out)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["iteration"] for row in rows] == [0.0] * 4 + [1.0] * 4
    wanted = {
        "step", "loss", "learning_rate", "grad_norm", "iteration", "answers", "reward", "reward_std", "kl", "kl_coefficient",
        "entropy", "policy_loss", "value_loss", "value_grad_norm", "explained_variance", "clip_fraction", "approx_kl",
        "answer_tokens", "finished", "ratio_start", "skipped", "reward_of/finished", "reward_of/length",
    }  # fmt: skip
    assert all(wanted <= row.keys() for row in rows)
    assert [set(row) - wanted for row in rows] == [{"heldout_logp"}] * 4 + [set()] * 4
    for row in rows:
        cut = 1 - row["finished"]
        assert row["finished"] == row["reward_of/finished"]
        assert row["reward"] == pytest.approx(row["finished"] + 0.5 * row["reward_of/length"] - 0.25 * cut)
        assert row["loss"] == pytest.approx(row["policy_loss"] + row["value_loss"], abs=1e-6)
    assert json.loads((run.work / "training.json").read_text())[-1]["reward"] == rows[-1]["reward"]
    assert {"reward", "kl", "entropy", "value_loss", "answer_tokens"} <= seen[-1].values.keys()
    assert any("rollout" in event.values for event in seen)
    for end, row in (("first", rows[0]), ("last", rows[-1])):
        assert all(metrics[f"{end}_{name}"] == row[name] for name in ("reward", "kl", "answer_tokens"))
    assert metrics["first_heldout_logp"] == rows[0]["heldout_logp"]
    assert (metrics["answers"], metrics["iterations"]) == (16, 2)


@pytest.mark.slow
def test_enough_movement_leaves_the_rest_of_an_iteration_out(studio):
    run = studio.run()
    out, _ = studio.practise(spec(learning_rate=0.05, warmup=0.0, early_stop=1e-4), run=run)
    rows = curve(out)
    skipped = [row["skipped"] for row in rows]
    assert skipped[:4] == [0.0, 1.0, 1.0, 1.0]  # the first minibatch moves it, the second sees that and is left out
    assert rows[1]["approx_kl"] > 1e-4
    assert [row["grad_norm"] for row in rows if row["skipped"]] == [0.0] * sum(map(int, skipped))
    assert rows[4]["skipped"] == 0.0
    once, _ = studio.practise(spec(learning_rate=0.05, warmup=0.0, early_stop=1e-4, iterations=1, schedule="constant"))
    wanted, _ = studio.practise(
        spec(learning_rate=0.05, warmup=0.0, iterations=1, schedule="constant", early_stop=1e-4, ppo_epochs=1)
    )
    assert distance(once, wanted) == 0.0  # what is left out moves nothing


@pytest.mark.slow
def test_the_entropy_bonus_keeps_the_policy_broader(studio):
    fields = {"iterations": 4, "learning_rate": 1e-2}
    plain, _ = studio.practise(spec(**fields))
    broad, _ = studio.practise(spec(**fields, entropy=1.0))
    assert curve(broad)[0]["entropy"] == curve(plain)[0]["entropy"]
    assert curve(broad)[-1]["entropy"] > curve(plain)[-1]["entropy"] + 0.02


def test_scores_of_the_reward_model_are_normalised_clipped_and_weighted(studio):
    reward = studio.reward_model()
    free, _ = studio.practise(spec(iterations=1, rewards=[{"rule": "reward_model", "clip": None}]), reward=reward)
    held, _ = studio.practise(spec(iterations=1, rewards=[{"rule": "reward_model", "clip": 1e-3, "weight": 3.0}]), reward=reward)
    assert abs(curve(free)[0]["reward"]) > 0.05
    assert abs(curve(held)[0]["reward_of/reward_model"]) <= 1e-3
    assert curve(held)[0]["reward"] == pytest.approx(3 * curve(held)[0]["reward_of/reward_model"])


# -- a run that goes wrong


def test_a_policy_too_far_from_the_sft_policy_ends_the_run_and_the_curve_is_kept(studio):
    seen = []
    run = studio.run(progress=seen.append)
    asked = spec(iterations=6, learning_rate=0.05, warmup=0.0, kl={"coefficient": 0.0}, stop={"kl": 0.5})
    with pytest.raises(
        GateError, match=r"^ppo: iteration \d: the policy is \d+\.\d\d nats per answer .* than stop\.kl 0\.5; raise"
    ):
        studio.practise(asked, run=run)
    rows = json.loads((run.work / "training.json").read_text())
    assert all(row["kl"] <= 0.5 for row in rows[:-1])
    assert rows[-1]["kl"] > 0.5
    assert rows[-1]["step"] == 4 * rows[-1]["iteration"]
    assert seen[-1].values["kl"] == rows[-1]["kl"]


def test_a_reward_that_is_gamed_ends_the_run(studio):
    asked = spec(
        iterations=12, rollout_batch=16, global_batch=8, learning_rate=2e-2, warmup=0.0, kl={"coefficient": 0.0},
        stop={"fall": 0.3, "every": 2, "kl": None},
    )  # fmt: skip
    with pytest.raises(GateError, match=r"the reward rose by .* while held-out chosen answers fell from -.* the reward is being"):
        studio.practise(asked, data=True)


def test_no_number_ends_the_run_before_it_reaches_the_weights(studio, monkeypatch):
    run = studio.run()
    real = ppo.policy_loss
    calls = iter(range(100))

    def broken(*given, **more):
        found = real(*given, **more)
        return found._replace(loss=found.loss * (math.nan if next(calls) == 3 else 1.0))

    monkeypatch.setattr(ppo, "policy_loss", broken)
    with pytest.raises(GateError, match="ppo: iteration 0: policy loss is nan, so the run is ended; lower learning_rate"):
        studio.practise(spec(), run=run)
    assert json.loads((run.work / "training.json").read_text())[-1]["step"] == 3


def row(iteration, reward, heldout=None, kl=0.0):
    more = {} if heldout is None else {"heldout_logp": heldout}
    return {"iteration": float(iteration), "reward": reward, "reward_std": 1.0, "answers": 16.0, "kl": kl, **more}


def test_how_far_the_reward_has_risen_and_how_sure_that_is():
    rows = [row(i, reward) for i, reward in enumerate((0.0, 1.0, 5.0, 2.0, 3.0))]
    assert stops.risen(rows, 2) == pytest.approx((2.0, math.sqrt(4 / 16 / 4)))  # 2.5 - 0.5; four means of 16 answers
    assert stops.risen(rows, 99) == stops.risen(rows, 2)
    assert stops.risen(rows[:1], 5) == pytest.approx((0.0, math.sqrt(2 / 16)))


@pytest.mark.parametrize(
    ("last", "heldout", "fall", "ends"),
    [
        (2.0, -2.6, 0.5, True),
        (2.0, -2.4, 0.5, False),  # not fallen enough
        (0.5, -2.6, 0.5, False),  # fallen, but the reward has not risen by more than chance: 0.5 at an error of 0.35
        (2.0, -2.6, None, False),
        (2.0, None, 0.5, False),
    ],
)
def test_it_is_gamed_where_the_reward_rises_and_held_out_answers_fall(last, heldout, fall, ends):
    rows = [row(0, 0.0, heldout=-2.0), row(1, last)]
    stop = StopSpec(fall=fall)
    if ends:
        with pytest.raises(GateError, match=r"rose by 2\.000 \(standard error 0\.354\) .* fell from -2\.000 to -2\.600 nats"):
            stops.check_fall(stop, rows, heldout)
    else:
        stops.check_fall(stop, rows, heldout)


def test_a_policy_that_answers_otherwise_in_training_than_in_use_is_noticed(studio, monkeypatch):
    real = ppo.at_end
    monkeypatch.setattr(ppo, "at_end", lambda rows, device: real([part - 0.01 for part in rows], device))
    with pytest.raises(AlignError, match=r"PPO did not start where it sampled: a ratio of iteration 0 is 0\.01"):
        studio.practise(spec())


# -- what is refused


def test_an_answer_must_have_room_to_end():
    with pytest.raises(ValueError, match="min_new_tokens 6 leaves no room to stop within max_new_tokens 6"):
        spec(min_new_tokens=6)


def test_what_cannot_be_is_said_before_anything_is_sampled(studio):
    with pytest.raises(SpecError, match="rewards name the reward model, and the input reward_model is missing"):
        studio.practise(spec(**MODEL))
    with pytest.raises(SpecError, match="ppo: runs in one process"):
        studio.practise(spec(), run=Run(studio.fresh("w"), studio.shop.models, Execution(device="cpu", processes=2)))
    with pytest.raises(DataError, match="no reward model but a policy"):
        studio.practise(spec(**MODEL), reward=studio.sft())
    with pytest.raises(DataError, match="prompts: none of 6 rows can be trained on"):
        studio.practise(spec(max_length=8))
    with pytest.raises(DataError, match=r"the model has 256 positions; lower max_length"):
        studio.practise(spec(max_length=400, max_new_tokens=250))
    with pytest.raises(DataError):
        studio.practise(spec(rewards=[{"rule": "exact_number"}]))
