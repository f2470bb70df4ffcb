"""The 25 kinds of verifiable instructions of IFEval (Zhou et al., arXiv:2311.07911, table 1): a pure function of text for each.

A check gets the answer and the instruction's arguments by name and says whether the answer does as told.  Written from the paper
and the prompts of its data; where a word of theirs can be read two ways, the docstring says which way it is read here.
"""

import json
import re
from collections.abc import Callable
from typing import Literal

from evals.language import language

Relation = Literal["at least", "less than"]

# -- keywords ----------------------------------------------------------------------------------------------------


def has_keywords(answer: str, *, keywords: list[str]) -> bool:
    """Every keyword is there, in any case, also inside a longer word."""
    return all(keyword.casefold() in answer.casefold() for keyword in keywords)


def keyword_frequency(answer: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    """The keyword comes at least, or less than, so often, in any case, also inside longer words."""
    return _holds(answer.casefold().count(keyword.casefold()), relation, frequency)


def no_forbidden_words(answer: str, *, forbidden_words: list[str]) -> bool:
    """None of the words is there as a word of its own, in any case."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(answer: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """The letter (or another character) comes at least, or less than, so often, in any case."""
    return _holds(answer.lower().count(letter.lower()), let_relation, let_frequency)


# -- language and length -----------------------------------------------------------------------------------------


def response_language(answer: str, *, language: str) -> bool:
    """Most of the answer is in that language, see `evals.language`; no letters are no language."""
    return _language(answer) == language


def number_of_sentences(answer: str, *, num_sentences: int, relation: Relation) -> bool:
    """At least, or less than, so many sentences."""
    return _holds(len(sentences(answer)), relation, num_sentences)


def number_of_words(answer: str, *, num_words: int, relation: Relation) -> bool:
    """At least, or less than, so many words; a word is an unbroken run of letters, digits and underscores."""
    return _holds(len(re.findall(r"\w+", answer)), relation, num_words)


def number_of_paragraphs(answer: str, *, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs with `***` between them; one without text is a fault, a divider before or after all is none."""
    parts = [part.strip() for part in re.split(r"\*{3}", answer)]
    return _filled(parts) == num_paragraphs


def nth_paragraph_first_word(answer: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs with a blank line between them, the nth of which opens with the word, but for case and punctuation."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", answer) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    opening = parts[nth_paragraph - 1].split()[0]
    word = re.match(r"[\w'\u2019-]*", opening.lstrip("\"'\u201c\u2018*_#([{<"))
    return word is not None and word[0].strip("'\u2019_-").casefold() == first_word.casefold()


# -- content and format ------------------------------------------------------------------------------------------


def has_postscript(answer: str, *, postscript_marker: str) -> bool:
    """The marker (P.S. or P.P.S) is there, in any case, with or without spaces and its last dot, and something follows it."""
    letters = [re.escape(letter) for letter in postscript_marker if letter.isalnum()]
    marker = r"\.\s?".join(letters) + r"\.?" if "." in postscript_marker else re.escape(postscript_marker)
    return re.search(rf"(?<![\w.]){marker}(?!\w)[\s:.*_-]*\w", answer, re.IGNORECASE) is not None


def has_placeholders(answer: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets, such as [address]."""
    return len(re.findall(r"\[[^\[\]\n]+\]", answer)) >= num_placeholders


def number_of_bullets(answer: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that start with the bullet `*` or `-` and a space, as Markdown wants it; dividers are none."""
    return len(re.findall(r"^[^\S\n]*[*-][^\S\n].*\w", answer, re.MULTILINE)) == num_bullets


def constrained_response(answer: str) -> bool:
    """One of the three answers that the prompts offer is in it, word for word."""
    return any(option in answer for option in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def highlighted_sections(answer: str, *, num_highlights: int) -> bool:
    """At least so many pieces of one line between `*` and `*`, or `**` and `**`."""
    found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", answer)
    return sum(bool((double or single).strip()) for double, single in found) >= num_highlights


def multiple_sections(answer: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, each opened by the word and a number (`Section 1`) on its own line's start, marks aside."""
    opening = rf"^[^\S\n]*[#*_>\[(]*[^\S\n]*{re.escape(section_spliter)}[^\S\n]*\d+"
    return len(re.findall(opening, answer, re.MULTILINE)) >= num_sections


def json_format(answer: str) -> bool:
    """The whole answer is JSON, which may stand in a Markdown fence."""
    text = answer.strip()
    if fenced := re.fullmatch(r"```(?:json)?[^\S\n]*\n?(.*?)```", text, re.DOTALL | re.IGNORECASE):
        text = fenced[1]
    try:
        json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return False
    return True


def has_title(answer: str) -> bool:
    """A title in double angular brackets, such as <<poem of joy>>, on one line."""
    return any(title.strip(" \t<>") for title in re.findall(r"<<([^\n]+?)>>", answer))


# -- combination, start and end ----------------------------------------------------------------------------------


def two_responses(answer: str) -> bool:
    """Two different answers with six asterisks between them; one more divider before or after is none."""
    parts = [part.strip() for part in answer.split("******")]
    return _filled(parts) == 2 and len(set(filter(None, parts))) == 2


def repeats_prompt(answer: str, *, prompt_to_repeat: str) -> bool:
    """It opens with the request word for word, but for case and outer white space."""
    return answer.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


def ends_with(answer: str, *, end_phrase: str) -> bool:
    """It ends with the phrase, but for case, and a quotation mark after it."""
    return answer.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())


def in_quotation_marks(answer: str) -> bool:
    """The whole of it is in double quotation marks."""
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# -- case and punctuation ----------------------------------------------------------------------------------------


def capital_word_frequency(answer: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    """At least, or less than, so many words of capitals alone; a hyphen or apostrophe is inside a word, and `I` is one."""
    words = re.findall(r"\w+(?:['\u2019-]\w+)*", answer)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def english_capitals(answer: str) -> bool:
    """In English, without a small letter."""
    return answer.isupper() and _language(answer) == "en"


def english_lowercase(answer: str) -> bool:
    """In English, without a capital."""
    return answer.islower() and _language(answer) == "en"


def no_comma(answer: str) -> bool:
    """Without a comma."""
    return "," not in answer


# -- what they share ---------------------------------------------------------------------------------------------

_ABBREVIATIONS = (
    "mr mrs ms dr prof sr jr st mt vs etc inc ltd co corp no vol fig al e.g i.e a.m p.m u.s u.k u.n ph.d gen col sgt capt lt rev "
    "hon jan feb mar apr jun jul aug sep sept oct nov dec approx dept est"
)
_KEEPS = frozenset(_ABBREVIATIONS.split())
_END = re.compile(r"[.!?\u3002\uff01\uff1f\u0964\u06d4\u2026]+[\"'\u201d\u2019)\]*_]*(?=\s|$)|[\u3002\uff01\uff1f\u0964]+")


def sentences(text: str) -> list[str]:
    """The sentences of `text`: up to a mark that ends one, or the end of a paragraph or list item; what has no word is none.

    A dot after an abbreviation, an initial or a list number ends none, unless it ends the line.

    >>> sentences("Dr. Smith paid $3.50 to J. Doe. Why? See e.g. this...\\n\\n1. Yes\\n2. No")
    ['Dr. Smith paid $3.50 to J. Doe.', 'Why?', 'See e.g. this...', '1. Yes', '2. No']
    """
    found: list[str] = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*\u2022]|\d+[.)])\s)", text):
        start = 0
        for end in _END.finditer(block):
            if not _only_a_dot(block[start : end.start()], end[0], block[end.end() :]):
                found.append(block[start : end.end()])
                start = end.end()
        found.append(block[start:])
    return [" ".join(part.split()) for part in found if re.search(r"\w", part)]


def _only_a_dot(before: str, mark: str, after: str) -> bool:
    """Whether a dot belongs to the word before it rather than to the sentence."""
    if mark != "." or not after.strip() or "\n" in after[: len(after) - len(after.lstrip())]:
        return False
    words = before.split()
    last = words[-1].lstrip("(\"'\u201c*_").casefold() if words else ""
    initial = len(last) == 1 and last.isalpha() and last != "i" and words[-1][-1:].isupper()
    return last in _KEEPS or initial or (len(words) == 1 and last.isdigit())


def _filled(parts: list[str]) -> int:
    """How many parts there are, or -1 where one between others is empty."""
    inner = parts[1 if not parts[0] else 0 : -1 if not parts[-1] and len(parts) > 1 else None]
    return len(inner) if all(inner) else -1


def _holds(count: int, relation: Relation, bound: int) -> bool:
    return count >= bound if relation == "at least" else count < bound


def _refused(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_language = language  # an instruction's argument has that name

CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": has_keywords,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": no_forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_of_sentences,
    "length_constraints:number_paragraphs": number_of_paragraphs,
    "length_constraints:number_words": number_of_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": has_placeholders,
    "detectable_content:postscript": has_postscript,
    "detectable_format:number_bullet_lists": number_of_bullets,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": has_title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeats_prompt,
    "startend:end_checker": ends_with,
    "startend:quotation": in_quotation_marks,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capitals,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
"""id of the kind, as the data has it -> its check, whose keyword arguments are the kind's"""
