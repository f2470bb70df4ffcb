# pyright: basic
"""Share of answers that are the reference label, but for surrounding white space."""

import datasets
import evaluate

_DESCRIPTION = "1 where the predicted label is the reference label, else 0."


class Accuracy(evaluate.Metric):
    """predictions and references: labels as text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: labels; references: true labels",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        values = [float(label.strip() == true.strip()) for label, true in zip(predictions, references, strict=True)]
        return {"accuracy": sum(values) / len(values), "values": values}
