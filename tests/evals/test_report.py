"""Reports say what the verdict says, in markdown, in the terminal, and as rows."""

import io

from rich.console import Console

from evals.report import gate_table, headline, markdown, rows

GATE = {
    "metric": "reward_win_rate", "against": "parent", "estimate": 0.625, "low": 0.49997, "high": 0.74, "level": 0.983333,
    "standard_error": 0.05, "items": 80, "clusters": 80, "at_least": 0.5, "at_most": None, "demand": ">= 0.5 against parent",
    "note": "a | b", "margin": None, "p": 0.0123, "unit": "share of prompts", "verdict": "review",
    "sentence": "reward_win_rate: need more", "smallest_effect": 0.1823,
    "items_needed": 170,
}  # fmt: skip
LENGTH = {"metric": "length_accuracy", "against": None, "unit": "share of pairs", "better": "lower", "meaning": "the baseline"}
VERDICT = {
    "verdict": "review", "reasons": ["reward_win_rate: need more"], "gates": [GATE], "seed": 0, "resamples": 10000,
    "measured": [
        {**LENGTH, "estimate": 0.5, "low": 0.4, "high": 0.6, "level": 0.95, "standard_error": 0.05, "items": 40, "clusters": 40},
        {**LENGTH, "metric": "answer_length_ratio", "against": "parent", "error": "it does not exist"},
    ],
}  # fmt: skip
EMPTY = {"verdict": "review", "reasons": ["no gate was asked for"], "gates": [], "measured": [], "seed": 0, "resamples": 1000}

MARKDOWN = """\
# 🔎 review: 1 of 1 gates need a person

|  | metric | need | found | interval | at | p | n | smallest effect | note |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 🔎 | reward_win_rate | >= 0.5 against parent | 0.625 | [0.49997, 0.740] | 98.3% | 0.012 | 80 | 0.182 | a \\| b |

- reward_win_rate: need more

## Also measured

| metric | against | found | interval | n | unit | better |
| --- | --- | --- | --- | --- | --- | --- |
| length_accuracy |  | 0.500 | [0.400, 0.600] | 40 | share of pairs | lower |
| answer_length_ratio | parent | - | it does not exist | - | share of pairs | lower |

- `length_accuracy`: the baseline
- `answer_length_ratio`: the baseline

Intervals are by conversation: exact for shares and wins, else by random weights (10000 resamples, seed 0). `at` is the level of \
Holm's step for the number of gates; p, two-sided and not corrected, is at most 1 less that level exactly where a gate passes. \
What is also measured is at 95% each, not corrected.
"""


def printed(verdict):
    out = io.StringIO()
    Console(file=out, width=200).print(gate_table(verdict))
    return out.getvalue()


def test_markdown_is_the_whole_page():
    assert markdown(VERDICT) == MARKDOWN


def test_rows_are_plain_text():
    assert rows(VERDICT) == [
        {
            "": "🔎", "metric": "reward_win_rate", "need": ">= 0.5 against parent", "found": "0.625",
            "interval": "[0.49997, 0.740]",
            "at": "98.3%", "p": "0.012", "n": "80", "smallest effect": "0.182", "note": "a | b",
        }
    ]  # fmt: skip


def test_the_terminal_shows_the_same():
    text = printed(VERDICT)
    for part in (
        "🔎 review: 1 of 1 gates need a person",
        "[0.49997, 0.740]",
        "length_accuracy",
        "it does not exist",
        "- reward_win_rate:",
    ):
        assert part in text


def test_a_verdict_without_gates_says_so():
    assert headline(EMPTY) == "🔎 review: no gate was asked for"
    assert printed(EMPTY) == "🔎 review: no gate was asked for\n- no gate was asked for\n"
    assert "| metric |" not in markdown(EMPTY)


def test_the_headline_counts_the_gates_that_made_it():
    gates = [GATE, {**GATE, "verdict": "fail"}, {**GATE, "verdict": "pass"}]
    assert headline({**VERDICT, "verdict": "fail", "gates": gates}) == "❌ fail: 1 of 3 gates failed"


def test_what_is_not_known_is_a_question_mark():
    unknown = {**GATE, "low": None, "high": None, "smallest_effect": None, "p": 1.0}
    row = rows({**VERDICT, "gates": [unknown]})[0]
    assert (row["interval"], row["smallest effect"], row["p"]) == ("[?, ?]", "?", "1")
