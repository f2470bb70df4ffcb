"""The 25 kinds of instructions: each with answers that do as told and answers that do not, and all of the public file parsed."""

# ruff: noqa: RUF001  answers come in many scripts

import json
from collections import Counter
from pathlib import Path

import pytest

from evals.instruction_checks import CHECKS, sentences
from evals.instructions import Followed, followed, instruction, read, variants, written

IFEVAL = Path(__file__).parents[3] / "shared" / "data" / "ifeval" / "ifeval_input_data.jsonl"
AT_LEAST, LESS = "at least", "less than"
GERMAN = "Das Wetter ist heute schön, und wir gehen in den Park."
ENGLISH = "The weather is nice today, and we all go to the park."
LANGUAGES = {
    "de": GERMAN,
    "it": "Oggi il tempo è bello e andiamo tutti al parco.",
    "pt": "Hoje o tempo está bom e vamos todos ao parque.",
    "fi": "Tänään on kaunis sää ja menemme kaikki puistoon.",
    "vi": "Hôm nay trời đẹp và chúng tôi đi công viên.",
    "sw": "Leo hali ya hewa ni nzuri na tunaenda kwenye bustani.",
    "ru": "Сегодня хорошая погода, и мы идём в парк.",
    "bg": "Днес времето е хубаво и отиваме в парка.",
    "ar": "الطقس جميل اليوم ونحن ذاهبون إلى الحديقة.",
    "fa": "امروز هوا خوب است و ما به پارک می‌رویم.",
    "ur": "آج موسم اچھا ہے اور ہم پارک جا رہے ہیں۔",
    "hi": "आज मौसम अच्छा है और हम पार्क जा रहे हैं।",
    "mr": "आज हवामान छान आहे आणि आम्ही उद्यानात जात आहोत.",
    "ne": "आज मौसम राम्रो छ र हामी पार्क जाँदैछौं।",
    "pa": "ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ ਅਤੇ ਅਸੀਂ ਪਾਰਕ ਜਾ ਰਹੇ ਹਾਂ।",
    "gu": "આજે હવામાન સારું છે અને આપણે બગીચામાં જઈએ છીએ.",
    "kn": "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ.",
    "te": "ఈ రోజు వాతావరణం బాగుంది.",
    "ta": "இன்று வானிலை நன்றாக உள்ளது.",
    "bn": "আজ আবহাওয়া ভালো।",
    "th": "วันนี้อากาศดีและเราไปสวนสาธารณะ",
    "ko": "오늘은 날씨가 좋아서 공원에 갑니다.",
    "en": ENGLISH,
}

CASES = [
    ("keywords:existence", {"keywords": ["mom", "Mother"]}, ["My MOM is a mother.", "moms and mothers"], ["my mom", "none"]),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": AT_LEAST}, ["War and war", "wars, warring"], ["war"]),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": LESS},
        ["war", "peace"],
        ["War and war", "w war WAR war"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "c++"]},
        ["rocket", "a rocky road", "c"],
        ["Rock!", "a ROCK", "use C++."],
    ),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": AT_LEAST}, ["Quite quick", "qq"], ["quit"]),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": LESS}, ["quit", "no"], ["Quite quick"]),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": AT_LEAST}, ["# a\n## b"], ["# a"]),
    *(
        ("language:response_language", {"language": code}, [text], [LANGUAGES["en" if code != "en" else "de"], "42"])
        for code, text in LANGUAGES.items()
    ),
    ("language:response_language", {"language": "hi"}, [LANGUAGES["hi"]], [LANGUAGES["mr"], LANGUAGES["ne"], LANGUAGES["ur"]]),
    ("language:response_language", {"language": "bg"}, [LANGUAGES["bg"]], [LANGUAGES["ru"]]),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": AT_LEAST}, ["One. Two! Three?"], ["Dr. No. Yes."]),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": LESS}, ["It is 3.5 m. Yes."], ["A b. C d. E f."]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***"],
        ["a\n\nb", "a\n***\n***\nb", "a"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": AT_LEAST}, ["one, two: three", "it's two"], ["one two"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, ["one two", "one -- two!"], ["one two three"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ["Hello.\n\nweekend, at last", 'a\n \n\n"Weekend" is', "a\n\n**Weekend:** b"],
        ["Weekend\n\nHello", "a\n\nWeekends", "a\n\nweekend\n\nb", "weekend", "a\nweekend"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] at [street, city]", "[a][b][c]"],
        ["[name]", "[] []", "[a\nb] [c]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. Write!", "p. s. write", "**P.S.** write"],
        ["Bye", "P.S.", "ps", "a.p.s. write"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. Write!", "P.P.S: write", "p.p.s write"],
        ["P.S. write", "P.P.S", "P.P.SA"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "intro\n- a\n  - b", "* a\n* **b**"],
        ["* a", "**a**\n* b", "*a*\n* b", "* * *\n* b", "* a\n* b\n- c", "---\n* a", "1. a\n2. b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", " My answer is maybe. So it is."],
        ["Yes.", "my answer is no", "My answer is yes!"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a b* and *c*", "**a** *b*", "* a *b*\n**c**"],
        ["*a*", "** **, * *", "*a\nb* *c*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "**SECTION 1:** a\n## SECTION 2"],
        ["SECTION 1\na", "Section 1\nSection 2", "SECTION A\nSECTION B"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n["a"]\n```', "```\n1\n```", " 3 "],
        ["{'a': 1}", '{"a": 1} ok', "NaN", "a", "[1"],
    ),
    ("detectable_format:title", {}, ["<<poem of joy>>\nO joy", "a <<b>> c"], ["<poem>", "<<>>", "<< >>", "<<a\nb>>"]),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "******one******two******"],
        ["one", "one******one", "a******b******c", "a************b", "one***two"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a haiku. "},
        ["write a haiku.\nO", "  Write a haiku. O"],
        ["Sure. Write a haiku.", "Write a poem."],
    ),
    ("startend:end_checker", {"end_phrase": "Peace!"}, ["War and\npeace!", 'He said "Peace!" '], ["Peace! Bye", "Peace"]),
    ("startend:quotation", {}, ['"all of it"', ' "a "b" c" '], ['"a', "a", '"', "'a'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": AT_LEAST},
        ["NO WAY", "I think NOT", "WELL-KNOWN A2"],
        ["NO way", "No Way"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LESS},
        ["NO way", "none", "I'M here"],
        ["NO WAY"],
    ),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, GERMAN.upper(), "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH.lower()], [ENGLISH, GERMAN.lower(), "123"]),
    ("punctuation:no_comma", {}, ["a; b", "一，二"], ["a, b", ","]),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_kind_sees_what_does_as_told_and_what_does_not(kind, arguments, good, bad):
    asked = instruction(kind, arguments)
    assert {text: asked.followed(text) for text in good} == dict.fromkeys(good, True)
    assert {text: asked.followed(text) for text in (*bad, "", " \n")} == dict.fromkeys((*bad, "", " \n"), False)


def test_every_kind_has_such_answers():
    assert {kind for kind, *_ in CASES} == CHECKS.keys()
    assert len(CHECKS) == 25


@pytest.mark.skipif(not IFEVAL.is_file(), reason="needs ../shared/data/ifeval")
def test_the_whole_public_file_is_read_and_every_combination_of_arguments_in_it_is_tested_above():
    tested = {(kind, frozenset(arguments), _relation(arguments), arguments.get("language")) for kind, arguments, *_ in CASES}
    count, missing = Counter(), set()
    for line in IFEVAL.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        pairs = zip(row["instruction_id_list"], row["kwargs"], strict=True)
        asked = tuple(instruction(kind, arguments) for kind, arguments in pairs)
        assert read(written(asked)) == asked
        count.update(one.kind for one in asked)
        missing |= {
            (one.kind, frozenset(one.arguments), _relation(one.arguments), one.arguments.get("language")) for one in asked
        } - tested
    assert not missing
    assert (len(count), count.total()) == (25, 834)


def _relation(arguments):
    return next((value for name, value in arguments.items() if name.endswith("relation")), None)


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        ("keywords:existance", {}, "no such kind of instruction: keywords:existance; did you mean keywords:existence?"),
        ("keywords:existence", {"keyword": ["a"]}, "keywords:existence: it takes keywords, got keyword"),
        ("punctuation:no_comma", {"n": 1}, "punctuation:no_comma: it takes no arguments, got n"),
        ("keywords:existence", {"keywords": "a"}, r"keywords is 'a', not list\[str\]"),
        ("keywords:existence", {"keywords": [""]}, "not a list of words"),
        ("length_constraints:number_words", {"num_words": "5", "relation": AT_LEAST}, "num_words is '5', not int"),
        ("length_constraints:number_words", {"num_words": -5, "relation": AT_LEAST}, "num_words is -5; it is a count"),
        (
            "length_constraints:number_words",
            {"num_words": 5, "relation": "at most"},
            "'at most'; it is one of at least, less than",
        ),
        ("language:response_language", {"language": "xx"}, "language is xx, which cannot be told; there are af, ar"),
        ("punctuation:no_comma", None, "its arguments are None, not named values"),
    ],
)
def test_what_cannot_be_checked_is_refused(kind, arguments, says):
    with pytest.raises(ValueError, match=says):
        instruction(kind, arguments)


def test_arguments_that_are_null_are_as_good_as_absent():
    assert instruction("punctuation:no_comma", {"num_words": None}) == instruction("punctuation:no_comma", {})


def test_what_is_no_list_of_instructions_is_refused():
    for text in ("Paris", "[1]", '[{"a": 1}]', "{"):
        with pytest.raises(ValueError, match="the reference holds no instructions"):
            read(text)


def test_loose_forgives_an_opening_a_closing_and_stars_and_strict_none_of_them():
    quoted = written([instruction("startend:quotation", {}), instruction("punctuation:no_comma", {})])
    assert followed('"all of it"', quoted) == Followed(2, 2, 2)
    assert followed('Sure, here:\n"all of it"', quoted) == Followed(0, 2, 2)
    assert followed('"all of it"\nHope this helps, bye.', quoted) == Followed(0, 2, 2)
    assert followed('Sure, here:\n**"all of it"**\nBye.', quoted) == Followed(0, 2, 2)
    assert followed('Sure\nhere:\n"all of it"', quoted) == Followed(1, 1, 2)
    assert followed("", quoted) == Followed(0, 0, 2)


def test_there_are_eight_readings_and_the_first_is_the_answer_itself():
    assert list(variants("a\n*b*\nc")) == ["a\n*b*\nc", "a\n*b*", "*b*\nc", "*b*", "a\nb\nc", "a\nb", "b\nc", "b"]


def test_sentences():
    assert sentences("What? No! He left at 5 p.m. today.") == ["What?", "No!", "He left at 5 p.m. today."]
    assert sentences('She said "Stop." Then left.') == ['She said "Stop."', "Then left."]
    assert sentences("Title\n\nOne sentence\nover two lines.\n* item one\n* item two") == [
        "Title", "One sentence over two lines.", "* item one", "* item two",
    ]  # fmt: skip
    assert sentences("今天很好。我们走吧！好吗？") == ["今天很好。", "我们走吧！", "好吗？"]
    assert sentences("...") == []
