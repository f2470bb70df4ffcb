"""A plan whose answers vLLM writes: refused when it is loaded where that cannot be, and before training where nobody serves."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.execute import look, require_vllm
from flows.task_pipeline import load
from tasks.core.errors import MachineError, SpecError
from tasks.core.spec import canonical

PPO = Path(__file__).parents[2] / "flows" / "plans" / "ppo-lora.yaml"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            ["policy.method={name: dora}"],
            "policy: engine vllm: .* method dora leaves none; use one of lora, qlora, lora_plus, rslora",
        ),
        (
            ["policy.method={name: lora, rank: 8}"],
            "policy: engine vllm: the lora adapter would lie on the lora adapter of the stage",
        ),
        (["policy.temperature=0.001"], r"policy: engine vllm: vLLM samples at temperatures of 0\.01 and more"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_when_the_plan_is_loaded(asked, says):
    load(PPO, asked)
    with pytest.raises(SpecError, match=says):
        load(PPO, [*asked, "policy.engine=vllm"])


def test_a_policy_on_a_whole_sft_model_may_be_served():
    assert load(PPO, ["policy.engine=vllm", "sft.method={name: full}"]).policy.engine == "vllm"


def test_a_server_that_nobody_named_stops_a_run_before_it_trains(tmp_path, monkeypatch):
    store = f"store.root={tmp_path / 'store'}"
    steps = look(load(PPO, ["policy.engine=vllm", store])).values()
    monkeypatch.delenv("ALIGN_VLLM_URL", raising=False)
    with pytest.raises(MachineError, match="a vLLM server is asked for and ALIGN_VLLM_URL is not set"):
        require_vllm(steps)
    require_vllm(step for step in steps if step.name != "ppo")
    require_vllm(look(load(PPO, [store])).values())
    monkeypatch.setenv("ALIGN_VLLM_URL", "http://127.0.0.1:9/v1")
    require_vllm(steps)


def test_a_built_policy_that_is_to_be_built_afresh_needs_its_server_before_anything_runs(tmp_path, monkeypatch):
    import flows.align

    plan, began = load(PPO, ["policy.engine=vllm", f"store.root={tmp_path / 'store'}"]), []
    built = {name: replace(step, artifact=SimpleNamespace()) for name, step in look(plan).items()}
    monkeypatch.delenv("ALIGN_VLLM_URL", raising=False)
    monkeypatch.setattr(flows.align, "look", lambda plan: built)
    monkeypatch.setattr(flows.align, "recorded", lambda *asked: nullcontext())
    monkeypatch.setattr(flows.align, "Reviewing", lambda *asked: SimpleNamespace(hear=lambda: None))
    monkeypatch.setattr(flows.align, "pipeline", lambda *asked: began.append("pipeline"))
    with pytest.raises(MachineError, match="a vLLM server is asked for and ALIGN_VLLM_URL is not set"):
        flows.align.align.fn(plan, "ppo")
    assert began == []
    with pytest.raises(KeyError, match="release"):  # nothing was built by what stands in for the pipeline
        flows.align.align.fn(plan, "sft")
    assert began == ["pipeline"]


def test_a_plan_that_does_not_ask_for_it_asks_what_it_asked_before_there_was_an_engine():
    assert "engine" not in canonical(load(PPO, []).policy)
