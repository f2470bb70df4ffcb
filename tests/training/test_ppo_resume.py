"""kill -9 of a PPO run in the rollout, in the update, in saving: started again it ends in the bytes of an unbroken one."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nursery
import practising
import pytest
from practising import curve, spec

from tasks.core.contract import Execution, Run
from tasks.core.files import tree
from tasks.core.launch import environment
from tasks.core.spec import to_json
from tasks.training.rollout import TransformersEngine

pytestmark = [pytest.mark.filterwarnings(warning) for warning in practising.WARNINGS]
ASKED = {
    "iterations": 3, "rewards": [{"rule": "reward_model"}, {"rule": "finished"}], "stop": {"every": 2, "pairs": 4},
    "kl": {"coefficient": 0.1, "target": 0.05, "horizon": 16}, "early_stop": 0.002, "learning_rate": 1e-2,
}  # fmt: skip
"""twelve steps with everything that has a state: a steered pull, looks at held-out pairs, updates that are left out"""
EVERY = 3
"""steps between checkpoints, so that they fall into the middle of iterations and at their ends"""
KILLS = {  # place and how often it is passed before
    "rollout": 14,  # in the middle of the third iteration's answers: six tokens in each
    "keeping": 3,  # the second iteration's rollout: two folders and files a time
    "update": 17,  # the ninth of twelve steps, its second micro-batch, if none were left out
    "saving": 7,  # the third checkpoint's optimiser is there, its scheduler is not: three files a time
}


def payload(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in tree(folder)}


@pytest.fixture(scope="module")
def runs(studio):
    """Work folders of a run that was not killed, and of one killed at each place and started again; and how each child ended."""
    policy, reward = studio.sft("lora"), studio.reward_model("lora")
    execution = Execution(device="cpu", checkpoint_every=EVERY, threads=1, micro_batch=2)
    works, children = {}, []
    for name in ("whole", *KILLS):
        work = works[name] = studio.fresh(name)
        (work / "out").mkdir()
        job = {
            "job": "ppo", "spec": to_json(spec(**ASKED)), "out": str(work / "out"), "work": str(work),
            "inputs": {key: str(value) for key, value in studio.inputs(policy, reward=reward, data=True).items()},
            "models": str(studio.shop.models), "execution": execution.model_dump(),
        }  # fmt: skip
        (work / "job.json").write_text(json.dumps(job))
        children += [(work, name, KILLS[name]), (work, None, 0)] if name in KILLS else [(work, None, 0)]
    given = json.dumps([(str(work), place, passed) for work, place, passed in children])
    run = Run(works["whole"], studio.shop.models, execution)
    done = subprocess.run([sys.executable, nursery.__file__, given], env=environment(run), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert len(ended) == len(children)
    return works, {name: ended[2 * i + 1 : 2 * i + 3] for i, name in enumerate(KILLS)}, ended[0]


def test_the_unbroken_run_has_everything_that_a_resumed_one_could_get_wrong(runs):
    works, _, code = runs
    assert code == 0, (works["whole"] / "log.txt").read_text()
    rows = curve(works["whole"] / "out")
    assert len(rows) == 12
    assert len({row["kl_coefficient"] for row in rows}) == 3
    assert [i for i, row in enumerate(rows) if "heldout_logp" in row] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert 0 < sum(row["skipped"] for row in rows) < 9


@pytest.mark.parametrize("place", list(KILLS))
def test_killed_anywhere_it_goes_on_and_ends_in_the_same_bytes(runs, place):
    works, ended, _ = runs
    log = (works[place] / "log.txt").read_text()
    assert ended[place] == [-signal.SIGKILL, 0], log
    assert "resumed at" in log
    assert payload(works[place] / "out") == payload(works["whole"] / "out")


def test_a_kill_in_the_update_does_not_sample_again(runs):
    works, _, _ = runs
    names = ["000000.safetensors", "000001.safetensors", "000002.safetensors"]
    for work in works.values():
        assert sorted(path.name for path in (work / "rollouts").iterdir()) == names
    whole, killed = (work / "rollouts" / names[-1] for work in (works["whole"], works["update"]))
    assert whole.read_bytes() == killed.read_bytes()


def test_a_run_taken_up_in_the_middle_of_an_iteration_or_at_its_start_samples_nothing_that_is_there(studio, monkeypatch):
    policy, reward = studio.sft("lora"), studio.reward_model("lora")
    run = studio.run(checkpoint_every=2, micro_batch=2)
    asked = spec(**ASKED)
    whole, _ = studio.practise(asked, policy, reward=reward, data=True, run=run)
    sampled = []
    real = TransformersEngine.answers
    monkeypatch.setattr(TransformersEngine, "answers", lambda self, *given: sampled.append(1) or real(self, *given))
    # two checkpoints are kept, 10 and 12: at step 10 of 12 the third iteration is in hand, and was sampled before
    shutil.rmtree(run.work / "checkpoints" / "checkpoint-12")
    resumed, metrics = studio.practise(asked, policy, reward=reward, data=True, run=run)
    assert metrics["resumed_at_step"] == 10
    assert sampled == []
    assert payload(resumed) == payload(whole)
    shutil.rmtree(run.work / "checkpoints")
    again, metrics = studio.practise(asked, policy, reward=reward, data=True, run=run)
    assert metrics["resumed_at_step"] == 0
    assert len(sampled) == 2  # the first iteration's answers are those of the SFT policy, and still there
    assert payload(again) == payload(whole)
