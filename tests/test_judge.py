"""The verdict stage: judges what was measured, afresh for a new bound, without measuring again."""

import json

import pytest
from scoring import row, rows, write

from evals.gates import Gate
from evals.scores import Scores
from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.errors import DataError
from tasks.core.spec import Spec
from tasks.core.store import Store
from tasks.judge import VERDICT, ChallengeSpec, VerdictSpec
from tasks.policy import Base, PolicyRecord, write_record


class Scored(Spec):
    reward: tuple[float, ...]


def measure(spec, inputs, out, run):
    measure.calls += 1
    write(out, [*rows("reward", spec.reward), *rows("finished", [1.0] * len(spec.reward))])
    return {}


SCORED = Stage("scored", 1, "scores", measure)


class Cutting(Spec):
    tokenizer: str
    template: str | None = None


def train(spec, inputs, out, run):
    base = Base(name="tiny", revision="sha256:0", files={})
    write_record(out, PolicyRecord(task="policy", base=base, tokenizer=spec.tokenizer, template=spec.template))
    return {}


MODEL = Stage("model", 1, "policy", train)
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


@pytest.mark.parametrize(("other", "template"), [("1" * 64, "3" * 64), ("2" * 64, None)])
def test_pairs_cut_or_measured_under_one_of_two_tokenizers_or_templates_are_left_out_and_said_to_be(
    shop, tmp_path, other, template
):
    gained = [*rows("chosen_logp", [1.0 + i % 5 for i in range(60)]), *rows("rejected_logp", [0.5] * 60)]
    plain = [*rows("chosen_logp", [0.5] * 60), *rows("rejected_logp", [1.0 + i % 3 for i in range(60)])]
    ours = [*gained, row("answers_cut", "i003", 1.0)]
    theirs = [*(one for one in plain if one["item"] != "i007"), row("answers_cut", "i003", 2.0), row("answers_cut", "i005", 1.0)]
    inputs = {"scores_candidate": write(tmp_path / "ours", ours), "scores_champion": write(tmp_path / "theirs", theirs)}
    inputs["policy"], _ = shop.build(MODEL, Cutting(tokenizer="1" * 64), {})
    inputs["champion"], _ = shop.build(MODEL, Cutting(tokenizer=other, template=template), {})
    gate = Gate(metric="preference_accuracy", at_least=0.5, against="champion", note="better")
    artifact, _ = shop.build(VERDICT, ChallengeSpec(gates=(gate,), champion="0" * 64, resamples=1000), inputs)
    found = json.loads((artifact.path / "verdict.json").read_text())
    [judged] = found["gates"]
    assert (judged["items"], judged["left_out"], judged["estimate"]) == (57, 3, 1.0)
    remark = "3 more items left out: cut, or not usable, under one of two tokenizers or chat templates"
    assert (judged["note"], judged["remark"]) == ("better", remark)  # the plan's note stays what a machine looks for
    assert f"on n=57 ({remark})" in judged["sentence"]
    assert f" | better; {remark} |" in (artifact.path / "gates.md").read_text()
    assert [one["left_out"] for one in found["measured"]] == [3]


def test_items_of_one_alone_are_an_error_where_tokenizer_and_template_are_the_same(tmp_path):
    whole = [*rows("chosen_logp", [1.0, 2.0, 3.0]), *rows("rejected_logp", [0.5] * 3), row("answers_cut", "i000", 1.0)]
    inputs = {"scores_candidate": write(tmp_path / "a", whole), "scores_champion": write(tmp_path / "b", whole)}
    logps = [(who, raw) for who in ("candidate", "champion") for raw in ("chosen_logp", "rejected_logp")]
    alike = Scores.read(inputs)
    assert [len(series.items) for series in alike.aligned(*logps)] == [3] * 4  # cut at the same token in both
    assert alike.left_out(*logps) == 0
    write(tmp_path / "b", [one for one in whole if one["item"] != "i002"])
    with pytest.raises(DataError, match="not measured on the same items: 1 are in one alone, such as i002"):
        Scores.read(inputs).aligned(*logps)
    write(tmp_path / "b", [*rows("chosen_logp", [1.0]), *rows("rejected_logp", [0.5])])
    with pytest.raises(DataError, match=r"no item was measured whole of both .* raise evaluation\.scores\.max_length"):
        Scores.read(inputs, other_texts=["champion"]).aligned(*logps)


def test_without_gates_a_person_must_look(shop):
    _, _, verdict = judged(shop)
    assert verdict["verdict"] == "review"
    assert verdict["reasons"] == ["no gate was asked for, so nothing says that this is better; add gates to the plan"]


def test_a_gate_on_what_was_not_measured_is_an_error(shop):
    with pytest.raises(DataError, match="gate answer_perplexity_ratio: answer_nll of candidate was not measured"):
        judged(shop, Gate(metric="answer_perplexity_ratio", at_most=1.1))
