# pyright: basic
"""ROUGE of answers: F-measure over single words (`evals.overlap`)."""

import datasets
import evaluate

from evals.overlap import rouge

_DESCRIPTION = "Mean F-measure over single words of answer and reference."


class Rouge1(evaluate.Metric):
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
        values = [rouge("rouge1", answer, reference) for answer, reference in zip(predictions, references, strict=True)]
        return {"rouge_1": sum(values) / len(values), "values": values}
