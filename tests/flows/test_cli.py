"""The command line on a whole plan: what a user types, what is printed, what the exit code says."""

import json
import shutil
from dataclasses import replace

import pytest
from smoke import ended

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(smoke, tmp_path):
    """The finished plan in a folder of its own, to change at will."""
    folder = tmp_path / "copy"
    shutil.copytree(smoke.folder, folder, symlinks=True)
    return replace(smoke, folder=folder)


def test_a_second_run_finds_everything_and_needs_no_server(smoke):
    without = replace(smoke, server="http://127.0.0.1:9/api")
    assert "up to date" in without.align("run", "plan.yaml")
    assert set(smoke.states().values()) == {"built"}


def test_a_recorded_second_run_is_cached_in_prefect(smoke):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import PREFECT_API_URL, temporary_settings

    smoke.align("run", "plan.yaml", "--record")
    with temporary_settings({PREFECT_API_URL: smoke.server}), get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(like_="smoke-"))
        last = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [last.id]}))
    assert last.state.name == "Completed"
    assert {task.state.name for task in tasks} == {"Cached"}
    assert {task.name for task in tasks} == set(smoke.states())


def test_plan_names_the_field_that_changed_and_keeps_what_does_not_depend_on_it(smoke):
    rows = {row["stage"]: row for row in json.loads(smoke.align("plan", "plan.yaml", "--json", "--set", "policy.beta=0.2"))}
    assert rows["dpo"]["state"] == "missing"
    assert rows["dpo"]["why"] == ["spec.beta: 0.1 -> 0.2"]
    assert rows["merge"]["state"] == "waits"
    assert rows["merge"]["why"] == ["waits for dpo"]
    assert {rows[name]["state"] for name in ("sft", "reward", "answers-base", "scores-parent")} == {"built"}


def test_where_and_how_are_no_part_of_what(smoke):
    settings = ["--set", "execution.micro_batch=2", "--set", "execution.threads=2", "--set", "execution.retries=5"]
    assert smoke.keys(*settings) == smoke.keys()


def test_a_changed_bound_judges_again_and_measures_nothing(copy):
    before = copy.keys()
    printed = copy.align("run", "plan.yaml", "--set", "gates.0.at_most=2.5")
    after = copy.keys("--set", "gates.0.at_most=2.5")
    assert {name for name in before if before[name] != after[name]} == {"verdict", "release"}
    assert "released" in printed


def test_a_failed_gate_exits_3_says_why_and_leaves_the_channel_alone(copy):
    pointed = json.loads(copy.align("releases", "--json"))
    printed = copy.align("run", "plan.yaml", "--set", "gates.0.at_most=0.5", code=3)
    assert "text_perplexity_ratio: need <= 0.5 against base, got" in printed
    assert json.loads(copy.align("releases", "--json")) == pointed
    # asked again, the store alone says the same
    without = replace(copy, server="http://127.0.0.1:9/api")
    assert "text_perplexity_ratio: need <= 0.5" in without.align("run", "plan.yaml", "--set", "gates.0.at_most=0.5", code=3)


def test_a_failed_gate_is_a_failed_flow_with_that_sentence(copy):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import PREFECT_API_URL, temporary_settings

    copy.align("run", "plan.yaml", "--record", "--set", "gates.0.at_most=0.5", code=3)
    with temporary_settings({PREFECT_API_URL: copy.server}), get_client(sync_client=True) as client:
        last = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
    assert last.state.name == "Failed"
    assert "text_perplexity_ratio: need <= 0.5 against base, got" in last.state.message


def test_rerun_builds_one_stage_afresh_and_equal_output_stops_there(copy):
    before = {path.name: path.stat().st_mtime_ns for path in (copy.store / "scores").glob("*/manifest.json")}
    printed = copy.align("rerun", "dpo", "plan.yaml")
    assert {stage for stage, how in ended(printed).items() if how == "built"} == {"dpo"}
    assert {path.name: path.stat().st_mtime_ns for path in (copy.store / "scores").glob("*/manifest.json")} == before


def test_rerun_of_a_stage_that_is_not_there_says_which_are(smoke):
    assert "the plan has no such stage; it has base," in smoke.align("rerun", "dpoo", "plan.yaml", code=2)


def test_a_damaged_artifact_is_noticed_and_rebuilt_and_nothing_else(copy):
    key = copy.keys()["sft"]
    weights = next((copy.store / "policy" / key).rglob("adapter_model.safetensors"))
    weights.unlink()
    assert {name for name, state in copy.states().items() if state == "missing"} == {"sft"}
    printed = copy.align("run", "plan.yaml")
    assert {stage for stage, how in ended(printed).items() if how == "built"} == {"sft"}


def test_show_diff_lineage_gates_methods_doctor_print_what_is_there(copy):
    key = copy.keys()["dpo"]
    assert "bytes intact yes" in " ".join(copy.align("show", key[:12]).split())
    lineage = copy.align("lineage", "champion")
    assert all(word in lineage for word in ("release", "dpo", "sft", "base", "file sha256"))
    assert "text_perplexity_ratio" in copy.align("gates", "plan.yaml")
    assert "lora" in copy.align("methods")
    assert json.loads(copy.align("doctor", "--json"))["torch"].startswith("2.13")
    copy.align("run", "plan.yaml", "--set", "policy.beta=0.2")
    other = copy.keys("--set", "policy.beta=0.2")
    assert "spec.beta: 0.1 -> 0.2" in copy.align("diff", key[:12], other["dpo"][:12])
    assert "spec.beta: 0.1 -> 0.2" in copy.align("diff", copy.keys()["merge"][:12], other["merge"][:12])
    # the other release is the champion now; back, and a rerun does not bring it forward again
    last = json.loads(copy.align("releases", "--json"))["champion"][-1]
    assert (last["why"], last["by"][:4]) == ("released by plan smoke", "run ")
    champion = last["release"]
    copy.align("rollback", "champion", "--why", "a test")
    printed = copy.align("run", "plan.yaml", "--set", "policy.beta=0.2")
    assert "rolled back" in printed
    assert json.loads(copy.align("releases", "--json"))["champion"][-1]["release"] != champion
    # what the old release and both plans' last run need stays; nothing here is old enough to go anyway
    assert "0 items" in copy.align("gc", "--dry-run")
    waste = json.loads(copy.align("gc", "--dry-run", "--keep-days", "0", "--json"))["items"]
    assert all("/policy/" not in item["path"] for item in waste)


def test_an_exported_release_is_a_plain_transformers_model(copy):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    copy.align("export", "champion", "exported")
    model = AutoModelForCausalLM.from_pretrained(copy.folder / "exported")
    tokenizer = AutoTokenizer.from_pretrained(copy.folder / "exported")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt")
    assert model(**prompt).logits.shape[-1] == len(tokenizer)
    assert "base_model" in (copy.folder / "exported" / "README.md").read_text()
    assert "is there already" in copy.align("export", "champion", "exported", code=2)


def test_bad_plans_and_missing_stores_exit_2_in_one_sentence(smoke, tmp_path):
    assert "did you mean beta?" in smoke.align("run", "plan.yaml", "--set", "policy.beat=1", code=2)
    assert "No such file" in smoke.align("run", "nowhere.yaml", code=2)
    assert "no store here" in smoke.align("show", "abc", "--store", str(tmp_path / "none"), code=2)
    assert "no Prefect server answers" in replace(smoke, server="http://127.0.0.1:9/api").align(
        "run", "plan.yaml", "--record", code=4
    )


def test_bad_data_exits_2_with_its_sentence_and_the_other_branch_is_finished(copy):
    (copy.folder / "preferences.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n' * 3)
    (copy.folder / "prompts.jsonl").write_text('{"prompt": "Say hello."}\n{"prompt": "Say goodbye."}\n')
    printed = copy.align("run", "plan.yaml", code=2)
    assert printed.splitlines()[-1].startswith("DataError: ")
    assert ended(printed)["curate-preferences"] == "failed"
    assert ended(printed)["answers-base"] == "built"
    states = copy.states()
    assert states["dpo"] == "waits"
    assert states["answers-base"] == "built"
