"""`align compare`: what a plan may ask, what is built again when a method is added, and a method that fails beside others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from smoke import ended, write_smoke

from flows.compare import look, part_of
from flows.loading import load
from flows.plan import Plan
from tasks.core.errors import SpecError

DEMO = Path(__file__).parents[2] / "flows" / "plans" / "demo.yaml"
COMPARE = DEMO.with_name("compare.yaml")


def asked(*overrides: str):
    return part_of(load(DEMO, overrides))


def test_the_plan_in_the_box_compares_every_method_that_trains_answers_on_a_dense_decoder():
    from tasks.methods import METHODS

    dense = [name for name, row in METHODS.items() if "sft" in row.learning_rate and not name.startswith("moe_")]
    assert part_of(load(COMPARE)).labels() == dense


def test_an_entry_is_a_name_or_the_fields_of_a_method_with_its_own_learning_rate():
    compare = asked("compare.methods=[full, {name: lora, rank: 4, learning_rate: 5.0e-4}, {name: ia3, learning_rate: null}]")
    assert compare.labels() == ["full", "lora", "ia3"]
    assert [entry.learning_rate for entry in compare.methods] == [2e-5, 5e-4, 3e-3]
    assert compare.methods[1].method.rank == 4
    assert compare.set_against() == "full"


def test_two_of_one_method_are_called_by_the_fields_in_which_they_differ():
    several = "[{name: lora, rank: 4}, {name: lora, rank: 8, learning_rate: 1.0e-3}, {name: lora, rank: 64, label: wide}, ia3]"
    compare = asked(f"compare.methods={several}")
    assert compare.labels() == ["lora-rank-4-lr-0.0002", "lora-rank-8-lr-0.001", "wide", "ia3"]
    assert compare.set_against() == "lora-rank-4-lr-0.0002"


def test_every_method_gets_the_plans_budget_and_nothing_else_of_its_training():
    plan = load(DEMO, ["compare.methods=[full, {name: ia3, learning_rate: 0.01}]", "compare.seeds=[3]"])
    specs = [part_of(plan).sft(entry, plan.sft, 3) for entry in part_of(plan).methods]
    differing = {"method", "learning_rate", "seed"}
    assert all(spec.model_dump(exclude=differing) == plan.sft.model_dump(exclude=differing) for spec in specs)
    assert [(spec.method.name, spec.learning_rate, spec.seed) for spec in specs] == [("full", 2e-5, 3), ("ia3", 0.01, 3)]


def test_a_plan_that_compares_survives_the_trip_through_json():
    plan = load(COMPARE)
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


def test_what_cannot_be_merged_has_no_merge_and_seeds_are_timed_once():
    plan = load(DEMO, ["compare.methods=[full, lora, prefix_tuning]", "compare.seeds=[0, 1]"])
    names = set(look(plan))
    assert {name for name in names if "full" in name} == {
        "sft-full-seed0", "sft-full-seed1", "scores-full-seed0", "scores-full-seed1", "profile-full-seed0",
    }  # fmt: skip
    assert {name for name in names if name.startswith("merge")} == {"merge-lora-seed0"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("compare.methods=[lora, lora]", "two are called lora, or are equal"),
        ("compare.methods=[{name: lora, label: a}, {name: ia3, label: a}]", "two are called a"),
        ("compare.methods=[]", "compare.methods"),
        ("compare={methods: [lora], reference: full}", "no such method; there are lora"),
        ("compare={methods: [lora], seeds: [1, 1]}", "one of them comes twice"),
        ("compare={methods: [head]}", "method head cannot train sft"),
        ("compare={methods: [moe_router]}", "llama is no mixture of experts; use full or lora"),
        ("compare={methods: [{name: lora, rnak: 3}]}", "no such field; did you mean rank?"),
        ("compare={methods: [lorra]}", "compare.methods"),
        (
            "compare={methods: [lora], profile: {rounds: 3}}",
            "compare.profile.rounds: should be greater than or equal to 6, got 3",
        ),
        ("compare={methods: [{name: lora, label: A b}]}", "label"),
    ],
)
def test_what_is_wrong_is_said_when_the_plan_is_loaded(override, says):
    with pytest.raises(SpecError) as raised:
        load(DEMO, [override])
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_plan_that_compares_nothing_says_how():
    with pytest.raises(SpecError, match=r"add `compare: \{methods: \[full, lora, ia3\]\}`"):
        asked()


METHODS = "compare.methods=[{name: lora, rank: 4}, {name: lora, rank: 4, targets: [nowhere], label: broken}, %s]"
TINY = ("--set", "compare.profile={prompt_tokens: 16, new_tokens: 3, rounds: 6}")


@pytest.fixture(scope="module")
def compared(tmp_path_factory, prefect_server):
    """A plan run once: lora and layer_norm, and a lora that fails; with what was printed."""
    made = write_smoke(tmp_path_factory.mktemp("compared"), prefect_server)
    printed = made.align("compare", "plan.yaml", "--set", METHODS % "layer_norm", *TINY, code=2)
    return made, printed


@pytest.mark.slow
def test_a_failing_method_leaves_a_gap_and_the_exit_code_and_the_rest_is_measured(compared):
    _, printed = compared
    states = ended(printed)
    assert states["sft-broken"] == "failed"
    assert {name for name, state in states.items() if state != "built"} == {"sft-broken"}
    assert {"profile-lora", "merge-layer_norm", "comparison"} <= set(states)
    assert "✘ broken: sft: " in printed
    assert "1 of 3 methods have gaps in the table; the first: " in printed


@pytest.mark.slow
def test_adding_a_method_trains_that_one_and_a_second_run_needs_no_server(compared):
    made, _ = compared
    three = "compare.methods=[{name: lora, rank: 4}, layer_norm, full]"
    printed = made.align("compare", "plan.yaml", "--set", three, *TINY)
    built = {name for name, state in ended(printed).items() if state == "built"}
    assert built == {"sft-full", "scores-full", "profile-full", "comparison"}

    without = replace(made, server="http://127.0.0.1:9/api")
    said = without.align("compare", "plan.yaml", "--set", three, *TINY, "--json")
    record = json.loads(said)
    assert record["result"] == "up to date"
    assert [row["label"] for row in record["rows"]] == ["lora", "layer_norm", "full"]
    assert record["reference"] == "full"
    for row in record["rows"]:
        found = {name for name, cell in row["cells"].items() if cell is not None}
        merged = {"decode_merged", "prefill_merged", "merge_logit_distance"}
        assert found == set(record["columns"]) - (merged if row["label"] == "full" else set())
        assert row["cells"]["answers"]["low"] < row["cells"]["answers"]["value"] < row["cells"]["answers"]["high"]
    assert all(Path(file).is_file() for file in record["files"].values())


@pytest.mark.slow
def test_the_comparison_is_a_page_in_the_ui_and_a_run_of_its_own(compared):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort
    from prefect.settings import PREFECT_API_URL, temporary_settings

    made, _ = compared
    with temporary_settings({PREFECT_API_URL: made.server}), get_client(sync_client=True) as client:
        found = {artifact.key: artifact for artifact in client.read_artifacts(sort=ArtifactSort.CREATED_DESC)}
        runs = [run for run in client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC) if run.name.startswith("smoke-compare-")]
    assert "data:image/png;base64," in found["smoke-comparison"].data
    assert found["smoke-comparison-table"].type == "table"
    assert {run.state.type.value for run in runs} <= {"FAILED", "COMPLETED"}
    records = [json.loads(path.read_text()) for path in (made.store / ".runs").glob("*.json")]
    assert {record["flow"] for record in records} == {"compare"}
