# pyright: basic
"""Mean number of words of the answers; a Chinese, Japanese or Korean character counts as one (`evals.overlap`)."""

import datasets
import evaluate

from evals.overlap import words

_DESCRIPTION = "Words of the answer."


class Words(evaluate.Metric):
    """predictions: answers: text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers",
            features=datasets.Features({"predictions": text}),
        )

    def _compute(self, predictions: list[str]) -> dict:
        values = [float(len(words(answer))) for answer in predictions]
        return {"words": sum(values) / len(values), "values": values}
