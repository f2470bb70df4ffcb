# pyright: basic
"""Mean share of 3-grams that repeat an earlier one of the same answer: 0 is none, near 1 is a loop; lower is better.

A token is a word, a punctuation mark, or one Chinese, Japanese or Korean character.  It is seq-rep-3 of Welleck et al.,
arXiv:1908.04319: 1 - distinct / all.
"""

import re

import datasets
import evaluate

_DESCRIPTION = "Share of an answer's 3-grams that occurred earlier in it; 0 for answers of fewer than 3 tokens."
_N = 3
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")


class Repetition(evaluate.Metric):
    """predictions: text."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict:
        values = [_repeated(answer) for answer in predictions]
        return {"repetition": sum(values) / len(values), "values": values}


def _repeated(answer: str) -> float:
    tokens = _TOKEN.findall(answer.casefold())
    grams = [tuple(tokens[i : i + _N]) for i in range(len(tokens) - _N + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
