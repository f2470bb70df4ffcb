"""The verdict stage: judges what was measured, afresh for a new bound, without measuring again."""

import json

import pytest
from scoring import rows, write

from evals.gates import Gate
from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.errors import DataError
from tasks.core.spec import Spec
from tasks.core.store import Store
from tasks.judge import VERDICT, VerdictSpec


class Scored(Spec):
    reward: tuple[float, ...]


def measure(spec, inputs, out, run):
    measure.calls += 1
    write(out, [*rows("reward", spec.reward), *rows("finished", [1.0] * len(spec.reward))])
    return {}


SCORED = Stage("scored", 1, "scores", measure)
BETTER = tuple(1.0 + i % 7 for i in range(60))
WORSE = tuple(i % 7 / 2 for i in range(60))


@pytest.fixture
def shop(tmp_path):
    measure.calls = 0
    return Workshop(Store(tmp_path / "store"), tmp_path / "models")


def judged(shop, *gates, candidate=BETTER, parent=WORSE):
    scores = {
        "scores_candidate": shop.build(SCORED, Scored(reward=candidate), {})[0],
        "scores_parent": shop.build(SCORED, Scored(reward=parent), {})[0],
    }
    artifact, built = shop.build(VERDICT, VerdictSpec(gates=gates, resamples=1000), scores)
    return artifact, built, json.loads((artifact.path / "verdict.json").read_text())


def win(bound):
    return Gate(metric="reward_win_rate", at_least=bound)


def test_a_verdict_holds_gates_reasons_and_everything_measured(shop):
    artifact, _, verdict = judged(shop, win(0.6), Gate(metric="finished_rate", at_least=0.9))
    assert artifact.metrics == {"verdict": "pass", "gates": 2, "pass": 2, "review": 0, "fail": 0}
    assert [gate["verdict"] for gate in verdict["gates"]] == ["pass", "pass"]
    assert verdict["reasons"] == [gate["sentence"] for gate in verdict["gates"]]
    assert [row["metric"] for row in verdict["measured"]] == ["reward_win_rate", "reward_difference", "finished_rate"]
    assert (artifact.path / "gates.md").read_text().startswith("# ✅ pass: 2 of 2 gates hold\n")


def test_reasons_of_a_no_are_the_gates_that_said_it_fails_first(shop):
    _, _, verdict = judged(shop, Gate(metric="finished_rate", at_least=0.5), win(0.97), win(1.0), candidate=WORSE, parent=BETTER)
    assert verdict["verdict"] == "fail"
    assert [reason.partition(":")[0] for reason in verdict["reasons"]] == ["reward_win_rate", "reward_win_rate"]


def test_a_new_bound_judges_again_and_measures_nothing(shop):
    strict, _, one = judged(shop, win(1.0))
    assert (one["verdict"], measure.calls) == ("review", 2)
    loose, built, two = judged(shop, win(0.5))
    assert (two["verdict"], built, measure.calls) == ("pass", True, 2)
    assert strict.key != loose.key
    assert judged(shop, win(0.5))[1] is False


def test_equal_inputs_give_equal_bytes(shop, tmp_path):
    one, _, _ = judged(shop, win(0.5))
    other = Workshop(Store(tmp_path / "elsewhere"), tmp_path)
    assert judged(other, win(0.5))[0].digest == one.digest


def test_without_gates_a_person_must_look(shop):
    _, _, verdict = judged(shop)
    assert verdict["verdict"] == "review"
    assert verdict["reasons"] == ["no gate was asked for, so nothing says that this is better; add gates to the plan"]


def test_a_gate_on_what_was_not_measured_is_an_error(shop):
    with pytest.raises(DataError, match="gate answer_perplexity_ratio: answer_nll of candidate was not measured"):
        judged(shop, Gate(metric="answer_perplexity_ratio", at_most=1.1))
