# pyright: basic
"""Which language a text is in, without network: by its script where the script says it, else by `langdetect`, seeded.

Han, kana, Hangul, Thai and other scripts of one language need no statistics.  Latin, Cyrillic, Arabic and Devanagari letters
serve many languages: there langdetect's character n-grams decide among those of the script, which is unsure of a short text.
"""

import re
from functools import cache, lru_cache
from typing import Any

SURE = 20
"""letters from which the language of a shared script is believed"""
_ONE = {
    "Hangul": "ko", "Thai": "th", "Tamil": "ta", "Telugu": "te", "Kannada": "kn", "Gujarati": "gu", "Gurmukhi": "pa",
    "Bengali": "bn", "Malayalam": "ml", "Greek": "el", "Hebrew": "he",
}  # fmt: skip
"""script -> its one language among the known"""
_SHARED = {
    "Latin": (
        "af", "ca", "cs", "cy", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "id", "it", "lt", "lv", "nl", "no", "pl",
        "pt", "ro", "sk", "sl", "so", "sq", "sv", "sw", "tl", "tr", "vi",
    ),
    "Cyrillic": ("bg", "mk", "ru", "uk"),
    "Arabic": ("ar", "fa", "ur"),
    "Devanagari": ("hi", "mr", "ne"),
}  # fmt: skip
"""script -> the languages that langdetect tells apart in it"""
KNOWN: frozenset[str] = frozenset({"zh", "ja", *_ONE.values(), *(code for codes in _SHARED.values() for code in codes)})
_LETTERS_OF_A_WORD = {"Han": 1.6, "Kana": 3.0, "Thai": 4.0}
"""of scripts that put no spaces between words"""
_LONGEST = 10_000
"""characters that are looked at"""
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|\S+@\S+", re.DOTALL)
_NAMED = re.compile(
    r"\b(?:english|chinese|mandarin|german|french|spanish|italian|portuguese|russian|japanese|korean|arabic|hindi|latin|dutch|"
    r"turkish|vietnamese|thai|polish|swedish|danish|finnish|greek|hebrew|swahili|urdu|bengali|tamil|telugu|marathi|translat\w*)\b"
    r"|[中英法德俄日韩]文|[汉英法德俄日韩]语|西班牙语|葡萄牙语|意大利语|阿拉伯语|翻译|译成|译为",
    re.IGNORECASE,
)


def language(text: str) -> str | None:
    """ISO 639-1 code of the language most of `text` is in; None where it has no letters of a known script.

    >>> [language(text) for text in ("今天天气很好。", "これは本です", "안녕하세요", "The weather is fine today.", "42!", "")]
    ['zh', 'ja', 'ko', 'en', None, None]
    """
    found = script(text)
    if found is None:
        return None
    if found in ("Han", "Kana"):
        return "ja" if found == "Kana" else "zh"
    return _ONE.get(found) or _told_apart(text[:_LONGEST], found)


def script(text: str) -> str | None:
    """The script of most words of `text`: Han, Kana (with the Han characters of Japanese), Latin, ...; None without letters."""
    words = {name: len(found) / size for name, (found, size) in _found(text[:_LONGEST]).items() if found}
    if words.get("Kana", 0) * 4 > words.get("Han", 0) > 0:  # Japanese is written in both
        words["Kana"] += words.pop("Han")
    return max(sorted(words), key=lambda name: words[name], default=None)


def same_language(prompt: str, answer: str) -> float | None:
    """1 where `answer` is in the language of `prompt`, else 0; None for a prompt that leaves it open, whatever the answer.

    Open is a prompt whose own language is not sure, or that names a language or a translation.  Code and addresses do not count.
    An answer without letters, such as a number, is in no other language; an empty one is no answer.

    >>> same_language("What is the capital of Canada, please?", "首都是渥太华。"), same_language("1 + 1 = ?", "2")
    (0.0, None)
    """
    asked = prose(prompt)
    wanted = language(asked)
    if wanted is None or not _sure(asked) or _NAMED.search(asked):
        return None
    if not answer.strip():
        return 0.0
    told = prose(answer)
    if script(told) is None:
        return 1.0
    return float(script(told) == script(asked) if not _sure(told) else language(told) == wanted)


def prose(text: str) -> str:
    """`text` without code and addresses."""
    return _NO_PROSE.sub(" ", text)


def _sure(text: str) -> bool:
    found = script(text)
    return found not in _SHARED or sum(character.isalpha() for character in text) >= SURE


@cache
def _patterns() -> dict[str, tuple[Any, float]]:
    import regex  # pyright: ignore[reportMissingModuleSource]  knows scripts

    single = {"Han": r"\p{Han}", "Kana": r"[\p{Hiragana}\p{Katakana}]", "Thai": r"\p{Thai}"}
    spaced = {name: rf"\p{{{name}}}[\p{{{name}}}\p{{M}}'\u2019]*" for name in (*_ONE, *_SHARED) if name != "Thai"}
    return {name: (regex.compile(text), _LETTERS_OF_A_WORD.get(name, 1.0)) for name, text in (single | spaced).items()}


def _found(text: str) -> dict[str, tuple[list[str], float]]:
    return {name: (pattern.findall(text), size) for name, (pattern, size) in _patterns().items()}


@cache
def _factory() -> Any:  # noqa: ANN401  untyped
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory


@lru_cache(maxsize=100_000)
def _told_apart(text: str, found: str) -> str | None:
    """langdetect's choice among the languages of a script; capitals are lowered, for it passes over words of capitals."""
    from langdetect import LangDetectException

    detector = _factory().create()
    codes = _SHARED[found]
    detector.set_prior_map({code: 1 / len(codes) if code in codes else 0.0 for code in _factory().get_lang_list()})
    detector.append(text.lower())
    try:
        best = detector.detect()
    except LangDetectException:  # nothing it knows n-grams of
        return None
    return best if best in codes else None
