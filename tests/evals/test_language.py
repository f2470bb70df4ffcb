# ruff: noqa: RUF001  answers come in many scripts
"""The language of a text: by script where that says it, among the languages of a script by n-grams, and None without letters."""

import pytest

from evals.language import language, same_language


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("用 Python 写一个 hello world 程序，并解释它。", "zh"),
        ("請用繁體中文回答。", "zh"),
        ("東京はとても大きい都市です。", "ja"),
        ("서울은 대한민국의 수도이다.", "ko"),
        ("Η Αθήνα είναι πρωτεύουσα.", "el"),
        ("Il fait très beau aujourd'hui à Paris.", "fr"),
        ("Hoy hace muy buen tiempo en Madrid.", "es"),
        ("12 + 30 = 42", None),
        ("", None),
    ],
)
def test_language(text, code):
    assert language(text) == code


@pytest.mark.parametrize(
    ("prompt", "answer", "value"),
    [
        ("What is the tallest mountain in the world?", "Mount Everest is the tallest mountain.", 1.0),
        ("What is the tallest mountain in the world?", "珠穆朗玛峰是世界上最高的山。", 0.0),
        ("What is the tallest mountain in the world?", "Der höchste Berg der Welt ist der Mount Everest.", 0.0),
        ("世界上最高的山是什么？", "珠穆朗玛峰。", 1.0),
        ("世界上最高的山是什么？", "Mount Everest is the tallest mountain.", 0.0),
        ("世界上最高的山有多少米？", "8848", 1.0),
        ("世界上最高的山是什么？", "", 0.0),
        ("世界上最高的山是什么？", "```python\nprint(1)\n```\n这是代码。", 1.0),
        ("What is the tallest mountain in the world?", "Everest", 1.0),
        ("Translate this sentence into German for me: I am here.", "Ich bin hier.", None),
        ("请用英文回答：世界上最高的山是什么？", "Mount Everest.", None),
        ("1 + 1?", "2", None),
        ("Hi", "Hallo", None),
    ],
)
def test_an_answer_is_in_the_language_of_its_prompt_where_that_is_told(prompt, answer, value):
    assert same_language(prompt, answer) == value
