# pyright: basic
"""Mean chrF of single answers, by `sacrebleu` (`evals.overlap`)."""

import datasets
import evaluate

from evals.overlap import chrf

_DESCRIPTION = "Mean over answers of chrF with one reference, in [0, 1]."


class Chrf(evaluate.Metric):
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
        values = [chrf(answer, reference) for answer, reference in zip(predictions, references, strict=True)]
        return {"chrf": sum(values) / len(values), "values": values}
