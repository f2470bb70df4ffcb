# pyright: basic
"""Token F1 of answers: the overlap of words with the reference, after SQuAD's normalisation (arXiv:1606.05250, section 6.1).

Case, punctuation and English articles do not count.  A word is what stands between white space; a Chinese or Japanese character
is a word of its own.  Two empty texts agree; an empty one and another do not.
"""

import re
import unicodedata
from collections import Counter

import datasets
import evaluate

_DESCRIPTION = "Per answer the harmonic mean of the shares of its words and of the reference's words that the other has."
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


class TokenF1(evaluate.Metric):
    """predictions and references: text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers; references: expected answers",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        values = [_f1(_words(answer), _words(wanted)) for answer, wanted in zip(predictions, references, strict=True)]
        return {"token_f1": sum(values) / len(values), "values": values}


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
    return _WORD.findall(_ARTICLES.sub(" ", text))


def _f1(answer: list[str], wanted: list[str]) -> float:
    if not answer or not wanted:
        return float(answer == wanted)
    return 2 * sum((Counter(answer) & Counter(wanted)).values()) / (len(answer) + len(wanted))
