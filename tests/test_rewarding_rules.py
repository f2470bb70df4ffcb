"""Rule rewards: what each gives, what is refused at load and at use, and that nothing in them runs for long or runs code."""

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evals.numbers import last_number
from tasks.core.errors import AlignError, DataError, SpecError
from tasks.rewarding import (
    RULES,
    Answer,
    FinishedReward,
    JsonReward,
    LengthReward,
    ModelReward,
    NumberReward,
    RegexReward,
    Rewards,
    check_references,
    normalised,
    total,
    values,
)

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k/test.jsonl"


def said(*texts, reference=None, finished=True, tokens=3):
    return [Answer(text, tokens, finished, reference, f"p{i}") for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", "1234"),
        ("$5.00", "5"),
        ("It costs -$1,234.50 in all.", "-2469/2"),
        ("$-7", "-7"),
        ("a loss of \u22123", "-3"),
        ("50%", "50"),
        ("3/4 of it", "3/4"),
        (".50", "1/2"),
        ("10 - 4", "4"),
        ("10-4", "4"),
        ("- 4 eggs", "4"),
        ("GPT-4", "4"),
        ("答案是-18元", "-18"),
        ("\uff11\uff18", "18"),
        ("\\boxed{42}.", "42"),
        ("1,234,567.", "1234567"),
        ("1, 2, 3", "3"),
        ("so...5", "5"),
        ("1.5e-3", "3/2000"),
        ("#### 18 and not\n#### 19 \nin 3 steps", "3"),
        ("#### 18\n#### ", None),
        ("none", None),
        ("12/0", None),
        ("9" * 5000, None),
    ],
)
def test_the_last_number_of_a_text_is_read_exactly(text, number):
    assert last_number(text) == (None if number is None else Fraction(number))


@given(st.integers(-(10**12), 10**12), st.integers(0, 999))
def test_a_number_is_the_same_however_it_is_written(whole, part):
    number = Fraction(whole) + (1 if whole >= 0 else -1) * Fraction(part, 1000)
    for written in (f"{whole}.{part:03}", f"{whole:,}.{part:03}", f"so ${whole:,}.{part:03}0.", f"{whole}.{part:03}%"):
        assert last_number(written) == number


def test_an_exact_number_is_the_references():
    answers = said("so 18", "#### 18.00", "$18", "17", "", "eighteen", "18 or 20", reference="2 * 9 = <<2*9=18>>18\n#### 18")
    assert values(NumberReward(), answers) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("reference", "what"), [(None, "there is no reference"), ("yes", "no number in its reference 'yes'")])
def test_an_exact_number_without_a_reference_names_the_prompt(reference, what):
    with pytest.raises(DataError, match=f"prompt p0: .*{what}"):
        values(NumberReward(), said("18", reference=reference))
    with pytest.raises(DataError, match=f"prompt p7: .*{what}"):
        check_references([FinishedReward(), NumberReward()], {"p1": "3", "p7": reference})
    check_references([FinishedReward()], {"p7": reference})


def test_every_gsm8k_solution_scores_1_against_itself_and_0_against_another():
    if not GSM8K.exists():
        pytest.skip(f"{GSM8K} is not here")
    solutions = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    finals = [solution.rpartition("#### ")[2] for solution in solutions]
    own = [Answer(text, 1, True, final) for text, final in zip(solutions, finals, strict=True)]
    assert values(NumberReward(), own) == [1.0] * len(solutions)
    said_plainly = [Answer(f"The answer is ${final}.", 1, True, text) for text, final in zip(solutions, finals, strict=True)]
    assert values(NumberReward(), said_plainly) == [1.0] * len(solutions)
    wrong = [Answer(text, 1, True, f"{final}1") for text, final in zip(solutions, finals, strict=True)]
    assert values(NumberReward(), wrong) == [0.0] * len(solutions)


def test_a_pattern_is_searched_anywhere_or_forbidden():
    answers = said("Yes, sure", "no", "oh yes")
    assert values(RegexReward(pattern="(?i)yes"), answers) == [1.0, 0.0, 1.0]
    assert values(RegexReward(pattern="^yes|^Yes"), answers) == [1.0, 0.0, 0.0]
    assert values(RegexReward(pattern="yes$", forbid=True), answers) == [1.0, 1.0, 0.0]


def test_a_pattern_that_takes_too_long_is_stopped_and_named():
    started = time.monotonic()
    with pytest.raises(SpecError, match=r"the pattern '\(a\+\)\+\$' searched an answer of 5001 characters for more than 1 s"):
        values(RegexReward(pattern="(a+)+$"), said("a" * 5000 + "b"))
    assert time.monotonic() - started < 10


def test_json_is_what_the_standard_says_and_not_what_python_reads():
    texts = (
        '{"a": 1}',
        " [1, 2.5e400]\n",
        '"x"',
        "null",
        "NaN",
        "[Infinity]",
        '{"a": 1} so',
        "```json\n{}\n```",
        "{'a': 1}",
        "",
        "9" * 5000,
    )
    assert values(JsonReward(), said(*texts)) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert values(JsonReward(), said("[" * 100_000)) == [0.0]


def test_json_keys_ask_for_an_object_that_has_them():
    texts = ('{"a": 1, "b": null}', '{"a": 1}', '["a", "b"]', '"a b"', '{"c": {"a": 1, "b": 2}}')
    assert values(JsonReward(keys=("a", "b")), said(*texts)) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_length_falls_to_0_over_as_many_units_again():
    words = said(*(" ".join(["w"] * n) for n in (0, 1, 2, 3, 4, 5, 6, 8, 9)))
    assert values(LengthReward(at_least=2, at_most=4), words) == [0.0, 0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert values(LengthReward(unit="characters", at_most=4), said("天地玄黄", "12345678", "123456")) == [1.0, 0.0, 0.5]
    assert values(LengthReward(unit="tokens", at_least=6), said("whatever", tokens=3)) == [0.5]


def test_finished_is_whether_it_ended_by_itself():
    assert values(FinishedReward(), [*said("a"), *said("a", finished=False)]) == [1.0, 0.0]


@given(st.text(), st.integers(0, 10_000), st.booleans())
def test_values_lie_between_0_and_1(text, tokens, finished):
    for entry in (
        RegexReward(pattern=r"\w+"),
        NumberReward(),
        JsonReward(),
        *(LengthReward(unit=unit, at_least=2, at_most=5) for unit in ("characters", "words", "tokens")),
        FinishedReward(),
    ):
        (value,) = values(entry, [Answer(text, tokens, finished, "3")])
        assert 0 <= value <= 1


def test_the_reward_model_is_no_rule():
    with pytest.raises(AlignError, match="comes from the reward model"):
        values(ModelReward(), said("a"))


def test_scores_become_deviations_cut_at_the_clip():
    assert normalised(ModelReward(clip=2), [1.0, 3.0, 99.0, -99.0], mean=1.0, std=4.0) == [0.0, 0.5, 2.0, -2.0]
    assert normalised(ModelReward(clip=None), [99.0], mean=1.0, std=2.0) == [49.0]
    (nan,) = normalised(ModelReward(), [float("nan")], mean=0.0, std=1.0)
    assert nan != nan  # a broken model shows, it is not cut to a number


def test_a_total_is_the_weighted_sum():
    entries = (ModelReward(), FinishedReward(weight=0.5), JsonReward(weight=-2))
    assert total(entries, [[1.5, -1.0], [1.0, 0.0], [0.0, 1.0]]) == [2.0, -3.0]
    assert total(entries, [[], [], []]) == []
    with pytest.raises(AlignError, match="3 entries"):
        total(entries, [[1.0], [1.0]])
    with pytest.raises(AlignError, match="columns of"):
        total(entries, [[1.0], [1.0, 2.0], [1.0]])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ([{"rule": "regex", "pattern": "(a"}], r"not a regular expression \(missing \) at position 2\)"),
        ([{"rule": "regex", "pattern": ""}], "at least 1 character"),
        ([{"rule": "regex", "pattern": r"\L<words>"}], "not a regular expression"),
        ([{"rule": "length"}], "a length without bounds rewards everything alike"),
        ([{"rule": "length", "at_least": 5, "at_most": 4}], "at_least 5 is above at_most 4"),
        ([{"rule": "json", "keys": [""]}], "at least 1 character"),
        ([{"rule": "finished", "weight": 0}, {"rule": "json", "weight": 0}], "every weight is 0"),
        ([{"rule": "finished", "weight": float("nan")}], "finite number"),
        ([], "at least 1 item"),
        ([{"rule": "python", "pattern": "x"}], "does not match any of the expected tags"),
    ],
)
def test_what_cannot_work_is_refused_at_load(raw, said):
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(Rewards).validate_python(raw)


def test_every_rule_is_known():
    assert set(RULES) == {kind.model_fields["rule"].default for kind in ModelReward.__mro__[1].__subclasses__()}
