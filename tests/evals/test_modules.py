"""Metric modules: the ones here judge known answers rightly; a user's broken one is an error that names it."""

# ruff: noqa: RUF001  answers come in both scripts

import warnings

import pytest

from evals import modules
from tasks.core.errors import DataError, SpecError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import evaluate  # noqa: F401  its import warns, and the tests are about modules

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")


def run(name, answers, references=None, **more):
    return modules.values(name, answers, references or [None] * len(answers), ["ask"] * len(answers), **more)


def test_exact_match_forgives_form_and_nothing_else():
    pairs = [
        ("Paris.", " paris"),
        ("７", "7"),
        ("“Yes”", "yes"),
        ("北京。", "北京"),
        ("Par is", "Paris"),
        ("8", "7"),
        ("?", "!"),
        ("", "x"),
    ]
    assert run("exact_match", [a for a, _ in pairs], [b for _, b in pairs]) == [1, 1, 1, 1, 0, 0, 0, 0]


def test_exact_match_leaves_out_what_has_no_reference_and_refuses_to_judge_none():
    assert run("exact_match", ["a", "b", "c"], ["a", None, "x"]) == [1, None, 0]
    with pytest.raises(DataError, match="exact_match: none of the 2 prompts has a reference"):
        run("exact_match", ["a", "b"])


@pytest.mark.parametrize(
    "answer",
    [
        "Sure! The capital is Ottawa.", "Great question. It is", "What a great question!", "As an AI language model, I",
        "**Certainly!** It",
        "I'd be happy to help.", "I’m happy to assist", "Of course! Here", "Thank you for your question",
        "Absolutely.", "sure",
        "当然可以！首都是", "好的，答案是", "这是一个好问题！", "很好的问题。", "作为一个AI语言模型，我", "作为人工智能助手，",
        "我很高兴为您解答", "感谢您的提问。",
    ],
)  # fmt: skip
def test_filler_is_seen(answer):
    assert run("filler_opening", [answer]) == [1]


@pytest.mark.parametrize(
    "answer",
    [
        "Ottawa", "Surely it rains.", "Sure-footed goats climb well.", "Of course the sky is blue",
        "As an airline pilot, she flies.",
        "Great questions need time",
        "The question is good.", "Certain things last.", "", "好的决定需要时间", "作为一个城市，北京很大。",
        "当然是北京", "问题很好",
    ],
)  # fmt: skip
def test_an_answer_is_not_taken_for_filler(answer):
    assert run("filler_opening", [answer]) == [0]


def test_repetition_is_the_share_of_repeated_3_grams():
    answers = ["a b c a b c", "it is fine today", "人人人人人人", "one two", "", "the end. the end. the end."]
    assert run("repetition", answers) == pytest.approx([1 / 4, 0, 3 / 4, 0, 0, 4 / 7])


def test_nothing_to_measure_is_an_error():
    with pytest.raises(DataError, match="none of the 0 prompts has an answer"):
        run("repetition", [])


def test_an_unknown_module_tells_the_nearest():
    with pytest.raises(
        SpecError, match=r"exact_mach: no such metric module, did you mean exact_match\?; yours would be evals/metrics/"
    ):
        modules.check("exact_mach")
    assert modules.nearest("zzz", []) == "; there are none"


def test_the_source_is_the_text_of_the_module():
    assert modules.source("repetition").startswith("# pyright: basic\n")


TEMPLATE = """
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features({{{features}}}))

    def _compute(self, predictions, **others):
        {body}
"""


def own(folder, name, body, features='"predictions": text'):
    path = folder / name / f"{name}.py"
    path.parent.mkdir(parents=True)
    path.write_text(TEMPLATE.format(body=body, features=features))
    return folder


def test_a_module_of_ones_own_may_want_the_prompts(tmp_path):
    body = 'values = [len(a) / len(p) for a, p in zip(predictions, others["prompts"])]; return {"terse": 0.0, "values": values}'
    folder = own(tmp_path, "terse", body, '"predictions": text, "prompts": text')
    assert modules.names(folder) == ["terse"]
    assert run("terse", ["a", "abcdef"], folder=folder) == pytest.approx([1 / 3, 2])


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("raises", 'raise KeyError("oops")', "raises.py: the metric module failed: KeyError: 'oops'"),
        ("fewer", 'return {"fewer": 1.0, "values": [1.0]}', "fewer.py: 1 values for 2 predictions"),
        ("nan", 'return {"nan": 1.0, "values": [1.0, float("nan")]}', "nan.py: value 1 is nan"),
        ("texts", 'return {"texts": 1.0, "values": ["a", "b"]}', "texts.py: a value is not a number"),
        ("other", 'return {"wrong": 1.0, "values": [1.0, 2.0]}', "other.py: compute must return"),
        ("number", "return 1.0", "number.py: compute must return"),
    ],
)
def test_a_broken_module_is_an_error_that_names_it(tmp_path, name, body, said):
    with pytest.raises(DataError, match=said):
        run(name, ["a", "b"], folder=own(tmp_path, name, body))


def test_a_module_that_cannot_be_loaded_or_wants_what_there_is_not_is_an_error(tmp_path):
    folder = own(tmp_path, "greedy", "return 1.0", '"predictions": text, "labels": text')
    with pytest.raises(
        DataError, match=r"greedy.py: the metric module wants labels; it can have predictions, references, prompts"
    ):
        run("greedy", ["a"], folder=folder)
    (folder / "greedy" / "greedy.py").write_text("this is no python")
    with pytest.raises(DataError, match=r"greedy.py: the metric module cannot be loaded: SyntaxError"):
        run("greedy", ["a"], folder=folder)
