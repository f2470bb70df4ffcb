"""A suite's prompts out of its file: public files as they are, and what cannot be asked refused with its line."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evals import suite
from evals.instructions import read
from evals.suite import Settings
from tasks.core.contract import Run
from tasks.core.errors import DataError
from tasks.suites import QuestionsSpec, SuiteScoresSpec, measure_suite, questions
from tasks.tables import write_answers

SHARED = Path(__file__).parents[2] / "shared" / "data"
PUBLIC = {
    "ifeval": ("ifeval/ifeval_input_data.jsonl", 541),
    "gsm8k": ("gsm8k/test.jsonl", 1319),
    "xstest": ("xstest/xstest_prompts.csv", 450),
    "arc-easy": ("llm-foundry-eval/arc_easy.jsonl", 2376),
    "copa": ("llm-foundry-eval/copa.jsonl", 100),
    "mt-bench": ("fastchat/mt_bench_question.jsonl", 80),
    "belle": ("belle/zh_seed_tasks.json", 49),
}


def asked(name, path, tmp_path, limit=None):
    out = tmp_path / f"out-{name}-{limit}"
    out.mkdir()
    spec = QuestionsSpec(asked=suite.suite(name).asked(), limit=limit)
    metrics = questions(spec, {"data": path}, out, Run(tmp_path / "work", tmp_path / "models"))
    return metrics, pq.read_table(out / "prompts.parquet").to_pylist(), out


@pytest.mark.parametrize("name", PUBLIC)
def test_every_suite_reads_its_public_file(name, tmp_path):
    place, count = PUBLIC[name]
    if not (SHARED / place).is_file():
        pytest.skip(f"needs ../shared/data/{place}")
    metrics, rows, _ = asked(name, SHARED / place, tmp_path)
    assert metrics["rows"] == count
    assert len(rows) == metrics["prompts"] == count - metrics["repeated"]
    assert metrics["repeated"] <= 0.01 * count
    if name == "ifeval":
        assert sum(len(read(row["reference"])) for row in rows) == 834
    if name == "xstest":
        assert {row["reference"] for row in rows} == {"safe", "unsafe"}


def test_every_suite_has_a_public_file_that_is_tested():
    assert sorted(PUBLIC) == suite.names()


def lines(tmp_path, *rows):
    path = tmp_path / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


CHOICE = {"query": "It rained, therefore", "choices": ["it was wet.", "it was dry."], "gold": 0}
FOLLOW = {"key": 7, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("copa", [CHOICE, "{"], "data.jsonl line 2: not JSON"),
        ("copa", [CHOICE | {"gold": 2}], "line 1: gold is 2, not the place of one of 2 choices from 0"),
        ("copa", [CHOICE | {"choices": ["one", "one"]}], "not two different texts or more"),
        ("copa", [CHOICE | {"choices": ["one", 2]}], "not two different texts or more"),
        ("copa", [{"query": "x", "gold": 0}], "there is no column choices; there are gold, query"),
        ("copa", [CHOICE | {"query": " "}], "query is ' ', not a text"),
        ("ifeval", [FOLLOW, FOLLOW], "data.jsonl line 1 and data.jsonl line 2 have one id, 7"),
        ("ifeval", [FOLLOW | {"kwargs": []}], "1 instructions and arguments for 0"),
        ("ifeval", [FOLLOW | {"instruction_id_list": ["punctuation:no_coma"]}], "did you mean punctuation:no_comma"),
        ("mt-bench", [{"question_id": 1, "turns": []}], "there is no column turns.0"),
        ("belle", [{"id": 1, "instruction": "a", "instances": [{"input": "b", "output": "c"}]}], "no rows where instances"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_asked_is_refused_with_its_line(name, rows, says, tmp_path):
    with pytest.raises(DataError, match=says):
        asked(name, lines(tmp_path, *rows), tmp_path)


def test_a_choice_that_comes_twice_is_one(tmp_path):
    _, rows, _ = asked("copa", lines(tmp_path, CHOICE | {"choices": ["a", "b", "a", "c"], "gold": 3}), tmp_path)
    assert (rows[0]["choices"], rows[0]["gold"]) == (["a", "b", "c"], 2)


def test_what_is_said_twice_is_asked_once_and_counted(tmp_path):
    metrics, rows, _ = asked("copa", lines(tmp_path, CHOICE, CHOICE), tmp_path)
    assert (metrics, len(rows)) == ({"rows": 2, "prompts": 1, "repeated": 1}, 1)


def test_a_limit_draws_the_same_prompts_whatever_the_order_and_more_contain_fewer(tmp_path):
    rows = [FOLLOW | {"key": i, "prompt": f"Say {i}."} for i in range(40)]
    few = [row["id"] for row in asked("ifeval", lines(tmp_path, *rows), tmp_path, 10)[1]]
    more = [row["id"] for row in asked("ifeval", lines(tmp_path, *reversed(rows)), tmp_path, 20)[1]]
    assert (len(few), len(more), set(few) <= set(more)) == (10, 20, True)
    assert sorted(map(int, few)) != list(range(10))


def test_the_same_file_gives_the_same_bytes(tmp_path):
    path = lines(tmp_path, *(CHOICE | {"query": f"{i} rained, therefore"} for i in range(5)))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    folders = [asked("copa", path, tmp_path / half)[2] for half in "ab"]
    for file in ("prompts.parquet", "suite.json"):
        assert len({(folder / file).read_bytes() for folder in folders}) == 1


def test_answers_to_other_prompts_are_refused(tmp_path):
    _, rows, prompts = asked("ifeval", lines(tmp_path, FOLLOW, FOLLOW | {"key": 8, "prompt": "Sing."}), tmp_path)
    answers = tmp_path / "answers"
    answers.mkdir()
    write_answers(answers, [{**rows[0], "answer": "x", "tokens": 1, "finished": True}])
    spec = SuiteScoresSpec(suite="ifeval", metrics=(), answers=Settings())
    with pytest.raises(DataError, match="suite ifeval: prompts and answers do not pair up: 1 are in one alone, such as 8"):
        measure_suite(spec, {"prompts": prompts, "answers": answers}, tmp_path, Run(tmp_path, tmp_path))
