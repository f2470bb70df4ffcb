"""Plans without reward model and preferences: what is built from what, what is refused, and a run to a release."""

from pathlib import Path

import pytest
import tiny
from laid_out import laid_out
from smoke import ended, write_smoke

from flows.compare import branches
from flows.loading import load
from flows.plan import Plan
from tasks.core.errors import SpecError
from tasks.policy import read_record

PLANS = Path(__file__).parents[2] / "flows" / "plans"
SFT = PLANS / "sft.yaml"
PLAN = """
name: smoke
model: {base: ./tiny}
data:
  instructions: {sources: [instructions.jsonl], heldout: 0.3}
  prompts: {sources: [prompts.jsonl]}
sft: {max_steps: 2, global_batch: 4, max_length: 1024}
evaluation:
  answers: {max_new_tokens: 4}
gates:
  - {metric: answer_perplexity_ratio, at_most: 3}
release: {channel: champion}
execution: {device: cpu, parallel: 2, threads: 1, checkpoint_every: 1}
"""


@pytest.fixture
def t5(tmp_path):
    """A plan of SFT on a T5."""
    tiny.write_model(tmp_path / "tiny", kind="t5")
    for name in ("instructions", "prompts"):
        (tmp_path / f"{name}.jsonl").write_text("")
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def test_the_base_is_the_parent_where_nothing_comes_after_sft():
    stages = laid_out(load(SFT))
    assert not {"reward", "dpo", "rewards", "curate-preferences"} & stages.keys()
    assert stages["merge"]["policy"] == "sft"
    assert (stages["scores-candidate"]["policy"], stages["scores-parent"]["policy"]) == ("merge", "base")
    assert stages["verdict"].keys() == {"scores_candidate", "scores_parent", "scores_base", "metrics"}
    assert stages["release"]["policy"] == "merge"


def test_with_pre_training_the_parent_is_what_came_out_of_it():
    stages = laid_out(load(SFT, ["pretrain={max_steps: 1}", "data.corpus={sources: [../../datasets/samples/text.jsonl]}"]))
    assert stages["scores-parent"]["policy"] == "pretrain"


def test_methods_are_compared_without_pairs():
    stages = laid_out(load(SFT, ["compare={methods: [lora, ia3]}"]), branches)
    assert stages["scores-lora"].keys() == {"policy", "instructions", "texts"}


def test_a_plan_survives_the_trip_through_json_that_a_deployment_makes():
    plan = load(SFT)
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["policy={max_steps: 1}"], "policy: dpo needs data.preferences"),
        (["reward={max_steps: 1}"], "reward needs data.preferences"),
        (["gates.0={metric: reward_win_rate, at_least: 0.5}"], "gate reward_win_rate: it needs a reward model"),
        (["gates.0={metric: preference_accuracy, at_least: 0.5}"], "gate preference_accuracy: it needs pairs"),
        (["gates.0={metric: length_accuracy, at_most: 0.5}"], "gate length_accuracy: it needs pairs"),
        (["data.texts=null"], "gate text_perplexity_ratio: it needs ordinary text"),
        (["search={steps: [1], metric: preference_accuracy, against: base}"], "search: metric preference_accuracy needs pairs"),
        (["sft.method={name: prefix_tuning}", "merge={}"], "prefix_tuning cannot be merged"),
    ],
)
def test_what_nothing_would_build_is_refused_when_the_plan_is_loaded(overrides, says):
    with pytest.raises(SpecError) as raised:
        load(SFT, overrides)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["data.preferences={sources: [prompts.jsonl]}", "reward={max_steps: 1}", "policy={max_steps: 1}"],
            "reward: the base is an encoder-decoder model, and a reward model scores a text at the last token a decoder reads",
        ),
        (["pretrain={max_steps: 1}", "data.corpus={sources: [prompts.jsonl]}"], "pretrain: the base is an encoder-decoder model"),
        (["gates.0={metric: text_perplexity, at_most: 9}"], "which an encoder-decoder model does not give"),
        (["sft.method={name: moe_router}"], "method moe_router: it trains no encoder-decoder model such as t5"),
        (["sft.method={name: bitfit}", "merge={}"], "bitfit cannot be merged: linear layers of t5 have no biases"),
    ],
)
def test_what_an_encoder_decoder_model_cannot_have_is_refused_when_the_plan_is_loaded(t5, overrides, says):
    with pytest.raises(SpecError) as raised:
        load(t5, overrides)
    assert says in str(raised.value)


def test_bitfit_on_a_t5_stays_an_adapter(t5):
    assert load(t5).merges
    assert not load(t5, ["sft.method={name: bitfit}"]).merges
    stages = laid_out(load(t5, ["compare={methods: [lora, bitfit]}"]), branches)
    assert {"merge-lora", "profile-bitfit"} <= stages.keys()
    assert "merge-bitfit" not in stages


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_run_goes_through_the_gates_to_a_release(tmp_path, prefect_server, kind):
    made = write_smoke(tmp_path, prefect_server)
    if kind == "t5":
        for file in (tmp_path / "tiny").iterdir():
            file.unlink()
        tiny.write_model(tmp_path / "tiny", kind="t5")
    (tmp_path / "plan.yaml").write_text(PLAN)
    printed = made.align("run", "plan.yaml")
    assert "released" in printed
    done = ended(printed)
    assert done["release"] == "built"
    assert not {"reward", "dpo", "rewards", "curate-preferences", "curate-texts"} & done.keys()
    (release,) = (made.store / "release").iterdir()
    card = (release / "README.md").read_text()
    assert f"pipeline_tag: {'text2text-generation' if kind == 't5' else 'text-generation'}\n" in card
    assert set(made.states().values()) == {"built"}
    policies = [read_record(folder) for folder in (made.store / "policy").iterdir()]
    assert [[link.stage for link in record.chain] for record in sorted(policies, key=lambda record: len(record.chain))] == [
        [], ["sft"], ["sft", "merge"],
    ]  # fmt: skip
    assert {record.template is None for record in policies} == {kind == "t5"}
