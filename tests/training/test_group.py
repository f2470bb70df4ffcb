"""GRPO and RLOO: start at the reference, do not depend on the cut, resume to the same bytes, learn what is rewarded."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny import write_rows

from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError, GateError, Killed, SpecError
from tasks.core.files import tree
from tasks.core.launch import run_child
from tasks.group import GrpoSpec, RlooSpec
from tasks.policy import read_record
from tasks.training import group, grpo, rloo
from tasks.training.data import Encoder
from tasks.training.models import load
from tasks.training.reward import score_texts
from tasks.training.rewarder import Rewarder

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .use_reentrant. parameter"),
]
SPECS = {"grpo": GrpoSpec, "rloo": RlooSpec}
JOBS = {"grpo": grpo.run, "rloo": rloo.run}
HAS_E = {"rule": "regex", "pattern": "e"}


def spec(job, method="lora", **more):
    fields = {
        "method": tiny.METHOD[method] if isinstance(method, str) else method,
        "rewards": [{"rule": "regex", "pattern": "[aeiou]", "weight": 2.0}, {"rule": "finished"}],
        "iterations": 3, "rollout_batch": 16, "samples": 4, "global_batch": 8, "max_new_tokens": 8, "max_length": 64,
        "learning_rate": 1e-3, "warmup": 0, "schedule": "constant",
    }  # fmt: skip
    return SPECS[job].model_validate({**fields, **more})


@pytest.fixture(scope="module")
def practise(shop, tmp_path_factory):
    def run(job, given, policy=None, work=None, inputs=None, **execution):
        out = tmp_path_factory.mktemp("out")
        here = Run(work or tmp_path_factory.mktemp("work"), shop.models, Execution(device="cpu", **execution))
        return out, JOBS[job](given, {"policy": policy or shop.policy, "prompts": shop.preferences, **(inputs or {})}, out, here)

    return run


def curve(out):
    return json.loads((out / "training.json").read_text())


def payload(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in tree(folder)}


def distance(one, two):
    a, b = (load_file(next(out.glob("adapters/*/adapter_model.safetensors"))) for out in (one, two))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("method", ["lora", "full", "qlora", "dora"])
@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_it_starts_at_its_reference_and_moves(practise, sft_policies, job, method):
    out, metrics = practise(job, spec(job, method), sft_policies(method))
    assert abs(metrics["first_step_kl"]) < 1e-6
    assert metrics["start"] == {"full": "full"}.get(method, "continue")
    rows = curve(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    measured = {"reward", "reward_of/regex", "reward_of/finished", "entropy", "kl", "clip_fraction", "answer_tokens", "finished"}
    assert measured <= rows[0].keys()
    assert (metrics["rows"], metrics["rows_dropped"], metrics["iterations"]) == (32, {}, 3)
    assert metrics["last_kl"] != 0


@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_a_fresh_adapter_starts_on_the_merged_policy_and_its_reference_is_that(practise, sft_policies, job):
    out, metrics = practise(job, spec(job, {"name": "lora", "rank": 8}), sft_policies("lora"))
    assert (metrics["start"], read_record(out).adapters) == ("fresh", ["0-sft", f"1-{job}"])
    assert abs(metrics["first_step_kl"]) < 1e-6


@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_micro_batches_and_updates_do_not_change_the_outcome(practise, sft_policies, job):
    given = spec(job, updates=2, samples=2)
    done = {size: practise(job, given, sft_policies("lora"), micro_batch=size) for size in (8, 1)}
    assert (done[1][1]["micro_batch"], done[1][1]["accumulation"]) == (1, 8)
    assert len(curve(done[8][0])) == 12
    assert distance(done[8][0], done[1][0]) < 5e-5
    for one, eight in zip(*(curve(done[size][0]) for size in (1, 8)), strict=True):
        for name in ("loss", "reward", "kl", "entropy", "clip_fraction"):
            assert one.get(name, 0) == pytest.approx(eight.get(name, 0), abs=1e-4), name


@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_a_resumed_run_equals_the_unbroken_one(practise, sft_policies, tmp_path, job):
    given = spec(job, updates=2)  # 4 steps an iteration
    whole, _ = practise(job, given, sft_policies("lora"), work=tmp_path, checkpoint_every=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-12", "checkpoint-8"]
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-12")
    resumed, metrics = practise(job, given, sft_policies("lora"), work=tmp_path, checkpoint_every=1)
    assert metrics["resumed_at_step"] == 8
    assert payload(resumed) == payload(whole)


@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_the_first_update_is_the_papers_worked_out_slowly(shop, practise, tmp_path, monkeypatch, job):
    """Answers as they were sampled, log-probabilities one text at a time, the objective by hand, its gradient by autograd."""
    seen = {}
    plain = Rewarder.__call__

    def spy(self, numbers, answers):
        found = plain(self, numbers, answers)
        seen.update(prompts=[self.rows[n]["prompt_ids"] for n in numbers], answers=answers, rewards=found.total)
        return found

    monkeypatch.setattr(Rewarder, "__call__", spy)
    given = spec(job, "full", iterations=1, rollout_batch=8, global_batch=8, max_grad_norm=1e9)
    out, _ = practise(job, given)
    model = load(shop.policy, Run(tmp_path, shop.models, Execution(device="cpu")), trainable=True).model
    model.requires_grad_(True)
    rewards = torch.tensor(seen["rewards"]).view(2, 4)
    if job == "grpo":
        better = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    else:
        better = rewards - (rewards.sum(1, keepdim=True) - rewards) / 3
    loss = 0.0
    for prompt, answer, advantage in zip(seen["prompts"], seen["answers"], better.flatten().tolist(), strict=True):
        logp = model(torch.tensor([prompt + answer])).logits[0, :-1].log_softmax(-1)
        own = torch.stack([logp[len(prompt) - 1 + i, token] for i, token in enumerate(answer)])
        ratio = torch.exp(own - own.detach()).mean() if job == "grpo" else torch.exp((own - own.detach()).sum())
        loss = loss - advantage * ratio / 8
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in model.parameters() if p.grad is not None))
    assert curve(out)[0]["grad_norm"] == pytest.approx(norm, rel=1e-3) and norm > 1e-3
    assert curve(out)[0]["reward"] == pytest.approx(float(rewards.mean()), abs=1e-6)


@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_it_learns_what_is_rewarded(practise, job):
    """An answer should have an `e`: the share of those that do rises far above the start, and without updates it does not."""
    more = {"rewards": [HAS_E], "iterations": 24, "rollout_batch": 32, "global_batch": 32, "samples": 8, "beta": 0.02}
    more |= {"missing_eos_penalty": 0.0, "max_new_tokens": 4}
    learns, stays = (practise(job, spec(job, "full", **more, learning_rate=rate))[1] for rate in (1e-2, 1e-12))
    assert learns["last_reward"] > 0.75
    assert max(learns["first_reward"], stays["first_reward"], stays["last_reward"]) < 0.5


@pytest.fixture(scope="module")
def judge(train, sft_policies, tmp_path_factory):
    """A reward model of 3 steps, and a clearance."""
    from tasks.train import RewardSpec

    given = RewardSpec.model_validate({"method": tiny.METHOD["lora"], "max_steps": 3, "global_batch": 8, "learning_rate": 3e-3})
    model, _ = train("reward", given, sft_policies("lora"))
    clearance = tmp_path_factory.mktemp("clearance")
    (clearance / "clearance.json").write_text(json.dumps({"mean": 0.25, "std": 0.5, "answers": 8}))
    return {"reward_model": model, "clearance": clearance}


def test_the_reward_model_reads_whole_answers_and_is_normalised_and_clipped(shop, practise, sft_policies, judge, tmp_path):
    rewards = [{"rule": "reward_model", "weight": 0.5, "clip": 0.4}, {"rule": "finished", "weight": 3.0}]
    out, _ = practise("grpo", spec("grpo", rewards=rewards, iterations=1), sft_policies("lora"), inputs=judge)
    row = curve(out)[0]
    assert abs(row["reward_of/reward_model"]) <= 0.4 + 1e-6
    expected = 0.5 * row["reward_of/reward_model"] + 3 * row["finished"] - 1 * (1 - row["finished"])
    assert row["reward"] == pytest.approx(expected, abs=1e-5)


def test_what_an_answer_is_worth_is_the_sum_of_its_parts(shop, judge, tmp_path):
    loaded = load(judge["reward_model"], Run(tmp_path, shop.models, Execution(device="cpu")), task="reward")
    encoder = Encoder(loaded.tokenizer, loaded.model)

    def scores(texts, batch):
        from tasks.training.data import scored_ids

        return score_texts(loaded.model, encoder, [scored_ids(encoder, *text) for text in texts], batch=batch)

    given = spec("grpo", rewards=[{"rule": "reward_model", "weight": 2.0, "clip": None}, HAS_E, {**HAS_E, "weight": -1.0}])
    rows = [{"id": "a", "prompt": [{"role": "user", "content": "red"}], "reference": None}]
    answers = [[*encoder.ids("yes please"), *sorted(encoder.stops)[:1]], encoder.ids("cat")]
    rewarder = Rewarder(given, encoder, rows, SimpleNamespace(scores=scores), mean=0.25, std=0.5)
    found = rewarder([0, 0], answers)
    raw = scores([(rows[0]["prompt"], "yes please"), (rows[0]["prompt"], "cat")], 1)
    assert [(answer.text, answer.finished) for answer in found.answers] == [("yes please", True), ("cat", False)]
    assert found.entries["reward_of/regex-2"] == found.entries["reward_of/regex-3"] == [1.0, 0.0]
    expected = [2 * (raw[0] - 0.25) / 0.5 + 1 - 1, 2 * (raw[1] - 0.25) / 0.5 - 1]
    assert found.total == pytest.approx(expected, abs=1e-5)
    broken = SimpleNamespace(scores=lambda texts, batch: [float("nan")] * len(texts))
    with pytest.raises(GateError, match="the reward of an answer to prompt a is no number"):
        Rewarder(given, encoder, rows, broken)([0, 0], answers)


def test_a_reward_model_that_is_not_there_and_references_that_are_not_are_refused(practise, sft_policies):
    with pytest.raises(SpecError, match="grpo: rewards name the reward model, and the input reward_model is missing"):
        practise("grpo", spec("grpo", rewards=[{"rule": "reward_model"}]), sft_policies("lora"))
    with pytest.raises(DataError, match="exact_number needs a number to compare with"):
        practise("rloo", spec("rloo", rewards=[{"rule": "exact_number"}]), sft_policies("lora"))


@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_a_policy_that_runs_away_is_stopped(practise, sft_policies, job):
    with pytest.raises(GateError, match=rf"{job}: step \d+: the policy is .* nats per token .* more than stop_kl 1e-07"):
        practise(job, spec(job, "full", stop_kl=1e-7, learning_rate=3e-2, iterations=8), sft_policies("full"))


def test_without_a_pull_there_is_no_reference_and_no_kl(practise, sft_policies):
    out, metrics = practise("grpo", spec("grpo", beta=0.0), sft_policies("lora"))
    assert metrics["first_step_kl"] is None
    assert all("kl" not in row for row in curve(out))


def test_prompts_of_their_own_are_used_and_those_without_room_are_counted(practise, sft_policies, tmp_path):
    rows = [
        {"id": f"{i}", "conversation": "c", "task": None, "prompt": [{"role": "user", "content": "red " * n}], "reference": None}
        for i, n in enumerate((1, 2, 3, 60))
    ]
    inputs = {"prompts": write_rows(tmp_path, "prompts", rows)}
    with pytest.raises(DataError, match="1 of 4 rows would be left out"):
        practise("grpo", spec("grpo"), sft_policies("lora"), inputs=inputs)
    _, metrics = practise("grpo", spec("grpo", dropped_budget=0.3), sft_policies("lora"), inputs=inputs)
    assert metrics["rows_dropped"] == {"prompts without room for an answer in max_length": 1}


@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_groups_must_fill_a_rollout(job):
    with pytest.raises(ValueError, match="rollout_batch 16 is no multiple of samples 3"):
        spec(job, samples=3)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        spec(job, samples=1)
    assert group.steps_per_iteration(spec(job, updates=3)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_two_processes_equal_one(shop, practise, sft_policies, tmp_path, job):
    given = spec(job, updates=2, iterations=1)
    alone, one = practise(job, given, sft_policies("lora"))
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    run = Run(work, shop.models, Execution(device="cpu", processes=2, threads=1))
    two = run_child(job, given, {"policy": sft_policies("lora"), "prompts": shop.preferences}, out, run)
    assert (two["processes"], two["micro_batch"], two["accumulation"]) == (2, 4, 1)
    assert two["first_reward"] == pytest.approx(one["first_reward"], abs=1e-6)
    assert curve(out)[0]["grad_norm"] == pytest.approx(curve(alone)[0]["grad_norm"], rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["grpo", "rloo"])
def test_a_child_killed_in_the_middle_of_an_iteration_ends_in_the_same_bytes(shop, practise, sft_policies, tmp_path, job):
    given = spec(job, updates=2, iterations=4)  # 4 steps an iteration
    whole, _ = practise(job, given, sft_policies("lora"), checkpoint_every=4)
    inputs = {"policy": sft_policies("lora"), "prompts": shop.preferences}
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()

    def kill(progress):
        if progress.step >= 10 and progress.total == 16 and "rollout" not in progress.values:
            found = next(p for p in Path("/proc").iterdir() if p.name.isdigit() and _works_in(p, work))
            os.kill(int(found.name), signal.SIGKILL)

    execution = Execution(device="cpu", checkpoint_every=4, threads=1)
    with pytest.raises(Killed):
        run_child(job, given, inputs, out, Run(work, shop.models, execution, progress=kill))
    metrics = run_child(job, given, inputs, out, Run(work, shop.models, execution))
    assert metrics["resumed_at_step"] in (8, 12)
    assert payload(out) == payload(whole)


def _works_in(process, work):
    try:
        return (process / "cwd").readlink() == work
    except OSError:
        return False
