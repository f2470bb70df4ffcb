"""Results depend on the global batch, never on how it is cut."""

import pytest
import tiny
from safetensors.torch import load_file

from tasks.core.contract import Execution, Run
from tasks.core.errors import MachineError, SpecError
from tasks.core.launch import MICRO_BATCH, run_child
from tasks.preference import DpoSpec
from tasks.train import RewardSpec, SftSpec
from tasks.training import preflight

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SPECS = {"sft": SftSpec, "reward": RewardSpec, "dpo": DpoSpec}


def spec(job, **more):
    fields = {"method": tiny.METHOD["lora"], "max_steps": 4, "global_batch": 8, "learning_rate": 1e-3, **more}
    return SPECS[job].model_validate(fields)


def weights(out):
    return load_file(next(out.glob("adapters/*/adapter_model.safetensors")))


def distance(one, two):
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("job", ["sft", "reward", "dpo"])
def test_eight_rows_at_once_equal_one_row_eight_times(train, sft_policies, job):
    policy = None if job == "sft" else sft_policies("lora")
    outcomes = {}
    for size in (8, 1):
        out, metrics = train(job, spec(job), policy, micro_batch=size)
        assert (metrics["micro_batch"], metrics["accumulation"]) == (size, 8 // size)
        outcomes[size] = out, metrics
    assert distance(outcomes[8][0], outcomes[1][0]) < 2e-5  # a fiftieth of one step of 1e-3
    assert outcomes[8][1]["last_loss"] == pytest.approx(outcomes[1][1]["last_loss"], abs=1e-5)
    assert outcomes[8][1]["tokens"] == outcomes[1][1]["tokens"]


def test_gradient_checkpointing_changes_nothing(train):
    one, two = (train("sft", spec("sft"), gradient_checkpointing=on)[0] for on in (False, True))
    assert distance(one, two) < 1e-6


def test_a_micro_batch_that_does_not_divide_becomes_one_that_does(train, tmp_path):
    _, metrics = train("sft", spec("sft", max_steps=1), micro_batch=3, work=tmp_path)
    assert (metrics["micro_batch"], metrics["accumulation"]) == (2, 4)
    assert (tmp_path / MICRO_BATCH).read_text() == "2"  # what is halved after running out of memory


def test_a_batch_too_large_for_memory_is_cut_smaller_and_one_row_too_many_is_an_error(train, monkeypatch):
    need = {}
    real = preflight.estimate_bytes
    monkeypatch.setattr(
        preflight, "estimate_bytes", lambda model, spec, work: need.setdefault(work.rows, real(model, spec, work))
    )
    train("sft", spec("sft", max_steps=1))
    by_size = sorted(need.values())
    monkeypatch.setattr(preflight, "available_bytes", lambda run: by_size[1])
    assert train("sft", spec("sft", max_steps=1))[1]["micro_batch"] == 2
    monkeypatch.setattr(preflight, "available_bytes", lambda run: by_size[0] - 1)
    least = f"{by_size[0] / 1e9:.1f} GB"
    with pytest.raises(MachineError, match=f"one row at a time needs about {least}, {least} are free; shorten max_length"):
        train("sft", spec("sft", max_steps=1))


def test_processes_that_do_not_divide_the_batch_are_refused(train, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SpecError, match="global_batch 8 cannot be shared by 3 processes"):
        preflight.plan_batches(spec("sft"), Run(None, None, Execution(processes=3)), None, rows=8, longest=1, texts=1)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["sft", "reward", "dpo"])
def test_two_processes_equal_one(shop, train, sft_policies, tmp_path, job):
    policy = None if job == "sft" else sft_policies("lora")
    alone, one = train(job, spec(job), policy)
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    run = Run(work, shop.models, Execution(device="cpu", processes=2, threads=1))
    two = run_child(job, spec(job), shop.inputs(job, policy), out, run)
    assert (two["processes"], two["micro_batch"], two["accumulation"]) == (2, 4, 1)
    assert distance(alone, out) < 2e-5
    assert two["last_loss"] == pytest.approx(one["last_loss"], abs=1e-5)
