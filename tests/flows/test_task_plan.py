"""A task plan: what it holds, what is wrong with it in one sentence, and the whole of it on a tiny model by the real command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cards import run_card
from smoke import Smoke, ended

from flows.plan_parts import as_json
from flows.task_pipeline import load
from flows.task_plan import TaskPlan
from tasks.core.errors import SpecError

PLANS = Path(__file__).parents[2] / "flows" / "plans"
CLASSIFY = PLANS / "classify.yaml"


def test_the_field_task_decides_what_kind_of_plan_it_is():
    assert type(load(CLASSIFY)) is TaskPlan
    assert type(load(PLANS / "demo.yaml")) is not TaskPlan


def test_paths_stay_out_of_what_is_hashed_and_the_base_needs_no_template():
    plan = load(CLASSIFY)
    assert plan.data.examples.files()["0"].name == "labelled.jsonl"
    assert "/" not in str(plan.data.examples.spec())
    assert (plan.base().chat, load(PLANS / "demo.yaml").model.spec().chat) == (False, True)


def test_a_task_plan_survives_the_trip_through_json_that_a_deployment_makes():
    plan = load(CLASSIFY)
    assert TaskPlan.model_validate(as_json(plan)) == plan


def test_the_rate_is_the_methods_own_unless_given():
    assert load(CLASSIFY, ["task.learning_rate=null"]).task.learning_rate == 2e-4
    assert load(CLASSIFY, ["task.learning_rate=null", "task.method={name: head}"]).task.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["task.kind=sequence_clasification"], "task.kind: should be 'sequence_classification', 'token_classification'"),
        (["task.max_stepz=3"], "task.max_stepz: no such field; did you mean max_steps?"),
        (["gates.0.metric=reward_win_rate"], "gate reward_win_rate: sequence_classification is measured by accuracy, macro_f1"),
        (["gates.0.against=base"], "the head is new, so base has none to compare with; use against: majority"),
        (["task.kind=token_classification"], "token_classification is measured by entity_f1, tag_accuracy"),
        (
            ["task.kind=question_answering", "gates=[{metric: token_f1, at_least: 0, against: majority}]"],
            "no answer is the most frequent one",
        ),
        (["task.method={name: prefix_tuning}", "merge={}"], "prefix_tuning cannot be merged"),
        (["data.examples.sources=[]"], "data.examples"),
        (["sft={}"], "sft: no such field"),
        (["gates=[]"], "gates"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_with_its_place(overrides, says):
    with pytest.raises(SpecError) as raised:
        load(CLASSIFY, overrides)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_answers_of_a_chat_plan_have_no_majority():
    with pytest.raises(SpecError, match="answers have no majority label; use against: parent, base or champion"):
        load(PLANS / "demo.yaml", ["gates=[{metric: macro_f1, at_least: 0, against: majority}]"])


def test_a_metric_of_labels_can_be_asked_of_generated_answers_too():
    plan = load(PLANS / "demo.yaml", ["gates=[{metric: macro_f1, at_least: 0.1}]"])
    assert plan.metrics().metrics == ("macro_f1", "repetition")


PLAN = """
name: tiny-task
model: {base: ./encoder}
data:
  examples: {sources: [rows.jsonl], heldout: 0.4}
task:
  kind: token_classification
  method: {name: lora, rank: 4}
  max_steps: 30
  global_batch: 16
  learning_rate: 0.02
  max_length: 64
gates:
  - {metric: tag_accuracy, at_least: 0.0, against: majority}
  - {metric: entity_f1, at_least: 0.5}
release: {channel: tagger}
execution: {device: cpu, threads: 1, checkpoint_every: 10}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, prefect_server) -> Smoke:
    from tiny import sentences, write_encoder

    folder = tmp_path_factory.mktemp("task")
    write_encoder(folder / "encoder")
    tags = {"cat": "B-ANI", "dog": "B-ANI", "bird": "B-ANI", "red": "B-COL", "blue": "B-COL", "green": "B-COL"}
    lines = [{"tokens": text.split(), "tags": [tags.get(word, "O") for word in text.split()]} for text in sentences(150)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "plan.yaml").write_text(PLAN)
    smoke = Smoke(folder, prefect_server)
    printed = smoke.align("run", "plan.yaml")
    assert "released: tagger = release" in printed
    assert ended(printed) == dict.fromkeys(("base", "curate-labelled", "task", "merge", "predict", "verdict", "release"), "built")
    return smoke


@pytest.mark.slow
def test_a_second_run_finds_everything_and_a_bound_judges_afresh(made):
    without = replace(made, server="http://127.0.0.1:9/api")
    assert "up to date" in without.align("run", "plan.yaml")
    before, after = made.keys(), made.keys("--set", "gates.1.at_least=0.4")
    assert {name for name in before if before[name] != after[name]} == {"verdict", "release"}


@pytest.mark.slow
def test_gates_show_and_lineage_speak_of_a_task(made):
    verdict = json.loads(made.align("gates", "plan.yaml", "--json"))
    assert [(gate["metric"], gate["against"], gate["verdict"]) for gate in verdict["gates"]] == [
        ("tag_accuracy", "majority", "pass"), ("entity_f1", None, "pass"),
    ]  # fmt: skip
    shown = json.loads(made.align("show", made.keys()["task"][:12], "--json"))
    assert shown["metrics"]["labels"] == 3
    assert "curate-labelled" in made.align("lineage", "tagger")


@pytest.mark.slow
def test_rerun_builds_one_stage_and_what_came_out_equal_stops_there(made):
    printed = made.align("rerun", "task", "plan.yaml")
    assert ended(printed) == {**dict.fromkeys(made.states(), "cached"), "task": "built"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_exported_folder_is_a_model_that_plain_transformers_tags_with(made, tmp_path):
    from transformers import pipeline

    made.align("export", "tagger", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["pipeline_tag"], front["library_name"]) == ("token-classification", "transformers")
    assert "AutoModelForTokenClassification" in card
    assert "apply_chat_template" not in card
    assert "('red', " in run_card(tmp_path / "out", say="red dog")
    found = pipeline("token-classification", model=str(tmp_path / "out"))("the red dog says no")
    assert [(entity["word"], entity["entity"]) for entity in found if entity["entity"] != "O"] == [
        ("red", "B-COL"),
        ("dog", "B-ANI"),
    ]


@pytest.mark.slow
def test_the_adapter_below_a_merged_tagger_is_exported_alone_and_its_card_tags(made, tmp_path):
    made.align("export", "tagger", str(tmp_path / "out"), "--as", "adapter")
    assert "('red', 'B-COL'), ('dog', 'B-ANI')" in run_card(tmp_path / "out", made.folder / "encoder", say="red dog")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_merged_is_exported_as_an_adapter_that_peft_loads(made, tmp_path):
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    asked = [
        "--set",
        "task.method={name: bottleneck, size: 4}",
        "--set",
        "gates.1.at_least=0.0",
        "--set",
        "release.channel=other",
    ]
    asked += ["--set", "gates.0.at_least=-1"]
    printed = made.align("run", "plan.yaml", *asked)
    assert "merge" not in ended(printed)
    folder = tmp_path / "adapter"
    made.align("export", "other", str(folder))
    assert "('red', " in run_card(folder, say="red dog")
    import tasks.training.methods.known as known

    known.make_all_known()
    model = AutoModelForTokenClassification.from_pretrained(folder / "base", config=AutoConfig.from_pretrained(folder))
    model = PeftModel.from_pretrained(model, folder).eval()
    assert model.config.id2label == {0: "B-ANI", 1: "B-COL", 2: "O"}
    assert model(**AutoTokenizer.from_pretrained(folder)("red dog", return_tensors="pt")).logits.shape == (1, 4, 3)
