"""A training that was interrupted ends in the same bytes as one that was not; a torn checkpoint is never used."""

import os
import random
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import tiny

from tasks.core.contract import Execution, Run
from tasks.core.errors import Killed
from tasks.core.files import tree
from tasks.core.launch import run_child
from tasks.preference import DpoSpec
from tasks.train import RewardSpec, SftSpec
from tasks.training.checkpoints import is_complete, newest_complete

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SPECS = {"sft": SftSpec, "reward": RewardSpec, "dpo": DpoSpec}


def spec(job, method="lora", **more):
    method = {**tiny.METHOD[method], **({"dropout": 0.1} if method == "lora" else {})}
    return SPECS[job].model_validate({"method": method, "max_steps": 6, "global_batch": 8, "learning_rate": 1e-3, **more})


def payload(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in tree(folder)}


@pytest.mark.parametrize(
    ("job", "method"), [("sft", "lora"), ("reward", "lora"), ("dpo", "lora"), ("sft", "full"), ("dpo", "qlora")]
)
def test_a_resumed_run_equals_the_unbroken_one(train, sft_policies, tmp_path, job, method):
    policy = None if job == "sft" else sft_policies(method)
    whole, _ = train(job, spec(job, method), policy, work=tmp_path, checkpoint_every=2)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-6")
    resumed, metrics = train(job, spec(job, method), policy, work=tmp_path, checkpoint_every=2)
    assert metrics["resumed_at_step"] == 4
    assert payload(resumed) == payload(whole)


@pytest.fixture(scope="module")
def checkpoint(train, tmp_path_factory):
    work = tmp_path_factory.mktemp("checkpointed")
    train("sft", spec("sft", max_steps=2), work=work, checkpoint_every=1)
    return work / "checkpoints" / "checkpoint-2"


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_torn_checkpoint_is_passed_over(checkpoint, tmp_path, name, how):
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoint.parent, root)
    assert newest_complete(root, 1) == root / "checkpoint-2"
    path = root / "checkpoint-2" / name
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-20])
    assert newest_complete(root, 1) == root / "checkpoint-1"


def test_a_checkpoint_of_another_number_of_processes_is_not_complete(checkpoint):
    assert is_complete(checkpoint, 1)
    assert not is_complete(checkpoint, 2)


def test_no_folder_no_checkpoint(tmp_path):
    assert newest_complete(tmp_path / "none", 1) is None


@pytest.mark.slow
@pytest.mark.parametrize(("job", "method"), [("sft", "lora"), ("dpo", "lora"), ("sft", "p_tuning")])
def test_a_child_killed_at_any_step_goes_on_and_ends_in_the_same_bytes(shop, train, sft_policies, tmp_path, job, method):
    many = spec(job, method, max_steps=30)
    policy = None if job == "sft" else sft_policies("lora")
    whole, _ = train(job, many, policy, checkpoint_every=5)
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    deadly = random.Random(job).randint(6, 25)

    def kill_at(progress):
        if progress.step >= deadly and progress.total == 30:
            pid = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _works_in(p, work))
            os.kill(pid, signal.SIGKILL)

    run = Run(work, shop.models, Execution(device="cpu", checkpoint_every=5, threads=1), progress=kill_at)
    with pytest.raises(Killed):
        run_child(job, many, shop.inputs(job, policy), out, run)
    steps = []
    run = Run(work, shop.models, run.execution, progress=lambda progress: steps.append(progress.step))
    metrics = run_child(job, many, shop.inputs(job, policy), out, run)
    assert 5 <= metrics["resumed_at_step"] <= 25
    assert all(b > a for a, b in pairwise(steps))
    assert payload(out) == payload(whole)


def _works_in(process, work):
    try:
        return (process / "cwd").readlink() == work
    except OSError:
        return False
