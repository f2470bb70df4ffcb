"""Suites as data: all that are there are whole, wrong ones are refused, and scores that were made otherwise never pair."""

import json

import pytest
from scoring import rows, write

from evals import suite
from evals.estimates import measurable, metric
from evals.scores import Scores
from tasks.core.errors import DataError, SpecError

WHOLE = """
name: mine
version: 1
measures: Something.
origin: Somewhere.
license: MIT
columns: {prompt: question}
metrics: {repetition: lower}
"""


@pytest.mark.parametrize("name", suite.names())
def test_every_suite_says_what_it_is_and_every_metric_of_it_can_be_gated(name):
    found = suite.suite(name)
    assert (found.name, found.version >= 1, bool(found.license), found.origin[-1]) == (name, True, True, ".")
    for inner, better in found.metrics.items():
        row = metric(f"{name}.{inner}", None)
        assert row.better == better
        assert all(raw.startswith(f"{name}.") for _, raw in row.needs)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version: 1", "version: 0", "version: Input should be greater than 0"),
        ("name: mine", "name: yours", "it calls itself yours; give file and suite one name"),
        ("repetition", "repetitoin", "repetitoin: no metric for form prompts, did you mean repetition"),
        ("{prompt: question}", "{reference: a}", r"form prompts needs columns.prompt"),
        ("{prompt: question}", "{prompt: q, gold: g}", r"form prompts has no columns.gold"),
        ("license: MIT", "", "license: Field required"),
        ("license: MIT", "license: MIT\nextra: 1", "extra: Extra inputs are not permitted"),
        ("license: MIT", "license: MIT\nanswers: null", "choices are not answered, and all else is"),
        ("license: MIT", "license: MIT\nprompt: say it", r"prompt must say \{prompt\} once"),
        ("license: MIT", "license: [", "not readable as YAML"),
    ],
)
def test_a_wrong_suite_is_one_sentence_with_its_file(tmp_path, old, new, says):
    (tmp_path / "mine.yaml").write_text(WHOLE)
    assert suite.suite("mine", tmp_path).metrics == {"repetition": "lower"}
    (tmp_path / "mine.yaml").write_text(WHOLE.replace(old, new))
    with pytest.raises(SpecError, match=f"evals/suites/mine.yaml: .*{says}"):
        suite.suite("mine", tmp_path)


def test_an_unknown_suite_or_metric_tells_the_nearest():
    with pytest.raises(SpecError, match=r"gsm9k: no such suite, did you mean gsm8k\?; yours would be evals/suites/gsm9k\.yaml"):
        metric("gsm9k.number_match", None)
    with pytest.raises(SpecError, match=r"gsm8k\.numbermatch: the suite has no such metric, did you mean number_match"):
        metric("gsm8k.numbermatch", None)


def test_a_metric_more_changes_the_text_and_not_what_is_asked(tmp_path):
    (tmp_path / "mine.yaml").write_text(WHOLE)
    before = suite.suite("mine", tmp_path)
    (tmp_path / "mine.yaml").write_text(WHOLE.replace("{repetition: lower}", "{repetition: lower, words: lower}"))
    assert suite.suite("mine", tmp_path) != before
    assert suite.suite("mine", tmp_path).asked() == before.asked()


MADE = {"suite": "ifeval", "version": 1, "text": "a" * 64, "prompts": "b" * 64, "settings": {"max_new_tokens": 8}}


def scored(folder, values, **made):
    write(folder, rows("ifeval.prompt_strict", values))
    (folder / "suite.json").write_text(json.dumps(MADE | made))
    return folder


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"version": 2}, r"differ in its version \(1 and 2\)"),
        ({"text": "c" * 64}, r"differ in its text \(aaaaaaaaaaaa and cccccccccccc\)"),
        ({"prompts": "d" * 64}, "differ in its prompts"),
        ({"settings": {"max_new_tokens": 9}}, r"differ in how answers were generated \(.* 8.* and .* 9"),
    ],
)
def test_scores_of_a_suite_that_was_made_otherwise_refuse_to_pair(tmp_path, changed, says):
    one = scored(tmp_path / "one", [1, 0])
    with pytest.raises(DataError, match=f"suite ifeval: suite_x_candidate and suite_x_parent {says}.*measure both with one"):
        Scores.read({"suite_x_candidate": one, "suite_x_parent": scored(tmp_path / "two", [1, 1], **changed)})


def test_scores_of_one_suite_pair_and_those_of_another_are_no_concern_of_it(tmp_path):
    one, two = scored(tmp_path / "one", [1, 0]), scored(tmp_path / "two", [1, 1])
    other = write(tmp_path / "other", rows("copa.accuracy", [1, 1]))
    (other / "suite.json").write_text(json.dumps(MADE | {"suite": "copa", "version": 3}))
    scores = Scores.read({"suite_a_candidate": one, "suite_a_parent": two, "suite_b_candidate": other})
    found = metric("ifeval.prompt_strict", "parent").sample(scores, "parent")
    assert found.estimate(0.95, seed=0, resamples=1000).value == -0.5
    assert measurable(scores) == [("copa.accuracy", None), ("ifeval.prompt_strict", None), ("ifeval.prompt_strict", "parent")]
