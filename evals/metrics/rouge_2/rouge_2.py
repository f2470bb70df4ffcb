# pyright: basic
"""ROUGE of answers: F-measure over pairs of words (`evals.overlap`)."""

import datasets
import evaluate

from evals.overlap import rouge

_DESCRIPTION = "Mean F-measure over pairs of words of answer and reference."


class Rouge2(evaluate.Metric):
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
        values = [rouge("rouge2", answer, reference) for answer, reference in zip(predictions, references, strict=True)]
        return {"rouge_2": sum(values) / len(values), "values": values}
