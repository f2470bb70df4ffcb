"""The profile stage: every model of it is used and timed in turn, whatever its method; no test here says how fast."""

import json

import pytest
import tiny

from tasks.core.contract import Execution
from tasks.core.errors import SpecError
from tasks.profile import PROFILE_FILE, ProfileSpec
from tasks.train import SftSpec

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def made(folder):
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def trained(bench, tmp_path_factory):
    """Method -> folder of a policy that it trained for one step."""
    from tasks.core.contract import Run
    from tasks.training import sft

    policies = {}
    for name in ("full", "lora", "prefix_tuning"):
        folder = tmp_path_factory.mktemp(name)
        run = Run(made(folder / "work"), bench.models, Execution(device="cpu"))
        (bench.instructions / "train.parquet").write_bytes((bench.instructions / "heldout.parquet").read_bytes())
        spec = SftSpec.model_validate({"method": tiny.METHOD[name], "max_steps": 1, "global_batch": 2})
        sft.run(spec, {"policy": bench.policy, "data": bench.instructions}, made(folder / "out"), run)
        policies[name] = folder / "out"
    return policies


@pytest.mark.parametrize("method", ["full", "lora", "prefix_tuning"])
def test_every_round_times_every_model_and_memory_counts_each_alone(bench, trained, run, out, method):
    from tasks.training import profile

    spec = ProfileSpec(prompt_tokens=20, new_tokens=3, rounds=6)
    inputs = {"base": bench.policy, "unmerged": trained[method], "prompts": bench.prompts}
    metrics = profile.run(spec, inputs, out, run)
    found = json.loads((out / PROFILE_FILE).read_text())
    assert (found["device"], found["prompt_tokens"], found["new_tokens"]) == ("cpu", 20, 3)
    assert len(found["rounds"]) == 6
    for times in found["rounds"]:
        assert {name: sorted(part) for name, part in times.items()} == {n: ["decode", "prefill"] for n in ("base", "unmerged")}
        assert min(seconds for part in times.values() for seconds in part.values()) > 0
    assert sorted(found["memory_bytes"]) == ["base", "unmerged"]
    assert sorted(metrics) == [f"{what}_seconds/{who}" for what in ("decode", "prefill") for who in ("base", "unmerged")]


def test_a_merged_model_is_timed_as_a_third(bench, trained, run, out, tmp_path):
    from tasks.merge import MergeSpec
    from tasks.training import merge, profile

    merge.run(MergeSpec(prompts=2), {"policy": trained["lora"], "prompts": bench.prompts}, made(tmp_path / "merged"), run)
    inputs = {"base": bench.policy, "unmerged": trained["lora"], "merged": tmp_path / "merged", "prompts": bench.prompts}
    profile.run(ProfileSpec(prompt_tokens=20, new_tokens=2, rounds=6), inputs, out, run)
    assert list(json.loads((out / PROFILE_FILE).read_text())["rounds"][0]) == ["base", "merged", "unmerged"]


def test_the_answers_go_on_where_they_would_end_so_that_all_models_write_equally_much(bench, trained, run, out, monkeypatch):
    from tasks.training import data, profile

    lengths: list[int] = []
    decode = profile.decode

    def counted(*given):
        answers = decode(*given)
        lengths.extend(len(answer) for answer in answers)
        return answers

    monkeypatch.setattr(profile, "decode", counted)
    monkeypatch.setattr(data, "stop_ids", lambda tokenizer, model: set(range(len(tokenizer) - 2)))  # all words but two end it
    inputs = {"base": bench.policy, "unmerged": trained["lora"], "prompts": bench.prompts}
    profile.run(ProfileSpec(prompt_tokens=20, new_tokens=4, rounds=6), inputs, out, run)
    assert set(lengths) == {4}


def test_a_prompt_the_model_has_no_room_for_is_refused(bench, trained, run, out):
    from tasks.training import profile

    inputs = {"base": bench.policy, "unmerged": trained["prefix_tuning"], "prompts": bench.prompts}
    with pytest.raises(SpecError, match="exceed the model's 256 positions; lower prompt_tokens"):
        profile.run(ProfileSpec(prompt_tokens=250, new_tokens=4, rounds=6), inputs, out, run)
