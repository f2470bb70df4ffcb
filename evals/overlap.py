# pyright: basic
"""Overlap of an answer with its reference: ROUGE by `rouge-score`, BLEU and chrF by `sacrebleu`, words that fit both scripts.

A word is a run of letters and digits; a Chinese, Japanese or Korean character is a word of its own, so all work on Chinese.
Numbers of a single answer in [0, 1]; their mean over answers is what pairs up, and is no corpus BLEU.
"""

import re
import unicodedata
from functools import cache, lru_cache
from typing import Any

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def words(text: str) -> list[str]:
    """The words of `text`, in lower case.

    >>> words("It's 3.5 %: 今天 OK")
    ['it', 's', '3', '5', '今', '天', 'ok']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def rouge(kind: str, answer: str, reference: str) -> float:
    """F-measure of ROUGE (Lin, 2004) of `kind` rouge1, rouge2 or rougeL, without stemming.

    >>> rouge("rouge1", "the red cat", "the blue cat"), rouge("rougeL", "天气好", "天气很好")
    (0.6666666666666666, 0.8571428571428571)
    """
    return float(_rouge(answer, reference)[kind].fmeasure)


def sentence_bleu(answer: str, reference: str) -> float:
    """BLEU of one answer (Chen & Cherry, 2014: exponential smoothing, orders it is long enough for).

    >>> round(sentence_bleu("the red cat sat", "the red cat sat down"), 3), sentence_bleu("", "x")
    (0.779, 0.0)
    """
    return _bleu().sentence_score(" ".join(words(answer)), [" ".join(words(reference))]).score / 100


def chrf(answer: str, reference: str) -> float:
    """chrF (Popović, 2015) of one answer: F2 of character 6-grams, white space left out.

    >>> chrf("今天好", "今天好"), chrf("", "x")
    (1.0, 0.0)
    """
    return _chrf().sentence_score(answer, [reference]).score / 100


@lru_cache(maxsize=4096)
def _rouge(answer: str, reference: str) -> Any:  # noqa: ANN401  untyped
    return _scorer().score(reference, answer)


@cache
def _scorer() -> Any:  # noqa: ANN401
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())


class _Words:
    """How `rouge-score` wants a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _bleu() -> Any:  # noqa: ANN401
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", effective_order=True)


@cache
def _chrf() -> Any:  # noqa: ANN401
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
