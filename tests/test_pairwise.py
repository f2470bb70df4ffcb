"""A judge that compares: both orders, ties, what is asked once, what is not asked at all, and what is refused."""

import json

import pyarrow.parquet as pq
import pytest

from evals.pairwise import read_verdict
from evals.scores import Scores
from evals.suite import Settings
from tasks.core.contract import Run
from tasks.core.errors import DataError, MachineError, SpecError
from tasks.pairwise import PairJudge, PairwiseSpec, pairwise
from tasks.tables import write_answers, write_questions

MINE = {"p0": "short", "p1": "a much longer answer", "p2": "same", "p3": "four", "p4": "an answer of some length"}
OTHERS = {"p0": "a longer one", "p1": "brief", "p2": "same", "p3": "five", "p4": "yes"}


def write(folder, said, schema_of=None):
    folder.mkdir()
    rows = [
        {"id": name, "conversation": name, "task": None, "prompt": [{"role": "user", "content": f"ask {name}"}]} for name in said
    ]
    if schema_of == "prompts":
        more = {"reference": None, "source": "mt-bench", "line": 1}
        write_questions(
            folder, [row | more | {"reference": "gold" if row["id"] == "p0" else None} for row in rows], choices=False
        )
    else:
        write_answers(folder, [row | {"answer": said[row["id"]], "tokens": 1, "finished": True} for row in rows])
    return folder


@pytest.fixture
def inputs(tmp_path):
    return {
        "prompts": write(tmp_path / "prompts", MINE, "prompts"),
        "answers_candidate": write(tmp_path / "mine", MINE),
        "answers_other": write(tmp_path / "others", OTHERS),
    }


def judged(inputs, tmp_path, **judge):
    spec = PairwiseSpec(suite="mt-bench", answers=Settings(), judge=PairJudge(model="judge-7b", **judge))
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    metrics = pairwise(spec, inputs, out, Run(tmp_path / "work", tmp_path / "models"))
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    return metrics, {(row["metric"].removeprefix("mt-bench."), row["item"]): row["value"] for row in rows}


def shown(asked):
    return json.loads(asked["messages"][1]["content"])


def shorter(asked, number):
    """Prefers the shorter answer wherever it stands."""
    first, second = (len(shown(asked)[name]) for name in ("answer_1", "answer_2"))
    return f"Thinking.\n**Verdict: {'tie' if first == second else 1 if first < second else 2}**"


def test_each_pair_is_asked_about_in_both_orders_and_equal_answers_are_not(serve, inputs, tmp_path):
    with serve(shorter) as endpoint:
        metrics, rows = judged(inputs, tmp_path)
    wins = {"p0": 1.0, "p1": 0.0, "p2": 0.5, "p3": 0.5, "p4": 0.0}
    assert {item: value for (name, item), value in rows.items() if name == "judge_wins"} == wins
    assert metrics == {"pairs": 5, "unread": 0, "judge_win_rate": 0.4, "judge_agreement": 1.0}
    pairs = sorted((shown(asked)["answer_1"], shown(asked)["answer_2"]) for asked in endpoint.asked)
    differ = [name for name in MINE if MINE[name] != OTHERS[name]]
    wanted = [pair for name in differ for pair in ((MINE[name], OTHERS[name]), (OTHERS[name], MINE[name]))]
    assert pairs == sorted(wanted)
    assert [shown(asked).get("reference") for asked in endpoint.asked].count("gold") == 2


def test_a_judge_that_likes_the_first_answer_ties_every_pair_and_is_found_out(serve, inputs, tmp_path):
    with serve(lambda asked, number: "Verdict: 1"):
        metrics, _ = judged(inputs, tmp_path)
    assert metrics == {"pairs": 5, "unread": 0, "judge_win_rate": 0.5, "judge_agreement": 0.2}


def test_the_wins_are_over_the_subject_that_the_input_is_named_after(serve, inputs, tmp_path):
    from evals.estimates import metric

    with serve(shorter):
        judged(inputs, tmp_path)
    scores = Scores.read({"judged_mt-bench_parent": tmp_path / "out"})
    found = metric("mt-bench.judge_win_rate", "parent")
    assert found.sample(scores, "parent").estimate(0.95, seed=0, resamples=1000).value == pytest.approx(0.4)
    assert json.loads((tmp_path / "out" / "suite.json").read_text())["judge"]["model"] == "judge-7b"


def test_what_was_judged_before_a_run_died_is_not_asked_again(serve, inputs, tmp_path):
    with serve(lambda asked, number: (400, "boom", {}) if number > 3 else shorter(asked, number)), pytest.raises(SpecError):
        judged(inputs, tmp_path)
    with serve(shorter) as endpoint:
        metrics, _ = judged(inputs, tmp_path)
    assert len(endpoint.asked) <= 8 - 3
    assert metrics["judge_win_rate"] == 0.4


def test_pairs_without_a_verdict_are_left_out_up_to_the_budget(serve, inputs, tmp_path):
    def reply(asked, number):
        return "I would not say." if "four" in shown(asked).values() else shorter(asked, number)

    with serve(reply), pytest.raises(DataError, match="gave no verdict on 1 of 5 pairs, more than unread_budget 5%; its last"):
        judged(inputs, tmp_path)
    with serve(reply):
        metrics, rows = judged(inputs, tmp_path, unread_budget=0.2)
    assert (metrics["pairs"], metrics["unread"], ("judge_wins", "p3") in rows) == (4, 1, False)


def test_answers_that_do_not_pair_are_refused(inputs, tmp_path):
    inputs["answers_other"] = write(tmp_path / "fewer", {"p0": "x"})
    with pytest.raises(DataError, match="prompts and answers do not pair up: 4 lack one, such as p1"):
        judged(inputs, tmp_path)


def test_without_an_endpoint_nothing_is_judged(monkeypatch, inputs, tmp_path):
    monkeypatch.delenv("ALIGN_JUDGE_URL", raising=False)
    with pytest.raises(MachineError, match="ALIGN_JUDGE_URL is not set"):
        judged(inputs, tmp_path)


def test_the_last_verdict_of_a_reply_counts():
    said = ["Verdict: 1\nNo.\nVerdict: 2", "**Verdict**: answer_1", "Final verdict: [[tie]]", "1.", "both", "verdict: 12", ""]
    assert [read_verdict(reply) for reply in said] == [0.0, 1.0, 0.5, 1.0, None, None, None]
