"""Through the real command line: tasks learned with an adapter each, adapters listed, put together, talked to; one task more."""

import json
import subprocess
import sys

import pytest
import tiny
from lessons import LORA, PLAN, write_task
from smoke import ROOT, Smoke, ended

pytestmark = pytest.mark.slow
APART = ["--set", "fresh=true", "--set", LORA, "--set", "sft.learning_rate=0.02"]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory, prefect_server):
    folder = tmp_path_factory.mktemp("many")
    tiny.write_model(folder / "tiny")
    for name in ("birds", "colours", "dogs"):
        write_task(folder, name)
    (folder / "plan.yaml").write_text(PLAN.replace("{device: cpu}", "{device: cpu, parallel: 2, threads: 1}"))
    return Smoke(folder, prefect_server)


@pytest.fixture(scope="module")
def adapters(lessons):
    """The two adapters, as `align adapters --json` tells of them."""
    printed = lessons.align("continual", "plan.yaml", *APART)
    assert {name for name, how in ended(printed).items() if name.startswith("sft") and how == "built"} == {
        "sft-birds",
        "sft-colours",
    }
    return json.loads(lessons.align("adapters", "--json"))


def piped(lessons, prompt, *arguments):
    command = [sys.executable, "-m", "flows.cli", "chat", *arguments]
    environment = lessons.environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=lessons.folder, env=environment, input=prompt, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_adapters_are_listed_with_what_made_them(lessons, adapters):
    assert [(a["base"], a["on"], a["kind"], a["stage"], a["method"]) for a in adapters] == [
        ("local", "base", "policy", "sft", "lora")
    ] * 2
    assert all(a["shape"]["rank"] == 8 and a["trained"] == a["kept"] > 1000 and a["bytes"] > 4 * a["kept"] for a in adapters)
    assert {a["data"].rpartition(" ")[2] for a in adapters} == {"(birds.jsonl)", "(colours.jsonl)"}
    assert all(a["made_by"].startswith("lessons (lessons-continual-") for a in adapters)
    assert json.loads(lessons.align("adapters", "--base", "local", "--json")) == adapters
    assert "no model in this store has this base; there are local" in lessons.align("adapters", "--base", "other", code=2)
    assert adapters[0]["key"][:12] in lessons.align("adapters")


def test_adapters_are_put_together_once_and_what_cannot_be_is_refused(lessons, adapters):
    one, two = (a["key"][:12] for a in adapters)
    printed = lessons.align("compose", f"{one}=0.7", f"{two}=0.3")
    assert ended(printed) == {"compose": "built"}
    assert "up to date" in lessons.align("compose", f"{one}=0.7", f"{two}=0.3")
    listed = json.loads(lessons.align("adapters", "--json"))
    assert (len(listed), listed[-1]["stage"], listed[-1]["trained"]) == (3, "compose", None)
    assert all(key in listed[-1]["data"] for key in (one, two))
    for arguments, reason in [
        ((f"{one}=0.7", "ffff=0.3"), "ffff: no artifact in"),
        ((f"{one}=0.7",), "at least two"),
        ((f"{one}=0.7", two), "write it as KEY=WEIGHT"),
        ((f"{one}=1", f"{two}=1", "--how", "sum"), "compose: how: "),
        ((f"{one}=1", f"{two}=1", "--rank", "4"), "cat has no rank of its own"),
    ]:
        assert reason in lessons.align("compose", *arguments, code=2)


def test_a_prompt_from_a_pipe_is_answered_once_by_the_adapter_that_was_named(lessons, adapters):
    answers = {}
    for name in ("base", *(a["key"][:12] for a in adapters)):
        code, out, err = piped(lessons, "red dog bird\n", name, "--max-new-tokens", "12", "--temperature", "1")
        assert code == 0, err
        assert "loading" in err
        answers[name] = out
    assert len(set(answers.values())) == 3
    last = adapters[1]["key"][:12]
    code, out, err = piped(
        lessons, "red dog bird\n", "base", "--adapter", last, "--max-new-tokens", "12", "--temperature", "1"
    )  # fmt: skip
    assert (code, out) == (0, answers[last])
    assert "on the weights in memory" in err


def test_who_cannot_be_talked_to_is_said_before_anything_is_loaded(lessons, adapters):
    data = next((lessons.store / "instructions").iterdir()).name
    for name, reason in [("nobody", "nobody: no artifact in"), (data[:12], "is of kind instructions")]:
        code, out, err = piped(lessons, "hello", name)
        assert (code, out) == (2, "")
        assert reason in err
        assert "Traceback" not in err


def test_one_more_task_trains_one_more_and_the_matrix_is_in_the_ui(lessons, adapters):
    lessons.align("continual", "plan.yaml", "--set", "replay=0.2")
    names = ("birds", "colours", "dogs")
    more = json.dumps([{"name": name, "data": {"sources": [f"{name}.jsonl"], "heldout": 0.3}} for name in names])
    printed = lessons.align("continual", "plan.yaml", "--set", "replay=0.2", "--set", f"tasks={more}")
    built = {name for name, how in ended(printed).items() if how == "built"}
    assert {name for name in built if name.startswith(("sft", "replay"))} == {"sft-dogs", "replay-dogs"}
    again = json.loads(lessons.align("continual", "plan.yaml", "--set", "replay=0.2", "--set", f"tasks={more}", "--json"))
    assert (again["result"], again["tasks"], len(again["cells"])) == ("up to date", list(names), 4)
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: lessons.server}), get_client(sync_client=True) as client:
        answer = client.request("GET", "/artifacts/lessons-forgetting-matrix/latest")
    assert answer.json()["data"].startswith("![what was forgotten](data:image/png;base64,")
    assert "after dogs" in answer.json()["data"]
