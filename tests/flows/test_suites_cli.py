"""A plan with suites by the real command line: measured, judged and released, with the suites in the lineage."""

import json

import pytest
import tiny
from smoke import ended, write_smoke

PLAN = """
name: suited
model: {base: ./tiny}
data:
  instructions: {sources: [instructions.jsonl], heldout: 0.3}
  prompts: {sources: [prompts.jsonl]}
sft: {max_steps: 2, global_batch: 4, max_length: 1024}
evaluation:
  answers: {max_new_tokens: 8}
  suites:
    - {name: ifeval, source: ifeval.jsonl, answers: {max_new_tokens: 8}}
    - {name: copa, source: copa.jsonl}
gates:
  - {metric: copa.accuracy, at_least: -1, against: parent}
  - {metric: ifeval.prompt_loose, at_least: 0}
execution: {device: cpu, parallel: 2, threads: 1, checkpoint_every: 1}
"""


@pytest.mark.slow
def test_a_plan_with_suites_is_released_and_an_added_metric_generates_nothing(tmp_path):
    made = write_smoke(tmp_path, None)
    words = tiny.sentences(30)
    follow = [
        {"key": i, "prompt": text, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for i, text in enumerate(words[:6])
    ]
    choose = [
        {"query": f"{a}, therefore", "choices": [f"{b}.", f"no {a}."], "gold": 0}
        for a, b in zip(words[:6], words[6:12], strict=True)
    ]
    for name, rows in (("ifeval", follow), ("copa", choose)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "plan.yaml").write_text(PLAN)
    printed = made.align("run", "plan.yaml")
    assert "released" in printed
    assert {"suite-copa", "copa-candidate", "answers-ifeval-parent", "ifeval-candidate"} <= ended(printed).keys()
    release = next((made.store / "release").glob("*/release.json"))
    stages = {entry["stage"] for entry in json.loads(release.read_text())["lineage"]}
    assert {"questions", "suite-scores", "choices"} <= stages
    states = made.states("--set", "evaluation.suites.0.metrics=[words]")
    missing = {name for name, state in states.items() if state != "built"}
    assert missing == {"ifeval-candidate", "ifeval-parent", "verdict", "release"}
