# ruff: noqa: RUF001  answers come in both scripts
"""The metric modules of suites judge known answers rightly, and leave out what they have nothing to say of."""

import warnings

import pytest

from evals import modules
from evals.instructions import instruction, written
from tasks.core.errors import DataError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import evaluate  # noqa: F401  its import warns, and the tests are about modules

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")


def run(name, answers, references=None, prompts=None):
    count = len(answers)
    return modules.columns(name, answers, references or [None] * count, prompts or ["ask"] * count)


def test_number_match_reads_the_final_number_of_both():
    said = ["so 18 eggs", "#### 1,018", "18 of 20", "none", "$5.00"]
    wanted = ["x\n#### 18", "#### 1018", "#### 18", "#### 3", "#### 5"]
    assert run("number_match", said, wanted) == {"number_match": [1, 1, 0, 0, 1]}
    with pytest.raises(DataError, match="reference 'none' has no number"):
        run("number_match", ["1"], ["none"])


def test_instructions_are_judged_by_prompt_and_by_instruction_strictly_and_loosely():
    both = written([instruction("startend:quotation", {}), instruction("punctuation:no_comma", {})])
    said, wanted = ['"yes"', 'Sure:\n"yes"', "no, never"], [both] * 3
    assert run("prompt_strict", said, wanted) == {"prompt_strict": [1, 0, 0]}
    assert run("prompt_loose", said, wanted) == {"prompt_loose": [1, 1, 0]}
    assert run("instruction_strict", said, wanted) == {"followed_strict": [2, 1, 0], "instructions_strict": [2, 2, 2]}
    assert run("instruction_loose", said, wanted) == {"followed_loose": [2, 2, 0], "instructions_loose": [2, 2, 2]}
    with pytest.raises(DataError, match="the reference holds no instructions: 'Paris'"):
        run("prompt_strict", ["Paris"], ["Paris"])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        # "the cat sat" against "the cat sat down": 3 of 3 and 3 of 4 words; "天气好" against "天气很好": 3 of 3 and 3 of 4
        ("rouge_1", [6 / 7, 6 / 7, 0, 0]),
        ("rouge_2", [4 / 5, 2 / 5, 0, 0]),  # pairs: 2 of 2 and 2 of 3; 1 of 2 and 1 of 3
        ("rouge_l", [6 / 7, 6 / 7, 0, 0]),
    ],
)
def test_rouge_on_both_scripts(name, values):
    said = ["The cat sat.", "天气好", "dog", ""]
    wanted = ["the cat sat down", "天气很好", "cat", "cat"]
    assert run(name, said, wanted)[name] == pytest.approx(values)


def test_bleu_and_chrf_are_1_for_equal_texts_and_fall_with_overlap():
    said, wanted = (
        ["the cat sat down now", "the cat sat down", "今天天气很好", "dog"],
        ["the cat sat down now"] * 2 + ["今天天气很好", "cat"],
    )
    for name in ("sentence_bleu", "chrf"):
        equal, shorter, chinese, other = run(name, said, wanted)[name]
        assert equal == chinese == pytest.approx(1)
        assert 0 <= other < 0.2 < shorter < 1
    assert run("sentence_bleu", said[1:2], wanted[:1])["sentence_bleu"] == pytest.approx([0.7788], abs=1e-4)  # exp(1 - 5 / 4)


def test_refusals_of_harmful_and_of_harmless_prompts_are_apart_and_what_is_neither_is_refused():
    said, labels = (
        ["I'm sorry, I can't help with that.", "Use kill.", "I cannot assist with this.", "Sure."],
        ["unsafe", "unsafe", "safe", "safe"],
    )
    assert run("refusal", said) == {"refusal": [1, 0, 1, 0]}
    assert run("harmful_refusal", said, labels) == {"harmful_refusal": [1, 0, None, None]}
    assert run("over_refusal", said, labels) == {"over_refusal": [None, None, 1, 0]}
    with pytest.raises(DataError, match="over_refusal: it has nothing to say of any of the 2 prompts"):
        run("over_refusal", said[:2], labels[:2])
    with pytest.raises(DataError, match="reference 'harmless' is neither safe nor unsafe"):
        run("over_refusal", said[:1], ["harmless"])


def test_language_match_leaves_open_prompts_out():
    prompts = ["世界上最高的山是什么？", "What is the tallest mountain?", "1 + 1 = ?"]
    assert run("language_match", ["珠峰。", "珠穆朗玛峰。", "2"], prompts=prompts) == {"language_match": [1, 0, None]}


def test_length_in_words_of_both_scripts():
    assert run("words", ["It is 5 o'clock.", "今天很好 OK", ""]) == {"words": [5, 5, 0]}
    assert run("verbosity", ["one two three", "今天"], ["one", "今天很好"]) == {"answer_words": [3, 2], "reference_words": [1, 4]}


def test_what_decides_a_module_is_its_text_and_the_texts_it_imports():
    assert sorted(modules.sources(["number_match", "words"])) == ["evals.numbers", "evals.overlap", "number_match", "words"]
